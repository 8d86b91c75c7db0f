//! Reloads: three units, each all or nothing on its own, so that a slip in the map cannot stop a revocation.
//!
//! A reload reads and checks first and swaps last. One that is rejected changes nothing, is logged with every fault,
//! and stays on the board until that unit is good again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::convert::{in_force, to_limits};
use super::pulse::status_line;
use super::tls::{Tls, worded};
use super::{ServeError, naming, spec, tls};
use crate::admin::board::Reloaded;
use crate::admin::{Board, Issuing};
use crate::catalog::Catalog;
use crate::config::watch::{Seen, Unit, Watcher};
use crate::config::{self, Config, Paths};
use crate::discovery::Written;
use crate::error::chain;
use crate::host::name::HostName;
use crate::process::systemd;
use crate::transport::{Limits, Server};
use crate::volume::Service;

/// What a reload needs to know and may change.
pub(super) struct Reloader {
    pub(super) paths: Paths,
    pub(super) file: Option<PathBuf>,
    /// The configuration that the service was started with: what cannot change without a restart is as it says.
    pub(super) booted: Config,
    /// The configuration in force.
    pub(super) config: Config,
    /// The machine's hostname, as it was last looked at.
    pub(super) hostname: Option<HostName>,
    pub(super) tls: Tls,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) service: Arc<Service>,
    pub(super) limits: Arc<ArcSwap<Limits>>,
    pub(super) issuing: Arc<ArcSwap<Issuing>>,
    pub(super) server: Arc<Server>,
    pub(super) board: Arc<Board>,
    pub(super) watcher: Watcher,
    /// The files that the configuration was last read from, good or not, as they were then.
    pub(super) files: Vec<Seen>,
    /// The units whose files are not in force as they stand.
    pub(super) rejected: BTreeSet<Unit>,
    /// The real addresses served.
    pub(super) listening: Vec<String>,
}

/// What is to be read again.
pub(super) struct Asked {
    pub(super) units: &'static [Unit],
    /// Told when it is done, where somebody waits.
    pub(super) done: Option<oneshot::Sender<()>>,
}

impl Asked {
    /// By somebody who does not wait.
    pub(super) fn of(units: &'static [Unit]) -> Self {
        Self { units, done: None }
    }
}

/// What is to be followed, as it was when it was last read.
pub(super) fn followed(files: &[Seen], tls: &Tls) -> BTreeMap<Unit, Vec<Seen>> {
    let (certificates, list) = tls.followed();
    BTreeMap::from([(Unit::Config, files.to_vec()), (Unit::Tls, certificates), (Unit::Crl, list)])
}

