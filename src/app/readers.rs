//! Reads of files, each part in its own thread and at most one read of a part at a time. So no part waits for the files
//! of another, and a read that hangs leaves only one thread behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::config::watch::Unit;
use crate::files::{self, READ_TIMEOUT, ReaderThread, Unfinished};

/// A part that is read separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The files of a unit of the reload.
    Unit(Unit),
    /// The spec file.
    Spec,
}

impl Part {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Unit(unit) => unit.as_str(),
            Self::Spec => "spec file",
        }
    }
}

/// How to read a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ReadMode {
    /// True to accept what would otherwise be refused.
    pub(super) forced: bool,
    /// True to read the certificates together with the list of revocations.
    pub(super) with_list: bool,
    /// True to make only missing files again.
    pub(super) mend: bool,
}

impl ReadMode {
    fn and(self, other: Option<Self>) -> Self {
        other.map_or(self, |other| Self {
            forced: self.forced || other.forced,
            with_list: self.with_list || other.with_list,
            mend: self.mend && other.mend,
        })
    }
}

/// The parts that are being read, and the callers that wait for them. `D` is what is read.
pub(super) struct ReadScheduler<D> {
    parts: BTreeMap<Part, PartState>,
    waiters: Vec<Waiter>,
    sender: mpsc::UnboundedSender<(Part, Option<D>)>,
    timeout: Duration,
}

/// The reads of one part, numbered from one.
#[derive(Debug, Default)]
struct PartState {
    begun: u64,
    done: u64,
    running: Option<Running>,
    /// Set if the part changed after the read under way began.
    again: Option<ReadMode>,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    how: ReadMode,
    thread: ReaderThread,
    given_up: bool,
}

/// A caller that waits until these reads are done.
struct Waiter {
    needs: BTreeMap<Part, u64>,
    told: oneshot::Sender<()>,
}

/// The answer to a request to read a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// The caller must begin to read it, by [`ReadScheduler::begin`].
    Begin(ReadMode),
    /// It will be read after the read under way, which may hang.
    Queued,
}

/// Sends the result of a read when it is dropped; `None` after a panic.
struct Sending<D> {
    part: Part,
    read: Option<D>,
    sender: mpsc::UnboundedSender<(Part, Option<D>)>,
}

impl<D> Drop for Sending<D> {
    fn drop(&mut self) {
        // Nobody listens any more if the process is ending.
        let _ = self.sender.send((self.part, self.read.take()));
    }
}

