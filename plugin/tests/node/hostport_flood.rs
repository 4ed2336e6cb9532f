//! A flood of new flows to one pod's hostPort, beside another pod's connections.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::harness::flows::{Echo, Flow};
use crate::harness::frames::Ends;
use crate::harness::wire::Injector;
use crate::harness::{NODE4, Node, Options, Pod};

/// New flows to the flooded pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    /// UDP that nobody answers.
    Silent,
    /// UDP that the pod answers.
    Answered,
    /// TCP's first segments, which the pod answers, and nobody that.
    Syn,
}

impl Flood {
    /// How many: more than each table has room for, ours and the kernel's.
    fn flows(self) -> u32 {
        match self {
            Self::Silent => 1_000_000,
            Self::Answered | Self::Syn => 300_000,
        }
    }

    fn frame(self, ends: &Ends, port: u16) -> Vec<u8> {
        let ports = [port, FLOODED_PORT];
        match self {
            Self::Silent | Self::Answered => ends.udp_between(ports, &[]),
            Self::Syn => ends.syn_between(ports),
        }
    }
}

/// Flows of one of the flood's source addresses.
const FLOWS_OF_AN_ADDRESS: u32 = 62_500;
const BURST: u32 = 128;
const FLOODED_PORT: u16 = 8080;
const HOST_PORT: u16 = 8081;
const POD_PORT: u16 = 80;

#[test]
fn a_million_flows_to_a_pods_port_do_no_harm_to_anothers() {
    flood(Flood::Silent);
}

#[test]
fn a_flood_of_answered_flows_does_no_harm_to_anothers() {
    flood(Flood::Answered);
}

#[test]
fn a_flood_of_syns_does_no_harm_to_anothers() {
    flood(Flood::Syn);
}

fn flood(kind: Flood) {
    for uplink in ["auto", "none"] {
        flood_by(uplink, kind);
    }
}

fn flood_by(uplink: &'static str, kind: Flood) {
    let node = Node::start(&Options {
        uplink,
        ..Options::default()
    });
    let add = |name: &str, mapping| node.add_to(&node.pods().mapped(&[mapping]), name);
    let protocol = match kind {
        Flood::Silent | Flood::Answered => "udp",
        Flood::Syn => "tcp",
    };
    let flooded = add("flooded", (FLOODED_PORT, POD_PORT, protocol, ""));
    let at_pod = SocketAddr::new(flooded.v4(), POD_PORT);
    let silent = || flooded.in_netns(|| UdpSocket::bind(at_pod)).unwrap();
    let _server = match kind {
        Flood::Silent => (Some(silent()), None),
        Flood::Answered => (None, Some(Echo::udp_at(&flooded, at_pod))),
        Flood::Syn => (None, Some(Echo::tcp_at(&flooded, at_pod))),
    };
    let served = add("served", (HOST_PORT, POD_PORT, "tcp", ""));
    let client = node.add("client");
    let echo = Echo::tcp_at(&served, SocketAddr::new(served.v4(), POD_PORT));
    let flows = [
        Flow::tcp(node.outside(), SocketAddr::new(NODE4, HOST_PORT)),
        Flow::tcp(&client, echo.address),
    ];
    flows.iter().for_each(Flow::goes_on);

    let (rounds, tracked) = (flows.each_ref().map(Flow::rounds), tracked(&node));
    send_flood(&node, kind);
    for (flow, before) in flows.iter().zip(rounds) {
        assert!(flow.rounds() > before, "it stood still");
        flow.goes_on();
    }
    assert_eq!(self::tracked(&node), tracked);
    for row in node.rows() {
        let is_flooded = row.container_id.as_deref() == Some(flooded.id());
        for reason in ["session-share", "session-table-full"] {
            let dropped = row.counters.dropped(reason);
            assert!(is_flooded || dropped == 0, "{dropped} of {row:?}");
        }
    }
    let arrived = node.row(&flooded).counters.tx_frames;
    println!(
        "uplink {uplink}, {kind:?}: {arrived} of {} flows arrived",
        kind.flows()
    );

    let new = Flow::tcp(node.outside(), SocketAddr::new(NODE4, HOST_PORT));
    new.goes_on();
    new.stop();
    for flow in flows {
        flow.stop();
    }
    [flooded, served, client].into_iter().for_each(Pod::del);
    node.finish();
}

/// The kernel's number of the connection to the other pod's hostPort.
fn tracked(node: &Node) -> String {
    let list = format!("conntrack -L -o id -p tcp --orig-port-dst {HOST_PORT}");
    let listed = node.space().exec(&list);
    let mut words = listed.split_whitespace();
    let number = words.find(|word| word.starts_with("id="));
    number.expect("a connection").to_owned()
}

/// From outside, each frame of another flow; not faster than sockets and rings
/// take them, so that it is the tables that are flooded.
fn send_flood(node: &Node, kind: Flood) {
    let injector = Injector::new(node.outside(), "out0");
    let (src_mac, dst_mac) = (node.outside().mac("out0"), node.space().mac("up0"));
    for number in 0..kind.flows() {
        let host = u8::try_from(10 + number / FLOWS_OF_AN_ADDRESS).unwrap();
        let port = u16::try_from(1024 + number % FLOWS_OF_AN_ADDRESS).unwrap();
        let ends = Ends {
            src_mac,
            dst_mac,
            src: IpAddr::from([203, 0, 113, host]),
            dst: NODE4,
        };
        let frame = kind.frame(&ends, port);
        while !injector.offer(&frame) {
            thread::sleep(Duration::from_millis(1));
        }
        if number % BURST == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
