//! When packets come to a namespace, by its kernel's clock.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, ReceiveTimestampns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};

use super::Space;

/// A packet's arrival.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// Since the epoch.
    pub(crate) at: Duration,
    /// Of the IP packet. The kernel may have made one of several (GRO): then
    /// their headers count once.
    pub(crate) bytes: u64,
    pub(crate) src: IpAddr,
}

/// What is on its way comes within this time.
const REST: Duration = Duration::from_millis(60);

/// Notes packets as they enter a namespace's stack.
pub(crate) struct Arrivals {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Arrival>>,
}

impl Arrivals {
    /// Notes what comes for `to` from now on.
    pub(crate) fn watch(space: &Space, to: IpAddr) -> Self {
        let socket = space.in_netns(open);
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut all = Vec::new();
            let mut end = None;
            loop {
                if end.is_none() && stopped.load(Ordering::Relaxed) {
                    end = Some(SystemTime::UNIX_EPOCH.elapsed().unwrap() + REST);
                }
                match next(&socket) {
                    Some((arrival, _)) if end.is_some_and(|end| arrival.at > end) => return all,
                    Some((arrival, dst)) if dst == to => all.push(arrival),
                    Some(_) => {}
                    None if end.is_some() => return all,
                    None => {}
                }
            }
        });
        Self { stop, thread }
    }

    /// All that came, with what was on its way.
    #[track_caller]
    pub(crate) fn stop(self) -> Vec<Arrival> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Sees packets from their IP header on.
fn open() -> OwnedFd {
    let protocol = Some(SockProtocol::EthAll);
    let (family, flags) = (AddressFamily::Packet, SockFlag::SOCK_CLOEXEC);
    let socket = socket(family, SockType::Datagram, flags, protocol).unwrap();
    setsockopt(&socket, RcvBufForce, &(256 << 20)).unwrap();
    setsockopt(&socket, ReceiveTimestampns, &true).unwrap();
    // And is never so far apart.
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(30)).unwrap();
    socket
}

/// The next packet and whom it is for; none if none came for a moment.
fn next(socket: &OwnedFd) -> Option<(Arrival, IpAddr)> {
    let mut header = [0; 40];
    loop {
        let mut buffers = [IoSliceMut::new(&mut header)];
        let mut control = nix::cmsg_space!(TimeSpec);
        let fd = socket.as_raw_fd();
        let got = recvmsg::<()>(fd, &mut buffers, Some(&mut control), MsgFlags::MSG_TRUNC);
        let (bytes, at) = match got {
            Ok(got) => (got.bytes, got.cmsgs().unwrap().find_map(stamp)),
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => return None,
            Err(errno) => panic!("receive packets: {errno}"),
        };
        if let Some([src, dst]) = addresses(&header) {
            let arrival = Arrival {
                at: at.expect("a time stamp"),
                bytes: bytes as u64,
                src,
            };
            return Some((arrival, dst));
        }
    }
}

fn stamp(message: ControlMessageOwned) -> Option<Duration> {
    match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(time.into()),
        _ => None,
    }
}

/// Source and destination, if this is IP.
fn addresses(header: &[u8; 40]) -> Option<[IpAddr; 2]> {
    match header[0] >> 4 {
        4 => Some([12, 16].map(|start| Ipv4Addr::from(part(header, start)).into())),
        6 => Some([8, 24].map(|start| Ipv6Addr::from(part(header, start)).into())),
        _ => None,
    }
}

fn part<const N: usize>(header: &[u8; 40], start: usize) -> [u8; N] {
    *header[start..].first_chunk().expect("within the header")
}
