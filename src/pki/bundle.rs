//! Bundles: what one host's engine needs to find and reach a server, as an archive for `tar -C / -xf`.
//!
//! The spec file comes last: an engine that looks while the archive is being unpacked finds either no plugin or one
//! whose certificates are all there.

use std::io;

use time::OffsetDateTime;

/// Where a bundle puts the authority's certificate on its host.
pub const CA_FILE: &str = "/etc/docker/volhost/ca.crt";
/// Where a bundle puts the host's certificate.
pub const CERT_FILE: &str = "/etc/docker/volhost/host.crt";
/// Where a bundle puts the host's key, and where a host that made its own is to put it.
pub const KEY_FILE: &str = "/etc/docker/volhost/host.key";
/// Where a bundle puts the spec file; its name is the plugin's.
pub const SPEC_DIR: &str = "/etc/docker/plugins";

/// What goes into a bundle.
#[derive(Clone, Copy)]
pub struct Bundle<'a> {
    /// The plugin's name on that host, which names the spec file: a plain file name.
    pub plugin: &'a str,
    /// The spec file's content: JSON that names [`CA_FILE`], [`CERT_FILE`] and [`KEY_FILE`].
    pub spec_json: &'a [u8],
    /// The authorities that the engine is to trust.
    pub ca_pem: &'a str,
    /// The host's certificate.
    pub cert_pem: &'a str,
    /// Its key; none for a host that made its own.
    pub key_pem: Option<&'a str>,
}

/// Why no bundle was made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The plugin's name would put the spec file elsewhere.
    #[error("{0:?} is no plain file name, so that no spec file can be named by it")]
    Name(String),
    /// The archive could not be put together.
    #[error("the bundle could not be put together")]
    Archive(#[source] io::Error),
}

/// Puts a bundle together: files only, owned by root, with their modes, dated now.
pub fn bundle(content: &Bundle<'_>) -> Result<Vec<u8>, BundleError> {
    let Bundle { plugin, spec_json, ca_pem, cert_pem, key_pem } = *content;
    if plugin.is_empty() || plugin.contains(['/', '\0']) || plugin.starts_with('.') {
        return Err(BundleError::Name(plugin.to_owned()));
    }
    let spec = format!("{SPEC_DIR}/{plugin}.json");
    let mut files = vec![(CA_FILE, ca_pem.as_bytes(), 0o644), (CERT_FILE, cert_pem.as_bytes(), 0o644)];
    files.extend(key_pem.map(|key| (KEY_FILE, key.as_bytes(), 0o600)));
    files.push((&spec, spec_json, 0o644));

    let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0);
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(now);
        // Relative, as archives are: `tar -C /` says where.
        archive
            .append_data(&mut header, path.trim_start_matches('/'), content)
            .map_err(BundleError::Archive)?;
    }
    archive.into_inner().map_err(BundleError::Archive)
}
