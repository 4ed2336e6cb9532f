//! Connections that the kernel tracks: forgotten when their mapping changes, and
//! looked at when the daemon starts.
//!
//! The kernel looks at the mappings only for the first packet of a connection.
//! For UDP there is no second first packet: a client that keeps its port would
//! go on to a pod that is gone, or to the host itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::SockProtocol;
use sluice_control::{HostEnd, Protocol, Redirect};

use crate::netlink::{Message, Mode, Request, Socket, attribute};

// `NFNL_SUBSYS_CTNETLINK` << 8 | `IPCTNL_MSG_CT_GET`, `IPCTNL_MSG_CT_DELETE`.
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;

/// `struct nfgenmsg`: family, version, resource.
const NFGENMSG_BYTES: usize = 4;

// linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Compare the protocol, and the destination port
/// (net/netfilter/nf_internals.h).
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_PORT: u32 = 1 << 5;

/// Which connections to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Those that do not lead where the mapping leads: it is new.
    Elsewhere,
    /// Those that do: it is gone.
    There,
}

/// Forgets connections that came to the node's ends of mappings. Answers how
/// many.
///
/// `is_nodes` says whether an address is the node's: the same port elsewhere is
/// somebody else's business.
///
/// # Errors
/// The kernel refuses, or cannot track connections.
pub fn forget(
    redirects: &[Redirect],
    stale: Stale,
    mut is_nodes: impl FnMut(IpAddr) -> bool,
) -> io::Result<usize> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let mut found = Vec::new();
    for (kind, ports) in kinds(redirects) {
        socket.ask(list(kind, &ports), |message| {
            found.extend(Connection::read(&message));
        })?;
    }
    let mapped = by_port(redirects);
    let mut forgotten = 0;
    for connection in found {
        let port = (connection.protocol, connection.to.port());
        let redirects = mapped.get(&port).map_or(&[][..], Vec::as_slice);
        let is_stale = connection.leads(redirects) == Some(stale);
        if is_stale && (stale == Stale::There || is_nodes(connection.to.ip())) {
            match socket.ask(connection.deletion, |_| ()) {
                Ok(()) => forgotten += 1,
                // It ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(forgotten)
}

/// A connection that the kernel translates, as who answers knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translated {
    /// TCP, UDP or SCTP, by its number.
    pub protocol: u8,
    /// Whom the server sees.
    pub client: SocketAddr,
    /// Who answers.
    pub server: SocketAddr,
}

/// All connections that the kernel translates.
///
/// # Errors
/// The kernel refuses, or cannot track connections.
pub fn translated() -> io::Result<Vec<Translated>> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let mut found = Vec::new();
    // Of all families.
    let list = Request::new(GET, Mode::List, &[0; NFGENMSG_BYTES]);
    socket.ask(list, |message| found.extend(read_translated(&message)))?;
    Ok(found)
}

fn read_translated(message: &Message<'_>) -> Option<Translated> {
    let attributes = message.payload.get(NFGENMSG_BYTES..)?;
    let original = attribute(attributes, CTA_TUPLE_ORIG)?;
    let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
    let (asked_by, asked) = (source(original)?, destination(original)?);
    let (server, client) = (source(reply)?, destination(reply)?);
    let connection = Translated {
        protocol: protocol(original)?,
        client,
        server,
    };
    ((asked_by, asked) != (client, server)).then_some(connection)
}

/// What the kernel lists at once: a family and a protocol.
type Kind = (u8, Protocol);

/// The mappings' ports, by what is listed at once. The kernel walks its whole
/// table for each list, however few connections it names.
fn kinds(redirects: &[Redirect]) -> BTreeMap<Kind, BTreeSet<u16>> {
    let mut kinds: BTreeMap<Kind, BTreeSet<u16>> = BTreeMap::new();
    for Redirect { from, to } in redirects {
        let kind = (family(to.ip()), from.protocol);
        kinds.entry(kind).or_default().insert(from.port);
    }
    kinds
}

/// The mappings of each protocol and port: a node may have tens of thousands.
fn by_port(redirects: &[Redirect]) -> HashMap<(u8, u16), Vec<Redirect>> {
    let mut mapped: HashMap<_, Vec<Redirect>> = HashMap::new();
    for redirect in redirects {
        let HostEnd { protocol, port, .. } = redirect.from;
        let same_port = mapped.entry((protocol.number(), port)).or_default();
        same_port.push(*redirect);
    }
    mapped
}

