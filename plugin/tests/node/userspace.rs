//! The packets really pass the daemon, and nothing else passes them.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::flows::{Echo, check_tcp, check_udp, ping, udp_client};
use crate::harness::{BEYOND4, BEYOND6, NODE4, NODE6, Node, Options, Pod, wait_until};

/// An Ethernet header. veth counts what a program in the peer's driver takes without
/// it, and everything else with it (`veth_xdp_rcv`, `veth_xmit`).
const ETHERNET: u64 = 14;

#[track_caller]
fn assert_counters_equal(node: &Node, pod: &Pod) {
    let what = format!("eth0 of {} and its port count the same", pod.id());
    let uncounted = if node.has_tso() { 0 } else { ETHERNET };
    // A frame that is on its way is counted on one side only.
    wait_until(&what, || {
        let (eth0, port) = (pod.traffic(), node.row(pod).counters);
        let sent = (
            eth0.sent_frames,
            eth0.sent_bytes + uncounted * eth0.sent_frames,
        );
        let received = (eth0.received_frames, eth0.received_bytes);
        let equal =
            sent == (port.rx_frames, port.rx_bytes) && received == (port.tx_frames, port.tx_bytes);
        equal.then_some(())
    });
}

#[test]
fn the_pods_interface_and_the_daemon_count_the_same() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    for address in b.addresses() {
        ping(&a, address);
        check_tcp(&a, Echo::tcp(&b, address).address);
        check_udp(&a, Echo::udp(&b, address).address, &[0, 100, 60_000]);
    }
    for address in [NODE4, NODE6] {
        check_tcp(&a, Echo::tcp(node.space(), address).address);
        check_tcp(node.space(), Echo::tcp(&b, b.address_like(address)).address);
    }
    for address in [BEYOND4, BEYOND6] {
        check_tcp(&b, Echo::tcp(node.outside(), address).address);
    }
    for pod in [&a, &b] {
        assert!(node.row(pod).counters.rx_frames > 100, "there was no load");
        assert_counters_equal(&node, pod);
    }
    node.finish();
}

/// Frames that the kernel dropped, since the pod sent faster than they were taken.
fn overrun(node: &Node, pod: &Pod) -> u64 {
    let statistics = node.row(pod).xdp_statistics.expect("the socket is open");
    statistics["rx_dropped"] + statistics["rx_ring_full"]
}

/// A busy port's socket is not watched by epoll. What comes when it has fallen
/// silent, before and after it is watched again, wakes the worker all the same.
#[test]
fn who_was_busy_and_is_silent_is_still_heard() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let address = b.addresses()[0];
    let echo = Echo::udp(&b, address);
    let asks = udp_client(&a, echo.address);
    asks.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    // Nobody listens: the sender is told, and goes on.
    let shouts = udp_client(&a, SocketAddr::new(address, 9));
    let mut heard = 0;
    for round in 0..80 {
        let before = overrun(&node, &a);
        // Half a FILL ring at once, 150 frames in a millisecond.
        for _ in 0..10 {
            for _ in 0..60 {
                let _ = shouts.send(b"anyone");
            }
            thread::sleep(Duration::from_micros(300));
        }
        // Shorter and longer than the worker spins, and than a port is looked at.
        thread::sleep(Duration::from_micros(50 << (round % 8)));
        let answer = asks.send(b"you").and_then(|_| asks.recv(&mut [0; 4]));
        match answer {
            Ok(length) => {
                assert_eq!(length, 3);
                heard += 1;
            }
            Err(error) => assert!(overrun(&node, &a) > before, "nobody heard it: {error}"),
        }
    }
    assert!(heard > 40, "{heard} of 80: the rest was overrun");
    node.finish();
}

#[test]
fn the_hosts_stack_does_not_forward_between_pods() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    for command in [
        "add table inet test",
        "add chain inet test forward { type filter hook forward priority 0; }",
        "add rule inet test forward counter",
    ] {
        node.space().exec(&format!("nft {command}"));
    }
    let forwarded = || {
        let chain = node.space().exec("nft list chain inet test forward");
        let (_, count) = chain.split_once("counter packets ").expect("a counter");
        count
            .split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    for address in b.addresses() {
        ping(&a, address);
        check_tcp(&a, Echo::tcp(&b, address).address);
        check_udp(&a, Echo::udp(&b, address).address, &[0, 1000, 60_000]);
    }
    assert_eq!(forwarded(), 0);
    ping(&a, BEYOND4);
    assert_eq!(
        forwarded(),
        2,
        "what leaves the node is the host's to forward"
    );
    node.finish();
}

#[test]
fn while_the_daemon_stands_still_so_do_the_pods() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    for address in b.addresses() {
        ping(&a, address);
        node.signal(Signal::SIGSTOP);
        let output = a.output(&format!("ping -n -c 3 -i 0.1 -W 1 {address}"));
        node.signal(Signal::SIGCONT);
        assert!(!output.status.success(), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(" 0 received"),
            "{output:?}"
        );
        ping(&a, address);
    }
    node.finish();
}
