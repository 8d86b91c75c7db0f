//! Log lines that an outsider can cause, at most one a minute for each cause and peer.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(60);
/// How many causes and peers are told apart; what comes beyond them shares one line a minute.
const KEPT: usize = 1024;

/// Says when a line may be written.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<HashMap<(String, Option<IpAddr>), Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    since: u64,
}

impl Quiet {
    /// Logs a warning unless the same cause was logged for the same peer within the last minute; then it is counted.
    pub(super) fn warn(&self, cause: &str, peer: Option<IpAddr>, line: impl FnOnce() -> String) {
        if let Some(more) = self.permit(cause, peer) {
            let line = line();
            if more == 0 {
                log::warn!("{line}");
            } else {
                log::warn!("{line} ({more} more like this since the last such line)");
            }
        }
    }

    /// Whether to log now; and how many times that was denied since the last time.
    fn permit(&self, cause: &str, peer: Option<IpAddr>) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (cause.to_owned(), peer);
        if said.len() >= KEPT && !said.contains_key(&key) {
            said.retain(|_, said| said.at.elapsed() < PERIOD);
            if said.len() >= KEPT {
                key = (String::new(), None);
            }
        }
        match said.get_mut(&key) {
            Some(entry) if entry.at.elapsed() < PERIOD => {
                entry.since += 1;
                None
            }
            Some(entry) => {
                entry.at = Instant::now();
                Some(std::mem::take(&mut entry.since))
            }
            None => {
                said.insert(key, Said { at: Instant::now(), since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_once_for_each_cause_and_peer() {
        let quiet = Quiet::default();
        let peer = |last| Some(IpAddr::from([10, 0, 0, last]));
        assert_eq!(quiet.permit("a", peer(1)), Some(0));
        assert_eq!(quiet.permit("a", peer(1)), None);
        assert_eq!(quiet.permit("b", peer(1)), Some(0));
        assert_eq!(quiet.permit("a", peer(2)), Some(0));
    }

    #[test]
    fn many_peers_cannot_fill_memory_or_the_log() {
        let quiet = Quiet::default();
        let written = (0..10_000u32)
            .filter(|number| quiet.permit("a", Some(IpAddr::from(number.to_be_bytes()))).is_some())
            .count();
        assert_eq!(written, KEPT + 1);
        assert!(quiet.0.lock().unwrap().len() <= KEPT + 1);
    }
}
