//! The configuration as a unit of the reload: the one in force, its files, and how it is read again.

use std::path::PathBuf;

use super::node_name;
use super::tls::{self, CertificatesRead, Tls};
use crate::config::snapshot::FileSnapshot;
use crate::config::{self, Config, Fault, Live, Loaded, Paths, Rejected};
use crate::model::host::HostName;

/// The configuration in force and its files.
pub(super) struct ConfigUnit {
    paths: Paths,
    /// The file given by `--config`.
    file: Option<PathBuf>,
    config: Config,
    /// The files that the configuration in force was read from.
    files: Vec<FileSnapshot>,
    /// The machine's hostname, as it was last read.
    hostname: Option<HostName>,
}

/// A configuration as it was read, with the findings that need other files.
pub(super) struct ConfigRead {
    loaded: Result<Loaded, Rejected>,
    pub(super) findings: Findings,
}

/// Findings about a configuration whose files have no fault.
#[derive(Default)]
pub(super) struct Findings {
    /// The machine's hostname, if the configuration names no `node`.
    hostname: Option<HostName>,
    /// The fields of [`Boot`](config::Boot) that changed.
    pub(super) needs_restart: Vec<&'static str>,
    client_ca_fault: Option<Fault>,
    /// The certificates, if the configuration cannot come into force without them.
    pub(super) certificates: Option<CertificatesRead>,
}

impl ConfigUnit {
    pub(super) fn new(paths: Paths, file: Option<PathBuf>, loaded: Loaded) -> Self {
        Self { paths, file, config: loaded.config, files: loaded.files, hostname: None }
    }

    /// Returns the configuration in force.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the job that reads the configuration; it knows what is in force at this moment. With `forced`, files
    /// that were in force may be missing.
    pub(super) fn job(&self, tls: &Tls, forced: bool) -> impl FnOnce() -> ConfigRead + Send + use<> {
        let (paths, file, boot) = (self.paths.clone(), self.file.clone(), self.config.boot.clone());
        let in_force = if forced { Vec::new() } else { self.files.clone() };
        let ours_only = tls.trusts_ours_only();
        let client_ca = self.config.live.tls.client_ca.clone();
        let certificates = tls.reader(&self.config, forced, true);
        move || {
            let mut loaded = config::reload(&paths, file.as_deref(), &in_force);
            let mut findings = Findings::default();
            if let Ok(loaded) = &mut loaded {
                // The certificates are a separate unit: they are checked here only if they are others than those in
                // force.
                if !ours_only || loaded.config.live.tls.client_ca != client_ca {
                    findings.client_ca_fault = tls::fault_of_client_ca(loaded);
                }
                if !loaded.config.boot.node_configured {
                    findings.hostname = Some(loaded.config.boot.node.clone());
                    loaded.config.boot.node.clone_from(&boot.node);
                }
                findings.needs_restart = boot.changed(&loaded.config.boot);
                loaded.config.boot = boot;
                if findings.client_ca_fault.is_none() && loaded.config.live.hosts.is_none() && !ours_only {
                    // The list of hosts must not be lifted before the foreign authority is gone.
                    findings.certificates = certificates.map(|reader| reader.with(&loaded.config).read());
                }
            }
            ConfigRead { loaded, findings }
        }
    }

    /// Returns the configuration that was read, or its faults in words.
    pub(super) fn check(&mut self, read: ConfigRead) -> Result<(Config, Findings), Vec<String>> {
        let ConfigRead { loaded, mut findings } = read;
        let loaded = loaded.map_err(|Rejected { faults, files: _ }| {
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        })?;
        if let Some(fault) = findings.client_ca_fault.take() {
            return Err(vec![fault.to_string()]);
        }
        if let Some(hostname) = findings.hostname.take() {
            self.note_hostname(hostname);
        }
        Ok((loaded.config, findings))
    }

    /// Puts the live part in force; the rest stays as it was when the service started.
    pub(super) fn replace(&mut self, live: Live) {
        self.config.live = live;
    }

    /// Records the files that the configuration in force was read from.
    pub(super) fn set_files(&mut self, files: Vec<FileSnapshot>) {
        self.files = files;
    }

    /// Logs once that the machine has another hostname now, which changes nothing.
    fn note_hostname(&mut self, hostname: HostName) {
        if self.hostname.as_ref() != Some(&hostname) {
            let node = &self.config.boot.node;
            if hostname != *node {
                log::warn!("{}", node_name::told(node, &hostname));
            }
            self.hostname = Some(hostname);
        }
    }
}

impl ConfigRead {
    /// Returns the files that were read, to be followed from now on.
    pub(super) fn files(&self) -> Vec<FileSnapshot> {
        match &self.loaded {
            Ok(loaded) => loaded.files.clone(),
            Err(rejected) => rejected.files.clone(),
        }
    }
}
