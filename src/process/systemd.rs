//! The messages to systemd, and what systemd hands over: readiness, reloads, the watchdog's deadline, listening
//! sockets.
//!
//! Without systemd nothing here does anything: there is no environment variable, and no message. A message that cannot
//! be sent is logged and never a reason to stop serving; a socket that was handed over but cannot be taken is a reason
//! not to start.
//!
//! systemd 252 (Debian 12) knows neither `Type=notify-reload` nor anything newer; it understands every message sent
//! here, and so do its successors.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::escaped;

/// The sockets and the deadline that systemd handed over at the start.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    /// Listening sockets, in the order of the socket units. A caller that does not use them must close them.
    pub sockets: Vec<OwnedFd>,
    /// The time after which systemd kills the service unless it calls [`alive`]; `None` if it never does.
    pub watchdog: Option<Duration>,
}

impl Inheritance {
    /// Takes the values that systemd left in the environment, and removes them from there, so that no process started
    /// later takes them for its own. The address for messages stays, because it is needed to the end. Must be called
    /// once, by a program with a single thread.
    ///
    /// # Errors
    /// If the variables of socket activation mean this process but cannot be understood, or name no open files.
    #[expect(unsafe_code, reason = "the environment is changed, and numbers become files, in no other way")]
    pub(crate) fn take() -> io::Result<Self> {
        // Most programs that call this were not started by systemd, among them tests.
        if std::env::var_os("LISTEN_PID").is_none() && std::env::var_os("WATCHDOG_USEC").is_none() {
            return Ok(Self::default());
        }
        // SAFETY: changing the environment is unsound beside another thread that reads it. `serve` calls this before
        // it starts any.
        let (sockets, watchdog) =
            unsafe { (sd_notify::listen_fds_and_unset_env()?, sd_notify::watchdog_enabled_and_unset_env()) };
        // SAFETY: the variables said, for this very process, that these files were opened for it, and each was found
        // open when it was marked to be closed on exec. The variables are gone, so nobody takes them twice, and this
        // is done before anything else could have been given one of the numbers.
        let sockets = sockets.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect();
        Ok(Self { sockets, watchdog })
    }
}

/// Reports that the service serves: units that are ordered after it may start.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&escaped(status))]);
}

/// Reports that a reload begins; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::debug!("systemd is not told of the reload, there is no clock: {error}"),
    }
}

/// Reports that the service drains and ends.
pub(crate) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(&escaped(status)), NotifyState::Watchdog]);
}

/// Gives a sign of life: the watchdog's time starts again.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Sets the line for `systemctl status`.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(&escaped(text))]);
}

/// Sends a message. It consists of lines of assignments, so a newline in a text is escaped: it could say anything.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("systemd could not be told {states:?}: {error}");
    }
}
