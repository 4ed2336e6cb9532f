//! As many pods as a node has, and as many as come and go in a day.

use std::time::Instant;

use crate::harness::flows::ping;
use crate::harness::pinger::Pinger;
use crate::harness::{Node, Options, Pod, Snapshot, in_parallel};

const AT_ONCE: usize = 10;

/// Cycles in a round, after each of which nothing is left.
const CYCLES: usize = 100;
const ROUNDS: usize = 10;

/// By how much memory may have grown since the first round: a few buffers.
/// What leaks once a cycle, be it 600 bytes, is more.
const LEVEL_KIB: u64 = 512;

#[test]
fn a_thousand_pods_come_and_go_and_nothing_stays() {
    let node = Node::start(&Options {
        max_ports: 16,
        ..Options::default()
    });
    let neighbour = node.add("neighbour");
    let chunks = || {
        node.assert_no_chunk_lost();
        node.stats()["chunks"].clone()
    };
    let (before, chunks_before) = (Snapshot::take(&node), chunks());
    let holdings = Vec::from_iter((0..ROUNDS).map(|round| {
        in_parallel(AT_ONCE, 0..CYCLES, |cycle| {
            let pod = node.add(&format!("p{round}-{cycle}"));
            ping(&pod, neighbour.v4());
            pod.del();
        });
        before.assert_unchanged(&node);
        assert_eq!(chunks(), chunks_before);
        assert_eq!(node.ports().len(), 2, "the neighbour and the host port");
        node.holdings()
    }));
    println!("{holdings:#?}");
    let (first, last) = (holdings[0], holdings[ROUNDS - 1]);
    // That of a request that is just at its end may be among them, not one a round.
    assert!(last.open_files < first.open_files + ROUNDS / 2);
    assert!(last.anonymous_kib <= first.anonymous_kib + LEVEL_KIB);
    assert!(last.resident_kib <= first.resident_kib + LEVEL_KIB);
    node.finish();
}

/// How long the pods of a node are without a network when the daemon is
/// started anew; dataplane/README.md has what was measured.
#[test]
fn two_hundred_and_fifty_pods_are_served_again() {
    const PODS: u16 = 250;
    let mut node = Node::start(&Options {
        max_ports: PODS,
        ..Options::default()
    });
    let pods = in_parallel(AT_ONCE, 0..PODS, |number| node.add(&format!("p{number}")));
    let before = Snapshot::take(&node);
    for how in ["kill -9", "SIGTERM"] {
        let start = Instant::now();
        if how == "kill -9" {
            node.kill();
        } else {
            assert!(node.stop().success());
        }
        let ended = start.elapsed();
        let start = Instant::now();
        node.restart();
        let answers = start.elapsed();
        for pod in &pods {
            Pinger::new(&pods[0], pod.v4()).echo(56);
        }
        let reached = start.elapsed();
        println!(
            "{how}: gone after {ended:.2?}; the next one answers {answers:.2?} after its start, \
             all {PODS} pods are reached after {reached:.2?}"
        );
        before.assert_unchanged(&node);
    }
    in_parallel(AT_ONCE, pods, Pod::del);
    node.finish();
}
