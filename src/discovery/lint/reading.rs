//! Reads a spec file as an engine does, and finds its faults.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::address::{self, Endpoint};
use super::fault::Fault;
use crate::error::nearest;

/// The protection of a connection by the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// A Unix socket, which needs no protection.
    Local,
    /// Plain text.
    Off,
    /// Encrypted, but the engine accepts any server.
    Unverified,
    /// Encrypted, and `CAFile` or the system's authorities vouch for the server.
    Verified,
}

impl Protection {
    /// Returns the word for it, for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Off => "off",
            Self::Unverified => "unverified",
            Self::Verified => "verified",
        }
    }
}

/// The TLS files that an engine reads, even if it then uses no TLS. An empty path in the file counts as none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// `CAFile`; `None` if the engine does not read it.
    pub ca: Option<PathBuf>,
    /// `CertFile` and `KeyFile`.
    pub pair: Option<(PathBuf, PathBuf)>,
}

/// The content of a file, as an engine understands it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The address as the file has it.
    pub address: String,
    /// The endpoint of the address.
    pub endpoint: Endpoint,
    /// The protection of the connection.
    pub protection: Protection,
    /// The TLS files.
    pub files: Files,
}

/// Returns the target of a socket in an engine's directory.
pub(super) fn socket(path: &Path) -> Target {
    Target {
        address: format!("unix://{}", path.display()),
        endpoint: Endpoint::Unix(path.to_owned()),
        protection: Protection::Local,
        files: Files::default(),
    }
}

/// Reads a `.spec` file: one line.
pub(super) fn line(content: &[u8], faults: &mut Vec<Fault>) -> Option<Target> {
    let address = String::from_utf8_lossy(content).trim().to_owned();
    let endpoint = address::read(&address, faults)?;
    let protection = match &endpoint {
        Endpoint::Unix(_) => Protection::Local,
        Endpoint::Tcp { https: true, .. } => {
            faults.push(Fault::UnverifiedLine);
            Protection::Unverified
        }
        Endpoint::Tcp { https: false, .. } => plain(&address, &endpoint, faults),
    };
    Some(Target { address, endpoint, protection, files: Files::default() })
}

/// Reads a `.json` file of the plugin `name`.
pub(super) fn json(name: &str, content: &[u8], faults: &mut Vec<Fault>) -> Option<Target> {
    let spec = match object(content, faults).and_then(Spec::of) {
        Ok(spec) => spec,
        Err(why) => {
            faults.push(Fault::BadJson { why });
            return None;
        }
    };
    let Spec { name: inside, address, tls, unknown } = spec;
    faults.extend(unknown);
    if let Some(inside) = inside.filter(|inside| inside != name) {
        faults.push(Fault::OtherName { inside, outside: name.to_owned() });
    }
    let endpoint = address::read(&address, faults);
    let files = tls.as_ref().map(|tls| tls.files(faults)).unwrap_or_default();
    let endpoint = endpoint?;
    let protection = match (&endpoint, &tls) {
        (Endpoint::Unix(_), None) => Protection::Local,
        (Endpoint::Unix(_), Some(_)) => {
            faults.push(Fault::TlsOnSocket);
            Protection::Local
        }
        (Endpoint::Tcp { https: false, .. }, None) => plain(&address, &endpoint, faults),
        (Endpoint::Tcp { https: false, .. }, Some(_)) => {
            faults.push(Fault::TlsOff { address: address.clone() });
            Protection::Off
        }
        (Endpoint::Tcp { https: true, .. }, tls) => {
            let (protection, unverified) = match tls {
                // In this case the system's authorities verify the server.
                None => (Protection::Verified, None),
                Some(tls) if tls.skip => (Protection::Unverified, Some(Fault::UnverifiedAsked)),
                Some(tls) if tls.ca.is_empty() => (Protection::Unverified, Some(Fault::UnverifiedNoCa)),
                Some(_) => (Protection::Verified, None),
            };
            faults.extend(unverified);
            if tls.as_ref().is_none_or(|tls| tls.cert.is_empty() && tls.key.is_empty()) {
                faults.push(Fault::NoClientCertificate);
            }
            protection
        }
    };
    Some(Target { address, endpoint, protection, files })
}

