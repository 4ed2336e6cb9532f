//! CHECK: that each account that differs is noticed.

use serde_json::{Value, json};

use crate::node::Node;
use crate::space::Space;

#[test]
fn what_add_made_passes() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let mut network = node.network();
        network["cniVersion"] = version.into();
        let result = node.add(&pod, &network).ok();
        assert_eq!(node.check(&pod, &network, &result).ok(), Value::Null);
        // Those who come later in the list change keys and results.
        network["new"] = 1.into();
        let mut longer = result.clone();
        let later = json!({"name": "later", "mac": "", "sandbox": ""});
        longer["interfaces"].as_array_mut().unwrap().push(later);
        node.check(&pod, &network, &longer).ok();
        node.del(&node.network()).ok();
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn a_change_in_the_kernel_is_noticed() {
    for (in_pod, change, needle) in [
        (
            true,
            "ip address del 10.77.0.2/24 dev END",
            "the address 10.77.0.2/24",
        ),
        (
            true,
            "ip address del fd77::2/64 dev END",
            "the address fd77::2/64",
        ),
        (true, "ip route del default", "its route to 0.0.0.0/0"),
        (true, "ip -6 route del fd77::/64", "its route to fd77::/64"),
        (
            true,
            "ip link set END address 02:00:00:00:00:09",
            "eth0 has the MAC address 02:",
        ),
        (true, "ip link set END down", "eth0 is down"),
        (true, "ip link set END mtu 1400", "eth0 has the MTU 1400"),
        (false, "ip link set END mtu 1400", "has the MTU 1400"),
        (false, "ip link set END down", "is down"),
        (
            false,
            "ip link set END address 02:00:00:00:00:09",
            "has the MAC address 02:",
        ),
        (false, "ip link del END", "no interface eth0"),
    ] {
        let (node, pod) = (Node::new(), Space::new("pod"));
        let network = node.network();
        let result = node.add(&pod, &network).ok();
        let (space, end) = match in_pod {
            true => (&pod, "eth0"),
            false => (
                &node.host,
                result["interfaces"][0]["name"].as_str().unwrap(),
            ),
        };
        let change = change.replace("END", end);
        space.exec(&change.split(' ').collect::<Vec<_>>());
        node.check(&pod, &network, &result).fails(104, needle);
        node.del(&network).ok();
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn a_result_that_differs_is_noticed() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    let result = node.add(&pod, &network).ok();
    for (pointer, value, needle) in [
        ("/interfaces/1/name", json!("eth9"), "no interface eth0"),
        (
            "/interfaces/1/sandbox",
            json!("/run/netns/x"),
            "no interface eth0",
        ),
        (
            "/interfaces/1/mac",
            json!("02:00:00:00:00:09"),
            "02:00:00:00:00:09",
        ),
        ("/interfaces/0/name", json!("veth0"), "of the host"),
        (
            "/ips/0/address",
            json!("10.77.0.9/24"),
            "lost the address 10.77.0.9/24",
        ),
        ("/ips", json!([]), "no address of eth0"),
        (
            "/routes/0/dst",
            json!("10.1.0.0/16"),
            "its route to 10.1.0.0/16",
        ),
    ] {
        let mut changed = result.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        node.check(&pod, &network, &changed).fails(104, needle);
    }
    node.check(&pod, &network, &Value::Null)
        .fails(7, "prevResult is missing");
    node.check(&pod, &network, &json!({"ips": 7}))
        .fails(7, "read prevResult");
    node.check(&pod, &network, &result).ok();
}

#[test]
fn a_daemon_that_differs_is_noticed() {
    let (mut node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    let result = node.add(&pod, &network).ok();
    node.daemon().change_attached(|attached| {
        attached[0].addresses.pop();
    });
    node.check(&pod, &network, &result)
        .fails(104, "the daemon serves it with 10.77.0.2/24, but");
    node.daemon().change_attached(Vec::clear);
    node.check(&pod, &network, &result)
        .fails(104, "the daemon does not serve it");
    node.daemon = None;
    node.check(&pod, &network, &result)
        .fails(11, "is sluiced running?");
}

#[test]
fn ipam_checks_its_own() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    let result = node.add(&pod, &network).ok();
    let reserved = node.file("ipam/pods/10.77.0.2");
    std::fs::remove_file(&reserved).unwrap();
    let reserved = node.file("ipam/pods/fd77::2");
    std::fs::remove_file(&reserved).unwrap();
    let error = node.check(&pod, &network, &result);
    assert!(
        error.stdout["msg"]
            .as_str()
            .unwrap()
            .contains("CHECK by IPAM plugin host-local")
    );
}
