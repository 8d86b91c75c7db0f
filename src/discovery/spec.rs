//! The forms of a spec file: what an engine reads, byte for byte.
//!
//! Pure: nothing here touches the file system.

use std::fmt;
use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A plugin's name, which names its spec file: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(String);

/// A text that is no plugin's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no plugin name: it takes 1 to 128 letters, digits, `_`, `.` and `-`, and begins with a letter or a digit"
)]
pub struct InvalidPluginName(String);

impl PluginName {
    /// Reads a plugin's name.
    pub fn parse(text: &str) -> Result<Self, InvalidPluginName> {
        let valid = text.len() <= 128
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidPluginName(text.chars().take(64).collect()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the file in an engine's directory.
    #[must_use]
    pub fn file(&self, format: Format) -> String {
        format!("{}.{}", self.0, format.extension())
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The form of a spec file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `NAME.json`: an address, and the TLS files that go with it.
    Json,
    /// `NAME.spec`: an address alone.
    Spec,
}

impl Format {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Spec, Self::Json];

    /// The ending of the file's name, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Spec => "spec",
        }
    }
}

/// The files by which an engine verifies the server and proves its host's name, on the engine's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that may vouch for the server. An engine that is given none verifies nothing.
    pub ca: PathBuf,
    /// The host's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where a plugin is reached, and how an engine and it prove themselves there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TLS with a client certificate.
    Https {
        /// A DNS name or an address; an IPv6 one without brackets.
        host: String,
        /// The port.
        port: u16,
        /// There is no `https` without them.
        tls: TlsFiles,
    },
    /// Plain TCP.
    Http {
        /// A DNS name or an address; an IPv6 one without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    /// As an engine reads it: only `https` turns TLS on, and plain TCP is `tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix://{}", escaped(path)),
            Self::Https { host, port, tls: _ } => ("https", host, port),
            Self::Http { host, port } => ("tcp", host, port),
        };
        match host.parse::<Ipv6Addr>() {
            Ok(address) => write!(f, "{scheme}://[{address}]:{port}"),
            Err(_) => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// A path as it stands in a URL: an engine would take a `%`, `?` or `#` in it for something else.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// What a spec file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The plugin's name.
    pub name: PluginName,
    /// Where it is reached.
    pub address: Address,
}

/// Why there is no such spec file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rendering {
    /// An engine would encrypt but verify nobody.
    #[error(
        "{0} cannot go into a .spec file: it has no room for TLS files, and an engine that is given no CA verifies nothing; use the format `json`"
    )]
    Unverified(String),
    /// A relative path would mean another file to each engine.
    #[error("{} is no absolute path", .0.display())]
    Relative(PathBuf),
    /// JSON holds text only.
    #[error("{} is not UTF-8, which JSON cannot hold", .0.display())]
    NotUtf8(PathBuf),
    /// It was not made into JSON.
    #[error("it could not be made into JSON: {0}")]
    Json(String),
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonSpec<'a> {
    name: &'a str,
    addr: String,
    #[serde(rename = "TLSConfig", skip_serializing_if = "Option::is_none")]
    tls: Option<JsonTls<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonTls<'a> {
    insecure_skip_verify: bool,
    #[serde(rename = "CAFile")]
    ca_file: &'a str,
    cert_file: &'a str,
    key_file: &'a str,
}

impl Spec {
    /// The file's content. `https` can only be said in JSON, which can say all three.
    pub fn render(&self, format: Format) -> Result<String, Rendering> {
        let Self { name, address } = self;
        let tls = match address {
            Address::Https { host: _, port: _, tls } => Some(tls),
            Address::Http { host: _, port: _ } => None,
            Address::Unix(path) => absolute(path).map(|()| None)?,
        };
        match (format, tls) {
            (Format::Spec, Some(_)) => Err(Rendering::Unverified(address.to_string())),
            (Format::Spec, None) => Ok(format!("{address}\n")),
            (Format::Json, tls) => {
                let tls = tls.map(json_tls).transpose()?;
                let spec = JsonSpec { name: name.as_str(), addr: address.to_string(), tls };
                serde_json::to_string_pretty(&spec)
                    .map(|text| text + "\n")
                    .map_err(|error| Rendering::Json(error.to_string()))
            }
        }
    }
}

