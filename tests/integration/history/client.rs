//! Clients: each a host of its own, which asks one thing after the other and writes down what comes of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::generate::{Plan, Planned};
use super::model::Access;
use super::record::{Answer, Call, Record, named};
use crate::harness::Host;
use crate::harness::http::{Client, Identity, dial};

/// How long a client waits before it goes on after a request that could not be sent.
const REST: Duration = Duration::from_millis(50);

/// Where the instances are.
pub(super) struct Doors<'a> {
    /// The machines that the instances are on; none where they are on this one.
    hosts: Vec<&'a Host>,
    identities: Vec<Identity>,
    /// Where each instance listens, while it does, and how often that has changed.
    places: Mutex<Vec<(Option<SocketAddr>, u64)>>,
}

impl<'a> Doors<'a> {
    /// Doors that are closed, for clients with these certificates.
    pub(super) fn new(hosts: Vec<&'a Host>, identities: Vec<Identity>, instances: usize) -> Self {
        Self { hosts, identities, places: Mutex::new(vec![(None, 0); instances]) }
    }

    /// From now on the instance listens there, or nowhere.
    pub(super) fn set(&self, instance: usize, place: Option<SocketAddr>) {
        let mut places = self.places.lock().expect("no holder of this lock panics");
        let (_, changes) = places[instance];
        places[instance] = (place, changes + 1);
    }

    fn place(&self, instance: usize) -> (Option<SocketAddr>, u64) {
        self.places.lock().expect("no holder of this lock panics")[instance]
    }

    fn open(&self, client: usize, instance: usize) -> io::Result<Client> {
        let (Some(place), _) = self.place(instance) else { return Err(io::ErrorKind::NotConnected.into()) };
        let identity = &self.identities[client];
        let stream = match self.hosts.get(instance) {
            Some(host) => host.dial(place)?,
            None => dial(place)?,
        };
        Client::tls(stream, &identity.ca, Some(identity))
    }
}

/// What the clients share.
pub(super) struct Scene<'a> {
    /// The beginning of the history.
    epoch: Instant,
    /// How they come to the instances.
    pub doors: Doors<'a>,
    /// What they wrote down.
    pub records: Mutex<Vec<Record>>,
    over: AtomicBool,
}

impl<'a> Scene<'a> {
    /// One that begins now.
    pub(super) fn new(doors: Doors<'a>) -> Self {
        let (records, over) = (Mutex::default(), AtomicBool::new(false));
        Self { epoch: Instant::now(), doors, records, over }
    }

    /// Microseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).expect("a test ends within years")
    }

    /// Asks the clients to end after the request that each of them waits for.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Asks for one thing after the other until the end. A Mount that fails is followed by an Unmount at the same
    /// instance, as Docker Engine 20.10 sends it.
    pub(super) fn work(&self, client: usize, mut plan: Plan, instances: usize) {
        let mut connections: Vec<Option<(Client, u64)>> = (0..instances).map(|_| None).collect();
        let mut consequence = None;
        for number in 0.. {
            let Some(Planned { instance, call, volume, pause }) = consequence.take().or_else(|| plan.next())
            else {
                return;
            };
            if self.over.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(pause);
            let begun = self.now();
            let (_, changes) = self.doors.place(instance);
            // A connection to one that was killed is not worth a request.
            let kept = connections[instance].take().filter(|(_, of)| *of == changes).map(|(open, _)| open);
            let (invoked, answer) = match kept.map_or_else(|| self.doors.open(client, instance), Ok) {
                Ok(mut open) => {
                    let invoked = self.now();
                    let said = open.call(&format!("/VolumeDriver.{}", call.verb()), &body(call, volume));
                    if said.is_ok() {
                        connections[instance] = Some((open, changes));
                    }
                    let answer = Answer::of(call, said);
                    // What was broken between the look at the door and the request may be why nothing came of it.
                    (if matches!(answer, Answer::Lost(_)) { begun } else { invoked }, answer)
                }
                Err(error) => {
                    std::thread::sleep(REST);
                    (begun, Answer::Unsent(error.to_string()))
                }
            };
            let returned = self.now();
            if let (Call::Mount(id), Answer::Failed(_) | Answer::Lost(_)) = (call, &answer) {
                let (call, pause) = (Call::Unmount(id), Duration::ZERO);
                consequence = Some(Planned { instance, call, volume, pause });
            }
            let record = Record { client, number, instance, call, volume, invoked, returned, answer };
            self.records.lock().expect("no client panics with the lock").push(record);
        }
    }
}

fn body(call: Call, volume: usize) -> Value {
    let name = named('v', volume);
    match call {
        Call::Create(Access::Unsaid) => json!({ "Name": name }),
        Call::Create(Access::Shared) => json!({ "Name": name, "Opts": { "access": "shared" } }),
        Call::Create(Access::Exclusive) => json!({ "Name": name, "Opts": { "access": "exclusive" } }),
        Call::Mount(id) | Call::Unmount(id) => json!({ "Name": name, "ID": format!("m{id}") }),
        Call::Remove | Call::Get | Call::Path => json!({ "Name": name }),
        Call::List => json!({}),
    }
}
