//! The cluster's members. Calls go to one member at a time; if it does not answer, the next calls go to the next member.
//!
//! It knows no record. It never repeats a call by itself, because only the caller knows whether that is safe.

use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::sync::watch;
use tokio::time::timeout;

use super::call::{CallError, CallErrorKind};
use crate::catalog::etcd::error::OpenError;
use crate::catalog::{Cluster, Credentials};
use crate::files;

/// How long a member may take to answer before the next one is asked. An election takes about as long.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);

/// The interval of keep-alive messages on a connection, and how long their answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));

/// The members of a cluster.
pub(crate) struct Members {
    urls: Vec<String>,
    credentials: Credentials,
    /// The contents of the credentials' files when they could last be read.
    contents: Mutex<Contents>,
    /// Held while they are read, so that storage that hangs blocks only one thread.
    reload_turn: Arc<tokio::sync::Mutex<()>>,
    current: Arc<Mutex<Current>>,
}

/// The member that is called at present.
struct Current {
    options: ConnectOptions,
    /// Counts the clients: the present one, or the one that is connecting, has this number.
    generation: u64,
    /// The member's index.
    at: usize,
    /// Shared, because a clone would copy the client of each of etcd's services.
    client: Option<Arc<Client>>,
    /// Receives the client that is connecting.
    connecting: Option<watch::Receiver<Option<Connected>>>,
}

/// A client with its generation and the index of its member, or why it did not connect.
type Connected = Result<(u64, usize, Arc<Client>), CallError>;

/// The contents of the credentials' files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Contents {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    user: Option<(String, String)>,
}

impl Members {
    /// Reads the credentials; calls nobody.
    pub(crate) fn new(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        let contents = Contents::read(credentials)?;
        let scheme = if credentials.ca.is_some() { "https" } else { "http" };
        let urls = cluster.members.iter().map(|member| format!("{scheme}://{member}")).collect();
        let current =
            Current { options: contents.options(), generation: 0, at: 0, client: None, connecting: None };
        Ok(Self {
            urls,
            credentials: credentials.clone(),
            contents: Mutex::new(contents),
            reload_turn: Arc::default(),
            current: Arc::new(Mutex::new(current)),
        })
    }

    /// Returns the number of members.
    pub(crate) fn len(&self) -> usize {
        self.urls.len()
    }

