//! The generator: a stream out of a namespace at a rate.

use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::ValueEnum;
use nix::errno::Errno;
use nix::sys::socket::sockopt::SndBufForce;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt};
use serde::Serialize;

use super::pace::Pacer;
use super::packet::{Protocol, Shape, Stream};
use super::resolve::resolve;
use crate::clock::{SECOND, doze_until, now, seconds};
use crate::error::BenchError;
use crate::xdp;

/// Packets between two looks at the clock. As many as the kernel sends in one
/// system call of an AF_XDP socket.
const BATCH: u64 = 32;
/// Source ports are from here on. Linux's own begin at 32768.
const SRC_PORT: u16 = 10_000;
/// Flows that a socket sender opens a socket for.
const MAX_SOCKETS: u16 = 1000;
/// How long the kernel may take to send what it was given.
const FLUSH: u64 = 2 * SECOND;

/// By what packets leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SendBy {
    /// An AF_XDP socket: the fastest, any packet.
    Xsk,
    /// UDP sockets and sendmmsg(2): an application.
    Socket,
}

/// What is sent.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SendSpec {
    /// Where to.
    pub(crate) to: SocketAddr,
    /// Frame sizes in bytes, FCS included.
    pub(crate) sizes: super::size::Sizes,
    /// UDP or TCP.
    pub(crate) protocol: Protocol,
    /// Flows, told apart by their source ports.
    pub(crate) flows: u16,
    /// Packets a second; as many as possible if `None`.
    pub(crate) rate: Option<f64>,
    /// At most so many seconds.
    pub(crate) seconds: f64,
    /// At most so many packets.
    pub(crate) count: Option<u64>,
    /// By what.
    pub(crate) by: SendBy,
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Sent {
    /// Packets that the kernel took.
    pub(crate) packets: u64,
    /// Their bytes, FCS included.
    pub(crate) bytes: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Packets a second that came out.
    pub(crate) rate: f64,
    /// Packets that were due and not sent, because the generator was too slow.
    pub(crate) given_up: u64,
}

/// Sends from the calling thread's namespace. `progress` counts packets.
///
/// # Errors
/// There is no way to the destination, or the kernel refuses.
pub(crate) fn send(spec: &SendSpec, progress: &AtomicU64) -> Result<Sent, BenchError> {
    let (interface, path) = resolve(spec.to, SRC_PORT)?;
    let run = match spec.by {
        SendBy::Xsk => 1,
        // A system call sends from one socket.
        SendBy::Socket => BATCH,
    };
    let shape = Shape {
        sizes: spec.sizes,
        protocol: spec.protocol,
        flows: spec.flows,
        run,
    };
    let mut stream = Stream::new(&path, shape)?;
    match spec.by {
        SendBy::Xsk => {
            let sender = xdp::Sender::open(&interface)?;
            let largest = shape.cycle(spec.to.ip())?.into_iter().max().unwrap_or(0);
            if largest > sender.max_frame() {
                return Err(BenchError::Refused(format!(
                    "an AF_XDP socket sends frames of at most {} bytes",
                    sender.max_frame()
                )));
            }
            pump(spec, &mut stream, Out::Xsk(sender), progress)
        }
        SendBy::Socket => {
            if spec.protocol != Protocol::Udp {
                return Err(BenchError::Refused(
                    "sockets send UDP here: --by xsk sends TCP-shaped packets".into(),
                ));
            }
            let sockets = Sockets::open(spec.to, spec.flows, stream.headers())?;
            pump(spec, &mut stream, Out::Socket(sockets), progress)
        }
    }
}

/// Where packets go.
enum Out {
    Xsk(xdp::Sender),
    Socket(Sockets),
}

impl Out {
    /// `false` if there is no room before the next flush.
    fn queue(&mut self, flow: u16, frame: &[u8]) -> bool {
        match self {
            Self::Xsk(sender) => sender.queue(frame),
            Self::Socket(sockets) => sockets.queue(flow, frame),
        }
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        match self {
            Self::Xsk(sender) => sender.flush().map(|_| ()),
            Self::Socket(sockets) => sockets.flush(),
        }
    }

    /// Whether the kernel has done with all it was given.
    fn is_done(&self) -> bool {
        match self {
            Self::Xsk(sender) => sender.is_idle(),
            Self::Socket(_) => true,
        }
    }
}

