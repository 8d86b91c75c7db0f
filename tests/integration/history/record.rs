//! What was asked, when, of whom, and what came of it; and what was broken meanwhile. Kept as JSON, one line for each.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::model::Access;
use crate::harness::http;

/// A whole history. Times are microseconds since its beginning.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// What clients asked.
    pub records: Vec<Record>,
    /// What was broken.
    pub troubles: Vec<Trouble>,
    /// What was found at the end.
    pub endings: Vec<Ending>,
}

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    /// Who asked. Each client is a host of its own.
    pub client: usize,
    /// The request's number among those of the client.
    pub number: usize,
    /// Which instance was asked.
    pub instance: usize,
    /// For what.
    pub call: Call,
    /// Of which volume. A List is of all of them.
    pub volume: usize,
    /// When it was sent.
    pub invoked: u64,
    /// When the answer was there, or it was clear that none would be.
    pub returned: u64,
    /// What came of it.
    pub answer: Answer,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "these are the verbs of the protocol")]
pub(super) enum Call {
    Create(Access),
    Mount(u8),
    Unmount(u8),
    Remove,
    Get,
    Path,
    List,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It was done.
    Done,
    /// There is a volume; a Get tells how many entries its ledger has, and of which hosts.
    Found(Option<(usize, BTreeSet<usize>)>),
    /// These volumes are there.
    Listed(BTreeSet<usize>),
    /// It was refused, in these words.
    Refused(Why, String),
    /// It could not be done, they say: with status 500, in these words.
    Failed(String),
    /// It was sent, and not answered.
    Lost(String),
    /// It could not be sent.
    Unsent(String),
}

/// Why a request was refused, as far as its words tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Why {
    /// No such volume.
    Missing,
    /// The volume is mounted.
    Mounted,
    /// The volume is exclusive, and another host has it.
    Held,
    /// The volume has other options.
    Different,
    /// Anything else.
    Other,
}

/// Something that was broken for a while.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Trouble {
    /// What was done.
    pub what: String,
    /// When it began.
    pub from: u64,
    /// When it was over, and everything worked again.
    pub until: u64,
    /// The instances that it struck: what they tell from memory may be old.
    pub struck: BTreeSet<usize>,
}

/// How a volume was created, and how often each host mounts it under each ID.
pub(super) type Found = (Access, Vec<(usize, u8, u32)>);

/// What an instance tells of a volume at the end, when everything works and nobody asks for anything.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ending {
    /// Which instance.
    pub instance: usize,
    /// When.
    pub at: u64,
    /// Of which volume.
    pub volume: usize,
    /// How it was created and how often each host mounts it under each ID; nothing where there is no such volume.
    pub found: Option<Found>,
}

#[derive(Serialize, Deserialize)]
enum Line {
    Asked(Record),
    Broken(Trouble),
    Found(Ending),
}

impl History {
    /// Writes it down, in the order of time.
    pub(super) fn keep(&self, path: &Path) {
        let asked = self.records.iter().map(|record| (record.invoked, Line::Asked(record.clone())));
        let broken = self.troubles.iter().map(|trouble| (trouble.from, Line::Broken(trouble.clone())));
        let found = self.endings.iter().map(|ending| (ending.at, Line::Found(ending.clone())));
        let mut lines: Vec<_> = asked.chain(broken).chain(found).collect();
        lines.sort_by_key(|(at, _)| *at);
        let text: String = lines
            .iter()
            .map(|(_, line)| serde_json::to_string(line).expect("it has no maps with strange keys") + "\n")
            .collect();
        std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Reads what was kept.
    pub(super) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut history = Self::default();
        for line in text.lines() {
            match serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display())) {
                Line::Asked(record) => history.records.push(record),
                Line::Broken(trouble) => history.troubles.push(trouble),
                Line::Found(ending) => history.endings.push(ending),
            }
        }
        history
    }
}

impl Trouble {
    /// Whether the instances that it strikes cannot reach their catalog meanwhile.
    pub(super) fn keeps_from_catalog(&self) -> bool {
        ["Quorum", "Cut", "Deafen"].iter().any(|kind| self.what.starts_with(kind))
    }
}

impl Call {
    /// The verb.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Create(_) => "Create",
            Self::Mount(_) => "Mount",
            Self::Unmount(_) => "Unmount",
            Self::Remove => "Remove",
            Self::Get => "Get",
            Self::Path => "Path",
            Self::List => "List",
        }
    }
}

impl Answer {
    /// What an answer of volhost says.
    pub(super) fn of(call: Call, answer: io::Result<http::Answer>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Self::Lost(error.to_string()),
        };
        let err = answer.err();
        match (answer.status, call) {
            (200, Call::Get) => {
                let status = &answer.json()["Volume"]["Status"];
                let entries = status["mounts"].as_u64().and_then(|count| usize::try_from(count).ok());
                let hosts = status["mounted_by"].as_array().map(|hosts| {
                    hosts.iter().map(|host| number(host.as_str().unwrap_or_default())).collect()
                });
                Self::Found(entries.zip(hosts))
            }
            (200, Call::Path) => Self::Found(None),
            (200, Call::List) => {
                let volumes = answer.json()["Volumes"].as_array().cloned().unwrap_or_default();
                Self::Listed(
                    volumes.iter().map(|one| number(one["Name"].as_str().unwrap_or_default())).collect(),
                )
            }
            (200, _) => Self::Done,
            (400, _) => Self::Refused(Why::of(&err), err),
            (status, _) => Self::Failed(format!("{status} {err}")),
        }
    }
}

impl Why {
    fn of(err: &str) -> Self {
        if err.starts_with("no such volume") {
            Self::Missing
        } else if err.contains("is exclusive and in use by") {
            Self::Held
        } else if err.contains("is in use by") {
            Self::Mounted
        } else if err.contains("exists with other options") {
            Self::Different
        } else {
            Self::Other
        }
    }
}

/// The name of a client's host, or of a volume.
pub(super) fn named(letter: char, number: usize) -> String {
    format!("{letter}{number}")
}

/// The number in such a name.
pub(super) fn number(name: &str) -> usize {
    let digits = name.trim_start_matches(|letter: char| letter.is_ascii_alphabetic());
    digits.parse().unwrap_or_else(|_| panic!("{name:?} is no name of this test's"))
}
