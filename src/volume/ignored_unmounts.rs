//! Unmounts that are ignored because the engine sends them after a Mount that failed.
//!
//! Docker Engine 20.10 repeats the Mount of a live ID (`docker cp` with a running container), and sends an Unmount of
//! that ID if the repetition fails. Counted, that Unmount would take the live mount away. So a repetition that fails is
//! noted here before its caller is answered, and the next Unmount of the same volume, host and ID is ignored. Newer
//! engines send no such Unmount; then the one at the container's end is ignored, and the count is too high by one, which
//! `volhost mount ls` shows. It must never be too low.
//!
//! Kept in memory: a failure that is noted here could not be recorded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Service;
use crate::model::host::HostName;
use crate::model::volume::{MountId, VolumeName};

/// How long after a failed Mount an Unmount is ignored.
const IGNORE_WINDOW: Duration = Duration::from_secs(120);

/// Identifies the Unmounts that are ignored.
type Key = (VolumeName, HostName, MountId);

/// The failed repetitions of Mount whose Unmounts have not come yet.
#[derive(Debug)]
pub(super) struct IgnoredUnmounts {
    window: Duration,
    /// The number of failures, and the time of the last one.
    failures: Mutex<HashMap<Key, (u32, Instant)>>,
}

impl Default for IgnoredUnmounts {
    fn default() -> Self {
        Self::within(IGNORE_WINDOW)
    }
}

impl IgnoredUnmounts {
    /// Returns an instance that ignores Unmounts for `window` after a failure.
    pub(super) fn within(window: Duration) -> Self {
        Self { window, failures: Mutex::default() }
    }

    pub(super) fn window(&self) -> Duration {
        self.window
    }

    fn add(&self, key: Key) {
        let now = Instant::now();
        let mut all = self.lock();
        all.retain(|_, (_, last)| now.duration_since(*last) < self.window);
        let (count, last) = all.entry(key).or_insert((0, now));
        *count = count.saturating_add(1);
        *last = now;
    }

    /// Returns true if this Unmount is to be ignored, and then forgets one failure.
    pub(super) fn take(&self, volume: &VolumeName, host: &HostName, id: &MountId) -> bool {
        let mut all = self.lock();
        if all.is_empty() {
            return false;
        }
        let key = (volume.clone(), host.clone(), id.clone());
        let Some((count, last)) = all.get_mut(&key) else { return false };
        let due = last.elapsed() < self.window;
        *count -= 1;
        if *count == 0 || !due {
            all.remove(&key);
        }
        due
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, (u32, Instant)>> {
        // The map is whole after every statement under this lock.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A Mount that may fail. Its caller and the task that carries it out both hold it; whichever learns of the failure
/// first notes it, once.
#[derive(Clone)]
pub(super) struct MountAttempt {
    service: Arc<Service>,
    key: Key,
    is_noted: Arc<AtomicBool>,
}

impl MountAttempt {
    pub(super) fn new(service: &Arc<Service>, volume: &VolumeName, host: &HostName, id: &MountId) -> Self {
        Self {
            service: Arc::clone(service),
            key: (volume.clone(), host.clone(), id.clone()),
            is_noted: Arc::default(),
        }
    }

    /// Notes the failure if the Mount was a repetition. Must be called before the caller is answered.
    pub(super) fn failed(&self) {
        let (volume, host, id) = &self.key;
        if self.service.is_counted(volume, host, id) && !self.is_noted.swap(true, Ordering::AcqRel) {
            self.service.log_limit.warn("repetition failed", host, || {
                let window = humantime::format_duration(self.service.ignored_unmounts.window());
                format!(
                    "host {host} has mounted volume {volume} with ID {id} already, and another Mount of it failed: the \
                     next Unmount of it within {window} takes nothing"
                )
            });
            self.service.ignored_unmounts.add(self.key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_failure_has_one_unmount_of_its_kind_ignored_for_two_minutes() {
        let volume = VolumeName::parse("db").unwrap();
        let host = HostName::parse("web1").unwrap();
        let [x, y] = ["x", "y"].map(|id| MountId::parse(id).unwrap());
        let ignored = IgnoredUnmounts::default();
        let add = |id: &MountId| ignored.add((volume.clone(), host.clone(), id.clone()));
        assert!(!ignored.take(&volume, &host, &x));
        add(&x);
        add(&x);
        assert!(!ignored.take(&volume, &host, &y), "another mount");
        assert!(ignored.take(&volume, &host, &x) && ignored.take(&volume, &host, &x));
        assert!(!ignored.take(&volume, &host, &x), "there were two failures");

        add(&x);
        tokio::time::advance(IGNORE_WINDOW - Duration::from_secs(1)).await;
        add(&x);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(ignored.take(&volume, &host, &x), "the second failure was a moment ago");
        tokio::time::advance(IGNORE_WINDOW).await;
        assert!(!ignored.take(&volume, &host, &x), "that is too long ago");
        add(&y);
        assert_eq!(ignored.lock().len(), 1, "what is too long ago is not kept");
    }
}
