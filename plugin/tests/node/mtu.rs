//! Jumbo frames inside the node, the uplink's size beyond it, and ICMP where
//! a packet does not fit.

use std::net::IpAddr;

use crate::harness::flows::{Echo, connect, exchange};
use crate::harness::pinger::Pinger;
use crate::harness::{BEYOND4, BEYOND6, NODE4, Node, Options, Pod, Space};

/// `key:number` in what `ss -ti` says of the one connection from `space` to `to`.
#[track_caller]
fn tcp_info(space: &Space, to: &Echo, key: &str) -> u32 {
    let shown = space.exec(&format!("ss -Htin state established dst {}", to.address));
    let mut words = shown.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
    value
        .unwrap_or_else(|| panic!("no {key} in {shown:?}"))
        .parse()
        .unwrap()
}

/// The headers of a TCP packet without options.
fn headers(address: IpAddr) -> u32 {
    if address.is_ipv4() { 40 } else { 60 }
}

#[test]
fn tcp_uses_what_the_way_carries() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    // They take 12 bytes of every segment (RFC 7323).
    a.exec("sysctl -qw net.ipv4.tcp_timestamps=0");
    let local = node.facts.max_mtu;
    assert_eq!(
        local,
        if node.has_multi_buffer() {
            65_000
        } else {
            3498
        }
    );
    let ways = b
        .addresses()
        .into_iter()
        .map(|address| (&*b, address, local));
    let beyond = [BEYOND4, BEYOND6].map(|address| (node.outside(), address, 1500));
    for (server, address, mtu) in ways.chain(beyond) {
        let echo = Echo::tcp(server, address);
        let stream = connect(&a, echo.address);
        exchange(&stream, 4_000_000, 1);
        let mss = mtu - headers(address);
        for (key, expected) in [("pmtu", mtu), ("advmss", mss), ("mss", mss)] {
            assert_eq!(tcp_info(&a, &echo, key), expected, "{key} to {address}");
        }
    }
    node.finish();
}

#[test]
fn an_echo_of_every_size_comes_back() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    for (address, step) in [(b.v4(), 1), (b.v6(), 7)] {
        let pinger = Pinger::new(&a, address);
        (0..=60_000)
            .step_by(step)
            .for_each(|size| pinger.echo(size));
    }
    node.finish();
}

/// Pings once, unfragmented, with a packet of `length` bytes.
fn ping_whole(pod: &Pod, to: IpAddr, length: usize) -> String {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let output = pod.output(&format!(
        "ping -n -c 1 -W 10 -M do -s {} {to}",
        length - headers
    ));
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn what_is_too_large_for_the_uplink_is_told_so() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    for beyond in [BEYOND4, BEYOND6] {
        let answer = ping_whole(&pod, beyond, 1500);
        assert!(answer.contains(" 1 received"), "{answer}");
        let answer = ping_whole(&pod, beyond, 1501);
        assert!(
            answer.contains("message too long, mtu"),
            "the pod's route: {answer}"
        );

        // Without the route's MTU the pod believes its interface's.
        let gateway = pod.gateway_like(beyond);
        pod.exec(&format!(
            "ip route add {beyond} via {gateway} dev eth0 onlink"
        ));
        let answer = ping_whole(&pod, beyond, usize::try_from(node.facts.max_mtu).unwrap());
        let told = if beyond.is_ipv4() {
            format!("From {gateway} icmp_seq=1 Frag needed and DF set (mtu = 1500)")
        } else {
            format!("From {gateway} icmp_seq=1 Packet too big: mtu=1500")
        };
        assert!(answer.contains(&told), "{answer}");
    }
    node.finish();
}

#[test]
fn tcp_learns_the_uplinks_size() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    // A server that says it takes segments of any size.
    node.outside()
        .exec(&format!("ip route add {NODE4} dev out0 advmss 60000"));
    pod.exec(&format!(
        "ip route add {BEYOND4} via {} dev eth0 onlink",
        pod.gateway_like(BEYOND4)
    ));
    let echo = Echo::tcp(node.outside(), BEYOND4);
    let stream = connect(&pod, echo.address);
    exchange(&stream, 1_000_000, 1);
    assert_eq!(tcp_info(&pod, &echo, "pmtu"), 1500);
    node.finish();
}

#[test]
fn a_pod_with_a_smaller_mtu_is_not_sent_more() {
    let node = Node::start(&Options::default());
    let jumbo = node.add("jumbo");
    let small = node.add_to(
        &node.pods().with("localMtu", 1400).with("mtu", 1400),
        "small",
    );
    for address in small.addresses() {
        let gateway = jumbo.gateway_like(address);
        let answer = ping_whole(&jumbo, address, 2000);
        let told = if address.is_ipv4() {
            format!("From {gateway} icmp_seq=1 Frag needed and DF set (mtu = 1400)")
        } else {
            format!("From {gateway} icmp_seq=1 Packet too big: mtu=1400")
        };
        assert!(answer.contains(&told), "{answer}");
        let answer = ping_whole(&jumbo, address, 1400);
        assert!(answer.contains(" 1 received"), "{answer}");
    }
    assert_eq!(node.row(&small).counters.dropped("too-big"), 2);
    for (client, server) in [(&jumbo, &small), (&small, &jumbo)] {
        for address in server.addresses() {
            let echo = Echo::tcp(server, address);
            let stream = connect(client, echo.address);
            exchange(&stream, 1_000_000, 1);
            assert!(tcp_info(client, &echo, "mss") <= 1400 - headers(address));
        }
    }
    assert_eq!(
        node.row(&small).counters.dropped("too-big"),
        2,
        "TCP needs no telling"
    );
    let answer = ping_whole(&small, jumbo.v4(), 1400);
    assert!(answer.contains(" 1 received"), "{answer}");
    assert_eq!(node.row(&jumbo).counters.dropped("too-big"), 0);
    node.finish();
}