fn json_tls(tls: &TlsFiles) -> Result<JsonTls<'_>, Rendering> {
    let TlsFiles { ca, cert, key } = tls;
    Ok(JsonTls {
        insecure_skip_verify: false,
        ca_file: text(ca)?,
        cert_file: text(cert)?,
        key_file: text(key)?,
    })
}

fn text(path: &Path) -> Result<&str, Rendering> {
    absolute(path)?;
    path.to_str().ok_or_else(|| Rendering::NotUtf8(path.to_owned()))
}

fn absolute(path: &Path) -> Result<(), Rendering> {
    if path.is_absolute() { Ok(()) } else { Err(Rendering::Relative(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(address: Address) -> Spec {
        Spec { name: PluginName::parse("volhost").unwrap(), address }
    }

    fn https(host: &str) -> Address {
        let tls = TlsFiles {
            ca: "/etc/volhost/pki/ca.crt".into(),
            cert: "/etc/volhost/pki/client.crt".into(),
            key: "/etc/volhost/pki/client.key".into(),
        };
        Address::Https { host: host.to_owned(), port: 7443, tls }
    }

    #[test]
    fn https_becomes_json_that_verifies() {
        let golden = r#"{
  "Name": "volhost",
  "Addr": "https://127.0.0.1:7443",
  "TLSConfig": {
    "InsecureSkipVerify": false,
    "CAFile": "/etc/volhost/pki/ca.crt",
    "CertFile": "/etc/volhost/pki/client.crt",
    "KeyFile": "/etc/volhost/pki/client.key"
  }
}
"#;
        assert_eq!(spec(https("127.0.0.1")).render(Format::Json).unwrap(), golden);
    }

    #[test]
    fn https_is_no_spec_line_because_nothing_would_be_verified() {
        let error = spec(https("store1")).render(Format::Spec).unwrap_err();
        assert_eq!(error, Rendering::Unverified("https://store1:7443".to_owned()));
        assert!(error.to_string().contains("use the format `json`"), "{error}");
    }

    #[test]
    fn plain_addresses_become_one_line() {
        for (address, golden) in [
            (Address::Http { host: "127.0.0.1".to_owned(), port: 7400 }, "tcp://127.0.0.1:7400\n"),
            (Address::Http { host: "::1".to_owned(), port: 7400 }, "tcp://[::1]:7400\n"),
            (Address::Unix("/run/volhost/plugin.sock".into()), "unix:///run/volhost/plugin.sock\n"),
            (Address::Unix("/run/50% é?#/p.sock".into()), "unix:///run/50%25%20%C3%A9%3F%23/p.sock\n"),
        ] {
            assert_eq!(spec(address).render(Format::Spec).unwrap(), golden);
        }
    }

    #[test]
    fn plain_addresses_become_json_without_tls() {
        let golden = "{\n  \"Name\": \"volhost\",\n  \"Addr\": \"unix:///run/p.sock\"\n}\n";
        assert_eq!(spec(Address::Unix("/run/p.sock".into())).render(Format::Json).unwrap(), golden);
        let golden = "{\n  \"Name\": \"volhost\",\n  \"Addr\": \"tcp://localhost:80\"\n}\n";
        let address = Address::Http { host: "localhost".to_owned(), port: 80 };
        assert_eq!(spec(address).render(Format::Json).unwrap(), golden);
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        assert_eq!(https("fd00::7").to_string(), "https://[fd00::7]:7443");
    }

    #[test]
    fn relative_paths_are_refused() {
        let relative = Rendering::Relative("p.sock".into());
        assert_eq!(spec(Address::Unix("p.sock".into())).render(Format::Spec), Err(relative));
        let Address::Https { host, port, mut tls } = https("h") else { unreachable!() };
        tls.key = "client.key".into();
        let relative = Rendering::Relative("client.key".into());
        assert_eq!(spec(Address::Https { host, port, tls }).render(Format::Json), Err(relative));
    }

    #[test]
    fn plugin_names_are_plain_file_names() {
        for good in ["volhost", "9", "a_b.c-d", "Netshare"] {
            assert!(PluginName::parse(good).is_ok(), "{good:?} was refused");
        }
        let long = "a".repeat(129);
        for bad in ["", ".hidden", "-a", "a/b", "..", "a b", "é", "a\n", &long] {
            assert!(PluginName::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
