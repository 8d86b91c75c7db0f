//! The spec file of this machine's own engine: its content, and writing it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::readers::Part;
use crate::admin::ServiceStatus;
use crate::config::address::Authority;
use crate::config::{Advertise, Config, Listen, Paths, SpecFormat, SpecSettings};
use crate::discovery::{
    Address, Format, InvalidPluginName, PluginName, Spec, SpecError, Store, TlsFiles, Written,
};
use crate::error::chain;
use crate::files;
use crate::pki::{Pki, ServerName};

/// Why there is no spec file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSpec {
    /// `"spec": null`.
    #[error("the configuration's `spec` is null: no spec file is wanted")]
    Off,
    /// An engine does not accept the name for a file.
    #[error(transparent)]
    Name(#[from] InvalidPluginName),
    /// The port is any free one.
    #[error(
        "`listen` asks for any free port (port 0), so that only the running service knows its address: it writes its spec file itself, and `volhost status` tells where"
    )]
    AnyPort,
    /// This machine's engine has no certificate that the service takes.
    #[error(
        "`tls` names certificates that are not volhost's own, so that no certificate for this machine's engine is known: write its spec file yourself, or add a `unix:` address to `listen`"
    )]
    NoCertificate,
    /// The store of spec files refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
}

/// A spec file's content, format and place.
pub(crate) struct Planned {
    pub spec: Spec,
    pub format: Format,
    pub store: Store,
}

/// Returns the spec file that the configuration asks for. `listening` are the real addresses of a running service;
/// without them, the configured ones are used.
pub(crate) fn plan(config: &Config, paths: &Paths, listening: Option<&[String]>) -> Result<Planned, NoSpec> {
    let SpecSettings { dir: _, format } = config.live.spec.as_ref().ok_or(NoSpec::Off)?;
    let configured: Vec<_> = config.boot.listen.iter().map(ToString::to_string).collect();
    let address = address(config, listening.unwrap_or(&configured), *format)?;
    let format = match (format, &address) {
        (Some(SpecFormat::Json), _) | (None, Address::Https { .. }) => Format::Json,
        (Some(SpecFormat::Spec), _) | (None, Address::Http { .. } | Address::Unix(_)) => Format::Spec,
    };
    let spec = Spec { name: PluginName::parse(&config.boot.name)?, address };
    Ok(Planned { spec, format, store: store_of(config, paths) })
}

/// The outcome of writing the spec file.
pub(super) struct SpecOutcome {
    /// Its path, or the reason why there is none; `None` if none is wanted.
    fact: Option<String>,
    /// What was done, if anything.
    done: Option<String>,
    fault: Option<SpecFault>,
}

/// Why the spec file is not as it should be.
enum SpecFault {
    /// The configuration does not allow one.
    AsConfigured(String),
    /// Something is wrong that a person must repair.
    Trouble(String),
}

/// Writes the spec file of a running service and reports the outcome.
pub(super) struct SpecWriter {
    paths: Paths,
    /// The real addresses served.
    listening: Vec<String>,
    status: Arc<ServiceStatus>,
}

impl SpecWriter {
    pub(super) fn new(paths: Paths, listening: Vec<String>, status: Arc<ServiceStatus>) -> Self {
        Self { paths, listening, status }
    }

    /// Returns the job that writes the spec file which the configuration asks for, if its content would change. With
    /// `mend` it writes only a file that somebody else removed; a file that the operator took back stays away until the
    /// next reload.
    pub(super) fn job(&self, config: &Config, mend: bool) -> impl FnOnce() -> SpecOutcome + Send + use<> {
        let (config, paths, listening) = (config.clone(), self.paths.clone(), self.listening.clone());
        move || put(&config, &paths, &listening, mend)
    }

    /// Writes the spec file at the start.
    pub(super) fn write(&self, config: &Config) {
        match files::within(self.job(config, false)) {
            Ok(outcome) => self.tell(outcome),
            Err(why) => log::warn!("no spec file was written: {}", chain(&why)),
        }
    }

    /// Reports the outcome of writing the spec file, once. A failure to write it is no reason not to serve.
    pub(super) fn tell(&self, outcome: SpecOutcome) {
        let SpecOutcome { fact, done, fault } = outcome;
        if let Some(done) = done {
            log::info!("{done}");
        }
        let trouble = match &fault {
            Some(SpecFault::Trouble(fault)) => Some(fault.as_str()),
            Some(SpecFault::AsConfigured(_)) | None => None,
        };
        let mut is_news = self.status.trouble(Part::Spec.as_str(), trouble);
        self.status.update(|facts| {
            is_news |= facts.spec != fact;
            facts.spec.clone_from(&fact);
        });
        if let Some(SpecFault::AsConfigured(fault) | SpecFault::Trouble(fault)) = fault.filter(|_| is_news) {
            log::warn!("{fault}");
        }
    }

    /// Returns the address that engines are told to call.
    pub(super) fn advertised(&self, config: &Config) -> Option<Advertise> {
        advertised(config, &self.listening)
    }
}