impl<D: Send + 'static> ReadScheduler<D> {
    /// Returns a scheduler without reads, and the receiver of their results.
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<(Part, Option<D>)>) {
        Self::with_timeout(READ_TIMEOUT)
    }

    fn with_timeout(timeout: Duration) -> (Self, mpsc::UnboundedReceiver<(Part, Option<D>)>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { parts: BTreeMap::new(), waiters: Vec::new(), sender, timeout }, receiver)
    }

    /// Asks for a part to be read from now on.
    pub(super) fn ask(&mut self, part: Part, how: ReadMode) -> Admission {
        let state = self.parts.entry(part).or_default();
        match &state.running {
            None => Admission::Begin(how),
            Some(_) => {
                state.again = Some(how.and(state.again));
                Admission::Queued
            }
        }
    }

    /// Begins to read a part.
    pub(super) fn begin(
        &mut self,
        part: Part,
        how: ReadMode,
        read: impl FnOnce() -> D + Send + 'static,
    ) -> Result<(), Unfinished> {
        let state = self.parts.entry(part).or_default();
        state.begun += 1;
        let sender = self.sender.clone();
        let thread = files::start(&format!("read-{}", part.as_str()), move || {
            let mut sending = Sending { part, read: None, sender };
            sending.read = Some(read());
        });
        match thread {
            Ok(thread) => {
                state.running = Some(Running { since: Instant::now(), how, thread, given_up: false });
                Ok(())
            }
            Err(error) => {
                state.done = state.begun;
                Err(error)
            }
        }
    }

    /// Notes that the thread of a part has ended. Returns how it was to read, if anybody still wants the result.
    pub(super) fn ended(&mut self, part: Part) -> Option<ReadMode> {
        let state = self.parts.entry(part).or_default();
        let running = state.running.take()?;
        state.done = state.begun;
        if running.given_up {
            // Its result may be out of date by now.
            state.again = Some(running.how.and(state.again));
            return None;
        }
        Some(running.how)
    }

    /// Returns how a part must be read once more; `None` if it need not be.
    pub(super) fn again(&mut self, part: Part) -> Option<ReadMode> {
        let state = self.parts.entry(part).or_default();
        if state.running.is_none() { state.again.take() } else { None }
    }

    /// Returns the time at which the next read has taken too long.
    pub(super) fn due(&self) -> Option<Instant> {
        let running = self.parts.values().filter_map(|state| state.running.as_ref());
        running.filter(|running| !running.given_up).map(|running| running.since + self.timeout).min()
    }

    /// Gives up the reads that have taken too long by now.
    pub(super) fn give_up(&mut self) -> Vec<(Part, Unfinished)> {
        let mut given_up = Vec::new();
        for (part, state) in &mut self.parts {
            if let Some(running) = &mut state.running
                && !running.given_up
                && running.since.elapsed() >= self.timeout
            {
                running.given_up = true;
                // The read after this one would not begin either: nobody waits for it.
                state.begun += 1;
                state.done = state.begun;
                given_up.push((*part, running.thread.unfinished()));
            }
        }
        given_up
    }

    /// Returns true if a part was given up and its thread has not ended.
    pub(super) fn hangs(&self, part: Part) -> bool {
        self.running(part).is_some_and(|running| running.given_up)
    }

    /// Returns true if no read of a part is under way.
    pub(super) fn is_idle(&self, part: Part) -> bool {
        self.running(part).is_none()
    }

    /// Returns true while units are read whose results somebody may still want.
    pub(super) fn is_busy(&self) -> bool {
        let busy = |part: Part| self.running(part).is_some_and(|running| !running.given_up);
        Unit::ALL.into_iter().any(|unit| busy(Part::Unit(unit)))
    }

    fn running(&self, part: Part) -> Option<&Running> {
        self.parts.get(&part)?.running.as_ref()
    }

    /// Returns the number of the first read of a part that does not begin before now: the one that was just begun, or
    /// the one after that.
    fn next(&self, part: Part, just_begun: bool) -> u64 {
        self.parts.get(&part).map_or(0, |state| {
            let waits = state.again.is_some() && !just_begun && !self.hangs(part);
            state.begun + u64::from(waits)
        })
    }

    /// Registers a caller that is to be told once these parts have been read, as they were requested a moment ago.
    pub(super) fn wait(&mut self, parts: &[(Part, Admission)], told: oneshot::Sender<()>) {
        let needs =
            parts.iter().map(|(part, ask)| (*part, self.next(*part, matches!(ask, Admission::Begin(_)))));
        let needs = needs.collect();
        self.waiters.push(Waiter { needs, told });
    }

    /// Makes the callers that wait for `part`, whose read has just ended, wait for `next`, which was just requested.
    pub(super) fn wait_on(&mut self, part: Part, next: Part, ask: Admission) {
        let done = self.parts.get(&part).map_or(0, |state| state.done);
        let number = self.next(next, matches!(ask, Admission::Begin(_)));
        for waiter in &mut self.waiters {
            if waiter.needs.get(&part).is_some_and(|needed| *needed <= done) {
                let needed = waiter.needs.entry(next).or_default();
                *needed = number.max(*needed);
            }
        }
    }

    /// Tells the callers whose reads are all done by now.
    pub(super) fn tell(&mut self) {
        let parts = &self.parts;
        let is_done =
            |(part, needed): (&Part, &u64)| parts.get(part).is_some_and(|state| state.done >= *needed);
        for waiter in self.waiters.extract_if(.., |waiter| waiter.needs.iter().all(is_done)) {
            // The caller may have given up waiting.
            let _ = waiter.told.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;

    const CRL: Part = Part::Unit(Unit::Crl);
    const TLS: Part = Part::Unit(Unit::Tls);

    fn is_told(told: &mut oneshot::Receiver<()>) -> bool {
        told.try_recv().is_ok()
    }

    #[tokio::test]
    async fn one_read_at_a_time_and_who_asks_meanwhile_waits_for_the_next() {
        let (mut scheduler, mut read) = ReadScheduler::new();
        let (go_on, may_go_on) = std_mpsc::channel::<()>();
        let how = ReadMode::default();
        assert_eq!(scheduler.ask(CRL, how), Admission::Begin(how));
        scheduler.begin(CRL, how, move || may_go_on.recv().is_ok()).unwrap();
        let (told, mut first) = oneshot::channel();
        scheduler.wait(&[(CRL, Admission::Begin(how))], told);
        let forced = ReadMode { forced: true, ..how };
        assert_eq!(scheduler.ask(CRL, forced), Admission::Queued);
        let (told, mut second) = oneshot::channel();
        scheduler.wait(&[(CRL, Admission::Queued)], told);
        // Another part is not held up.
        scheduler.begin(TLS, how, || true).unwrap();
        assert_eq!(read.recv().await, Some((TLS, Some(true))));
        assert_eq!(scheduler.ended(TLS), Some(how));
        scheduler.tell();
        assert!(!is_told(&mut first) && scheduler.is_busy());

        go_on.send(()).unwrap();
        assert_eq!(read.recv().await, Some((CRL, Some(true))));
        assert_eq!(scheduler.ended(CRL), Some(how));
        scheduler.tell();
        assert!(is_told(&mut first) && !is_told(&mut second));
        assert_eq!(scheduler.again(CRL), Some(forced));
        scheduler.begin(CRL, forced, || panic!("as a test")).unwrap();
        assert_eq!(read.recv().await, Some((CRL, None)));
        assert_eq!(scheduler.ended(CRL), Some(forced));
        // This read leads to another one, and the same caller waits for both.
        scheduler.begin(TLS, how, || true).unwrap();
        scheduler.wait_on(CRL, TLS, Admission::Begin(how));
        scheduler.tell();
        assert!(!is_told(&mut second));
        read.recv().await.unwrap();
        scheduler.ended(TLS);
        scheduler.tell();
        assert!(is_told(&mut second) && !scheduler.is_busy());
    }

    #[tokio::test]
    async fn a_read_that_hangs_is_given_up_by_all_who_wait_and_repeated_when_it_ends() {
        let (mut scheduler, mut read) = ReadScheduler::with_timeout(Duration::ZERO);
        let (go_on, may_go_on) = std_mpsc::channel::<()>();
        let how = ReadMode::default();
        scheduler.begin(CRL, how, move || may_go_on.recv().is_ok()).unwrap();
        let (told, mut first) = oneshot::channel();
        scheduler.wait(&[(CRL, Admission::Begin(how))], told);
        let ask = scheduler.ask(CRL, how);
        let (told, mut second) = oneshot::channel();
        scheduler.wait(&[(CRL, ask)], told);
        assert!(scheduler.due().is_some());
        assert_eq!(scheduler.give_up().len(), 1);
        scheduler.tell();
        assert!(is_told(&mut first) && is_told(&mut second));
        assert!(scheduler.hangs(CRL) && !scheduler.is_busy() && scheduler.due().is_none());
        // Nobody waits for it from now on, and no second thread is started.
        let ask = scheduler.ask(CRL, ReadMode { forced: true, ..how });
        assert_eq!(ask, Admission::Queued);
        let (told, mut third) = oneshot::channel();
        scheduler.wait(&[(CRL, ask)], told);
        scheduler.tell();
        assert!(is_told(&mut third));

        go_on.send(()).unwrap();
        assert_eq!(read.recv().await, Some((CRL, Some(true))));
        assert_eq!(scheduler.ended(CRL), None, "what it read may be old");
        assert_eq!(scheduler.again(CRL), Some(ReadMode { forced: true, ..how }));
        scheduler.begin(CRL, how, || true).unwrap();
        let (told, mut fourth) = oneshot::channel();
        scheduler.wait(&[(CRL, Admission::Begin(how))], told);
        scheduler.tell();
        assert!(!is_told(&mut fourth));
        read.recv().await.unwrap();
        scheduler.ended(CRL);
        scheduler.tell();
        assert!(is_told(&mut fourth));
    }
}
