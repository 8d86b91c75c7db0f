//! Unmounts that will take nothing, because the engine sends them after a Mount that failed.
//!
//! Docker Engine 20.10 repeats the Mount of a live ID (`docker cp` with a running container), and sends an Unmount of
//! that ID where the repetition fails. Counted, it would take the live mount away. So a repetition that has to fail is
//! noted here before its caller is answered, and the next Unmount of the same volume, host and ID takes nothing. Newer
//! engines send no such Unmount; then the one at the container's end takes nothing, and the count is too high by one,
//! which `volhost mount ls` shows. It must never be too low.
//!
//! Kept in memory: what is noted here could not be recorded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Service;
use crate::model::host::HostName;
use crate::model::volume::{MountId, VolumeName};

/// How long after a failure an Unmount is still taken for its consequence.
const WINDOW: Duration = Duration::from_secs(120);

/// Which Unmounts: by volume, host and ID.
type Key = (VolumeName, HostName, MountId);

/// The failures whose Unmounts have not come yet.
#[derive(Debug)]
pub(super) struct Forgiven {
    window: Duration,
    /// How many failures, and when the last of them was.
    failures: Mutex<HashMap<Key, (u32, Instant)>>,
}

impl Default for Forgiven {
    fn default() -> Self {
        Self::within(WINDOW)
    }
}

impl Forgiven {
    /// Takes an Unmount for the consequence of a failure for so long.
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

    /// Returns true if this Unmount is to take nothing; then it is used up.
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

/// One Mount that may fail, known to its caller and to the task that carries it out: whichever learns of the failure
/// first has it forgiven, once.
#[derive(Clone)]
pub(super) struct Attempt {
    service: Arc<Service>,
    key: Key,
    noted: Arc<AtomicBool>,
}

impl Attempt {
    pub(super) fn new(service: &Arc<Service>, volume: &VolumeName, host: &HostName, id: &MountId) -> Self {
        Self {
            service: Arc::clone(service),
            key: (volume.clone(), host.clone(), id.clone()),
            noted: Arc::default(),
        }
    }

    /// Notes the failure, where the Mount was a repetition. To be called before the caller is answered.
    pub(super) fn failed(&self) {
        let (volume, host, id) = &self.key;
        if self.service.is_counted(volume, host, id) && !self.noted.swap(true, Ordering::AcqRel) {
            self.service.log_limit.warn("repetition failed", host, || {
                let window = humantime::format_duration(self.service.forgiven.window());
                format!(
                    "host {host} has mounted volume {volume} with ID {id} already, and another Mount of it failed: the \
                     next Unmount of it within {window} takes nothing"
                )
            });
            self.service.forgiven.add(self.key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_failure_forgives_one_unmount_of_its_kind_for_two_minutes() {
        let volume = VolumeName::parse("db").unwrap();
        let host = HostName::parse("web1").unwrap();
        let [x, y] = ["x", "y"].map(|id| MountId::parse(id).unwrap());
        let forgiven = Forgiven::default();
        let add = |id: &MountId| forgiven.add((volume.clone(), host.clone(), id.clone()));
        assert!(!forgiven.take(&volume, &host, &x));
        add(&x);
        add(&x);
        assert!(!forgiven.take(&volume, &host, &y), "another mount");
        assert!(forgiven.take(&volume, &host, &x) && forgiven.take(&volume, &host, &x));
        assert!(!forgiven.take(&volume, &host, &x), "there were two failures");

        add(&x);
        tokio::time::advance(WINDOW - Duration::from_secs(1)).await;
        add(&x);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(forgiven.take(&volume, &host, &x), "the second failure was a moment ago");
        tokio::time::advance(WINDOW).await;
        assert!(!forgiven.take(&volume, &host, &x), "that is too long ago");
        add(&y);
        assert_eq!(forgiven.lock().len(), 1, "what is too long ago is not kept");
    }
}
