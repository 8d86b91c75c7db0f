//! `volume ls --filter K=V`: decides which volumes are listed.
//!
//! It works as docker's: filters of one key are alternatives, filters of different keys must all hold.
//! Unknown keys and values that no volume can have are errors; a list of nothing would mislead.

use std::collections::BTreeMap;
use std::str::FromStr;

use wildmatch::WildMatch;

use crate::admin::wire::{Trashed, Volume};
use crate::error::nearest;

/// The help on filters, in the order of [`KEYS`].
pub(super) const HELP: &str = "\
List only what matches

  name=TEXT         contains TEXT; or matches it, if it has `*` or `?`
  backend=NAME      it lies on this backend; may have `*` and `?`
  state=STATE       online, offline, unmapped or pending
  mounted=BOOL      true: some host uses it; false: none does
  dangling=BOOL     the opposite of `mounted`, as docker has it
  option.KEY=VALUE  it was created with `-o KEY=VALUE`

Filters of one key are alternatives; those of different keys must all hold.
With --trash there are name and backend.";

const KEYS: [&str; 6] = ["name", "backend", "state", "mounted", "dangling", "option.KEY"];
const STATES: [&str; 4] = ["online", "offline", "unmapped", "pending"];

/// A condition on a volume.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Filter {
    Name(String),
    Backend(WildMatch),
    State(String),
    Mounted(bool),
    Option { key: String, value: String },
}

/// Reasons why a text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidFilter {
    #[error("a filter is KEY=VALUE, with one of the keys {}", KEYS.join(", "))]
    NoValue,
    #[error("unknown filter {key:?}{}; the known ones are {}", hint(.key, &KEYS), KEYS.join(", "))]
    UnknownKey { key: String },
    #[error("unknown state {state:?}{}; the known ones are {}", hint(.state, &STATES), STATES.join(", "))]
    UnknownState { state: String },
    #[error("{key} takes true or false, not {value:?}")]
    NotABool { key: String, value: String },
}

fn hint(word: &str, known: &[&str]) -> String {
    nearest(word, known.iter().copied()).map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let (key, value) = text.split_once('=').ok_or(InvalidFilter::NoValue)?;
        match key {
            "name" => Ok(Self::Name(value.into())),
            "backend" => Ok(Self::Backend(WildMatch::new(value))),
            "state" if STATES.contains(&value) => Ok(Self::State(value.into())),
            "state" => Err(InvalidFilter::UnknownState { state: value.into() }),
            "mounted" => parse_bool(key, value).map(Self::Mounted),
            "dangling" => parse_bool(key, value).map(|dangling| Self::Mounted(!dangling)),
            _ => match key.strip_prefix("option.") {
                Some(option) if !option.is_empty() => {
                    Ok(Self::Option { key: option.into(), value: value.into() })
                }
                _ => Err(InvalidFilter::UnknownKey { key: key.into() }),
            },
        }
    }
}

fn parse_bool(key: &str, value: &str) -> Result<bool, InvalidFilter> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(InvalidFilter::NotABool { key: key.into(), value: value.into() }),
    }
}

impl Filter {
    /// Returns the filter's key. Filters of the same key are alternatives to each other.
    fn key(&self) -> String {
        match self {
            Self::Name(_) => "name".into(),
            Self::Backend(_) => "backend".into(),
            Self::State(_) => "state".into(),
            Self::Mounted(_) => "mounted".into(),
            Self::Option { key, .. } => format!("option.{key}"),
        }
    }

    fn matches(&self, volume: &Volume) -> bool {
        match self {
            Self::Name(text) => name_matches(text, &volume.name),
            Self::Backend(pattern) => pattern.matches(&volume.backend),
            Self::State(state) => volume.state == *state,
            Self::Mounted(mounted) => (volume.mounts > 0) == *mounted,
            Self::Option { key, value } => volume.options.get(key) == Some(value),
        }
    }

    /// Returns true if a removed volume matches; `None` if a removed volume has no such property.
    fn matches_trashed(&self, volume: &Trashed) -> Option<bool> {
        match self {
            Self::Name(text) => Some(name_matches(text, &volume.name)),
            Self::Backend(pattern) => Some(pattern.matches(&volume.backend)),
            Self::State(_) | Self::Mounted(_) | Self::Option { .. } => None,
        }
    }
}

fn name_matches(text: &str, name: &str) -> bool {
    if text.contains(['*', '?']) { WildMatch::new(text).matches(name) } else { name.contains(text) }
}

