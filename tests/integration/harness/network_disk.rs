//! A disk that a virtual machine uses over the network (NBD), whose power can be cut: it records each write and each
//! flush, and tells what a real disk may hold when its power fails at any moment of the recording.
//!
//! A disk answers a write when it has the data in its cache. Only a flush (or a write that says so, FUA) makes durable
//! what was answered before. So at a cut each sector that was written since may be there or not, in any combination.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::random::Random;

/// The unit that a disk writes whole or not at all.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// How long a flush takes, as it does on a real disk: what is answered without waiting for one is answered before it.
const FLUSH_DURATION: Duration = Duration::from_millis(20);

/// The content of a disk. A clone shares what is not written afterwards.
#[derive(Clone)]
pub(crate) struct Image {
    size: u64,
    blocks: BTreeMap<u64, Arc<[u8; BLOCK]>>,
}

impl Image {
    /// Reads a file's content.
    pub(crate) fn read_file(path: &Path) -> io::Result<Self> {
        let file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        let mut image = Self { size, blocks: BTreeMap::new() };
        let mut block = [0; BLOCK];
        for number in 0..size / BLOCK as u64 {
            file.read_exact_at(&mut block, number * BLOCK as u64)?;
            if block != [0; BLOCK] {
                image.blocks.insert(number, Arc::new(block));
            }
        }
        Ok(image)
    }

    fn read(&self, at: u64, into: &mut [u8]) {
        let mut done = 0;
        while done < into.len() {
            let (number, offset, length) = place(at, done, into.len());
            match self.blocks.get(&number) {
                Some(block) => into[done..done + length].copy_from_slice(&block[offset..offset + length]),
                None => into[done..done + length].fill(0),
            }
            done += length;
        }
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let (number, offset, length) = place(at, done, data.len());
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(block)[offset..offset + length].copy_from_slice(&data[done..done + length]);
            done += length;
        }
    }
}

/// Returns the block in which a range goes on, where in it, and how far.
fn place(at: u64, done: usize, length: usize) -> (u64, usize, usize) {
    let here = at + done as u64;
    let offset = usize::try_from(here % BLOCK as u64).expect("it is less than a block");
    (here / BLOCK as u64, offset, (BLOCK - offset).min(length - done))
}

enum Event {
    Write { at: u64, data: Vec<u8>, durable: bool },
    Flush,
}

/// The writes and flushes that reached a disk, in order.
pub(crate) struct Recording {
    first: Image,
    now: Image,
    events: Vec<Event>,
}

impl Recording {
    fn new(image: Image) -> Self {
        Self { first: image.clone(), now: image, events: Vec::new() }
    }

    /// How many writes and flushes it has.
    pub(crate) fn len(&self) -> usize {
        self.events.len()
    }

    /// How many of these events made something durable.
    pub(crate) fn flushes(&self, events: Range<usize>) -> usize {
        let flushes = |event: &&Event| matches!(event, Event::Flush | Event::Write { durable: true, .. });
        self.events[events].iter().filter(flushes).count()
    }

    /// Returns the least that the disk may hold if its power fails after the first `at` events: everything that was
    /// flushed, and nothing of the rest.
    pub(crate) fn cut_to_promise(&self, at: usize) -> Image {
        let mut image = self.first.clone();
        let flushed = self.flushed(at);
        for (number, event) in self.events[..at].iter().enumerate() {
            if let Event::Write { at, data, durable } = event
                && (*durable || number < flushed)
            {
                image.write(*at, data);
            }
        }
        image
    }

    /// Returns the number of the first event that the last flush before event `at` did not make durable.
    fn flushed(&self, at: usize) -> usize {
        self.events[..at].iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0)
    }

    /// Returns what the disk may hold if its power fails after the first `at` events: everything that was flushed, and of
    /// the rest what chance leaves.
    pub(crate) fn cut(&self, at: usize, random: &mut Random) -> Image {
        let mut image = self.first.clone();
        let flushed = self.flushed(at);
        // Of some cuts nearly everything is left, of others nearly nothing: order is violated most where one of many
        // is missing.
        let kept_of_16 = random.pick(&[0, 1, 8, 15, 16]);
        for (number, event) in self.events[..at].iter().enumerate() {
            let Event::Write { at, data, durable } = event else { continue };
            if *durable || number < flushed || random.below(16) < kept_of_16 {
                image.write(*at, data);
            } else if random.below(4) == 0 {
                // Torn.
                for (sector, data) in data.chunks(SECTOR).enumerate() {
                    if random.below(2) == 0 {
                        image.write(*at + (sector * SECTOR) as u64, data);
                    }
                }
            }
        }
        image
    }
}

