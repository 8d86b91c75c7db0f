//! Binds sockets to addresses: all of them or none.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::{SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::listen::Listen;
use super::tcp::{self, TcpError};
use super::unix::{self, Access, PathContent, SocketFile, UnixError};

/// Reasons why an address could not be bound. Sockets that were bound before it are closed again.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A TCP address could not be bound.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address, as configured.
        address: String,
        /// The cause.
        #[source]
        source: TcpError,
    },
    /// A Unix socket could not be bound.
    #[error("cannot listen on {address}")]
    Unix {
        /// The address, as configured.
        address: String,
        /// The cause.
        #[source]
        source: UnixError,
    },
    /// A socket was inherited that no listener is configured for: connections to it would hang without an
    /// answer.
    #[error(
        "a socket on {inherited} was handed over (by a .socket unit of systemd?), but \"listen\" and \"admin\" have no such address, only {configured}: make them name the same addresses"
    )]
    Inherited {
        /// The address of the inherited socket.
        inherited: String,
        /// The configured addresses.
        configured: String,
    },
    /// A file was inherited that is not a listening socket.
    #[error(
        "a socket was handed over that cannot be listened on: volhost takes ListenStream= sockets, with Accept=no"
    )]
    NotListening(#[source] io::Error),
}

/// A bound socket on which nobody accepts yet; the kernel queues connections meanwhile. Its drop closes the
/// socket and removes the file of a Unix socket.
#[derive(Debug)]
pub struct Bound {
    listen: Listen,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// We must not remove the file of an inherited socket. We remove our own file before the listener is
    /// closed; otherwise another process could take it for a stale socket and put a new one in its place.
    Unix {
        file: UnixFile,
        listener: UnixListener,
    },
}

/// The file of a Unix socket.
#[derive(Debug)]
enum UnixFile {
    Own(SocketFile),
    /// The file of an inherited socket, with its device and inode if it was there.
    Inherited(PathBuf, Option<(u64, u64)>),
}

/// The state of a listening socket's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketStatus {
    /// The socket's address, as configured.
    pub address: String,
    /// The reason why nobody can connect by the path; `None` if everything is right.
    pub fault: Option<String>,
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Binds every address, or none: if one fails, the ones that were bound before are closed again. Uses a
/// socket of `inherited` if it has the address already.
///
/// # Errors
/// An address cannot be bound, or an inherited socket has none of the addresses or cannot accept connections.
pub async fn bind(listen: &[Listen], inherited: Vec<OwnedFd>) -> Result<Vec<Bound>, BindError> {
    let mut inherited = inherited.into_iter().map(Inherited::examine).collect::<Result<Vec<_>, _>>()?;
    if let Some(unconfigured) =
        inherited.iter().find(|socket| !listen.iter().any(|listen| socket.is_at(listen)))
    {
        let configured = listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(BindError::Inherited { inherited: unconfigured.address(), configured });
    }
    let mut all = Vec::with_capacity(listen.len());
    for listen in listen {
        if let Some(position) = inherited.iter().position(|socket| socket.is_at(listen)) {
            let bound = match inherited.swap_remove(position) {
                Inherited::Tcp(socket, _) => Bound::inherited_tcp(listen.clone(), socket),
                Inherited::Unix(socket, _) => Bound::inherited_unix(listen.clone(), socket),
            };
            log::info!("{listen}: served on a socket that was handed over");
            all.push(bound.map_err(BindError::NotListening)?);
            continue;
        }
        let tcp_error = |source| BindError::Tcp { address: listen.to_string(), source };
        let unix_error = |source| BindError::Unix { address: listen.to_string(), source };
        let socket = match listen {
            Listen::Https(address) | Listen::Http(address) | Listen::Monitoring(address, _) => {
                Socket::Tcp(tcp::bind(*address).await.map_err(tcp_error)?)
            }
            Listen::Unix(path) | Listen::Admin(path) => {
                let (listener, file) = unix::bind(path, access(listen)).await.map_err(unix_error)?;
                Socket::Unix { file: UnixFile::Own(file), listener }
            }
        };
        all.push(Bound { listen: listen.clone(), socket });
    }
    Ok(all)
}

/// Returns who may connect to a Unix socket.
fn access(listen: &Listen) -> Access {
    if matches!(listen, Listen::Admin(_)) { Access::Owner } else { Access::Group }
}

/// An inherited socket with its address.
enum Inherited {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Inherited {
    /// Checks that an inherited file is a listening socket, and reads its address.
    fn examine(socket: OwnedFd) -> Result<Self, BindError> {
        let refused = |why: &str| BindError::NotListening(io::Error::new(io::ErrorKind::InvalidInput, why));
        let failed = |errno: rustix::io::Errno| BindError::NotListening(errno.into());
        if sockopt::socket_type(&socket).map_err(failed)? != SocketType::STREAM {
            return Err(refused("it is no stream"));
        }
        if !sockopt::socket_acceptconn(&socket).map_err(failed)? {
            return Err(refused("it is a connection"));
        }
        let address = rustix::net::getsockname(&socket).map_err(failed)?;
        if let Ok(address) = SocketAddr::try_from(address.clone()) {
            return Ok(Self::Tcp(socket.into(), address));
        }
        let socket = std::os::unix::net::UnixListener::from(socket);
        let path = socket.local_addr().map_err(BindError::NotListening)?;
        let path = path.as_pathname().ok_or_else(|| refused("its address is neither of IP nor a path"))?;
        let path = path.to_path_buf();
        Ok(Self::Unix(socket, path))
    }

