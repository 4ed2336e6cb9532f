//! CHECK, STATUS and GC against the real daemon.

use std::path::Path;

use serde_json::json;

use crate::harness::flows::ping;
use crate::harness::{Node, Options};

#[test]
fn check_status_and_gc_know_what_the_daemon_knows() {
    let node = Node::start(&Options { max_ports: 2 });
    let runtime = node.runtime();
    let network = node.pods().with("cniVersion", "1.1.0");
    let nowhere = Path::new("");
    let [a, b] = ["a", "b"].map(|name| node.add_to(&network, name));
    for pod in [&a, &b] {
        let made = network.with("prevResult", pod.result().clone());
        runtime.run("CHECK", pod.id(), &pod.path(), &made).ok();
    }
    let full = runtime.run("STATUS", "", nowhere, &network);
    full.fails(50, &["all 2 ports are taken"]);

    let valid = json!([{"containerID": a.id(), "ifname": "eth0"}]);
    let valid = network.with("cni.dev/valid-attachments", valid);
    runtime.run("GC", "", nowhere, &valid).ok();
    runtime.run("STATUS", "", nowhere, &network).ok();
    let made = network.with("prevResult", b.result().clone());
    let gone = runtime.run("CHECK", b.id(), &b.path(), &made);
    gone.fails(104, &["no interface eth0"]);
    ping(&a, a.gateway_like(a.v4()));

    // Its address is free again, also at the IPAM plugin.
    b.del();
    node.add_to(&network, "c").del();
    a.del();
    node.finish();
}