    /// Calls the present member. If it does not answer within `limit`, the next call goes to another member. If it refuses
    /// the credentials, they are read again.
    pub(crate) async fn ask<T, F>(
        &self,
        limit: Duration,
        question: impl FnOnce(Arc<Client>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let asked = Instant::now();
        let connected = timeout(limit, self.client()).await;
        let connected =
            connected.unwrap_or_else(|_| Err(CallError::timed_out(self.url(self.current().at), limit)));
        let error = match connected {
            Ok((generation, at, client)) => {
                let error = match timeout(limit, question(client)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => CallError::of(self.url(at), &error),
                    Err(_) => CallError::timed_out(self.url(at), limit),
                };
                match error.kind {
                    CallErrorKind::Unsent
                    | CallErrorKind::Unanswered
                    | CallErrorKind::Certificates
                    | CallErrorKind::LockedOut => {
                        self.give_up(generation);
                    }
                    CallErrorKind::Refused
                    | CallErrorKind::Full
                    | CallErrorKind::LeaseGone
                    | CallErrorKind::Compacted
                    | CallErrorKind::Ahead => {}
                }
                error
            }
            Err(error) => error,
        };
        if error.kind == CallErrorKind::LockedOut {
            // The task that follows the files reports credentials that cannot be read, or not in time.
            let _ = timeout(limit, self.reload_credentials()).await;
        }
        Err(CallError { asked, ..error })
    }

    /// Returns the present member's client, with its generation for [`give_up`](Self::give_up).
    async fn client(&self) -> Connected {
        let mut connecting = {
            let mut current = self.current();
            match (&current.client, &current.connecting) {
                (Some(client), _) => return Ok((current.generation, current.at, Arc::clone(client))),
                (None, Some(connecting)) => connecting.clone(),
                (None, None) => self.connect(&mut current),
            }
        };
        // The task is dropped without an answer only when the runtime ends.
        let connected =
            connecting.wait_for(Option::is_some).await.ok().and_then(|connected| connected.clone());
        connected.unwrap_or_else(|| Err(CallError::timed_out("", ANSWER)))
    }

    /// Connects to the present member in a task of its own, once for all calls that wait for it. The task goes on if they
    /// stop waiting: with a user, connecting asks for a token, which a frozen member leaves unanswered.
    fn connect(&self, current: &mut Current) -> watch::Receiver<Option<Connected>> {
        current.generation += 1;
        let (generation, at, options) = (current.generation, current.at, current.options.clone());
        let (url, next) = (self.url(at).to_owned(), (at + 1) % self.urls.len());
        let (sender, connecting) = watch::channel(None);
        current.connecting = Some(connecting.clone());
        let shared = Arc::clone(&self.current);
        tokio::spawn(async move {
            let connected = match timeout(ANSWER, Client::connect([&url], Some(options))).await {
                Ok(Ok(client)) => Ok((generation, at, Arc::new(client))),
                Ok(Err(error)) => Err(CallError::of(&url, &error)),
                Err(_) => Err(CallError::timed_out(&url, ANSWER)),
            };
            let mut current = lock(&shared);
            // If the generation is another one, the credentials have changed meanwhile.
            if current.generation == generation {
                current.connecting = None;
                match &connected {
                    Ok((_, _, client)) => current.client = Some(Arc::clone(client)),
                    Err(_) => current.at = next,
                }
            }
            drop(current);
            sender.send_replace(Some(connected));
        });
        connecting
    }

    /// Calls the next member from now on, because the present one does not do what it was asked for.
    pub(crate) fn suspect(&self) {
        let generation = self.current().generation;
        self.give_up(generation);
    }

    /// Calls the next member from now on, unless another call has already given up this client.
    fn give_up(&self, generation: u64) {
        let mut current = self.current();
        if current.generation == generation && current.client.take().is_some() {
            current.at = (current.at + 1) % self.urls.len();
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        lock(&self.current)
    }

    fn url(&self, at: usize) -> &str {
        self.urls.get(at).map_or("", String::as_str)
    }

    /// Reads the credentials' files again, and uses them from now on if they have changed, which returns true. If they
    /// cannot be read, this fails, and the previous credentials stay in use.
    pub(crate) async fn reload_credentials(&self) -> Result<bool, OpenError> {
        let reload_turn = Arc::clone(&self.reload_turn).lock_owned().await;
        let credentials = self.credentials.clone();
        // This runs on a thread that may wait for the storage.
        let read = tokio::task::spawn_blocking(move || {
            let read = Contents::read(&credentials);
            drop(reload_turn);
            read
        });
        let now = read.await.map_err(|error| OpenError::System(std::io::Error::other(error)))??;
        {
            // It is whole after every statement under this lock.
            let mut contents = self.contents.lock().unwrap_or_else(PoisonError::into_inner);
            if *contents == now {
                return Ok(false);
            }
            *contents = now.clone();
        }
        let mut current = self.current();
        current.options = now.options();
        // A client that is connecting with the previous credentials is not used.
        current.generation += 1;
        (current.client, current.connecting) = (None, None);
        Ok(true)
    }
}

fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
    // It is whole after every statement under this lock.
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Contents {
    fn read(credentials: &Credentials) -> Result<Self, OpenError> {
        let Credentials { ca, cert, key, user, password_file } = credentials;
        let read = |path: &Path, field| {
            files::read_at_most(path, files::SMALL).map_err(|source| OpenError::Credentials {
                path: path.into(),
                field,
                source,
            })
        };
        let ca = ca.as_deref().map(|path| read(path, "ca")).transpose()?;
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((read(cert, "cert")?, read(key, "key")?)),
            _ => None,
        };
        let user = match (user, password_file) {
            (Some(user), Some(path)) => {
                let text = String::from_utf8(read(path, "password_file")?)
                    .map_err(|error| OpenError::Unusable(Box::new(error)))?;
                Some((user.clone(), text.lines().next().unwrap_or_default().to_owned()))
            }
            _ => None,
        };
        Ok(Self { ca, identity, user })
    }

    fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(ANSWER)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(ca) = &self.ca {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((cert, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(cert, key));
            }
            options = options.with_tls(tls);
        }
        if let Some((user, password)) = &self.user {
            options = options.with_user(user, password);
        }
        options
    }
}
