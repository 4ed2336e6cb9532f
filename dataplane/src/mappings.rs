//! Ports of the node that lead to pods (hostPorts), as a worker knows them: to
//! be replaced as a whole, never changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};

use crate::packet::{Flow, mapped};
use crate::port::PortId;

/// A port of the node. IPv4 addresses are kept as [`Flow`] keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NodePort {
    address: Ipv6Addr,
    port: u16,
    protocol: u8,
}

/// A port of the node, and the pod's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The node's address; the unspecified one of its family for all.
    pub address: IpAddr,
    /// The node's port.
    pub host_port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
    /// The pod.
    pub pod: PortId,
    /// The pod's address, of the same family.
    pub pod_address: IpAddr,
    /// The pod's port.
    pub container_port: u16,
}

/// Where a port of the node leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The pod.
    pub pod: PortId,
    /// The pod's address.
    pub address: Ipv6Addr,
    /// The pod's port.
    pub port: u16,
}

/// The mappings, and the node's addresses: on no other do they count
/// (CVE-2025-67499).
#[derive(Debug, Default)]
pub struct Mappings {
    addresses: HashSet<Ipv6Addr, RandomState>,
    targets: HashMap<NodePort, Target, RandomState>,
}

impl Mappings {
    /// These mappings on a node with these addresses.
    #[must_use]
    pub fn new(
        addresses: impl IntoIterator<Item = IpAddr>,
        mappings: impl IntoIterator<Item = Mapping>,
    ) -> Self {
        let target = |mapping: Mapping| {
            let from = NodePort {
                address: mapped(mapping.address),
                port: mapping.host_port,
                protocol: mapping.protocol,
            };
            let to = Target {
                pod: mapping.pod,
                address: mapped(mapping.pod_address),
                port: mapping.container_port,
            };
            (from, to)
        };
        Self {
            addresses: addresses.into_iter().map(mapped).collect(),
            targets: mappings.into_iter().map(target).collect(),
        }
    }

    /// Where what a flow's destination stands for leads.
    #[inline]
    #[must_use]
    pub fn find(&self, flow: &Flow) -> Option<&Target> {
        if !self.addresses.contains(&flow.dst) {
            return None;
        }
        let mut to = NodePort {
            address: flow.dst,
            port: flow.dst_port,
            protocol: flow.protocol,
        };
        self.targets.get(&to).or_else(|| {
            to.address = match flow.dst.to_ipv4_mapped() {
                Some(_) => Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
                None => Ipv6Addr::UNSPECIFIED,
            };
            self.targets.get(&to)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: PortId = PortId {
        slot: 1,
        generation: 0,
    };

    fn mapping(address: &str, pod_address: &str) -> Mapping {
        Mapping {
            address: address.parse().unwrap(),
            host_port: 8080,
            protocol: 6,
            pod: POD,
            pod_address: pod_address.parse().unwrap(),
            container_port: 80,
        }
    }

    /// The address that port 8080 of `to` leads to.
    fn leads(mappings: &Mappings, to: &str) -> Option<IpAddr> {
        let flow = Flow {
            src: "2001:db8::9".parse().unwrap(),
            dst: mapped(to.parse().unwrap()),
            src_port: 4000,
            dst_port: 8080,
            protocol: 6,
        };
        let target = mappings.find(&flow)?;
        assert_eq!((target.pod, target.port), (POD, 80));
        assert_eq!(
            mappings.find(&Flow {
                protocol: 17,
                ..flow
            }),
            None
        );
        assert_eq!(
            mappings.find(&Flow {
                dst_port: 80,
                ..flow
            }),
            None
        );
        Some(IpAddr::V6(target.address).to_canonical())
    }

    #[test]
    fn a_mapping_counts_on_the_nodes_addresses_only() {
        let node = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let mappings = Mappings::new(
            node,
            [
                mapping("0.0.0.0", "10.77.0.10"),
                mapping("192.0.2.2", "10.77.0.11"),
                mapping("::", "fd00:77::10"),
                mapping("192.0.2.3", "10.77.0.12"),
            ],
        );
        for (to, pod) in [
            ("192.0.2.1", Some("10.77.0.10")),
            ("192.0.2.2", Some("10.77.0.11")),
            ("2001:db8::1", Some("fd00:77::10")),
            ("192.0.2.3", None),
            ("2001:db8::2", None),
        ] {
            let pod = pod.map(|pod: &str| pod.parse().unwrap());
            assert_eq!(leads(&mappings, to), pod, "{to}");
        }
    }
}
