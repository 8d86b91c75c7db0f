//! The options of Create, each with one row of [`TABLE`]. Parsing, comparison, help, documentation and the catalog's
//! record all come from the row.
//!
//! A new option is a field of [`Options`] and a row. The compiler then asks for the option in one place, which
//! determines the owner of a volume's directory (`ownership` in `volume::create`) and destructures the options without
//! `..`. Nothing finds other code that the option concerns, such as the rights of hosts and the choice of a backend. An
//! [`Options`] holds only valid values.

use std::fmt;

use crate::model::backend::BackendName;

/// The options of a Create. `None` means that the option was not given, which differs from its default: only options
/// that are given are compared when a Create is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// The backend that the volume lies on.
    pub backend: Option<BackendName>,
    /// The user that owns the volume's directory.
    pub uid: Option<u32>,
    /// The group that owns the volume's directory.
    pub gid: Option<u32>,
    /// The permissions of the volume's directory.
    pub mode: Option<Mode>,
    /// True if an existing directory of that name becomes the volume.
    pub adopt: Option<bool>,
    /// The number of hosts that may use the volume at a time.
    pub access: Option<Sharing>,
}

/// The number of hosts that may use a volume at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Any number of hosts.
    Shared,
    /// One host, with any number of mounts.
    Exclusive,
}

impl Sharing {
    fn parse(text: &str) -> Option<Self> {
        [Self::Shared, Self::Exclusive].into_iter().find(|sharing| sharing.as_str() == text)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        }
    }
}

/// The permission bits of a directory, at most `07777`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(u32);

impl Mode {
    /// Parses octal digits, with or without a leading zero: `755`, `0755`, `1777`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
        if !digits {
            return None;
        }
        u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777).map(Self)
    }

    /// Returns the permissions in a mode of `stat(2)`.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & 0o7777)
    }

    /// Returns the bits, as `chmod(2)` takes them.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// The owner of a directory, and its permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The permissions.
    pub mode: Mode,
}

/// One option of Create.
pub struct Row {
    /// The option's name, as in `-o NAME=VALUE`.
    pub name: &'static str,
    /// The form of its value.
    pub value: &'static str,
    /// The default if it is not given.
    pub default: &'static str,
    /// Its purpose.
    pub doc: &'static str,
    /// Reads the value into its field; `None` if the value is not valid.
    ///
    /// It reads the values of stored records as well, so it must accept for ever each value that `show` ever returned.
    /// A value is stored and shown on terminals: a free text needs a greatest length, of at most 255 bytes, and no
    /// character that is unsafe to show (`error::is_unsafe_to_show`).
    parse: fn(&mut Options, &str) -> Option<()>,
    /// Returns the value in its canonical spelling; `None` if the option was not given.
    show: fn(&Options) -> Option<String>,
}

/// Every option that Create knows, in the order in which help lists them.
pub const TABLE: &[Row] = &[
    Row {
        name: "backend",
        value: "a backend's name",
        default: "the backend `default`, or the only one",
        doc: "the backend of the volume",
        parse: |options, text| BackendName::parse(text).ok().map(|name| options.backend = Some(name)),
        show: |options| options.backend.as_ref().map(ToString::to_string),
    },
    Row {
        name: "uid",
        value: "a number",
        default: "the backend's `uid`",
        doc: "the user that owns the volume's directory",
        parse: |options, text| owner(text).map(|id| options.uid = Some(id)),
        show: |options| options.uid.map(|id| id.to_string()),
    },
    Row {
        name: "gid",
        value: "a number",
        default: "the backend's `gid`",
        doc: "the group that owns the volume's directory",
        parse: |options, text| owner(text).map(|id| options.gid = Some(id)),
        show: |options| options.gid.map(|id| id.to_string()),
    },
    Row {
        name: "mode",
        value: "octal digits, such as 0755",
        default: "the backend's `mode`",
        doc: "the permissions of the volume's directory",
        parse: |options, text| Mode::parse(text).map(|mode| options.mode = Some(mode)),
        show: |options| options.mode.map(|mode| mode.to_string()),
    },
    Row {
        name: "adopt",
        value: "true or false",
        default: "false",
        doc: "an existing directory of that name becomes the volume, its data untouched",
        parse: |options, text| text.parse().ok().map(|adopt| options.adopt = Some(adopt)),
        show: |options| options.adopt.map(|adopt| adopt.to_string()),
    },
    Row {
        name: "access",
        value: "shared or exclusive",
        default: "shared",
        doc: "how many hosts may use the volume at a time: any number, or one",
        parse: |options, text| Sharing::parse(text).map(|sharing| options.access = Some(sharing)),
        show: |options| options.access.map(|sharing| sharing.as_str().to_owned()),
    },
];

