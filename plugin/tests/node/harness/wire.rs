//! Whole frames, sent and seen from inside a namespace.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::{PATIENCE, Space};

/// Sends frames by an interface, whatever is in them.
pub(crate) struct Injector(OwnedFd);

impl Injector {
    pub(crate) fn new(space: &Space, ifname: &str) -> Self {
        space.in_netns(|| {
            let socket = raw(AddressFamily::Packet, None);
            bind(socket.as_raw_fd(), &link_address(ifname)).unwrap();
            Self(socket)
        })
    }

    #[track_caller]
    pub(crate) fn send(&self, frame: &[u8]) {
        assert!(self.offer(frame), "no room for {} bytes", frame.len());
    }

    /// The same, unless there is no room just now at the other end.
    #[track_caller]
    pub(crate) fn offer(&self, frame: &[u8]) -> bool {
        match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
            Err(Errno::ENOBUFS) => false,
            sent => {
                assert_eq!(sent, Ok(frame.len()), "{} bytes", frame.len());
                true
            }
        }
    }
}

/// A socket that takes and gives the frames of one interface: to be made inside
/// its namespace.
pub(super) fn bound(ifname: &str) -> OwnedFd {
    let socket = raw(AddressFamily::Packet, Some(SockProtocol::EthAll));
    bind(socket.as_raw_fd(), &link_address(ifname)).unwrap();
    socket
}

/// Sees every frame of a namespace from now on, incoming and outgoing.
pub(crate) struct Sniffer(OwnedFd);

impl Sniffer {
    pub(crate) fn new(space: &Space) -> Self {
        let socket = space.in_netns(|| raw(AddressFamily::Packet, Some(SockProtocol::EthAll)));
        wait_at_most_patience(&socket);
        // A GSO packet is charged with all of its 64 KiB.
        setsockopt(&socket, RcvBufForce, &(64 << 20)).unwrap();
        Self(socket)
    }

    /// The next frame's first 2 KiB.
    #[track_caller]
    pub(crate) fn next(&self) -> Vec<u8> {
        let mut frame = vec![0; 2048];
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                // After a stop and SIGCONT too, because of the timeout (signal(7)).
                Err(Errno::EINTR) => {}
                length => {
                    frame.truncate(length.expect("a frame"));
                    return frame;
                }
            }
        }
    }

    /// Frames up to the first that `is_last`, without it.
    #[track_caller]
    pub(crate) fn until(&self, is_last: impl Fn(&[u8]) -> bool) -> impl Iterator<Item = Vec<u8>> {
        std::iter::from_fn(move || Some(self.next()).filter(|frame| !is_last(frame)))
    }
}

/// A raw socket of a namespace for one protocol above IP.
pub(crate) fn raw_ip(space: &Space, family: AddressFamily, protocol: SockProtocol) -> OwnedFd {
    let socket = space.in_netns(|| raw(family, Some(protocol)));
    wait_at_most_patience(&socket);
    socket
}

fn raw(family: AddressFamily, protocol: Option<SockProtocol>) -> OwnedFd {
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
}

fn wait_at_most_patience(socket: &OwnedFd) {
    let patience = TimeVal::seconds(PATIENCE.as_secs().try_into().unwrap());
    setsockopt(socket, ReceiveTimeout, &patience).unwrap();
}

/// The address of an interface as packet(7) wants it. The kernel writes it:
/// there is no safe way to make one from an index.
fn link_address(ifname: &str) -> LinkAddr {
    let all = getifaddrs().unwrap();
    let mut found = all
        .filter(|interface| interface.interface_name == ifname)
        .filter_map(|interface| interface.address?.as_link_addr().copied());
    found.next().expect("the interface")
}

/// Whether `needle` is somewhere in a frame.
pub(crate) fn holds(frame: &[u8], needle: &[u8]) -> bool {
    frame.windows(needle.len()).any(|window| window == needle)
}
