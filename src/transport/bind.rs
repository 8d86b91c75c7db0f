//! From addresses to bound sockets, all or none.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::{SocketType, sockopt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::listen::Listen;
use super::tcp::{self, TcpError};
use super::unix::{self, Access, SocketFile, UnixError};

/// Why an address could not be bound. Whatever was bound before it was given back.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A TCP address.
    #[error("cannot listen on {address}")]
    Tcp {
        /// As configured.
        address: String,
        /// Why.
        #[source]
        source: TcpError,
    },
    /// A Unix socket.
    #[error("cannot listen on {address}")]
    Unix {
        /// As configured.
        address: String,
        /// Why.
        #[source]
        source: UnixError,
    },
    /// A socket was handed over that nothing is to be served on: connections to it would hang without an answer.
    #[error(
        "a socket on {inherited} was handed over (by a .socket unit of systemd?), but \"listen\" and \"admin\" have no such address, only {configured}: make them name the same addresses"
    )]
    Inherited {
        /// The socket's address.
        inherited: String,
        /// The addresses that are to be served.
        configured: String,
    },
    /// A socket was handed over that no connection can be accepted on.
    #[error(
        "a socket was handed over that cannot be listened on: volhost takes ListenStream= sockets, with Accept=no"
    )]
    NotListening(#[source] io::Error),
}

/// A bound socket that nobody accepts on yet; the kernel queues connections meanwhile. Dropping it closes it and
/// removes a Unix socket's file.
#[derive(Debug)]
pub struct Bound {
    listen: Listen,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    /// Without a file when the socket was inherited: then it is not ours to remove. The file goes before the listener
    /// is closed, so that nobody takes it for a stale one meanwhile and puts a new one in its place.
    Unix {
        #[expect(dead_code, reason = "it is held for its drop")]
        file: Option<SocketFile>,
        listener: UnixListener,
    },
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Binds every address, or none: when one fails, those bound before it are closed again. Where a socket of
/// `inherited` has the address already, that one is taken; one that has none of the addresses is an error.
///
/// # Errors
/// When an address cannot be bound, or a socket was inherited that cannot be served.
pub async fn bind(listen: &[Listen], inherited: Vec<OwnedFd>) -> Result<Vec<Bound>, BindError> {
    let mut inherited = inherited.into_iter().map(Inherited::examine).collect::<Result<Vec<_>, _>>()?;
    if let Some(stranger) = inherited.iter().find(|socket| !listen.iter().any(|listen| socket.is_at(listen)))
    {
        let configured = listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(BindError::Inherited { inherited: stranger.address(), configured });
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
            Listen::Https(address) | Listen::Http(address) => {
                Socket::Tcp(tcp::bind(*address).await.map_err(tcp_error)?)
            }
            Listen::Unix(path) => {
                let (listener, file) = unix::bind(path, Access::Group).await.map_err(unix_error)?;
                Socket::Unix { file: Some(file), listener }
            }
            Listen::Admin(path) => {
                let (listener, file) = unix::bind(path, Access::Owner).await.map_err(unix_error)?;
                Socket::Unix { file: Some(file), listener }
            }
        };
        all.push(Bound { listen: listen.clone(), socket });
    }
    Ok(all)
}

/// A socket that was handed over, with its address.
enum Inherited {
    Tcp(std::net::TcpListener, SocketAddr),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

impl Inherited {
    /// Finds out what a file is that is said to be a listening socket.
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

    /// Whether it has this very address. The port alone would not do: whoever configured a loopback address does not
    /// want it served to all.
    fn is_at(&self, listen: &Listen) -> bool {
        match (self, listen) {
            (Self::Tcp(_, own), Listen::Https(address) | Listen::Http(address)) => {
                own.port() == address.port() && canonical(*own) == canonical(*address)
            }
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
    /// Takes a listening TCP socket that somebody else bound, to be served as `listen` says.
    ///
    /// # Errors
    /// When `listen` is no TCP address, or the runtime cannot take the socket.
    pub fn inherited_tcp(listen: Listen, socket: std::net::TcpListener) -> io::Result<Self> {
        if !matches!(listen, Listen::Https(_) | Listen::Http(_)) {
            return Err(wrong_kind(&listen, "TCP"));
        }
        socket.set_nonblocking(true)?;
        Ok(Self { listen, socket: Socket::Tcp(TcpListener::from_std(socket)?) })
    }

    /// Takes a listening Unix socket that somebody else bound, to be served as `listen` says. Its file stays.
    ///
    /// # Errors
    /// When `listen` is no Unix address, or the runtime cannot take the socket.
    pub fn inherited_unix(listen: Listen, socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        if !matches!(listen, Listen::Unix(_) | Listen::Admin(_)) {
            return Err(wrong_kind(&listen, "Unix"));
        }
        socket.set_nonblocking(true)?;
        Ok(Self { listen, socket: Socket::Unix { file: None, listener: UnixListener::from_std(socket)? } })
    }

    /// What was asked for.
    #[must_use]
    pub fn listen(&self) -> &Listen {
        &self.listen
    }

    /// The address with the port that was really bound, as in `https://127.0.0.1:34567`.
    #[must_use]
    pub fn address(&self) -> String {
        let mut listen = self.listen.clone();
        if let (Socket::Tcp(listener), Listen::Https(address) | Listen::Http(address)) =
            (&self.socket, &mut listen)
            && let Ok(bound) = listener.local_addr()
        {
            *address = bound;
        }
        listen.to_string()
    }

    /// The next connection. Safe to drop while waiting.
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

/// An address as it is compared: an IPv4 one stays the same when it comes through an IPv6 socket.
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
        let stranger = tcp();
        let address = stranger.local_addr().unwrap();
        // The port alone is not enough: it would be served where nobody wanted it.
        let everywhere = Listen::Https(SocketAddr::new([0, 0, 0, 0].into(), address.port()));
        let error = bind(std::slice::from_ref(&everywhere), vec![stranger.into()]).await.unwrap_err();
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
