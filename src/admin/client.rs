//! The commands' side of the admin socket: one request, one answer, one connection for each.
//!
//! It never repeats a request by itself: when a connection breaks, nobody knows if the request was carried out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::wire::{Failure, Verb};

/// How long a connection may take: the service accepts one before it does anything else.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the client waits for an answer. The service's own limit for a request is shorter unless it was raised.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why the service gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is no socket at the path.
    #[error(
        "there is no admin socket at {}: is the service running? See `systemctl status volhost`, or start it with `volhost serve`; `--socket` names another path", .socket.display()
    )]
    Missing {
        /// The path that was tried.
        socket: PathBuf,
    },
    /// The socket is another user's.
    #[error(
        "permission denied on the admin socket {}: run this as root, or as the user that runs the service", .socket.display()
    )]
    Denied {
        /// The path that was tried.
        socket: PathBuf,
    },
    /// The socket exists, but nobody listens on it.
    #[error(
        "nobody listens on the admin socket {}: it was left by a service that has ended; see `systemctl status volhost`, or start it with `volhost serve`", .socket.display()
    )]
    Refused {
        /// The path that was tried.
        socket: PathBuf,
    },
    /// The socket cannot be reached for another reason.
    #[error("the admin socket {} cannot be reached", .socket.display())]
    Unreachable {
        /// The path that was tried.
        socket: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// This machine could not make the request.
    #[error("the request cannot be made")]
    Setup(#[source] io::Error),
    /// The request cannot be written as HTTP and JSON.
    #[error("the request {verb} cannot be written")]
    Request {
        /// The verb.
        verb: String,
        /// Why it cannot be written.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer came in time.
    #[error(
        "the service at {} did not answer {verb} within {} s: it may still finish what was asked; its log tells more", .socket.display(), .after.as_secs()
    )]
    Late {
        /// The socket.
        socket: PathBuf,
        /// The verb.
        verb: String,
        /// The time waited.
        after: Duration,
    },
    /// The connection broke.
    #[error(
        "the connection to the service at {} broke before it answered {verb}: whether it was done is not known; its log tells more", .socket.display()
    )]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// The verb.
        verb: String,
        /// The connection's error.
        #[source]
        source: hyper::Error,
    },
    /// The service does not know the verb.
    #[error(
        "what listens on {} does not know {verb}: is that the admin socket, and of a service of this command's version ({})?", .socket.display(), env!("CARGO_PKG_VERSION")
    )]
    Unknown {
        /// The socket.
        socket: PathBuf,
        /// The verb.
        verb: String,
    },
    /// The answer is neither the reply nor a failure.
    #[error(
        "the answer to {verb} from {} is not understood (status {status}): is that volhost, and of this version ({})?", .socket.display(), env!("CARGO_PKG_VERSION")
    )]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// The verb.
        verb: String,
        /// The answer's status.
        status: StatusCode,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The service answered that it did not do it, with this message.
    #[error("{0}")]
    Failed(String),
}

/// A client of the service that listens on one admin socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    answer_timeout: Duration,
}

