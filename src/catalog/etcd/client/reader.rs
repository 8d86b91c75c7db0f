//! Calls that are repeated until they are answered, and what they find below a prefix: no key, a catalog, or an import.
//!
//! It writes only the keys of an empty catalog, and only if there is no key at all.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, GetResponse, Txn, TxnOp, TxnOpResponse};
use serde::Deserialize;

use super::call::{CallError, CallErrorKind};
use super::members::{self, Members};
use crate::catalog::etcd::error::OpenError;
use crate::catalog::etcd::keys::Keys;

/// The size limit of an answer, in bytes: a page of the largest records, or what a watch missed.
pub(crate) const LARGEST: usize = 256 * 1024 * 1024;

/// How long a page may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How often the log says that the cluster does not answer.
const SAY: Duration = Duration::from_secs(10);

/// The value of the key `format` in a catalog that was begun empty.
const FORMAT: &str = r#"{"volhost":"catalog","v":1}"#;

/// The value of the key `format`.
#[derive(Deserialize)]
pub(crate) struct Format {
    volhost: String,
    v: u64,
}

impl Format {
    /// Returns the value for a catalog that an import made.
    pub(crate) fn made_by(import: &str) -> String {
        serde_json::json!({ "volhost": "catalog", "v": 1, "import": import }).to_string()
    }
}

/// What lies below a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No key.
    Nothing,
    /// A catalog of a known format; the key `format` was written at this revision.
    Catalog { revision: i64 },
    /// An import that is under way or was interrupted; the key `import` was written at this revision.
    Import { revision: i64 },
}

/// How long to ask a cluster that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryLimit {
    /// Until it answers.
    Endless,
    /// As long as an election takes.
    Short,
}

/// Asks a cluster until it answers.
pub(crate) struct Reader<'a> {
    pub(crate) members: &'a Members,
    pub(crate) keys: &'a Keys,
    pub(crate) location: &'a str,
    pub(crate) retry: RetryLimit,
}