impl Reloader {
    /// Does one reload after another until nobody can ask any more.
    pub(super) async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Asked>) {
        while let Some(Asked { units, done }) = asked.recv().await {
            systemd::reloading();
            self.reload(units).await;
            systemd::ready(&status_line(&self.board.read()));
            if let Some(done) = done {
                // Who asked may have given up waiting.
                let _ = done.send(());
            }
        }
    }

    /// Reads these units again. Blocking work is done where it delays no request.
    async fn reload(&mut self, units: &[Unit]) {
        for unit in units {
            tokio::task::block_in_place(|| match unit {
                Unit::Config => self.reload_config(),
                Unit::Tls => self.reload_tls(),
                Unit::Crl => self.reload_list(),
            });
            if *unit != Unit::Crl
                && let Err(error) = self.tls.record(&*self.catalog).await
            {
                log::warn!("this machine's certificate could not be recorded: {}", chain(&error));
            }
            if *unit == Unit::Config {
                // New backends come into force before anybody asks for them.
                self.service.bring_up(std::time::Duration::from_millis(200)).await;
            }
        }
    }

    /// Tells what became of a unit, in the log and on the board.
    fn tell(&mut self, unit: Unit, faults: Vec<String>) {
        let word = match unit {
            Unit::Config => "configuration",
            Unit::Tls => "certificates",
            Unit::Crl => "crl",
        };
        if faults.is_empty() {
            log::info!("reload: {word} applied");
            self.rejected.remove(&unit);
        } else {
            log::error!("reload: {word} rejected, what was in force stays so");
            faults.iter().for_each(|fault| log::error!("{fault}"));
            self.rejected.insert(unit);
        }
        self.board.reloaded(Reloaded { at: OffsetDateTime::now_utc(), unit: word, faults });
    }

    fn reload_config(&mut self) {
        match self.put_config_in_force() {
            Ok(certificates_too) => {
                self.tell(Unit::Config, Vec::new());
                if certificates_too {
                    self.reload_tls();
                }
                self.write_spec();
            }
            Err(faults) => self.tell(Unit::Config, faults),
        }
        self.watcher.set_files(followed(&self.files, &self.tls));
    }

    /// Reads, checks and swaps; answers whether the certificates are to be read anew for it.
    fn put_config_in_force(&mut self) -> Result<bool, Vec<String>> {
        let loaded = config::reload(&self.paths, self.file.as_deref()).map_err(|rejected| {
            let config::Rejected { faults, files } = rejected;
            self.files = files;
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        })?;
        self.files.clone_from(&loaded.files);
        if let Some(fault) = tls::fault_of_client_ca(&loaded) {
            return Err(vec![fault.to_string()]);
        }
        let mut new = loaded.config;
        if !new.node_configured {
            self.note_hostname(&new.node);
            new.node.clone_from(&self.booted.node);
        }
        let changed = config::changes(&self.config, &new);
        let needs_restart = config::changes(&self.booted, &new).needs_restart;
        // What only a restart can change stays as the service was started with.
        let new = Config {
            name: self.booted.name.clone(),
            node: self.booted.node.clone(),
            node_configured: self.booted.node_configured,
            scope: self.booted.scope,
            listen: self.booted.listen.clone(),
            pki: self.booted.pki.clone(),
            catalog: self.booted.catalog.clone(),
            etcd: self.booted.etcd.clone(),
            admin: self.booted.admin.clone(),
            ..new
        };
        if new.hosts.is_none() && !self.tls.trusts_ours_only() {
            // The list of hosts must not go before somebody else's authority is gone.
            self.tls.reload(&new).map_err(|error| vec![worded(&error)])?;
        }
        if !needs_restart.is_empty() {
            log::warn!("a restart is needed for what changed in {}", needs_restart.join(", "));
        }
        self.limits.store(Arc::new(to_limits(&new)));
        self.catalog.limit_requests(new.limits.request);
        let before = self.service.in_force();
        self.service.put_in_force(in_force(&new, &before.map));
        self.service.look_at_clones();
        self.config = new;
        self.board.update(|facts| {
            facts.needs_restart = needs_restart.iter().map(ToString::to_string).collect();
        });
        // A list of hosts may be what the certificates were waiting for.
        Ok(["tls", "advertise"].iter().any(|field| changed.hot.contains(field))
            || self.rejected.contains(&Unit::Tls))
    }

    /// Tells once that the machine was given another hostname, which changes nothing.
    fn note_hostname(&mut self, hostname: &HostName) {
        if self.hostname.as_ref() != Some(hostname) {
            if *hostname != self.booted.node {
                log::warn!("{}", naming::told(&self.booted.node, hostname));
            }
            self.hostname = Some(hostname.clone());
        }
    }

    fn reload_tls(&mut self) {
        let outcome = self.tls.reload(&self.config);
        let good = outcome.is_ok();
        self.after_certificates(Unit::Tls, outcome);
        // A list that came before its authority is good with it.
        if good && self.rejected.contains(&Unit::Crl) {
            let outcome = self.tls.reload_list(&self.config);
            self.after_certificates(Unit::Crl, outcome);
        }
    }

    fn reload_list(&mut self) {
        let mut outcome = self.tls.reload_list(&self.config);
        // An authority that came before its list is good with it.
        if self.rejected.contains(&Unit::Tls) {
            let certificates = self.tls.reload(&self.config);
            if certificates.is_ok() && outcome.is_err() {
                outcome = self.tls.reload_list(&self.config);
            }
            self.after_certificates(Unit::Tls, certificates);
        }
        self.after_certificates(Unit::Crl, outcome);
    }

    fn after_certificates(&mut self, unit: Unit, outcome: Result<(), ServeError>) {
        self.server.recheck();
        self.issuing.store(Arc::new(Issuing {
            plugin: self.config.name.clone(),
            advertise: spec::advertised(&self.config, &self.listening),
            ours: self.tls.is_ours(),
            node: self.config.node.clone(),
        }));
        self.board.update(|facts| facts.server_certificate_expires = self.tls.expires());
        self.tell(unit, outcome.err().iter().map(worded).collect());
    }

    /// Writes the spec file if one is wanted and its content would change. What keeps it from being written is no
    /// reason not to serve.
    pub(super) fn write_spec(&self) {
        let planned = spec::plan(&self.config, &self.paths, Some(&self.listening));
        let written = planned.and_then(|spec::Planned { spec, format, store }| {
            let path = store.path(&spec.name, format);
            Ok((store.write(&spec, format, false)?, path))
        });
        let fact = match written {
            Ok((written, path)) => {
                if written != Written::Unchanged {
                    log::info!("wrote the spec file {}", path.display());
                }
                Some(path.display().to_string())
            }
            Err(spec::NoSpec::Off) => None,
            Err(error) => {
                log::warn!("no spec file was written: {}", chain(&error));
                Some(chain(&error))
            }
        };
        self.board.update(|facts| facts.spec = fact);
    }
}
