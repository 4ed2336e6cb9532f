//! Ports of the node that lead to pods, by the kernel's hooks.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::flows::{Echo, Flow, check_tcp, check_udp, udp_client};
use crate::harness::frames::Ends;
use crate::harness::mapped::{HOST_PORT, Mapped, POD_PORT, at, both};
use crate::harness::wire::Injector;
use crate::harness::{
    BEYOND4, NODE4, NODE6, Network, Node, OUT4, OUT6, Options, PATIENCE, Pod, Snapshot, Space,
    wait_until,
};

const SIZES: [usize; 4] = [0, 100, 1472, 5000];

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

const LOOPBACK4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Whether somebody answers a connection from `space`.
fn answers_tcp(space: &Space, to: SocketAddr) -> bool {
    let patience = Duration::from_millis(500);
    space.in_netns(|| TcpStream::connect_timeout(&to, patience).is_ok())
}

/// Which of these servers gets a datagram from `space`.
#[track_caller]
fn check_serves_udp(space: &Space, to: SocketAddr, server: &Mapped) {
    server.peers();
    check_udp(space, to, &[100]);
    assert_eq!(
        server.peers().len(),
        1,
        "{to} is served by {}",
        server.pod.id()
    );
}

#[track_caller]
fn check_serves_tcp(space: &Space, to: SocketAddr, server: &Mapped) {
    server.peers();
    check_tcp(space, to);
    assert_eq!(
        server.peers().len(),
        1,
        "{to} is served by {}",
        server.pod.id()
    );
}

#[test]
fn from_outside_by_every_address_of_the_node() {
    let node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    // One that comes later counts from then on.
    let later: IpAddr = [198, 51, 100, 77].into();
    node.space()
        .exec(&format!("ip address add {later}/24 dev up0"));
    for (address, client) in [(NODE4, OUT4), (later, OUT4), (NODE6, OUT6)] {
        check_tcp(node.outside(), at(address));
        check_udp(node.outside(), at(address), &SIZES);
        assert_eq!(server.peers(), [client], "the pod sees who asked");
    }
    let shown = node.sluiced(&format!(
        "show hostports --run-dir {}",
        node.run_dir().display()
    ));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(
        shown.lines().count(),
        5,
        "two protocols, two families: {shown}"
    );
    assert!(shown.contains(&format!("0.0.0.0:{HOST_PORT}")), "{shown}");
    assert!(
        shown.contains(&SocketAddr::new(server.pod.v6(), POD_PORT).to_string()),
        "{shown}"
    );
    server.del();
    assert!(!answers_tcp(node.outside(), at(NODE4)));
    node.finish();
}

#[test]
fn from_the_host_by_all_its_addresses() {
    let node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    for address in [NODE4, NODE6, LOOPBACK4, LOOPBACK6] {
        check_tcp(node.space(), at(address));
        check_udp(node.space(), at(address), &SIZES);
        let peers = server.peers();
        assert!(peers.len() == 1 && !peers[0].is_loopback(), "{peers:?}");
    }
    assert_eq!(
        node.space().sysctl("net/ipv4/conf/sluice0/route_localnet"),
        "0"
    );
    server.del();
    for address in [NODE4, NODE6, LOOPBACK4, LOOPBACK6] {
        assert!(!answers_tcp(node.space(), at(address)));
    }
    node.finish();
}

/// By an address that comes and goes.
#[test]
fn from_the_host_as_its_addresses_come_and_go() {
    let node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    let later: IpAddr = [198, 51, 100, 77].into();
    let address = |verb: &str| {
        node.space()
            .exec(&format!("ip address {verb} {later}/24 dev up0"));
    };
    address("add");
    wait_until("the address counts", || {
        answers_tcp(node.space(), at(later)).then_some(())
    });
    address("del");
    assert!(!answers_tcp(node.space(), at(later)));
    server.del();
    node.finish();
}

#[test]
fn from_another_pod_by_the_nodes_addresses() {
    let node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    let far = node.network("far", &["10.78.0.0/24", "fd78::/64"]);
    let clients = [node.add("near"), node.add_to(&far, "far")];
    for client in &clients {
        for address in [NODE4, NODE6] {
            for of_node in [address, client.gateway_like(address)] {
                check_tcp(client, at(of_node));
                check_udp(client, at(of_node), &SIZES);
            }
            let client = client.address_like(address);
            assert_eq!(server.peers(), [client], "the pod sees who asked");
        }
    }
    server.del();
    clients.into_iter().for_each(Pod::del);
    node.finish();
}

