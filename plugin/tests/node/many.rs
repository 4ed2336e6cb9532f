//! Many pods at once, and nothing left of them.

use std::collections::BTreeSet;

use crate::harness::flows::{Echo, Flow, ping};
use crate::harness::{Node, Options, Pod, Snapshot, in_parallel};

const PODS: usize = 100;
const AT_ONCE: usize = 16;

#[test]
fn a_hundred_pods_come_and_go_beside_others_traffic() {
    let ports = u16::try_from(PODS).unwrap() + 2;
    let node = Node::start(&Options {
        max_ports: ports,
        ..Options::default()
    });
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echoes = b
        .addresses()
        .into_iter()
        .map(|address| Echo::tcp(&b, address));
    let flows: Vec<_> = echoes
        .map(|echo| (Flow::tcp(&a, echo.address), echo))
        .collect();
    let chunks = node.stats()["chunks"]["total"].clone();
    let before = Snapshot::take(&node);

    // Twice: the second time every slot is somebody's who was there before.
    for round in 1..=2_u16 {
        let pods = in_parallel(AT_ONCE, 0..PODS, |number| {
            let pod = node.add(&format!("p{number}"));
            ping(&pod, a.v4());
            ping(&pod, b.v6());
            pod
        });
        let rows = node.ports();
        let slots: BTreeSet<u16> = rows.iter().map(|row| row.slot).collect();
        assert_eq!(slots, (0..=ports).collect(), "every slot is taken once");
        let generations = rows
            .iter()
            .filter(|row| row.slot > 2)
            .map(|row| row.generation);
        assert!(generations.collect::<BTreeSet<_>>() == BTreeSet::from([round]));
        in_parallel(AT_ONCE, pods, Pod::del);
        before.assert_unchanged(&node);
        assert_eq!(node.ports().len(), 3, "the host port and two pods");
    }

    for (flow, _echo) in flows {
        let rounds = flow.stop();
        assert!(rounds > 100, "only {rounds} rounds of TCP alongside");
    }
    node.assert_no_chunk_lost();
    assert_eq!(node.stats()["chunks"]["total"], chunks);
    node.finish();
}
