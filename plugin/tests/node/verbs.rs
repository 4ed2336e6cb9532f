//! CHECK, STATUS and GC against the real daemon.

use crate::harness::flows::ping;
use crate::harness::{Node, Options, all_ok};

#[test]
fn check_status_and_gc_know_what_the_daemon_knows() {
    let node = Node::start(&Options {
        max_ports: 2,
        ..Options::default()
    });
    let list = node.chain(&[]).with("cniVersion", "1.1.0");
    let [a, b] = ["a", "b"].map(|name| node.add_by(&list, name, &[]));
    for pod in [&a, &b] {
        all_ok(pod.check());
    }
    list.status()[0].fails(50, &["all 2 ports are taken"]);

    all_ok(list.gc(&[a.container()]));
    all_ok(list.status());
    b.check()[0].fails(104, &["no interface eth0"]);
    ping(&a, a.gateway_like(a.v4()));

    // Its address is free again, also at the IPAM plugin.
    b.del();
    node.add_by(&list, "c", &[]).del();
    a.del();
    node.finish();
}
