//! Ports of the node that lead to pods, past the kernel: by the uplink's XDP
//! program, and between pods.

use std::net::SocketAddr;

use sluice_control::Request;

use crate::harness::flows::{
    Echo, Flow, check_tcp, check_udp, connect_from, exchange, exchange_datagram, udp_client_from,
};
use crate::harness::mapped::{HOST_PORT, Mapped, at};
use crate::harness::{
    BEYOND4, BEYOND6, NODE4, NODE6, Node, OUT4, OUT6, Options, Site, Space, wait_until,
};

/// What begins and ends a connection, and goes by the kernel, with room for
/// what is sent again.
const FEW: u64 = 40;

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
    let mapped = Mapped::start(&node);
    for address in [NODE4, NODE6] {
        let (client, to) = (node.outside(), at(address));
        passes_the_kernel_by(&node, "up0", || check_tcp(client, to));
        passes_the_kernel_by(&node, "up0", || many_datagrams(client, to));
    }
    mapped.del();
    node.finish();
}

#[test]
fn from_another_pod_only_the_first_packets_go_by_the_kernel() {
    let node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
    let client = node.add("client");
    let interface = node.row(&client).interface;
    for address in [NODE4, NODE6] {
        let to = at(address);
        check_tcp(&client, to);
        passes_the_kernel_by(&node, &interface, || many_datagrams(&client, to));
    }
    client.del();
    mapped.del();
    node.finish();
}

#[test]
fn connections_outlive_the_daemon() {
    let mut node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
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
    mapped.del();
    node.finish();
}

/// What the masquerade leaves with its source port: an answer to it comes for
/// what happens to be a mapped port.
#[test]
fn a_masqueraded_pods_own_conversations_from_a_mapped_port_come_back_to_it() {
    let node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
    let client = node.add("client");
    let outside = node.outside();
    for (beyond, own) in [(BEYOND4, NODE4), (BEYOND6, NODE6)] {
        let (tcp, udp) = (Echo::tcp(outside, beyond), Echo::udp(outside, beyond));
        let from = SocketAddr::new(client.address_like(beyond), HOST_PORT);
        let stream = connect_from(&client, from, tcp.address);
        exchange(&stream, 500_000, 1);
        let socket = udp_client_from(&client, from, udp.address);
        (0..100).for_each(|seed| exchange_datagram(&socket, 1000, seed));
        for server in [&tcp, &udp] {
            assert_eq!(server.peers(), [own], "masqueraded");
        }
        let ports = outside.exec(&format!("ss -Htn state established src {}", tcp.address));
        let kept = SocketAddr::new(own, HOST_PORT).to_string();
        assert!(ports.contains(&kept), "{ports}");
        // The mapped port serves all the while.
        check_tcp(outside, at(own));
        check_udp(outside, at(own), &[100; 10]);
        exchange(&stream, 500_000, 2);
        exchange_datagram(&socket, 1000, 0);
    }
    assert_eq!(mapped.peers(), [OUT4, OUT6], "nothing of it went there");
    client.del();
    mapped.del();
    node.finish();
}

/// How hostPorts from outside are served: the queues, or why by the kernel.
fn served(node: &Node) -> Result<u64, String> {
    let uplink = node.client.ask(Request::ShowKernel).unwrap()["uplink"].take();
    match uplink["queues"].as_u64() {
        Some(queues) => Ok(queues),
        None => Err(uplink["reason"].as_str().unwrap().to_owned()),
    }
}

/// The id of the XDP program on the uplink.
fn program(node: &Node) -> Option<u64> {
    let link = node.space().json("ip -j link show dev up0").remove(0);
    link["xdp"]["prog"]["id"].as_u64()
}

fn connections(node: &Node) -> [Flow; 2] {
    [NODE4, NODE6].map(|address| Flow::tcp(node.outside(), at(address)))
}

/// Asserts that established connections go on past the kernel.
#[track_caller]
fn go_on_past_the_kernel(node: &Node, flows: &[Flow]) {
    let before = frames(node, "up0");
    wait_until("frames pass the kernel", || {
        (frames(node, "up0") > before + 100).then_some(())
    });
    flows.iter().for_each(Flow::goes_on);
}

