//! What a runtime asks for one attachment: addresses, a MAC address, and whose
//! it is.

use serde_json::{Value, json};

use crate::node::Node;
use crate::space::Space;

/// The network with these keys in our object.
fn with(network: &Value, keys: &Value) -> Value {
    let mut network = network.clone();
    for (key, value) in keys.as_object().unwrap() {
        network[key] = value.clone();
    }
    network
}

fn addresses(result: &Value) -> Vec<&str> {
    let ips = result["ips"].as_array().unwrap().iter();
    ips.map(|ip| ip["address"].as_str().unwrap()).collect()
}

#[test]
fn the_addresses_asked_for_are_the_pods() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let path = pod.path();
    let network = node.network();
    for (keys, args, asked) in [
        (
            json!({"runtimeConfig": {"ips": ["10.77.0.50"]}}),
            "",
            vec!["10.77.0.50/24"],
        ),
        (
            json!({"runtimeConfig": {"ips": ["fd77::50/64", "10.77.0.51/24"]}}),
            "",
            vec!["10.77.0.51/24", "fd77::50/64"],
        ),
        (
            json!({"args": {"cni": {"ips": ["fd77::60"]}}}),
            "",
            vec!["fd77::60/64"],
        ),
        (json!({}), "IP=10.77.0.70;OTHER=1", vec!["10.77.0.70/24"]),
    ] {
        let network = with(&network, &keys);
        let env = [("CNI_NETNS", path.as_str()), ("CNI_ARGS", args)];
        let result = node.sluice("ADD", &env, &network).ok();
        let given = addresses(&result);
        assert_eq!(given.len(), 2, "{result}");
        let in_pod = pod.exec(&["ip", "address", "show", "eth0"]);
        for address in asked {
            assert!(given.contains(&address), "{result}");
            assert!(in_pod.contains(&format!(" {address} ")), "{in_pod}");
        }
        node.check(&pod, &network, &result).ok();
        node.sluice("DEL", &env, &network).ok();
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn addresses_out_of_range_or_overlooked_are_errors() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let asked = json!({"runtimeConfig": {"ips": ["10.99.0.50"]}});
    node.add(&pod, &with(&node.network(), &asked))
        .fails(999, "10.99.0.50");
    node.assert_clean(Some(&pod));
    let answer = "echo '{\"ips\": [{\"address\": \"10.77.0.11/24\"}]}'";
    node.add(&pod, &with(&node.stub_ipam(answer), &asked))
        .fails(
            102,
            "asks for 10.99.0.50, which the IPAM plugin did not give",
        );
    node.assert_clean(Some(&pod));
    // In args it is a hint.
    let hint = json!({"args": {"cni": {"ips": ["10.99.0.50"]}}});
    node.add(&pod, &with(&node.stub_ipam(answer), &hint)).ok();
}

#[test]
fn the_mac_address_asked_for_is_the_pods() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let (path, network) = (pod.path(), node.network());
    let mac = "02:00:5e:00:53:01";
    for (keys, args) in [
        (
            json!({"runtimeConfig": {"mac": mac}}),
            "MAC=02:00:00:00:00:09",
        ),
        (json!({"args": {"cni": {"mac": "02-00-5E-00-53-01"}}}), ""),
        // host-local, which knows no such key, must not refuse it.
        (json!({}), "MAC=02:00:5e:00:53:01"),
    ] {
        let network = with(&network, &keys);
        let env = [("CNI_NETNS", path.as_str()), ("CNI_ARGS", args)];
        let result = node.sluice("ADD", &env, &network).ok();
        assert_eq!(result["interfaces"][1]["mac"], mac);
        assert_eq!(pod.link("eth0")["address"], mac);
        let attached = node.daemon().attached();
        assert_eq!(attached[0].pod_mac, [2, 0, 0x5e, 0, 0x53, 1]);

        let check = with(&network, &json!({"prevResult": result}));
        node.sluice("CHECK", &env, &check).ok();
        node.check(&pod, &node.network(), &result).ok();
        let other = with(
            &check,
            &json!({"runtimeConfig": {"mac": "02:00:00:00:00:09"}}),
        );
        node.sluice("CHECK", &env, &other)
            .fails(104, "not 02:00:00:00:00:09");
        node.sluice("DEL", &env, &network).ok();
        node.assert_clean(Some(&pod));
    }
}

/// Each is alone on its link.
#[test]
fn two_pods_may_have_one_mac_address() {
    let (node, pods) = (Node::new(), [Space::new("pod"), Space::new("pod")]);
    let network = with(
        &node.network(),
        &json!({"runtimeConfig": {"mac": "02:00:5e:00:53:01"}}),
    );
    for (id, pod) in ["c1", "c2"].iter().zip(&pods) {
        let path = pod.path();
        let env = [("CNI_NETNS", path.as_str()), ("CNI_CONTAINERID", id)];
        node.sluice("ADD", &env, &network).ok();
        assert_eq!(pod.link("eth0")["address"], "02:00:5e:00:53:01");
    }
}

#[test]
fn the_daemon_serving_another_mac_address_is_noticed() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    let result = node.add(&pod, &network).ok();
    node.daemon()
        .change_attached(|attached| attached[0].pod_mac = [2, 0, 0, 0, 0, 9]);
    node.check(&pod, &network, &result)
        .fails(104, "serves it with the MAC address 02:00:00:00:00:09");
}

#[test]
fn the_daemon_learns_whose_attachment_it_is() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let (path, network) = (pod.path(), node.network());
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
                K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=0f5e-11";
    let env = [("CNI_NETNS", path.as_str()), ("CNI_ARGS", args)];
    node.sluice("ADD", &env, &network).ok();
    assert_eq!(
        serde_json::to_value(&node.daemon().attached()[0].pod).unwrap(),
        json!({"namespace": "default", "name": "web-0", "uid": "0f5e-11"})
    );
    // What cannot be read keeps no pod from being deleted.
    let env = [("CNI_ARGS", "K8S_POD_NAME;=;MAC=x;K8S_POD_UID=\n")];
    node.sluice("DEL", &env, &network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn labels_and_others_args_are_accepted() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let keys = json!({"args": {
        "cni": {"labels": [{"key": "app", "value": "web"}], "later": 1},
        "example.com": ["anything"],
    }});
    node.add(&pod, &with(&node.network(), &keys)).ok();
}
