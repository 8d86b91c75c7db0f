//! The load: a client as an engine is one, HTTP/1.1 over mutual TLS, alone or many at a time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;
use volhost::model::host::HostName;
use volhost::pki::Pki;

use crate::floor::{certificates, key};

/// What clients run on.
pub(crate) struct Runtimes {
    /// One client's: it and its connection are on the thread that measures, so that its times contain no hand-over to
    /// another thread of its own.
    pub alone: Runtime,
    /// Many clients', on all processors.
    pub many: Runtime,
}

impl Runtimes {
    /// Makes both.
    pub(crate) fn new() -> Self {
        let alone = Builder::new_current_thread().enable_all().build().expect("it needs no thread");
        Self { alone, many: Runtime::new().expect("threads can be made") }
    }

    /// The one for so many clients.
    pub(crate) fn of(&self, clients: usize) -> &Runtime {
        if clients == 1 { &self.alone } else { &self.many }
    }
}

/// One connection.
pub(crate) type Connection = SendRequest<Full<Bytes>>;

/// Makes connections of one identity.
#[derive(Clone)]
pub(crate) struct Client(TlsConnector);

impl Client {
    /// A client with the certificate of this machine's own engine.
    pub(crate) fn new(pki: &Pki) -> Self {
        Self::with(pki, certificates(&pki.client().cert), key(&pki.client().key))
    }

    /// A client that is another host, which joins for that.
    pub(crate) fn joining(pki: &Pki, host: &str) -> Self {
        let issued =
            pki.issue_host(&HostName::parse(host).expect("it is valid")).expect("there is an authority");
        let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .expect("volhost made it");
        let key = issued.key_pem.expect("no request was sent");
        Self::with(pki, chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("volhost made it"))
    }

    /// It resumes no session, so that each connection is a whole handshake.
    fn with(pki: &Pki, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        for authority in certificates(&pki.ca().cert) {
            roots.add(authority).expect("volhost made it");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("the pair fits");
        config.resumption = Resumption::disabled();
        Self(TlsConnector::from(Arc::new(config)))
    }

    /// Connects.
    pub(crate) async fn connect(&self, address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).await.expect("the server listens");
        stream.set_nodelay(true).expect("TCP has it");
        let stream =
            self.0.connect(ServerName::from(address.ip()), stream).await.expect("the handshake succeeds");
        http(stream).await
    }

    /// Connects many times.
    pub(crate) async fn connect_all(&self, address: SocketAddr, count: usize) -> Vec<Connection> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(self.connect(address).await);
        }
        connections
    }
}

/// Connects without TLS.
pub(crate) async fn connect_plain(address: SocketAddr) -> Connection {
    let stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("TCP has it");
    http(stream).await
}

/// Begins HTTP on a stream.
async fn http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Connection {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP begins");
    tokio::spawn(connection);
    sender
}

/// Scrapes the metrics.
pub(crate) async fn scrape(connection: &mut Connection) -> Bytes {
    let request =
        Request::get("/metrics").header("Host", "volhost").body(Full::default()).expect("it is valid");
    connection.ready().await.expect("the connection stands");
    let response = connection.send_request(request).await.expect("the server answers");
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body().collect().await.expect("the answer is whole").to_bytes()
}

/// Calls an RPC and returns the body of its answer, which must be a good one.
pub(crate) async fn call(connection: &mut Connection, rpc: &str, body: String) -> Bytes {
    let (status, body) = ask(connection, rpc, body).await;
    assert_eq!(status, StatusCode::OK, "{rpc}: {}", String::from_utf8_lossy(&body));
    body
}

/// Calls an RPC and returns its answer, which may be an error.
pub(crate) async fn ask(connection: &mut Connection, rpc: &str, body: String) -> (StatusCode, Bytes) {
    let request = Request::post(rpc).header("Host", "volhost").body(Full::from(body)).expect("it is valid");
    connection.ready().await.expect("the connection stands");
    let response = connection.send_request(request).await.expect("the server answers");
    let status = response.status();
    (status, response.into_body().collect().await.expect("the answer is whole").to_bytes())
}

/// Gets a volume of [`name`].
pub(crate) async fn get(connection: &mut Connection, index: u64) -> Bytes {
    call(connection, "/VolumeDriver.Get", format!(r#"{{"Name":"{}"}}"#, name(index))).await
}

/// The name of a volume by its number.
pub(crate) fn name(index: u64) -> String {
    format!("volume-{index:07}")
}

/// Gets volumes of `0..volumes` over connections that stand, all at once, for a time; returns how long each took, in
/// microseconds.
pub(crate) async fn gets(
    connections: Vec<Connection>,
    volumes: u64,
    time: Duration,
) -> (Vec<Connection>, Vec<f64>) {
    let until = Instant::now() + time;
    let tasks: Vec<_> = connections
        .into_iter()
        .zip(1_u64..)
        .map(|(mut connection, seed)| {
            tokio::spawn(async move {
                let mut taken = Vec::new();
                // Knuth's multiplier: spreads the calls over all volumes, the same in each run.
                let mut state = seed;
                let mut began = Instant::now();
                while began < until {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    get(&mut connection, (state >> 33) % volumes).await;
                    let ended = Instant::now();
                    taken.push((ended - began).as_secs_f64() * 1e6);
                    began = ended;
                }
                (connection, taken)
            })
        })
        .collect();
    let (mut connections, mut all) = (Vec::with_capacity(tasks.len()), Vec::new());
    for task in tasks {
        let (connection, taken) = task.await.expect("no client panics");
        connections.push(connection);
        all.extend(taken);
    }
    (connections, all)
}

/// Gets volumes for a time, each over a connection of its own; returns how many.
pub(crate) async fn connecting_gets(
    client: &Client,
    address: SocketAddr,
    clients: usize,
    time: Duration,
) -> u64 {
    let until = Instant::now() + time;
    let tasks: Vec<_> = (0..clients)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut calls = 0;
                while Instant::now() < until {
                    get(&mut client.connect(address).await, 0).await;
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    let mut calls = 0;
    for task in tasks {
        calls += task.await.expect("no client panics");
    }
    calls
}
