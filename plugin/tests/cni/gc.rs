//! GC: what is removed, and above all what is not.

use serde_json::{Value, json};
use sluice_control::ErrorCode;

use crate::node::Node;
use crate::space::Space;

/// Pods by these container IDs, attached to the network.
fn attached(node: &Node, network: &Value, ids: &[&str]) -> Vec<Space> {
    let attach = |id: &&str| {
        let pod = Space::new("pod");
        let env = [
            ("CNI_NETNS", pod.path()),
            ("CNI_CONTAINERID", (*id).to_owned()),
        ];
        let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
        node.sluice("ADD", &env, network).ok();
        pod
    };
    ids.iter().map(attach).collect()
}

fn ids(node: &Node) -> Vec<String> {
    let attached = node.daemon().attached();
    attached.into_iter().map(|a| a.id.container_id).collect()
}

fn network_1_1(node: &Node) -> Value {
    let mut network = node.network();
    network["cniVersion"] = "1.1.0".into();
    network
}

#[test]
fn what_is_not_listed_goes_and_the_rest_stays() {
    let node = Node::new();
    let network = network_1_1(&node);
    let pods = attached(&node, &network, &["c1", "c2", "c3"]);
    assert_eq!(node.gc(&network, &["c2", "never"]).ok(), Value::Null);
    assert_eq!(ids(&node), ["c2"]);
    assert_eq!(node.reserved(), ["10.77.0.3", "fd77::3"]);
    assert_eq!(node.host.links().len(), 2);
    let links: Vec<_> = pods.iter().map(|pod| pod.links().len()).collect();
    assert_eq!(links, [1, 2, 1]);
    // The interface's name counts too, and an empty list means all.
    let mut other_name = network.clone();
    other_name["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    node.sluice("GC", &[], &other_name).ok();
    assert_eq!(ids(&node), ["c2"]);
    other_name["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth1"}]);
    node.sluice("GC", &[], &other_name).ok();
    node.assert_clean(None);
    attached(&node, &network, &["c4"]);
    node.gc(&network, &[]).ok();
    node.assert_clean(None);
    // As Go writes an empty list that was never filled.
    attached(&node, &network, &["c5"]);
    other_name["cni.dev/valid-attachments"] = Value::Null;
    node.sluice("GC", &[], &other_name).ok();
    node.assert_clean(None);
}

#[test]
fn other_networks_are_left_alone() {
    let node = Node::new();
    let network = network_1_1(&node);
    let mut other = node.network_of(&["10.78.0.0/24"]);
    other["name"] = "storage".into();
    other["cniVersion"] = "1.1.0".into();
    let _pods = attached(&node, &network, &["c1"]);
    let _others = attached(&node, &other, &["c2"]);
    node.gc(&other, &[]).ok();
    assert_eq!(ids(&node), ["c1"]);
    assert_eq!(node.reserved(), ["10.77.0.2", "fd77::2"]);
}

#[test]
fn without_a_list_that_can_be_read_nothing_goes() {
    let node = Node::new();
    let mut network = network_1_1(&node);
    let _pods = attached(&node, &network, &["c1"]);
    node.sluice("GC", &[], &network)
        .fails(7, "cni.dev/valid-attachments is missing");
    for list in [json!({}), json!([7]), json!([{"containerID": "c1"}])] {
        network["cni.dev/valid-attachments"] = list;
        node.sluice("GC", &[], &network)
            .fails(7, "nothing was removed");
    }
    assert_eq!(ids(&node), ["c1"]);
}

#[test]
fn failures_do_not_stop_it_and_are_all_reported() {
    let node = Node::new();
    let log = node.file("log");
    let mut network = node.stub_ipam(&format!(
        "case $CNI_COMMAND in
            ADD) echo \"{{\\\"ips\\\": [{{\\\"address\\\": \\\"10.77.0.1${{CNI_CONTAINERID#c}}/24\\\"}}]}}\";;
            *) echo $CNI_COMMAND $CNI_CONTAINERID >> {}
               echo '{{\"code\": 5, \"msg\": \"disk full\"}}'; exit 1;;
        esac",
        log.display()
    ));
    network["cniVersion"] = "1.1.0".into();
    let _pods = attached(&node, &network, &["c1", "c2"]);
    node.daemon().refuse_detach(Some(ErrorCode::Busy));
    let error = node.gc(&network, &[]).fails(11, "the daemon refused");
    let details = error["details"].as_str().unwrap();
    assert_eq!(
        details.matches("the daemon refused").count(),
        1,
        "{details}"
    );
    assert_eq!(
        details
            .matches("DEL by IPAM plugin stub: disk full")
            .count(),
        2
    );
    assert_eq!(
        details.matches("GC by IPAM plugin stub: disk full").count(),
        1
    );
    let calls = std::fs::read_to_string(&log).unwrap();
    assert_eq!(calls, "DEL c1\nDEL c2\nGC\n");
    assert_eq!(node.host.links(), ["lo"]);

    node.daemon().refuse_detach(None);
    node.gc(&network, &[]).fails(5, "disk full");
    assert_eq!(ids(&node), Vec::<String>::new());
}

#[test]
fn without_a_daemon_ipam_is_still_told() {
    let mut node = Node::new();
    let log = node.file("log");
    let mut network = node.stub_ipam(&format!("echo $CNI_COMMAND >> {}", log.display()));
    network["cniVersion"] = "1.1.0".into();
    node.daemon = None;
    node.gc(&network, &[]).fails(11, "is sluiced running?");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "GC\n");
}
