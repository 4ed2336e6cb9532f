//! Echo requests of every size.

use std::net::{IpAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockProtocol, SockaddrIn, SockaddrIn6, SockaddrLike, recv, sendto,
};

use super::Space;
use super::flows::Pattern;
use super::frames::internet_checksum;
use super::wire::raw_ip;

/// A raw ICMP socket that sends echo requests and compares the replies.
pub(crate) struct Pinger {
    socket: OwnedFd,
    to: Box<dyn SockaddrLike>,
    request: u8,
    /// Where ICMP begins in what the socket receives.
    start: usize,
    reply: u8,
}

impl Pinger {
    pub(crate) fn new(space: &Space, to: IpAddr) -> Self {
        match to {
            IpAddr::V4(to) => Self {
                socket: raw_ip(space, AddressFamily::Inet, SockProtocol::Icmp),
                to: Box::new(SockaddrIn::from(SocketAddrV4::new(to, 0))),
                request: 8,
                start: 20,
                reply: 0,
            },
            IpAddr::V6(to) => Self {
                socket: raw_ip(space, AddressFamily::Inet6, SockProtocol::IcmpV6),
                to: Box::new(SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0))),
                request: 128,
                start: 0,
                reply: 129,
            },
        }
    }

    /// One request with so many bytes of data; waits for its reply.
    #[track_caller]
    pub(crate) fn echo(&self, size: usize) {
        let number = u16::try_from(size).unwrap().to_be_bytes();
        let mut message = vec![self.request, 0, 0, 0, 0x51, 0x1c, number[0], number[1]];
        message.extend(Pattern(size as u64).bytes(size));
        if self.start > 0 {
            // The kernel computes only ICMPv6's.
            let checksum = internet_checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&checksum);
        }
        let fd = self.socket.as_raw_fd();
        sendto(fd, &message, &*self.to, MsgFlags::empty()).unwrap();
        let mut buffer = vec![0; self.start + message.len() + 1];
        loop {
            // A wait with a limit is not begun again by the kernel (signal(7)).
            let received = match recv(fd, &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                received => received,
            };
            let length = received.unwrap_or_else(|error| panic!("echo of {size} bytes: {error}"));
            let answer = &buffer[self.start.min(length)..length];
            // The socket sees all ICMP, also neighbour discovery.
            if answer.first() == Some(&self.reply) {
                assert!(
                    answer[4..] == message[4..],
                    "echo of {size} bytes came back changed"
                );
                return;
            }
        }
    }
}
