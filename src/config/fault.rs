//! The faults of a configuration and their positions: a [`Fault`] each, all of them together in [`Faults`].
//!
//! This module does not decide what a fault is; it only collects, orders and shows faults.

use std::fmt;
use std::path::PathBuf;

/// A mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file to correct.
    pub file: PathBuf,
    /// The line, from 1; 0 if the fault has no single position in the file, or the file does not exist.
    pub line: usize,
    /// The column in characters, from 1; 0 with line 0.
    pub column: usize,
    /// The field's path, such as `limits.request` or `fast.mode`; empty if the fault lies in no field.
    pub field: String,
    /// What is wrong, and what would be right.
    pub what: String,
    /// The probable intention, if something known is similar.
    pub hint: Option<String>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, field, what, hint } = self;
        write!(f, "{}:", file.display())?;
        if *line > 0 {
            write!(f, "{line}:{column}:")?;
        }
        if !field.is_empty() {
            write!(f, " {field}:")?;
        }
        write!(f, " {what}")?;
        match hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// Every fault of a configuration and its backend map, ordered by file and place; at least one.
///
/// Displayed one per line, without a newline after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Returns `None` if there is no fault.
    #[must_use]
    pub fn collect(mut faults: Vec<Fault>) -> Option<Self> {
        faults.sort();
        (!faults.is_empty()).then_some(Self(faults))
    }

    /// Returns the faults, by file and position.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Returns the faults, by file and position.
    #[must_use]
    pub fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self(vec![fault])
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(file: &str, line: usize) -> Fault {
        Fault {
            file: file.into(),
            line,
            column: line.min(1),
            field: "a.b".into(),
            what: "is wrong".into(),
            hint: None,
        }
    }

    #[test]
    fn faults_are_told_in_the_order_of_their_places() {
        let faults = Faults::collect(vec![fault("/b", 2), fault("/b", 1), fault("/a", 10), fault("/a", 9)]);
        let text = faults.map(|faults| faults.to_string());
        assert_eq!(
            text.as_deref(),
            Some(
                "/a:9:1: a.b: is wrong\n/a:10:1: a.b: is wrong\n/b:1:1: a.b: is wrong\n/b:2:1: a.b: is wrong"
            )
        );
        assert_eq!(Faults::collect(vec![]), None);
    }

    #[test]
    fn a_fault_of_the_whole_file_names_no_place() {
        let fault = Fault { field: String::new(), hint: Some("try this".into()), ..fault("/a", 0) };
        assert_eq!(fault.to_string(), "/a: is wrong (try this)");
    }
}
