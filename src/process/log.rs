//! The log: the caller puts a line into a bounded queue, and a separate thread writes it to the standard error.
//!
//! The standard error may be a pipe that nobody reads, a terminal that was stopped, or a full disk. None of them may
//! hold up a request, so a line that does not fit into the queue is dropped and counted. The log reports how many lines
//! were dropped as soon as it can be written again, and `volhost status` reports it at once.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::escaped;

/// The most bytes of lines that may wait. A service logs some hundred bytes for each operation.
const QUEUE_BYTES: usize = 1 << 20;
/// The longest line in bytes. A line may contain text that a client sent.
const LINE_BYTES: usize = 8 << 10;
/// How long the end of the process waits for unwritten lines.
const FLUSH: Duration = Duration::from_secs(1);
/// How long to wait before a write is tried again for which the output has no room.
const RETRY: Duration = Duration::from_millis(20);

/// The queue of this process: the crate `log` has only one logger, too.
static QUEUE: Queue = Queue::new();

/// The running log. When dropped, it waits a moment for unwritten lines.
#[derive(Debug)]
pub(crate) struct Log(());

impl Log {
    /// Starts to log: level `info` unless `RUST_LOG` says otherwise, without times where the journal of systemd adds its
    /// own. Panics are logged, too.
    ///
    /// # Errors
    /// If the thread that writes cannot be started.
    pub(crate) fn start() -> io::Result<Self> {
        std::thread::Builder::new().name("log".into()).spawn(|| QUEUE.write_to(Stderr))?;
        // This fails only if a log was set up before; that one then stays.
        let _ = builder().target(env_logger::Target::Pipe(Box::new(Lines))).try_init();
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("without a name");
            log::error!("thread {name}: {}", panic.to_string().replace('\n', " "));
            let backtrace = std::backtrace::Backtrace::capture();
            if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
                backtrace.to_string().lines().for_each(|line| log::error!("{line}"));
            }
        }));
        Ok(Self(()))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        QUEUE.flush(FLUSH);
    }
}

/// Returns how many lines were dropped since the start, because the output did not take them in time or at all.
pub(crate) fn dropped() -> u64 {
    QUEUE.waiting().dropped
}

fn builder() -> env_logger::Builder {
    let environment = env_logger::Env::default().default_filter_or("info");
    let mut builder = env_logger::Builder::from_env(environment);
    let style = std::env::var(env_logger::DEFAULT_WRITE_STYLE_ENV).unwrap_or_default();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    // env_logger takes a pipe for a non-terminal, but ours leads to a terminal.
    if matches!(&*style, "" | "auto") && !plain && io::stderr().is_terminal() {
        builder.write_style(env_logger::WriteStyle::Always);
    }
    let dated = std::env::var_os("JOURNAL_STREAM").is_none();
    builder.format(move |out, record| {
        let level = record.level();
        let style = out.default_level_style(level);
        let time = if dated { format!("{} ", out.timestamp_seconds()) } else { String::new() };
        let message = message(record.args().to_string());
        writeln!(out, "[{time}{style}{level:<5}{style:#}] {message}")
    });
    builder
}

