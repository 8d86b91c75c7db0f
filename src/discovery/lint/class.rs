//! The classification of faults: their severity, their code for programs, the remedy in their text, and the
//! moment at which an engine meets them.

use super::fault::Fault;

/// The severity of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The plugin works, but not as the file suggests.
    Warning,
    /// The plugin does not work, or its protection does not.
    Error,
}

impl Severity {
    /// Returns the word for it, for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl Fault {
    /// Returns the severity of the fault.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.classified().0
    }

    /// Returns the fault's code, for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.classified().1
    }

    /// Returns the cause and the remedy: the remedy is the part of a fault's text after its last semicolon.
    #[must_use]
    pub fn cause_and_remedy(&self) -> (String, Option<String>) {
        let text = self.to_string();
        match text.rsplit_once("; ") {
            Some((cause, remedy)) => (cause.to_owned(), Some(remedy.to_owned())),
            None => (text, None),
        }
    }

    /// Returns true if the fault is about the TLS files that a spec file names, and not about the spec file
    /// itself.
    #[must_use]
    pub fn is_of_tls_files(&self) -> bool {
        self.is_before_any_call()
            || matches!(
                self,
                Self::Expired { .. } | Self::ExpiresSoon { .. } | Self::NotYet { .. } | Self::Exposed { .. }
            )
    }

    /// Returns true if an engine fails because of it before it calls anybody.
    #[must_use]
    pub fn is_before_any_call(&self) -> bool {
        matches!(
            self,
            Self::HalfAPair
                | Self::NoFile { .. }
                | Self::NoCertificate { .. }
                | Self::NoKey { .. }
                | Self::Mismatch { .. }
        )
    }

    fn classified(&self) -> (Severity, &'static str) {
        use Severity::{Error, Warning};
        match self {
            Self::NoDirectory { .. } => (Error, "no-directory"),
            Self::Shadowed { .. } => (Warning, "shadowed"),
            Self::Dangling => (Warning, "dangling"),
            Self::NotASocket => (Warning, "not-a-socket"),
            Self::SocketElsewhere => (Warning, "socket-elsewhere"),
            Self::Unreadable { .. } => (Error, "unreadable"),
            Self::BadJson { .. } => (Error, "bad-json"),
            Self::Trailing => (Warning, "trailing"),
            Self::UnknownField { .. } => (Warning, "unknown-field"),
            Self::OtherName { .. } => (Warning, "other-name"),
            Self::BadAddress { .. } => (Error, "bad-address"),
            Self::WrongScheme { .. } => (Error, "wrong-scheme"),
            Self::NoPort { .. } => (Warning, "no-port"),
            Self::Ignored { .. } => (Warning, "ignored"),
            Self::TlsOff { .. } => (Error, "tls-off"),
            Self::TlsOnSocket => (Warning, "tls-on-socket"),
            Self::Plain { .. } => (Warning, "plain"),
            Self::UnverifiedLine | Self::UnverifiedNoCa | Self::UnverifiedAsked => (Error, "unverified"),
            Self::NoClientCertificate => (Warning, "no-client-certificate"),
            Self::Relative { .. } => (Warning, "relative"),
            Self::HalfAPair => (Error, "half-a-pair"),
            Self::NoFile { .. } => (Error, "no-file"),
            Self::NoCertificate { .. } => (Error, "no-certificate"),
            Self::NoKey { .. } => (Error, "no-key"),
            Self::Expired { .. } => (Error, "expired"),
            Self::ExpiresSoon { .. } => (Warning, "expires-soon"),
            Self::NotYet { .. } => (Error, "not-yet-valid"),
            Self::Mismatch { .. } => (Error, "mismatch"),
            Self::Exposed { .. } => (Error, "exposed"),
            Self::Unresolved { .. } => (Error, "unresolved"),
            Self::Unreachable { .. } => (Error, "unreachable"),
            Self::NotVerified { .. } => (Error, "not-verified"),
            Self::OutOfDate { .. } => (Error, "out-of-date"),
            Self::Refused { .. } => (Error, "refused"),
            Self::Broken { .. } => (Error, "broken"),
            Self::Silent { .. } => (Error, "silent"),
            Self::NoPlugin { .. } => (Error, "no-plugin"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_stands_behind_the_last_semicolon() {
        let address = "https://h:1".to_owned();
        for (fault, cause, remedy) in [
            (
                Fault::NotVerified { address: address.clone(), why: "not for h; only for i".to_owned() },
                "the server at https://h:1 is not verified by CAFile: not for h; only for i",
                "give it a certificate for that name, or name its CA",
            ),
            (
                Fault::Exposed { path: "/k".into(), mode: 0o644 },
                "KeyFile /k can be read by others than its owner (mode 0644), who can then pass for this host",
                "`chmod 600` it",
            ),
            (
                Fault::BadAddress { address, why: "it is empty" },
                "an engine cannot use the address \"https://h:1\": it is empty",
                "it takes https://HOST:PORT, tcp://HOST:PORT or unix:///PATH",
            ),
        ] {
            assert_eq!(fault.cause_and_remedy(), (cause.to_owned(), Some(remedy.to_owned())));
        }
    }
}
