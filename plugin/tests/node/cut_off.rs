//! Pods that the next daemon cannot take back.

use std::fs;

use crate::harness::flows::ping;
use crate::harness::{Node, Options, all_ok, wait_until};

#[test]
fn a_bad_file_cuts_off_its_pod_alone_until_that_is_recreated() {
    let mut node = Node::start(&Options::default());
    let [a, b, c] = ["a", "b", "c"].map(|name| node.add(name));
    let interface = b.host_ifname().to_owned();
    let file = |suffix: &str| {
        node.run_dir()
            .join("attachments")
            .join(format!("{interface}{suffix}"))
    };
    let (good, bad, pin) = (
        file(".json"),
        file(".json.bad"),
        node.run_dir().join("bpf/links").join(&interface),
    );
    node.kill();
    fs::write(&good, "{").unwrap();
    node.restart();
    assert_eq!(node.ports().len(), 3, "a, c and the host port");
    let log = node.log();
    for needle in [
        good.to_str().unwrap(),
        bad.to_str().unwrap(),
        "recreate this pod",
    ] {
        assert!(log.contains(needle), "{needle:?} is not in {log}");
    }
    ping(&a, c.v4());
    for (from, to) in [(&a, b.v4()), (&b, a.v4()), (&b, b.gateways()[0])] {
        let output = from.output(&format!("ping -n -q -c 3 -i 0.01 -W 1 {to}"));
        assert!(!output.status.success(), "{output:?}");
    }
    b.del();
    wait_until("nothing is left of it", || {
        (!bad.exists() && !good.exists() && !pin.exists()).then_some(())
    });
    ping(&a, node.add("b").v4());
    node.finish();
}

#[test]
fn check_and_gc_know_a_pod_that_is_cut_off() {
    let mut node = Node::start(&Options {
        max_ports: 2,
        ..Options::default()
    });
    let list = node.chain(&[]).with("cniVersion", "1.1.0");
    let pods = ["a", "b"].map(|name| node.add_by(&list, name, &[]));
    assert!(node.stop().success());
    let conflist = fs::read_to_string(node.conflist()).unwrap();
    let smaller = conflist.replace("\"maxPorts\":2", "\"maxPorts\":1");
    fs::write(node.conflist(), smaller).unwrap();
    node.restart();
    let [served, cut_off] = match (node.rows(), pods) {
        (rows, [a, b]) if rows[1].container_id.as_deref() == Some(a.id()) => [a, b],
        (_, [a, b]) => [b, a],
    };
    all_ok(served.check());
    cut_off.check()[0].fails(104, &[cut_off.host_ifname(), "is down"]);
    all_ok(list.gc(&[served.container()]));
    assert_eq!(cut_off.links(), ["lo"]);
    let files = fs::read_dir(node.run_dir().join("attachments")).unwrap();
    assert_eq!(files.count(), 1);
    ping(&served, served.gateway_like(served.v4()));
    node.finish();
}
