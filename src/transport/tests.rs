//! Tests of the whole way from a socket to an answer, with real TLS on loopback.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};

use rustls::ClientConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use warp::Filter;

use super::testing::{Authority, Client, Identity, LONG, days};
use super::*;

/// A server with one address, and everything that a test changes.
struct Fixture {
    server: Arc<Server>,
    port: u16,
    tls: Arc<ArcSwap<tls::State>>,
    limits: Arc<ArcSwap<Limits>>,
    drain: Drain,
    revoked: Arc<Serials>,
    seen: Arc<Mutex<Vec<String>>>,
    running: JoinHandle<()>,
    slow: Arc<Slow>,
    authority: Authority,
    own: Identity,
}

/// Requests that end when the test says so.
struct Slow {
    began: watch::Sender<usize>,
    gate: Semaphore,
}

impl Slow {
    fn new() -> Arc<Self> {
        Arc::new(Self { began: watch::Sender::new(0), gate: Semaphore::new(0) })
    }

    /// Waits until this many requests have begun.
    async fn began(&self, count: usize) {
        let mut began = self.began.subscribe();
        tokio::time::timeout(LONG, began.wait_for(|began| *began == count)).await.unwrap().unwrap();
    }

    fn release(&self) {
        self.gate.add_permits(100);
    }
}

#[derive(Default)]
struct Serials(Mutex<HashSet<String>>);

impl Revocation for Serials {
    fn refused(&self, _: &HostName, serial: &str) -> bool {
        self.0.lock().unwrap().contains(serial)
    }
}

/// A loopback address with any free port.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn limits() -> Limits {
    Limits { handshake: Duration::from_secs(1), ..Limits::default() }
}

impl Fixture {
    async fn https() -> Self {
        Self::of(Listen::Https(LOOPBACK), limits()).await
    }

    async fn of(listen: Listen, limits: Limits) -> Self {
        let authority = Authority::new("volhost test CA");
        let own = authority.server();
        let state = state(&own, &authority.pem(), None);
        let tls = Arc::new(ArcSwap::from_pointee(state));
        let limits = Arc::new(ArcSwap::from_pointee(limits));
        let drain = Drain::new();
        let revoked = Arc::new(Serials::default());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let revocation: Arc<dyn Revocation> = Arc::<Serials>::clone(&revoked);
        let slow = Slow::new();
        let setup = Setup {
            node: HostName::parse("store1").unwrap(),
            limits: Arc::clone(&limits),
            tls: Some(Arc::clone(&tls)),
            revocation,
            on_handshake: Arc::new(|_| ()),
            on_request: {
                let seen = Arc::clone(&seen);
                Arc::new(move |caller, _| {
                    seen.lock().unwrap().push(caller.host.to_string());
                    None
                })
            },
            drain: drain.clone(),
        };
        let server = Server::new(setup);
        let bound = bind(&[listen], Vec::new()).await.unwrap().pop().unwrap();
        let port = bound.address().rsplit_once(':').unwrap().1.parse().unwrap_or_default();
        let running = tokio::spawn(Arc::clone(&server).run(bound, service(&slow)));
        Self { server, port, tls, limits, drain, revoked, seen, running, slow, authority, own }
    }

    fn config(&self, name: &str, serial: u8) -> Arc<ClientConfig> {
        let identity = self.authority.client(name, serial);
        Arc::new(self.authority.client_config(Some(&identity)))
    }

    async fn client(&self, name: &str, serial: u8) -> Client {
        Client::tls(self.port, &self.config(name, serial)).await.unwrap()
    }

    /// Returns true if a client with this configuration gets an answer.
    async fn answers(&self, config: ClientConfig) -> bool {
        match Client::tls(self.port, &Arc::new(config)).await {
            Ok(mut client) => client.call("/who").await.is_ok(),
            Err(_) => false,
        }
    }

    fn swap(&self, client_ca: &str, crl: Option<&str>) {
        self.tls.store(Arc::new(state(&self.own, client_ca, crl)));
    }
}

fn state(own: &Identity, client_ca: &str, crl: Option<&str>) -> tls::State {
    let Identity { certificate, key } = own;
    let crl = crl.map(str::as_bytes);
    tls::State::load(certificate.as_bytes(), key.as_bytes(), client_ca.as_bytes(), crl).unwrap()
}

