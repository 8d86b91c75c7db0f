//! The content of a spec file, in each format that an engine reads.
//!
//! This module never touches the file system.

use std::fmt;
use std::fmt::Write as _;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A plugin's name, which names its spec file: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(String);

/// The error for a text that is not a plugin's name.
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

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name of the file in an engine's directory.
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

/// The format of a spec file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `NAME.json`: an address, and its TLS files.
    Json,
    /// `NAME.spec`: an address alone.
    Spec,
}

impl Format {
    /// Both formats.
    pub const ALL: [Self; 2] = [Self::Spec, Self::Json];

    /// Returns the extension of the file's name, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Spec => "spec",
        }
    }
}

/// The files with which an engine verifies the server and proves its host's name: paths on the engine's
/// machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that may vouch for the server. An engine without them verifies nothing.
    pub ca: PathBuf,
    /// The host's certificate.
    pub cert: PathBuf,
    /// The key of the host's certificate.
    pub key: PathBuf,
}

/// The address of a plugin, and the files for mutual authentication there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TLS with a client certificate.
    Https {
        /// A DNS name or an address; an IPv6 one without brackets.
        host: String,
        /// The port.
        port: u16,
        /// The TLS files, which `https` always needs.
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
    /// Writes it as an engine reads it: only `https` turns TLS on, and plain TCP is `tcp`.
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

/// Escapes a path for a URL: an engine would misread a `%`, `?` or `#` in it.
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

/// The content of a spec file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The plugin's name.
    pub name: PluginName,
    /// The address of the plugin.
    pub address: Address,
}

/// Reasons why a spec file cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// An engine would encrypt the connection but verify nobody.
    #[error(
        "{0} cannot go into a .spec file: it has no room for TLS files, and an engine that is given no CA verifies nothing; use the format `json`"
    )]
    Unverified(String),
    /// Each engine would resolve a relative path differently.
    #[error("{} is no absolute path", .0.display())]
    Relative(PathBuf),
    /// JSON holds text only.
    #[error("{} is not UTF-8, which JSON cannot hold", .0.display())]
    NotUtf8(PathBuf),
    /// The JSON library failed.
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
    /// Returns the file's content. Only JSON can express `https`; JSON can express all three kinds of
    /// address.
    pub fn render(&self, format: Format) -> Result<String, RenderError> {
        let Self { name, address } = self;
        let tls = match address {
            Address::Https { host: _, port: _, tls } => Some(tls),
            Address::Http { host: _, port: _ } => None,
            Address::Unix(path) => absolute(path).map(|()| None)?,
        };
        match (format, tls) {
            (Format::Spec, Some(_)) => Err(RenderError::Unverified(address.to_string())),
            (Format::Spec, None) => Ok(format!("{address}\n")),
            (Format::Json, tls) => {
                let tls = tls.map(json_tls).transpose()?;
                let spec = JsonSpec { name: name.as_str(), addr: address.to_string(), tls };
                serde_json::to_string_pretty(&spec)
                    .map(|text| text + "\n")
                    .map_err(|error| RenderError::Json(error.to_string()))
            }
        }
    }
}

fn json_tls(tls: &TlsFiles) -> Result<JsonTls<'_>, RenderError> {
    let TlsFiles { ca, cert, key } = tls;
    Ok(JsonTls {
        insecure_skip_verify: false,
        ca_file: text(ca)?,
        cert_file: text(cert)?,
        key_file: text(key)?,
    })
}

fn text(path: &Path) -> Result<&str, RenderError> {
    absolute(path)?;
    path.to_str().ok_or_else(|| RenderError::NotUtf8(path.to_owned()))
}

fn absolute(path: &Path) -> Result<(), RenderError> {
    if path.is_absolute() { Ok(()) } else { Err(RenderError::Relative(path.to_owned())) }
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
        assert_eq!(error, RenderError::Unverified("https://store1:7443".to_owned()));
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
        let relative = RenderError::Relative("p.sock".into());
        assert_eq!(spec(Address::Unix("p.sock".into())).render(Format::Spec), Err(relative));
        let Address::Https { host, port, mut tls } = https("h") else { unreachable!() };
        tls.key = "client.key".into();
        let relative = RenderError::Relative("client.key".into());
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
