//! The floors: the least that anything which does the same must do, built and run in the same run.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rusqlite::{Connection, OpenFlags};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use volhost::pki::Pki;

use crate::process::Process;

/// The argument that makes this program the bare server.
pub(crate) const SERVER: &str = "--bare-server";

/// Starts the bare server, which answers every request with `body`, with volhost's own certificates.
pub(crate) fn start(pki: &Pki, body: &Bytes, directory: &Path) -> Process {
    let file = directory.join("answer.json");
    std::fs::write(&file, body).expect("the directory can be written");
    let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
    command.arg(SERVER).arg(pki.dir()).arg(file);
    Process::start(&mut command, &directory.join("floor.log"))
}

/// Serves, as hyper and rustls do it in the fewest lines: mutual TLS without sessions, HTTP/1.1, each request's body
/// read to its end, the same bytes answered.
pub(crate) fn serve(pki: &Path, answer: &Path) {
    let (pki, answer) = (Pki::new(pki), Bytes::from(std::fs::read(answer).expect("the answer was written")));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for authority in certificates(&pki.ca().cert) {
        roots.add(authority).expect("volhost made it");
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .expect("there is an authority");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&pki.server().cert), key(&pki.server().key))
        .expect("the pair fits");
    // Sessions are not resumed here either: each connection is the same handshake on both sides.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Runtime::new().expect("threads can be made");
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        let mut out = std::io::stdout();
        writeln!(out, "listening on https://{address}\nready").expect("the benchmark reads it");
        out.flush().expect("the benchmark reads it");
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let answer = answer.clone();
                    async move {
                        request.into_body().collect().await?;
                        let response = Response::builder()
                            .header("Content-Type", "application/vnd.docker.plugins.v1.2+json")
                            .body(Full::new(answer))
                            .expect("it is valid");
                        Ok::<_, hyper::Error>(response)
                    }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
}

/// What a durable Create cannot do without: a directory, its parent's fsync, and one durable insert.
pub(crate) struct Durable {
    directory: PathBuf,
    parent: File,
    catalog: Mutex<Connection>,
    made: AtomicU32,
}

impl Durable {
    /// Makes an empty one in a directory.
    pub(crate) fn new(directory: &Path) -> Self {
        let volumes = directory.join("volumes");
        std::fs::create_dir_all(&volumes).expect("the directory can be made");
        let catalog = Connection::open(directory.join("floor.db")).expect("SQLite opens it");
        catalog
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE volumes (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID",
            )
            .expect("SQLite makes it");
        let parent = File::open(&volumes).expect("it was made");
        Self { directory: volumes, parent, catalog: Mutex::new(catalog), made: AtomicU32::new(0) }
    }

    /// Makes the next one.
    pub(crate) fn create(&self) {
        // As long as volhost's own record of a volume.
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let (name, record) = (format!("floor-{number}"), "r".repeat(180));
        std::fs::create_dir(self.directory.join(&name)).expect("the directory can be made");
        self.parent.sync_all().expect("the disk takes it");
        let catalog = self.catalog.lock().expect("no client panics");
        catalog
            .prepare_cached("INSERT INTO volumes (name, record) VALUES (?, ?)")
            .and_then(|mut insert| insert.execute([&name, &record]))
            .expect("SQLite stores it");
    }

    /// Has threads make more for a time, all with the one connection; returns how many a second.
    pub(crate) fn creates(&self, threads: usize, time: Duration) -> f64 {
        let (before, began) = (self.made.load(Ordering::Relaxed), Instant::now());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while began.elapsed() < time {
                        self.create();
                    }
                });
            }
        });
        f64::from(self.made.load(Ordering::Relaxed) - before) / began.elapsed().as_secs_f64()
    }

    /// What a Mount and its Unmount cannot do without: two durable transactions.
    pub(crate) fn mount_and_unmount(&self) {
        let catalog = self.catalog.lock().expect("no client panics");
        for statement in [
            "INSERT INTO volumes (name, record) VALUES (?1, ?2)",
            "DELETE FROM volumes WHERE name = ?1 AND record = ?2",
        ] {
            // As long as volhost's own record of a mount.
            catalog
                .prepare_cached(statement)
                .and_then(|mut statement| statement.execute(["mount", &"r".repeat(56)]))
                .expect("SQLite stores it");
        }
    }
}

/// Reads the volumes and mounts in a catalog's file, each column as bytes; returns how many rows there are.
pub(crate) fn read_catalog(file: &Path) -> u64 {
    let catalog =
        Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("volhost made it");
    let mut count = 0;
    for select in ["SELECT * FROM volumes", "SELECT * FROM mounts"] {
        let mut select = catalog.prepare(select).expect("volhost made the table");
        let columns = select.column_count();
        let mut rows = select.query([]).expect("SQLite reads it");
        while let Some(row) = rows.next().expect("SQLite reads it") {
            for column in 0..columns {
                let value = row.get_ref(column).expect("there are so many");
                std::hint::black_box(value.as_bytes().expect("it is a text"));
            }
            count += 1;
        }
    }
    count
}

/// The certificates in a PEM file.
pub(crate) fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The key in a PEM file.
pub(crate) fn key(path: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