impl Reader<'_> {
    /// Asks until there is an answer. Returns `None` if the revision asked for was compacted.
    pub(crate) async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        question: impl Fn(Arc<Client>) -> F,
    ) -> Result<Option<T>, OpenError> {
        self.ask_within(ANSWER, question).await
    }

    /// As [`ask`](Self::ask); after `limit` without an answer, the next member is asked.
    async fn ask_within<T, F: Future<Output = Result<T, Error>>>(
        &self,
        limit: Duration,
        question: impl Fn(Arc<Client>) -> F,
    ) -> Result<Option<T>, OpenError> {
        let (begun, mut said, mut certificates) = (Instant::now(), None::<Instant>, 0);
        loop {
            let error = match self.members.ask(limit, &question).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(CallError { kind: CallErrorKind::Compacted | CallErrorKind::Ahead, .. }) => {
                    return Ok(None);
                }
                Err(error) => error,
            };
            let location = || self.location.to_owned();
            match error.kind {
                CallErrorKind::Refused | CallErrorKind::LockedOut => {
                    return Err(OpenError::Refused {
                        location: location(),
                        root: self.keys.root().to_owned(),
                        source: error.text.into(),
                    });
                }
                // One member may have a wrong certificate; if all of them have, ours is wrong.
                CallErrorKind::Certificates => certificates += 1,
                CallErrorKind::Full
                | CallErrorKind::LeaseGone
                | CallErrorKind::Compacted
                | CallErrorKind::Ahead
                | CallErrorKind::Unsent
                | CallErrorKind::Unanswered => {
                    certificates = 0;
                }
            }
            if certificates >= self.members.len() {
                return Err(OpenError::Unusable(error.text.into()));
            }
            if self.retry == RetryLimit::Short && begun.elapsed() >= SAY {
                return Err(OpenError::Unreachable { location: location(), why: error.text });
            }
            if said.is_none_or(|said| said.elapsed() >= SAY) {
                said = Some(Instant::now());
                log::warn!("waiting for the catalog {}: {}", self.location, error.text);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Reads keys; asks until there is an answer.
    pub(crate) async fn get(
        &self,
        key: String,
        options: GetOptions,
    ) -> Result<Option<GetResponse>, OpenError> {
        self.ask(|client| {
            let (key, options) = (key.clone(), options.clone());
            async move { client.kv_client().max_decoding_message_size(LARGEST).get(key, Some(options)).await }
        })
        .await
    }

    /// Finds out what lies below the prefix, at one revision.
    pub(crate) async fn state(&self) -> Result<State, OpenError> {
        let location = || self.location.to_owned();
        let any = GetOptions::new().with_range(self.keys.end()).with_limit(1).with_keys_only();
        let look = Txn::new().and_then([
            TxnOp::get(self.keys.root(), Some(any)),
            TxnOp::get(self.keys.format(), None),
            TxnOp::get(self.keys.import(), None),
        ]);
        let looked = self
            .ask_within(members::ANSWER, |client| {
                let look = look.clone();
                async move { client.kv_client().txn(look).await }
            })
            .await?;
        let answers = looked.map(|looked| looked.op_responses()).unwrap_or_default();
        let mut found = answers.iter().map(|answer| match answer {
            TxnOpResponse::Get(got) => got.kvs().first(),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        let mut next = || found.next().flatten();
        let (any, format, import) = (next(), next(), next());
        if let Some(import) = import {
            return Ok(State::Import { revision: import.mod_revision() });
        }
        if let Some(format) = format {
            return match serde_json::from_slice(format.value()) {
                Ok(Format { volhost, v: 1 }) if volhost == "catalog" => {
                    Ok(State::Catalog { revision: format.mod_revision() })
                }
                Ok(Format { volhost, v }) if volhost == "catalog" => {
                    Err(OpenError::Newer { location: location(), found: v })
                }
                _ => Err(OpenError::Foreign { location: location(), key: self.keys.format() }),
            };
        }
        match any {
            Some(key) => {
                let key = String::from_utf8_lossy(key.key()).into_owned();
                Err(OpenError::Foreign { location: location(), key })
            }
            None => Ok(State::Nothing),
        }
    }

    /// Makes sure that there is a catalog. If there is no key and `make` is true, makes an empty one.
    pub(crate) async fn ready(&self, make: bool) -> Result<(), OpenError> {
        let location = || self.location.to_owned();
        loop {
            match self.state().await? {
                State::Catalog { .. } => return Ok(()),
                State::Import { .. } => return Err(OpenError::HalfImported { location: location() }),
                State::Nothing if !make => return Err(OpenError::Missing { location: location() }),
                State::Nothing => self.make().await?,
            }
        }
    }

    /// Makes an empty catalog if there is no key; another instance may be quicker.
    async fn make(&self) -> Result<(), OpenError> {
        self.is_outermost().await?;
        let nothing =
            Compare::create_revision(self.keys.root(), CompareOp::Equal, 0).with_range(self.keys.end());
        let make = Txn::new().when(vec![nothing]).and_then(vec![
            TxnOp::put(self.keys.format(), FORMAT, None),
            TxnOp::put(self.keys.head(), "", None),
        ]);
        self.ask(|client| {
            let make = make.clone();
            async move { client.kv_client().txn(make).await }
        })
        .await?;
        Ok(())
    }

    /// Refuses a prefix below another catalog's prefix: the keys would lie among that catalog's, which could no longer be
    /// read. A shorter prefix that this user may not read is skipped.
    pub(crate) async fn is_outermost(&self) -> Result<(), OpenError> {
        for outer in self.keys.outer() {
            let look = Txn::new().and_then([outer.format(), outer.import()].map(|key| TxnOp::get(key, None)));
            let ask = |client: Arc<Client>| {
                let look = look.clone();
                async move { client.kv_client().txn(look).await }
            };
            let looked = match self.ask(ask).await {
                Err(OpenError::Refused { .. }) => continue,
                looked => looked?,
            };
            let answers = looked.map(|looked| looked.op_responses()).unwrap_or_default();
            let is_there = |answer: &TxnOpResponse| match answer {
                TxnOpResponse::Get(got) => !got.kvs().is_empty(),
                TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => false,
            };
            if answers.iter().any(is_there) {
                let (location, outer) = (self.location.to_owned(), outer.root().to_owned());
                return Err(OpenError::Nested { location, outer });
            }
        }
        Ok(())
    }
}
