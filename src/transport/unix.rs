//! Unix sockets. Nobody can connect before a socket's permissions are set; an existing socket is replaced
//! only if nobody serves it; a socket's file is removed at the end only if it is still ours.
//!
//! This module must never remove a file that is not a socket, nor a socket that another process serves.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

use crate::files;

/// The group that may use a Docker engine's sockets, and therefore ours.
const GROUP: &str = "docker";

/// The users who may connect to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// The owner alone: 0600.
    Owner,
    /// The owner and the group `docker`, if there is one: 0660.
    Group,
}

/// Reasons why a Unix socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum UnixError {
    /// Another process serves the socket.
    #[error("another process serves it already: is volhost running?")]
    Live,
    /// The path belongs to a file that is not a socket.
    #[error("the path exists and is no socket: remove it or choose another path")]
    NotASocket,
    /// The directory is missing and could not be made.
    #[error("its directory {path} could not be made")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Any other step failed.
    #[error("could not {step}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> UnixError {
    move |source| UnixError::Step { step, source }
}

/// The file of a bound socket. Its drop removes the file, unless another file has taken its place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// The device and inode, which identify our own file.
    identity: (u64, u64),
}

impl SocketFile {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what is at the path now.
    pub(super) fn path_content(&self) -> PathContent {
        path_content(&self.path, self.identity)
    }
}

/// What is at the path of a bound socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathContent {
    /// The socket that was bound.
    Ours,
    /// Nothing.
    Nothing,
    /// Another file, or the path cannot be read.
    Other,
}

/// Returns what is at a path where a socket with this device and inode was bound. No other file gets that
/// inode while the socket is open.
pub(super) fn path_content(path: &Path, bound: (u64, u64)) -> PathContent {
    match identity(path) {
        Ok(found) if found == bound => PathContent::Ours,
        Err(error) if error.kind() == io::ErrorKind::NotFound => PathContent::Nothing,
        Ok(_) | Err(_) => PathContent::Other,
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
/// Sets the socket's mode and group after the bind and before the listen: until the listen the kernel refuses
/// every connection, whatever the umask allows.
pub(super) async fn bind(path: &Path, access: Access) -> Result<(UnixListener, SocketFile), UnixError> {
    if let Some(parent) = path.parent() {
        // The socket's own mode decides who may connect.
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
                // Without root only a member of the group may do this. The owner can connect all the same.
                log::info!("the socket {} is not given to the group {GROUP}: {error}", path.display());
            }
            0o660
        }
    };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(step("set its permissions"))?;
    let listener = socket.listen(1024).map_err(step("listen on it"))?;
    Ok((listener, file))
}

/// Removes a socket that nobody serves any more; refuses any other file at `path`.
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
        // A full backlog shows that a process serves the socket.
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

/// Returns the device and inode of the file at a path.
pub(super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Returns the number of a group, from the text of `/etc/group`.
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
        // The other socket is made before ours is gone, so that it cannot get the same inode.
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
