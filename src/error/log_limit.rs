//! Log lines that a client can cause at will: at most one a minute for each cause and client, with the count of those that
//! were left out.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

const PERIOD: Duration = Duration::from_secs(60);
/// How many causes and clients are told apart; what comes beyond them shares one line a minute.
const KEPT: usize = 1024;

/// Decides when a line may be logged.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<HashMap<(String, String), Logged>>);

#[derive(Debug)]
struct Logged {
    at: Instant,
    since: u64,
}

impl LogLimit {
    /// Logs a line unless the same cause was logged for the same client within the last minute; then it is counted.
    pub fn log(&self, level: Level, cause: &str, client: impl Display, line: impl FnOnce() -> String) {
        if level > log::max_level() {
            return;
        }
        if let Some(more) = self.permit(cause, client) {
            let line = line();
            if more == 0 {
                log::log!(level, "{line}");
            } else {
                log::log!(level, "{line} ({more} more like this since the last such line)");
            }
        }
    }

    /// Logs a warning as [`log`](Self::log) does.
    pub fn warn(&self, cause: &str, client: impl Display, line: impl FnOnce() -> String) {
        self.log(Level::Warn, cause, client, line);
    }

    /// Returns how many lines were left out since the last one if a line may be logged now.
    fn permit(&self, cause: &str, client: impl Display) -> Option<u64> {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (cause.to_owned(), client.to_string());
        if logged.len() >= KEPT && !logged.contains_key(&key) {
            logged.retain(|_, logged| logged.at.elapsed() < PERIOD);
            if logged.len() >= KEPT {
                key = (String::new(), String::new());
            }
        }
        match logged.get_mut(&key) {
            Some(entry) if entry.at.elapsed() < PERIOD => {
                entry.since += 1;
                None
            }
            Some(entry) => {
                entry.at = Instant::now();
                Some(std::mem::take(&mut entry.since))
            }
            None => {
                logged.insert(key, Logged { at: Instant::now(), since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_once_for_each_cause_and_client() {
        let log_limit = LogLimit::default();
        assert_eq!(log_limit.permit("a", "web1"), Some(0));
        assert_eq!(log_limit.permit("a", "web1"), None);
        assert_eq!(log_limit.permit("b", "web1"), Some(0));
        assert_eq!(log_limit.permit("a", "web2"), Some(0));
    }

    #[test]
    fn many_clients_cannot_fill_memory_or_the_log() {
        let log_limit = LogLimit::default();
        let written = (0..10_000).filter(|number| log_limit.permit("a", number).is_some()).count();
        assert_eq!(written, KEPT + 1);
        assert!(log_limit.0.lock().unwrap().len() <= KEPT + 1);
    }
}
