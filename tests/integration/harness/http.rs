//! A small HTTP/1.1 client that sends exactly what it is told: tests replay recorded heads and send broken ones.
//!
//! Blocking, one connection per [`Client`], over a Unix socket, TCP, or TLS with or without a client certificate.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use serde_json::Value;

use super::wait::SOON;

/// The files by which a host proves who it is, and knows whom it talks to.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// The authority that the server's certificate must come from.
    pub ca: PathBuf,
    /// The host's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Where a server is to be called, and as whom.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// Plain TCP.
    Tcp(SocketAddr),
    /// TLS with a client certificate.
    Tls(SocketAddr, Identity),
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The status code.
    pub status: u16,
    /// The header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as it came.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null when it is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The text of `Err`; empty when the answer has none.
    pub(crate) fn err(&self) -> String {
        self.json()["Err"].as_str().unwrap_or_default().to_owned()
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| &**v)
    }
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One connection.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
    server: Vec<u8>,
}

impl Client {
    /// Connects. Over TLS the handshake has succeeded from this side; a server that refuses the certificate says so
    /// in TLS 1.3 only afterwards, so the first answer fails.
    pub(crate) fn connect(target: &Target) -> io::Result<Self> {
        match target {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(SOON))?;
                Ok(Self::over(stream))
            }
            Target::Tcp(address) => Ok(Self::over(dial(*address)?)),
            Target::Tls(address, identity) => Self::tls(dial(*address)?, &identity.ca, Some(identity)),
        }
    }

    /// Makes a TLS connection out of one that stands, with a certificate or without any.
    pub(crate) fn tls(stream: TcpStream, ca: &Path, identity: Option<&Identity>) -> io::Result<Self> {
        Self::tls_of(rustls::ALL_VERSIONS, stream, ca, identity)
    }

    /// As [`Client::tls`], of these versions of TLS only.
    pub(crate) fn tls_of(
        versions: &[&'static SupportedProtocolVersion],
        mut stream: TcpStream,
        ca: &Path,
        identity: Option<&Identity>,
    ) -> io::Result<Self> {
        let name = ServerName::from(stream.peer_addr()?.ip());
        let config = Arc::new(client_config(versions, ca, identity)?);
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        let server = session.peer_certificates().and_then(|chain| chain.first()).map(|own| own.to_vec());
        let client = Self::over(StreamOwned::new(session, stream));
        Ok(Self { server: server.unwrap_or_default(), ..client })
    }

    /// The certificate (DER) that the server proved itself with; empty without TLS.
    pub(crate) fn server(&self) -> &[u8] {
        &self.server
    }

    /// Speaks over a stream that stands already.
    pub(crate) fn over(stream: impl Read + Write + Send + 'static) -> Self {
        Self { stream: Box::new(stream), unread: Vec::new(), server: Vec::new() }
    }

    /// Calls an RPC as an engine does, with a JSON body.
    pub(crate) fn call(&mut self, rpc: &str, body: &Value) -> io::Result<Answer> {
        let body = format!("{body}\n");
        let length = body.len().to_string();
        self.request(
            &format!("POST {rpc} HTTP/1.1"),
            &[("Host", "volhost"), ("Content-Length", &length)],
            &body,
        )
    }

    /// Asks for a page.
    pub(crate) fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
        self.request(&format!("GET {path} HTTP/1.1"), &[&[("Host", "volhost")], headers].concat(), "")
    }

    /// Sends one request exactly as given, and reads its answer.
    pub(crate) fn request(&mut self, line: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Answer> {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.send(format!("{line}\r\n{headers}\r\n{body}").as_bytes())?;
        self.answer()
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads one answer; a connection closed before it is complete is an error of kind `UnexpectedEof`.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            self.read_more()?;
        };
        let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer {
            status: status.ok_or_else(|| io::Error::other(format!("no status line: {head:?}")))?,
            headers,
            body: Vec::new(),
        };
        match answer.header("content-length").map(str::parse::<usize>) {
            Some(Ok(length)) => {
                while self.unread.len() < length {
                    self.read_more()?;
                }
                answer.body = self.unread.drain(..length).collect();
            }
            Some(Err(e)) => return Err(io::Error::other(e)),
            None if answer.header("transfer-encoding") == Some("chunked") => answer.body = self.chunks()?,
            None => {}
        }
        Ok(answer)
    }

    /// Whether the server has closed the connection or closes it within the read timeout, having sent nothing more.
    pub(crate) fn is_closed(&mut self) -> bool {
        if !self.unread.is_empty() {
            return false;
        }
        match self.stream.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(e) => !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = self.unread.windows(2).position(|two| two == b"\r\n") {
                    break at;
                }
                self.read_more()?;
            };
            let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
            let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            while self.unread.len() < end + 2 + size + 2 {
                self.read_more()?;
            }
            body.extend_from_slice(&self.unread[end + 2..end + 2 + size]);
            self.unread.drain(..end + 2 + size + 2);
            if size == 0 {
                return Ok(body);
            }
        }
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.unread.extend_from_slice(&buffer[..n]);
                Ok(())
            }
        }
    }
}

/// Connects over TCP; a read ends after [`SOON`].
pub(crate) fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn client_config(
    versions: &[&'static SupportedProtocolVersion],
    ca: &Path,
    identity: Option<&Identity>,
) -> io::Result<ClientConfig> {
    let certificates = |path: &Path| -> io::Result<Vec<CertificateDer<'static>>> {
        let pem =
            std::fs::read(path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(io::Error::other)
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    match identity {
        None => Ok(config.with_no_client_auth()),
        Some(Identity { ca: _, cert, key }) => {
            let key = PrivateKeyDer::from_pem_slice(&std::fs::read(key)?).map_err(io::Error::other)?;
            config.with_client_auth_cert(certificates(cert)?, key).map_err(io::Error::other)
        }
    }
}