#[test]
fn a_pod_reaches_itself() {
    let node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    for address in [NODE4, NODE6] {
        check_tcp(&server.pod, at(address));
        check_udp(&server.pod, at(address), &SIZES);
        let peers = server.peers();
        assert_eq!(peers.len(), 1);
        assert_ne!(peers[0], server.pod.address_like(address));
    }
    server.del();
    // As with portmap: without source translation it would get its own answers.
    let server = Mapped::join(&node, &both(&node.pods()).with("snat", false), "server");
    assert!(!answers_tcp(&server.pod, at(NODE4)));
    check_tcp(node.outside(), at(NODE4));
    assert_eq!(server.peers(), [OUT4]);
    server.del();
    node.finish();
}

#[test]
fn masq_all_shows_the_host_as_the_client() {
    let node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()).with("masqAll", true), "server");
    let plain = node.pods().mapped(&[(HOST_PORT + 1, POD_PORT, "tcp", "")]);
    let plain = Mapped::join(&node, &plain, "plain");
    for (address, client) in [(NODE4, OUT4), (NODE6, OUT6)] {
        check_tcp(node.outside(), at(address));
        check_udp(node.outside(), at(address), &[100]);
        let peers = server.peers();
        assert_eq!(peers.len(), 1);
        assert_ne!(peers, [client]);
        check_tcp(node.outside(), SocketAddr::new(address, HOST_PORT + 1));
        assert_eq!(plain.peers(), [client], "another pod's is left alone");
    }
    server.del();
    plain.del();
    node.finish();
}

/// Kubernetes' conformance case.
#[test]
fn one_port_for_three_pods_on_other_addresses_and_protocols() {
    let node = Node::start(&Options::default());
    let server = |name: &str, protocol: &str, address: IpAddr| {
        let mapping = [(HOST_PORT, POD_PORT, protocol, &*address.to_string())];
        Mapped::join(&node, &node.pods().mapped(&mapping), name)
    };
    let a = server("a", "tcp", LOOPBACK4);
    let b = server("b", "tcp", NODE4);
    let c = server("c", "udp", NODE4);
    for client in [node.outside(), node.space()] {
        check_serves_tcp(client, at(NODE4), &b);
        check_serves_udp(client, at(NODE4), &c);
        assert!(!answers_tcp(client, at(NODE6)));
    }
    check_serves_tcp(node.space(), at(LOOPBACK4), &a);
    for server in [a, b, c] {
        server.del();
    }
    node.finish();
}

#[test]
fn a_host_port_that_is_taken_is_refused() {
    let node = Node::start(&Options::default());
    let holder = Mapped::join(&node, &both(&node.pods()), "holder");
    let listener = Echo::tcp_at(node.space(), SocketAddr::new(ANY4, HOST_PORT + 1));
    let before = Snapshot::take(&node);
    let space = node.site.space("rival");
    let node4 = NODE4.to_string();
    for (mapping, code, needle) in [
        ((HOST_PORT, 1, "tcp", ""), 103, "container holder"),
        ((HOST_PORT, 1, "udp", &*node4), 103, "container holder"),
        ((HOST_PORT + 1, 1, "tcp", ""), 103, "listens there"),
        ((HOST_PORT + 1, 1, "tcp", "127.0.0.1"), 103, "listens there"),
        ((0, 1, "tcp", ""), 7, "hostPort is 0"),
        ((HOST_PORT + 2, 0, "tcp", ""), 7, "containerPort is 0"),
        ((HOST_PORT + 2, 1, "icmp", ""), 7, "tcp, udp or sctp"),
        ((HOST_PORT + 2, 1, "tcp", "224.0.0.1"), 7, "224.0.0.1"),
    ] {
        let network = node.pods().mapped(&[mapping]);
        node.try_add(&network, &space, "rival")
            .fails(code, &[needle]);
        before.assert_unchanged(&node);
    }
    drop(listener);
    holder.del();
    let next = Mapped::join(&node, &both(&node.pods()), "next");
    check_serves_tcp(node.outside(), at(NODE4), &next);
    next.del();
    node.finish();
}

/// The table's elements of these mappings.
fn elements(node: &Node) -> Vec<Value> {
    let listed = node
        .space()
        .output("nft -j list map inet sluice hostports4");
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
    let maps = listed["nftables"].as_array().cloned().unwrap_or_default();
    let elements = maps
        .iter()
        .filter_map(|object| object["map"]["elem"].as_array());
    elements.flatten().cloned().collect()
}

