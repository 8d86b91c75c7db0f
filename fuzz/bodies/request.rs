//! Requests of engines, answered by the protocol's own routes and a service with a catalog and backends on disk.
//!
//! An input is requests one after the other: each begins a line with its path, and its body follows behind a space, up
//! to the line that begins the next. `@` before the path makes another host call.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower_service::Service as _;
use volhost::backend::Map;
use volhost::catalog::{Catalog, sqlite, text};
use volhost::host::access::{Access, Hosts};
use volhost::host::{Caller, Via};
use volhost::model::backend::BackendName;
use volhost::model::backend_settings::BackendSettings;
use volhost::model::host::HostName;
use volhost::model::limits::Limits;
use volhost::model::options::Mode;
use volhost::model::volume::VolumeName;
use volhost::protocol::envelope::CONTENT_TYPE;
use volhost::protocol::{self, Protocols};
use volhost::transport::CloseWithoutAnswer;
use volhost::volume::{InForce, Release, Service};

/// More requests than this in one input show nothing new.
const REQUESTS: usize = 12;

/// A body that is larger is refused; small, so that inputs get there.
const BODY_BYTES: u64 = 2048;

/// How many volumes may lie in the trash before everything is made anew.
const TRASH: usize = 200;

/// A directory that is in the first backend and belongs to no volume: it can be adopted.
const FOUND: &str = "found";

/// Sends the requests. Every answer is one that engines understand, nothing healthy is called broken, and whatever was
/// asked, each volume is one directory of its own right below its backend, and nothing lies elsewhere.
pub fn run(data: &[u8]) {
    thread_local! {
        /// Making one takes longer than most inputs. Between two inputs it has no volume.
        static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
    }
    WORLD.with_borrow_mut(|world| {
        let world = world.get_or_insert_with(World::new);
        let requests = requests(data);
        world.runtime.block_on(async {
            for Request { other, path, body } in requests.into_iter().take(REQUESTS) {
                world.call(if other { &world.callers[1] } else { &world.callers[0] }, path, body).await;
            }
            world.check().await;
            world.clear().await;
        });
        (world.catalog.view().trash.len() > TRASH).then(|| *world = World::new());
    });
}

struct Request<'a> {
    other: bool,
    path: &'a str,
    body: &'a [u8],
}

fn requests(data: &[u8]) -> Vec<Request<'_>> {
    let is_begin = |at: usize| {
        let rest = &data[at..];
        (at == 0 || data[at - 1] == b'\n') && (rest.starts_with(b"/") || rest.starts_with(b"@/"))
    };
    let begins: Vec<_> = (0..data.len()).filter(|at| is_begin(*at)).collect();
    let ends = begins.iter().copied().skip(1).chain([data.len()]);
    let read = |(begin, end): (usize, usize)| {
        let text = &data[begin..end];
        let (other, text) = text.strip_prefix(b"@").map_or((false, text), |text| (true, text));
        let (path, body) = match text.iter().position(u8::is_ascii_whitespace) {
            Some(at) => (&text[..at], &text[at + 1..]),
            None => (text, &b""[..]),
        };
        Some(Request { other, path: std::str::from_utf8(path).ok()?, body })
    };
    begins.iter().copied().zip(ends).filter_map(read).collect()
}

