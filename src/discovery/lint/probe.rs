//! Calls a plugin as an engine would: at the same address, with the same files, and with the same
//! verification.
//!
//! The call is `VolumeDriver.Capabilities`, which changes nothing. An Activate would begin a new activation
//! and make the host's mounts stale. The probe uses no proxies, because only the engine's own environment
//! knows them.

use std::error::Error as StdError;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::Endpoint;
use super::fault::Fault;
use super::reading::{Files, Protection, Target};
use crate::files;
use crate::pki::certificate::decode;

/// The time limit for a whole call, the connection included.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum size of an answer if no larger one is expected; Capabilities takes some 40 bytes.
pub(crate) const MAX_RESPONSE: usize = 64 << 10;

/// The files of the authorities that an engine trusts besides `CAFile`. The first that exists counts.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Calls all targets at the same time, in a new runtime on this thread. Never call it in async code.
///
/// Returns `None` for a target that answers as a volume plugin does.
pub(crate) fn probe(targets: &[&Target], timeout: Duration) -> io::Result<Vec<Option<Fault>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let calls = targets.iter().map(|target| probe_one(target, timeout));
    let told = runtime.block_on(futures_util::future::join_all(calls));
    // This does not wait for a name lookup that is still under way.
    runtime.shutdown_background();
    Ok(told)
}

async fn probe_one(target: &Target, timeout: Duration) -> Option<Fault> {
    match within(timeout, target, &CAPABILITIES).await {
        Ok(answer) => answer.fault(&target.address),
        Err(fault) => Some(fault),
    }
}

/// A call to a plugin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RpcCall<'a> {
    /// The path of the verb, such as `/VolumeDriver.Get`.
    pub rpc: &'a str,
    /// The argument, as JSON.
    pub body: &'a [u8],
    /// The maximum size of the answer, in bytes.
    pub largest: usize,
}

/// A call that only a volume plugin answers and that changes nothing.
pub(crate) const CAPABILITIES: RpcCall<'_> =
    RpcCall { rpc: "/VolumeDriver.Capabilities", body: b"{}", largest: MAX_RESPONSE };

