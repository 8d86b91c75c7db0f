//! Reading a catalog whole, page by page, as it was at one revision.
//!
//! What is not understood is not passed over: a catalog is read whole or not at all. Writes nothing but, where there is
//! no key at all, what says that this is a catalog.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, GetResponse, Txn, TxnOp, TxnOpResponse};
use serde::Deserialize;

use super::error::OpenError;
use super::keys::{Key, Keys};
use super::members::{self, CallError, Kind, Members};
use super::replica::Snapshot;
use crate::catalog::record::Loader;

/// How many keys a page has. With records of the usual size it is a megabyte or two.
const PAGE: i64 = 4000;

/// How large an answer may be: a page of the largest records, or what a watch missed.
pub(super) const LARGEST: usize = 256 * 1024 * 1024;

/// How long a page may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How often it is said that the cluster does not answer.
const SAY: Duration = Duration::from_secs(10);

/// What `format` holds of a catalog that was begun empty.
const FORMAT: &str = r#"{"volhost":"catalog","v":1}"#;

/// What `format` holds.
#[derive(Deserialize)]
pub(super) struct Format {
    volhost: String,
    v: u64,
}

impl Format {
    /// What it holds of a catalog that this import made.
    pub(super) fn made_by(import: &str) -> String {
        serde_json::json!({ "volhost": "catalog", "v": 1, "import": import }).to_string()
    }
}

/// What stands below a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not a single key.
    Nothing,
    /// A catalog that is understood; `format` was written at this revision.
    Catalog { revision: i64 },
    /// What is being made a catalog, or was, until it was cut off; `import` was written at this revision.
    Import { revision: i64 },
}

/// How long a cluster that does not answer is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryLimit {
    /// Until it does.
    Endless,
    /// As long as an election takes.
    Short,
}

/// A cluster that is asked until it answers, before anything else can be done.
pub(super) struct Reader<'a> {
    pub(super) members: &'a Members,
    pub(super) keys: &'a Keys,
    pub(super) location: &'a str,
    pub(super) patience: RetryLimit,
}

impl Reader<'_> {
    /// Reads everything, as it is at one revision.
    pub(super) async fn read(&self) -> Result<Snapshot, OpenError> {
        loop {
            if let Some(snapshot) = self.read_at_once().await? {
                return Ok(snapshot);
            }
            log::debug!("the catalog {} was compacted while it was read: once more", self.location);
        }
    }

    /// Asks until there is an answer; nothing, where it lies before the last compaction.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        question: impl Fn(Arc<Client>) -> F,
    ) -> Result<Option<T>, OpenError> {
        self.ask_within(ANSWER, question).await
    }

    /// The same, with another member as soon as one has not answered for that long.
    async fn ask_within<T, F: Future<Output = Result<T, Error>>>(
        &self,
        limit: Duration,
        question: impl Fn(Arc<Client>) -> F,
    ) -> Result<Option<T>, OpenError> {
        let (begun, mut said, mut certificates) = (Instant::now(), None::<Instant>, 0);
        loop {
            let trouble = match self.members.ask(limit, &question).await {
                Ok(answer) => return Ok(Some(answer)),
                Err(CallError { kind: Kind::Compacted | Kind::Ahead, .. }) => return Ok(None),
                Err(trouble) => trouble,
            };
            let location = || self.location.to_owned();
            match trouble.kind {
                Kind::Refused | Kind::LockedOut => {
                    return Err(OpenError::Refused {
                        location: location(),
                        root: self.keys.root().to_owned(),
                        source: trouble.text.into(),
                    });
                }
                // One member may have a wrong certificate; where all have, ours is.
                Kind::Certificates => certificates += 1,
                Kind::Full
                | Kind::LeaseGone
                | Kind::Compacted
                | Kind::Ahead
                | Kind::Unsent
                | Kind::Unanswered => {
                    certificates = 0;
                }
            }
            if certificates >= self.members.len() {
                return Err(OpenError::Unusable(trouble.text.into()));
            }
            if self.patience == RetryLimit::Short && begun.elapsed() >= SAY {
                return Err(OpenError::Unreachable { location: location(), why: trouble.text });
            }
            if said.is_none_or(|said| said.elapsed() >= SAY) {
                said = Some(Instant::now());
                log::warn!("waiting for the catalog {}: {}", self.location, trouble.text);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Reads keys until there is an answer.
    pub(super) async fn get(
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

    /// Looks what stands there, at one revision.
    pub(super) async fn state(&self) -> Result<State, OpenError> {
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

    /// Makes sure that there is a catalog. Where there is nothing, and `make` is said, an empty one is made.
    pub(super) async fn ready(&self, make: bool) -> Result<(), OpenError> {
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

    /// Makes an empty catalog where there is no key; somebody else may be quicker.
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

    /// Makes sure that the keys of a catalog below this prefix would not lie among those of another one, below a shorter
    /// prefix, which could then not be read any more. Who may not read there is told nothing.
    pub(super) async fn is_outermost(&self) -> Result<(), OpenError> {
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

    /// Reads everything at one revision; nothing, where a compaction came between.
    async fn read_at_once(&self) -> Result<Option<Snapshot>, OpenError> {
        let mut loader = Loader::default();
        let (mut rows, mut moving, mut head) = (HashMap::new(), HashMap::new(), None);
        let (mut next, mut revision) = (self.keys.root().to_owned().into_bytes(), 0);
        loop {
            let mut options = GetOptions::new().with_range(self.keys.end_of_common()).with_limit(PAGE);
            if revision > 0 {
                options = options.with_revision(revision);
            }
            let from = next.clone();
            let page = self
                .ask(|client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move {
                        client.kv_client().max_decoding_message_size(LARGEST).get(from, Some(options)).await
                    }
                })
                .await?;
            let Some(page) = page else { return Ok(None) };
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            for pair in page.kvs() {
                match self.keys.parse(pair.key()) {
                    Key::Row(table, parts) => {
                        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
                        loader.take(table, &parts, &String::from_utf8_lossy(pair.value())).map_err(
                            |source| OpenError::Row { location: self.location.to_owned(), source },
                        )?;
                        let key = String::from_utf8_lossy(pair.key()).into_owned().into_boxed_str();
                        rows.insert(key, pair.mod_revision());
                    }
                    Key::Moving(id) => {
                        if let Ok(moves) = serde_json::from_slice(pair.value()) {
                            moving.insert(id, (moves, pair.mod_revision()));
                        }
                    }
                    Key::Import => {
                        return Err(OpenError::HalfImported { location: self.location.to_owned() });
                    }
                    Key::Head => head = Some((pair.mod_revision(), pair.value().to_vec())),
                    Key::Instance(_) | Key::Own | Key::Format => {}
                    Key::Unknown => {
                        return Err(OpenError::Foreign {
                            location: self.location.to_owned(),
                            key: String::from_utf8_lossy(pair.key()).into_owned(),
                        });
                    }
                }
            }
            match page.kvs().last() {
                Some(last) if page.more() => {
                    next = last.key().to_vec();
                    next.push(0);
                }
                _ => break,
            }
        }
        let view = loader
            .finish()
            .map_err(|source| OpenError::Row { location: self.location.to_owned(), source })?;
        Ok(Some(Snapshot { view, rows, moving, head, revision }))
    }
}
