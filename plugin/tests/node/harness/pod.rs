//! Pods: namespaces that the plugin attached to the node.

use std::net::IpAddr;
use std::ops::Deref;

use serde_json::Value;

use super::runtime::{Answer, Runtime};
use super::space::parse_mac;
use super::{Container, List, Network, Space, all_ok};

/// An attached pod; a [`Space`] to run things in.
#[derive(Debug)]
pub(crate) struct Pod {
    space: Space,
    container: Container,
    list: List,
    /// What ADD answered.
    result: Value,
}

/// Frames and bytes of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) sent_frames: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) received_frames: u64,
    pub(crate) received_bytes: u64,
}

impl Deref for Pod {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

impl Pod {
    /// Adds eth0 to the network of our plugin alone.
    #[track_caller]
    pub(crate) fn add(space: Space, id: &str, network: &Network, runtime: &Runtime) -> Self {
        let container = Container::new(&space, id, "eth0");
        let list = List::new(network.conflist(), runtime.clone());
        Self::join(space, container, list)
    }

    /// Adds an interface to the network of a list.
    #[track_caller]
    pub(crate) fn join(space: Space, container: Container, list: List) -> Self {
        let result = list.add(&container).ok();
        Self {
            space,
            container,
            list,
            result,
        }
    }

    /// The container's ID.
    pub(crate) fn id(&self) -> &str {
        self.container.id()
    }

    /// The container with its eth0.
    pub(crate) fn container(&self) -> &Container {
        &self.container
    }

    /// What ADD answered.
    pub(crate) fn result(&self) -> &Value {
        &self.result
    }

    /// Every address, without prefix length.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().unwrap().iter();
        let texts = ips.map(|ip| ip["address"].as_str().unwrap());
        texts
            .map(|text| text.split_once('/').unwrap().0.parse().unwrap())
            .collect()
    }

    /// Every gateway, by address.
    pub(crate) fn gateways(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().unwrap().iter();
        ips.map(|ip| ip["gateway"].as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// The address of the same family as `other`.
    #[track_caller]
    pub(crate) fn address_like(&self, other: IpAddr) -> IpAddr {
        of_family(self.addresses(), other)
    }

    /// The gateway of the same family as `other`.
    #[track_caller]
    pub(crate) fn gateway_like(&self, other: IpAddr) -> IpAddr {
        of_family(self.gateways(), other)
    }

    #[track_caller]
    pub(crate) fn v4(&self) -> IpAddr {
        self.address_like(super::NODE4)
    }

    #[track_caller]
    pub(crate) fn v6(&self) -> IpAddr {
        self.address_like(super::NODE6)
    }

    /// MAC addresses of the host's end, which is the gateway's, and of ours.
    pub(crate) fn macs(&self) -> ([u8; 6], [u8; 6]) {
        let mac = |end: usize| parse_mac(self.result["interfaces"][end]["mac"].as_str().unwrap());
        (mac(0), mac(1))
    }

    pub(crate) fn host_ifname(&self) -> &str {
        self.result["interfaces"][0]["name"].as_str().unwrap()
    }

    /// What eth0 itself has counted.
    pub(crate) fn traffic(&self) -> Traffic {
        let link = self.json("ip -j -s link show eth0").remove(0);
        let count = |way: &str, what: &str| link["stats64"][way][what].as_u64().unwrap();
        Traffic {
            sent_frames: count("tx", "packets"),
            sent_bytes: count("tx", "bytes"),
            received_frames: count("rx", "packets"),
            received_bytes: count("rx", "bytes"),
        }
    }

    /// DEL, and the end of the namespace.
    #[track_caller]
    pub(crate) fn del(self) {
        self.detach();
    }

    /// DEL alone.
    #[track_caller]
    pub(crate) fn detach(&self) {
        all_ok(self.list.del(&self.container, Some(&self.result)));
    }

    /// CHECK: the plugins' answers, up to the first failure.
    pub(crate) fn check(&self) -> Vec<Answer> {
        self.list.check(&self.container, &self.result)
    }
}

#[track_caller]
fn of_family(addresses: Vec<IpAddr>, other: IpAddr) -> IpAddr {
    let mut fitting = addresses
        .into_iter()
        .filter(|a| a.is_ipv4() == other.is_ipv4());
    fitting.next().expect("an address of that family")
}
