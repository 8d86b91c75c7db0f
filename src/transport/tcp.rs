//! TCP sockets, and the options of every TCP connection.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Reasons why a TCP address could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    /// Another socket has the address.
    #[error("the port is in use by another process: is volhost running already?")]
    InUse,
    /// The address belongs to another machine, or to none.
    #[error("this machine has no such address")]
    NotOurs,
    /// Ports below 1024 need a privilege.
    #[error("this port needs root or CAP_NET_BIND_SERVICE: choose one from 1024 on")]
    Privileged,
    /// Any other error of the system.
    #[error("the system refused it")]
    Other(#[source] io::Error),
}

pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, TcpError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => TcpError::InUse,
        io::ErrorKind::AddrNotAvailable => TcpError::NotOurs,
        io::ErrorKind::PermissionDenied => TcpError::Privileged,
        _ => TcpError::Other(error),
    })
}

/// Sets the options of a connection: answers leave at once, and a peer that vanished is detected within about
/// two minutes, although an idle connection may stay open for much longer.
pub(super) fn prepare(stream: &TcpStream) {
    let set = || -> io::Result<()> {
        stream.set_nodelay(true)?;
        rustix::net::sockopt::set_socket_keepalive(stream, true)?;
        rustix::net::sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
        rustix::net::sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15))?;
        rustix::net::sockopt::set_tcp_keepcnt(stream, 4)?;
        Ok(())
    };
    if let Err(error) = set() {
        // The peer may be gone already, and a connection without these options still works.
        log::debug!("socket options were not set: {error}");
    }
}
