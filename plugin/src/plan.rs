//! What an attachment gets inside the pod, worked out before anything is made.
//!
//! The dataplane is a router and answers for nobody but the gateway, so a pod
//! reaches everything, also the other pods of its subnet, through the gateway:
//! there is no prefix route, and the gateway's MAC address is known beforehand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_control::PodAddress;
use sluice_link::Route;

use crate::config::{Mtus, is_at_least};
use crate::error::Error;
use crate::result::{IpamResult, RouteEntry, RouteOptions};

/// The pod's next hop where IPAM names no gateway. Link-local: it needs no
/// address of the pods' subnet.
const GATEWAY4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

const DEFAULT4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
const DEFAULT6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

/// IP and TCP headers without options, bytes: what a segment of `advmss` has
/// around it.
const TCP4_HEADERS: u32 = 40;
const TCP6_HEADERS: u32 = 60;

/// `RTPROT_STATIC`: who asks finds that an administrator made the route.
const PROTOCOL_STATIC: u8 = 4;

/// Addresses, routes and neighbours of the pod's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The pod's addresses, each with its gateway.
    pub(crate) addresses: Vec<PodAddress>,
    /// The pod's routes, none of them twice.
    pub(crate) routes: Vec<PlannedRoute>,
}

/// One route of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlannedRoute {
    /// Where to.
    pub(crate) destination: IpNet,
    /// Next hop, always named.
    pub(crate) gateway: IpAddr,
    /// In bytes of IP packet.
    pub(crate) mtu: u32,
    /// As IPAM gave them, but for an `advmss` beyond what the pod is to get.
    pub(crate) options: RouteOptions,
}

impl PlannedRoute {
    /// The route by a pod's interface, as the kernel is asked for it.
    pub(crate) fn by(&self, interface: u32) -> Route {
        let RouteOptions {
            advmss,
            priority,
            scope,
            ..
        } = self.options;
        Route {
            gateway: Some(self.gateway),
            onlink: true,
            mtu: Some(self.mtu),
            advmss,
            priority,
            table: self.options.table(),
            scope: scope.unwrap_or(0),
            protocol: PROTOCOL_STATIC,
            ..Route::new(self.destination, interface)
        }
    }

    /// The route in a result of the specification's `version`. Before 1.1.0 it
    /// is a destination and a gateway, and in the main table.
    pub(crate) fn in_result(&self, version: &str) -> Option<RouteEntry> {
        let says_all = is_at_least(version, "1.1.0");
        let is_sayable = says_all || self.options.table() == Route::TABLE_MAIN;
        is_sayable.then(|| RouteEntry {
            dst: self.destination,
            gw: Some(self.gateway),
            mtu: says_all.then_some(self.mtu),
            options: if says_all {
                self.options
            } else {
                RouteOptions::default()
            },
        })
    }
}

impl Plan {
    /// Works out what the pod gets from what IPAM answered, with default
    /// routes where IPAM gave none if `default_routes`.
    pub(crate) fn new(ipam: &IpamResult, default_routes: bool, mtus: Mtus) -> Result<Self, Error> {
        let addresses: Vec<PodAddress> = ipam
            .ips
            .iter()
            .map(|ip| PodAddress {
                address: ip.address,
                gateway: ip.gateway.unwrap_or(match ip.address {
                    IpNet::V4(_) => GATEWAY4,
                    IpNet::V6(_) => GATEWAY6,
                }),
            })
            .collect();
        let mut plan = Self {
            addresses,
            routes: Vec::new(),
        };
        for route in &ipam.routes {
            plan.add_ipam_route(route, mtus)?;
        }
        plan.add_local_routes(mtus);
        if default_routes {
            plan.add_default_routes(mtus);
        }
        Ok(plan)
    }

