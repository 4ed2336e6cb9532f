//! Answers by the uplink go where the node's routes and neighbours lead, and
//! not where the questions came from.

use crate::harness::flows::Flow;
use crate::harness::mapped::{Mapped, at};
use crate::harness::{BEYOND4, BEYOND6, NODE4, NODE6, Node, OUT4, Options, Space, wait_until};

/// A second router on the uplink's link, and the links' prefixes beyond it.
const ROUTER4: &str = "198.51.100.3";
const ROUTER6: &str = "2001:db8:51::3";

/// A node whose clients outside are beyond its default routes, and which takes
/// packets that come another way than answers go, as its clients do.
fn start() -> (Node, Mapped) {
    let node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
    let outside = node.outside();
    for (to, from) in [(NODE4, BEYOND4), (NODE6, BEYOND6)] {
        outside.exec(&format!("ip route add {to} dev out0 src {from} metric 1"));
    }
    for (space, link) in [(node.space(), "up0"), (outside, "out0")] {
        accept_all(space, link);
    }
    (node, mapped)
}

/// No reverse path filter.
fn accept_all(space: &Space, link: &str) {
    for name in ["all", "default", link] {
        space.exec(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=0"));
    }
}

/// A connection by each family from outside.
fn connections(node: &Node) -> [Flow; 2] {
    [NODE4, NODE6].map(|address| Flow::tcp(node.outside(), at(address)))
}

/// Datagrams by each family from outside, of which none may be lost.
fn datagrams(node: &Node) -> [Flow; 2] {
    [NODE4, NODE6].map(|address| Flow::udp(node.outside(), at(address)))
}

fn go_on<'a>(flows: impl IntoIterator<Item = &'a Flow>) {
    flows.into_iter().for_each(Flow::goes_on);
}

fn stop(flows: impl IntoIterator<Item = Flow>) {
    flows.into_iter().for_each(|flow| {
        flow.stop();
    });
}

/// Frames that have left by the uplink's sockets, past the kernel.
fn past_the_kernel(node: &Node) -> u64 {
    let rows = node.rows().into_iter();
    let uplink = rows.filter(|row| row.interface == "up0");
    uplink.map(|row| row.counters.tx_frames).sum()
}

