//! Bundles: the files with which a host's engine finds and reaches a server, as an archive for `tar -C /
//! -xf`.
//!
//! The spec file comes last: an engine that looks while the archive is being unpacked finds either no plugin,
//! or a plugin whose certificates are all there.

use std::io;

use time::OffsetDateTime;

/// The path of the authority's certificate on a host that unpacked a bundle.
pub const CA_FILE: &str = "/etc/docker/volhost/ca.crt";
/// The path of the host's certificate.
pub const CERT_FILE: &str = "/etc/docker/volhost/host.crt";
/// The path of the host's key. A host that made its own key must put it there.
pub const KEY_FILE: &str = "/etc/docker/volhost/host.key";
/// The directory of the spec file, which is named after the plugin.
pub const SPEC_DIR: &str = "/etc/docker/plugins";
/// The directory of the certificates and the key.
const CERT_DIR: &str = "/etc/docker/volhost";

/// The content of a bundle.
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
    /// The host's key; `None` if the host made its own.
    pub key_pem: Option<&'a str>,
}

/// Reasons why no bundle was made.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The plugin's name would put the spec file into another directory.
    #[error("{0:?} is no plain file name, so that no spec file can be named by it")]
    Name(String),
    /// The archive could not be written.
    #[error("the bundle could not be put together")]
    Archive(#[source] io::Error),
}

/// Makes a bundle: the two directories and their files, owned by root, with their modes, dated now.
///
/// `/etc/docker` has no entry: unpacking one would change the mode of the host's own directory.
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
    let mut append = |path: &str, content: &[u8], mode, kind| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(now);
        // The paths in an archive are relative: `tar -C /` says to what.
        archive.append_data(&mut header, path.trim_start_matches('/'), content)
    };
    for directory in [CERT_DIR, SPEC_DIR] {
        append(&format!("{directory}/"), &[], 0o755, tar::EntryType::Directory)
            .map_err(BundleError::Archive)?;
    }
    for (path, content, mode) in files {
        append(path, content, mode, tar::EntryType::Regular).map_err(BundleError::Archive)?;
    }
    archive.into_inner().map_err(BundleError::Archive)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const WHOLE: Bundle<'_> = Bundle {
        plugin: "volhost",
        spec_json: b"{}\n",
        ca_pem: "the CA\n",
        cert_pem: "the certificate\n",
        key_pem: Some("the key\n"),
    };

    #[test]
    fn tar_installs_it() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("web1.tar");
        std::fs::write(&archive, bundle(&WHOLE).unwrap()).unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let tar = |arguments: &[&str]| {
            let output = Command::new("tar")
                .args(["-C", root.to_str().unwrap()])
                .args(arguments)
                .arg(&archive)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        // The host has this directory already, and its administrator has a strict umask.
        std::fs::create_dir_all(root.join("etc/docker")).unwrap();
        std::fs::set_permissions(root.join("etc/docker"), std::fs::Permissions::from_mode(0o750)).unwrap();
        let unpacked = Command::new("sh")
            .args(["-c", "umask 077; tar -C \"$1\" -xf \"$2\"", "sh"])
            .args([&root, &archive])
            .status()
            .unwrap();
        assert!(unpacked.success());
        for (path, mode) in
            [("etc/docker", 0o750), ("etc/docker/plugins", 0o755), ("etc/docker/volhost", 0o755)]
        {
            let found = root.join(path).metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{path}: {found:o}");
        }
        for (path, content, mode) in [
            (CA_FILE, "the CA\n", 0o644),
            (CERT_FILE, "the certificate\n", 0o644),
            (KEY_FILE, "the key\n", 0o600),
            ("/etc/docker/plugins/volhost.json", "{}\n", 0o644),
        ] {
            let path = root.join(Path::new(path).strip_prefix("/").unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, mode, "{}", path.display());
        }

        let listing = tar(&["--numeric-owner", "-tvf"]);
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 6, "{listing}");
        let order = [
            "etc/docker/volhost/",
            "etc/docker/plugins/",
            "ca.crt",
            "host.crt",
            "host.key",
            "etc/docker/plugins/volhost.json",
        ];
        for (line, end) in lines.into_iter().zip(order) {
            assert!(line.ends_with(end) && line.contains(" 0/0 "), "{line}");
        }
    }

    #[test]
    fn a_host_that_made_its_own_key_gets_none() {
        let bytes = bundle(&Bundle { key_pem: None, plugin: "netshare", ..WHOLE }).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let paths: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        let expected = [
            "etc/docker/volhost/",
            "etc/docker/plugins/",
            "etc/docker/volhost/ca.crt",
            "etc/docker/volhost/host.crt",
            "etc/docker/plugins/netshare.json",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_plugins_name_cannot_lead_elsewhere() {
        for plugin in ["", "../../cron.d/x", "a/b", ".hidden", ".."] {
            assert!(matches!(bundle(&Bundle { plugin, ..WHOLE }), Err(BundleError::Name(_))), "{plugin:?}");
        }
    }
}
