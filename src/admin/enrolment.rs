//! Enrolment of hosts: certificates, bundles and revocations.
//!
//! A host's key leaves this machine only in its bundle, and is not kept here.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use time::OffsetDateTime;

use super::wire;
use crate::catalog::{Catalog, CatalogError, Certificate, Change, Host};
use crate::config::Advertise;
use crate::config::address::Authority;
use crate::discovery::{Address, Format, InvalidPluginName, PluginName, RenderError, Spec, TlsFiles};
use crate::model::host::{HostName, InvalidHostName};
use crate::model::timestamp::rfc3339;
use crate::pki::bundle::{self, Bundle, BundleError};
use crate::pki::{InvalidServerName, Issued, Pki, PkiError, ServerName};

/// The configuration for new hosts.
#[derive(Debug, Clone)]
pub(crate) struct Issuing {
    /// The plugin's name on hosts.
    pub plugin: String,
    /// The address that hosts are told to call.
    pub advertise: Option<Advertise>,
    /// True if volhost's own authority certifies the hosts and the server.
    pub ours: bool,
    /// This machine's host name.
    pub node: HostName,
}

/// Issues and revokes hosts' certificates, and rolls the CA over.
pub(crate) struct Enrolment {
    /// The catalog that remembers certificates and revocations.
    pub catalog: Arc<dyn Catalog>,
    /// The authority.
    pub pki: Pki,
    /// Returns the configuration for new hosts at this moment.
    pub issuing: Arc<dyn Fn() -> Issuing + Send + Sync>,
    /// Called after a revocation, and when the server's certificate was issued again: open connections are checked
    /// again, and the certificate is read again.
    pub changed: Arc<dyn Fn() + Send + Sync>,
    /// Held while a certificate is signed and recorded, and while a rollover begins or ends: the end of a rollover
    /// relies on the recorded certificates, and would otherwise give up a CA that has just signed one.
    pub signing: tokio::sync::Mutex<()>,
}

/// Why a host could not join or leave.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrolmentError {
    #[error(transparent)]
    Host(#[from] InvalidHostName),
    #[error(transparent)]
    Plugin(#[from] InvalidPluginName),
    #[error(
        "certificates are configured by `tls` and not volhost's own: issue the host's certificate with your authority, \
         and give it a spec file with that certificate's paths"
    )]
    NotOurs,
    #[error(
        "no address is known under which {0} reaches this service: say --advertise https://HOST:PORT, or set `advertise`"
    )]
    NoAddress(HostName),
    #[error(
        "{url} is this machine's loopback address, which {host} cannot reach: say --advertise https://HOST:PORT"
    )]
    Loopback { url: String, host: HostName },
    #[error("{0:?} is no address that hosts reach over TLS: it takes https://HOST:PORT")]
    Address(String),
    #[error(transparent)]
    Server(#[from] InvalidServerName),
    #[error("host {0} is not known: it has no certificate, no mount and was never seen")]
    Unknown(HostName),
    #[error("host {0} has no certificate yet: `volhost host add {0}` lets it in")]
    NotAdded(HostName),
    #[error(
        "host {0} has a certificate already: `volhost host renew {0}` makes another one for the same machine; another \
         machine needs a name of its own"
    )]
    Added(HostName),
    #[error(
        "{0} is the name of a machine that volhost runs on: another machine of that name would share its mounts; choose \
         another name{remedy}",
        remedy = give_up(.0, *.1)
    )]
    Node(HostName, Serves),
    #[error(
        "{0} is a name that machine {1} gave up, whose engine may still call with its certificate: `volhost host revoke \
         {0}` frees the name once that engine was started again"
    )]
    GivenUp(HostName, HostName),
    #[error(
        "a request and a certificate were given: the one is to be signed here, the other was signed elsewhere"
    )]
    RequestAndCertificate,
    #[error(
        "{} would be shut out: {}; `--force` goes on all the same",
        counted(hosts),
        hosts.join("; ")
    )]
    WouldShutOut { hosts: Vec<String> },
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the host's spec file cannot be made")]
    Spec(#[from] RenderError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("the certificate could not be made: the task broke off")]
    BrokeOff,
}

