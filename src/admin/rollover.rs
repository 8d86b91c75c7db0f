//! The rollover of the CA for the operator: which hosts have moved to the new CA, and which its end would shut out.
//!
//! Engines read their certificate once, so an issued certificate proves little; only the certificate that a host calls
//! with tells which CA it uses. A rollover is never ended, in either direction, while hosts would be shut out by it,
//! unless the operator forces it.

use time::OffsetDateTime;

use super::enrolment::{Enrolment, EnrolmentError, certificate};
use super::wire;
use crate::catalog::{Change, Host};
use crate::error::chain;
use crate::model::host::HostName;
use crate::model::timestamp::rfc3339;
use crate::pki::{self, CertInfo, Finished, Issued, Pki, PkiError, Rollover, Started};

/// The state of a host between two authorities.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Standing {
    /// True if it has a certificate of the new one.
    renewed: bool,
    /// The authority of the certificate with which it last called.
    uses: Option<Which>,
    /// True if it is let in when the old one is gone, as far as is known.
    moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Old,
    New,
}

impl Standing {
    /// Returns the state of a host; `None` if it is not let in anyway.
    fn of(host: &Host, rollover: &Rollover, now: OffsetDateTime) -> Option<Self> {
        let which = |issuer: &Option<String>| match issuer {
            Some(issuer) if *issuer == rollover.new.subject => Some(Which::New),
            Some(issuer) => rollover.old.iter().any(|old| old.subject == *issuer).then_some(Which::Old),
            None => None,
        };
        let in_force = |wanted: Which| {
            host.certificates.iter().any(|one| {
                // A certificate without a recorded issuer is older than any rollover.
                let issuer = if one.issuer.is_none() { Some(Which::Old) } else { which(&one.issuer) };
                issuer == Some(wanted) && !one.revoked && one.not_after > now
            })
        };
        let (renewed, has_old) = (in_force(Which::New), in_force(Which::Old));
        // A certificate that was signed elsewhere and never recorded is valid until its host is revoked.
        let old_is_good = has_old || host.revoked_at.is_none();
        let uses = which(&host.last_issuer).filter(|uses| *uses == Which::New || old_is_good);
        if !renewed && !has_old && uses.is_none() {
            return None;
        }
        let moved = match uses {
            Some(Which::New) => true,
            Some(Which::Old) => false,
            None => renewed,
        };
        Some(Self { renewed, uses, moved })
    }

    /// Returns why the host would be shut out, and the remedy.
    fn remedy(&self, host: &HostName, node: &HostName) -> String {
        match (self.renewed, self.uses) {
            (true, _) if host == node => {
                format!(
                    "{host} still calls with its certificate of the old CA (restart this machine's engine)"
                )
            }
            (true, _) => format!(
                "{host} still calls with its certificate of the old CA (unpack its new bundle there, and restart its engine)"
            ),
            (false, Some(_)) => {
                format!("{host} has a certificate of the old CA alone (`volhost host renew {host}`)")
            }
            (false, None) => format!(
                "{host} has a certificate of the old CA alone, and was not seen with it (`volhost host renew {host}`, or `volhost host revoke {host}`)"
            ),
        }
    }
}

impl Enrolment {
    pub(super) async fn rollover(
        &self,
        last_seen: &(impl Fn(&HostName) -> Option<OffsetDateTime> + Sync),
    ) -> Result<wire::Rollover, EnrolmentError> {
        let (rollover, ca) = self
            .blocking(|pki| {
                let rollover = pki.rollover()?;
                let ca = match rollover.as_ref().and_then(|rollover| rollover.old.first()) {
                    Some(old) => old.clone(),
                    None => own(pki)?,
                };
                Ok((rollover, ca))
            })
            .await?;
        let Some(rollover) = rollover else {
            return Ok(wire::Rollover { state: "none".into(), ca: wire_of(&ca), next: None, hosts: vec![] });
        };
        let hosts = self.standings(&rollover).into_iter().map(|(host, standing)| wire::RolloverHost {
            moved: standing.moved,
            renewed: standing.renewed,
            uses: standing.uses.map(|uses| if uses == Which::Old { "old" } else { "new" }.into()),
            last_seen: last_seen(&host).map(rfc3339),
            name: host.to_string(),
        });
        Ok(wire::Rollover {
            state: if rollover.finishing { "finishing" } else { "overlap" }.into(),
            hosts: hosts.collect(),
            ca: wire_of(&ca),
            next: Some(wire_of(&rollover.new)),
        })
    }

