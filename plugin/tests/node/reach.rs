//! Who reaches whom: pods, the host, the world outside; IPv4 and IPv6.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener};
use std::thread;

use crate::harness::flows::{Echo, Flow, check_tcp, check_udp, connect, ping};
use crate::harness::{BEYOND4, BEYOND6, NODE4, NODE6, Node, OUT4, Options, Pod, Space};

const SIZES: [usize; 5] = [0, 1, 1000, 1472, 5000];

/// Ping, TCP and UDP from `client` to `address`, which `server` has.
#[track_caller]
fn check_reach(client: &Space, server: &Space, address: IpAddr) {
    ping(client, address);
    check_tcp(client, Echo::tcp(server, address).address);
    check_udp(client, Echo::udp(server, address).address, &SIZES);
}

#[test]
fn pods_of_every_family_reach_each_other() {
    let node = Node::start(&Options::default());
    let pods = [
        node.add("dual-a"),
        node.add("dual-b"),
        node.add_to(&node.network("four", &["10.78.0.0/24"]), "four"),
        node.add_to(&node.network("six", &["fd78::/64"]), "six"),
    ];
    let mut pairs = 0;
    for server in &pods {
        for address in server.addresses() {
            let is_reachable = |client: &&Pod| {
                let mut own = client.addresses().into_iter();
                client.id() != server.id() && own.any(|own| own.is_ipv4() == address.is_ipv4())
            };
            for client in pods.iter().filter(is_reachable) {
                check_reach(client, server, address);
                pairs += 1;
            }
        }
    }
    assert_eq!(pairs, 12, "three pods of each family reach the two others");
    node.finish();
}

#[test]
fn pods_reach_the_host_and_the_host_reaches_pods() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    for address in [NODE4, NODE6] {
        check_reach(&pod, node.space(), address);
        check_reach(&pod, node.space(), pod.gateway_like(address));
        check_reach(node.space(), &pod, pod.address_like(address));
    }
    node.finish();
}

#[test]
fn probes_from_the_host_work() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    for address in pod.addresses() {
        let listener = pod.in_netns(|| TcpListener::bind((address, 8080))).unwrap();
        let to = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (probe, prober) = listener.accept().unwrap();
            drop(probe);
            let (mut request, _) = listener.accept().unwrap();
            let mut buffer = [0; 256];
            let length = request.read(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            request
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                .unwrap();
            prober.ip()
        });
        drop(connect(node.space(), to)); // a TCP probe
        let mut http = connect(node.space(), to);
        http.write_all(b"GET /healthz HTTP/1.1\r\nHost: pod\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        http.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
        assert_eq!(server.join().unwrap(), pod.gateway_like(address));
    }
    node.finish();
}

#[test]
fn pods_reach_beyond_the_node_by_its_address() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    for (beyond, node_address) in [(BEYOND4, NODE4), (BEYOND6, NODE6)] {
        ping(&pod, beyond);
        let tcp = Echo::tcp(node.outside(), beyond);
        check_tcp(&pod, tcp.address);
        assert_eq!(tcp.peers(), [node_address]);
        let udp = Echo::udp(node.outside(), beyond);
        check_udp(&pod, udp.address, &SIZES);
        assert_eq!(udp.peers(), [node_address]);
    }
    node.finish();
}

#[test]
fn without_masquerade_the_pod_keeps_its_address() {
    let node = Node::start(&Options::default());
    let pod = node.add_to(&node.pods().with("ipMasq", false), "pod");
    node.outside()
        .exec(&format!("ip route add 10.77.0.0/24 via {NODE4}"));
    node.outside()
        .exec(&format!("ip route add fd77::/64 via {NODE6}"));
    assert!(!node.space().exec("nft list tables").contains("sluice"));
    for beyond in [BEYOND4, BEYOND6] {
        let server = Echo::tcp(node.outside(), beyond);
        check_tcp(&pod, server.address);
        assert_eq!(server.peers(), [pod.address_like(beyond)]);
    }
    node.finish();
}

#[test]
fn a_host_outside_with_a_route_reaches_pods() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    let without_route = node
        .outside()
        .output(&format!("ping -n -c 1 -W 1 {}", pod.v4()));
    assert!(!without_route.status.success(), "{without_route:?}");
    node.outside()
        .exec(&format!("ip route add 10.77.0.0/24 via {NODE4}"));
    node.outside()
        .exec(&format!("ip route add fd77::/64 via {NODE6}"));
    for address in pod.addresses() {
        check_reach(node.outside(), &pod, address);
    }
    let server = Echo::tcp(&pod, pod.v4());
    check_tcp(node.outside(), server.address);
    assert_eq!(server.peers(), [OUT4], "the pod sees who asked");
    node.finish();
}

/// A container starts as soon as ADD has answered, and a busy machine takes
/// longer for what the kernel does later.
#[test]
fn the_first_packet_after_add_is_not_lost() {
    let node = Node::start(&Options::default());
    let server = node.add("server");
    let (echo4, echo6) = (
        Echo::udp(&server, server.v4()),
        Echo::udp(&server, server.v6()),
    );
    let busy = [
        Flow::udp(node.space(), echo4.address),
        Flow::udp(node.space(), echo6.address),
    ];
    for round in 0..20 {
        let pod = node.add("pod");
        let echo = [&echo4, &echo6][round % 2];
        check_udp(&pod, echo.address, &[100]);
        pod.del();
    }
    for flow in busy {
        flow.stop();
    }
    node.finish();
}