impl Client {
    /// Returns a client of the service at `socket`. Nothing is connected yet.
    #[must_use]
    pub(crate) fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), answer_timeout: ANSWER_TIMEOUT }
    }

    /// Returns the same client with another limit for answers.
    #[must_use]
    pub(crate) fn with_answer_timeout(self, answer_timeout: Duration) -> Self {
        Self { answer_timeout, ..self }
    }

    /// Sends a request and waits for the reply, in its own runtime on this thread. Must not be called from async code.
    pub(crate) fn ask<V: Verb>(&self, request: &V::Request) -> Result<V::Reply, ClientError> {
        let verb = V::PATH;
        let unwritable = |source| ClientError::Request { verb: verb.into(), source };
        let body = serde_json::to_vec(request).map_err(|error| unwritable(error.into()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(verb)
            .header(header::HOST, "volhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unwritable(error.into()))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ClientError::Setup)?;
        let (status, body) = runtime.block_on(self.exchange(verb, request))?;
        self.understand(verb, status, &body)
    }

    async fn exchange(
        &self,
        verb: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.socket)).await {
            Ok(connected) => connected.map_err(|source| self.unreachable(source))?,
            Err(_) => return Err(self.late(verb, CONNECT_TIMEOUT)),
        };
        let answer = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // A separate task drives the connection; its error also ends the request below.
            let driver = tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            driver.abort();
            Ok((status, body))
        };
        match tokio::time::timeout(self.answer_timeout, answer).await {
            Ok(answer) => answer.map_err(|source| ClientError::Broken {
                socket: self.socket.clone(),
                verb: verb.into(),
                source,
            }),
            Err(_) => Err(self.late(verb, self.answer_timeout)),
        }
    }

    fn understand<A: DeserializeOwned>(
        &self,
        verb: &str,
        status: StatusCode,
        body: &[u8],
    ) -> Result<A, ClientError> {
        let not_understood =
            |source| ClientError::Answer { socket: self.socket.clone(), verb: verb.into(), status, source };
        if status == StatusCode::OK {
            return serde_json::from_slice(body).map_err(not_understood);
        }
        match serde_json::from_slice(body) {
            Ok(Failure { error }) => Err(ClientError::Failed(error)),
            Err(_) if status == StatusCode::NOT_FOUND => {
                Err(ClientError::Unknown { socket: self.socket.clone(), verb: verb.into() })
            }
            Err(source) => Err(not_understood(source)),
        }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::Missing { socket },
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            io::ErrorKind::ConnectionRefused => ClientError::Refused { socket },
            _ => ClientError::Unreachable { socket, source },
        }
    }

    fn late(&self, verb: &str, after: Duration) -> ClientError {
        ClientError::Late { socket: self.socket.clone(), verb: verb.into(), after }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A service that gives scripted answers, for the tests of the client and of the commands.

    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    /// Answers a verb: from the request's body to status and body.
    type Script = dyn Fn(&str, serde_json::Value) -> (u16, String) + Send + Sync;

    /// A service on a socket in its own directory, until it is dropped.
    pub(crate) struct Service {
        directory: tempfile::TempDir,
        asked: Arc<Mutex<Vec<(String, serde_json::Value)>>>,
    }

    impl Service {
        /// Starts the service. Its thread ends with the test process.
        pub(crate) fn answering(
            script: impl Fn(&str, serde_json::Value) -> (u16, String) + Send + Sync + 'static,
        ) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let listener = UnixListener::bind(directory.path().join("admin.sock")).unwrap();
            let asked = Arc::new(Mutex::new(Vec::new()));
            let log = Arc::clone(&asked);
            let script: Box<Script> = Box::new(script);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let Some((verb, body)) = request(&mut stream) else { continue };
                    log.lock().unwrap().push((verb.clone(), body.clone()));
                    let (status, answer) = script(&verb, body);
                    // A client that has gone away is its own test's business.
                    let _ = write!(
                        stream,
                        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{answer}",
                        answer.len()
                    );
                }
            });
            Self { directory, asked }
        }

        /// Returns the path of its socket.
        pub(crate) fn socket(&self) -> PathBuf {
            self.directory.path().join("admin.sock")
        }

        /// Returns every request so far.
        pub(crate) fn asked(&self) -> Vec<(String, serde_json::Value)> {
            self.asked.lock().unwrap().clone()
        }
    }

    fn request(stream: &mut impl Read) -> Option<(String, serde_json::Value)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let verb = head.strip_prefix("post ").unwrap().split(' ').next().unwrap().to_owned();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        Some((verb, serde_json::from_slice(&body).unwrap()))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Service;
    use super::*;
    use crate::admin::wire::{BackendName, Nothing, verb};
    use crate::error::chain;

    #[test]
    fn a_request_is_posted_and_its_answer_read() {
        let service = Service::answering(|_, body| {
            (200, serde_json::json!({"done": format!("adopted {}", body["name"])}).to_string())
        });
        let client = Client::new(service.socket());
        let done = client.ask::<verb::BackendAdopt>(&BackendName { name: "fast".into() }).unwrap();
        assert_eq!(done.done, "adopted \"fast\"");
        assert_eq!(service.asked(), [("/backend/adopt".to_owned(), serde_json::json!({"name": "fast"}))]);
    }

    #[test]
    fn a_failure_is_told_in_the_services_words() {
        let service = Service::answering(|_, _| (400, r#"{"error":"no such backend \"fsat\""}"#.into()));
        let error = Client::new(service.socket()).ask::<verb::BackendLs>(&Nothing {}).unwrap_err();
        assert_eq!(chain(&error), "no such backend \"fsat\"");
    }

    #[test]
    fn answers_of_something_else_are_told_from_failures() {
        let service = Service::answering(|verb, _| match verb {
            "/status" => (404, "not here".into()),
            _ => (200, r#"{"ok":true}"#.into()),
        });
        let client = Client::new(service.socket());
        let error = client.ask::<verb::Status>(&Nothing {}).unwrap_err();
        assert!(error.to_string().contains("does not know /status"), "{error}");
        let error = client.ask::<verb::BackendAdopt>(&BackendName { name: "fast".into() }).unwrap_err();
        assert!(chain(&error).contains("missing field `done`"), "{}", chain(&error));
    }

    #[test]
    fn an_unreachable_socket_is_told_with_its_path_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let ask = || Client::new(&socket).ask::<verb::Status>(&Nothing {}).unwrap_err().to_string();
        let missing = ask();
        assert!(missing.contains(&format!("no admin socket at {}", socket.display())), "{missing}");
        assert!(missing.contains("systemctl status volhost"), "{missing}");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let stale = ask();
        assert!(stale.contains("nobody listens on") && stale.contains("has ended"), "{stale}");
    }

    #[test]
    fn a_silent_service_is_not_waited_for_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let client = Client::new(&socket).with_answer_timeout(Duration::from_millis(50));
        let error = client.ask::<verb::Status>(&Nothing {}).unwrap_err();
        assert!(matches!(error, ClientError::Late { .. }), "{error}");
    }

    #[test]
    fn a_broken_connection_leaves_open_whether_it_was_done() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let closer = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let error = Client::new(&socket).ask::<verb::Status>(&Nothing {}).unwrap_err();
        closer.join().unwrap();
        assert!(error.to_string().contains("whether it was done is not known"), "{error}");
    }
}