    /// Returns true if the socket has exactly this address. Comparing the port alone is not enough: an
    /// operator who configured a loopback address does not want it served to everybody.
    fn is_at(&self, listen: &Listen) -> bool {
        match (self, listen) {
            (
                Self::Tcp(_, own),
                Listen::Https(address) | Listen::Http(address) | Listen::Monitoring(address, _),
            ) => own.port() == address.port() && canonical(*own) == canonical(*address),
            (Self::Unix(_, own), Listen::Unix(path) | Listen::Admin(path)) => own == path,
            _ => false,
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Tcp(_, address) => address.to_string(),
            Self::Unix(_, path) => path.display().to_string(),
        }
    }
}

impl Bound {
    /// Takes a listening TCP socket that another process bound, to serve it as `listen` says.
    ///
    /// # Errors
    /// `listen` is not a TCP address, or the runtime cannot take the socket.
    pub fn inherited_tcp(listen: Listen, socket: std::net::TcpListener) -> io::Result<Self> {
        if !matches!(listen, Listen::Https(_) | Listen::Http(_) | Listen::Monitoring(..)) {
            return Err(wrong_kind(&listen, "TCP"));
        }
        socket.set_nonblocking(true)?;
        Ok(Self { listen, socket: Socket::Tcp(TcpListener::from_std(socket)?) })
    }

    /// Takes a listening Unix socket that another process bound, to serve it as `listen` says. Its file is
    /// never removed.
    ///
    /// # Errors
    /// `listen` is not a Unix address, or the runtime cannot take the socket.
    pub fn inherited_unix(listen: Listen, socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (Listen::Unix(path) | Listen::Admin(path)) = &listen else {
            return Err(wrong_kind(&listen, "Unix"));
        };
        let file = UnixFile::Inherited(path.clone(), unix::identity(path).ok());
        Ok(Self { listen, socket: Socket::Unix { file, listener: UnixListener::from_std(socket)? } })
    }

    /// Returns the address as configured.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// Returns the address with the port that was really bound, such as `https://127.0.0.1:34567`.
    #[must_use]
    pub fn address(&self) -> String {
        let mut listen = self.listen.clone();
        if let (
            Socket::Tcp(listener),
            Listen::Https(address) | Listen::Http(address) | Listen::Monitoring(address, _),
        ) = (&self.socket, &mut listen)
            && let Ok(bound) = listener.local_addr()
        {
            *address = bound;
        }
        listen.to_string()
    }

    /// Returns true if clients reach it by the path of a file, which somebody may remove.
    pub(super) fn has_file(&self) -> bool {
        matches!(self.socket, Socket::Unix { .. })
    }

    /// Checks that the file of a Unix socket is still there, and binds the socket again if the path is free.
    /// Leaves a file that somebody else put there.
    ///
    /// Returns also the old socket if it was replaced, because connections may still wait on it.
    pub(super) async fn repair(&mut self) -> (SocketStatus, Option<UnixListener>) {
        let address = self.listen.to_string();
        let Socket::Unix { file, listener } = &mut self.socket else {
            return (SocketStatus { address, fault: None }, None);
        };
        let (stands, path) = match &file {
            UnixFile::Own(own) => (own.path_content(), own.path().to_owned()),
            UnixFile::Inherited(path, Some(bound)) => (unix::path_content(path, *bound), path.clone()),
            UnixFile::Inherited(path, None) => (PathContent::Nothing, path.clone()),
        };
        let (told, is_own) = (path.display(), matches!(file, UnixFile::Own(_)));
        let (fault, before) = match (stands, is_own) {
            (PathContent::Ours, _) => (None, None),
            (_, false) => {
                let fault = format!(
                    "the socket {told}, which was handed over, is gone: restart the .socket unit of systemd that it is of"
                );
                (Some(fault), None)
            }
            (PathContent::Other, true) => {
                let fault = format!(
                    "the socket {told} was replaced by another file: remove that, and it is made again"
                );
                (Some(fault), None)
            }
            (PathContent::Nothing, true) => match unix::bind(&path, access(&self.listen)).await {
                Ok((new, new_file)) => {
                    log::warn!("the socket {told} was gone: it was made again");
                    *file = UnixFile::Own(new_file);
                    (None, Some(std::mem::replace(listener, new)))
                }
                Err(error) => {
                    let why = crate::error::chain(&error);
                    (Some(format!("the socket {told} is gone and cannot be made again: {why}")), None)
                }
            },
        };
        (SocketStatus { address, fault }, before)
    }

