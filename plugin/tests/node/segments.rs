//! Merged TCP segments as stacks leave them to their devices: they cross as such.

use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::harness::flows::{Echo, Pattern, connect, exchange};
use crate::harness::mapped::{POD_PORT, at, both};
use crate::harness::{
    BEYOND4, BEYOND6, Counters, NODE4, NODE6, Node, Options, PATIENCE, Pod, Space,
};

const BYTES: usize = 20_000_000;

const GBIT: u64 = 1_000_000_000;

/// More bytes a frame than segments of 1500 bytes and their acknowledgments have.
const MERGED: u64 = 3000;

fn counters(node: &Node, interface: &str) -> Counters {
    let row = node
        .rows()
        .into_iter()
        .find(|row| row.interface == interface);
    row.unwrap_or_else(|| panic!("no port {interface}"))
        .counters
}

/// Lets the outside reach a pod by its own addresses.
fn route(node: &Node, pod: &Pod) {
    for (address, nodes) in pod.addresses().into_iter().zip([NODE4, NODE6]) {
        let add = format!("ip route add {address} via {nodes}");
        node.outside().exec(&add);
    }
}

/// The mean length of frames that come from a port while `work` is done.
fn mean_frame(node: &Node, interface: &str, work: impl FnOnce()) -> u64 {
    let before = counters(node, interface);
    work();
    let after = counters(node, interface);
    (after.rx_bytes - before.rx_bytes) / (after.rx_frames - before.rx_frames)
}

/// Where the program of an interface runs, as `ip link` says.
fn mode(node: &Node, interface: &str) -> &'static str {
    let shown = node.space().exec(&format!("ip link show {interface}"));
    match shown {
        shown if shown.contains(" xdpgeneric ") => "stack",
        shown if shown.contains(" xdp ") => "driver",
        shown => panic!("{shown}"),
    }
}

#[test]
fn what_a_stack_leaves_merged_crosses_merged() {
    let node = Node::start(&Options::default());
    let small = node.add_to(&node.pods().with("localMtu", 1500), "small");
    let pod = node.add("pod");
    route(&node, &pod);
    let work = |client: &Space, server: &Space, address: IpAddr| {
        let echo = Echo::tcp(server, address);
        exchange(&connect(client, echo.address), BYTES, 1);
    };
    for (address, beyond) in pod.addresses().into_iter().zip([BEYOND4, BEYOND6]) {
        let from_pod = mean_frame(&node, small.host_ifname(), || work(&small, &pod, address));
        assert_eq!(from_pod > MERGED, node.has_tso(), "{address}: {from_pod}");
        let outside = node.outside();
        let from_host = mean_frame(&node, "sluice-dp", || work(outside, &pod, address));
        assert_eq!(from_host > MERGED, node.has_tso(), "{address}: {from_host}");
        let to_host = mean_frame(&node, pod.host_ifname(), || work(&pod, outside, beyond));
        assert_eq!(to_host > MERGED, node.has_tso(), "{beyond}: {to_host}");
    }
    for pod in [&small, &pod] {
        assert_eq!(node.row(pod).counters.cut_frames, 0);
    }
    node.finish();
}

#[test]
fn who_takes_none_gets_them_cut() {
    let node = Node::start(&Options::default());
    let small = node.add_to(&node.pods().with("localMtu", 1500), "small");
    let plain = node.pods().with("localMtu", 1500).with("gro", false);
    let plain = node.add_to(&plain, "plain");
    let limited = node.pods().with("localMtu", 1500);
    let limited = limited.with("ingressRate", GBIT).with("egressRate", GBIT);
    let limited = node.add_to(&limited, "limited");
    for pod in [&plain, &limited] {
        route(&node, pod);
        for address in pod.addresses() {
            let echo = Echo::tcp(pod, address);
            for client in [&*small, node.outside()] {
                exchange(&connect(client, echo.address), BYTES, 2);
            }
        }
        let cut = node.row(pod).counters.cut_frames;
        assert_eq!(cut > 0, node.has_tso(), "{cut}");
    }
    node.finish();
}

