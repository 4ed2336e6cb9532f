//! The sink: what arrives in a namespace for a port.

use std::fs;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt};
use serde::Serialize;
use sluice_link::features;

use super::arrival::Arrival;
use super::latency::{Delays, Latency};
use super::send::rate;
use super::sequence::Sequences;
use super::size::FCS;
use crate::clock::{now, seconds};
use crate::error::BenchError;
use crate::xdp::{Receiver, SinkProgram};

/// How long the sink sleeps when nothing arrives, and how old a count of the
/// counting program may be, in milliseconds.
const NAP: u8 = 10;
/// Datagrams that one system call takes.
const BATCH: usize = 64;
/// Room for the largest datagram.
const DATAGRAM: usize = 65536;
/// The socket's buffer: the kernel doubles it, for what a packet takes beside
/// its bytes.
const SOCKET_BUFFER: usize = 8 << 20;

/// By what packets are received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SinkBy {
    /// The XDP program counts and drops: the cheapest, but tells only how many.
    Xdp,
    /// An AF_XDP socket: any packet, all that can be told.
    Xsk,
    /// A UDP socket and recvmmsg(2): what an application gets.
    Socket,
}

/// What is received.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SinkSpec {
    /// The interface, for the XDP and the AF_XDP sink.
    pub(crate) interface: String,
    /// The destination port.
    pub(crate) port: u16,
    /// The flows that the generator sends.
    pub(crate) flows: u16,
    /// By what.
    pub(crate) by: SinkBy,
}

/// What arrived. What a sink cannot tell is `None`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Received {
    /// Different packets, whole ones.
    pub(crate) packets: u64,
    /// Their bytes, FCS included; of a socket, those of the payloads.
    pub(crate) bytes: u64,
    /// Between the first and the last arrival.
    pub(crate) seconds: f64,
    /// Packets a second between them.
    pub(crate) rate: f64,
    /// Further copies of packets.
    pub(crate) duplicated: Option<u64>,
    /// Packets behind one that was sent later.
    pub(crate) reordered: Option<u64>,
    /// How many places late the latest of them was.
    pub(crate) reordering_extent: Option<u64>,
    /// Packets with a wrong checksum, in the headers or of the payload.
    pub(crate) corrupted: Option<u64>,
    /// Packets for the port that this measurement did not send.
    pub(crate) foreign: Option<u64>,
    /// Numbers that are missing below the largest that came.
    pub(crate) gaps: Option<u64>,
    /// Packets that the kernel dropped because this sink was too slow: those
    /// are no fault of the network.
    pub(crate) overrun: Option<u64>,
    /// One-way delays in microseconds.
    pub(crate) latency: Option<Latency>,
}

/// Who else follows a sink.
pub(crate) struct Watch<'a> {
    /// Called once the sink is there: packets may be sent.
    pub(crate) ready: &'a mut dyn FnMut(),
    /// Set when it is to end.
    pub(crate) stop: &'a AtomicBool,
    /// Packets so far.
    pub(crate) progress: &'a AtomicU64,
}

/// Receives in the calling thread's namespace until it is told to stop.
///
/// # Errors
/// The kernel refuses the sink.
pub(crate) fn receive(spec: &SinkSpec, watch: &mut Watch<'_>) -> Result<Received, BenchError> {
    match spec.by {
        SinkBy::Xdp => by_xdp(spec, watch),
        SinkBy::Xsk => by_xsk(spec, watch),
        SinkBy::Socket => by_socket(spec, watch),
    }
}

/// When the first and the last packet arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    first: Option<u64>,
    last: u64,
}

impl Span {
    fn mark(&mut self, now: u64) {
        self.first.get_or_insert(now);
        self.last = now;
    }

    fn seconds(&self) -> f64 {
        self.first.map_or(0.0, |first| seconds(self.last - first))
    }
}

fn by_xdp(spec: &SinkSpec, watch: &mut Watch<'_>) -> Result<Received, BenchError> {
    let program = SinkProgram::count(&spec.interface, spec.port)?;
    (watch.ready)();
    let mut span = Span::default();
    let mut seen = 0;
    let mut stops = false;
    loop {
        let counted = program.counted()?;
        if counted.frames != seen {
            span.mark(now());
            seen = counted.frames;
            watch.progress.store(seen, Ordering::Relaxed);
        }
        if stops {
            return Ok(Received {
                packets: counted.frames,
                bytes: counted.bytes + counted.frames * FCS as u64,
                seconds: span.seconds(),
                rate: rate(counted.frames, span.seconds()),
                duplicated: None,
                reordered: None,
                reordering_extent: None,
                corrupted: None,
                foreign: None,
                gaps: None,
                overrun: None,
                latency: None,
            });
        }
        stops = watch.stop.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(NAP.into()));
    }
}

/// What a sink that reads its packets keeps about them.
struct Books {
    start: u64,
    sequences: Sequences,
    delays: Delays,
    span: Span,
    corrupted: u64,
    bytes: u64,
}

