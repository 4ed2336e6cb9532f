//! Bandwidth limits: from the runtime and the configuration to the daemon, and
//! to the pod's routes.

use serde_json::{Value, json};
use sluice_control::{AskedLimit, Attachment, Bandwidth, Limit, NetworkBandwidth};

use crate::node::Node;
use crate::space::Space;

/// As containerd 1.6 asks for `kubernetes.io/egress-bandwidth: 10M`.
fn limited(node: &Node) -> Value {
    let mut network = node.network();
    network["capabilities"] = json!({"bandwidth": true});
    network["runtimeConfig"] = json!({"bandwidth": {
        "IngressRate": 0, "IngressBurst": 0, "EgressRate": 10_000_000, "EgressBurst": u32::MAX,
    }});
    network
}

fn served(node: &Node) -> Attachment {
    node.daemon().attached().remove(0)
}

#[test]
fn the_daemon_gets_limits_and_the_pods_routes_carry_less() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = limited(&node);
    network["shaping"] = json!({"queueMillis": 10, "unshapedSubnets": ["10.77.0.9/24"]});
    node.add(&pod, &network).ok();
    let attached = served(&node);
    assert_eq!(
        attached.limits_in_words(),
        "egress 10 Mbit/s, burst 12.5 kB, queue 10 ms, not with 10.77.0.0/24"
    );
    let exact = Limit {
        rate: 10_000_000,
        burst: 100_000,
    };
    assert_eq!(attached.shaping.egress, Some(exact));
    // 2 ms at 10 Mbit/s. The interface takes more, should the limit be lifted.
    assert_eq!((attached.mtu, attached.uplink_mtu), (65_000, Some(1500)));
    assert_eq!(attached.frame_mtu(), 2500);
    assert_eq!(pod.link("eth0")["mtu"], 65_000);
    for (destination, mtu) in [
        ("10.77.0.9", 2500),
        ("fd77::9", 2500),
        ("192.0.2.1", 1500),
        ("2001:db8::1", 1500),
    ] {
        let route = pod.exec(&["ip", "route", "get", destination]);
        assert!(route.contains(&format!("mtu {mtu}")), "{route}");
    }
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn a_pod_without_limits_keeps_the_large_mtu_and_the_networks_settings() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network();
    network["shaping"] = json!({"queueMillis": 10});
    node.add(&pod, &network).ok();
    let attached = served(&node);
    assert_eq!(attached.limits_in_words(), "no limits");
    assert_eq!(attached.shaping.queue_millis, 10);
    assert_eq!(attached.frame_mtu(), 65_000);
    let route = pod.exec(&["ip", "route", "get", "10.77.0.9"]);
    assert!(route.contains("mtu 65000"), "{route}");
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn limits_of_a_bandwidth_plugin_behind_are_the_networks() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    node.daemon().change_facts(|facts| {
        facts.bandwidth = Some(NetworkBandwidth {
            network: "pods".into(),
            bandwidth: Bandwidth {
                ingress: Some(AskedLimit {
                    rate: 1_000_000,
                    burst: Some(16_000),
                }),
                egress: None,
            },
            ..NetworkBandwidth::default()
        });
    });
    let network = node.network();
    let result = node.add(&pod, &network).ok();
    let expected = "ingress 1 Mbit/s, burst 2 kB, queue 25 ms";
    assert_eq!(served(&node).limits_in_words(), expected);
    node.check(&pod, &network, &result).ok();
    node.del(&network).ok();
    // What a pod asks for does not lift them; what our own object says does.
    let mut network = limited(&node);
    let result = node.add(&pod, &network).ok();
    assert_eq!(served(&node).limits_in_words(), expected);
    node.check(&pod, &network, &result).ok();
    node.del(&network).ok();
    network["egressRate"] = 2_000_000.into();
    let result = node.add(&pod, &network).ok();
    assert_eq!(served(&node).shaping.ingress, None);
    node.check(&pod, &network, &result).ok();
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn check_takes_subnets_in_any_order() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = limited(&node);
    network["shaping"] = json!({"unshapedSubnets": ["10.0.0.0/8", "192.0.2.0/24"]});
    let result = node.add(&pod, &network).ok();
    network["shaping"] = json!({"unshapedSubnets": ["192.0.2.0/24", "10.0.0.0/8"]});
    node.check(&pod, &network, &result).ok();
    network["shaping"] = json!({"unshapedSubnets": ["192.0.2.0/24"]});
    node.check(&pod, &network, &result)
        .fails(104, "not with 192.0.2.0/24");
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn check_compares_with_the_daemon_but_for_what_an_operator_changed() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = limited(&node);
    let result = node.add(&pod, &network).ok();
    node.check(&pod, &network, &result).ok();
    // A runtime that says nothing of them means no other ones.
    node.check(&pod, &node.network(), &result).ok();
    let mut other = network.clone();
    other["runtimeConfig"]["bandwidth"]["EgressRate"] = 20_000_000.into();
    node.check(&pod, &other, &result)
        .fails(104, "but the configuration says: egress 20 Mbit/s");
    // So little apart that the words are the same.
    let mut other = network.clone();
    other["runtimeConfig"]["bandwidth"]["EgressRate"] = 10_010_000.into();
    node.check(&pod, &other, &result)
        .fails(104, "but the configuration says: egress 10010000 bit/s");
    let mut other = network.clone();
    other["shaping"] = json!({"ecn": false});
    node.check(&pod, &other, &result).fails(104, "no ECN");

    let limited = served(&node).shaping;
    node.daemon()
        .change_attached(|attached| attached[0].shaping.egress = None);
    node.check(&pod, &network, &result)
        .fails(104, "the daemon holds it to: no limits");
    node.daemon().change_attached(|attached| {
        attached[0].shaping = limited;
        attached[0].reshaped = true;
        attached[0].shaping.egress.as_mut().unwrap().rate = 5_000_000;
    });
    let answer = node.check(&pod, &network, &result);
    assert!(answer.stderr.contains("egress 5 Mbit/s"), "{answer:?}");
    assert!(answer.stderr.contains("set bandwidth"), "{answer:?}");
    answer.ok();
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}