    pub(super) async fn start(
        &self,
        last_seen: &(impl Fn(&HostName) -> Option<OffsetDateTime> + Sync),
    ) -> Result<wire::Rollover, EnrolmentError> {
        self.refuse_strangers()?;
        let signing = self.signing.lock().await;
        let Started { begun, issued } = self.blocking(Pki::start_rollover).await?;
        self.put_in_force(issued).await;
        drop(signing);
        if begun {
            log::info!("a rollover of the CA has begun: both are trusted");
        }
        self.rollover(last_seen).await
    }

    pub(super) async fn finish(
        &self,
        request: wire::RolloverEnd,
    ) -> Result<wire::RolloverEnded, EnrolmentError> {
        let node = (self.issuing)().node;
        let why = move |host: &HostName, standing: &Standing| {
            (!standing.moved).then(|| standing.remedy(host, &node))
        };
        self.end(request, why, Pki::finish_rollover).await
    }

    pub(super) async fn abort(
        &self,
        request: wire::RolloverEnd,
    ) -> Result<wire::RolloverEnded, EnrolmentError> {
        let node = (self.issuing)().node;
        // This machine's own renewed certificate does not count: the old CA issues another one, and its engine still
        // uses the old CA's unless it was restarted, which `uses` tells.
        let why = move |host: &HostName, standing: &Standing| {
            (standing.uses == Some(Which::New) || (standing.renewed && *host != node)).then(|| {
                format!(
                    "{host} has a certificate of the new CA (finish the rollover, or renew it afterwards)"
                )
            })
        };
        self.end(request, why, Pki::abort_rollover).await
    }

    /// Ends a rollover, unless `shut_out` returns a reason why a host would be shut out.
    async fn end(
        &self,
        wire::RolloverEnd { force }: wire::RolloverEnd,
        shut_out: impl Fn(&HostName, &Standing) -> Option<String>,
        end: impl FnOnce(&Pki) -> Result<Finished, PkiError> + Send + 'static,
    ) -> Result<wire::RolloverEnded, EnrolmentError> {
        self.refuse_strangers()?;
        let _signing = self.signing.lock().await;
        // Certificates that another instance signed count as well.
        self.catalog.sync().await?;
        let rollover = self.blocking(Pki::rollover).await?.ok_or(PkiError::NoRollover)?;
        let shut_out: Vec<_> = self
            .standings(&rollover)
            .into_iter()
            .filter_map(|(host, standing)| Some((host.to_string(), shut_out(&host, &standing)?)))
            .collect();
        if !force && !shut_out.is_empty() {
            return Err(EnrolmentError::WouldShutOut {
                hosts: shut_out.into_iter().map(|(_, why)| why).collect(),
            });
        }
        let (Finished { rollover: _, issued, kept }, ca) =
            self.blocking(move |pki| Ok((end(pki)?, own(pki)?))).await?;
        self.put_in_force(issued).await;
        let shut_out: Vec<_> = shut_out.into_iter().map(|(host, _)| host).collect();
        log::warn!("the rollover of the CA has ended: {} is trusted alone", ca.subject);
        if !shut_out.is_empty() {
            log::warn!("shut out with the other CA: {}", shut_out.join(", "));
        }
        Ok(wire::RolloverEnded {
            ca: wire_of(&ca),
            kept_certificate: kept.cert.display().to_string(),
            kept_key: kept.key.exists().then(|| kept.key.display().to_string()),
            shut_out,
        })
    }

    fn standings(&self, rollover: &Rollover) -> Vec<(HostName, Standing)> {
        let now = OffsetDateTime::now_utc();
        let view = self.catalog.view();
        let standing = |(name, host): (&HostName, &std::sync::Arc<Host>)| {
            Some((name.clone(), Standing::of(host, rollover, now)?))
        };
        view.hosts.iter().filter_map(standing).collect()
    }

