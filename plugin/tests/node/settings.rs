//! What the daemon does to the node, and what it finds wrong with it.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::json;

use crate::harness::flows::{Echo, check_tcp};
use crate::harness::frames::Ends;
use crate::harness::wire::Injector;
use crate::harness::{BEYOND6, NODE4, Node, OUT6, Options, Site, Space, wait_until};

#[test]
fn forwarding_is_on_and_router_advertisements_still_count() {
    let site = Site::new();
    let node = &site.node;
    assert_eq!(node.sysctl("net/ipv4/ip_forward"), "0");
    assert_eq!(node.sysctl("net/ipv6/conf/all/forwarding"), "0");
    node.exec("ip link add quiet0 type veth peer name quiet1");
    node.exec("sysctl -qw net.ipv6.conf.quiet0.accept_ra=0");
    node.exec("ip -6 route delete default");
    // A host that is no router says so in its neighbour advertisements, and
    // is a default router no more (RFC 4861 section 7.3.3).
    site.outside
        .exec("sysctl -qw net.ipv6.conf.all.forwarding=1");
    let advertise = RouterAdvertisements::new(&site);
    advertise.send();
    wait_until("the node has a default route from its router", || {
        has_ra_route(node)
    });

    let node = Node::start_on(site, &Options::default());
    let space = node.space();
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/up0/accept_ra", "2"),
        ("net/ipv6/conf/quiet0/accept_ra", "0"),
        ("net/ipv6/conf/default/accept_ra", "2"),
    ] {
        assert_eq!(space.sysctl(key), value, "{key}");
    }
    assert!(
        has_ra_route(space).is_some(),
        "{}",
        space.exec("ip -6 route")
    );
    let pod = node.add("pod");
    check_tcp(&pod, Echo::tcp(node.outside(), BEYOND6).address);

    // And the next one is heard too.
    space.exec("ip -6 route flush proto ra");
    advertise.send();
    wait_until("the node hears its router while it forwards", || {
        has_ra_route(space)
    });
    node.finish();
}

fn has_ra_route(space: &Space) -> Option<()> {
    let routes = space.json("ip -j -6 route show default");
    routes
        .iter()
        .any(|route| route["protocol"] == "ra")
        .then_some(())
}

/// The router on the uplink.
struct RouterAdvertisements {
    injector: Injector,
    frame: Vec<u8>,
}

impl RouterAdvertisements {
    fn new(site: &Site) -> Self {
        let link = site.outside.json("ip -j link show out0").remove(0);
        let octets = link["address"].as_str().unwrap().split(':');
        let mac: Vec<_> = octets
            .map(|octet| u8::from_str_radix(octet, 16).unwrap())
            .collect();
        let src = wait_until("the router has a link-local address", || {
            site.outside.link_local("out0")
        });
        let ends = Ends {
            src_mac: mac.try_into().unwrap(),
            dst_mac: [0x33, 0x33, 0, 0, 0, 1],
            src,
            dst: "ff02::1".parse().unwrap(),
        };
        Self {
            injector: Injector::new(&site.outside, "out0"),
            frame: ends.router_advertisement(),
        }
    }

    fn send(&self) {
        self.injector.send(&self.frame);
    }
}

fn text(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr].concat()).unwrap()
}

#[test]
fn a_forward_policy_of_drop_is_reported() {
    let node = Node::start(&Options::default());
    let check = format!("check-config --conflist {}", node.conflist().display());
    let well = node.sluiced(&check);
    assert_eq!(well.status.code(), Some(0), "{}", text(&well));
    for command in [
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    ] {
        node.space().exec(&format!("nft {command}"));
    }
    let bad = node.sluiced(&check);
    assert_eq!(bad.status.code(), Some(1), "{}", text(&bad));
    for needle in ["FORWARD", "drop", "filter"] {
        assert!(text(&bad).contains(needle), "{}", text(&bad));
    }
    node.finish();
}

#[test]
fn services_by_ipvs_are_reported() {
    let node = Node::start(&Options::default());
    let check = format!("check-config --conflist {}", node.conflist().display());
    assert!(!text(&node.sluiced(&check)).contains("IPVS"));
    node.space()
        .exec("ip link add kube-ipvs0 type veth peer name any0");
    let found = node.sluiced(&check);
    assert_eq!(found.status.code(), Some(0), "{}", text(&found));
    assert!(text(&found).contains("IPVS"), "{}", text(&found));
    node.finish();
}

#[test]
fn what_chained_plugins_cannot_do_is_said() {
    let mut node = Node::start(&Options::default());
    let chain = ["tuning", "bandwidth"].map(|plugin| json!({"type": plugin, "mtu": 1400}));
    let chain = node.chain(&chain).configuration;
    fs::write(node.conflist(), chain.to_string()).unwrap();
    let check = format!("check-config --conflist {}", node.conflist().display());
    let checked = node.sluiced(&check);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    assert!(node.stop().success());
    node.restart();
    for needle in ["bandwidth has no effect", "remove its key \"mtu\""] {
        assert!(text(&checked).contains(needle), "{}", text(&checked));
        assert!(node.log().contains(needle), "{}", node.log());
    }
    node.finish();
}

#[test]
fn a_reset_leaves_nothing_of_the_daemon() {
    let site = Site::new();
    let bare = site.node.links();
    let mut node = Node::start_on(site, &Options::default());
    let pod = node.add("pod");
    let space = node.space();
    assert!(space.links().iter().any(|name| name == "sluice0"));
    assert!(space.exec("nft list tables").contains("table inet sluice"));
    assert!(
        space
            .exec("ip route show proto 83")
            .contains(&pod.v4().to_string())
    );
    assert!(
        node.run_dir()
            .join("bpf/links")
            .join(pod.host_ifname())
            .exists()
    );
    assert!(node.socket().exists());
    let reset = format!("reset --conflist {}", node.conflist().display());
    let refused = node.sluiced(&reset);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("another sluiced runs"));
    // With a pod still attached: its interface goes too.
    assert!(node.stop().success());
    let done = node.sluiced(&reset);
    assert!(done.status.success(), "{}", text(&done));
    assert!(!node.run_dir().exists());

    let space = node.space();
    assert_eq!(space.links(), bare);
    assert_eq!(space.exec("nft list ruleset"), "");
    for family in ["-4", "-6"] {
        assert_eq!(
            space.exec(&format!("ip {family} route show table all proto 83")),
            ""
        );
    }
    assert!(!node.socket().exists());
    assert!(!is_mounted(&node.run_dir().join("bpf")));
}

#[test]
fn a_clean_exit_with_pods_leaves_their_interfaces_shut() {
    let mut node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    check_tcp(&a, Echo::tcp(&b, b.v4()).address);
    assert!(node.stop().success());
    let space = node.space();
    assert!(!node.socket().exists());
    // The program stays on and drops: the host's stack gets nothing unfiltered.
    let received = || space.counters()["IpInReceives"].clone();
    let before = received();
    for address in [b.v4(), a.gateway_like(NODE4), OUT6] {
        let output = a.output(&format!("ping -n -c 2 -i 0.1 -W 1 {address}"));
        assert!(!output.status.success(), "{output:?}");
    }
    assert_eq!(received(), before);
    for pod in [a, b] {
        pod.del();
    }
    assert!(
        !node
            .space()
            .links()
            .iter()
            .any(|name| name.starts_with("slv"))
    );
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .any(|line| line.contains(path.to_str().unwrap()))
}
