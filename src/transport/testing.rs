//! Fixtures for the tests of this room: certificates made at run time, a small service, and a client that
//! sees bytes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams,
    SerialNumber,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A timeout that only a hang reaches.
pub(super) const LONG: Duration = Duration::from_secs(20);

pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
}

pub(super) fn days(count: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::days(count)
}

fn authority(name: &str, limits: Option<NameConstraints>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.name_constraints = limits;
    params
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let usages = [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self::with(name, &usages, KeyPair::generate().unwrap())
    }

    pub(super) fn with(name: &str, usages: &[KeyUsagePurpose], key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = usages.to_vec();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Returns a CA of the same key that limits names.
    pub(super) fn limited(&self, name: &str, limits: Option<NameConstraints>) -> Self {
        let key = KeyPair::from_pem(&self.0.key().serialize_pem()).unwrap();
        Self(CertifiedIssuer::self_signed(authority(name, limits), key).unwrap())
    }

    /// Returns a CA whose certificate this one signed.
    pub(super) fn below(&self, name: &str, limits: Option<NameConstraints>) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(authority(name, limits), key, &self.0).unwrap())
    }

    /// Returns the same CA with a certificate that does not allow it to sign revocation lists.
    pub(super) fn without_lists(&self, name: &str) -> Self {
        let key = KeyPair::from_pem(&self.0.key().serialize_pem()).unwrap();
        Self::with(name, &[KeyUsagePurpose::KeyCertSign], key)
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn der(&self) -> &CertificateDer<'static> {
        self.0.der()
    }

    /// Returns a server certificate.
    pub(super) fn server(&self) -> Identity {
        self.issue("localhost", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    /// Returns a client's certificate with its name and serial number.
    pub(super) fn client(&self, name: &str, serial: u8) -> Identity {
        self.issue(name, |params| params.serial_number = Some(SerialNumber::from_slice(&[serial])))
    }

    pub(super) fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    pub(super) fn crl(&self, serials: &[u8]) -> String {
        self.crl_of(serials, days(-1), days(30))
    }

    pub(super) fn crl_of(&self, serials: &[u8], made: OffsetDateTime, next: OffsetDateTime) -> String {
        self.crl_numbered(serials, 1, made, next)
    }

    pub(super) fn crl_numbered(
        &self,
        serials: &[u8],
        number: u8,
        made: OffsetDateTime,
        next: OffsetDateTime,
    ) -> String {
        let revoked = |serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial]),
            revocation_time: days(-1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: made,
            next_update: next,
            crl_number: SerialNumber::from_slice(&[number]),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// Returns a client's TLS configuration that trusts this authority.
    pub(super) fn client_config(&self, identity: Option<&Identity>) -> ClientConfig {
        self.client_config_of(identity, &[&rustls::version::TLS13])
    }

    pub(super) fn client_config_of(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes());
                let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// The client's end of a connection.
pub(super) struct Client(pub(super) Box<dyn Bytes>);

impl Client {
    /// Opens a connection over TLS. In TLS 1.3 a refusal shows only at the first read.
    pub(super) async fn tls(port: u16, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::clone(config));
        Ok(Self(Box::new(connector.connect(name, stream).await?)))
    }

    pub(super) async fn tcp(port: u16) -> Self {
        Self(Box::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap()))
    }

    pub(super) async fn send(&mut self, bytes: &str) -> io::Result<()> {
        self.0.write_all(bytes.as_bytes()).await?;
        self.0.flush().await
    }

    /// Sends a whole request and returns its whole answer.
    pub(super) async fn call(&mut self, path: &str) -> io::Result<String> {
        self.send(&format!("POST {path} HTTP/1.1\r\nContent-Length: 0\r\n\r\n")).await?;
        self.answer().await
    }

    /// Reads one answer, head and body.
    pub(super) async fn answer(&mut self) -> io::Result<String> {
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            answer.push(char::from(self.0.read_u8().await?));
        }
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        for _ in 0..length.map_or(0, |length| length.parse().unwrap()) {
            answer.push(char::from(self.0.read_u8().await?));
        }
        Ok(answer)
    }

    /// Reads everything that comes before the server closes the connection; an abrupt end counts as an end.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let reading = tokio::time::timeout(LONG, self.0.read_to_end(&mut rest)).await;
        // Only the end of the connection matters here; TLS reports an end without a closing message as an
        // error.
        let _ = reading.expect("the server did not close the connection");
        rest
    }
}