/// The answer of a plugin, whatever it says.
#[derive(Debug, Clone)]
pub(crate) struct RpcResponse {
    /// The HTTP status.
    pub status: StatusCode,
    /// The `Date` header, by the clock of the plugin's machine.
    pub date: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl RpcResponse {
    /// Returns the body as JSON; null if it is not JSON.
    #[must_use]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Returns the fault if this is not a volume plugin's answer to [`CAPABILITIES`].
    #[must_use]
    pub(crate) fn fault(&self, address: &str) -> Option<Fault> {
        let (status, body) = (self.status, self.json());
        let error_text = error_text(&body);
        if status.is_success() && error_text.is_none() && body.get("Capabilities").is_some() {
            return None;
        }
        let answer = match error_text {
            Some(text) => format!("with status {} and {text:?}", status.as_u16()),
            None => format!("with status {}", status.as_u16()),
        };
        Some(Fault::NoPlugin { address: address.to_owned(), answer })
    }
}

/// Returns the plugin's error message if the answer has one.
#[must_use]
pub(crate) fn error_text(body: &Value) -> Option<&str> {
    body.get("Err").and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Makes one call to a target, in a new runtime on this thread. Never call it in async code.
///
/// # Errors
/// Returns [`Fault::Broken`] also if no runtime can be made. An answer that reports an error is not an error here.
pub(crate) fn call(target: &Target, rpc_call: &RpcCall<'_>, timeout: Duration) -> Result<RpcResponse, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::Broken { address: target.address.clone(), why: error.to_string() })?;
    let answer = runtime.block_on(within(timeout, target, rpc_call));
    runtime.shutdown_background();
    answer
}

async fn within(limit: Duration, target: &Target, rpc_call: &RpcCall<'_>) -> Result<RpcResponse, Fault> {
    let silent = || Fault::Silent { address: target.address.clone(), seconds: limit.as_secs() };
    tokio::time::timeout(limit, connect_and_ask(target, rpc_call)).await.map_err(|_| silent())?
}

async fn connect_and_ask(target: &Target, rpc_call: &RpcCall<'_>) -> Result<RpcResponse, Fault> {
    let Target { address, endpoint, protection, files } = target;
    let RpcCall { rpc, body, largest } = *rpc_call;
    let request = request(rpc, body).map_err(|error| fault_of(&error, address))?;
    let unreachable =
        |error: io::Error| Fault::Unreachable { address: address.clone(), why: error.to_string() };
    let (host, port, https) = match endpoint {
        Endpoint::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(unreachable)?;
            return exchange(stream, request, largest).await.map_err(|error| fault_of(&*error, address));
        }
        Endpoint::Tcp { host, port, https } => (host, *port, *https),
    };
    let unresolved = |why: String| Fault::Unresolved { host: host.clone(), why };
    let found =
        tokio::net::lookup_host((&**host, port)).await.map_err(|error| unresolved(error.to_string()))?;
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        return Err(unresolved("it has no address".to_owned()));
    }
    let stream = TcpStream::connect(&*found).await.map_err(unreachable)?;
    if !https {
        return exchange(stream, request, largest).await.map_err(|error| fault_of(&*error, address));
    }
    let broken = |why: String| Fault::Broken { address: address.clone(), why };
    let config = tls(files, *protection).map_err(broken)?;
    let name = ServerName::try_from(host.clone()).map_err(|error| broken(error.to_string()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| fault_of(&error, address))?;
    exchange(stream, request, largest).await.map_err(|error| match fault_of(&*error, address) {
        // In TLS 1.3 a client learns only now that the server refused its certificate, and not every server
        // says so.
        Fault::Broken { address, why: _ } if is_hang_up(&*error) => {
            Fault::Refused { address, why: "it closed the connection right after the handshake".to_owned() }
        }
        fault => fault,
    })
}

/// Makes a request with an engine's headers.
fn request(rpc: &str, body: &[u8]) -> http::Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(Method::POST)
        .uri(rpc)
        .header(header::HOST, "plugin")
        .header(header::ACCEPT, "application/vnd.docker.plugins.v1.2+json")
        .header(header::CONTENT_TYPE, "application/vnd.docker.plugins.v1.2+json")
        .body(Full::new(Bytes::copy_from_slice(body)))
}

/// Sends one request over an open connection, and reads the answer.
///
/// # Errors
/// The connection broke, or the body has more than `largest` bytes.
pub(crate) async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    largest: usize,
) -> Result<RpcResponse, Box<dyn StdError + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The connection needs a separate task that drives it; an error in it also ends the request below.
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), largest).collect().await;
    driver.abort();
    Ok(RpcResponse { status, date, body: body?.to_bytes() })
}

/// Returns the fault for a broken connection, from the TLS error that it has.
fn fault_of(error: &(dyn StdError + 'static), address: &str) -> Fault {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let address = address.to_owned();
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(
            why @ (Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
        )) => Fault::OutOfDate { address, why: why.to_string() },
        Some(rustls::Error::InvalidCertificate(why)) => Fault::NotVerified { address, why: why.to_string() },
        Some(rustls::Error::AlertReceived(why)) => Fault::Refused { address, why: format!("alert {why:?}") },
        _ => Fault::Broken { address, why: causes(error) },
    }
}

/// Returns true if the other side closed the connection.
fn is_hang_up(error: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let closed = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message)
        || error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        });
    closed || error.source().is_some_and(is_hang_up)
}

/// Returns the TLS error among an error's causes, if there is one.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    // `source` does not return the error that an I/O error wraps.
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.and_then(|inner| tls_error(inner)).or_else(|| tls_error(error.source()?))
}

/// Returns an error with its causes, each text once.
pub(crate) fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