/// A disk that is served while this lives.
pub(crate) struct NetworkDisk {
    recording: Arc<Mutex<Recording>>,
    address: SocketAddr,
}

impl NetworkDisk {
    /// Serves an image to one machine after the other. The thread that does ends with the test's process.
    pub(crate) fn serve(image: Image) -> Self {
        let recording = Arc::new(Mutex::new(Recording::new(image)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback is free");
        let address = listener.local_addr().expect("it is bound");
        let served = Arc::clone(&recording);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A machine that was killed leaves its connection broken.
                let _ = serve(stream, &served);
            }
        });
        Self { recording, address }
    }

    /// The address by which a machine finds it.
    pub(crate) fn url(&self) -> String {
        format!("nbd://{}", self.address)
    }

    /// How much reached it so far.
    pub(crate) fn events(&self) -> usize {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Takes the recording, of which nothing follows: its machine has ended.
    pub(crate) fn into_recording(self) -> Recording {
        let mut recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let now = recording.now.clone();
        std::mem::replace(&mut *recording, Recording::new(now))
    }
}

// The numbers of https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, whose "fixed newstyle" this is.
const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const ACKNOWLEDGED: u32 = 1;
const INFORMATION: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
/// It has flags; it takes flushes; it takes FUA.
const FLAGS: u16 = 1 | 4 | 8;

fn serve(mut stream: TcpStream, recording: &Mutex<Recording>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let size = recording.lock().unwrap_or_else(PoisonError::into_inner).now.size;
    stream.write_all(b"NBDMAGIC")?;
    stream.write_all(&OPTION_MAGIC.to_be_bytes())?;
    // Fixed newstyle, without padding.
    stream.write_all(&3_u16.to_be_bytes())?;
    read_u32(&mut stream)?;
    while !negotiated(&mut stream, size)? {}
    while transmitted(&mut stream, recording)? {}
    Ok(())
}

/// Answers one option; returns true when the disk may be used.
fn negotiated(stream: &mut TcpStream, size: u64) -> io::Result<bool> {
    if read_u64(stream)? != OPTION_MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let option = read_u32(stream)?;
    let mut data = vec![0; read_u32(stream)? as usize];
    stream.read_exact(&mut data)?;
    let reply = |kind: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("it is short");
        let magic = OPTION_REPLY_MAGIC.to_be_bytes();
        [magic.as_slice(), &option.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data].concat()
    };
    let export = [size.to_be_bytes().as_slice(), &FLAGS.to_be_bytes()].concat();
    match option {
        // The name of an export: the negotiation's old end.
        1 => stream.write_all(&export).map(|()| true),
        // Information, and the new end.
        6 | 7 => {
            stream.write_all(&reply(INFORMATION, &[&[0, 0], &*export].concat()))?;
            stream.write_all(&reply(ACKNOWLEDGED, &[]))?;
            Ok(option == 7)
        }
        _ => stream.write_all(&reply(UNSUPPORTED, &[])).map(|()| false),
    }
}

/// Does what one request asks for; returns false when it was the last.
fn transmitted(stream: &mut TcpStream, recording: &Mutex<Recording>) -> io::Result<bool> {
    if read_u32(stream)? != REQUEST_MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let asked = read_u32(stream)?;
    let (flags, kind) = (asked >> 16, asked & 0xffff);
    let cookie = read_u64(stream)?;
    let at = read_u64(stream)?;
    let mut data = vec![0; read_u32(stream)? as usize];
    let mut answer = [REPLY_MAGIC.to_be_bytes().as_slice(), &[0; 4], &cookie.to_be_bytes()].concat();
    if kind == 1 {
        stream.read_exact(&mut data)?;
    }
    if kind == 3 {
        std::thread::sleep(FLUSH_DURATION);
    }
    let mut recording = recording.lock().unwrap_or_else(PoisonError::into_inner);
    match kind {
        0 => {
            recording.now.read(at, &mut data);
            answer.extend(data);
        }
        1 => {
            recording.now.write(at, &data);
            recording.events.push(Event::Write { at, data, durable: flags & 1 != 0 });
        }
        3 => recording.events.push(Event::Flush),
        2 => return Ok(false),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    drop(recording);
    stream.write_all(&answer).map(|()| true)
}

fn read_u32(stream: &mut TcpStream) -> io::Result<u32> {
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(stream: &mut TcpStream) -> io::Result<u64> {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