/// A service with two backends, of which the second is closed to the second host.
struct World {
    runtime: Runtime,
    catalog: Arc<dyn Catalog>,
    service: Arc<Service>,
    protocols: Arc<Protocols>,
    callers: [Caller; 2],
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = TempDir::new().unwrap();
        let catalog: Arc<dyn Catalog> =
            Arc::new(sqlite::open(&dir.path().join("catalog/catalog.db")).unwrap());
        let backends = ["default", "second"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            let settings = BackendSettings {
                mountpoints: path.clone().into(),
                path,
                draining: false,
                require_mount: false,
                durable_directories: false,
                trash: Duration::from_secs(3600),
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                mode: Mode::parse("0755").unwrap(),
            };
            (BackendName::parse(name).unwrap(), settings)
        });
        let callers = ["web1", "web2"].map(|name| Caller {
            host: HostName::parse(name).unwrap(),
            via: Via::Tls,
            address: None,
        });
        let closed = BTreeMap::from([(backends[1].0.clone(), Hosts::new(["web1"]))]);
        let map = Map::build(&Map::default(), BTreeMap::from(backends));
        let in_force = InForce { map, access: Access::new(None, closed), limits: Limits::default() };
        let service = Arc::new(Service::new(Arc::clone(&catalog), in_force));
        runtime.block_on(service.bring_up(Duration::from_secs(20)));
        // Only now: in a directory that is not empty, no backend begins by itself.
        fs::create_dir(dir.path().join("default").join(FOUND)).unwrap();
        let settings =
            protocol::Settings { body_bytes: BODY_BYTES, request: Duration::from_secs(20), global: true };
        let protocols = Protocols::new(Arc::clone(&service), move || settings, Arc::new(|_, _, _| ()));
        Self { runtime, catalog, service, protocols, callers, dir }
    }

    async fn call(&self, caller: &Caller, path: &str, body: &[u8]) -> Option<(StatusCode, Value)> {
        let body = Bytes::copy_from_slice(body);
        let request = http::Request::post(path).extension(caller.clone()).body(Full::new(body.clone()));
        // What is no path at all never gets through HTTP.
        let request = request.ok()?;
        let path = request.uri().path().to_owned();
        let mut routes = warp::service(Arc::clone(&self.protocols).filter());
        let response = routes.call(request).await.unwrap_or_else(|never| match never {});
        if response.extensions().get::<CloseWithoutAnswer>().is_some() {
            // Nothing is unknown here: only the repetition that lost its body is left without an answer.
            assert_eq!((&*path, body.trim_ascii()), ("/VolumeDriver.Get", &b""[..]));
            return None;
        }
        let status = response.status();
        assert_eq!(response.headers()["Content-Type"], CONTENT_TYPE);
        let answer = response.into_body().collect().await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&answer).expect("every answer is JSON");
        let fields = answer.as_object().expect("every answer is an object");
        match status.as_u16() {
            200 => assert!(!fields.contains_key("Err"), "{path}: {answer}"),
            400 | 403 | 404 | 413 => {
                let told = fields.get("Err").and_then(Value::as_str).unwrap_or_default();
                assert!(fields.len() == 1 && !told.is_empty(), "{path}: {answer}");
            }
            // Only root may give a directory to somebody else.
            500 if !rustix::process::geteuid().is_root() => {}
            _ => panic!("{path} was answered {status} {answer}"),
        }
        Some((status, answer))
    }

    /// What is there is what was recorded, and can be recorded.
    async fn check(&self) {
        let view = self.catalog.view();
        let text = text::compose(&view, None).unwrap();
        assert_eq!(
            text::parse(text.as_bytes()).unwrap().view,
            *view,
            "the catalog is not read back as it is"
        );
        let mut expected = BTreeMap::from([
            ("default", BTreeSet::from([".volhost".to_owned(), FOUND.to_owned()])),
            ("second", BTreeSet::from([".volhost".to_owned()])),
        ]);
        for volume in view.volumes.values() {
            assert!(volume.visible, "{} is half-made", volume.name);
            assert_eq!(VolumeName::parse(volume.name.as_str()).as_ref(), Ok(&volume.name));
            let there = expected.get_mut(volume.backend.as_str()).expect("a backend of the map");
            there.insert(volume.name.to_string());
        }
        for (backend, expected) in expected {
            assert_eq!(entries(&self.dir.path().join(backend)), expected, "in backend {backend}");
        }
        let around = ["catalog", "default", "second"].map(str::to_owned);
        assert_eq!(entries(self.dir.path()), BTreeSet::from(around));

        for caller in &self.callers {
            let (_, list) = self.call(caller, "/VolumeDriver.List", b"{}").await.unwrap();
            for listed in list["Volumes"].as_array().unwrap() {
                let named = serde_json::json!({ "Name": listed["Name"] }).to_string();
                let (status, got) = self.call(caller, "/VolumeDriver.Get", named.as_bytes()).await.unwrap();
                assert_eq!(status, StatusCode::OK, "{got}");
                assert_eq!(got["Volume"]["Mountpoint"], listed["Mountpoint"]);
                let mountpoint = Path::new(listed["Mountpoint"].as_str().unwrap());
                assert!(mountpoint.starts_with(self.dir.path()) && mountpoint.is_dir(), "{listed}");
                assert!(mountpoint.ends_with(listed["Name"].as_str().unwrap()), "{listed}");
            }
        }
    }

    /// Takes all volumes away, as an operator would.
    async fn clear(&self) {
        let operator = Caller { host: self.callers[0].host.clone(), via: Via::Admin, address: None };
        for volume in self.catalog.view().volumes.values() {
            for caller in &self.callers {
                let release = Release {
                    volume: Some(volume.name.clone()),
                    host: caller.host.clone(),
                    id: None,
                    alive_too: true,
                };
                self.service.release(&release).await.unwrap();
            }
            self.service.remove(&operator, volume.name.clone()).await.unwrap();
        }
        assert!(self.catalog.view().volumes.is_empty());
    }
}

fn entries(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
