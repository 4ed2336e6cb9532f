//! How the namespace that we are in reaches a destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use sluice_link::Netlink;

use super::packet::Path;
use crate::error::BenchError;

/// How long ARP or neighbour discovery may take: three tries of a second.
const PATIENCE: Duration = Duration::from_secs(4);

/// Finds the way from the calling thread's namespace to `destination`: the
/// interface, both MAC addresses, the source address. The first flow's source
/// port is `src_port`.
///
/// # Errors
/// There is no route, or the next hop does not answer.
pub(crate) fn resolve(
    destination: SocketAddr,
    src_port: u16,
) -> Result<(String, Path), BenchError> {
    let netlink = Netlink::new()?;
    let (index, hop) = netlink.next_hop(destination.ip())?;
    let links = netlink.links()?;
    let link = links.into_iter().find(|link| link.index == index);
    let (interface, mac) = link
        .and_then(|link| Some((link.name, link.mac?)))
        .ok_or_else(|| {
            BenchError::Refused(format!(
                "the way to {} is by an interface without a MAC address: run it where the \
                 destination is behind an Ethernet interface",
                destination.ip()
            ))
        })?;
    let source = provoke(destination)?;
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(next) = netlink.neighbour(index, hop)? {
            let path = Path {
                macs: (mac, next),
                addresses: (source, destination.ip()),
                src_port,
                dst_port: destination.port(),
            };
            return Ok((interface, path));
        }
        if Instant::now() > give_up {
            return Err(BenchError::Refused(format!(
                "{hop} on {interface}, the next hop to {}, does not tell its MAC address: \
                 is the other end up?",
                destination.ip()
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Has the kernel look for the next hop, by a datagram to the port that
/// discards (RFC 863), and tells the source address that it chose.
fn provoke(destination: SocketAddr) -> Result<IpAddr, BenchError> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let discard = SocketAddr::new(destination.ip(), 9);
    let ask = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(discard)?;
        socket.send(&[])?;
        Ok(socket.local_addr()?.ip())
    };
    ask().map_err(BenchError::system::<std::io::Error>(
        "send a datagram to",
        discard.to_string(),
    ))
}
