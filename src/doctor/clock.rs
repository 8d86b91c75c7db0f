//! Compares this machine's clock with the service's: both judge certificates, and both date what several
//! hosts write to shared storage.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

use super::plugin::Plugin;
use super::service::ServiceReply;
use super::{Finding, Verdict};

const CHECK: &str = "clock";

/// The format of HTTP's `Date` (RFC 9110, IMF-fixdate), which has whole seconds.
const DATE: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// The difference in seconds above which files seem to come from the future.
const WARNING_SECONDS: u64 = 5;

/// The difference in seconds above which a new certificate is not valid yet, and times in logs mislead.
const WRONG_SECONDS: u64 = 60;

pub(super) fn examine(plugin: &Plugin, seen: Option<&ServiceReply>, findings: &mut Vec<Finding>) {
    let finding = match seen {
        None => {
            let message = "the service's time is not known without an answer of it";
            Finding::new(CHECK, &plugin.name, Verdict::Skipped, message)
        }
        Some(ServiceReply { date: Some((date, here)), .. }) => match ahead(date, *here) {
            Some(seconds) => judge(&plugin.name, seconds),
            None => {
                let message = format!("the service's answer has a date that is none: {date:?}");
                Finding::new(CHECK, &plugin.name, Verdict::Note, message)
            }
        },
        Some(ServiceReply { date: None, .. }) => {
            let message = "the service's answer has no date to compare with";
            Finding::new(CHECK, &plugin.name, Verdict::Note, message)
        }
    };
    findings.push(finding);
}

/// Returns by how many seconds this machine's clock is ahead.
fn ahead(date: &str, here: SystemTime) -> Option<i64> {
    let there = time::PrimitiveDateTime::parse(date, DATE).ok()?.assume_utc();
    Some((OffsetDateTime::from(here) - there).whole_seconds())
}

fn judge(subject: &str, seconds: i64) -> Finding {
    let (size, way) = (seconds.unsigned_abs(), if seconds < 0 { "behind" } else { "ahead of" });
    if size <= WARNING_SECONDS {
        return Finding::new(CHECK, subject, Verdict::Ok, "this machine's clock and the service's agree");
    }
    let verdict = if size <= WRONG_SECONDS { Verdict::Warning } else { Verdict::Wrong };
    let message = format!(
        "this machine's clock is {size} s {way} the service's: certificates count as expired or not yet valid, and \
         what hosts write to one volume is dated wrongly"
    );
    Finding::new(CHECK, subject, verdict, message)
        .remedy("let NTP set the clocks of both machines: `timedatectl set-ntp true`, and see `timedatectl`")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_difference_is_judged_by_its_size() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let there = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (here, seconds, verdict, words) in [
            (there, 0, Verdict::Ok, "agree"),
            (there + Duration::from_secs(5), 5, Verdict::Ok, "agree"),
            (there + Duration::from_secs(6), 6, Verdict::Warning, "6 s ahead of"),
            (there - Duration::from_secs(60), -60, Verdict::Warning, "60 s behind"),
            (there - Duration::from_secs(3600), -3600, Verdict::Wrong, "3600 s behind"),
        ] {
            assert_eq!(ahead(date, here), Some(seconds));
            let finding = judge("volhost", seconds);
            assert_eq!(finding.verdict, verdict, "{seconds}");
            assert!(finding.message.contains(words), "{}", finding.message);
        }
        assert_eq!(ahead("yesterday", there), None);
    }
}
