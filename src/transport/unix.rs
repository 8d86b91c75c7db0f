//! Unix sockets: bound so that nobody can connect before the permissions stand, replaced only when nobody serves them,
//! and removed at the end only while they are still ours.
//!
//! This module must never remove a file that is not a socket, nor one that another process answers on.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::files;

/// The group that may use a Docker engine's sockets, and therefore ours.
const GROUP: &str = "docker";

/// Who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The owner alone: 0600.
    Owner,
    /// The owner and the group `docker`, where there is one: 0660.
    Group,
}

/// Why a Unix socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// Somebody answers on it.
    #[error("another process serves it already: is volhost running?")]
    Live,
    /// The path is in use by something else.
    #[error("the path exists and is no socket: remove it or choose another path")]
    NotASocket,
    /// The directory is missing and could not be made.
    #[error("its directory {path} could not be made")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Any other step failed.
    #[error("could not {step}")]
    Step {
        /// What was to be done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> UnixError {
    move |source| UnixError::Step { step, source }
}

/// The file of a bound socket: removed when this is dropped, unless another one took its place meanwhile.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, by which we know our own again.
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What stands at the path.
    pub(super) fn look(&self) -> Stands {
        look(&self.path, self.identity)
    }
}

/// What stands where a socket was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// That socket.
    Ours,
    /// Nothing.
    Nothing,
    /// Something else, or something that cannot be looked at.
    Other,
}

/// What stands at a path where a socket with this device and inode was bound. As long as that is open, no other file
/// gets its inode.
pub(super) fn look(path: &Path, bound: (u64, u64)) -> Stands {
    match identity(path) {
        Ok(found) if found == bound => Stands::Ours,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Stands::Nothing,
        Ok(_) | Err(_) => Stands::Other,
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("the socket {} could not be removed: {error}", self.path.display());
        }
    }
}

/// Binds a socket at `path`.
///
/// It is bound, given its mode and group, and only then listened on: until then the kernel refuses every connection,
/// whatever the umask left open.
pub(super) async fn bind(path: &Path, access: Access) -> Result<(UnixListener, SocketFile), UnixError> {
    if let Some(parent) = path.parent() {
        // Who may connect is said by the socket's own mode.
        files::make_dir(parent, 0o755)
            .map_err(|source| UnixError::Directory { path: parent.into(), source })?;
    }
    clear(path).await?;
    let socket = UnixSocket::new_stream().map_err(step("make a socket"))?;
    socket.bind(path).map_err(step("bind it"))?;
    let identity = identity(path).map_err(step("read back what was bound"))?;
    let file = SocketFile { path: path.into(), identity };
    let mode = match access {
        Access::Owner => 0o600,
        Access::Group => {
            let groups = fs::read_to_string("/etc/group").unwrap_or_default();
            if let Some(gid) = gid_of(&groups, GROUP)
                && let Err(error) = std::os::unix::fs::lchown(path, None, Some(gid))
            {
                // Without root only a member of the group may do this; its owner can connect all the same.
                log::info!("the socket {} is not given to the group {GROUP}: {error}", path.display());
            }
            0o660
        }
    };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(step("set its permissions"))?;
    let listener = socket.listen(1024).map_err(step("listen on it"))?;
    Ok((listener, file))
}

/// Removes a socket that nobody serves any more; refuses whatever else stands at `path`.
async fn clear(path: &Path) -> Result<(), UnixError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(step("look at its path")(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(UnixError::NotASocket);
    }
    match UnixStream::connect(path).await {
        // A full backlog is somebody's backlog.
        Ok(_) => Err(UnixError::Live),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(UnixError::Live),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("replacing the socket {}, which nobody serves", path.display());
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(step("remove the old socket, which nobody serves")(error))
                }
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(step("find out whether somebody serves it")(error)),
    }
}

/// The device and inode of what stands at a path.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The number of a group in the text of `/etc/group`.
fn gid_of(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[tokio::test]
    async fn sockets_have_their_mode_and_a_directory_and_go_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/volhost/x.sock");
        for (access, expected) in [(Access::Owner, 0o600), (Access::Group, 0o660)] {
            let (_listener, file) = bind(&path, access).await.unwrap();
            assert_eq!(mode(&path), expected);
            UnixStream::connect(&path).await.unwrap();
            drop(file);
            assert!(!path.exists());
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, _file) = bind(&path, Access::Owner).await.unwrap();
        assert!(matches!(bind(&path, Access::Owner).await, Err(UnixError::Live)));
        UnixStream::connect(&path).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, Access::Owner).await, Err(UnixError::NotASocket)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn another_ones_socket_is_not_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let (_listener, file) = bind(&path, Access::Owner).await.unwrap();
        // The other one is made before ours is gone, so that it cannot get the same inode.
        let other = std::os::unix::net::UnixListener::bind(dir.path().join("y.sock")).unwrap();
        fs::rename(dir.path().join("y.sock"), &path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let groups = "root:x:0:\ndockerx:x:7:\ndocker:x:998:alice,bob\nbad\n";
        assert_eq!(gid_of(groups, "docker"), Some(998));
        assert_eq!(gid_of(groups, "bad"), None);
        assert_eq!(gid_of("", "docker"), None);
    }
}
