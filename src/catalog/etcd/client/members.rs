//! The cluster's members, one of which is asked at a time: the next one, as soon as that does not answer.
//!
//! Knows no record. It never asks twice by itself: whether a question may be repeated is for those to say who ask.

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

/// How often a connection is looked after, and how long it may be silent then.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));

/// The members of a cluster.
pub(crate) struct Members {
    urls: Vec<String>,
    credentials: Credentials,
    /// What the files of the credentials held when they were last good.
    read: Mutex<Contents>,
    /// Held by who reads them: where they lie on storage that hangs, one thread is enough for that.
    reading: Arc<tokio::sync::Mutex<()>>,
    current: Arc<Mutex<Current>>,
}

struct Current {
    options: ConnectOptions,
    /// The number of the present client, or of the one that is being made.
    number: u64,
    /// Which member is asked.
    at: usize,
    /// Shared: a copy of it would be one of the client of each of etcd's services.
    client: Option<Arc<Client>>,
    /// What becomes of the client that is being made.
    coming: Option<watch::Receiver<Option<Made>>>,
}

/// A client, its number, and which member it asks; or why there is none.
type Made = Result<(u64, usize, Arc<Client>), CallError>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Contents {
    ca: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    user: Option<(String, String)>,
}

impl Members {
    /// Reads the credentials; asks nobody.
    pub(crate) fn new(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        let read = Contents::read(credentials)?;
        let scheme = if credentials.ca.is_some() { "https" } else { "http" };
        let urls = cluster.members.iter().map(|member| format!("{scheme}://{member}")).collect();
        let current = Current { options: read.options(), number: 0, at: 0, client: None, coming: None };
        Ok(Self {
            urls,
            credentials: credentials.clone(),
            read: Mutex::new(read),
            reading: Arc::default(),
            current: Arc::new(Mutex::new(current)),
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.urls.len()
    }

    /// Asks the present member; where it does not answer within `limit`, the next question goes to another one, and
    /// where it does not let this instance in, the credentials are read again.
    pub(crate) async fn ask<T, F>(
        &self,
        limit: Duration,
        question: impl FnOnce(Arc<Client>) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let asked = Instant::now();
        let made = timeout(limit, self.client()).await;
        let made = made.unwrap_or_else(|_| Err(CallError::timed_out(self.url(self.current().at), limit)));
        let error = match made {
            Ok((number, at, client)) => {
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
                        self.give_up(number);
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
            // What cannot be read, or not in time, is told by who follows the files.
            let _ = timeout(limit, self.follow()).await;
        }
        Err(CallError { asked, ..error })
    }

    /// The present member's client, and its number for [`give_up`](Self::give_up).
    async fn client(&self) -> Made {
        let mut coming = {
            let mut current = self.current();
            match (&current.client, &current.coming) {
                (Some(client), _) => return Ok((current.number, current.at, Arc::clone(client))),
                (None, Some(coming)) => coming.clone(),
                (None, None) => self.make(&mut current),
            }
        };
        // It ends without a word only with the runtime.
        let made = coming.wait_for(Option::is_some).await.ok().and_then(|made| made.clone());
        made.unwrap_or_else(|| Err(CallError::timed_out("", ANSWER)))
    }

    /// Begins to make the present member's client, once for all who wait for it, and whether or not they do so until its
    /// end: with a user, this asks for a token, which a member that is frozen leaves unanswered.
    fn make(&self, current: &mut Current) -> watch::Receiver<Option<Made>> {
        current.number += 1;
        let (number, at, options) = (current.number, current.at, current.options.clone());
        let (url, next) = (self.url(at).to_owned(), (at + 1) % self.urls.len());
        let (tell, coming) = watch::channel(None);
        current.coming = Some(coming.clone());
        let shared = Arc::clone(&self.current);
        tokio::spawn(async move {
            let made = match timeout(ANSWER, Client::connect([&url], Some(options))).await {
                Ok(Ok(client)) => Ok((number, at, Arc::new(client))),
                Ok(Err(error)) => Err(CallError::of(&url, &error)),
                Err(_) => Err(CallError::timed_out(&url, ANSWER)),
            };
            let mut current = lock(&shared);
            // Else the credentials are other ones by now.
            if current.number == number {
                current.coming = None;
                match &made {
                    Ok((_, _, client)) => current.client = Some(Arc::clone(client)),
                    Err(_) => current.at = next,
                }
            }
            drop(current);
            tell.send_replace(Some(made));
        });
        coming
    }

    /// Asks the next member from now on, because the present one does not do what it was asked for.
    pub(crate) fn suspect(&self) {
        let number = self.current().number;
        self.give_up(number);
    }

    /// Asks the next member from now on, unless somebody has seen to that already.
    fn give_up(&self, number: u64) {
        let mut current = self.current();
        if current.number == number && current.client.take().is_some() {
            current.at = (current.at + 1) % self.urls.len();
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        lock(&self.current)
    }

    fn url(&self, at: usize) -> &str {
        self.urls.get(at).map_or("", String::as_str)
    }

    /// Reads the credentials' files again; where they hold something else, it is used from now on. What cannot be read
    /// is told, and what was read before stays in use.
    pub(crate) async fn follow(&self) -> Result<bool, OpenError> {
        let reading = Arc::clone(&self.reading).lock_owned().await;
        let credentials = self.credentials.clone();
        // On a thread that may wait for the storage.
        let read = tokio::task::spawn_blocking(move || {
            let read = Contents::read(&credentials);
            drop(reading);
            read
        });
        let now = read.await.map_err(|error| OpenError::System(std::io::Error::other(error)))??;
        {
            // It is whole after every statement under this lock.
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            if *read == now {
                return Ok(false);
            }
            *read = now.clone();
        }
        let mut current = self.current();
        current.options = now.options();
        // What is being made with the ones before is not used.
        current.number += 1;
        (current.client, current.coming) = (None, None);
        Ok(true)
    }
}

/// It is whole after every statement under this lock.
fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
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