/// Returns a record's text as its line shows it: of bounded length, and without characters that end the line or control
/// a terminal.
fn message(mut text: String) -> String {
    if text.len() > LINE_BYTES {
        let end = (0..=LINE_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    match escaped(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(escaped) => escaped,
    }
}

/// Lines that wait to be written.
#[derive(Debug)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug)]
struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// True while a line is being written that is no longer in the queue.
    writing: bool,
    /// The number of lines that were dropped since the start.
    dropped: u64,
    /// The number of dropped lines that the log has reported.
    told: u64,
}

impl Queue {
    const fn new() -> Self {
        let waiting = Waiting { lines: VecDeque::new(), bytes: 0, writing: false, dropped: 0, told: 0 };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // The queue is whole after every statement under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, or drops it if there is no room.
    fn push(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        if waiting.bytes + line.len() > QUEUE_BYTES {
            waiting.dropped += 1;
            return;
        }
        waiting.bytes += line.len();
        waiting.lines.push_back(line.to_vec());
        drop(waiting);
        self.changed.notify_all();
    }

    /// Writes every line that comes, for ever.
    fn write_to(&self, mut output: impl Write) {
        let mut torn = false;
        loop {
            let line = self.next();
            let written = write(&mut output, &line, &mut torn);
            if let Some(missing) = self.written(written) {
                log::error!("{missing} lines of this log were dropped: they were not taken in time");
            }
        }
    }

    /// Waits for a line.
    fn next(&self) -> Vec<u8> {
        let mut waiting = self.waiting();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes -= line.len();
                waiting.writing = true;
                return line;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes whether a line was written. Returns how many lines are missing if that is to be reported now: the output
    /// takes lines again and has taken every line that waited.
    fn written(&self, written: bool) -> Option<u64> {
        let mut waiting = self.waiting();
        waiting.writing = false;
        waiting.dropped += u64::from(!written);
        let missing = waiting.dropped - waiting.told;
        let tell = written && waiting.lines.is_empty() && missing > 0;
        if tell {
            waiting.told = waiting.dropped;
        }
        drop(waiting);
        self.changed.notify_all();
        tell.then_some(missing)
    }

    /// Waits until all lines are written, but no longer than `patience`.
    fn flush(&self, patience: Duration) {
        let unwritten = |waiting: &mut Waiting| waiting.writing || !waiting.lines.is_empty();
        drop(self.changed.wait_timeout_while(self.waiting(), patience, unwritten));
    }
}

/// Writes a whole line, however long the output takes. Returns false if the output refuses it; `torn` is set if a part
/// of it was written.
fn write(output: &mut impl Write, line: &[u8], torn: &mut bool) -> bool {
    let end_of_torn: &[u8] = if *torn { b"\n" } else { b"" };
    for part in [end_of_torn, line] {
        let mut rest = part;
        while !rest.is_empty() {
            match output.write(rest) {
                Ok(0) => return false,
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody made the terminal or pipe that we share with them non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
                Err(_) => {
                    *torn |= rest.len() < part.len();
                    return false;
                }
            }
        }
        *torn = false;
    }
    true
}

/// Takes the lines from the formatter, each in one call.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The standard error without the lock of the standard library: code that prints an error as the program ends must not
/// wait for a log line that is stuck.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// The environment file of the service, as its unit reads it.
    const SAMPLE: &str = include_str!("../../etc/default/volhost");

    #[test]
    fn the_sample_environment_names_what_is_read_with_values_that_are_understood() {
        let mut named = Vec::new();
        for line in SAMPLE.lines() {
            // A setting may be commented out; a sentence has spaces.
            let setting = line.strip_prefix('#').unwrap_or(line);
            let Some((name, value)) = setting.split_once('=').filter(|_| !setting.contains(' ')) else {
                assert!(
                    line.is_empty() || line.starts_with('#'),
                    "{line:?} is neither a setting nor a comment"
                );
                continue;
            };
            let understood = match name {
                env_logger::DEFAULT_FILTER_ENV => value.parse::<log::LevelFilter>().is_ok(),
                env_logger::DEFAULT_WRITE_STYLE_ENV => ["auto", "always", "never"].contains(&value),
                _ => panic!("nothing reads {name}"),
            };
            assert!(understood, "{line}");
            named.push(name);
        }
        assert_eq!(named, [env_logger::DEFAULT_FILTER_ENV, env_logger::DEFAULT_WRITE_STYLE_ENV]);
    }

    #[test]
    fn no_message_forges_a_line_or_speaks_to_a_terminal() {
        let forged = "a path\n[2026-01-01T00:00:00Z INFO ] removed\u{9b}2J\x1b[1m\u{2028}\u{202e}x\t";
        let shown = "a path\\n[2026-01-01T00:00:00Z INFO ] removed\\u{9b}2J\\u{1b}[1m\\u{2028}\\u{202e}x\\t";
        assert_eq!(message(forged.to_owned()), shown);
        assert_eq!(
            message("plain, ünïcode, \"quoted\" \\ and 漢字".to_owned()),
            "plain, ünïcode, \"quoted\" \\ and 漢字"
        );
        let long = message("ü".repeat(LINE_BYTES));
        assert!(long.len() <= LINE_BYTES + '…'.len_utf8() && long.ends_with("ü…"), "{}", long.len());
    }

    /// An output for which the test answers every write.
    struct Scripted(Receiver<io::Result<usize>>, Sender<Vec<u8>>);

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // After the test has ended, the thread hangs here.
            let answer = self.0.recv().map_err(io::Error::other).and_then(|answer| answer);
            let count = answer?.min(bytes.len());
            self.1.send(bytes[..count].to_vec()).map_err(io::Error::other)?;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_do_not_fit_are_counted_and_nobody_waits() {
        let queue = Queue::new();
        let line = [b'x'; 1024];
        for _ in 0..QUEUE_BYTES / line.len() + 5 {
            queue.push(&line);
        }
        assert_eq!(queue.waiting().dropped, 5);
        queue.flush(Duration::from_millis(1));
        // The output takes every line that waited; only then the missing lines are reported, once.
        let mut told = Vec::new();
        while !queue.waiting().lines.is_empty() {
            queue.next();
            told.extend(queue.written(true));
        }
        assert_eq!(told, [5]);
        queue.push(&line);
        queue.next();
        assert_eq!(queue.written(false), None, "an output that refuses a line cannot be told either");
        queue.push(&line);
        queue.next();
        assert_eq!(queue.written(true), Some(1));
        assert_eq!(queue.waiting().dropped, 6);
        queue.flush(Duration::from_secs(3600));
    }

    #[test]
    fn a_line_is_written_whole_or_its_end_is_made_up_for() {
        let (queue, (answers, script), (sender, written)) = (Arc::new(Queue::new()), channel(), channel());
        let writing = Arc::clone(&queue);
        std::thread::spawn(move || writing.write_to(Scripted(script, sender)));
        let full = || Err(io::ErrorKind::StorageFull.into());
        for answer in
            [Ok(2), Err(io::ErrorKind::Interrupted.into()), Err(io::ErrorKind::WouldBlock.into()), Ok(99)]
        {
            answers.send(answer).unwrap();
        }
        queue.push(b"one\n");
        assert_eq!([written.recv().unwrap(), written.recv().unwrap()].concat(), b"one\n");
        for answer in [Ok(1), full(), full(), Ok(1), Ok(99)] {
            answers.send(answer).unwrap();
        }
        for line in ["torn\n", "lost\n", "three\n"] {
            queue.push(line.as_bytes());
        }
        let all: Vec<u8> = (0..3).flat_map(|_| written.recv().unwrap()).collect();
        assert_eq!(String::from_utf8_lossy(&all), "t\nthree\n");
        queue.flush(Duration::from_secs(3600));
        assert_eq!(queue.waiting().dropped, 2);
    }
}
