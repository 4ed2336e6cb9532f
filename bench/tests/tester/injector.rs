//! Does known things to known packets, between two interfaces.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The generator's packets go to this port.
pub(crate) const PORT: u16 = 9000;
/// Where the ports are, by the IP header's length.
const PORTS: [(u8, usize); 2] = [(0x08, 14 + 20), (0x86, 14 + 40)];

/// What is done to packet n of the generator's, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    Lose,
    Duplicate,
    /// Sent after the next one.
    Swap,
    /// A bit of the payload is changed.
    Corrupt,
    /// The same, but the datagram says that it has no checksum (RFC 768).
    CorruptUnchecked,
}

/// What an injector does.
#[derive(Clone, Copy)]
pub(crate) struct Plan<'a> {
    pub(crate) fault: fn(u64) -> Fault,
    /// How long each packet is held.
    pub(crate) delay: Duration,
    /// The least time between two packets.
    pub(crate) gap: Duration,
    /// A frame that comes along before the first packet.
    pub(crate) stray: Option<&'a [u8]>,
}

impl Plan<'_> {
    /// A wire.
    pub(crate) const NOTHING: Self = Plan {
        fault: |_| Fault::None,
        delay: Duration::ZERO,
        gap: Duration::ZERO,
        stray: None,
    };
}

/// What an injector saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Packets of the generator's that came to it.
    pub(crate) packets: u64,
    /// Those that it sent on.
    pub(crate) forwarded: u64,
    /// When it sent the first and the last of them.
    pub(crate) sending: Option<(Instant, Instant)>,
    /// The first packet as it came.
    pub(crate) first: Vec<u8>,
}

/// An interface, frame by frame.
pub(crate) struct Wire(OwnedFd);

impl Wire {
    /// Of the calling thread's namespace.
    pub(crate) fn open(interface: &str) -> Self {
        let protocol = Some(SockProtocol::EthAll);
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )
        .unwrap();
        setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(1)).unwrap();
        bind(socket.as_raw_fd(), &link_address(interface)).unwrap();
        Self(socket)
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => Some(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Err(errno) => panic!("receive: {errno}"),
        }
    }

    fn send(&self, frame: &[u8]) {
        loop {
            match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return,
                Err(Errno::ENOBUFS | Errno::EINTR) => std::thread::yield_now(),
                Err(errno) => panic!("send: {errno}"),
            }
        }
    }
}

/// The address of an interface as packet(7) wants it. The kernel writes it:
/// there is no safe way to make one from an index.
fn link_address(interface: &str) -> LinkAddr {
    let all = getifaddrs().unwrap();
    let mut found = all
        .filter(|address| address.interface_name == interface)
        .filter_map(|address| address.address?.as_link_addr().copied());
    found.next().expect("the interface")
}

/// Forwards everything from one wire to another until `stop`.
pub(crate) fn relay(from: &Wire, to: &Wire, stop: &AtomicBool) {
    let mut buffer = vec![0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Some(frame) = from.receive(&mut buffer) {
            to.send(frame);
        }
    }
}

/// The same with the plan's faults on the way.
pub(crate) fn inject(from: &Wire, to: &Wire, plan: &Plan<'_>, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut swapped = None;
    // Packets that wait for their time.
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 2048];
    while !stop.load(Ordering::Relaxed) {
        while let Some((due, frame)) = queue.front() {
            let gap_is_over = seen
                .sending
                .is_none_or(|(_, last)| last.elapsed() >= plan.gap);
            if *due > Instant::now() || !gap_is_over {
                break;
            }
            to.send(frame);
            queue.pop_front();
            let now = Instant::now();
            let first = seen.sending.map_or(now, |(first, _)| first);
            seen.sending = Some((first, now));
            seen.forwarded += 1;
        }
        let Some(frame) = from.receive(&mut buffer) else {
            continue;
        };
        if !is_generated(frame) {
            to.send(frame);
            continue;
        }
        let number = seen.packets;
        seen.packets += 1;
        if number == 0 {
            seen.first = frame.to_vec();
            plan.stray.inspect(|stray| to.send(stray));
        }
        let due = Instant::now() + plan.delay;
        let mut frame = frame.to_vec();
        match (plan.fault)(number) {
            Fault::None => queue.push_back((due, frame)),
            Fault::Lose => {}
            Fault::Duplicate => queue.extend([(due, frame.clone()), (due, frame)]),
            Fault::Swap => {
                swapped = Some((due, frame));
                continue;
            }
            Fault::Corrupt => {
                corrupt(&mut frame);
                queue.push_back((due, frame));
            }
            Fault::CorruptUnchecked => {
                corrupt(&mut frame);
                // The UDP checksum behind an IPv4 header.
                frame[40..42].fill(0);
                queue.push_back((due, frame));
            }
        }
        queue.extend(swapped.take());
    }
    assert!(queue.is_empty(), "{} packets were not sent", queue.len());
    seen
}

/// Changes a bit of the last byte, which is the payload's.
fn corrupt(frame: &mut [u8]) {
    *frame.last_mut().unwrap() ^= 0x10;
}

fn is_generated(frame: &[u8]) -> bool {
    PORTS.iter().any(|(family, ports)| {
        frame.get(12) == Some(family)
            && frame.get(ports + 2..ports + 4) == Some(&PORT.to_be_bytes())
    })
}
