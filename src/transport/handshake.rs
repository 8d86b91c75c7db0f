//! The TLS handshake: it runs in the connection's own task, is bounded in time and number, and a failure is
//! explained in the log.
//!
//! A peer in a handshake has proved nothing yet, so it must not take a place from those that have: handshakes
//! are counted apart, and the oldest is given up if there are too many. A peer without access never gets an
//! answer.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::{AlertDescription, CertificateError, Error, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::time::ASN1Time;

use super::bind::canonical;
use super::connection::{Connection, Key};
use super::credential::Credential;
use super::credential::Verdicts;
use super::listen::MonitoringAccess;
use super::{FIRST_REQUEST_GRACE, Listen, Server};
use crate::error::chain;
use crate::host::{Caller, Via};

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeResult {
    /// The client has access.
    Accepted,
    /// The client has none, or the handshake failed.
    Refused,
    /// The client took too long, or had to make room for others.
    TimedOut,
    /// The client went away.
    Gone,
}

impl HandshakeResult {
    /// Every result.
    pub const ALL: [Self; 4] = [Self::Accepted, Self::Refused, Self::TimedOut, Self::Gone];

    /// Returns the result in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Gone => "gone",
        }
    }
}

impl Server {
    /// Does the TLS handshake and identifies the caller. Logs a peer without access and returns `None`.
    pub(super) async fn handshake(
        &self,
        listen: &Listen,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Option<(Arc<Connection>, TlsStream<TcpStream>)> {
        let outcome = self.identify(listen, stream, peer).await;
        (self.on_handshake)(match &outcome {
            Ok(_) => HandshakeResult::Accepted,
            Err(why) => *why,
        });
        outcome.ok()
    }

    async fn identify(
        &self,
        listen: &Listen,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Result<(Arc<Connection>, TlsStream<TcpStream>), HandshakeResult> {
        let Some(tls) = &self.tls else {
            self.log_limit.warn("no tls", "", || "an https address is served without certificates".into());
            return Err(HandshakeResult::Refused);
        };
        let state = tls.load_full();
        let needs_certificate = !matches!(listen, Listen::Monitoring(_, MonitoringAccess::Anyone));
        let config = if needs_certificate { &state.config } else { &state.open };
        let limits = self.limits.load_full();
        let address = canonical(peer);
        let from = caller_address(&stream, address);
        let refuse = |why: &str| {
            self.log_limit.warn(why, address, || format!("a connection from {peer} was refused: {why}"));
        };
        let place = self.handshakes.enter(address, (limits.connections / 4).max(16));
        let stream = tokio::select! {
            result = tokio::time::timeout(limits.handshake, accept_tls(config, stream)) => match result {
                Ok(Ok(stream)) => stream,
                Ok(Err(HandshakeError::Gone)) => {
                    log::debug!("{peer} went away during the handshake");
                    return Err(HandshakeResult::Gone);
                }
                Ok(Err(HandshakeError::Refused(why))) => {
                    refuse(&why);
                    return Err(HandshakeResult::Refused);
                }
                Err(_) => {
                    refuse("it did not finish the TLS handshake in time (limits.handshake)");
                    return Err(HandshakeResult::TimedOut);
                }
            },
            () = place.given_up() => {
                refuse("it did not finish the TLS handshake before too many others began one");
                return Err(HandshakeResult::TimedOut);
            }
            () = async {
                self.drain.started().await;
                tokio::time::sleep(FIRST_REQUEST_GRACE).await;
            } => return Err(HandshakeResult::TimedOut),
        };
        drop(place);
        let chain_of_peer = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let monitors = matches!(listen, Listen::Monitoring(..));
        if chain_of_peer.is_empty() && !needs_certificate {
            return Ok((Connection::of_anonymous_monitor(address, peer), stream));
        }
        let credential = match Credential::of(chain_of_peer, &state) {
            Ok(credential) => credential,
            Err(error) => {
                refuse(&chain(&error));
                return Err(HandshakeResult::Refused);
            }
        };
        let host = credential.host().clone();
        let caller = Caller { host: host.clone(), via: Via::Tls, address: Some(from) };
        let key = if monitors { Key::Monitor(address) } else { Key::Host(host) };
        let connection = Connection::new(caller, key, peer.to_string(), Some(credential));
        // A reload during the handshake counts, too.
        if let Err(refused) = self.check(&connection, &mut Verdicts::new()) {
            refuse(&chain(&refused));
            return Err(HandshakeResult::Refused);
        }
        Ok((connection, stream))
    }
}

/// Returns the address that a machine calls from. This machine may call from any of its own addresses, so all
/// of them count as one.
fn caller_address(stream: &TcpStream, peer: IpAddr) -> IpAddr {
    match (stream.local_addr().map(canonical), peer) {
        (Ok(own), IpAddr::V4(_)) if own == peer => Ipv4Addr::LOCALHOST.into(),
        (Ok(own), IpAddr::V6(_)) if own == peer => Ipv6Addr::LOCALHOST.into(),
        _ => peer,
    }
}

/// Reasons why a handshake failed.
enum HandshakeError {
    /// The peer closed the connection, as health checks do.
    Gone,
    /// The server refused the peer, for this reason in words for the log.
    Refused(String),
}

async fn accept_tls(
    config: &Arc<ServerConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, HandshakeError> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(HandshakeError::Gone),
        // A TLS connection always begins with a record of this type.
        Ok(_) if first == [22] => {}
        Ok(_) if first.iter().all(u8::is_ascii_uppercase) => {
            // The peer could read a plain answer, but gets none: dockerd forgets its labels and options of a
            // volume if a Get is answered with an error.
            return Err(HandshakeError::Refused(
                "it speaks plain HTTP to a TLS address: its spec file needs an https:// address and TLSConfig".into(),
            ));
        }
        Ok(_) => return Err(HandshakeError::Refused("it does not speak TLS".into())),
    }
    let acceptor = TlsAcceptor::from(Arc::clone(config));
    acceptor
        .accept(stream)
        .await
        .map_err(|error| explain(&error).map_or(HandshakeError::Gone, HandshakeError::Refused))
}

/// The message does not name the host, because an expired certificate is not verified: `host ls` shows the
/// host by the date.
const EXPIRED: &str = "its certificate has expired: `volhost host ls` shows whose that is, `volhost host renew` makes a new one";

/// Explains a failed handshake, in words for the log; `None` if the peer merely closed the connection, as
/// health checks and port scans do.
fn explain(error: &io::Error) -> Option<String> {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionAborted => None,
            _ => Some(error.to_string()),
        };
    };
    Some(match tls {
        Error::NoCertificatesPresented => {
            "it sent no client certificate: its spec file needs TLSConfig with CertFile and KeyFile".into()
        }
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is not from a CA in tls.client_ca".into()
            }
            CertificateError::Expired => EXPIRED.into(),
            CertificateError::ExpiredContext { not_after, .. } => {
                let at =
                    i64::try_from(not_after.as_secs()).ok().and_then(|at| ASN1Time::from_timestamp(at).ok());
                at.map_or_else(|| EXPIRED.into(), |at| format!("{EXPIRED}; it ended on {at}"))
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet: compare the two machines' clocks".into()
            }
            CertificateError::Revoked => "its certificate is revoked (tls.crl)".into(),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "its certificate is not meant for clients (extended key usage clientAuth)".into()
            }
            reason => format!("its certificate is not accepted: {reason}"),
        },
        Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired),
        ) => format!(
            "it does not trust our server certificate ({alert:?}): compare its CAFile, and the address it calls with the certificate's names"
        ),
        Error::InvalidMessage(_) => "it does not speak TLS".into(),
        Error::PeerIncompatible(reason) => {
            format!("it has no TLS version or cipher in common with us: {reason:?}")
        }
        error => error.to_string(),
    })
}