impl Enrolment {
    /// Issues another certificate and bundle to a host that has one; its other certificates stay valid.
    pub(super) async fn renew(&self, request: wire::HostAdd) -> Result<wire::HostAdded, EnrolmentError> {
        self.refuse_strangers()?;
        let _signing = self.signing.lock().await;
        let host = HostName::parse(&request.name)?;
        let known = self.known(&host).await?;
        if known.as_ref().is_none_or(|known| known.certificates.is_empty()) {
            return Err(EnrolmentError::NotAdded(host));
        }
        if let Some(now) = known.as_ref().and_then(|known| given_up(known)) {
            return Err(EnrolmentError::GivenUp(host, now.clone()));
        }
        self.issue(request).await
    }

    /// Issues a host's first certificate and bundle, or the first one since its certificates expired or were revoked.
    pub(super) async fn add(&self, request: wire::HostAdd) -> Result<wire::HostAdded, EnrolmentError> {
        self.refuse_strangers()?;
        let _signing = self.signing.lock().await;
        let host = HostName::parse(&request.name)?;
        let known = self.known(&host).await?;
        if (self.issuing)().node == host {
            return Err(EnrolmentError::Node(host, Serves::This));
        }
        if let Some(known) = &known {
            if known.machine.is_some() {
                return Err(EnrolmentError::Node(host, Serves::Another));
            }
            if let Some(now) = given_up(known) {
                return Err(EnrolmentError::GivenUp(host, now.clone()));
            }
            if has_certificate(known) {
                return Err(EnrolmentError::Added(host));
            }
        }
        self.issue(request).await
    }

    /// Returns the record of a host, by this instance or another one.
    async fn known(&self, host: &HostName) -> Result<Option<Arc<Host>>, EnrolmentError> {
        self.catalog.sync().await?;
        Ok(self.catalog.view().hosts.get(host).cloned())
    }

    async fn issue(&self, request: wire::HostAdd) -> Result<wire::HostAdded, EnrolmentError> {
        let wire::HostAdd { name, advertise, plugin_name, csr, certificate: signed } = request;
        let issuing = (self.issuing)();
        let host = HostName::parse(&name)?;
        let plugin = PluginName::parse(plugin_name.as_deref().unwrap_or(&issuing.plugin))?;
        let (advertise, server) = address(&host, advertise, issuing.advertise)?;
        let pki = self.pki.clone();
        let wanted = host.clone();
        let made = tokio::task::spawn_blocking(move || {
            // The host verifies the server under the name in its bundle.
            let renewed = pki.add_server_name(&server)?;
            let issued = match (csr, signed) {
                (Some(csr), None) => pki.sign_csr(&wanted, &csr)?,
                (None, Some(signed)) => pki.accept_host(&wanted, &signed)?,
                (None, None) => pki.issue_host(&wanted)?,
                (Some(_), Some(_)) => return Err(EnrolmentError::RequestAndCertificate),
            };
            Ok((renewed, issued))
        });
        let (renewed, made) = made.await.map_err(|_| EnrolmentError::BrokeOff)??;
        if renewed {
            (self.changed)();
        }
        let Authority { host: called, port } = advertise.clone();
        let tls = TlsFiles {
            ca: bundle::CA_FILE.into(),
            cert: bundle::CERT_FILE.into(),
            key: bundle::KEY_FILE.into(),
        };
        let spec = Spec { name: plugin.clone(), address: Address::Https { host: called, port, tls } };
        let bundle = bundle::bundle(&Bundle {
            plugin: plugin.as_str(),
            spec_json: spec.render(Format::Json)?.as_bytes(),
            ca_pem: &made.ca_pem,
            cert_pem: &made.cert_pem,
            key_pem: made.key_pem.as_deref(),
        })?;
        // No certificate is handed out that could not be revoked.
        self.catalog.submit(Change::Issue(host.clone(), certificate(&made.issued))).await?;
        log::info!("issued certificate {} to host {host}", made.issued.serial);
        Ok(wire::HostAdded {
            name: host.to_string(),
            serial: made.issued.serial,
            expires: rfc3339(made.issued.not_after),
            advertise: Advertise::Https(advertise).to_string(),
            plugin_name: plugin.as_str().into(),
            bundle: STANDARD.encode(bundle),
        })
    }