fn pump(
    spec: &SendSpec,
    stream: &mut Stream,
    mut out: Out,
    progress: &AtomicU64,
) -> Result<Sent, BenchError> {
    let start = now();
    let end = start + nanos(spec.seconds);
    let count = spec.count.unwrap_or(u64::MAX);
    let mut pacer = Pacer::new(spec.rate, start);
    let (mut packets, mut bytes) = (0, 0);
    let mut time = start;
    while packets < count && time < end {
        let due = pacer.take(time, BATCH.min(count - packets));
        if due == 0 {
            doze_until(pacer.next().min(end));
        }
        for _ in 0..due {
            loop {
                let (flow, frame) = stream.next(time);
                let length = frame.len();
                if out.queue(flow, frame) {
                    bytes += (length + super::size::FCS) as u64;
                    break;
                }
                stream.take_back(flow);
                out.flush()?;
                if now() > time + FLUSH {
                    return Err(stuck());
                }
            }
        }
        if due > 0 {
            out.flush()?;
            packets += due;
            progress.store(packets, Ordering::Relaxed);
        }
        time = now();
    }
    let took = seconds(time - start);
    let give_up = now() + FLUSH;
    while !out.is_done() {
        out.flush()?;
        if now() > give_up {
            return Err(stuck());
        }
    }
    Ok(Sent {
        packets,
        bytes,
        seconds: took,
        rate: rate(packets, took),
        given_up: pacer.given_up(),
    })
}

fn stuck() -> BenchError {
    BenchError::Refused(
        "the kernel has not sent what it was given for 2 s: is the link's other end up?".into(),
    )
}

/// Packets a second; 0 for no time.
pub(crate) fn rate(packets: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        packets as f64 / seconds
    } else {
        0.0
    }
}

/// Seconds of a command line in nanoseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "durations are positive; a float saturates as it is cast"
)]
pub(crate) fn nanos(seconds: f64) -> u64 {
    (seconds * SECOND as f64) as u64
}

/// UDP sockets, one a flow.
struct Sockets {
    sockets: Vec<UdpSocket>,
    /// Bytes of a frame in front of the payload.
    headers: usize,
    /// The flow of the queued payloads.
    flow: u16,
    /// Queued payloads; those from `queued` on are spare memory.
    payloads: Vec<Vec<u8>>,
    queued: usize,
    kernel: MultiHeaders<SockaddrStorage>,
}

impl Sockets {
    fn open(to: SocketAddr, flows: u16, headers: usize) -> Result<Self, BenchError> {
        if flows > MAX_SOCKETS {
            return Err(BenchError::Refused(format!(
                "{flows} flows are as many sockets: at most {MAX_SOCKETS}, or --by xsk"
            )));
        }
        let batch = usize::try_from(BATCH).unwrap_or(1);
        let open = |flow| {
            let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
            let socket = UdpSocket::bind((any, SRC_PORT + flow))?;
            socket.connect(to)?;
            setsockopt(&socket, SndBufForce, &(4 << 20))?;
            Ok(socket)
        };
        let sockets: Result<_, std::io::Error> = (0..flows).map(open).collect();
        Ok(Self {
            sockets: sockets.map_err(BenchError::system("open sockets to", to.to_string()))?,
            headers,
            flow: 0,
            payloads: vec![Vec::new(); batch],
            queued: 0,
            kernel: MultiHeaders::preallocate(batch, None),
        })
    }

    fn queue(&mut self, flow: u16, frame: &[u8]) -> bool {
        if self.queued == self.payloads.len() || (self.queued > 0 && flow != self.flow) {
            return false;
        }
        self.flow = flow;
        let payload = &mut self.payloads[self.queued];
        payload.clear();
        payload.extend_from_slice(&frame[self.headers..]);
        self.queued += 1;
        true
    }

    fn flush(&mut self) -> Result<(), BenchError> {
        let socket = &self.sockets[usize::from(self.flow)];
        let mut sent = 0;
        while sent < self.queued {
            let payloads = self.payloads[sent..self.queued].iter();
            let slices: Vec<_> = payloads.map(|payload| [IoSlice::new(payload)]).collect();
            let nowhere = vec![None; slices.len()];
            let result = sendmmsg(
                socket.as_raw_fd(),
                &mut self.kernel,
                &slices,
                nowhere,
                [],
                MsgFlags::empty(),
            );
            match result {
                Ok(results) => sent += results.count(),
                // ECONNREFUSED is the answer to an earlier packet.
                Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::ENOBUFS) => {}
                Err(errno) => {
                    return Err(BenchError::system("send from", "a UDP socket")(errno));
                }
            }
        }
        self.queued = 0;
        Ok(())
    }
}
