//! The errors of calls to a member, by what they say about the effect of the call.

use std::error::Error as _;
use std::time::{Duration, Instant};

use etcd_client::Error;
use tonic::Code;

/// Why a call brought no usable answer.
#[derive(Debug, Clone)]
pub(crate) struct CallError {
    pub(crate) kind: CallErrorKind,
    /// The member, and what went wrong.
    pub(crate) text: String,
    /// When the call was made.
    pub(crate) asked: Instant,
}

/// The cause of a failed call. It decides if the request may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallErrorKind {
    /// The cluster refused: nothing was done, and another member says the same.
    Refused,
    /// The cluster takes no writes until an operator acts: it is out of space, or its members differ. Nothing will be
    /// done; nothing was done, unless this very call exhausted the space.
    Full,
    /// The user or the password is not accepted: nothing was done. They may just have been changed.
    LockedOut,
    /// The lease does not exist: nothing was done.
    LeaseGone,
    /// The revision asked for is older than the cluster's last compaction.
    Compacted,
    /// The revision asked for is later than the cluster's latest.
    Ahead,
    /// Nobody listens at the address, or the token became invalid because a user or role was changed: nothing was done,
    /// and another client may succeed.
    Unsent,
    /// The TLS handshake failed over a certificate: nothing was asked.
    Certificates,
    /// The outcome is unknown: it may have been done, and may still be.
    Unanswered,
}

impl CallError {
    /// Classifies an error of etcd's client.
    pub(super) fn of(member: &str, error: &Error) -> Self {
        let (kind, what) = match error {
            Error::GRpcStatus(status) => {
                let what = innermost(error).unwrap_or_else(|| status.message().to_owned());
                (kind(error, status.code(), status.message()), what)
            }
            Error::LeaseKeepAliveError(what) if what.contains("not found") => {
                (CallErrorKind::LeaseGone, what.clone())
            }
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                (CallErrorKind::Refused, error.to_string())
            }
            _ if is_about_certificates(error) => {
                (CallErrorKind::Certificates, innermost(error).unwrap_or_else(|| error.to_string()))
            }
            _ => (CallErrorKind::Unanswered, innermost(error).unwrap_or_else(|| error.to_string())),
        };
        Self { kind, text: format!("{member}: {what}"), asked: Instant::now() }
    }

    /// A member did not answer in time.
    pub(super) fn timed_out(member: &str, limit: Duration) -> Self {
        let text = format!("{member}: no answer within {}", humantime::format_duration(limit));
        Self { kind: CallErrorKind::Unanswered, text, asked: Instant::now() }
    }
}

/// Classifies a gRPC status by its code, and by etcd's message (`api/v3rpc/rpctypes/error.go`) where one code means
/// several things.
fn kind(error: &Error, code: Code, message: &str) -> CallErrorKind {
    match code {
        Code::NotFound if message.contains("lease") => CallErrorKind::LeaseGone,
        Code::OutOfRange if message.contains("future revision") => CallErrorKind::Ahead,
        Code::OutOfRange => CallErrorKind::Compacted,
        Code::ResourceExhausted if message.contains("too many requests") => CallErrorKind::Unanswered,
        Code::ResourceExhausted => CallErrorKind::Full,
        Code::DataLoss if message.contains("corrupt cluster") => CallErrorKind::Full,
        Code::Unauthenticated => CallErrorKind::LockedOut,
        Code::InvalidArgument if message.contains("authentication failed") => CallErrorKind::LockedOut,
        Code::InvalidArgument if message.contains("revision of auth store is old") => CallErrorKind::Unsent,
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented => CallErrorKind::Refused,
        _ if is_about_certificates(error) => CallErrorKind::Certificates,
        _ if is_unsent(error) => CallErrorKind::Unsent,
        _ => CallErrorKind::Unanswered,
    }
}

/// Returns the sources of an error of etcd's client, whose own `source` returns none.
fn sources(error: &Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first = match error {
        Error::GRpcStatus(status) => status.source(),
        Error::TransportError(transport) => transport.source(),
        Error::IoError(io) => {
            let io: &(dyn std::error::Error + 'static) = io;
            Some(io)
        }
        _ => None,
    };
    std::iter::successors(first, |error| {
        let error: &(dyn std::error::Error + 'static) = *error;
        error.source()
    })
}

/// Returns the root cause of an error.
fn innermost(error: &Error) -> Option<String> {
    sources(error).last().map(ToString::to_string)
}

/// Returns true if no connection was made.
fn is_unsent(error: &Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    sources(error).any(|source| {
        source.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
        })
    })
}

fn is_about_certificates(error: &Error) -> bool {
    sources(error).any(|source| {
        let inner = source.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = source
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        matches!(tls, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_)))
    })
}
