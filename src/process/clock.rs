//! The wall clock, which may be set while the process runs: by somebody, or because it was wrong.
//!
//! Timers use the steady clock, which nobody can set. This module is for decisions that depend on dates: they must not
//! take a clock that has just been set as proof that time has passed.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// How far the two clocks may drift apart between two looks; time synchronisation moves a clock by less.
const TOLERANCE: time::Duration = time::Duration::MINUTE;

/// Compares the wall clock with the steady one.
#[derive(Debug)]
pub(crate) struct Clock(Mutex<Reading>);

#[derive(Debug, Clone, Copy)]
struct Reading {
    steady: Instant,
    wall: OffsetDateTime,
    /// The time by the steady clock when this was started, or when the wall clock was last set.
    since: Instant,
}

/// The result of reading both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// How long the wall clock has run evenly: since it was set, or since the process began to watch it.
    pub even_for: Duration,
    /// The amount by which it was set since the last reading: forward, or back if negative.
    pub set_by: Option<time::Duration>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::at(Instant::now(), OffsetDateTime::now_utc())
    }
}

impl Clock {
    fn at(steady: Instant, wall: OffsetDateTime) -> Self {
        Self(Mutex::new(Reading { steady, wall, since: steady }))
    }

    /// Reads both clocks. Each setting of the wall clock is reported once.
    pub(crate) fn look(&self) -> Look {
        self.compare(Instant::now(), OffsetDateTime::now_utc())
    }

    fn compare(&self, steady: Instant, wall: OffsetDateTime) -> Look {
        // The reading is whole after every statement under this lock.
        let mut reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = steady.saturating_duration_since(reading.steady);
        let apart = (wall - reading.wall) - time::Duration::try_from(passed).unwrap_or(time::Duration::MAX);
        let set_by = (apart.abs() > TOLERANCE).then_some(apart);
        let since = if set_by.is_some() { steady } else { reading.since };
        *reading = Reading { steady, wall, since };
        Look { even_for: steady.saturating_duration_since(since), set_by }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_once_and_one_that_drifts_is_not() {
        let (start, epoch) = (Instant::now(), OffsetDateTime::UNIX_EPOCH);
        let clock = Clock::at(start, epoch);
        let minute = Duration::from_secs(60);
        let look = |minutes: u32, wall: i64| {
            clock.compare(start + minute * minutes, epoch + time::Duration::seconds(wall))
        };
        assert_eq!(look(1, 60), Look { even_for: minute, set_by: None });
        assert_eq!(look(2, 179), Look { even_for: 2 * minute, set_by: None });
        let year = 365 * 86_400;
        let set = look(3, 180 + year);
        assert_eq!((set.even_for, set.set_by.unwrap().whole_days()), (Duration::ZERO, 364));
        assert_eq!(look(4, 240 + year), Look { even_for: minute, set_by: None });
        let back = look(5, 300);
        assert!(back.set_by.unwrap() < time::Duration::days(-364), "{back:?}");
        assert_eq!(look(6, 360), Look { even_for: minute, set_by: None });
    }
}
