//! Who listens on the host: a process there must not lose its port to a pod.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::sys::socket::SockProtocol;
use sluice_control::{HostEnd, Protocol};

use crate::netlink::{Message, Mode, Request, Socket, attribute};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `struct inet_diag_req_v2`, of which the first 8 bytes matter.
const REQUEST_BYTES: usize = 56;
/// `struct inet_diag_msg`: family, state, ports at 4, source address at 8, ...,
/// inode last.
const ANSWER_BYTES: usize = 72;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `TCP_LISTEN`; SCTP's listening state has the same number.
const LISTEN: u8 = 10;
/// What a UDP socket without a peer is in (`TCP_CLOSE`).
const UNCONNECTED: u8 = 7;

/// A socket of the host that takes what comes to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    protocol: Protocol,
    port: u16,
    /// Unspecified for all addresses.
    address: IpAddr,
    /// Unspecified IPv6: whether it takes IPv4, too.
    is_dual: bool,
    inode: u32,
}

impl Listener {
    fn read(message: &Message<'_>, protocol: Protocol) -> Option<Self> {
        let (fixed, attributes) = message.payload.split_at_checked(ANSWER_BYTES)?;
        let port = u16::from_be_bytes([fixed[4], fixed[5]]);
        let address = match i32::from(fixed[0]) {
            libc::AF_INET => IpAddr::from(*fixed[8..].first_chunk::<4>()?),
            _ => IpAddr::from(*fixed[8..].first_chunk::<16>()?),
        };
        let is_v6_only = attribute(attributes, INET_DIAG_SKV6ONLY) == Some(&[1]);
        Some(Self {
            protocol,
            port,
            address: address.to_canonical(),
            is_dual: address.is_unspecified() && address.is_ipv6() && !is_v6_only,
            inode: u32::from_ne_bytes(*fixed.last_chunk()?),
        })
    }

    /// Whether something can come to both. What listens on a loopback address
    /// other than the first, such as systemd-resolved on 127.0.0.53, keeps it:
    /// mappings do not go there.
    fn rivals(&self, wanted: &HostEnd) -> bool {
        let own = HostEnd {
            address: self.address,
            protocol: self.protocol,
            port: self.port,
        };
        if is_loopback_beside_the_first(self.address) {
            return own == *wanted;
        }
        let as_v4 = HostEnd {
            address: Ipv4Addr::UNSPECIFIED.into(),
            ..own
        };
        own.overlaps(wanted) || self.is_dual && as_v4.overlaps(wanted)
    }

    /// The name of a process that has it, where `/proc` shows it.
    fn process(&self) -> Option<String> {
        let socket = format!("socket:[{}]", self.inode);
        let has_it = |process: &fs::DirEntry| {
            let descriptors = fs::read_dir(process.path().join("fd"));
            let mut descriptors = descriptors.into_iter().flatten().filter_map(Result::ok);
            descriptors.any(|fd| {
                fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
            })
        };
        let entries = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
        let mut processes = entries.filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            Some((id, entry))
        });
        let (id, process) = processes.find(|(_, process)| has_it(process))?;
        let name = fs::read_to_string(process.path().join("comm")).ok()?;
        Some(format!("{} (process {id})", name.trim()))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process = self.process();
        let who = process.as_deref().unwrap_or("a process of the host");
        match self.address {
            any if any.is_unspecified() => write!(f, "{who} listens there on all addresses"),
            address => write!(f, "{who} listens there on {address}"),
        }
    }
}

/// Mappings of every IPv4 address are for 127.0.0.1 of all loopback addresses.
fn is_loopback_beside_the_first(address: IpAddr) -> bool {
    address.is_loopback()
        && ![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].contains(&address)
}

/// The first socket in the calling thread's namespace that takes something of
/// what comes to one of these ends, and to which.
///
/// # Errors
/// The kernel does not say. One without a protocol says that nobody listens.
pub fn find(wanted: &[HostEnd]) -> io::Result<Option<(HostEnd, Listener)>> {
    if wanted.is_empty() {
        return Ok(None);
    }
    let protocols: BTreeSet<Protocol> = wanted.iter().map(|end| end.protocol).collect();
    let mut socket = Socket::open(SockProtocol::NetlinkSockDiag)?;
    let mut found = None;
    for protocol in protocols {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let listed = socket.ask(list(family, protocol), |message| {
                if found.is_none()
                    && let Some(listener) = Listener::read(&message, protocol)
                    && let Some(end) = wanted.iter().find(|end| listener.rivals(end))
                {
                    found = Some((*end, listener));
                }
            });
            match listed {
                // No handler: neither built in nor a module (sock_diag_lock_handler).
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
    }
    Ok(found)
}

/// Asks for all sockets that are bound to a port, or listen there: naming the
/// port would save the kernel nothing, it walks its whole table.
fn list(family: i32, protocol: Protocol) -> Request {
    let state = match protocol {
        Protocol::Tcp | Protocol::Sctp => LISTEN,
        Protocol::Udp => UNCONNECTED,
    };
    let mut header = [0; REQUEST_BYTES];
    header[0] = u8::try_from(family).unwrap_or_default();
    header[1] = protocol.number();
    header[4..8].copy_from_slice(&(1_u32 << state).to_ne_bytes());
    Request::new(SOCK_DIAG_BY_FAMILY, Mode::List, &header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    fn end(address: &str, protocol: Protocol, port: u16) -> HostEnd {
        HostEnd {
            address: address.parse().unwrap(),
            protocol,
            port,
        }
    }

    fn found(address: &str, protocol: Protocol, port: u16) -> bool {
        find(&[end(address, protocol, port)]).unwrap().is_some()
    }

    #[test]
    fn a_tcp_listener_is_found_on_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for (address, protocol, is_found) in [
            ("127.0.0.1", Protocol::Tcp, true),
            ("0.0.0.0", Protocol::Tcp, true),
            ("127.0.0.2", Protocol::Tcp, false),
            ("::", Protocol::Tcp, false),
            ("0.0.0.0", Protocol::Udp, false),
            ("0.0.0.0", Protocol::Sctp, false),
        ] {
            assert_eq!(
                found(address, protocol, port),
                is_found,
                "{address} {protocol}"
            );
        }
        let free = end("0.0.0.0", Protocol::Udp, port);
        let taken = end("0.0.0.0", Protocol::Tcp, port);
        let (named, listener) = find(&[free, taken]).unwrap().unwrap();
        assert_eq!(named, taken);
        let text = listener.to_string();
        let own = format!(
            "(process {}) listens there on 127.0.0.1",
            std::process::id()
        );
        assert!(text.ends_with(&own), "{text}");
    }

    #[test]
    fn a_dual_listener_takes_both_families() {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        for address in ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1"] {
            assert!(found(address, Protocol::Udp, port), "{address}");
        }
    }

    #[test]
    fn clients_and_far_loopback_addresses_do_not_count() {
        let listener = TcpListener::bind("127.0.0.53:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!found("0.0.0.0", Protocol::Tcp, address.port()));
        assert!(found("127.0.0.53", Protocol::Tcp, address.port()));
        assert!(!found("127.0.0.53", Protocol::Tcp, address.port() ^ 1));
        let client = TcpStream::connect(address).unwrap();
        let port = client.local_addr().unwrap().port();
        assert!(!found("0.0.0.0", Protocol::Tcp, port));
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = client.local_addr().unwrap().port();
        assert!(found("0.0.0.0", Protocol::Udp, port));
        client.connect("127.0.0.1:9").unwrap();
        assert!(!found("0.0.0.0", Protocol::Udp, port));
    }
}
