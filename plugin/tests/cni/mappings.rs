//! hostPorts: from the runtime to the daemon.

use serde_json::{Value, json};
use sluice_control::{ErrorCode, PortMapping, Protocol};

use crate::node::Node;
use crate::space::Space;

fn mapped(node: &Node, entries: Value) -> Value {
    let mut network = node.network();
    network["capabilities"] = json!({"portMappings": true});
    network["runtimeConfig"] = json!({"portMappings": entries});
    network
}

fn one(host_port: u16) -> Value {
    json!([{"hostPort": host_port, "containerPort": 80, "protocol": "UDP", "hostIP": "192.0.2.1"}])
}

#[test]
fn the_daemon_gets_what_the_runtime_asks_for() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = mapped(&node, one(8080));
    network["snat"] = false.into();
    network["masqAll"] = true.into();
    network["externalSetMarkChain"] = "KUBE-MARK-MASQ".into();
    network["conditionsV4"] = json!([]);
    let answer = node.add(&pod, &network);
    assert!(answer.stderr.contains("KUBE-MARK-MASQ"), "{answer:?}");
    answer.ok();
    let attached = node.daemon().attached().remove(0);
    let expected = PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: Protocol::Udp,
        host_ip: Some("192.0.2.1".parse().unwrap()),
    };
    assert_eq!(attached.mappings, [expected]);
    assert!(!attached.snat && attached.masq_all);
    node.del(&network).ok();
    node.assert_clean(Some(&pod));

    node.add(&pod, &node.network()).ok();
    let plain = node.daemon().attached().remove(0);
    assert_eq!(plain.mappings, []);
    assert!(plain.snat && !plain.masq_all);
}

#[test]
fn what_cannot_be_mapped_leaves_no_trace() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    for (entries, needle) in [
        (json!([{"containerPort": 80}]), "hostPort is 0"),
        (json!([{"hostPort": 65536, "containerPort": 80}]), "65536"),
        (
            json!([{"hostPort": 1, "containerPort": 80, "hostIP": "x"}]),
            "\"x\"",
        ),
        (json!([{"hostPort": "80"}]), "runtimeConfig"),
        (
            json!([{"hostPort": 1, "containerPort": 80}, {"hostPort": 1, "containerPort": 81}]),
            "TCP port 1 of every IPv4 address",
        ),
    ] {
        node.add(&pod, &mapped(&node, entries)).fails(7, needle);
        node.assert_clean(Some(&pod));
    }
    let mut network = mapped(&node, one(8080));
    network["conditionsV6"] = json!(["-i", "eth1"]);
    node.add(&pod, &network).fails(7, "conditionsV6");
    node.assert_clean(Some(&pod));
}

#[test]
fn check_compares_with_the_daemon_and_asks_it_for_the_rules() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = mapped(&node, one(8080));
    let result = node.add(&pod, &network).ok();
    node.check(&pod, &network, &result).ok();
    // A runtime that says nothing of them means no other ones.
    node.check(&pod, &node.network(), &result).ok();
    node.check(&pod, &mapped(&node, one(8081)), &result)
        .fails(104, "other hostPorts");
    node.daemon().refuse_check(Some(ErrorCode::Failed));
    node.check(&pod, &network, &result)
        .fails(104, "the daemon refused");
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}
