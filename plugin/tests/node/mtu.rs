//! Jumbo frames inside the node, the uplink's size beyond it, and ICMP where
//! a packet does not fit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::harness::flows::{Echo, connect, connect_from, exchange, udp_client};
use crate::harness::mapped::{Mapped, POD_PORT, at};
use crate::harness::pinger::Pinger;
use crate::harness::{BEYOND4, BEYOND6, NODE4, NODE6, Node, Options, Pod, Space, wait_until};

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// `key:number` in what `ss -ti` says of the one connection from `space` to `to`.
#[track_caller]
fn tcp_info(space: &Space, to: &Echo, key: &str) -> u32 {
    info_of(space, &format!("dst {}", to.address), key)
}

/// The same of the one connection that `filter` lets through. A client's is there
/// before the server's is established.
#[track_caller]
fn info_of(space: &Space, filter: &str, key: &str) -> u32 {
    wait_until(&format!("ss shows {key} of {filter}"), || {
        let shown = space.exec(&format!("ss -Htin state established {filter}"));
        let mut words = shown.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
        value.map(|value| value.parse().unwrap())
    })
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

/// A client behind two routers, the one at the node's link being the host
/// outside, with a link of this MTU between them.
fn far_client(node: &Node, mtu: u32) -> [Space; 2] {
    let [router, client] = ["router", "client"].map(|role| node.site.space(role));
    let outside = node.outside();
    let links = [
        ([outside, &router], ["narrow0", "narrow1"], "60", mtu),
        ([&router, &client], ["wide0", "wide1"], "61", 1500),
    ];
    for (spaces, names, net, mtu) in links {
        let ([near, far], [near_name, far_name]) = (spaces, names);
        near.exec(&format!(
            "ip link add {near_name} mtu {mtu} type veth peer name {far_name} mtu {mtu} netns {}",
            far.name()
        ));
        for (space, name, host) in [(near, near_name, 1), (far, far_name, 2)] {
            space.exec(&format!("ip address add 192.0.{net}.{host}/24 dev {name}"));
            space.exec(&format!(
                "ip address add 2001:db8:{net}::{host}/64 dev {name} nodad"
            ));
            space.exec(&format!("ip link set {name} up"));
        }
    }
    for space in [outside, &router] {
        for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            space.exec(&format!("sysctl -qw net.{key}=1"));
        }
    }
    outside.exec("ip route add 192.0.61.0/24 via 192.0.60.2");
    outside.exec("ip route add 2001:db8:61::/64 via 2001:db8:60::2");
    for (space, net) in [(&router, 60), (&client, 61)] {
        space.exec(&format!("ip route add default via 192.0.{net}.1"));
        space.exec(&format!("ip -6 route add default via 2001:db8:{net}::1"));
    }
    [router, client]
}

#[test]
fn a_smaller_link_between_client_and_node_is_found_through_a_host_port() {
    const NARROW: u32 = 1300;
    for uplink in ["auto", "none"] {
        let node = Node::start(&Options {
            uplink,
            ..Options::default()
        });
        let mapped = Mapped::start(&node);
        let [router, client] = far_client(&node, NARROW);
        // They take 12 bytes of every segment (RFC 7323).
        client.exec("sysctl -qw net.ipv4.tcp_timestamps=0");
        for (port, address) in [(4004, NODE4), (4006, NODE6)] {
            let from = if address.is_ipv4() { ANY4 } else { ANY6 };
            let stream = connect_from(&client, SocketAddr::new(from, port), at(address));
            let [pod_end, client_end] = [
                (
                    &*mapped.pod,
                    format!("sport = :{POD_PORT} and dport = :{port}"),
                ),
                (&client, format!("sport = :{port}")),
            ];
            for (space, filter) in [&pod_end, &client_end] {
                let advertised = info_of(space, filter, "advmss");
                assert_eq!(advertised, 1500 - headers(address), "nobody knows yet");
            }
            exchange(&stream, 2_000_000, 1);
            for (space, filter) in [&pod_end, &client_end] {
                assert_eq!(info_of(space, filter, "pmtu"), NARROW, "{filter}, {uplink}");
                assert_eq!(info_of(space, filter, "mss"), NARROW - headers(address));
            }
            drop(stream);
        }
        // What TCP has learned, UDP knows, so a pod that does not.
        mapped.pod.exec("ip route flush cache");
        mapped.pod.exec("ip -6 route flush cache");
        for address in [NODE4, NODE6] {
            let socket = udp_client(&client, at(address));
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            let question = [7; 1400];
            let mut answer = [0; 1401];
            // The first ones, each way, are what the routers tell of.
            let length = wait_until("an answer comes", || {
                let _ = socket.send(&question);
                socket.recv(&mut answer).ok()
            });
            assert_eq!(answer[..length], question, "{address}");
        }
        drop(router);
        mapped.del();
        node.finish();
    }
}

/// Of both ends: what is larger than the receiver's is lost without a word.
fn set_uplink_mtu(node: &Node, mtu: u32) {
    for (space, link) in [(node.space(), "up0"), (node.outside(), "out0")] {
        space.exec(&format!("ip link set {link} mtu {mtu}"));
    }
}

#[test]
fn the_uplinks_new_mtu_is_followed() {
    const NARROW: u32 = 1400;
    let node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
    for address in [NODE4, NODE6] {
        let stream = connect(node.outside(), at(address));
        exchange(&stream, 500_000, 1);
        set_uplink_mtu(&node, NARROW);
        let filter = format!("sport = :{POD_PORT}");
        wait_until("the pod is told", || {
            exchange(&stream, 100_000, 2);
            (info_of(&mapped.pod, &filter, "pmtu") == NARROW).then_some(())
        });
        set_uplink_mtu(&node, 1500);
    }
    mapped.del();
    node.finish();
}