/// Returns true if a volume matches the filters.
pub(super) fn admits(filters: &[Filter], volume: &Volume) -> bool {
    all_keys(filters, |filter| filter.matches(volume))
}

/// Returns true if a removed volume matches the filters. No removed volume matches a filter on a property
/// that it lacks: [`not_for_trash`] finds such filters beforehand.
pub(super) fn admits_trashed(filters: &[Filter], volume: &Trashed) -> bool {
    all_keys(filters, |filter| filter.matches_trashed(volume).unwrap_or(false))
}

/// Returns the key of the first filter on a property that removed volumes lack.
pub(super) fn not_for_trash(filters: &[Filter]) -> Option<String> {
    filters.iter().find(|filter| !matches!(filter, Filter::Name(_) | Filter::Backend(_))).map(Filter::key)
}

fn all_keys(filters: &[Filter], matches: impl Fn(&Filter) -> bool) -> bool {
    let mut keys: BTreeMap<String, bool> = BTreeMap::new();
    for filter in filters {
        *keys.entry(filter.key()).or_default() |= matches(filter);
    }
    keys.into_values().all(|any| any)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, mounts: usize) -> Volume {
        Volume {
            name: name.into(),
            backend: "fast".into(),
            path: format!("/mnt/fast/{name}"),
            created_at: "2026-01-02T03:04:05Z".into(),
            options: BTreeMap::from([("uid".into(), "70".into())]),
            state: "online".into(),
            mounts,
        }
    }

    fn admitted(filters: &[&str], volume: &Volume) -> bool {
        let filters: Vec<Filter> = filters.iter().map(|text| text.parse().unwrap()).collect();
        admits(&filters, volume)
    }

    #[test]
    fn each_key_compares_its_own_field() {
        let db = volume("app-db", 1);
        for yes in [
            "name=db",
            "name=app*",
            "name=app-d?",
            "backend=fast",
            "backend=f*",
            "state=online",
            "mounted=true",
            "dangling=false",
            "option.uid=70",
            "name=",
        ] {
            assert!(admitted(&[yes], &db), "{yes}");
        }
        for no in [
            "name=web",
            "name=db*",
            "backend=fas",
            "state=offline",
            "mounted=false",
            "dangling=1",
            "option.uid=7",
            "option.gid=70",
        ] {
            assert!(!admitted(&[no], &db), "{no}");
        }
        assert!(admitted(&[], &db));
    }

    #[test]
    fn one_keys_filters_are_alternatives_and_different_keys_must_all_hold() {
        let db = volume("db", 0);
        assert!(admitted(&["name=web", "name=db"], &db));
        assert!(!admitted(&["name=db", "mounted=true"], &db));
        assert!(admitted(&["name=web", "name=db", "mounted=false", "option.uid=70"], &db));
        assert!(!admitted(&["option.uid=70", "option.mode=0700"], &db), "two options are two keys");
    }

    #[test]
    fn slips_are_told_with_what_is_known() {
        let error = |text: &str| text.parse::<Filter>().unwrap_err().to_string();
        assert_eq!(
            error("bakend=fast"),
            "unknown filter \"bakend\" (did you mean \"backend\"?); the known ones are name, backend, state, mounted, dangling, option.KEY"
        );
        assert!(
            error("label=x").starts_with("unknown filter \"label\"; the known ones are"),
            "{}",
            error("label=x")
        );
        assert!(error("state=unmaped").contains("did you mean \"unmapped\"?"), "{}", error("state=unmaped"));
        assert!(error("mounted=yes").contains("takes true or false"), "{}", error("mounted=yes"));
        assert!(error("name").contains("KEY=VALUE"), "{}", error("name"));
        assert!(error("option.=x").contains("unknown filter"), "{}", error("option.=x"));
    }

    #[test]
    fn the_trash_knows_names_and_backends_alone() {
        let trashed = Trashed {
            name: "db".into(),
            id: "x".into(),
            backend: "fast".into(),
            removed_at: String::new(),
            expires_at: None,
            blocked: None,
        };
        let filters: Vec<Filter> = ["name=d", "backend=fast"].map(|text| text.parse().unwrap()).into();
        assert_eq!(not_for_trash(&filters), None);
        assert!(admits_trashed(&filters, &trashed));
        assert_eq!(not_for_trash(&["mounted=true".parse().unwrap()]), Some("mounted".into()));
    }

    #[test]
    fn the_help_names_every_key() {
        for key in KEYS {
            assert!(HELP.contains(&format!("\n  {key}=")), "{key}");
        }
    }
}
