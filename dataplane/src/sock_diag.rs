//! The kernel's list of Internet sockets, and their end by force (sock_diag(7)).

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::SockProtocol;
use sluice_control::Protocol;

use crate::netlink::{Message, Mode, Request, Socket, attribute};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID_BYTES: usize = 48;

/// `TCP_LISTEN`; SCTP's listening state has the same number.
pub(crate) const LISTEN: u8 = 10;
/// What a UDP socket with a peer is in (`TCP_ESTABLISHED`).
pub(crate) const CONNECTED: u8 = 1;
/// What one without is in (`TCP_CLOSE`).
pub(crate) const UNCONNECTED: u8 = 7;

/// A socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    family: u8,
    id: [u8; ID_BYTES],
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// Of IPv6 that takes no IPv4.
    pub(crate) is_v6_only: bool,
    pub(crate) inode: u32,
}

impl Entry {
    /// `struct inet_diag_msg`: family, state, timer, retransmissions; the id;
    /// five numbers, the inode last. Attributes follow.
    fn read(message: &Message<'_>) -> Option<Self> {
        let (head, rest) = message.payload.split_first_chunk::<4>()?;
        let (id, rest) = rest.split_first_chunk::<ID_BYTES>()?;
        let (numbers, attributes) = rest.split_first_chunk::<20>()?;
        let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
        let address = |at: usize| match i32::from(head[0]) {
            libc::AF_INET => id[at..].first_chunk::<4>().copied().map(IpAddr::from),
            _ => id[at..].first_chunk::<16>().copied().map(IpAddr::from),
        };
        Some(Self {
            family: head[0],
            id: *id,
            local: SocketAddr::new(address(4)?, port(0)),
            remote: SocketAddr::new(address(20)?, port(2)),
            is_v6_only: attribute(attributes, INET_DIAG_SKV6ONLY) == Some(&[1]),
            inode: u32::from_ne_bytes(*numbers.last_chunk()?),
        })
    }

    /// What names it for as long as the machine runs (SO_COOKIE): the lower
    /// half comes first.
    pub(crate) fn cookie(&self) -> u64 {
        let half = |at: usize| {
            let bytes = self.id[at..].first_chunk().copied();
            u64::from(bytes.map_or(0, u32::from_ne_bytes))
        };
        half(ID_BYTES - 4) << 32 | half(ID_BYTES - 8)
    }
}

/// The sockets of the calling thread's namespace.
pub(crate) struct SockDiag(Socket);

impl SockDiag {
    /// # Errors
    /// The kernel gives no socket.
    pub(crate) fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkSockDiag).map(Self)
    }

    /// Gives the sockets of a protocol in this state to `each`; none if the
    /// kernel lacks the protocol. Naming a port would save it nothing: it walks
    /// its whole table.
    ///
    /// # Errors
    /// The kernel does not say.
    pub(crate) fn list(
        &mut self,
        protocol: Protocol,
        state: u8,
        mut each: impl FnMut(Entry),
    ) -> io::Result<()> {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or_default();
            let header = header(family, protocol, 1 << state, &[0; ID_BYTES]);
            let request = Request::new(SOCK_DIAG_BY_FAMILY, Mode::List, &header);
            let listed = self.0.ask(request, |message| {
                Entry::read(&message).into_iter().for_each(&mut each);
            });
            match listed {
                // No handler: neither built in nor a module (sock_diag_lock_handler).
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Ends a socket's conversation: its process sees ECONNABORTED. `false` if
    /// there is no such socket any more.
    ///
    /// # Errors
    /// The kernel cannot (`CONFIG_INET_DIAG_DESTROY`), or no privilege.
    pub(crate) fn destroy(&mut self, protocol: Protocol, entry: &Entry) -> io::Result<bool> {
        let header = header(entry.family, protocol, u32::MAX, &entry.id);
        let request = Request::new(SOCK_DESTROY, Mode::Do, &header);
        match self.0.ask(request, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `struct inet_diag_req_v2`.
fn header(family: u8, protocol: Protocol, states: u32, id: &[u8; ID_BYTES]) -> Vec<u8> {
    let head = [family, protocol.number(), 0, 0];
    [&head[..], &states.to_ne_bytes(), id].concat()
}
