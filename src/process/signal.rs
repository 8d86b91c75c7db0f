//! The signals that the process gets.
//!
//! A separate thread receives them, so that they are noticed while every worker of the runtime is busy. A second
//! SIGTERM or SIGINT ends the process inside the signal handler itself, where nothing can be stuck.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

use crate::error::exit;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGTERM or SIGINT: finish what is under way, and end.
    Terminate,
    /// SIGHUP: read the configuration and every file it names again.
    Reload,
}

/// Turns a write past the limit of a file's size (`ulimit -f`, LimitFSIZE) into an error (EFBIG) instead of the end of
/// the process.
///
/// # Errors
/// If the handler cannot be installed.
pub fn survive_file_size_limit() -> io::Result<()> {
    // A handler rather than an ignored signal: programs that this one starts get the default back.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map(drop)
}

/// A reload that SIGHUP asked for before anybody could do it.
#[derive(Debug)]
pub(crate) struct EarlyReload(Arc<AtomicBool>);

/// Keeps SIGHUP from ending a service that is still starting, until [`listen`] takes over. SIGTERM and SIGINT end it.
///
/// # Errors
/// If the handler cannot be installed.
pub(crate) fn survive_reload() -> io::Result<EarlyReload> {
    let asked = Arc::default();
    signal_hook::flag::register(SIGHUP, Arc::clone(&asked))?;
    Ok(EarlyReload(asked))
}

/// Begins to listen for signals, each of which becomes an event on the returned channel.
///
/// From the first SIGTERM or SIGINT on, the next one ends the process at once with [`exit::FAILED`], because the work
/// under way was not finished. Other sources of events, such as watched files, use the returned sender.
///
/// # Errors
/// If the handlers cannot be installed or the thread cannot be started.
pub(crate) fn listen<E: From<Signal> + Send + 'static>(
    early: &EarlyReload,
) -> io::Result<(mpsc::UnboundedSender<E>, mpsc::UnboundedReceiver<E>)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let terminating = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: the flag is checked before this very signal sets it.
        let status = i32::from(exit::FAILED);
        signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&terminating))?;
        signal_hook::flag::register(signal, Arc::clone(&terminating))?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    if early.0.load(Ordering::Acquire) {
        // We hold the receiver, so this cannot fail.
        let _ = sender.send(Signal::Reload.into());
    }
    let events = sender.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let asked = if signal == SIGHUP { Signal::Reload } else { Signal::Terminate };
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            log::info!("{name} received");
            if events.send(asked.into()).is_err() {
                // Nobody listens any more: the process is ending.
                return;
            }
        }
    })?;
    Ok((sender, receiver))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Set for a copy of this test program that signals are to end.
    const CHILD: &str = "VOLHOST_TEST_SIGNAL_CHILD";

    #[test]
    fn signals_become_events_and_a_second_one_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            return child();
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "--test-threads=1"])
            .arg("process::signal::tests::signals_become_events_and_a_second_one_ends_the_process")
            .env(CHILD, "1")
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("events were right"), "{said}");
        assert_eq!(output.status.code(), Some(i32::from(exit::FAILED)), "{said}");
        assert!(!said.contains("survived"), "{said}");
    }

    fn child() {
        survive_file_size_limit().unwrap();
        signal_hook::low_level::raise(SIGXFSZ).unwrap();
        let early = survive_reload().unwrap();
        signal_hook::low_level::raise(SIGHUP).unwrap();
        let (_sender, mut events) = listen::<Signal>(&early).unwrap();
        assert_eq!(events.blocking_recv(), Some(Signal::Reload), "it was asked for before");
        for (signal, event) in
            [(SIGHUP, Signal::Reload), (SIGHUP, Signal::Reload), (SIGTERM, Signal::Terminate)]
        {
            signal_hook::low_level::raise(signal).unwrap();
            assert_eq!(events.blocking_recv(), Some(event));
        }
        println!("events were right");
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert_eq!(events.blocking_recv(), Some(Signal::Reload), "a reload never ends the process");
        signal_hook::low_level::raise(SIGINT).unwrap();
        std::thread::sleep(Duration::from_secs(20));
        println!("survived");
    }
}