fn plain(address: &str, endpoint: &Endpoint, faults: &mut Vec<Fault>) -> Protection {
    if !endpoint.is_local() {
        faults.push(Fault::Plain { address: address.to_owned() });
    }
    Protection::Off
}

/// Returns the first JSON value of a file, which must be an object; an engine reads no further.
fn object(content: &[u8], faults: &mut Vec<Fault>) -> Result<Map<String, Value>, String> {
    let mut values = serde_json::Deserializer::from_slice(content).into_iter::<Value>();
    let first = values.next().ok_or("it is empty")?.map_err(|error| error.to_string())?;
    let rest = content.get(values.byte_offset()..).unwrap_or_default();
    if !rest.iter().all(u8::is_ascii_whitespace) {
        faults.push(Fault::Trailing);
    }
    match first {
        Value::Object(fields) => Ok(fields),
        _ => Err("it is no object".to_owned()),
    }
}

const FIELDS: [&str; 3] = ["Name", "Addr", "TLSConfig"];
/// The last four are in an engine's type, but hardly ever in a file.
const TLS_FIELDS: [&str; 8] = [
    "CAFile",
    "CertFile",
    "KeyFile",
    "InsecureSkipVerify",
    "ExclusiveRootPools",
    "MinVersion",
    "ClientAuth",
    "Passphrase",
];

struct Spec {
    name: Option<String>,
    address: String,
    tls: Option<Tls>,
    unknown: Vec<Fault>,
}

#[derive(Default)]
struct Tls {
    ca: String,
    cert: String,
    key: String,
    skip: bool,
}

impl Spec {
    /// Compares field names without case, and ignores `null`, as Go does.
    fn of(fields: Map<String, Value>) -> Result<Self, String> {
        let mut spec = Self { name: None, address: String::new(), tls: None, unknown: Vec::new() };
        for (field, value) in fields {
            match known(&field, &FIELDS) {
                Some("Name") => spec.name = value.as_str().map(str::to_owned),
                Some("Addr") => spec.address = text("Addr", value)?,
                Some("TLSConfig") => match value {
                    Value::Null => {}
                    Value::Object(fields) => spec.tls = Some(Tls::of(fields, &mut spec.unknown)?),
                    _ => return Err("TLSConfig is no object".to_owned()),
                },
                _ => spec.unknown.push(unknown(&field, "", &FIELDS)),
            }
        }
        Ok(spec)
    }
}

impl Tls {
    fn of(fields: Map<String, Value>, strange: &mut Vec<Fault>) -> Result<Self, String> {
        let mut tls = Self::default();
        for (field, value) in fields {
            match known(&field, &TLS_FIELDS) {
                Some("CAFile") => tls.ca = text("CAFile", value)?,
                Some("CertFile") => tls.cert = text("CertFile", value)?,
                Some("KeyFile") => tls.key = text("KeyFile", value)?,
                Some("InsecureSkipVerify") => match value {
                    Value::Null => {}
                    Value::Bool(skip) => tls.skip = skip,
                    _ => return Err("InsecureSkipVerify is neither true nor false".to_owned()),
                },
                Some(_) => {}
                None => strange.push(unknown(&field, "TLSConfig.", &TLS_FIELDS)),
            }
        }
        Ok(tls)
    }

    fn files(&self, faults: &mut Vec<Fault>) -> Files {
        let Self { ca, cert, key, skip } = self;
        for (field, path) in [("CAFile", ca), ("CertFile", cert), ("KeyFile", key)] {
            if !path.is_empty() && !path.starts_with('/') {
                faults.push(Fault::Relative { field, path: path.into() });
            }
        }
        if cert.is_empty() != key.is_empty() {
            faults.push(Fault::HalfAPair);
        }
        Files {
            ca: (!ca.is_empty() && !skip).then(|| ca.into()),
            pair: (!cert.is_empty() && !key.is_empty()).then(|| (cert.into(), key.into())),
        }
    }
}