impl Books {
    fn new(flows: u16) -> Self {
        Self {
            start: now(),
            sequences: Sequences::new(flows),
            delays: Delays::new(),
            span: Span::default(),
            corrupted: 0,
            bytes: 0,
        }
    }

    /// Takes a packet of so many bytes that arrived at `now`.
    fn take(&mut self, arrival: Arrival, bytes: usize, now: u64) {
        self.span.mark(now);
        let Arrival::Whole(stamp) = arrival else {
            self.corrupted += 1;
            return;
        };
        // What was sent before the sink was there is of an earlier measurement.
        let age = stamp.age(now).filter(|age| *age <= now - self.start);
        let Some(age) = age else {
            self.sequences.stray();
            return;
        };
        if self.sequences.record(&stamp) {
            self.delays.record(age);
            self.bytes += bytes as u64;
        }
    }

    fn close(&self, overrun: u64) -> Received {
        let counts = self.sequences.counts();
        let seconds = self.span.seconds();
        Received {
            packets: counts.received,
            bytes: self.bytes,
            seconds,
            rate: rate(counts.received, seconds),
            duplicated: Some(counts.duplicated),
            reordered: Some(counts.reordered),
            reordering_extent: Some(counts.extent),
            corrupted: Some(self.corrupted),
            foreign: Some(counts.foreign),
            gaps: Some(self.sequences.missing()),
            overrun: Some(overrun),
            latency: self.delays.latency(),
        }
    }

    fn show(&self, progress: &AtomicU64) {
        progress.store(self.sequences.counts().received, Ordering::Relaxed);
    }
}

fn by_xsk(spec: &SinkSpec, watch: &mut Watch<'_>) -> Result<Received, BenchError> {
    let queues = features::rx_queues(&spec.interface)?;
    if queues > sluice_bpf::sink::MAX_QUEUES {
        return Err(BenchError::Refused(format!(
            "{} has {queues} RX queues: the AF_XDP sink takes {}; the XDP and the socket sink \
             take any number",
            spec.interface,
            sluice_bpf::sink::MAX_QUEUES
        )));
    }
    let mut receiver = Receiver::open(&spec.interface, queues)?;
    let _program = SinkProgram::receive(&spec.interface, spec.port, receiver.sockets())?;
    let mut books = Books::new(spec.flows);
    (watch.ready)();
    loop {
        let stops = watch.stop.load(Ordering::Relaxed);
        let mut time = None;
        let frames = receiver.take(|frame| {
            // Once a batch: all of it was there by now.
            let time = *time.get_or_insert_with(now);
            books.take(Arrival::of_frame(frame), frame.len() + FCS, time);
        });
        if frames > 0 {
            books.show(watch.progress);
        } else if stops {
            return Ok(books.close(receiver.overrun()?));
        } else {
            receiver.wait(NAP)?;
        }
    }
}

fn by_socket(spec: &SinkSpec, watch: &mut Watch<'_>) -> Result<Received, BenchError> {
    // An IPv6 socket that takes IPv4, too.
    let open = || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, spec.port))?;
        setsockopt(&socket, RcvBufForce, &SOCKET_BUFFER)?;
        socket.set_read_timeout(Some(Duration::from_millis(NAP.into())))?;
        Ok(socket)
    };
    let socket = open().map_err(BenchError::system::<io::Error>(
        "open a socket on UDP port",
        spec.port.to_string(),
    ))?;
    let mut buffers = vec![vec![0; DATAGRAM]; BATCH];
    let mut kernel = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut books = Books::new(spec.flows);
    (watch.ready)();
    loop {
        let stops = watch.stop.load(Ordering::Relaxed);
        let mut slices: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        let messages = recvmmsg(socket.as_raw_fd(), &mut kernel, &mut slices, flags, None);
        let lengths: Vec<usize> = match messages {
            Ok(messages) => messages.map(|message| message.bytes).collect(),
            Err(Errno::EAGAIN | Errno::EINTR) if stops => {
                return Ok(books.close(overrun(spec.port)?));
            }
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(errno) => {
                return Err(BenchError::system("receive from", "a UDP socket")(errno));
            }
        };
        let time = now();
        for (buffer, length) in buffers.iter().zip(lengths) {
            let payload = &buffer[..length];
            books.take(Arrival::of_payload(payload), length, time);
        }
        books.show(watch.progress);
    }
}

/// Datagrams that the kernel dropped at the socket on `port` of the calling
/// thread's namespace: the last column of its table.
fn overrun(port: u16) -> Result<u64, BenchError> {
    let path = "/proc/thread-self/net/udp6";
    let table = fs::read_to_string(path).map_err(BenchError::system("read", path))?;
    let ours = format!(":{port:04X}");
    let line = table.lines().find(|line| {
        line.split_whitespace()
            .nth(1)
            .is_some_and(|local| local.ends_with(&ours))
    });
    line.and_then(|line| line.split_whitespace().last()?.parse().ok())
        .ok_or_else(|| BenchError::Refused(format!("{path} has no socket on port {port}")))
}