    /// Waits for the next connection. It is safe to drop the future while it waits.
    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok(Accepted::Tcp(stream, peer))
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

fn wrong_kind(listen: &Listen, kind: &str) -> io::Error {
    let why = format!("{listen} cannot be served on an inherited {kind} socket");
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Returns the IP address in the form in which addresses are compared: an IPv4 address is the same when it
/// comes through an IPv6 socket.
pub(super) fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_real_port_is_told() {
        let listen =
            [Listen::Http("127.0.0.1:0".parse().unwrap()), Listen::Https("[::1]:0".parse().unwrap())];
        let bound = bind(&listen, Vec::new()).await.unwrap();
        for (bound, start) in bound.iter().zip(["http://127.0.0.1:", "https://[::1]:"]) {
            let address = bound.address();
            let port: u16 = address.strip_prefix(start).unwrap().parse().unwrap();
            assert_ne!(port, 0);
        }
    }

    #[tokio::test]
    async fn one_failure_gives_everything_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let listen = [Listen::Unix(path.clone()), Listen::Https(taken.local_addr().unwrap())];
        let error = bind(&listen, Vec::new()).await.unwrap_err();
        let text = crate::error::chain(&error);
        assert!(
            text.contains(&format!("cannot listen on https://127.0.0.1:{port}: the port is in use")),
            "{text}"
        );
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn an_inherited_socket_keeps_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(Bound::inherited_unix(Listen::Unix(path.clone()), socket).unwrap());
        assert!(path.exists());
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("https://{}", socket.local_addr().unwrap());
        let listen = Listen::Https("127.0.0.1:0".parse().unwrap());
        assert_eq!(Bound::inherited_tcp(listen, socket).unwrap().address(), address);
    }

    #[tokio::test]
    async fn a_socket_whose_file_is_gone_is_bound_again_and_over_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/x.sock");
        let mut bound = bind(&[Listen::Unix(path.clone())], Vec::new()).await.unwrap().remove(0);
        assert_eq!(bound.repair().await.0.fault, None);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        let (look, before) = bound.repair().await;
        assert!(look.fault.is_none() && before.is_some() && path.exists());
        let connected = UnixStream::connect(&path).await.unwrap();
        assert!(matches!(bound.accept().await, Ok(Accepted::Unix(_))));
        drop(connected);

        std::fs::remove_file(&path).unwrap();
        for dead in [false, true] {
            if dead {
                drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            } else {
                std::fs::write(&path, "mine").unwrap();
            }
            let (look, before) = bound.repair().await;
            assert!(look.fault.is_some_and(|fault| fault.contains("x.sock")) && before.is_none());
            std::fs::remove_file(&path).unwrap();
        }
        assert!(bound.repair().await.1.is_some());

        let socket = std::os::unix::net::UnixListener::bind(dir.path().join("y.sock")).unwrap();
        let given = Listen::Unix(dir.path().join("y.sock"));
        let mut bound = Bound::inherited_unix(given, socket).unwrap();
        assert_eq!(bound.repair().await.0.fault, None);
        std::fs::remove_file(dir.path().join("y.sock")).unwrap();
        let (look, before) = bound.repair().await;
        assert!(look.fault.is_some_and(|fault| fault.contains(".socket unit")) && before.is_none());
    }

    #[tokio::test]
    async fn inherited_sockets_are_taken_by_their_address_and_the_rest_is_bound() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("x.sock"), dir.path().join("y.sock"));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let unix = std::os::unix::net::UnixListener::bind(&ours).unwrap();
        let listen = [Listen::Unix(other.clone()), Listen::Https(address), Listen::Unix(ours.clone())];
        let bound = bind(&listen, vec![unix.into(), tcp.into()]).await.unwrap();
        assert_eq!(bound.iter().map(|bound| bound.listen().clone()).collect::<Vec<_>>(), listen);
        drop(bound);
        assert!(ours.exists() && !other.exists(), "only the file of its own goes");
    }

    #[tokio::test]
    async fn a_socket_that_cannot_be_served_is_refused() {
        let tcp = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let unconfigured = tcp();
        let address = unconfigured.local_addr().unwrap();
        // The port alone is not enough: the socket would be served on addresses where nobody wanted it.
        let everywhere = Listen::Https(SocketAddr::new([0, 0, 0, 0].into(), address.port()));
        let error = bind(std::slice::from_ref(&everywhere), vec![unconfigured.into()]).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&address.to_string()) && text.contains(&everywhere.to_string()), "{text}");

        let listener = tcp();
        let address = listener.local_addr().unwrap();
        let connection = std::net::TcpStream::connect(address).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [OwnedFd::from(connection), OwnedFd::from(datagrams)] {
            let error = bind(&[Listen::Https(address)], vec![socket]).await.unwrap_err();
            assert!(matches!(error, BindError::NotListening(_)), "{error}");
        }
    }
}