/// A pod's root may have its stack merge more than ours: 50 segments of 1304 bytes
/// are a chunk more than the kernel takes.
#[test]
fn what_a_stack_merges_beyond_measure_is_cut() {
    let node = Node::start(&Options::default());
    let [sender, pod] = ["sender", "pod"].map(|name| node.add(name));
    sender.exec("ip link set eth0 gso_max_size 65536");
    // Behind the daemon's back only where its segments are sent by size: what the
    // rings carry merged may be as long as the MTU that it knows, and an interface
    // with a smaller one drops that.
    if node.has_tso() {
        sender.exec("ip link set eth0 mtu 1376");
    }
    let echo = Echo::tcp(&pod, pod.v6());
    exchange(&connect(&sender, echo.address), BYTES, 3);
    let cut = node.row(&pod).counters.cut_frames;
    assert_eq!(cut > 0, node.has_tso(), "{cut}");
    node.finish();
}

/// Datagrams that are sent merged (UDP_SEGMENT) are nobody's to merge on the way.
#[test]
fn datagrams_that_are_sent_merged_arrive_one_by_one() {
    const LEN: u16 = 1000;
    let node = Node::start(&Options::default());
    let server = node.add_to(&both(&node.pods()), "server");
    let client = node.add("client");
    route(&node, &server);
    let mut cases: Vec<(&Space, &Space, SocketAddr, SocketAddr)> = Vec::new();
    for address in server.addresses() {
        let there = SocketAddr::new(address, POD_PORT);
        for from in [&*client, node.space(), node.outside()] {
            cases.push((from, &server, there, there));
        }
    }
    for (nodes, behind) in [NODE4, NODE6].into_iter().zip(server.addresses()) {
        let behind = SocketAddr::new(behind, POD_PORT);
        cases.push((node.outside(), &server, at(nodes), behind));
    }
    for beyond in [BEYOND4, BEYOND6] {
        let there = SocketAddr::new(beyond, POD_PORT);
        cases.push((&client, node.outside(), there, there));
    }
    for (from, into, to, there) in cases {
        let receiver = into.in_netns(|| UdpSocket::bind(there)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sender = from.in_netns(|| UdpSocket::bind(any)).unwrap();
        from.in_netns(|| sender.connect(to)).unwrap();
        // The first of a conversation may take another way.
        for seed in 1..=3 {
            let bytes = Pattern(seed).bytes(usize::from(LEN) * 10 + 7);
            let (data, len) = (
                [IoSlice::new(&bytes)],
                [ControlMessage::UdpGsoSegments(&LEN)],
            );
            let sent = sendmsg::<()>(sender.as_raw_fd(), &data, &len, MsgFlags::empty(), None);
            assert_eq!(sent, Ok(bytes.len()));
            let mut received: Vec<u8> = Vec::new();
            for part in bytes.chunks(LEN.into()) {
                let mut buffer = vec![0; 1 << 16];
                let length = receiver
                    .recv(&mut buffer)
                    .unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
                assert_eq!(length, part.len(), "{} to {to}", from.name());
                received.extend(&buffer[..length]);
            }
            assert!(received == bytes, "{} to {to}", from.name());
        }
    }
    node.finish();
}

#[test]
fn the_daemon_may_come_back_without() {
    let mut node = Node::start(&Options::default());
    let pod = node.add("pod");
    route(&node, &pod);
    let expected = if node.has_tso() { "stack" } else { "driver" };
    let work = |node: &Node, pod: &Pod| {
        for address in pod.addresses() {
            let echo = Echo::tcp(pod, address);
            exchange(&connect(node.outside(), echo.address), BYTES, 3);
        }
    };
    for interface in [pod.host_ifname(), "sluice-dp", "up0"] {
        assert_eq!(mode(&node, interface), expected, "{interface}");
    }
    work(&node, &pod);
    node.kill();
    node.restart();
    assert_eq!(
        mode(&node, pod.host_ifname()),
        expected,
        "taken over as it was"
    );
    work(&node, &pod);
    node.kill();
    node.restart_without(&["tso"]);
    for interface in [pod.host_ifname(), "sluice-dp", "up0"] {
        assert_eq!(mode(&node, interface), "driver", "{interface}");
    }
    work(&node, &pod);
    node.stop();
    node.restart();
    // Its own kernel cuts what it sends until it is made anew.
    assert_eq!(mode(&node, pod.host_ifname()), "driver");
    assert_eq!(mode(&node, "sluice-dp"), expected);
    work(&node, &pod);
    node.finish();
}
