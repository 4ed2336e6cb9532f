//! SCTP through a hostPort. This kernel need have no SCTP sockets: both ends
//! are frames made by hand.

use std::net::IpAddr;

use crate::harness::frames::{Ends, sctp};
use crate::harness::mapped::{HOST_PORT, POD_PORT};
use crate::harness::wire::{Injector, Sniffer};
use crate::harness::{NODE4, NODE6, Node, OUT4, OUT6, Options, Pod, wait_until};

const CLIENT_PORT: u16 = 4000;
/// Chunks (RFC 9260 section 3.3).
const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// Verification tags: each side's packets have the other's.
const CLIENTS_TAG: u32 = 0x1111_1111;
const PODS_TAG: u32 = 0x2222_2222;

/// Which side sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Client,
    Pod,
}

/// A chunk, and what it holds.
struct Step {
    from: From,
    tag: u32,
    chunk: u8,
    value: Vec<u8>,
}

/// An association, and data both ways, with an odd length.
fn steps() -> Vec<Step> {
    let init = |tag: u32| {
        let tsn = 1_u32.to_be_bytes();
        [&tag.to_be_bytes()[..], &[0, 1, 0, 0], &[0, 1, 0, 1], &tsn].concat()
    };
    let data = |byte: u8| {
        let head = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        [&head[..], &[byte; 801]].concat()
    };
    let mut steps = vec![
        (From::Client, 0, INIT, init(CLIENTS_TAG)),
        (
            From::Pod,
            CLIENTS_TAG,
            INIT_ACK,
            [init(PODS_TAG), vec![0, 7, 0, 8, 1, 2, 3, 4]].concat(),
        ),
        (From::Client, PODS_TAG, COOKIE_ECHO, vec![1, 2, 3, 4]),
        (From::Pod, CLIENTS_TAG, COOKIE_ACK, vec![]),
    ];
    for byte in 0..50 {
        steps.push((From::Client, PODS_TAG, DATA, data(byte)));
        steps.push((From::Pod, CLIENTS_TAG, DATA, data(byte + 100)));
    }
    let step = |(from, tag, chunk, value)| Step {
        from,
        tag,
        chunk,
        value,
    };
    steps.into_iter().map(step).collect()
}

#[test]
fn an_association_goes_through_a_host_port_with_right_checksums() {
    for uplink in ["auto", "none"] {
        let node = Node::start(&Options {
            uplink,
            ..Options::default()
        });
        let network = node.pods().mapped(&[(HOST_PORT, POD_PORT, "sctp", "")]);
        let pod = node.add_to(&network, "pod");
        for (client, address) in [(OUT4, NODE4), (OUT6, NODE6)] {
            associate(&node, &pod, client, address);
        }
        pod.del();
        node.finish();
    }
}

fn associate(node: &Node, pod: &Pod, client: IpAddr, address: IpAddr) {
    // The node knows where the answers go.
    node.space().exec(&format!("ping -n -c 1 -W 10 {client}"));
    let (gateway, pod_mac) = pod.macs();
    let outside = node.outside();
    let sides = [
        (
            Injector::new(outside, "out0"),
            Sniffer::new(outside),
            Ends {
                src_mac: outside.mac("out0"),
                dst_mac: node.space().mac("up0"),
                src: client,
                dst: address,
            },
            [CLIENT_PORT, HOST_PORT],
        ),
        (
            Injector::new(pod, "eth0"),
            Sniffer::new(pod),
            Ends {
                src_mac: pod_mac,
                dst_mac: gateway,
                src: pod.address_like(address),
                dst: client,
            },
            [POD_PORT, CLIENT_PORT],
        ),
    ];
    for step in steps() {
        let [
            (client, at_client, from_client, client_ports),
            (server, at_pod, from_pod, pod_ports),
        ] = &sides;
        let packet = |ports| sctp(ports, step.tag, step.chunk, &step.value);
        let (injector, ends, ports, sniffer, arriving, expected_ports) = match step.from {
            From::Client => (client, from_client, *client_ports, at_pod, from_pod, {
                let [pod, client] = *pod_ports;
                [client, pod]
            }),
            From::Pod => (server, from_pod, *pod_ports, at_client, from_client, {
                let [client, node] = *client_ports;
                [node, client]
            }),
        };
        injector.send(&ends.sctp(&packet(ports)));
        // The same but for ports and checksum, to the other side's MAC address.
        let expected = packet(expected_ports);
        wait_until("the packet arrives", || {
            let frame = sniffer.next();
            (frame[..6] == arriving.src_mac && frame.ends_with(&expected)).then_some(())
        });
    }
}