/// Packets that have left by an interface.
fn sent(space: &Space, link: &str) -> u64 {
    let shown = space.json(&format!("ip -j -s link show dev {link}"));
    shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

/// Another router between the uplink and what is beyond: `mv0` on the uplink's
/// link, `in0` to the host outside.
fn second_router(node: &Node) -> Space {
    let (outside, router) = (node.outside(), node.site.space("router"));
    let name = router.name();
    outside.exec(&format!(
        "ip link add mv0 link out0 netns {name} type macvlan mode bridge"
    ));
    outside.exec(&format!(
        "ip link add in1 type veth peer name in0 netns {name}"
    ));
    let sides = [(outside, "in1", "2"), (&router, "in0", "1")];
    for (space, link, host) in sides {
        space.exec(&format!("ip address add 192.0.2.{host}/24 dev {link}"));
        space.exec(&format!(
            "ip address add 2001:db8:52::{host}/64 dev {link} nodad"
        ));
        space.exec(&format!("ip link set {link} up"));
        accept_all(space, link);
    }
    router.exec(&format!("ip address add {ROUTER4}/24 dev mv0"));
    router.exec(&format!("ip address add {ROUTER6}/64 dev mv0 nodad"));
    router.exec("ip link set mv0 up");
    accept_all(&router, "mv0");
    for key in [
        "ipv4.ip_forward",
        "ipv6.conf.all.forwarding",
        // It says so when its MAC address changes, as routers do that take over.
        "ipv4.conf.mv0.arp_notify",
        "ipv6.conf.mv0.ndisc_notify",
    ] {
        router.exec(&format!("sysctl -qw net.{key}=1"));
    }
    router.exec(&format!("ip route add {BEYOND4} via 192.0.2.2"));
    router.exec(&format!("ip route add {BEYOND6} via 2001:db8:52::2"));
    router
}

#[test]
fn established_connections_follow_another_default_route_and_a_routers_new_mac() {
    let (node, mapped) = start();
    let router = second_router(&node);
    let (flows, datagrams) = (connections(&node), datagrams(&node));
    go_on(flows.iter().chain(&datagrams));

    // The questions still come from the first.
    for gateway in [ROUTER4, ROUTER6] {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        node.space()
            .exec(&format!("ip {family} route replace default via {gateway}"));
    }
    for counter in ["IpForwDatagrams", "Ip6OutForwDatagrams"] {
        wait_until("answers go by the other router", || {
            (router.counters()[counter].as_u64() > Some(100)).then_some(())
        });
    }
    // From now on none gets through by the first, and none goes by the kernel.
    for (iptables, to) in [("iptables", BEYOND4), ("ip6tables", BEYOND6)] {
        let rule = format!("{iptables} -I INPUT -i out0 -d {to} -j DROP");
        node.outside().exec(&rule);
    }
    let by_kernel = sent_to_the_host(&node);
    for _ in 0..10 {
        go_on(flows.iter().chain(&datagrams));
    }
    assert_eq!(sent_to_the_host(&node), by_kernel);
    stop(datagrams);

    // Nothing gets to the old one any more.
    router.exec("ip link set mv0 address 02:00:00:00:77:01");
    go_on(&flows);
    stop(flows);
    mapped.del();
    node.finish();
}

#[test]
fn a_client_that_the_node_reaches_by_another_interface_gets_its_answers_there() {
    let (node, mapped) = start();
    let (outside, space) = (node.outside(), node.space());
    let peer = outside.name();
    space.exec(&format!(
        "ip link add up1 type veth peer name out1 netns {peer}"
    ));
    for (space, link, host) in [(space, "up1", "1"), (outside, "out1", "2")] {
        space.exec(&format!("ip address add 192.0.2.{host}/24 dev {link}"));
        space.exec(&format!(
            "ip address add 2001:db8:52::{host}/64 dev {link} nodad"
        ));
        space.exec(&format!("ip link set {link} up"));
        accept_all(space, link);
    }
    let flows: Vec<Flow> = connections(&node)
        .into_iter()
        .chain(datagrams(&node))
        .collect();
    go_on(&flows);
    assert!(past_the_kernel(&node) > 0);

    let routes = [(BEYOND4, "192.0.2.2"), (BEYOND6, "2001:db8:52::2")];
    for (to, gateway) in routes {
        space.exec(&format!("ip route add {to} via {gateway}"));
    }
    wait_until("no answer leaves by the uplink", || {
        let before = past_the_kernel(&node);
        go_on(&flows);
        (past_the_kernel(&node) == before).then_some(())
    });
    let before = sent(space, "up1");
    go_on(&flows);
    assert!(sent(space, "up1") >= before + 8, "two rounds each");
    // Nor of a new one.
    let uplink = past_the_kernel(&node);
    let new = connections(&node);
    go_on(&new);
    assert_eq!(past_the_kernel(&node), uplink);

    for (to, gateway) in routes {
        space.exec(&format!("ip route delete {to} via {gateway}"));
    }
    let before = sent(space, "up1");
    wait_until("answers leave by the uplink again", || {
        (past_the_kernel(&node) > uplink + 100).then_some(())
    });
    go_on(flows.iter().chain(&new));
    assert!(past_the_kernel(&node) - uplink > sent(space, "up1") - before);
    stop(flows.into_iter().chain(new));
    mapped.del();
    node.finish();
}

#[test]
fn a_neighbour_that_the_kernel_forgot_is_asked_for() {
    let (node, mapped) = start();
    let (outside, space) = (node.outside(), node.space());
    // The client itself asks for nobody, and so says nothing of itself.
    let mac = space.json("ip -j link show dev up0").remove(0)["address"].clone();
    for address in [NODE4, NODE6] {
        let mac = mac.as_str().unwrap();
        outside.exec(&format!(
            "ip neighbour replace {address} lladdr {mac} dev out0 nud permanent"
        ));
    }
    let flows = datagrams(&node);
    go_on(&flows);
    let sent_by_kernel = sent_to_the_host(&node);
    let known =
        || space.exec("ip neighbour show dev up0 nud reachable nud stale nud delay nud probe");
    space.exec("ip neighbour flush dev up0");
    wait_until("the kernel knows both routers again", || {
        let known = known();
        let both = [OUT4.to_string(), "2001:db8:51::2".to_owned()];
        both.iter()
            .all(|router| known.contains(router.as_str()))
            .then_some(())
    });
    go_on(&flows);
    assert_eq!(
        sent_to_the_host(&node),
        sent_by_kernel,
        "nothing else made it ask"
    );
    stop(flows);
    mapped.del();
    node.finish();
}

/// Frames that the dataplane has handed to the host's stack.
fn sent_to_the_host(node: &Node) -> u64 {
    let mut rows = node.rows().into_iter();
    let host = rows.find(|row| row.kind == "host");
    host.expect("the host port").counters.tx_frames
}