/// The handshakes under way. A handshake takes milliseconds, so if there are too many, the oldest are the
/// ones that stall.
#[derive(Debug, Default)]
pub(super) struct Handshakes(Mutex<BTreeMap<u64, (IpAddr, Arc<Notify>)>>);

/// A handshake's place, given back on drop.
#[derive(Debug)]
pub(super) struct Handshake<'a> {
    all: &'a Handshakes,
    id: u64,
    given_up: Arc<Notify>,
}

impl Handshakes {
    /// Adds a handshake. If there are more than `limit`, gives up the oldest; if one peer has more than half
    /// of `limit`, gives up the oldest of that peer.
    pub(super) fn enter(&self, peer: IpAddr, limit: usize) -> Handshake<'_> {
        let mut table = self.table();
        let by_peer = table.values().filter(|(other, _)| *other == peer).count();
        let oldest = if by_peer >= (limit / 2).max(1) {
            table.iter().find(|(_, (other, _))| *other == peer).map(|(id, _)| *id)
        } else if table.len() >= limit {
            table.keys().next().copied()
        } else {
            None
        };
        if let Some((_, given_up)) = oldest.and_then(|id| table.remove(&id)) {
            given_up.notify_one();
        }
        let id = table.keys().next_back().map_or(0, |last| last + 1);
        let given_up = Arc::new(Notify::new());
        table.insert(id, (peer, Arc::clone(&given_up)));
        drop(table);
        Handshake { all: self, id, given_up }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<u64, (IpAddr, Arc<Notify>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake<'_> {
    /// Waits until this handshake is given up for a newer one.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut table = self.all.table();
        // The ID may have been used again after this handshake was given up.
        if table.get(&self.id).is_some_and(|(_, given_up)| Arc::ptr_eq(given_up, &self.given_up)) {
            table.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::super::tls;
    use super::*;
    use crate::transport::testing::{Authority, Client, LONG, days};

    /// Returns what the log would say of a client.
    async fn said_of(
        state: &tls::State,
        client: impl AsyncFnOnce(u16) -> Option<Client> + Send + 'static,
    ) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = async {
            let (stream, _) = listener.accept().await.unwrap();
            match accept_tls(&state.config, stream).await {
                Ok(_) => panic!("the handshake went well"),
                Err(HandshakeError::Gone) => None,
                Err(HandshakeError::Refused(why)) => Some(why),
            }
        };
        let both = async { tokio::join!(accepting, client(port)).0 };
        tokio::time::timeout(LONG, both).await.unwrap()
    }

    #[tokio::test]
    async fn a_failed_handshake_is_explained() {
        let (ca, other) = (Authority::new("one CA"), Authority::new("another CA"));
        let own = ca.server();
        let (certificate, key, ca_pem) = (own.certificate, own.key, ca.pem());
        let crl = ca.crl(&[7]);
        let state =
            tls::State::load(certificate.as_bytes(), key.as_bytes(), ca_pem.as_bytes(), Some(crl.as_bytes()))
                .unwrap();
        let expired = ca.issue("web1", |params| params.not_after = days(-1));
        let cases = [
            (ca.client_config(None), "no client certificate"),
            (ca.client_config(Some(&other.client("web1", 1))), "not from a CA in tls.client_ca"),
            (ca.client_config(Some(&expired)), "has expired"),
            (ca.client_config(Some(&ca.client("web1", 7))), "is revoked"),
            (ca.client_config(Some(&ca.server())), "not meant for clients"),
            (other.client_config(Some(&ca.client("web1", 1))), "does not trust our server certificate"),
        ];
        for (config, expected) in cases {
            let config = Arc::new(config);
            let why = said_of(&state, async move |port| Client::tls(port, &config).await.ok()).await;
            assert!(why.as_deref().is_some_and(|why| why.contains(expected)), "{expected}: {why:?}");
        }
        for (bytes, expected) in [("POST / HTTP/1.1\r\n\r\n", "plain HTTP"), ("\x00", "does not speak TLS")] {
            let plain = async move |port| {
                let mut client = Client::tcp(port).await;
                client.send(bytes).await.unwrap();
                Some(client)
            };
            let why = said_of(&state, plain).await;
            assert!(why.as_deref().is_some_and(|why| why.contains(expected)), "{expected}: {why:?}");
        }
        let gone = said_of(&state, async |port| {
            drop(Client::tcp(port).await);
            None
        });
        assert_eq!(gone.await, None);
    }

    async fn is_given_up(handshake: &Handshake<'_>) -> bool {
        tokio::time::timeout(Duration::from_millis(1), handshake.given_up()).await.is_ok()
    }

    #[tokio::test]
    async fn the_oldest_handshakes_make_room() {
        let peer = |last| IpAddr::from([10, 0, 0, last]);
        let all = Handshakes::default();
        let greedy = [all.enter(peer(1), 4), all.enter(peer(1), 4)];
        let other = all.enter(peer(2), 4);
        let third = all.enter(peer(1), 4);
        assert!(is_given_up(&greedy[0]).await, "a peer has half of the places at most");
        assert!(!is_given_up(&greedy[1]).await);
        let fourth = all.enter(peer(3), 4);
        let fifth = all.enter(peer(4), 4);
        assert!(is_given_up(&greedy[1]).await, "beyond the limit the oldest goes");
        drop(greedy);
        for handshake in [&other, &third, &fourth, &fifth] {
            assert!(!is_given_up(handshake).await);
        }
        drop((other, third, fourth, fifth));
        assert!(all.table().is_empty());
    }
}
