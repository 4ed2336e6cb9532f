//! TCP segments of 1500 bytes that are merged on their way: to a pod, and to the
//! host.

use std::net::IpAddr;

use serde_json::Value;

use crate::harness::bad_wire::BadWire;
use crate::harness::flows::{Echo, connect, exchange};
use crate::harness::{BEYOND4, BEYOND6, Node, Options, Pod, Space};

const BYTES: usize = 20_000_000;

/// Has the kernel cut what it sends by an interface, as one does that leaves no
/// segments merged for us.
fn cut_first(space: &Space, interface: &str) {
    space.exec(&format!("ethtool -K {interface} tso off"));
}

fn can_merge(node: &Node) -> bool {
    node.has_gso() || node.has_multi_buffer() && node.has_tx_metadata()
}

/// How many segments to the pod became the end of another.
#[track_caller]
fn merged(node: &Node, pod: &Pod) -> u64 {
    node.row(pod).counters.merged_frames
}

fn count(space: &Space, key: &str) -> u64 {
    let counters: Value = space.counters();
    counters[key]
        .as_u64()
        .unwrap_or_else(|| panic!("nstat has no {key}"))
}

#[test]
fn a_pod_gets_merged_what_others_send_in_small_segments() {
    let node = Node::start(&Options::default());
    let small = node.pods().with("localMtu", 1500);
    let small = node.add_to(&small, "small");
    cut_first(&small, "eth0");
    let jumbo = node.add("jumbo");
    let plain = node.add_to(&node.pods().with("gro", false), "plain");
    for pod in [&jumbo, &plain] {
        for address in pod.addresses() {
            let echo = Echo::tcp(pod, address);
            let before = merged(&node, pod);
            exchange(&connect(&small, echo.address), BYTES, 1);
            let expected = pod.id() == jumbo.id() && can_merge(&node);
            assert_eq!(merged(&node, pod) > before, expected, "{address}");
        }
    }
    // Its MTU does not matter where the kernel is told how to cut them.
    for pod in [&jumbo, &plain] {
        cut_first(pod, "eth0");
        let echo = Echo::tcp(&small, small.addresses()[0]);
        exchange(&connect(pod, echo.address), BYTES, 1);
    }
    assert_eq!(merged(&node, &small) > 0, node.has_gso());
    assert_eq!(
        count(&jumbo, "TcpInErrs") + count(&jumbo, "TcpInCsumErrors"),
        0
    );
    let shown = node.sluiced(&format!(
        "show kernel --run-dir {}",
        node.run_dir().display()
    ));
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(
        shown.contains("segments: merged"),
        can_merge(&node),
        "{shown}"
    );
    node.finish();
}

#[test]
fn what_goes_to_the_host_is_merged_and_leaves_as_it_was_sent() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    cut_first(&pod, "eth0");
    let merged = || {
        let mut rows = node.rows().into_iter();
        let host = rows.find(|row| row.interface == "sluice-dp").unwrap();
        host.counters.merged_frames
    };
    for beyond in [BEYOND4, BEYOND6] {
        let before = merged();
        let echo = Echo::tcp(node.outside(), beyond);
        exchange(&connect(&pod, echo.address), BYTES, 1);
        assert_eq!(merged() > before, node.has_gso(), "{beyond}");
    }
    let outside = node.outside();
    assert_eq!(
        count(outside, "TcpInErrs") + count(outside, "TcpInCsumErrors"),
        0
    );
    node.finish();
}

/// As with an XDP program of the pod's own on its `eth0`.
#[test]
fn who_takes_no_merged_segments_gets_them_one_by_one() {
    let node = Node::start(&Options::default());
    let small = node.add_to(&node.pods().with("localMtu", 1500), "small");
    let pod = node.add("pod");
    cut_first(node.space(), pod.host_ifname());
    for address in pod.addresses() {
        let echo = Echo::tcp(&pod, address);
        exchange(&connect(&small, echo.address), BYTES, 3);
    }
    let row = node.row(&pod);
    let refused = row.counters.dropped("merged-refused");
    assert_eq!(refused > 0, node.has_gso(), "{row:?}");
    node.finish();
}

#[test]
fn a_bad_wire_spoils_no_stream() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    let addresses: Vec<IpAddr> = pod.addresses();
    let _wire = BadWire::new(&node.site, &addresses);
    for address in addresses {
        let echo = Echo::tcp(&pod, address);
        exchange(&connect(node.outside(), echo.address), BYTES, 2);
    }
    assert_eq!(merged(&node, &pod) > 0, can_merge(&node));
    assert!(
        count(node.outside(), "TcpRetransSegs") > 0,
        "nothing was lost"
    );
    assert!(count(&pod, "TcpExtTCPOFOQueue") > 0, "nothing was late");
    assert_eq!(count(&pod, "TcpInErrs") + count(&pod, "TcpInCsumErrors"), 0);
    node.finish();
}
