//! Unicast routes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteScope, RouteType,
};

use super::existed;
use crate::{LinkError, Netlink};

/// The kernel's priority of IPv6 routes that ask for none (IP6_RT_PRIO_USER).
const DEFAULT_PRIORITY6: u32 = 1024;

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to. Bits beyond the prefix are ignored.
    pub destination: IpNet,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the interface it leaves by.
    pub interface: u32,
    /// The gateway is on the link, although no other route says so.
    pub onlink: bool,
    /// The address that the host prefers as source.
    pub source: Option<IpAddr>,
    /// MTU of the route in bytes of IP packet; the interface's if `None`.
    pub mtu: Option<u32>,
    /// Maximum segment size that TCP announces, in bytes; from the MTU if `None`.
    pub advmss: Option<u32>,
    /// The smaller goes first; the kernel's default if `None`.
    pub priority: Option<u32>,
    /// The table it is in.
    pub table: u32,
    /// How far away the destination is (`rtm_scope`, IPv4): [`Route::SCOPE_LINK`]
    /// is needed without gateway, and not possible with one.
    pub scope: u8,
    /// Who made it (`rtm_protocol`): 4 for static, 83 for the daemon.
    pub protocol: u8,
}

impl Route {
    /// The table that is looked at if no rule says otherwise.
    pub const TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
    /// `RT_SCOPE_LINK`: directly connected hosts.
    pub const SCOPE_LINK: u8 = 253;

    /// A route of the main table to what is on the link, nobody's
    /// (`RTPROT_UNSPEC`) and with the kernel's defaults.
    #[must_use]
    pub fn new(destination: IpNet, interface: u32) -> Self {
        Self {
            destination,
            gateway: None,
            interface,
            onlink: false,
            source: None,
            mtu: None,
            advmss: None,
            priority: None,
            table: Self::TABLE_MAIN,
            scope: 0,
            protocol: 0,
        }
    }

    /// Whether the kernel takes this route and `other` for one: the second
    /// that is added exists already.
    #[must_use]
    pub fn has_place_of(&self, other: &Self) -> bool {
        let place = |route: &Self| (route.destination, route.table, route.effective_priority());
        place(self) == place(other)
    }

    /// The priority, or what the kernel takes where none is given. 0 is none.
    #[must_use]
    pub fn effective_priority(&self) -> u32 {
        let default = match self.destination {
            IpNet::V4(_) => 0,
            IpNet::V6(_) => DEFAULT_PRIORITY6,
        };
        self.priority.filter(|p| *p != 0).unwrap_or(default)
    }
}

impl Netlink {
    /// Adds a route, in place of one to the same destination.
    ///
    /// # Errors
    /// The interface is absent or down, the gateway is not on the link, no
    /// privilege.
    pub fn replace_route(&self, route: &Route) -> Result<(), LinkError> {
        let request = self.handle.route().add(route.message()).replace();
        self.ask(request.execute(), "add the route", || route.to_string())
    }

    /// Adds a route; `false` if there is another to the same destination,
    /// which stays.
    ///
    /// # Errors
    /// As [`Netlink::replace_route`].
    pub fn add_route(&self, route: &Route) -> Result<bool, LinkError> {
        let request = self.handle.route().add(route.message()).execute();
        let result = self.ask(request, "add the route", || route.to_string());
        existed(result, libc::EEXIST)
    }

    /// Deletes a route; `false` if it was not there.
    ///
    /// # Errors
    /// The interface is absent, or no privilege.
    pub fn delete_route(&self, route: &Route) -> Result<bool, LinkError> {
        let request = self.handle.route().del(route.message()).execute();
        let result = self.ask(request, "delete the route", || route.to_string());
        existed(result, libc::ESRCH)
    }

    /// The unicast routes of the main table, as [`Netlink::routes_of_all_tables`].
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn routes(&self) -> Result<Vec<Route>, LinkError> {
        let mut routes = self.routes_of_all_tables()?;
        routes.retain(|route| route.table == Route::TABLE_MAIN);
        Ok(routes)
    }

