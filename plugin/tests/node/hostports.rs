//! hostPorts by the reference plugin `portmap` chained behind ours.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::harness::flows::{Echo, check_tcp, check_udp};
use crate::harness::{NODE4, NODE6, Node, OUT4, OUT6, Options, Pod, Space};

/// The port in the pod, and the node's port that is mapped to it.
const POD_PORT: u16 = 80;
const HOST_PORT: u16 = 8080;

/// A pod with the mapping, for TCP and for UDP.
fn add_mapped(node: &Node) -> Pod {
    add_mapped_by(node, json!({}))
}

/// The same with more keys of `portmap`'s.
fn add_mapped_by(node: &Node, keys: Value) -> Pod {
    let mut portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    for (key, value) in keys.as_object().unwrap() {
        portmap[key] = value.clone();
    }
    let mappings = ["tcp", "udp"].map(
        |protocol| json!({"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": protocol}),
    );
    node.add_by(
        &node.chain(&[portmap]),
        "server",
        &[("portMappings", mappings.into_iter().collect())],
    )
}

/// Bytes there and back, to the mapped port of a node's address.
#[track_caller]
fn check_host_port(client: &Space, address: IpAddr) {
    let to = SocketAddr::from((address, HOST_PORT));
    check_tcp(client, to);
    check_udp(client, to, &[1, 1400]);
}

#[test]
fn portmap_serves_the_world_the_host_and_pods() {
    let node = Node::start(&Options::default());
    let client = node.add("client");
    let server = add_mapped(&node);
    for address in [NODE4, NODE6] {
        let listening = SocketAddr::from((server.address_like(address), POD_PORT));
        let _tcp = Echo::tcp_at(&server, listening);
        let _udp = Echo::udp_at(&server, listening);
        check_host_port(node.outside(), address);
        for local in [address, client.gateway_like(address)] {
            check_host_port(node.space(), local);
            check_host_port(&client, local);
            check_host_port(&server, local);
        }
        if address.is_ipv4() {
            check_host_port(node.space(), Ipv4Addr::LOCALHOST.into());
        }
    }
    server.del();
    client.del();
    node.finish();
}

/// Their requests are not masqueraded: without a session the answer would go
/// from pod to pod, past the host that has translated the request.
#[test]
fn who_is_not_masqueraded_gets_answers_too() {
    for keys in [json!({}), json!({"snat": false})] {
        let node = Node::start(&Options::default());
        let other_subnet = node.network("other", &["10.88.0.0/24", "fd88::/64"]);
        let clients = [node.add_to(&other_subnet, "afar"), node.add("near")];
        let server = add_mapped_by(&node, keys.clone());
        for address in [NODE4, NODE6] {
            let listening = SocketAddr::from((server.address_like(address), POD_PORT));
            let echo = Echo::tcp_at(&server, listening);
            let _udp = Echo::udp_at(&server, listening);
            let [afar, near] = clients.each_ref();
            check_host_port(afar, address);
            assert_eq!(echo.peers(), [afar.address_like(address)]);
            check_host_port(near, address);
        }
        server.del();
        node.finish();
    }
}

#[test]
fn the_pod_sees_who_asks_from_outside() {
    let node = Node::start(&Options::default());
    let server = add_mapped(&node);
    for (address, outside) in [(NODE4, OUT4), (NODE6, OUT6)] {
        let listening = SocketAddr::from((server.address_like(address), POD_PORT));
        let echo = Echo::tcp_at(&server, listening);
        check_tcp(node.outside(), (address, HOST_PORT).into());
        assert_eq!(echo.peers(), [outside]);
    }
    server.del();
    node.finish();
}
