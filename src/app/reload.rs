//! Reloads: three units, each all or nothing on its own, so that a slip in the map cannot stop a revocation.
//!
//! A reload reads and checks first and swaps last. One that is rejected changes nothing, is logged with every fault,
//! and stays on the board until that unit is good again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use super::convert::{in_force, to_limits};
use super::tls::{Tls, worded};
use super::{ServeError, spec, tls};
use crate::admin::board::Reloaded;
use crate::admin::{Board, Issuing};
use crate::config::watch::{Seen, Unit, Watcher};
use crate::config::{self, Config, Loaded, Paths};
use crate::discovery::Written;
use crate::error::chain;
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
    pub(super) tls: Tls,
    pub(super) service: Arc<Service>,
    pub(super) limits: Arc<ArcSwap<Limits>>,
    pub(super) issuing: Arc<ArcSwap<Issuing>>,
    pub(super) server: Arc<Server>,
    pub(super) board: Arc<Board>,
    pub(super) watcher: Watcher,
    /// The real addresses served.
    pub(super) listening: Vec<String>,
}

/// What became of one unit.
enum Outcome {
    Applied,
    Rejected(Vec<String>),
}

/// The files to follow, as they were when they were read.
pub(super) fn followed(loaded: &Loaded, tls: &Tls) -> BTreeMap<Unit, Vec<Seen>> {
    let (certificates, list) = tls.followed();
    BTreeMap::from([(Unit::Config, loaded.files.clone()), (Unit::Tls, certificates), (Unit::Crl, list)])
}

impl Reloader {
    /// Reads these units again. Blocking work is done where it delays no request.
    pub(super) async fn reload(&mut self, units: &[Unit]) {
        for unit in units {
            let (word, outcome) = match unit {
                Unit::Config => ("configuration", tokio::task::block_in_place(|| self.reload_config())),
                Unit::Tls => ("certificates", tokio::task::block_in_place(|| self.reload_tls())),
                Unit::Crl => ("crl", tokio::task::block_in_place(|| self.reload_list())),
            };
            let faults = match outcome {
                Outcome::Applied => Vec::new(),
                Outcome::Rejected(faults) => faults,
            };
            if faults.is_empty() {
                log::info!("reload: {word} applied");
            } else {
                log::error!("reload: {word} rejected, what was in force stays so");
                faults.iter().for_each(|fault| log::error!("{fault}"));
            }
            self.board.reloaded(Reloaded { at: OffsetDateTime::now_utc(), unit: word, faults });
            if *unit == Unit::Config {
                // New backends come into force before anybody asks for them.
                self.service.bring_up(std::time::Duration::from_millis(200)).await;
            }
        }
    }

    fn reload_config(&mut self) -> Outcome {
        let loaded = match config::reload(&self.paths, self.file.as_deref()) {
            Ok(loaded) => loaded,
            Err(faults) => return Outcome::Rejected(faults.iter().map(ToString::to_string).collect()),
        };
        if let Some(fault) = tls::fault_of_client_ca(&loaded) {
            return Outcome::Rejected(vec![fault.to_string()]);
        }
        let changed = config::changes(&self.config, &loaded.config);
        let needs_restart = config::changes(&self.booted, &loaded.config).needs_restart;
        if !needs_restart.is_empty() {
            log::warn!("a restart is needed for what changed in {}", needs_restart.join(", "));
        }
        self.limits.store(Arc::new(to_limits(&loaded.config)));
        let before = self.service.in_force();
        self.service.put_in_force(in_force(&loaded.config, &before.map));
        let certificates_too = ["tls", "advertise"].iter().any(|field| changed.hot.contains(field));
        // What only a restart can change stays as the service was started with.
        self.config = Config {
            name: self.booted.name.clone(),
            node: self.booted.node.clone(),
            scope: self.booted.scope,
            listen: self.booted.listen.clone(),
            pki: self.booted.pki.clone(),
            catalog: self.booted.catalog.clone(),
            admin: self.booted.admin.clone(),
            ..loaded.config.clone()
        };
        self.board.update(|facts| {
            facts.needs_restart = needs_restart.iter().map(ToString::to_string).collect();
        });
        if certificates_too {
            let outcome = match self.reload_tls() {
                Outcome::Applied => Vec::new(),
                Outcome::Rejected(faults) => faults,
            };
            self.board.reloaded(Reloaded {
                at: OffsetDateTime::now_utc(),
                unit: "certificates",
                faults: outcome,
            });
        }
        self.watcher.set_files(followed(&loaded, &self.tls));
        self.write_spec();
        Outcome::Applied
    }

    fn reload_tls(&mut self) -> Outcome {
        let outcome = self.tls.reload(&self.config);
        self.after_certificates(outcome)
    }

    fn reload_list(&mut self) -> Outcome {
        let outcome = self.tls.reload_list();
        self.after_certificates(outcome)
    }

    fn after_certificates(&self, outcome: Result<(), ServeError>) -> Outcome {
        self.server.recheck();
        self.issuing.store(Arc::new(Issuing {
            plugin: self.config.name.clone(),
            advertise: spec::advertised(&self.config, &self.listening),
            ours: self.tls.is_ours(),
        }));
        self.board.update(|facts| facts.server_certificate_expires = self.tls.expires());
        match outcome {
            Ok(()) => Outcome::Applied,
            Err(error) => Outcome::Rejected(vec![worded(&error)]),
        }
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