    /// The unicast routes of both families with one interface. Multipath
    /// routes are left out.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn routes_of_all_tables(&self) -> Result<Vec<Route>, LinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let messages = self.route_messages(family)?;
            routes.extend(messages.iter().filter_map(Route::parse));
        }
        Ok(routes)
    }

    /// All routes of a family, as the kernel sends them.
    pub(super) fn route_messages(
        &self,
        family: AddressFamily,
    ) -> Result<Vec<RouteMessage>, LinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        let answers = self.handle.route().get(message).execute();
        self.collect(answers, "list", "the routes")
    }

    /// Whether what comes for `address` is delivered here: it is an address
    /// of this namespace, and one that works already. The kernel completes
    /// IPv6 addresses some time after they were added, also those without
    /// duplicate address detection (`addrconf_dad_work`), and drops what
    /// comes for them until then.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn delivers(&self, address: IpAddr) -> Result<bool, LinkError> {
        match self.look_up(address) {
            Ok(routes) => Ok(routes.iter().any(|r| r.header.kind == RouteType::Local)),
            Err(error) if error.errno() == Some(libc::ENETUNREACH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Where the kernel would send what is for `address`: the index of the
    /// interface, and the gateway or `address` itself.
    ///
    /// # Errors
    /// There is no route (ENETUNREACH), or the kernel does not answer.
    pub fn next_hop(&self, address: IpAddr) -> Result<(u32, IpAddr), LinkError> {
        let routes = self.look_up(address)?;
        let attributes = || routes.iter().flat_map(|route| &route.attributes);
        let interface = attributes().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        });
        let gateway = attributes().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => ip(gateway),
            _ => None,
        });
        let unreachable = || io::Error::from_raw_os_error(libc::ENETUNREACH);
        interface
            .map(|index| (index, gateway.unwrap_or(address)))
            .ok_or_else(|| LinkError::refused("look up", address.to_string(), unreachable()))
    }

    /// The route that the kernel takes to `address`.
    fn look_up(&self, address: IpAddr) -> Result<Vec<RouteMessage>, LinkError> {
        let destination = IpNet::from(address);
        let message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.addr(), destination.prefix_len())
            .map_err(|error| {
                LinkError::refused("look up", address.to_string(), io::Error::other(error))
            })?
            .build();
        let answers = self.handle.route().get(message).execute();
        self.collect(answers, "look up", &address.to_string())
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        write!(f, " on the link with index {}", self.interface)
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .output_interface(self.interface)
            .protocol(RouteProtocol::from(self.protocol))
            .build();
        let (header, attributes) = (&mut message.header, &mut message.attributes);
        let destination = self.destination.trunc();
        header.address_family = match destination {
            IpNet::V4(_) => AddressFamily::Inet,
            IpNet::V6(_) => AddressFamily::Inet6,
        };
        header.destination_prefix_length = destination.prefix_len();
        attributes.push(RouteAttribute::Destination(destination.addr().into()));
        header.scope = RouteScope::from(self.scope);
        match u8::try_from(self.table) {
            Ok(table) => header.table = table,
            Err(_) => attributes.push(RouteAttribute::Table(self.table)),
        }
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        if let Some(gateway) = self.gateway {
            attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        if let Some(source) = self.source {
            attributes.push(RouteAttribute::PrefSource(source.into()));
        }
        if let Some(priority) = self.priority {
            attributes.push(RouteAttribute::Priority(priority));
        }
        let mtu = self.mtu.map(RouteMetric::Mtu);
        let advmss = self.advmss.map(RouteMetric::Advmss);
        let metrics: Vec<_> = mtu.into_iter().chain(advmss).collect();
        if !metrics.is_empty() {
            attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }

    /// `None` for what is not a unicast route with one interface.
    fn parse(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
            return None;
        }
        let length = header.destination_prefix_length;
        // A default route carries no destination attribute.
        let destination = match header.address_family {
            AddressFamily::Inet => IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, length).ok()?),
            AddressFamily::Inet6 => IpNet::V6(Ipv6Net::new(Ipv6Addr::UNSPECIFIED, length).ok()?),
            _ => return None,
        };
        let mut interface = None;
        let mut route = Self {
            table: header.table.into(),
            scope: header.scope.into(),
            onlink: header.flags.contains(RouteFlags::Onlink),
            protocol: header.protocol.into(),
            ..Self::new(destination, 0)
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(id) => route.table = *id,
                RouteAttribute::Destination(address) => {
                    route.destination = IpNet::new(ip(address)?, length).ok()?;
                }
                RouteAttribute::Gateway(address) => route.gateway = ip(address),
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::PrefSource(address) => route.source = ip(address),
                RouteAttribute::Priority(priority) => {
                    let default = route.effective_priority();
                    route.priority = Some(*priority).filter(|p| *p != default);
                }
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(bytes) => route.mtu = Some(*bytes),
                            RouteMetric::Advmss(bytes) => route.advmss = Some(*bytes),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        route.interface = interface?;
        Some(route)
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