    pub(super) async fn revoke(&self, request: &wire::HostName) -> Result<wire::HostRevoked, EnrolmentError> {
        let host = HostName::parse(&request.name)?;
        self.catalog.sync().await?;
        let view = self.catalog.view();
        let mounts = view.counts_of_host(&host).mounts;
        let known = view.hosts.get(&host);
        if known.is_none() && mounts == 0 {
            return Err(EnrolmentError::Unknown(host));
        }
        let certificates =
            known.map_or(0, |host| host.certificates.iter().filter(|one| !one.revoked).count());
        self.catalog.submit(Change::Revoke(host.clone(), OffsetDateTime::now_utc())).await?;
        (self.changed)();
        log::warn!("revoked host {host}: {certificates} certificates were in force");
        Ok(wire::HostRevoked { name: host.to_string(), certificates, mounts })
    }
}

/// The machine that serves under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    This,
    Another,
}

fn give_up(host: &HostName, serves: Serves) -> String {
    match serves {
        Serves::This => String::new(),
        Serves::Another => {
            format!(" (`volhost host revoke {host}` frees this one, where that machine serves no more)")
        }
    }
}

/// Returns true if one of the host's certificates is in force.
fn has_certificate(host: &Host) -> bool {
    let now = OffsetDateTime::now_utc();
    host.certificates.iter().any(|one| !one.revoked && one.not_after > now)
}

/// Returns the present name of a machine that gave up this name and may still call by it.
fn given_up(host: &Host) -> Option<&HostName> {
    host.renamed.as_ref().filter(|_| has_certificate(host))
}

fn counted(hosts: &[String]) -> String {
    if hosts.len() == 1 { "a host".to_owned() } else { format!("{} hosts", hosts.len()) }
}

/// Returns the catalog's record of an issued certificate.
pub(crate) fn certificate(issued: &Issued) -> Certificate {
    let Issued { host: _, serial, issuer, issued_at, not_after } = issued;
    Certificate {
        serial: serial.clone(),
        issuer: Some(issuer.clone()),
        issued_at: *issued_at,
        not_after: *not_after,
        revoked: false,
    }
}

