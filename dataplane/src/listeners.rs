//! Who listens on the host: a process there must not lose its port to a pod.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_control::{HostEnd, Protocol};

use crate::sock_diag::{Entry, LISTEN, SockDiag, UNCONNECTED};

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
    fn of(socket: &Entry, protocol: Protocol) -> Self {
        let address = socket.local.ip();
        Self {
            protocol,
            port: socket.local.port(),
            address: address.to_canonical(),
            is_dual: address.is_unspecified() && address.is_ipv6() && !socket.is_v6_only,
            inode: socket.inode,
        }
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
    let mut sockets = SockDiag::open()?;
    let mut found = None;
    for protocol in protocols {
        let state = match protocol {
            Protocol::Tcp | Protocol::Sctp => LISTEN,
            Protocol::Udp => UNCONNECTED,
        };
        sockets.list(protocol, state, |socket| {
            let listener = Listener::of(&socket, protocol);
            if found.is_none()
                && let Some(end) = wanted.iter().find(|end| listener.rivals(end))
            {
                found = Some((*end, listener));
            }
        })?;
    }
    Ok(found)
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
