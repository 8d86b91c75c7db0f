//! Times as text: RFC 3339 everywhere, in JSON, in records and in messages.

use time::OffsetDateTime;
use time::error::Parse;
use time::format_description::well_known::Rfc3339;

/// Returns the time in whole seconds, in UTC, as people and programs are shown it.
#[must_use]
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    let whole = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    rfc3339_exact(whole)
}

/// Returns the time with its fraction of a second, as it is read back.
#[must_use]
pub(crate) fn rfc3339_exact(at: OffsetDateTime) -> String {
    // Only years beyond 9999 cannot be formatted; no machine's clock reaches them.
    at.format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

/// Parses a time that either of the others has written.
///
/// # Errors
///
/// If the text is no such time.
pub(crate) fn parse(text: &str) -> Result<OffsetDateTime, Parse> {
    OffsetDateTime::parse(text, &Rfc3339)
}