fn known<const N: usize>(field: &str, fields: &[&'static str; N]) -> Option<&'static str> {
    fields.iter().copied().find(|known| known.eq_ignore_ascii_case(field))
}

fn unknown<const N: usize>(field: &str, within: &str, fields: &[&'static str; N]) -> Fault {
    let meant = nearest(field, fields.iter().copied()).map(str::to_owned);
    Fault::UnknownField { field: format!("{within}{field}"), meant }
}

fn text(field: &str, value: Value) -> Result<String, String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        _ => Err(format!("{field} is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(faults: &[Fault]) -> Vec<&'static str> {
        faults.iter().map(Fault::word).collect()
    }

    #[test]
    fn a_line_is_read_as_an_engine_does() {
        for (text, protection, expected) in [
            ("unix:///run/a.sock\n", Protection::Local, &[][..]),
            ("  tcp://127.0.0.1:80 \n", Protection::Off, &[]),
            ("tcp://10.0.0.7:80", Protection::Off, &["plain"]),
            ("https://h:1", Protection::Unverified, &["unverified"]),
        ] {
            let mut faults = Vec::new();
            assert_eq!(line(text.as_bytes(), &mut faults).unwrap().protection, protection, "{text}");
            assert_eq!(words(&faults), expected, "{text}");
        }
    }

    #[test]
    fn json_is_read_as_an_engine_does() {
        let pair = r#""CertFile": "/c", "KeyFile": "/k""#;
        let cases = [
            (
                r#"{"Name": "v", "Addr": "https://h:1", "TLSConfig": {"CAFile": "/a", PAIR}}"#,
                "verified",
                &[][..],
            ),
            (r#"{"addr": "https://h:1", "tlsconfig": {"cafile": "/a", PAIR}}"#, "verified", &[]),
            (r#"{"Addr": "https://h:1", "TLSConfig": {PAIR}}"#, "unverified", &["unverified"]),
            (
                r#"{"Addr": "https://h:1", "TLSConfig": {"InsecureSkipVerify": true, "CAFile": "/a", PAIR}}"#,
                "unverified",
                &["unverified"],
            ),
            (
                r#"{"Addr": "https://h:1", "TLSConfig": {"CAFile": "/a"}}"#,
                "verified",
                &["no-client-certificate"],
            ),
            (r#"{"Addr": "https://h:1", "TLSConfig": null}"#, "verified", &["no-client-certificate"]),
            (
                r#"{"Addr": "https://h:1", "TLSConfig": {"CAFile": "/a", "CertFile": "/c"}}"#,
                "verified",
                &["half-a-pair"],
            ),
            (r#"{"Addr": "tcp://h:1", "TLSConfig": {"CAFile": "/a", PAIR}}"#, "off", &["tls-off"]),
            (r#"{"Addr": "http://h:1"}"#, "off", &["plain"]),
            (r#"{"Addr": "unix:///s", "TLSConfig": {}}"#, "local", &["tls-on-socket"]),
            (r#"{"Addr": "unix:///s"} {}"#, "local", &["trailing"]),
            (r#"{"Addr": "unix:///s", "Name": "w"}"#, "local", &["other-name"]),
            (r#"{"Addr": "unix:///s", "Adress": "x"}"#, "local", &["unknown-field"]),
            (
                r#"{"Addr": "https://h:1", "TLSConfig": {"CAFile": "a", "CaPath": "", PAIR}}"#,
                "verified",
                &["unknown-field", "relative"],
            ),
        ];
        for (text, protection, expected) in cases {
            let text = text.replace("PAIR", pair);
            let mut faults = Vec::new();
            let target = json("v", text.as_bytes(), &mut faults).unwrap();
            assert_eq!(target.protection.word(), protection, "{text}");
            assert_eq!(words(&faults), expected, "{text}");
        }
    }

    #[test]
    fn what_no_engine_can_read_is_told() {
        for text in ["", "{", "[]", r#"{"Addr": 1}"#, r#"{"Addr": "unix:///s", "TLSConfig": []}"#] {
            let mut faults = Vec::new();
            assert_eq!(json("v", text.as_bytes(), &mut faults), None, "{text}");
            assert_eq!(words(&faults), ["bad-json"], "{text}");
        }
        let mut faults = Vec::new();
        assert_eq!(json("v", b"{}", &mut faults), None);
        assert_eq!(words(&faults), ["bad-address"]);
    }

    #[test]
    fn a_slip_in_a_field_is_told_what_was_meant() {
        let mut faults = Vec::new();
        let _ = json("v", br#"{"Addres": "unix:///s"}"#, &mut faults);
        assert!(faults[0].to_string().contains("Addres (did you mean \"Addr\"?)"), "{}", faults[0]);
    }
}
