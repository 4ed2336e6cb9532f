//! Where a node stands: its namespace, and a host outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Space;

/// The node's addresses on its uplink.
pub(crate) const NODE4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub(crate) const NODE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1));
/// The outside host's addresses on the same link.
pub(crate) const OUT4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
pub(crate) const OUT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2));
/// Addresses beyond the link, which the node reaches by its default routes.
pub(crate) const BEYOND4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));
pub(crate) const BEYOND6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x9, 0, 0, 0, 0, 9));

/// What the suite runs, and the Debian package it comes in.
const TOOLS: [(&str, &str); 14] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ss", "iproute2"),
    ("nstat", "iproute2"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("ping", "iputils-ping"),
    ("ethtool", "ethtool"),
    ("traceroute", "traceroute"),
    ("iptables", "iptables"),
    ("ip6tables", "iptables"),
    ("tc", "iproute2"),
    ("jq", "jq"),
];

/// A node's namespace `node` with its uplink `up0`, and the host `outside` at
/// the other end. The outside host has no route to the pods.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) node: Space,
    pub(crate) outside: Space,
    /// What every namespace of this site is called, up to its role.
    prefix: String,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with_uplink_queues(1)
    }

    /// With so many queues each way on the uplink.
    pub(crate) fn with_uplink_queues(queues: usize) -> Self {
        check_requirements();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("sluice-t{}-{count}", std::process::id());
        let site = Self {
            node: Space::new(format!("{prefix}-node")),
            outside: Space::new(format!("{prefix}-out")),
            prefix,
        };
        // A new namespace has the first one's IPv4 settings: forwarding is for
        // the daemon to switch on.
        site.node.exec("sysctl -qw net.ipv4.ip_forward=0");
        for space in [&site.node, &site.outside] {
            space.exec("ip link set lo up");
        }
        for address in [BEYOND4, BEYOND6] {
            let outside = &site.outside;
            outside.exec(&format!("ip address add {address} dev lo"));
        }
        site.make_uplink(queues);
        site
    }

    /// A namespace for a pod.
    pub(crate) fn space(&self, role: &str) -> Space {
        Space::new(format!("{}-{role}", self.prefix))
    }

    /// The uplink with its addresses, and default routes.
    pub(crate) fn make_uplink(&self, queues: usize) {
        let Self { node, outside, .. } = self;
        let peer = outside.name();
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        node.exec(&format!(
            "ip link add up0 mtu 1500 {queues} type veth peer name out0 {queues} netns {peer}"
        ));
        for (space, link, v4, v6) in [(node, "up0", NODE4, NODE6), (outside, "out0", OUT4, OUT6)] {
            space.exec(&format!("ip address add {v4}/24 dev {link}"));
            space.exec(&format!("ip address add {v6}/64 dev {link} nodad"));
            space.exec(&format!("ip link set {link} up"));
        }
        node.exec(&format!("ip route add default via {OUT4}"));
        node.exec(&format!("ip -6 route add default via {OUT6}"));
    }
}

/// Fails with what is missing: a test that skips itself proves nothing.
fn check_requirements() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests make namespaces: run them as root"
    );
    let path = std::env::var_os("PATH").unwrap_or_default();
    for (tool, package) in TOOLS {
        let found = std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
        assert!(
            found,
            "{tool} is not on PATH (Debian: apt-get install {package})"
        );
    }
    assert!(Path::new("/run/netns").is_dir() || std::fs::create_dir_all("/run/netns").is_ok());
}