    pub(super) fn refuse_strangers(&self) -> Result<(), EnrolmentError> {
        if (self.issuing)().ours { Ok(()) } else { Err(EnrolmentError::NotOurs) }
    }

    /// Makes the running service read its files, and records this machine's new certificate. A failure undoes nothing:
    /// a certificate that could not be recorded is recorded when the files are read.
    async fn put_in_force(&self, issued: Option<Issued>) {
        if let Some(issued) = issued {
            let recorded = self.catalog.submit(Change::Issue(issued.host.clone(), certificate(&issued)));
            if let Err(error) = recorded.await {
                log::warn!("this machine's certificate could not be recorded: {}", chain(&error));
            }
        }
        (self.changed)();
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pki) -> Result<T, PkiError> + Send + 'static,
    ) -> Result<T, EnrolmentError> {
        let pki = self.pki.clone();
        Ok(tokio::task::spawn_blocking(move || work(&pki)).await.map_err(|_| EnrolmentError::BrokeOff)??)
    }
}

/// Returns the description of the first authority in `ca.crt`.
fn own(pki: &Pki) -> Result<CertInfo, PkiError> {
    pki::describe(pki.ca_pem()?).map_err(|source| PkiError::Certificate { path: pki.ca().cert, source })
}

fn wire_of(info: &CertInfo) -> wire::Ca {
    wire::Ca { name: info.subject.clone(), expires: rfc3339(info.not_after) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Certificate;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn rollover() -> Rollover {
        let info = |subject: &str| CertInfo {
            subject: subject.into(),
            common_name: None,
            issuer: subject.into(),
            names: vec![],
            dns_names: vec![],
            serial: "1".into(),
            not_before: NOW,
            not_after: NOW,
            is_ca: true,
        };
        Rollover { old: vec![info("old")], new: info("new"), finishing: false }
    }

    /// Returns the standing of a host. Its certificates are named by their authority, as `old` or `new`, with `-` if
    /// revoked and `.` if expired.
    fn standing(
        certificates: &[&str],
        last: Option<&str>,
        revoked: bool,
    ) -> Option<(bool, Option<Which>, bool)> {
        let certificates = certificates.iter().map(|text| {
            let issuer = text.trim_end_matches(['-', '.']);
            Certificate {
                serial: "1".into(),
                issuer: (!issuer.is_empty()).then(|| issuer.into()),
                issued_at: NOW,
                not_after: NOW + time::Duration::days(if text.ends_with('.') { -1 } else { 1 }),
                revoked: text.ends_with('-'),
            }
        });
        let host = Host {
            certificates: certificates.collect(),
            last_issuer: last.map(Into::into),
            revoked_at: revoked.then_some(NOW),
            ..Host::default()
        };
        Standing::of(&host, &rollover(), NOW).map(|Standing { renewed, uses, moved }| (renewed, uses, moved))
    }

    #[test]
    fn a_host_has_moved_when_it_calls_with_the_new_one() {
        let (old, new) = (Some(Which::Old), Some(Which::New));
        for (certificates, last, revoked, expected) in [
            (&["old"][..], None, false, Some((false, None, false))),
            (&["old"], Some("old"), false, Some((false, old, false))),
            // A certificate from before issuers were recorded.
            (&[""], Some("old"), false, Some((false, old, false))),
            (&["old", "new"], Some("old"), false, Some((true, old, false))),
            (&["old", "new"], Some("new"), false, Some((true, new, true))),
            // Both were issued, and neither was used yet.
            (&["old", "new"], None, false, Some((true, None, true))),
            (&["new"], None, false, Some((true, None, true))),
            // Nobody recorded the certificate that it calls with.
            (&[], Some("old"), false, Some((false, old, false))),
            (&[], Some("new"), false, Some((false, new, true))),
            // Shut out already, or certified by an authority that is not trusted.
            (&["old-"], Some("old"), true, None),
            (&["old."], None, false, None),
            (&["older"], Some("older"), false, None),
            (&[], None, false, None),
            // Revoked, and let in again since: the certificate that it called with is no longer valid.
            (&["old-", "new"], Some("old"), true, Some((true, None, true))),
        ] {
            assert_eq!(standing(certificates, last, revoked), expected, "{certificates:?} {last:?}");
        }
    }
}