#[test]
fn every_queue_of_the_uplink_serves() {
    const QUEUES: usize = 4;
    let node = Node::start_on(Site::with_uplink_queues(QUEUES), &Options::default());
    assert_eq!(served(&node), Ok(QUEUES as u64));
    let mapped = Mapped::start(&node);
    let queues = || -> Vec<_> {
        let rows = node.rows().into_iter();
        rows.filter(|row| row.kind == "uplink").collect()
    };
    assert_eq!(queues().len(), QUEUES);
    for start in [Flow::tcp, Flow::udp] {
        let flows = [NODE4; 8].into_iter().chain([NODE6; 8]);
        let flows: Vec<Flow> = flows
            .map(|address| start(node.outside(), at(address)))
            .collect();
        flows.iter().for_each(Flow::goes_on);
        flows.into_iter().for_each(|flow| {
            flow.stop();
        });
    }
    let rows = queues();
    let used = rows.iter().filter(|row| row.counters.rx_frames > 0).count();
    // In the stack a veth's queue is known by what the sender noted, which counts
    // from 1 (skb_get_rx_queue): the first has also what is the second's.
    assert_eq!(used, QUEUES - usize::from(node.has_tso()), "{rows:?}");
    for row in rows {
        assert_eq!(row.counters.drops.values().sum::<u64>(), 0, "{row:?}");
    }
    mapped.del();
    node.finish();
}

#[test]
fn the_uplinks_new_mac_address_is_followed() {
    const MAC: &str = "02:00:00:00:88:01";
    let node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
    let flows = connections(&node);
    flows.iter().for_each(Flow::goes_on);
    node.space().exec(&format!("ip link set up0 address {MAC}"));
    for address in [NODE4, NODE6] {
        node.outside().exec(&format!(
            "ip neighbour replace {address} lladdr {MAC} dev out0 nud reachable"
        ));
    }
    go_on_past_the_kernel(&node, &flows);
    flows.into_iter().for_each(|flow| {
        flow.stop();
    });
    mapped.del();
    node.finish();
}

/// Then the kernel has all, until they are gone.
#[test]
fn rules_that_choose_routes_by_more_than_the_destination_are_the_kernels() {
    let node = Node::start(&Options::default());
    let mapped = Mapped::start(&node);
    assert_eq!(served(&node), Ok(1));
    let flows = connections(&node);
    go_on_past_the_kernel(&node, &flows);
    for (begin, end, why) in [
        (
            "ip rule add from 198.51.100.1 lookup 100 pref 76",
            "ip rule delete pref 76",
            "rule 76",
        ),
        (
            "ip -6 rule add from 2001:db8:51::1 lookup 100 pref 77",
            "ip -6 rule delete pref 77",
            "rule 77",
        ),
    ] {
        node.space().exec(begin);
        let reason = wait_until("the kernel serves", || served(&node).err());
        assert!(reason.contains(why), "{reason}");
        wait_until("the program is off", || {
            program(&node).is_none().then_some(())
        });
        flows.iter().for_each(Flow::goes_on);
        assert_eq!(frames(&node, "up0"), 0, "it has no port");
        check_tcp(node.outside(), at(NODE4));
        node.space().exec(end);
        wait_until("the uplink is served again", || served(&node).ok());
        assert!(program(&node).is_some());
        go_on_past_the_kernel(&node, &flows);
    }
    flows.into_iter().for_each(|flow| {
        flow.stop();
    });
    mapped.del();
    node.finish();
}

#[test]
fn an_uplink_that_is_made_anew_is_served_again() {
    let site = Site::new();
    let node = Node::start_on(
        site,
        &Options {
            uplink: "up0",
            ..Options::default()
        },
    );
    let mapped = Mapped::start(&node);
    node.space().exec("ip link delete up0");
    let reason = wait_until("the kernel serves", || served(&node).err());
    assert!(reason.contains("up0 is gone"), "{reason}");
    node.site.make_uplink(1);
    wait_until("the uplink is served again", || served(&node).ok());
    let flows = connections(&node);
    go_on_past_the_kernel(&node, &flows);
    flows.into_iter().for_each(|flow| {
        flow.stop();
    });
    mapped.del();
    node.finish();
}