    /// Whether the pod has an IPv6 address.
    pub(crate) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|a| a.address.addr().is_ipv6())
    }

    /// Every next hop, once: the dataplane stands behind all of them.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        let of_addresses = self.addresses.iter().map(|a| a.gateway);
        let of_routes = self.routes.iter().map(|r| r.gateway);
        let mut gateways: Vec<_> = of_addresses.chain(of_routes).collect();
        gateways.sort_unstable();
        gateways.dedup();
        gateways
    }

    fn add_ipam_route(&mut self, route: &RouteEntry, mtus: Mtus) -> Result<(), Error> {
        let ipv4 = route.dst.addr().is_ipv4();
        let gateway = route.gw.or_else(|| self.gateway_of(ipv4));
        let gateway = gateway.filter(|gateway| gateway.is_ipv4() == ipv4);
        let gateway = gateway.ok_or_else(|| {
            Error::ipam(format!(
                "IPAM gave a route to {}, but no gateway or address of that family: add a range \
                 of that family or remove the route",
                route.dst
            ))
        })?;
        if route
            .options
            .scope
            .is_some_and(|scope| scope >= Route::SCOPE_LINK)
        {
            return Err(Error::ipam(format!(
                "IPAM gave a route to {} with the scope of what is on the link: a pod reaches \
                 everything through its gateway; remove the route's scope",
                route.dst
            )));
        }
        let mtu = route.mtu.filter(|mtu| *mtu > 0).unwrap_or(mtus.uplink);
        let headers = if ipv4 { TCP4_HEADERS } else { TCP6_HEADERS };
        let most_mss = mtus.local - headers;
        let planned = PlannedRoute {
            destination: route.dst.trunc(),
            gateway,
            mtu: mtu.min(mtus.local),
            options: RouteOptions {
                advmss: route.options.advmss.map(|advmss| advmss.min(most_mss)),
                ..route.options
            },
        };
        let is_same = |other: &PlannedRoute| {
            let place = |r: &PlannedRoute| (r.destination, r.options.table(), r.options.priority);
            place(other) == place(&planned)
        };
        if !self.routes.iter().any(is_same) {
            self.routes.push(planned);
        }
        Ok(())
    }

    /// The pods of the node are in the address's subnet, and only routes to
    /// them carry the large MTU.
    fn add_local_routes(&mut self, mtus: Mtus) {
        for PodAddress { address, gateway } in self.addresses.clone() {
            if address.prefix_len() < address.max_prefix_len() {
                self.push(address.trunc(), gateway, mtus.local);
            }
        }
    }

    fn add_default_routes(&mut self, mtus: Mtus) {
        for destination in [DEFAULT4, DEFAULT6] {
            if let Some(gateway) = self.gateway_of(destination.addr().is_ipv4()) {
                self.push(destination, gateway, mtus.uplink);
            }
        }
    }

    /// The gateway of the first address of a family.
    fn gateway_of(&self, ipv4: bool) -> Option<IpAddr> {
        let mut gateways = self.addresses.iter().map(|a| a.gateway);
        gateways.find(|gateway| gateway.is_ipv4() == ipv4)
    }

    /// A route of ours, where IPAM gave none to the destination.
    fn push(&mut self, destination: IpNet, gateway: IpAddr, mtu: u32) {
        let is_there = |r: &PlannedRoute| {
            r.destination == destination && r.options.table() == Route::TABLE_MAIN
        };
        if !self.routes.iter().any(is_there) {
            self.routes.push(PlannedRoute {
                destination,
                gateway,
                mtu,
                options: RouteOptions::default(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use sluice_control::{Limit, Shaping};

    fn plan(ipam: Value, default_routes: bool) -> Result<Plan, Error> {
        let mtus = Mtus {
            uplink: 1500,
            local: 65_000,
        };
        Plan::new(&serde_json::from_value(ipam).unwrap(), default_routes, mtus)
    }

    fn routes(ipam: Value, default_routes: bool) -> Vec<String> {
        let plan = plan(ipam, default_routes).unwrap();
        let text = |r: &PlannedRoute| format!("{} via {} mtu {}", r.destination, r.gateway, r.mtu);
        plan.routes.iter().map(text).collect()
    }

    #[test]
    fn a_dual_stack_pod_gets_local_and_default_routes() {
        let ipam = json!({"ips": [
            {"address": "10.77.0.11/24", "gateway": "10.77.0.1"},
            {"address": "fd77::11/64"},
        ]});
        assert_eq!(
            routes(ipam.clone(), true),
            [
                "10.77.0.0/24 via 10.77.0.1 mtu 65000",
                "fd77::/64 via fe80::1 mtu 65000",
                "0.0.0.0/0 via 10.77.0.1 mtu 1500",
                "::/0 via fe80::1 mtu 1500",
            ]
        );
        // A secondary network leaves the default route alone.
        assert_eq!(routes(ipam, false).len(), 2);
    }

    #[test]
    fn ipams_routes_come_first_and_are_not_repeated() {
        let ipam = json!({
            "ips": [{"address": "10.77.0.11/24"}],
            "routes": [
                {"dst": "0.0.0.0/0"},
                {"dst": "10.77.0.9/24", "gw": "10.77.0.2"},
                {"dst": "10.96.0.0/12"},
            ],
        });
        let expected = [
            "0.0.0.0/0 via 169.254.1.1 mtu 1500",
            "10.77.0.0/24 via 10.77.0.2 mtu 1500",
            "10.96.0.0/12 via 169.254.1.1 mtu 1500",
        ];
        assert_eq!(routes(ipam.clone(), true), expected);
        assert_eq!(routes(ipam.clone(), false), expected);
        let gateways = plan(ipam, true).unwrap().gateways();
        assert_eq!(
            gateways,
            [Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(169, 254, 1, 1)]
        );
    }

    #[test]
    fn routes_of_other_tables_and_priorities_stand_beside_each_other() {
        let ipam = json!({
            "ips": [{"address": "10.77.0.11/24"}],
            "routes": [
                {"dst": "0.0.0.0/0", "table": 100},
                {"dst": "10.96.0.0/12", "priority": 5, "mtu": 9000, "advmss": 1200},
                {"dst": "10.96.0.0/12", "priority": 6, "table": 0, "scope": 200},
                {"dst": "10.96.0.0/12", "priority": 6, "table": 254},
            ],
        });
        assert_eq!(
            routes(ipam.clone(), true),
            [
                "0.0.0.0/0 via 169.254.1.1 mtu 1500",
                "10.96.0.0/12 via 169.254.1.1 mtu 9000",
                "10.96.0.0/12 via 169.254.1.1 mtu 1500",
                "10.77.0.0/24 via 169.254.1.1 mtu 65000",
                // IPAM's is in another table.
                "0.0.0.0/0 via 169.254.1.1 mtu 1500",
            ]
        );
        let plan = plan(ipam, true).unwrap();
        let kernel: Vec<Route> = plan.routes.iter().map(|route| route.by(7)).collect();
        assert_eq!((kernel[0].table, kernel[0].priority), (100, None));
        assert_eq!(
            (kernel[1].advmss, kernel[1].priority),
            (Some(1200), Some(5))
        );
        assert_eq!((kernel[2].table, kernel[2].scope), (254, 200));
    }

    /// Without an `advmss` the kernel derives one from the route's MTU.
    #[test]
    fn limits_lower_what_routes_carry_and_ask_for() {
        let shaping = Shaping {
            egress: Some(Limit::with_chosen_burst(10_000_000, 2500)),
            ..Shaping::default()
        };
        let mtus = Mtus {
            uplink: 1500,
            local: 65_000,
        };
        let ipam = json!({
            "ips": [{"address": "10.77.0.11/24"}, {"address": "fd77::11/64"}],
            "routes": [
                {"dst": "10.96.0.0/12", "mtu": 9000, "advmss": 8960},
                {"dst": "10.98.0.0/16", "advmss": 1200},
                {"dst": "fd96::/16", "mtu": 9000, "advmss": 8940},
            ],
        });
        let ipam = serde_json::from_value(ipam).unwrap();
        let plan = Plan::new(&ipam, true, mtus.under(&shaping)).unwrap();
        let found: Vec<_> = plan
            .routes
            .iter()
            .map(|route| {
                (
                    route.destination.to_string(),
                    route.mtu,
                    route.options.advmss,
                )
            })
            .collect();
        let expected = [
            ("10.96.0.0/12", 2500, Some(2460)),
            ("10.98.0.0/16", 1500, Some(1200)),
            ("fd96::/16", 2500, Some(2440)),
            ("10.77.0.0/24", 2500, None),
            ("fd77::/64", 2500, None),
            ("0.0.0.0/0", 1500, None),
            ("::/0", 1500, None),
        ];
        let expected =
            expected.map(|(destination, mtu, advmss)| (destination.to_owned(), mtu, advmss));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_host_address_has_no_local_route() {
        let ipam = json!({"ips": [{"address": "10.77.0.11/32"}, {"address": "fd77::11/128"}]});
        assert_eq!(
            routes(ipam, true),
            [
                "0.0.0.0/0 via 169.254.1.1 mtu 1500",
                "::/0 via fe80::1 mtu 1500"
            ]
        );
    }

    #[test]
    fn a_route_without_a_way_is_refused() {
        for route in [
            json!({"dst": "::/0"}),
            json!({"dst": "0.0.0.0/0", "gw": "fe80::1"}),
            json!({"dst": "10.9.0.0/16", "scope": 253}),
        ] {
            let ipam = json!({"ips": [{"address": "10.77.0.11/24"}], "routes": [route]});
            let error = plan(ipam, true).unwrap_err();
            assert_eq!(error.to_json(b"")["code"], 102, "{error}");
        }
    }
}
