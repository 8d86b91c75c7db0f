//! The messages to systemd, and what it hands over: readiness, reloads, the watchdog's deadline, listening sockets.
//!
//! Without systemd everything here does nothing: no environment variable, no message. A message that cannot be sent
//! is logged and never a reason to stop serving; a socket that was handed over and cannot be taken is one not to start.
//!
//! systemd 252 (Debian 12) knows neither `Type=notify-reload` nor anything newer; what is sent is understood by it and
//! by its successors alike.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::error::escaped;

/// The sockets and the deadline that systemd handed over at the start.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    /// Listening sockets, in the order of the socket units; closed by those who do not take them.
    pub sockets: Vec<OwnedFd>,
    /// The service is killed if it does not call [`alive`] for so long; `None` if it never is.
    pub watchdog: Option<Duration>,
}

impl Inheritance {
    /// Takes what systemd left in the environment, and removes it from there, so that no process started later takes
    /// it for its own; but for where messages go, which is needed to the end. To be called once, by a program that has
    /// one thread only.
    ///
    /// # Errors
    /// When the variables of socket activation mean this process and cannot be understood, or name no open files.
    #[expect(unsafe_code, reason = "the environment is changed, and numbers become files, in no other way")]
    pub(crate) fn take() -> io::Result<Self> {
        // Most programs that call this were not started by systemd, tests among them.
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

/// Tells that the service serves: units that are ordered after it may start.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&escaped(status))]);
}

/// Tells that a reload begins; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => log::debug!("systemd is not told of the reload, there is no clock: {error}"),
    }
}

/// Tells that the service drains and ends.
pub(crate) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(&escaped(status)), NotifyState::Watchdog]);
}

/// Gives a sign of life: the watchdog's time begins again.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// One line for `systemctl status`.
pub(crate) fn status(text: &str) {
    tell(&[NotifyState::Status(&escaped(text))]);
}

/// A message is lines of assignments: a text with a newline of its own could say anything, which is why it is escaped.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("systemd could not be told {states:?}: {error}");
    }
}