fn tls(files: &Files, protection: Protection) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let Files { ca, pair } = files;
    let mut own = Vec::new();
    let mut roots = RootCertStore::empty();
    if let Some(ca) = ca {
        own = decode(&read(ca)?).map_err(|error| crate::error::chain(&error))?;
        roots.add_parsable_certificates(own.iter().cloned());
    }
    if let Some(system) =
        SYSTEM_ROOTS.iter().find_map(|path| files::read_at_most(Path::new(path), files::SMALL).ok())
    {
        roots.add_parsable_certificates(decode(&system).unwrap_or_default());
    }
    let verified = match protection {
        Protection::Verified => {
            let built =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
            Some(built.map_err(|error| error.to_string())?)
        }
        Protection::Local | Protection::Off | Protection::Unverified => None,
    };
    let verifier = EngineVerifier { verified, own, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match pair {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => {
            let chain = decode(&read(cert)?).map_err(|error| crate::error::chain(&error))?;
            let key = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| error.to_string())?;
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    files::read_at_most(path, files::SMALL).map_err(|error| format!("{}: {error}", path.display()))
}

/// Verifies a server as an engine does: not at all if the spec file says so, else by the authorities. A
/// server's own certificate in `CAFile` counts as an authority.
#[derive(Debug)]
struct EngineVerifier {
    verified: Option<Arc<WebPkiServerVerifier>>,
    own: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for EngineVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(verified) = &self.verified else { return Ok(ServerCertVerified::assertion()) };
        let result = verified.verify_server_cert(certificate, intermediates, name, ocsp, now);
        if result.is_err() && self.own.contains(certificate) {
            let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
            rustls::client::verify_server_name(&parsed, name)?;
            // The dates of this certificate are those of `CAFile`, which the lint checks apart from the
            // probe.
            return Ok(ServerCertVerified::assertion());
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::super::reading;
    use super::*;

    /// Returns the result of a probe of a plugin that answers with these bytes, or not at all.
    fn told_of(answer: Option<&'static str>) -> (Option<Fault>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let plugin = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(b"{}") {
                let mut bytes = [0; 1000];
                let read = stream.read(&mut bytes).unwrap();
                asked.extend_from_slice(&bytes[..read]);
            }
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                // This waits until the probe has given up.
                None => drop(stream.read(&mut [0])),
            }
            String::from_utf8(asked).unwrap()
        });
        let timeout = if answer.is_some() { PROBE_TIMEOUT } else { Duration::from_secs(1) };
        let told = probe(&[&reading::socket(&path)], timeout).unwrap().remove(0);
        (told, plugin.join().unwrap())
    }

    #[test]
    fn a_volume_plugin_is_known_by_its_answer_to_capabilities() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\n{\"Capabilities\":{\"Scope\":\"global\"}}";
        let (told, asked) = told_of(Some(answer));
        assert_eq!(told, None);
        assert!(asked.starts_with("POST /VolumeDriver.Capabilities HTTP/1.1\r\n"), "{asked}");
    }

    #[test]
    fn what_answers_otherwise_is_told_with_its_answer() {
        for (answer, expected) in [
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404,"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "status 200,"),
            ("HTTP/1.1 500 No\r\nContent-Length: 14\r\n\r\n{\"Err\":\"boom\"}", "status 500 and \"boom\""),
        ] {
            let told = told_of(Some(answer)).0.unwrap();
            assert_eq!(told.word(), "no-plugin");
            assert!(told.to_string().contains(expected), "{told}");
        }
        assert_eq!(told_of(Some("SSH-2.0-OpenSSH\r\n")).0.unwrap().word(), "broken");
        assert_eq!(told_of(Some("")).0.unwrap().word(), "broken");
    }

    #[test]
    fn what_breaks_a_handshake_is_told_apart() {
        let word = |error: rustls::Error| fault_of(&io::Error::other(error), "https://h:1").word();
        for why in [CertificateError::Expired, CertificateError::NotValidYet] {
            assert_eq!(word(rustls::Error::InvalidCertificate(why)), "out-of-date");
        }
        assert_eq!(word(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)), "not-verified");
        assert_eq!(word(rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA)), "refused");
        assert_eq!(word(rustls::Error::HandshakeNotComplete), "broken");
        assert!(is_hang_up(&io::Error::from(io::ErrorKind::ConnectionReset)));
        assert!(!is_hang_up(&io::Error::other("something else")));
    }

    #[test]
    fn who_does_not_answer_is_given_up() {
        let told = told_of(None).0.unwrap();
        assert!(matches!(told, Fault::Silent { seconds: 1, .. }), "{told}");
    }
}
