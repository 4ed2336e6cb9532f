//! What the kernel forwards by, for who forwards beside it: routes with all
//! their next hops, neighbours, and rules that choose between tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::route::ip;
use crate::{LinkError, Netlink};

/// Where the kernel sends what is for a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// The destination.
    pub destination: IpNet,
    /// Of several for one destination the smallest counts.
    pub priority: u32,
    /// The next hops, any of which will do. None for what is discarded, and
    /// where more decides than the destination (type of service, source), or
    /// the packet would change on its way (an encapsulation).
    pub hops: Vec<Hop>,
}

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Index of the interface.
    pub interface: u32,
    /// The router; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// A neighbour whose MAC address is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Nobody has confirmed it for a while: whoever uses it has the kernel ask
    /// ([`Netlink::use_neighbour`]).
    pub is_stale: bool,
}

impl Netlink {
    /// What the main table says, of both families.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn forwarding(&self) -> Result<Vec<Forwarding>, LinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let messages = self.route_messages(family)?;
            routes.extend(messages.iter().filter_map(Forwarding::parse));
        }
        Ok(routes)
    }

    /// The neighbours of an interface with a known MAC address.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn neighbours(&self, index: u32) -> Result<BTreeMap<IpAddr, Neighbour>, LinkError> {
        let answers = self.handle.neighbours().get().execute();
        let messages = self.collect(answers, "list", "the neighbours")?;
        let own = messages.iter().filter(|m| m.header.ifindex == index);
        Ok(own.filter_map(parse_neighbour).collect())
    }

    /// Has the kernel do for a neighbour what it does for one that it sends to:
    /// ask for its MAC address, or whether that is still right. Not to be called
    /// for a permanent one: it would be permanent no more (`__neigh_update`).
    ///
    /// # Errors
    /// There is no such interface, it is down, or no privilege.
    pub fn use_neighbour(&self, index: u32, address: IpAddr) -> Result<(), LinkError> {
        let request = self
            .handle
            .neighbours()
            .add(index, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        self.ask(request.execute(), "ask for the neighbour", || {
            format!("{address} on the link with index {index}")
        })
    }

    /// The priority of a rule (`ip rule`) by which what comes in by the
    /// interface of this name may be routed otherwise than by the main table
    /// and its destination.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn policy_rule(&self, incoming: &str) -> Result<Option<u32>, LinkError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let answers = self.handle.rule().get(version).execute();
            let rules = match self.collect(answers, "list", "the rules") {
                // A kernel without this family, or without rules at all.
                Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => continue,
                other => other?,
            };
            if let Some(rule) = rules.iter().find(|rule| is_policy(rule, incoming)) {
                return Ok(Some(priority(rule)));
            }
        }
        Ok(None)
    }
}

impl Forwarding {
    fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let unwanted = RouteFlags::Cloned | RouteFlags::Dead;
        if header.flags.intersects(unwanted) {
            return None;
        }
        let length = header.destination_prefix_length;
        // A default route carries no destination attribute.
        let mut destination = match header.address_family {
            AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let mut table = u32::from(header.table);
        let mut priority = 0;
        let mut is_plain = header.kind == RouteType::Unicast
            && header.tos == 0
            && header.source_prefix_length == 0;
        let mut hops = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(id) => table = *id,
                RouteAttribute::Destination(address) => destination = ip(address)?,
                RouteAttribute::Priority(number) => priority = *number,
                RouteAttribute::MultiPath(paths) => {
                    let alive =
                        |path: &&RouteNextHop| !path.flags.contains(RouteNextHopFlags::Dead);
                    let paths = paths.iter().filter(alive);
                    hops.extend(
                        paths.filter_map(|path| hop(path.interface_index, &path.attributes)),
                    );
                }
                RouteAttribute::Oif(index) => hops.extend(hop(*index, &message.attributes)),
                RouteAttribute::Encap(_) => is_plain = false,
                _ => {}
            }
        }
        if !is_plain {
            hops.clear();
        }
        (table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(Self {
            destination: IpNet::new(destination, length).ok()?,
            priority,
            hops,
        })
    }
}

/// A next hop of these attributes, if a plain frame gets there.
fn hop(interface: u32, attributes: &[RouteAttribute]) -> Option<Hop> {
    let mut gateway = None;
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => gateway = Some(ip(address)?),
            // The gateway may be of the other family (RFC 5549).
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(_) | RouteAttribute::Encap(_) => return None,
            _ => {}
        }
    }
    Some(Hop { interface, gateway })
}

fn parse_neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Neighbour)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::from(*v4));
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::from(*v6));
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = message.header.state;
    if matches!(
        state,
        NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
    ) {
        return None;
    }
    let neighbour = Neighbour {
        mac: mac?,
        is_stale: state == NeighbourState::Stale,
    };
    Some((address?, neighbour))
}

/// Whether a rule may choose otherwise for what comes in by `incoming`. What
/// the kernel has from the start chooses by nothing but the table's routes.
fn is_policy(rule: &RuleMessage, incoming: &str) -> bool {
    /// Default, main and local (rtnetlink(7)).
    const TABLES: std::ops::RangeInclusive<u32> = 253..=255;
    let header = &rule.header;
    let mut table = u32::from(header.table);
    let mut is_plain = header.action == RuleAction::ToTable
        && header.dst_len == 0
        && header.src_len == 0
        && header.tos == 0;
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Iifname(name) if name != incoming => return false,
            RuleAttribute::Table(id) => table = *id,
            RuleAttribute::Priority(_)
            | RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => is_plain = false,
        }
    }
    !is_plain || !TABLES.contains(&table)
}

fn priority(rule: &RuleMessage) -> u32 {
    let mut attributes = rule.attributes.iter();
    let found = attributes.find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    found.unwrap_or_default()
}