/// Asks for connections by this protocol, and to this port if it is the only
/// one. Kernels before 5.8 do not know the filter and list all.
fn list((family, protocol): Kind, ports: &BTreeSet<u16>) -> Request {
    let only = ports.first().filter(|_| ports.len() == 1);
    let mut request = Request::new(GET, Mode::List, &[family, 0, 0, 0]);
    request.nested(CTA_TUPLE_ORIG, |tuple| {
        tuple.nested(CTA_TUPLE_PROTO, |tuple| {
            tuple.attribute(CTA_PROTO_NUM, &[protocol.number()]);
            if let Some(port) = only {
                tuple.attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    request.nested(CTA_FILTER, |filter| {
        let port = only.map_or(0, |_| FILTER_PORT);
        let flags = (FILTER_PROTOCOL | port).to_ne_bytes();
        filter.attribute(CTA_FILTER_ORIG_FLAGS, &flags);
        filter.attribute(CTA_FILTER_REPLY_FLAGS, &[0; 4]);
    });
    request
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).unwrap_or_default()
}

/// As much of a tracked connection as decides.
#[derive(Debug)]
struct Connection {
    protocol: u8,
    /// Where its first packet went.
    to: SocketAddr,
    /// Who answers, before translation.
    answered_by: SocketAddr,
    /// The request that makes the kernel forget it.
    deletion: Request,
}

impl Connection {
    /// `None` for what has no ports.
    fn read(message: &Message<'_>) -> Option<Self> {
        let (header, attributes) = message.payload.split_at_checked(NFGENMSG_BYTES)?;
        let original = attribute(attributes, CTA_TUPLE_ORIG)?;
        let reply = attribute(attributes, CTA_TUPLE_REPLY)?;
        let mut deletion = Request::new(DELETE, Mode::Do, header);
        // The same connection, not one that came in its place.
        for kind in [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE] {
            if let Some(value) = attribute(attributes, kind) {
                deletion.attribute(kind, value);
            }
        }
        Some(Self {
            protocol: protocol(original)?,
            to: destination(original)?,
            answered_by: source(reply)?,
            deletion,
        })
    }

    /// Whether it leads where one of the mappings leads that cover it: a pod may
    /// map a port of all addresses and, to another place, that of one. `None` if
    /// it came by no mapping.
    fn leads(&self, redirects: &[Redirect]) -> Option<Stale> {
        let mut covering = redirects.iter().filter(|Redirect { from, .. }| {
            self.protocol == from.protocol.number()
                && self.to.port() == from.port
                && from.covers(self.to.ip())
        });
        let first = covering.next()?;
        let is_there = |redirect: &Redirect| redirect.to == self.answered_by;
        Some(if is_there(first) || covering.any(is_there) {
            Stale::There
        } else {
            Stale::Elsewhere
        })
    }
}

fn protocol(tuple: &[u8]) -> Option<u8> {
    let number = attribute(attribute(tuple, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)?;
    number.first().copied()
}

fn source(tuple: &[u8]) -> Option<SocketAddr> {
    end(tuple, [CTA_IP_V4_SRC, CTA_IP_V6_SRC], CTA_PROTO_SRC_PORT)
}

fn destination(tuple: &[u8]) -> Option<SocketAddr> {
    end(tuple, [CTA_IP_V4_DST, CTA_IP_V6_DST], CTA_PROTO_DST_PORT)
}

/// An end of a tuple: address and port.
fn end(tuple: &[u8], [v4, v6]: [u16; 2], port: u16) -> Option<SocketAddr> {
    let addresses = attribute(tuple, CTA_TUPLE_IP)?;
    let v4 = attribute(addresses, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = attribute(addresses, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let address = v4.map(IpAddr::from).or(v6.map(IpAddr::from))?;
    let port = attribute(attribute(tuple, CTA_TUPLE_PROTO)?, port)?;
    Some(SocketAddr::new(
        address,
        u16::from_be_bytes(port.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(address: &str, to: &str) -> Redirect {
        Redirect {
            from: HostEnd {
                address: address.parse().unwrap(),
                protocol: Protocol::Udp,
                port: 8080,
            },
            to: to.parse().unwrap(),
        }
    }

    fn connection(to: &str, answered_by: &str) -> Connection {
        Connection {
            protocol: Protocol::Udp.number(),
            to: to.parse().unwrap(),
            answered_by: answered_by.parse().unwrap(),
            deletion: Request::new(DELETE, Mode::Do, &[0; NFGENMSG_BYTES]),
        }
    }

    /// By whichever of them the connection came.
    #[test]
    fn a_port_may_be_mapped_for_all_addresses_and_for_one() {
        let mut redirects = [
            redirect("0.0.0.0", "10.77.0.2:80"),
            redirect("192.0.2.1", "10.77.0.2:81"),
        ];
        for _ in 0..2 {
            for (to, answered_by, leads) in [
                ("192.0.2.1:8080", "10.77.0.2:80", Some(Stale::There)),
                ("192.0.2.1:8080", "10.77.0.2:81", Some(Stale::There)),
                ("192.0.2.1:8080", "10.77.0.9:80", Some(Stale::Elsewhere)),
                ("192.0.2.7:8080", "10.77.0.2:81", Some(Stale::Elsewhere)),
                ("192.0.2.7:8081", "10.77.0.2:80", None),
            ] {
                let connection = connection(to, answered_by);
                assert_eq!(connection.leads(&redirects), leads, "{connection:?}");
            }
            redirects.reverse();
        }
    }
}
