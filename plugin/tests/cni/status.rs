//! STATUS: ready, or why not.

use serde_json::Value;

use crate::node::Node;
use crate::space::Space;

#[test]
fn a_node_with_room_is_ready_and_a_full_one_is_not() {
    let (mut node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network();
    network["cniVersion"] = "1.1.0".into();
    node.daemon()
        .change_facts(|facts| facts.settings.max_ports = 1);
    assert_eq!(node.sluice("STATUS", &[], &network).ok(), Value::Null);
    node.add(&pod, &network).ok();
    node.sluice("STATUS", &[], &network)
        .fails(50, "all 1 ports are taken");
    node.del(&network).ok();
    node.daemon = None;
    node.sluice("STATUS", &[], &network)
        .fails(51, "is sluiced running?");
}

#[test]
fn ipam_has_a_say() {
    let node = Node::new();
    for (answer, expected) in [
        ("exit 0", None),
        // Plugins that are older than STATUS.
        (
            "echo '{\"code\": 1, \"msg\": \"incompatible\"}'; exit 1",
            None,
        ),
        ("echo '{\"code\": 3, \"msg\": \"unknown\"}'; exit 1", None),
        (
            "echo '{\"code\": 4, \"msg\": \"unknown CNI_COMMAND: STATUS\"}'; exit 1",
            None,
        ),
        // Those that are not ready.
        (
            "echo '{\"code\": 50, \"msg\": \"no range\"}'; exit 1",
            Some(50),
        ),
        (
            "echo '{\"code\": 51, \"msg\": \"limited\"}'; exit 1",
            Some(51),
        ),
        (
            "echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1",
            Some(50),
        ),
        ("echo nonsense; exit 1", Some(50)),
        (
            "echo '{\"code\": 4, \"msg\": \"CNI_PATH\"}'; exit 1",
            Some(4),
        ),
    ] {
        let versions = "echo '{\"supportedVersions\": [\"1.0.0\"]}'";
        let mut network = node.stub_ipam(&format!(
            "if [ $CNI_COMMAND = VERSION ]; then {versions}; else {answer}; fi"
        ));
        network["cniVersion"] = "1.1.0".into();
        let outcome = node.sluice("STATUS", &[], &network);
        match expected {
            None => assert_eq!(outcome.ok(), Value::Null),
            Some(code) => drop(outcome.fails(code, "STATUS by IPAM plugin stub")),
        }
    }
}
