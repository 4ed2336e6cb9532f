//! Ports of the node that lead to pods, past the kernel: by the uplink's XDP
//! program, and between pods.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::harness::flows::{Echo, Flow, check_tcp, check_udp};
use crate::harness::{NODE4, NODE6, Node, Options, Pod, Space};

const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;

/// What begins and ends a connection, and goes by the kernel, with room for
/// what is sent again.
const FEW: u64 = 40;

fn at(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, HOST_PORT)
}

/// A pod behind the mapped port, and its servers.
struct Server {
    pod: Pod,
    _tcp: Echo,
    _udp: Echo,
}

impl Server {
    fn start(node: &Node) -> Self {
        let network = node.pods().mapped(&[
            (HOST_PORT, POD_PORT, "tcp", ""),
            (HOST_PORT, POD_PORT, "udp", ""),
        ]);
        let space = node.site.space("server");
        let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), POD_PORT);
        Self {
            _tcp: Echo::tcp_at(&space, address),
            _udp: Echo::udp_at(&space, address),
            pod: Pod::add(space, "server", &network, &node.runtime()),
        }
    }
}

/// Frames to a port and from it: of the host, and of the uplink.
fn frames(node: &Node, interface: &str) -> u64 {
    let rows = node.rows().into_iter();
    let rows = rows.filter(|row| row.interface == interface);
    rows.map(|row| row.counters.rx_frames + row.counters.tx_frames)
        .sum()
}

/// Asserts that `traffic` goes by `by`, but for a few frames, and not by the
/// kernel.
#[track_caller]
fn passes_the_kernel_by(node: &Node, by: &str, traffic: impl FnOnce()) {
    let before = [frames(node, "sluice-dp"), frames(node, by)];
    traffic();
    let after = [frames(node, "sluice-dp"), frames(node, by)];
    let [by_kernel, past_it] = [after[0] - before[0], after[1] - before[1]];
    assert!(by_kernel < FEW, "{by_kernel} frames went by the kernel");
    assert!(past_it > 4 * FEW, "{past_it} frames went by {by}");
}

fn many_datagrams(client: &Space, to: SocketAddr) {
    check_udp(client, to, &[100; 200]);
}

#[test]
fn from_outside_only_the_first_packets_go_by_the_kernel() {
    let node = Node::start(&Options::default());
    let server = Server::start(&node);
    for address in [NODE4, NODE6] {
        let (client, to) = (node.outside(), at(address));
        passes_the_kernel_by(&node, "up0", || check_tcp(client, to));
        passes_the_kernel_by(&node, "up0", || many_datagrams(client, to));
    }
    server.pod.del();
    node.finish();
}

#[test]
fn from_another_pod_only_the_first_packets_go_by_the_kernel() {
    let node = Node::start(&Options::default());
    let server = Server::start(&node);
    let client = node.add("client");
    let interface = node.row(&client).interface;
    for address in [NODE4, NODE6] {
        let to = at(address);
        check_tcp(&client, to);
        passes_the_kernel_by(&node, &interface, || many_datagrams(&client, to));
    }
    client.del();
    server.pod.del();
    node.finish();
}

#[test]
fn connections_outlive_the_daemon() {
    let mut node = Node::start(&Options::default());
    let server = Server::start(&node);
    let flows = [
        Flow::tcp(node.outside(), at(NODE4)),
        Flow::tcp(node.outside(), at(NODE6)),
    ];
    for _ in 0..10 {
        flows.iter().for_each(Flow::goes_on);
        node.kill();
        node.restart();
    }
    flows.iter().for_each(Flow::goes_on);
    flows.into_iter().for_each(|flow| {
        flow.stop();
    });
    server.pod.del();
    node.finish();
}