fn service(
    slow: &Arc<Slow>,
) -> impl Service<
    Request<Incoming>,
    Response = warp::reply::Response,
    Error = std::convert::Infallible,
    Future: Send + 'static,
> + Clone
+ use<>
+ Send
+ Sync
+ 'static {
    let who = warp::path("who")
        .and(warp::ext::get::<Caller>())
        .map(|caller: Caller| format!("{} {:?}", caller.host, caller.via));
    let slow = Arc::clone(slow);
    let slow = warp::path("slow").then(move || {
        let slow = Arc::clone(&slow);
        async move {
            slow.began.send_modify(|began| *began += 1);
            slow.gate.acquire().await.unwrap().forget();
            "slow"
        }
    });
    let panic = warp::path("panic").map(|| -> &'static str { panic!("a test's panic") });
    let close = warp::path("close").map(|| {
        let mut response = Response::new("secret");
        response.extensions_mut().insert(CloseWithoutAnswer);
        response
    });
    let large = warp::path("large").map(|| {
        static LARGE: OnceLock<String> = OnceLock::new();
        LARGE.get_or_init(|| "x".repeat(32 << 20)).as_str()
    });
    warp::service(who.or(slow).or(panic).or(close).or(large))
}

#[tokio::test]
async fn a_host_is_who_its_certificate_says() {
    let fixture = Fixture::https().await;
    let mut client = fixture.client("Web1", 1).await;
    assert!(client.call("/who").await.unwrap().ends_with("web1 Tls"));
    assert!(client.call("/who").await.unwrap().ends_with("web1 Tls"));
    assert_eq!(*fixture.seen.lock().unwrap(), ["web1", "web1"]);
    let connections = fixture.server.connections();
    assert_eq!(connections.get(&HostName::parse("web1").unwrap()), Some(&1));
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken() {
    let fixture = Fixture::https().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let identity = fixture.authority.client("web1", 1);
        assert!(fixture.answers(fixture.authority.client_config_of(Some(&identity), &[version])).await);
        assert!(!fixture.answers(fixture.authority.client_config_of(None, &[version])).await);
    }
}