#[test]
fn hooks_outlive_the_daemon() {
    let mut node = Node::start(&Options::default());
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    let leaving = [(HOST_PORT + 1, POD_PORT, "tcp", "")];
    let leaving = Mapped::join(&node, &node.pods().mapped(&leaving), "leaving");
    let before = elements(&node);
    assert_eq!(before.len(), 3);
    let flow = Flow::tcp(node.outside(), at(NODE4));
    flow.goes_on();
    for _ in 0..3 {
        node.kill();
        assert_eq!(elements(&node), before);
        node.restart();
        flow.goes_on();
    }
    // What goes while no daemon runs is gone with the next one.
    node.kill();
    leaving.del();
    node.restart();
    assert_eq!(elements(&node).len(), 2);
    flow.stop();
    server.del();
    assert_eq!(elements(&node), [Value::Null; 0]);
    node.finish();
}

#[test]
fn rules_are_put_back_when_somebody_flushes_them() {
    let node = Node::start(&Options::default());
    let network = both(&node.pods());
    let server = Mapped::join(&node, &network, "server");
    let before = Snapshot::take(&node);
    for damage in ["flush ruleset", "flush chain inet sluice prerouting"] {
        node.space().exec(&format!("nft {damage}"));
        wait_until("the rules are back", || {
            answers_tcp(node.outside(), at(NODE4)).then_some(())
        });
        before.assert_unchanged(&node);
    }
    let made = network.with("prevResult", server.pod.result().clone());
    let check = |network: &Network| {
        let id = server.pod.id();
        node.runtime().run("CHECK", id, &server.pod.path(), network)
    };
    check(&made).ok();
    let other = made.mapped(&[(HOST_PORT, POD_PORT, "tcp", "")]);
    check(&other).fails(104, &["other hostPorts"]);
    server.del();
    node.finish();
}

/// A host's firewall, as its service loads it; the kernel tracks connections for it.
const FIREWALL: &str = "
flush ruleset
table inet firewall {
    chain input {
        type filter hook input priority filter
        ct state established accept
    }
}";

/// Of a client that keeps its port and sends on, the kernel would see no first
/// packet again.
#[test]
fn a_udp_client_that_came_while_the_rules_were_gone_is_served_when_they_are_back() {
    // By the kernel alone: past it frames would wait for the daemon.
    let mut node = Node::start(&Options {
        uplink: "none",
        ..Options::default()
    });
    let server = Mapped::join(&node, &both(&node.pods()), "server");
    let firewall = node.dir().join("firewall");
    fs::write(&firewall, FIREWALL).unwrap();
    let reload = format!("nft -f {}", firewall.display());
    let come_and_see = |node: &Node| {
        node.space().exec(&reload);
        let client = node.outside().in_netns(|| UdpSocket::bind((ANY4, 0)));
        let client = client.unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let is_answered = move || {
            client.send_to(b"hello", at(NODE4)).unwrap();
            client.recv(&mut [0; 64]).is_ok().then_some(())
        };
        assert_eq!(is_answered(), None, "who answers without rules?");
        is_answered
    };
    node.signal(Signal::SIGSTOP);
    let is_answered = come_and_see(&node);
    node.signal(Signal::SIGCONT);
    wait_until("the rules are put back", is_answered);

    node.kill();
    let is_answered = come_and_see(&node);
    node.restart();
    wait_until("the next daemon puts the rules back", is_answered);
    server.del();
    node.finish();
}

/// What the daemon is asked, and writes down, grows with them.
#[test]
fn a_pod_may_have_thousands_of_host_ports() {
    const MAPPINGS: u16 = 4000;
    let mut node = Node::start(&Options::default());
    let first = HOST_PORT + 1;
    let mappings: Vec<_> = (0..MAPPINGS)
        .map(|number| (first + number, POD_PORT, "tcp", ""))
        .collect();
    let server = Mapped::join(&node, &node.pods().mapped(&mappings), "server");
    for _ in 0..2 {
        for port in [first, first + MAPPINGS - 1] {
            check_serves_tcp(node.outside(), SocketAddr::new(NODE4, port), &server);
        }
        node.kill();
        node.restart();
        assert_eq!(node.ports().len(), 2, "the pod and the host port");
    }
    server.del();
    node.finish();
}

