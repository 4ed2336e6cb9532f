//! A pod behind a hostPort.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::flows::Echo;
use super::{Network, Node, Pod};

/// The node's port.
pub(crate) const HOST_PORT: u16 = 8080;
/// The pod's.
pub(crate) const POD_PORT: u16 = 80;

/// The mapped port of an address of the node.
pub(crate) fn at(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, HOST_PORT)
}

/// TCP and UDP on every address, to the pod's port.
pub(crate) fn both(network: &Network) -> Network {
    network.mapped(&[
        (HOST_PORT, POD_PORT, "tcp", ""),
        (HOST_PORT, POD_PORT, "UDP", ""),
    ])
}

/// A pod that sends back what it gets on its port, by both protocols and in
/// both families.
pub(crate) struct Mapped {
    pub(crate) pod: Pod,
    pub(crate) tcp: Echo,
    pub(crate) udp: Echo,
}

impl Mapped {
    /// Behind the mapped port of every address.
    #[track_caller]
    pub(crate) fn start(node: &Node) -> Self {
        Self::join(node, &both(&node.pods()), "mapped")
    }

    /// It answers before its ADD has ended.
    #[track_caller]
    pub(crate) fn join(node: &Node, network: &Network, name: &str) -> Self {
        let space = node.site.space(name);
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), POD_PORT);
        let (tcp, udp) = (Echo::tcp_at(&space, address), Echo::udp_at(&space, address));
        let pod = Pod::add(space, name, network, &node.runtime());
        Self { pod, tcp, udp }
    }

    /// Where clients came from since the last time.
    pub(crate) fn peers(&self) -> Vec<IpAddr> {
        let mut peers = self.tcp.take_peers();
        peers.extend(self.udp.take_peers());
        peers
            .iter_mut()
            .for_each(|peer| *peer = peer.to_canonical());
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    #[track_caller]
    pub(crate) fn del(self) {
        self.pod.del();
    }
}