/// Parses a number that `chown(2)` accepts as an owner. The highest one means "leave as it is" there.
fn owner(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// Why options were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// No row of the table has this name.
    #[error("unknown option {name:?}{}; the known ones are {}", did_you_mean(.name), known())]
    Unknown {
        /// The given name.
        name: String,
    },
    /// The row could not read this value.
    #[error("option {name}={value:?} is not understood: it takes {takes}")]
    Value {
        /// The option's name.
        name: &'static str,
        /// The given value.
        value: String,
        /// What the option takes.
        takes: &'static str,
    },
}

fn known() -> String {
    TABLE.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

fn did_you_mean(name: &str) -> String {
    crate::error::nearest(name, TABLE.iter().map(|row| row.name))
        .map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

/// An option of a repeated Create that differs from the volume's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The option's name.
    pub name: &'static str,
    /// The value that is asked for now.
    pub asked: String,
    /// The value at creation, if one was given.
    pub given: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, asked, given } = self;
        match given {
            Some(given) => write!(f, "{name}={given} then, {name}={asked} now"),
            None => write!(f, "no {name} then, {name}={asked} now"),
        }
    }
}

impl Options {
    /// Parses options as engines and the command line give them.
    pub fn parse<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, InvalidOptions> {
        let mut options = Self::default();
        for (name, value) in pairs {
            let Some(row) = TABLE.iter().find(|row| row.name == name) else {
                return Err(InvalidOptions::Unknown { name: name.into() });
            };
            (row.parse)(&mut options, value).ok_or_else(|| InvalidOptions::Value {
                name: row.name,
                value: value.into(),
                takes: row.value,
            })?;
        }
        Ok(options)
    }

    /// Returns the options that were given, in the table's order and in their canonical spelling.
    pub fn given(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        TABLE.iter().filter_map(|row| (row.show)(self).map(|value| (row.name, value)))
    }

    /// Returns true if the volume is for one host at a time.
    #[must_use]
    pub fn is_exclusive(&self) -> bool {
        self.access == Some(Sharing::Exclusive)
    }

    /// Returns true if the options say who owns the volume's directory, or its permissions.
    #[must_use]
    pub fn say_ownership(&self) -> bool {
        self.uid.is_some() || self.gid.is_some() || self.mode.is_some()
    }

    /// Returns the options that differ from the volume's directory. An engine that copies an image's files into a new
    /// volume gives it the owner and mode of the image's directory.
    #[must_use]
    pub fn changed(&self, found: Ownership) -> Vec<Difference> {
        let Ownership { uid, gid, mode } = found;
        let found = Self { uid: Some(uid), gid: Some(gid), mode: Some(mode), ..Self::default() };
        let rows = TABLE.iter().filter_map(|row| {
            let (given, asked) = ((row.show)(self)?, (row.show)(&found)?);
            (given != asked).then_some(Difference { name: row.name, asked, given: Some(given) })
        });
        rows.collect()
    }

