//! Routes of an IPAM plugin of version 1.1.0: more than a destination.

use serde_json::{Value, json};

use crate::node::Node;
use crate::space::Space;

/// What the plugin answers whatever it is asked.
fn answer() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "ips": [
            {"address": "10.77.0.11/24", "gateway": "10.77.0.1"},
            {"address": "fd77::11/64", "gateway": "fd77::1"},
        ],
        "routes": [
            {"dst": "10.96.0.0/12", "mtu": 9000, "advmss": 1200, "priority": 50},
            {"dst": "10.96.0.0/12", "priority": 60, "scope": 200},
            {"dst": "0.0.0.0/0", "table": 4000},
            {"dst": "fd96::/64", "table": 100, "priority": 7, "advmss": 1300},
        ],
    })
}

fn of<'a>(routes: &'a [Value], key: &str, value: &str) -> Vec<&'a Value> {
    routes.iter().filter(|route| route[key] == value).collect()
}

#[test]
fn what_ipam_says_of_a_route_is_in_the_kernel_and_in_the_result() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.stub_ipam(&format!("echo '{}'", answer()));
    network["cniVersion"] = "1.1.0".into();
    let result = node.add(&pod, &network).ok();
    let routes = result["routes"].as_array().unwrap();
    for (route, expected) in routes.iter().zip([
        json!({"dst": "10.96.0.0/12", "gw": "10.77.0.1", "mtu": 9000, "advmss": 1200, "priority": 50}),
        json!({"dst": "10.96.0.0/12", "gw": "10.77.0.1", "mtu": 1500, "priority": 60, "scope": 200}),
        json!({"dst": "0.0.0.0/0", "gw": "10.77.0.1", "mtu": 1500, "table": 4000}),
        json!({"dst": "fd96::/64", "gw": "fd77::1", "mtu": 1500, "table": 100, "priority": 7,
               "advmss": 1300}),
        json!({"dst": "10.77.0.0/24", "gw": "10.77.0.1", "mtu": 65_000}),
        json!({"dst": "fd77::/64", "gw": "fd77::1", "mtu": 65_000}),
        json!({"dst": "0.0.0.0/0", "gw": "10.77.0.1", "mtu": 1500}),
        json!({"dst": "::/0", "gw": "fd77::1", "mtu": 1500}),
    ]) {
        assert_eq!(*route, expected);
    }
    assert_eq!(routes.len(), 8);

    let main = pod.ip(&["route"]);
    let services = of(&main, "dst", "10.96.0.0/12");
    assert_eq!(services.len(), 2, "{main:?}");
    assert_eq!(services[0]["metric"], 50);
    assert_eq!(
        services[0]["metrics"][0],
        json!({"mtu": 9000, "advmss": 1200})
    );
    assert_eq!(
        (&services[1]["metric"], &services[1]["scope"]),
        (&json!(60), &json!("site"))
    );
    let other = pod.ip(&["route", "show", "table", "4000"]);
    assert_eq!(other[0]["dst"], "default");
    let other = pod.ip(&["-6", "route", "show", "table", "100"]);
    assert_eq!(
        (&other[0]["dst"], &other[0]["metric"]),
        (&json!("fd96::/64"), &json!(7))
    );

    node.check(&pod, &network, &result).ok();
    for (change, back, needle) in [
        (
            "route del 10.96.0.0/12 metric 50",
            "route add 10.96.0.0/12 via 10.77.0.1 dev eth0 onlink metric 50 mtu 9000 advmss 1200",
            "route to 10.96.0.0/12",
        ),
        (
            "route change 10.96.0.0/12 via 10.77.0.1 dev eth0 onlink metric 50 mtu 9000",
            "route change 10.96.0.0/12 via 10.77.0.1 dev eth0 onlink metric 50 mtu 9000 advmss 1200",
            "route to 10.96.0.0/12",
        ),
        (
            "route del default table 4000",
            "route add default via 10.77.0.1 dev eth0 onlink table 4000 mtu 1500",
            "route to 0.0.0.0/0",
        ),
    ] {
        let ip = |text: &str| {
            let words: Vec<&str> = ["ip"].into_iter().chain(text.split(' ')).collect();
            pod.exec(&words)
        };
        ip(change);
        node.check(&pod, &network, &result).fails(104, needle);
        ip(back);
        node.check(&pod, &network, &result).ok();
    }
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

/// They are honoured, but no result could say so; nor that a route is in
/// another table.
#[test]
fn results_before_1_1_0_name_destinations_only() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.stub_ipam(&format!("echo '{}'", answer()));
    let result = node.add(&pod, &network).ok();
    let routes = result["routes"].as_array().unwrap();
    assert_eq!(of(routes, "dst", "0.0.0.0/0").len(), 1);
    assert_eq!(of(routes, "dst", "fd96::/64").len(), 0);
    for route in routes {
        let keys: Vec<&String> = route.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["dst", "gw"]);
    }
    assert_eq!(pod.ip(&["route", "show", "10.96.0.0/12"]).len(), 2);
    node.check(&pod, &network, &result).ok();
}

#[test]
fn nothing_is_on_the_pods_link() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut answer = answer();
    answer["routes"][0]["scope"] = 253.into();
    let network = node.stub_ipam(&format!("echo '{answer}'"));
    node.add(&pod, &network)
        .fails(102, "through its gateway; remove the route's scope");
    node.assert_clean(Some(&pod));
}
