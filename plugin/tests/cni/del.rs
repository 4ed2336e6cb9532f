//! DEL: that nothing is left, whatever was there.

use serde_json::Value;
use sluice_control::ErrorCode;

use crate::node::Node;
use crate::space::Space;

#[test]
fn del_leaves_nothing_and_can_be_repeated() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    let env = [("CNI_NETNS", pod.path())];
    let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
    for _ in 0..2 {
        assert_eq!(node.sluice("DEL", &env, &network).ok(), Value::Null);
        node.assert_clean(Some(&pod));
    }
    // And without CNI_NETNS, of what never was.
    node.sluice("DEL", &[("CNI_CONTAINERID", "other")], &network)
        .ok();
}

#[test]
fn del_works_when_the_namespace_is_gone() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    let path = pod.path();
    drop(pod);
    node.sluice("DEL", &[("CNI_NETNS", &path)], &network).ok();
    node.assert_clean(None);
}

#[test]
fn del_works_while_the_daemon_is_down() {
    let (mut node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    node.daemon = None;
    let answer = node.del(&network);
    assert!(answer.stderr.contains("is sluiced running?"), "{answer:?}");
    answer.ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn del_asks_again_when_the_daemon_ends_before_it_answers() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    node.daemon().lose_one_detach();
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn del_overlooks_what_add_would_refuse() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network();
    node.add(&pod, &network).ok();
    network["new"] = 1.into();
    network["mtu"] = "many".into();
    network["prevResult"] = 7.into();
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn del_takes_all_steps_and_reports_all_failures() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.stub_ipam(
        "if [ $CNI_COMMAND = ADD ]; then
            echo '{\"ips\": [{\"address\": \"10.77.0.11/24\"}]}'
        else
            echo '{\"code\": 5, \"msg\": \"disk full\"}'; exit 1
        fi",
    );
    node.add(&pod, &network).ok();
    node.del(&network)
        .fails(5, "DEL by IPAM plugin stub: disk full");
    node.assert_clean(Some(&pod));

    node.daemon().refuse_detach(Some(ErrorCode::Busy));
    let error = node.del(&network).fails(11, "the daemon refused");
    assert!(
        error["details"].as_str().unwrap().contains("disk full"),
        "{error}"
    );
}

#[test]
fn del_touches_only_its_own_attachment() {
    let (node, pod, other) = (Node::new(), Space::new("pod"), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    let env = [
        ("CNI_NETNS", other.path()),
        ("CNI_CONTAINERID", "c2".into()),
    ];
    let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
    node.sluice("ADD", &env, &network).ok();
    node.del(&network).ok();
    assert_eq!(pod.links(), ["lo"]);
    assert_eq!(other.links(), ["lo", "eth0"]);
    assert_eq!(node.reserved(), ["10.77.0.3", "fd77::3"]);
    assert_eq!(node.daemon().attached()[0].id.container_id, "c2");
}
