//! Partial checksums are completed or passed on, never delivered wrong.

use std::net::IpAddr;

use crate::harness::flows::{Echo, check_tcp, check_udp, ping};
use crate::harness::frames::Ends;
use crate::harness::wire::Injector;
use crate::harness::{BEYOND4, BEYOND6, NODE4, NODE6, Node, Options, Pod, Space, wait_until};

const COUNTERS: [&str; 6] = [
    "TcpInCsumErrors",
    "UdpInCsumErrors",
    "Udp6InCsumErrors",
    "IcmpInCsumErrors",
    "Icmp6InCsumErrors",
    "IpExtInCsumErrors",
];

fn checksum_errors(space: &Space) -> Vec<(&'static str, u64)> {
    let all = space.counters();
    let counters = COUNTERS.into_iter();
    let counts = counters.filter_map(|name| Some((name, all.get(name)?.as_u64()?)));
    let counts: Vec<_> = counts.collect();
    assert!(counts.len() >= 5, "nstat knows the counters: {counts:?}");
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

#[track_caller]
fn assert_no_errors(node: &Node, pods: &[&Pod]) {
    let pods = pods.iter().map(|pod| -> &Space { pod });
    for space in pods.chain([node.space(), node.outside()]) {
        assert_eq!(checksum_errors(space), [], "in {}", space.name());
    }
}

/// Ping, TCP and UDP of several sizes, one way and back.
#[track_caller]
fn load(client: &Space, server: &Space, address: IpAddr) {
    ping(client, address);
    check_tcp(client, Echo::tcp(server, address).address);
    check_udp(
        client,
        Echo::udp(server, address).address,
        &[0, 1, 2, 999, 1400, 3000, 30_001],
    );
}

#[test]
fn nobody_gets_a_wrong_checksum() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    for address in b.addresses() {
        load(&a, &b, address);
    }
    for (inside, beyond) in [(NODE4, BEYOND4), (NODE6, BEYOND6)] {
        load(&a, node.space(), a.gateway_like(inside));
        load(node.space(), &b, b.address_like(inside));
        load(&a, node.outside(), beyond);
    }
    assert_no_errors(&node, &[&a, &b]);
    node.finish();
}

#[test]
fn nobody_gets_a_wrong_checksum_inside_a_tunnel() {
    for outer in [NODE4, NODE6] {
        for options in ["udpcsum", "noudpcsum udp6zerocsumtx udp6zerocsumrx"] {
            let node = Node::start(&Options::default());
            let [a, b] = ["a", "b"].map(|name| node.add(name));
            for (pod, number) in [(&a, 1), (&b, 2)] {
                pod.exec(&format!(
                    "ip link add vx0 type vxlan id 42 dev eth0 dstport 4789 local {} {options}",
                    pod.address_like(outer)
                ));
                pod.exec(&format!("ip address add 172.16.0.{number}/24 dev vx0"));
                pod.exec(&format!("ip address add fd16::{number}/64 dev vx0 nodad"));
                pod.exec("ip link set vx0 up");
            }
            // Only now: a datagram without checksum is an error where no
            // tunnel listens yet.
            for (pod, peer) in [(&a, &b), (&b, &a)] {
                let remote = peer.address_like(outer);
                pod.exec(&format!(
                    "bridge fdb append 00:00:00:00:00:00 dev vx0 dst {remote}"
                ));
            }
            for inner in ["172.16.0.2", "fd16::2"] {
                load(&a, &b, inner.parse().unwrap());
            }
            assert_no_errors(&node, &[&a, &b]);
            node.finish();
        }
    }
}

/// Who changes a packet on its way must notice; and so must this suite.
#[test]
fn a_wrong_checksum_is_delivered_as_it_is() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let (gateway, mac) = a.macs();
    for (like, counter) in [(NODE4, "UdpInCsumErrors"), (NODE6, "Udp6InCsumErrors")] {
        let ends = Ends {
            src_mac: mac,
            dst_mac: gateway,
            src: a.address_like(like),
            dst: b.address_like(like),
        };
        let mut frame = ends.udp(b"changed on the way");
        *frame.last_mut().unwrap() ^= 0x55;
        // The kernel looks at the checksum when there is somebody to read.
        let server = Echo::udp(&b, b.address_like(like));
        let port = if like.is_ipv4() {
            14 + 20 + 2
        } else {
            14 + 40 + 2
        };
        frame[port..port + 2].copy_from_slice(&server.address.port().to_be_bytes());
        Injector::new(&a, "eth0").send(&frame);
        wait_until("the receiver counts the wrong checksum", || {
            checksum_errors(&b).contains(&(counter, 1)).then_some(())
        });
        assert_eq!(server.peers(), Vec::<IpAddr>::new());
    }
    node.finish();
}

#[test]
fn the_pods_offloads_are_what_the_daemon_can_complete() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    let features = pod.exec("ethtool -k eth0");
    let is_on = |feature: &str| {
        let mut lines = features
            .lines()
            .filter_map(|line| line.trim().split_once(": "));
        let state = lines.find(|(name, _)| *name == feature).expect(feature).1;
        state.starts_with("on")
    };
    assert_eq!(
        is_on("tx-checksumming"),
        node.has_tx_metadata(),
        "{features}"
    );
    assert!(!is_on("tx-checksum-sctp"), "{features}");
    node.finish();
}