/// Returns the address for a host's spec file, and the name that the server's certificate must hold for it.
fn address(
    host: &HostName,
    asked: Option<String>,
    configured: Option<Advertise>,
) -> Result<(Authority, ServerName), EnrolmentError> {
    let explicit = asked.is_some();
    let advertise = match asked {
        Some(text) => Advertise::parse(&text).map_err(|_| EnrolmentError::Address(text))?,
        None => configured.ok_or_else(|| EnrolmentError::NoAddress(host.clone()))?,
    };
    let Advertise::Https(authority) = advertise else {
        return Err(EnrolmentError::Address(advertise.to_string()));
    };
    let server = ServerName::parse(&authority.host)?;
    let loopback = match &server {
        ServerName::Ip(ip) => ip.is_loopback(),
        ServerName::Dns(name) => name == "localhost",
    };
    if loopback && !explicit {
        let url = Advertise::Https(authority).to_string();
        return Err(EnrolmentError::Loopback { url, host: host.clone() });
    }
    Ok((authority, server))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::catalog::{Submitted, View};

    fn text(asked: Option<&str>, configured: Option<&str>) -> String {
        let host = HostName::parse("web1").unwrap();
        match address(&host, asked.map(Into::into), configured.map(|url| Advertise::parse(url).unwrap())) {
            Ok((called, server)) => format!("https://{called} {server:?}"),
            Err(error) => error.to_string(),
        }
    }

    /// A catalog that records a certificate only when the test lets it.
    struct Slow {
        inner: Arc<dyn Catalog>,
        reached: Arc<Notify>,
        go_on: Arc<Notify>,
    }

    impl Catalog for Slow {
        fn view(&self) -> Arc<View> {
            self.inner.view()
        }

        fn submit(&self, change: Change) -> Submitted {
            if !matches!(&change, Change::Issue(host, _) if host.as_str() == "slow") {
                return self.inner.submit(change);
            }
            let (inner, reached, go_on) =
                (Arc::clone(&self.inner), Arc::clone(&self.reached), Arc::clone(&self.go_on));
            Box::pin(async move {
                reached.notify_one();
                go_on.notified().await;
                inner.submit(change).await
            })
        }

        fn location(&self) -> &str {
            self.inner.location()
        }

        fn fault(&self) -> Option<Arc<String>> {
            None
        }

        fn close(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
            self.inner.close()
        }
    }

    /// Returns the enrolment of a machine called store1, with such a slow catalog.
    fn enrolment(root: &std::path::Path) -> (Arc<Enrolment>, Arc<Notify>, Arc<Notify>) {
        let inner = Arc::new(crate::catalog::sqlite::open(&root.join("catalog.db")).unwrap());
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let catalog = Arc::new(Slow { inner, reached: Arc::clone(&reached), go_on: Arc::clone(&go_on) });
        let pki = Pki::new(root.join("pki"));
        let node = HostName::parse("store1").unwrap();
        pki.ensure(&node, &[]).unwrap();
        let issuing = move || Issuing {
            plugin: "volhost".into(),
            advertise: Some(Advertise::parse("https://store1:7443").unwrap()),
            ours: true,
            node: node.clone(),
        };
        let enrolment = Enrolment {
            catalog,
            pki,
            issuing: Arc::new(issuing),
            changed: Arc::new(|| {}),
            signing: tokio::sync::Mutex::default(),
        };
        (Arc::new(enrolment), reached, go_on)
    }

    fn of(name: &str) -> wire::HostAdd {
        wire::HostAdd { name: name.into(), advertise: None, plugin_name: None, csr: None, certificate: None }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_ca_that_has_just_signed_is_not_given_up() {
        let root = tempfile::tempdir().unwrap();
        let (enrolment, reached, go_on) = enrolment(root.path());
        enrolment.start(&|_: &HostName| None).await.unwrap();
        let adding = tokio::spawn({
            let enrolment = Arc::clone(&enrolment);
            async move { enrolment.add(of("slow")).await.map(drop) }
        });
        // The certificate is signed by the new CA, and not recorded yet.
        reached.notified().await;
        let aborting = tokio::spawn({
            let enrolment = Arc::clone(&enrolment);
            async move { enrolment.abort(wire::RolloverEnd { force: false }).await.map(drop) }
        });
        // However long it takes, the rollover must not end before.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert!(!aborting.is_finished(), "the CA was given up");
        go_on.notify_one();
        adding.await.unwrap().unwrap();
        let refused = aborting.await.unwrap().unwrap_err();
        assert!(
            matches!(&refused, EnrolmentError::WouldShutOut { hosts } if hosts[0].starts_with("slow ")),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn neither_a_host_that_is_there_nor_a_machine_is_added() {
        let root = tempfile::tempdir().unwrap();
        let (enrolment, ..) = enrolment(root.path());
        let text = async |name: &str| match enrolment.add(of(name)).await {
            Ok(added) => added.name,
            Err(error) => error.to_string(),
        };
        assert_eq!(text("web1").await, "web1");
        let again = text("WEB1").await;
        assert!(again.contains("`volhost host renew web1`"), "{again}");
        let own = text("store1").await;
        assert!(own.contains("store1 is the name of a machine that volhost runs on"), "{own}");
        let machine = uuid::Uuid::from_u128(2);
        for name in ["store2", "store3"] {
            enrolment.catalog.submit(Change::Name(machine, HostName::parse(name).unwrap())).await.unwrap();
        }
        let other = text("store3").await;
        assert!(other.contains("`volhost host revoke store3`"), "{other}");
        // Nobody has a certificate with the name that was given up.
        assert_eq!(text("store2").await, "store2");
        for name in ["web1", "store3"] {
            enrolment.revoke(&wire::HostName { name: name.into() }).await.unwrap();
            assert_eq!(text(name).await, name, "it is free again");
        }
    }

    #[test]
    fn a_bundle_names_an_address_that_its_host_can_reach() {
        assert!(text(None, Some("https://store1:7443")).starts_with("https://store1:7443 "));
        assert!(text(Some("https://[2001:db8::1]:7443"), None).starts_with("https://[2001:db8::1]:7443 "));
        assert!(text(None, Some("https://127.0.0.1:7443")).contains("loopback"));
        assert!(
            text(Some("https://127.0.0.1:7443"), None).starts_with("https://127.0.0.1:7443 "),
            "it was said so"
        );
        assert!(text(None, None).contains("--advertise"));
        for bad in [
            "http://store1:7443",
            "store1:7443",
            "https://store1",
            "https://store1:0",
            "https://a b:1",
            "https://:1",
        ] {
            assert!(
                text(Some(bad), None).contains("it takes https://HOST:PORT"),
                "{bad}: {}",
                text(Some(bad), None)
            );
        }
    }
}
