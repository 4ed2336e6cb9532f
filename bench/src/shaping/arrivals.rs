//! What comes to a pod, by its kernel's clock: a packet socket stamps packets
//! when they enter the pod's stack, whoever forwarded them.

use std::io::{self, IoSliceMut};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout, ReceiveTimestampns, RxqOvfl};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType,
    recvmmsg, setsockopt, socket,
};
use nix::sys::time::{TimeSpec, TimeVal, TimeValLike};

use super::envelope::Arrival;
use crate::clock::SECOND;

/// Packets a system call.
const BATCH: usize = 64;
/// Of each packet: IPv4's header.
const SEEN: usize = 20;
/// What waits in the socket: some 100,000 packets.
const BUFFER: usize = 256 << 20;

/// Notes IPv4 packets that come to an address.
pub(super) struct Arrivals {
    socket: OwnedFd,
    address: Ipv4Addr,
}

impl Arrivals {
    /// In the calling thread's namespace, from now on.
    ///
    /// # Errors
    /// The socket is refused: it takes CAP_NET_RAW and CAP_NET_ADMIN.
    pub(super) fn watch(address: Ipv4Addr) -> io::Result<Self> {
        // Without Ethernet's header: lengths are those of IP packets.
        let socket = socket(
            AddressFamily::Packet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            Some(SockProtocol::EthAll),
        )?;
        setsockopt(&socket, RcvBufForce, &BUFFER)?;
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        setsockopt(&socket, RxqOvfl, &1)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
        Ok(Self { socket, address })
    }

    /// All that came in the order of their time, when it `is_over` and for a
    /// moment nothing came; and how many more came that were not noted, since
    /// the socket was full.
    ///
    /// # Errors
    /// The kernel refuses, or gave no time.
    pub(super) fn collect(&self, is_over: &AtomicBool) -> io::Result<(Vec<Arrival>, u32)> {
        let (mut all, mut missed) = (vec![], 0);
        let mut memory = [[0; SEEN]; BATCH];
        let control = Some(nix::cmsg_space!(TimeSpec, u32));
        let mut headers = MultiHeaders::<()>::preallocate(BATCH, control);
        loop {
            let mut buffers = memory.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
            let flags = MsgFlags::MSG_WAITFORONE | MsgFlags::MSG_TRUNC;
            let fd = self.socket.as_raw_fd();
            let got = match recvmmsg(fd, &mut headers, buffers.iter_mut(), flags, None) {
                Ok(got) => got,
                Err(Errno::EAGAIN) if is_over.load(Ordering::Relaxed) => break,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for message in got {
                let header = message.iovs().next().unwrap_or_default();
                if !is_for(header, self.address) {
                    continue;
                }
                let mut at = None;
                for said in message.cmsgs()? {
                    match said {
                        ControlMessageOwned::ScmTimestampns(time) => at = nanos(time),
                        ControlMessageOwned::RxqOvfl(count) => missed = missed.max(count),
                        _ => {}
                    }
                }
                let at = at.ok_or_else(|| io::Error::other("a packet without a time"))?;
                let bytes = u32::try_from(message.bytes).unwrap_or(u32::MAX);
                all.push(Arrival { at, bytes });
            }
        }
        // Two CPUs may have stamped at the same time.
        all.sort_by_key(|arrival| arrival.at);
        Ok((all, missed))
    }
}

fn is_for(header: &[u8], address: Ipv4Addr) -> bool {
    header.first().is_some_and(|byte| byte >> 4 == 4)
        && header.get(16..20) == Some(&address.octets()[..])
}

/// Since the epoch.
fn nanos(time: TimeSpec) -> Option<u64> {
    let [seconds, nanos] = [time.tv_sec(), time.tv_nsec()].map(u64::try_from);
    Some(seconds.ok()? * SECOND + nanos.ok()?)
}