fn put(config: &Config, paths: &Paths, listening: &[String], mend: bool) -> SpecOutcome {
    let Planned { spec, format, store } = match plan(config, paths, Some(listening)) {
        Ok(planned) => planned,
        Err(NoSpec::Off) => return SpecOutcome { fact: None, done: None, fault: None },
        Err(error) => {
            let fault = SpecFault::AsConfigured(format!("no spec file was written: {}", chain(&error)));
            return SpecOutcome { fact: Some(chain(&error)), done: None, fault: Some(fault) };
        }
    };
    let path = store.path(&spec.name, format);
    let put = || {
        if mend && store.is_withdrawn(&path)? {
            return Ok(None);
        }
        store.write(&spec, format, false).map(Some)
    };
    let told = path.display();
    match put() {
        Ok(Some(written)) => {
            let done = match (written, mend) {
                (Written::Unchanged, _) => None,
                (_, false) => Some(format!("wrote the spec file {told}")),
                (_, true) => Some(format!("the spec file {told} was gone: it was written again")),
            };
            SpecOutcome { fact: Some(told.to_string()), done, fault: None }
        }
        Ok(None) => {
            let fact =
                format!("{told} was taken back by `volhost spec remove`; `volhost reload` writes it again");
            SpecOutcome { fact: Some(fact), done: None, fault: None }
        }
        Err(error) => {
            let error = chain(&error);
            let fault = SpecFault::Trouble(format!("no spec file was written: {error}"));
            SpecOutcome { fact: Some(error), done: None, fault: Some(fault) }
        }
    }
}

/// Returns the store of spec files; in the default directory if none is wanted.
#[must_use]
pub(crate) fn store_of(config: &Config, paths: &Paths) -> Store {
    let dir = config.live.spec.as_ref().map_or(&paths.spec, |spec| &spec.dir);
    Store::new(dir, paths.state.join("specs.json"))
}

/// Returns the address that engines are told to call: the configured one, else the first `https` address served.
#[must_use]
pub(crate) fn advertised(config: &Config, listening: &[String]) -> Option<Advertise> {
    config.live.advertise.clone().or_else(|| {
        listening
            .iter()
            .filter_map(|address| Advertise::parse(&reachable(address)).ok())
            .find(|address| matches!(address, Advertise::Https(_)))
    })
}

/// Returns the names by which engines and monitoring systems call the server, which its certificate must hold.
#[must_use]
pub(crate) fn server_names(config: &Config) -> Vec<ServerName> {
    let listening = config.boot.listen.iter().chain(&config.boot.metrics).filter_map(|listen| match listen {
        Listen::Https(address) => ServerName::of_address(address.ip()),
        Listen::Http(_) | Listen::Unix(_) => None,
    });
    let advertised = config.live.advertise.iter().filter_map(|advertise| match advertise {
        Advertise::Https(Authority { host, .. }) => ServerName::parse(host).ok(),
        Advertise::Http(_) | Advertise::Unix(_) => None,
    });
    let node = ServerName::parse(config.boot.node.as_str()).ok();
    listening.chain(advertised).chain(node).collect()
}

/// Returns the address for a spec file, in the requested format if there is one: a `.spec` file cannot hold what
/// `https` needs.
fn address(config: &Config, listening: &[String], format: Option<SpecFormat>) -> Result<Address, NoSpec> {
    let mut known: Vec<_> = config.live.advertise.iter().cloned().collect();
    if config.live.advertise.is_none() {
        known.extend(listening.iter().filter_map(|address| Advertise::parse(&reachable(address)).ok()));
        if format == Some(SpecFormat::Spec) {
            known.retain(|address| !matches!(address, Advertise::Https(_)));
        }
        // In the order of preference for an engine.
        known.sort_by_key(|address| match address {
            Advertise::Https(_) => 0,
            Advertise::Unix(_) => 1,
            Advertise::Http(_) => 2,
        });
    }
    let pki = Pki::new(&config.boot.pki);
    // An engine verifies the server by the same authorities that its own certificate comes from.
    let ours =
        config.live.tls.server.is_none()
            && config.live.tls.client_ca.as_ref().is_none_or(|path| {
                files::read_at_most(path, files::SMALL).is_ok_and(|pem| pki.is_ours(&pem))
            });
    // The running service tells its engine the first address: another one would replace it.
    let first = listening.iter().find(|address| address.starts_with("https://"));
    if config.live.advertise.is_none() && ours && first.is_some_and(|address| address.ends_with(":0")) {
        return Err(NoSpec::AnyPort);
    }
    let usable = known.iter().find_map(|address| match address {
        Advertise::Https(_) if !ours => None,
        Advertise::Https(Authority { host, port }) => {
            let client = pki.client();
            let tls = TlsFiles { ca: pki.ca().cert, cert: client.cert, key: client.key };
            Some(Address::Https { host: host.clone(), port: *port, tls })
        }
        Advertise::Http(Authority { host, port }) => Some(Address::Http { host: host.clone(), port: *port }),
        Advertise::Unix(path) => Some(Address::Unix(path.clone())),
    });
    usable.ok_or(if known.is_empty() { NoSpec::AnyPort } else { NoSpec::NoCertificate })
}

/// Returns the address by which this machine reaches a socket: a socket bound to every address is reached by loopback.
fn reachable(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.into() };
    match rest.parse::<SocketAddr>() {
        Ok(socket) if socket.ip().is_unspecified() => {
            let loopback: IpAddr = match socket.ip() {
                IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            format!("{scheme}://{}", SocketAddr::new(loopback, socket.port()))
        }
        _ => address.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_on_every_address_is_reached_by_loopback() {
        assert_eq!(reachable("https://0.0.0.0:7443"), "https://127.0.0.1:7443");
        assert_eq!(reachable("http://[::]:80"), "http://[::1]:80");
        assert_eq!(reachable("https://10.1.2.3:7443"), "https://10.1.2.3:7443");
        assert_eq!(reachable("unix:/run/volhost.sock"), "unix:/run/volhost.sock");
    }
}