/// CVE-2020-8558: loopback addresses, from outside. CVE-2025-67499: addresses
/// that are not the node's.
#[test]
fn only_the_nodes_own_addresses_are_taken() {
    const DISCARD: u16 = 9;
    let node = Node::start(&Options::default());
    let foreign: IpAddr = [198, 51, 100, 99].into();
    let foreign_text = foreign.to_string();
    let network = node.pods().mapped(&[
        (DISCARD, DISCARD, "udp", "0.0.0.0"),
        (DISCARD, DISCARD, "tcp", &foreign_text),
    ]);
    let space = node.site.space("server");
    let socket = space.in_netns(|| UdpSocket::bind((ANY4, DISCARD))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let listener = Echo::tcp_at(&space, SocketAddr::new(ANY4, DISCARD));
    let pod = Pod::add(space, "server", &network, &node.runtime());

    let injector = Injector::new(node.outside(), "out0");
    let send = |dst: IpAddr, payload: &[u8]| {
        let ends = Ends {
            src_mac: node.outside().mac("out0"),
            dst_mac: node.space().mac("up0"),
            src: OUT4,
            dst,
        };
        injector.send(&ends.udp(payload));
    };
    for dst in ["127.0.0.1", "127.1.2.3", "198.51.100.99", "198.51.100.255"] {
        send(dst.parse().unwrap(), b"stray");
    }
    send(BEYOND4, b"stray");
    send(NODE4, b"meant");
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"meant", "the only one that arrives");

    // The address is no one's yet, and then the node's.
    let to = SocketAddr::new(foreign, DISCARD);
    assert!(!answers_tcp(node.outside(), to));
    node.space()
        .exec(&format!("ip address add {foreign}/24 dev up0"));
    check_tcp(node.outside(), to);
    drop(listener);
    pod.del();
    node.finish();
}

/// What the node's kernel tracks to an address, with its number.
fn tracked(node: &Node, address: IpAddr) -> Vec<String> {
    let listed = node
        .space()
        .exec(&format!("conntrack -L -o id --orig-dst {address}"));
    let number = |line: &str| {
        line.split_whitespace()
            .find(|w| w.starts_with("id="))
            .map(str::to_owned)
    };
    let mut numbers: Vec<_> = listed.lines().filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn only_connections_of_the_mapping_are_forgotten() {
    let node = Node::start(&Options::default());
    let client = node.add("client");
    // The same port, beyond the node.
    let beyond = Echo::udp_at(node.outside(), at(BEYOND4));
    let flow = Flow::udp(&client, beyond.address);
    flow.goes_on();
    let before = tracked(&node, BEYOND4);
    assert_eq!(before.len(), 1);

    // Nobody answers yet.
    let stale = node
        .outside()
        .in_netns(|| UdpSocket::bind((ANY4, 0)))
        .unwrap();
    stale.send_to(b"stale", at(NODE4)).unwrap();
    wait_until("the kernel tracks it", || {
        (tracked(&node, NODE4).len() == 1).then_some(())
    });
    // Of several ports of a protocol, all connections are looked at.
    let network = node.pods().mapped(&[
        (HOST_PORT, POD_PORT, "tcp", ""),
        (HOST_PORT, POD_PORT, "udp", ""),
        (HOST_PORT + 1, POD_PORT, "udp", ""),
    ]);
    let server = Mapped::join(&node, &network, "server");
    assert_eq!(tracked(&node, NODE4).len(), 0);
    let open = Flow::tcp(node.outside(), at(NODE4));
    check_udp(node.outside(), at(NODE4), &[100]);
    open.goes_on();
    open.stop();
    assert_eq!(tracked(&node, NODE4).len(), 2);
    server.del();
    assert_eq!(tracked(&node, NODE4).len(), 0);

    flow.goes_on();
    assert_eq!(tracked(&node, BEYOND4), before);
    flow.stop();
    client.del();
    node.finish();
}

#[test]
fn a_connected_udp_socket_of_the_host_is_told_that_its_pod_is_gone() {
    let node = Node::start(&Options::default());
    let network = both(&node.pods());
    let server = Mapped::join(&node, &network, "first");
    let addresses: [IpAddr; 4] = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv6Addr::LOCALHOST.into(),
        NODE4,
        NODE6,
    ];
    let clients = addresses.map(|address| udp_client(node.space(), at(address)));
    let is_answered = |client: &UdpSocket| {
        client.send(b"who am I?")?;
        client.recv(&mut [0; 64])
    };
    for client in &clients {
        is_answered(client).unwrap();
    }
    server.del();
    for client in &clients {
        let error = client.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
    }
    let server = Mapped::join(&node, &network, "second");
    for (client, address) in clients.iter().zip(addresses) {
        client.connect(at(address)).unwrap();
        is_answered(client).unwrap();
    }
    server.del();
    node.finish();
}