    /// Returns the options in `asked` that differ from those that this volume was created with. If there are none, a
    /// Create may be answered as a repetition.
    ///
    /// `backend` is compared with the backend that the volume lies on, so that naming the default backend later is no
    /// difference.
    #[must_use]
    pub fn differences(&self, asked: &Self, lies_on: &BackendName) -> Vec<Difference> {
        TABLE
            .iter()
            .filter_map(|row| {
                let asked = (row.show)(asked)?;
                let given = match row.name {
                    "backend" => Some(lies_on.to_string()),
                    _ => (row.show)(self),
                };
                (given.as_deref() != Some(&*asked)).then_some(Difference { name: row.name, asked, given })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::is_unsafe_to_show;

    fn options(pairs: &[(&str, &str)]) -> Options {
        Options::parse(pairs.iter().copied()).unwrap()
    }

    /// Each option with two values.
    const VALUES: &[(&str, &str, &str)] = &[
        ("backend", "fast", "slow"),
        ("uid", "70", "71"),
        ("gid", "0", "1"),
        ("mode", "2770", "0755"),
        ("adopt", "true", "false"),
        ("access", "exclusive", "shared"),
    ];

    #[test]
    fn every_option_has_a_row_that_reads_what_it_shows() {
        let names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(
            VALUES.iter().map(|(name, ..)| *name).collect::<Vec<_>>(),
            names,
            "a row without values here"
        );
        let all: Vec<_> = VALUES.iter().map(|(name, value, _)| (*name, *value)).collect();
        let given = options(&all);
        let shown: Vec<_> = given.given().collect();
        // The catalog records what is shown and parses it again.
        assert_eq!(Options::parse(shown.iter().map(|(n, v)| (*n, &**v))).unwrap(), given);
        // Without `..`: a new field needs a row, else nothing would parse, show or record it.
        let Options { backend, uid, gid, mode, adopt, access } = given;
        assert!(backend.is_some() && uid.is_some() && gid.is_some() && mode.is_some());
        assert!(adopt.is_some() && access.is_some());
    }

    #[test]
    fn every_option_is_compared_when_a_create_is_repeated() {
        let fast = BackendName::parse("fast").unwrap();
        for (name, then, now) in VALUES {
            let (then, now) = (options(&[(name, then)]), options(&[(name, now)]));
            assert!(then.differences(&then, &fast).is_empty(), "{name}");
            let differences = then.differences(&now, &fast);
            assert_eq!(differences.iter().map(|difference| difference.name).collect::<Vec<_>>(), [*name]);
        }
    }

    #[test]
    fn unknown_options_are_told_the_known_ones() {
        let error = Options::parse([("bakend", "x")]).unwrap_err().to_string();
        assert_eq!(
            error,
            "unknown option \"bakend\" (did you mean \"backend\"?); the known ones are backend, uid, gid, mode, adopt, access"
        );
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        let cases = [
            ("uid", "-1"),
            ("uid", ""),
            ("uid", "+1"),
            ("uid", "4294967295"),
            ("gid", "staff"),
            ("mode", "8"),
            ("mode", "17777"),
            ("mode", "rwx"),
            ("mode", ""),
            ("adopt", "yes"),
            ("access", "Exclusive"),
            ("access", ""),
            ("backend", "../x"),
        ];
        for (name, value) in cases {
            let error = Options::parse([(name, value)]).unwrap_err();
            assert!(error.to_string().contains("is not understood: it takes"), "{name}={value}: {error}");
        }
    }

    #[test]
    fn no_option_keeps_a_long_text_or_one_that_is_unsafe_to_show() {
        let (digits, letters) = ("0".repeat(10_000), "a".repeat(10_000));
        for row in TABLE {
            for text in [&*digits, &*letters, "a\nb", "a\u{1b}[2J", "a\u{202e}b"] {
                let Ok(options) = Options::parse([(row.name, text)]) else { continue };
                for (name, value) in options.given() {
                    assert!(value.len() <= 255, "{name} keeps {} bytes", value.len());
                    assert!(!value.contains(is_unsafe_to_show), "{name} keeps {value:?}");
                }
            }
        }
    }

    #[test]
    fn only_given_options_are_compared() {
        let fast = BackendName::parse("fast").unwrap();
        let then = options(&[("uid", "70"), ("mode", "750")]);
        assert!(then.differences(&options(&[]), &fast).is_empty());
        assert!(then.differences(&options(&[("mode", "0750"), ("backend", "fast")]), &fast).is_empty());
        let differences =
            then.differences(&options(&[("uid", "71"), ("gid", "1"), ("backend", "slow")]), &fast);
        let texts: Vec<_> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["backend=fast then, backend=slow now", "uid=70 then, uid=71 now", "no gid then, gid=1 now"]
        );
    }

    #[test]
    fn what_a_directory_has_otherwise_than_the_options_said_is_told() {
        let found = Ownership { uid: 999, gid: 70, mode: Mode::parse("0700").unwrap() };
        let texts = |given: &[(&str, &str)]| {
            options(given).changed(found).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(&[]), [""; 0], "nothing was said");
        assert_eq!(texts(&[("uid", "999"), ("gid", "70"), ("mode", "700"), ("adopt", "false")]), [""; 0]);
        assert_eq!(
            texts(&[("uid", "70"), ("gid", "70"), ("mode", "0755")]),
            ["uid=70 then, uid=999 now", "mode=0755 then, mode=0700 now"]
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_an_option_panic(name in "[a-z]{0,8}", value in any::<String>()) {
            let _ = Options::parse([(&*name, &*value)]);
            for row in TABLE {
                if let Ok(options) = Options::parse([(row.name, &*value)]) {
                    prop_assert_eq!(options.given().count(), 1);
                }
            }
        }

        #[test]
        fn modes_survive_their_text(bits in 0u32..=0o7777) {
            prop_assert_eq!(Mode::parse(&Mode(bits).to_string()), Some(Mode(bits)));
        }
    }
}