#[tokio::test]
async fn only_good_client_certificates_are_let_in() {
    let fixture = Fixture::https().await;
    let ours = &fixture.authority;
    let good = ours.client("web1", 1);
    assert!(fixture.answers(ours.client_config(Some(&good))).await);
    let bad = [
        ("none", None),
        ("another CA's", Some(Authority::new("another CA").client("web1", 1))),
        ("same name, other key", Some(Authority::new("volhost test CA").client("web1", 1))),
        ("expired", Some(ours.issue("web1", |params| params.not_after = days(-1)))),
        ("not yet valid", Some(ours.issue("web1", |params| params.not_before = days(1)))),
        ("a server's", Some(ours.server())),
        ("a wildcard", Some(ours.issue("*.example.org", |_| {}))),
        ("anonymous", Some(ours.issue("anonymous", |_| {}))),
    ];
    for (what, identity) in bad {
        assert!(!fixture.answers(ours.client_config(identity.as_ref())).await, "{what} was let in");
    }
    assert!(fixture.seen.lock().unwrap().iter().all(|host| host == "web1"));
    assert_eq!(fixture.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_no_answer() {
    let fixture = Fixture::https().await;
    let mut client = Client::tcp(fixture.port).await;
    client.send("POST /who HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_handshake_that_stalls_is_given_up() {
    let fixture = Fixture::https().await;
    let mut silent = Client::tcp(fixture.port).await;
    let mut begun = Client::tcp(fixture.port).await;
    begun.send("\x16\x03\x01").await.unwrap();
    silent.rest().await;
    begun.rest().await;
    assert!(fixture.answers(fixture.authority.client_config(Some(&fixture.authority.client("a", 1)))).await);
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_open_connections_and_gets_no_new_one() {
    let fixture = Fixture::https().await;
    let config = fixture.config("web1", 7);
    let mut idle = Client::tls(fixture.port, &config).await.unwrap();
    idle.call("/who").await.unwrap();
    let mut unused = Client::tls(fixture.port, &config).await.unwrap();
    let mut other = fixture.client("web2", 8).await;
    other.call("/who").await.unwrap();
    fixture.swap(&fixture.authority.pem(), Some(&fixture.authority.crl(&[7])));
    fixture.server.recheck();
    assert!(idle.rest().await.is_empty());
    assert!(unused.rest().await.is_empty());
    assert!(other.call("/who").await.unwrap().ends_with("web2 Tls"));
    // The same configuration keeps sessions: the server must resume none.
    let again = Client::tls(fixture.port, &config).await;
    if let Ok(mut again) = again {
        assert!(again.call("/who").await.is_err());
    }
}

#[tokio::test]
async fn a_host_that_is_revoked_by_name_is_refused_at_its_next_request() {
    let fixture = Fixture::https().await;
    let mut client = fixture.client("web1", 0x0a).await;
    client.call("/who").await.unwrap();
    fixture.revoked.0.lock().unwrap().insert("a".into());
    assert!(client.call("/who").await.is_err());
    assert!(client.rest().await.is_empty());
    let mut client = fixture.client("web1", 0x0a).await;
    assert!(client.call("/who").await.is_err());
    assert_eq!(fixture.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn an_idle_connection_of_a_revoked_host_ends_by_itself() {
    let fixture = Fixture::https().await;
    let mut client = fixture.client("web1", 3).await;
    client.call("/who").await.unwrap();
    fixture.revoked.0.lock().unwrap().insert("3".into());
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_request_in_flight_is_finished_when_its_host_is_revoked() {
    let fixture = Fixture::https().await;
    let mut client = fixture.client("web1", 3).await;
    client.send("POST /slow HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    fixture.slow.began(1).await;
    fixture.revoked.0.lock().unwrap().insert("3".into());
    fixture.server.recheck();
    tokio::time::sleep(Duration::from_millis(100)).await;
    fixture.slow.release();
    assert!(client.answer().await.unwrap().ends_with("slow"));
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_certificate_that_ends_meanwhile_ends_its_connection() {
    let fixture = Fixture::https().await;
    let soon = time::OffsetDateTime::now_utc() + time::Duration::seconds(3);
    let identity = fixture.authority.issue("web1", |params| params.not_after = soon);
    let config = Arc::new(fixture.authority.client_config(Some(&identity)));
    let mut client = Client::tls(fixture.port, &config).await.unwrap();
    client.call("/who").await.unwrap();
    assert!(client.rest().await.is_empty());
    assert!(time::OffsetDateTime::now_utc() >= soon - time::Duration::seconds(1));
}

#[tokio::test]
async fn a_reload_keeps_good_connections_and_ends_those_of_a_ca_that_left() {
    let fixture = Fixture::https().await;
    let new = Authority::new("the next CA");
    let mut old_client = fixture.client("web1", 1).await;
    old_client.call("/who").await.unwrap();
    fixture.swap(&(fixture.authority.pem() + &new.pem()), None);
    fixture.server.recheck();
    let identity = new.client("web2", 1);
    let config = Arc::new(fixture.authority.client_config(Some(&identity)));
    let mut new_client = Client::tls(fixture.port, &config).await.unwrap();
    new_client.call("/who").await.unwrap();
    assert!(old_client.call("/who").await.unwrap().ends_with("web1 Tls"));
    fixture.swap(&new.pem(), None);
    assert!(old_client.call("/who").await.is_err(), "the swap itself decides, before any recheck");
    assert!(new_client.call("/who").await.unwrap().ends_with("web2 Tls"));
}

#[tokio::test]
async fn sessions_are_not_resumed() {
    let fixture = Fixture::https().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let identity = fixture.authority.client("web1", 1);
        let config = Arc::new(fixture.authority.client_config_of(Some(&identity), &[version]));
        for _ in 0..2 {
            let stream = TcpStream::connect(("127.0.0.1", fixture.port)).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
            let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            assert_ne!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
            let mut client = Client(Box::new(stream));
            client.call("/who").await.unwrap();
        }
    }
}

#[tokio::test]
async fn half_a_head_is_given_up_while_an_idle_connection_stays() {
    let fixture = Fixture::https().await;
    let (mut idle, mut unused) = (fixture.client("web1", 1).await, fixture.client("web1", 1).await);
    idle.call("/who").await.unwrap();
    let mut half = fixture.client("web1", 1).await;
    half.send("POST /who HTTP/1.1\r\nContent-").await.unwrap();
    assert!(half.rest().await.is_empty());
    let mut second = fixture.client("web1", 1).await;
    second.call("/who").await.unwrap();
    second.send("P").await.unwrap();
    assert!(second.rest().await.is_empty());
    idle.call("/who").await.unwrap();
    unused.call("/who").await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_ends_only_after_very_long() {
    let drain = Drain::new();
    let setup = Setup {
        node: HostName::parse("store1").unwrap(),
        limits: Arc::new(ArcSwap::from_pointee(limits())),
        tls: None,
        revocation: Arc::new(NobodyRevoked),
        on_handshake: Arc::new(|_| ()),
        on_request: Arc::new(|_, _| None),
        drain,
    };
    let server = Arc::new(Server::with_idle(setup, Duration::from_secs(1)));
    let bound = bind(&[Listen::Http(LOOPBACK)], Vec::new()).await.unwrap().pop().unwrap();
    let port = bound.address().rsplit_once(':').unwrap().1.parse().unwrap();
    tokio::spawn(server.run(bound, service(&Slow::new())));
    let mut client = Client::tcp(port).await;
    client.call("/who").await.unwrap();
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let limits = Limits { request: Duration::from_millis(300), ..limits() };
    let fixture = Fixture::of(Listen::Http(LOOPBACK), limits).await;
    let mut client = Client::tcp(fixture.port).await;
    let anonymous = HostName::anonymous();
    let until_open = async |open: bool| {
        while fixture.server.connections().contains_key(&anonymous) != open {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, until_open(true)).await.unwrap();
    client.send("POST /large HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    tokio::time::timeout(LONG, until_open(false)).await.unwrap();
    assert!(client.rest().await.len() < 32 << 20);
}

#[tokio::test]
async fn heads_are_bounded() {
    let fixture = Fixture::of(Listen::Http(LOOPBACK), limits()).await;
    let mut client = Client::tcp(fixture.port).await;
    let line = format!("X: {}\r\n", "x".repeat(1000));
    // The server may close before everything is sent.
    let _ = client.send(&format!("POST /who HTTP/1.1\r\n{}\r\n", line.repeat(90))).await;
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let mut client = Client::tcp(fixture.port).await;
    let _ = client.send(&format!("POST /who HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(101))).await;
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn at_a_hosts_limit_its_longest_idle_connection_makes_room() {
    let fixture = Fixture::https().await;
    fixture.limits.store(Arc::new(Limits { connections_per_host: 2, ..limits() }));
    let (mut first, mut second) = (fixture.client("web1", 1).await, fixture.client("web1", 1).await);
    first.call("/who").await.unwrap();
    second.call("/who").await.unwrap();
    first.call("/who").await.unwrap();
    let mut third = fixture.client("web1", 1).await;
    third.call("/who").await.unwrap();
    assert!(second.rest().await.is_empty(), "the second was idle for longer");
    first.call("/who").await.unwrap();
    let mut other = fixture.client("web2", 1).await;
    other.call("/who").await.unwrap();
    // Now both are busy, so no connection can make room.
    for client in [&mut first, &mut third] {
        client.send("POST /slow HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    }
    fixture.slow.began(2).await;
    let mut fourth = fixture.client("web1", 1).await;
    assert!(fourth.call("/who").await.is_err());
    fixture.slow.release();
    assert!(first.answer().await.unwrap().ends_with("slow"));
    assert!(third.answer().await.unwrap().ends_with("slow"));
}

#[tokio::test]
async fn the_total_counts_the_network_and_not_the_unix_sockets() {
    let fixture = Fixture::https().await;
    fixture.limits.store(Arc::new(Limits { connections: 2, ..limits() }));
    let dir = tempfile::tempdir().unwrap();
    let (unix, admin) = (dir.path().join("x.sock"), dir.path().join("admin.sock"));
    for bound in bind(&[Listen::Unix(unix.clone()), Listen::Admin(admin.clone())], Vec::new()).await.unwrap()
    {
        tokio::spawn(Arc::clone(&fixture.server).run(bound, service(&fixture.slow)));
    }
    let (mut first, mut second) = (fixture.client("web1", 1).await, fixture.client("web2", 1).await);
    first.call("/who").await.unwrap();
    second.call("/who").await.unwrap();
    for (path, expected) in [(unix, "store1 Unix"), (admin, "store1 Admin")] {
        let mut local = Client(Box::new(UnixStream::connect(path).await.unwrap()));
        assert!(local.call("/who").await.unwrap().ends_with(expected));
    }
    second.call("/who").await.unwrap();
    let mut third = fixture.client("web3", 1).await;
    third.call("/who").await.unwrap();
    assert!(first.rest().await.is_empty());
    second.call("/who").await.unwrap();
    let seen = fixture.seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|host| *host == "store1").count(), 1, "the operator is not an engine");
}

#[tokio::test]
async fn plain_tcp_is_anonymous() {
    let fixture = Fixture::of(Listen::Http(LOOPBACK), limits()).await;
    let mut client = Client::tcp(fixture.port).await;
    assert!(client.call("/who").await.unwrap().ends_with("anonymous Tcp"));
}

#[tokio::test]
async fn what_must_not_be_answered_is_not_answered_by_a_single_byte() {
    let fixture = Fixture::of(Listen::Http(LOOPBACK), limits()).await;
    let mut client = Client::tcp(fixture.port).await;
    client.call("/who").await.unwrap();
    client.send("POST /close HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert!(client.rest().await.is_empty());
    let mut client = Client::tcp(fixture.port).await;
    client.send("POST /close HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_panic_is_answered_and_the_connection_goes_on() {
    let fixture = Fixture::of(Listen::Http(LOOPBACK), limits()).await;
    let mut client = Client::tcp(fixture.port).await;
    let answer = client.call("/panic").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("content-type: application/vnd.docker.plugins.v1.2+json\r\n"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert!(body["Err"].is_string());
    client.call("/who").await.unwrap();
}

#[tokio::test]
async fn a_drain_finishes_what_is_under_way_and_takes_nothing_new() {
    let fixture = Fixture::https().await;
    let (mut idle, mut unused) = (fixture.client("web1", 1).await, fixture.client("web1", 1).await);
    idle.call("/who").await.unwrap();
    let mut busy = fixture.client("web1", 1).await;
    busy.send("POST /slow HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    fixture.slow.began(1).await;
    fixture.drain.start(LONG);
    assert!(idle.rest().await.is_empty());
    assert!(unused.rest().await.is_empty());
    fixture.running.await.unwrap();
    assert!(TcpStream::connect(("127.0.0.1", fixture.port)).await.is_err());
    fixture.slow.release();
    assert!(busy.answer().await.unwrap().ends_with("slow"));
    assert!(busy.rest().await.is_empty());
    assert_eq!(fixture.drain.drained().await, 0);
}

#[tokio::test]
async fn a_drain_lets_those_who_have_just_come_ask_once() {
    let fixture = Fixture::https().await;
    let mut used = fixture.client("web1", 1).await;
    used.call("/who").await.unwrap();
    let mut new = fixture.client("web1", 1).await;
    fixture.drain.start(LONG);
    assert!(used.rest().await.is_empty());
    new.call("/who").await.unwrap();
    assert!(new.rest().await.is_empty());
    assert_eq!(fixture.drain.drained().await, 0);
}

#[tokio::test]
async fn a_drain_drops_what_is_left_at_its_deadline() {
    let fixture = Fixture::of(Listen::Http(LOOPBACK), limits()).await;
    let mut busy = Client::tcp(fixture.port).await;
    busy.send("POST /slow HTTP/1.1\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    fixture.slow.began(1).await;
    fixture.drain.start(Duration::from_millis(50));
    assert!(busy.rest().await.is_empty());
    assert_eq!(fixture.drain.drained().await, 0);
}

#[tokio::test]
async fn a_unix_socket_goes_away_with_its_server() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("x.sock");
    let fixture = Fixture::of(Listen::Unix(path.clone()), limits()).await;
    let mut client = Client(Box::new(UnixStream::connect(&path).await.unwrap()));
    client.call("/who").await.unwrap();
    fixture.drain.start(LONG);
    assert_eq!(fixture.drain.drained().await, 0);
    assert!(!path.exists());
    assert_eq!(client.0.read(&mut [0; 1]).await.unwrap(), 0);
}
