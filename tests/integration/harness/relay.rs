//! A stretch of network that breaks on command: it takes connections at one address of a machine and passes them on to
//! another, and in between answers are held up or lost, and the whole of it goes away as a service does that ends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use super::host::Host;

/// How often a thread looks whether it is to go on.
const TICK: Duration = Duration::from_millis(2);

/// A running (or stopped) relay.
pub(crate) struct Relay<'a> {
    host: &'a Host,
    at: SocketAddr,
    to: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    gone: AtomicBool,
    accepted: AtomicUsize,
    gate: Mutex<Gate>,
    connections: Mutex<Vec<Connection>>,
}

/// Where answers are held up.
#[derive(Default)]
struct Gate {
    closed: bool,
    /// That an answer waits before it.
    held: bool,
    /// That this one may pass.
    permit: bool,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    cut: Arc<AtomicBool>,
}

impl<'a> Relay<'a> {
    /// Takes connections at `at`, an address of this machine, and passes them on to `to`.
    pub(crate) fn start(host: &'a Host, at: SocketAddr, to: SocketAddr) -> Self {
        let mut relay = Self { host, at, to, shared: Arc::default(), acceptor: None };
        relay.start_again();
        relay
    }

    /// Starts it after it was stopped.
    pub(crate) fn start_again(&mut self) {
        assert!(self.acceptor.is_none(), "the relay runs already");
        self.shared = Arc::default();
        let (at, to, shared) = (self.at, self.to, Arc::clone(&self.shared));
        let (ready, is_ready) = channel();
        let acceptor = self.host.spawn(move || {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            // The other end waits for it.
            let _ = ready.send(());
            accept(&listener, to, &shared)
        });
        if is_ready.recv().is_err() {
            panic!("no relay at {at}: {:?}", acceptor.join());
        }
        self.acceptor = Some(acceptor);
    }

    /// How many connections came since it was started.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// From now on no answer passes, until it is let pass or lost.
    pub(crate) fn hold(&self) {
        self.shared.gate().closed = true;
    }

    /// Whether an answer has come that is held up.
    pub(crate) fn holds_one(&self) -> bool {
        let gate = self.shared.gate();
        gate.held && !gate.permit
    }

    /// Lets the one that is held up pass.
    pub(crate) fn let_one_pass(&self) {
        let mut gate = self.shared.gate();
        gate.permit = gate.held;
    }

    /// Lets everything pass from now on.
    pub(crate) fn let_pass(&self) {
        *self.shared.gate() = Gate::default();
    }

    /// Ends every connection, with whatever is held up. New ones are as good as ever.
    pub(crate) fn cut(&self) {
        let mut connections = self.shared.connections.lock().expect("no holder of this lock panics");
        for Connection { client, server, cut } in connections.drain(..) {
            cut.store(true, Ordering::SeqCst);
            for stream in [client, server] {
                // It may have been closed by its other end.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        drop(connections);
        self.let_pass();
    }

    /// Goes away: connections end, and new ones are refused.
    pub(crate) fn stop(&mut self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        if let Some(acceptor) = self.acceptor.take() {
            let ended = acceptor.join().expect("the thread does not panic");
            ended.expect("connections can be accepted");
        }
        self.cut();
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::SeqCst);
        self.cut();
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    while !shared.gone.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((client, _)) => {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                client.set_nonblocking(false)?;
                // What is behind the relay may be gone: then the client's connection ends.
                if let Ok(server) = TcpStream::connect(to) {
                    pass_on(client, server, shared)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TICK),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn pass_on(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let cut = Arc::new(AtomicBool::new(false));
    let (requests, answers) = (client.try_clone()?, server.try_clone()?);
    let (to_server, to_client) = (server.try_clone()?, client.try_clone()?);
    let of_answers = (Arc::clone(shared), Arc::clone(&cut));
    std::thread::spawn(move || copy(requests, to_server, || true));
    std::thread::spawn(move || copy(answers, to_client, || of_answers.0.may_pass(&of_answers.1)));
    let mut connections = shared.connections.lock().expect("no holder of this lock panics");
    connections.push(Connection { client, server, cut });
    Ok(())
}

/// Passes bytes on while they may pass; then ends both sides.
fn copy(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn() -> bool) {
    let mut bytes = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !may_pass() || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        // It may have been closed by its other end.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().expect("no holder of this lock panics")
    }

    /// Waits until an answer may pass; false when it is lost.
    fn may_pass(&self, cut: &AtomicBool) -> bool {
        loop {
            if cut.load(Ordering::SeqCst) {
                return false;
            }
            let mut gate = self.gate();
            if !gate.closed {
                return true;
            }
            if gate.permit {
                *gate = Gate { closed: true, ..Gate::default() };
                return true;
            }
            gate.held = true;
            drop(gate);
            std::thread::sleep(TICK);
        }
    }
}
