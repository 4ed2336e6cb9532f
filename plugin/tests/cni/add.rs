//! ADD: what is there afterwards, and that nothing is there after a failure.

use serde_json::{Value, json};
use sluice_control::ErrorCode;

use crate::daemon::GATEWAY_MAC;
use crate::node::{Node, VERSIONS};
use crate::space::Space;

const GATEWAY_MAC_TEXT: &str = "02:53:4c:55:49:43";

#[test]
fn a_dual_stack_pod_is_fully_configured() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    // As some runtimes leave a new namespace.
    for scope in ["all", "default"] {
        let key = format!("net.ipv6.conf.{scope}.disable_ipv6=1");
        pod.exec(&["sysctl", "-q", "-w", &key]);
    }
    let mut network = node.network();
    network["ipMasq"] = true.into();
    network["dns"] = json!({"nameservers": ["10.96.0.10"]});
    let result = node.add(&pod, &network).ok();

    let host_ifname = node.host.links().pop().unwrap();
    let (host_end, pod_end) = (node.host.link(&host_ifname), pod.link("eth0"));
    let pod_mac = pod_end["address"].as_str().unwrap();
    for end in [&host_end, &pod_end] {
        assert_eq!(end["mtu"], 65_000);
        assert_eq!(end["operstate"], "UP");
        assert_eq!(
            (&end["num_tx_queues"], &end["num_rx_queues"]),
            (&json!(1), &json!(1))
        );
    }
    assert_eq!(host_end["address"], GATEWAY_MAC_TEXT);
    assert!(pod_mac.starts_with("02:") && pod_mac != GATEWAY_MAC_TEXT);
    assert!(
        pod.link("lo")["flags"]
            .as_array()
            .unwrap()
            .contains(&json!("UP"))
    );

    assert_eq!(
        addresses(&pod, "eth0"),
        ["10.77.0.2/24 permanent", "fd77::2/64 permanent"]
    );
    assert_eq!(
        pod.routes(),
        [
            r#"default via 10.77.0.1 mtu 1500 ["onlink"]"#,
            r#"10.77.0.0/24 via 10.77.0.1 mtu 65000 ["onlink"]"#,
            r#"fd77::/64 via fd77::1 mtu 65000 ["onlink"]"#,
            r#"default via fd77::1 mtu 1500 ["onlink"]"#,
        ]
    );
    for (destination, mtu) in [
        ("10.77.0.9", 65_000),
        ("fd77::9", 65_000),
        ("192.0.2.1", 1500),
        ("2001:db8::1", 1500),
    ] {
        let route = pod.exec(&["ip", "route", "get", destination]);
        assert!(route.contains(&format!("mtu {mtu}")), "{route}");
    }
    assert_eq!(
        neighbours(&pod),
        [
            format!("10.77.0.1 {GATEWAY_MAC_TEXT} PERMANENT"),
            format!("fd77::1 {GATEWAY_MAC_TEXT} PERMANENT"),
        ]
    );
    for (key, value) in [
        ("disable_ipv6", "0"),
        ("accept_ra", "0"),
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
    ] {
        let key = format!("net/ipv6/conf/eth0/{key}");
        assert_eq!(pod.sysctl(&key), value, "{key}");
    }
    for (name, state) in pod.checksum_offloads("eth0") {
        match name.as_str() {
            "tx-checksum-sctp" => assert_eq!(state, "off"),
            "tx-checksum-ip-generic" => assert_eq!(state, "on"),
            _ => {}
        }
    }

    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": host_ifname, "mac": GATEWAY_MAC_TEXT},
                {"name": "eth0", "mac": pod_mac, "sandbox": pod.path()},
            ],
            "ips": [
                {"address": "10.77.0.2/24", "gateway": "10.77.0.1", "interface": 1},
                {"address": "fd77::2/64", "gateway": "fd77::1", "interface": 1},
            ],
            "routes": [
                {"dst": "10.77.0.0/24", "gw": "10.77.0.1"},
                {"dst": "fd77::/64", "gw": "fd77::1"},
                {"dst": "0.0.0.0/0", "gw": "10.77.0.1"},
                {"dst": "::/0", "gw": "fd77::1"},
            ],
            "dns": {"nameservers": ["10.96.0.10"]},
        })
    );
    assert_eq!(
        serde_json::to_value(node.daemon().attached()).unwrap(),
        json!([{
            "id": {"network": "pods", "container_id": "c1", "ifname": "eth0"},
            "host_ifname": host_ifname,
            "pod_mac": parse_mac(pod_mac),
            "addresses": [
                {"address": "10.77.0.2/24", "gateway": "10.77.0.1"},
                {"address": "fd77::2/64", "gateway": "fd77::1"},
            ],
            "mtu": 65_000,
            "ip_masq": true,
            "mappings": [],
            "snat": true,
            "masq_all": false,
            "uplink_mtu": 1500,
            "shaping": {"queue_millis": 25, "ecn": true},
            "reshaped": false,
            "gro": true,
        }])
    );
    assert_eq!(node.reserved(), ["10.77.0.2", "fd77::2"]);
}

#[test]
fn a_network_whose_pods_forward_can_do_without_merged_segments() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network();
    network["gro"] = false.into();
    node.add(&pod, &network).ok();
    assert!(!node.daemon().attached()[0].gro);
}

#[test]
fn an_ipv4_pod_gets_nothing_of_ipv6() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    node.add(&pod, &node.network_of(&["10.77.0.0/24"])).ok();
    assert_eq!(addresses(&pod, "eth0"), ["10.77.0.2/24 permanent"]);
    assert_eq!(pod.routes().len(), 2);
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_ra"), "0");
}

#[test]
fn an_ipv6_pod_gets_nothing_of_ipv4() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    node.add(&pod, &node.network_of(&["fd77::/64"])).ok();
    assert_eq!(addresses(&pod, "eth0"), ["fd77::2/64 permanent"]);
    assert_eq!(
        pod.routes(),
        [
            r#"fd77::/64 via fd77::1 mtu 65000 ["onlink"]"#,
            r#"default via fd77::1 mtu 1500 ["onlink"]"#,
        ]
    );
}

#[test]
fn without_a_gateway_from_ipam_link_local_ones_serve() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network_with(json!({
        "type": "static",
        "addresses": [{"address": "10.77.0.11/32"}, {"address": "fd77::11/128"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.96.0.0/12", "gw": "10.77.0.254"}],
    }));
    node.add(&pod, &network).ok();
    assert_eq!(
        pod.routes(),
        [
            r#"default via 169.254.1.1 mtu 1500 ["onlink"]"#,
            r#"10.96.0.0/12 via 10.77.0.254 mtu 1500 ["onlink"]"#,
            r#"default via fe80::1 mtu 1500 ["onlink"]"#,
        ]
    );
    assert_eq!(
        neighbours(&pod),
        ["10.77.0.254", "169.254.1.1", "fe80::1"]
            .map(|gateway| format!("{gateway} {GATEWAY_MAC_TEXT} PERMANENT"))
    );
}

#[test]
fn mtus_and_offloads_follow_the_node_and_the_configuration() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    node.daemon().change_facts(|facts| {
        facts.max_mtu = 3498;
        facts.checksum_offload = false;
    });
    let mut network = node.network_of(&["10.77.0.0/24"]);
    node.add(&pod, &network).ok();
    assert_eq!(pod.link("eth0")["mtu"], 3498);
    for (name, state) in pod.checksum_offloads("eth0") {
        assert!(state.starts_with("off"), "{name} is {state}");
    }
    node.del(&network).ok();

    // One MTU everywhere.
    network["mtu"] = 1400.into();
    network["localMtu"] = 1400.into();
    node.add(&pod, &network).ok();
    assert_eq!(pod.link("eth0")["mtu"], 1400);
    assert!(pod.routes().iter().all(|route| route.contains("mtu 1400")));
}

#[test]
fn each_version_gets_its_own_shape() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    for version in VERSIONS {
        let mut network = node.network();
        network["cniVersion"] = version.into();
        let result = node.add(&pod, &network).ok();
        assert_eq!(result["cniVersion"], version);
        let families = result["ips"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| &ip["version"]);
        let expected = match version {
            "1.0.0" | "1.1.0" => [Value::Null, Value::Null],
            _ => [json!("4"), json!("6")],
        };
        assert!(families.eq(expected.iter()), "{result}");
        let mtus = |key: &str| -> Vec<Value> {
            let items = result[key].as_array().unwrap().iter();
            items.map(|item| item["mtu"].clone()).collect()
        };
        let (interfaces, routes) = (mtus("interfaces"), mtus("routes"));
        if version == "1.1.0" {
            assert_eq!(interfaces, [65_000, 65_000]);
            assert_eq!(routes, [65_000, 65_000, 1500, 1500]);
        } else {
            assert!(
                interfaces.iter().chain(&routes).all(Value::is_null),
                "{result}"
            );
        }
        node.del(&network).ok();
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn a_second_interface_leaves_the_default_route_alone() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network_of(&["10.77.0.0/24"]);
    node.add(&pod, &network).ok();
    let mut second = node.network_of(&["10.78.0.0/24"]);
    second["name"] = "storage".into();
    let env = [("CNI_NETNS", pod.path()), ("CNI_IFNAME", "net1".into())];
    let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
    node.sluice("ADD", &env, &second).ok();

    assert_eq!(pod.links(), ["lo", "eth0", "net1"]);
    let default = pod.ip(&["route", "show", "default"]);
    assert_eq!((default.len(), &default[0]["dev"]), (1, &json!("eth0")));
    assert_eq!(node.daemon().attached().len(), 2);
}

#[test]
fn is_default_gateway_is_for_any_interface() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network_of(&["10.77.0.0/24"]);
    network["isDefaultGateway"] = true.into();
    let env = [("CNI_NETNS", pod.path()), ("CNI_IFNAME", "net1".into())];
    let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
    node.sluice("ADD", &env, &network).ok();
    let default = pod.ip(&["route", "show", "default"]);
    assert_eq!(default[0]["dev"], "net1");
}

#[test]
fn two_interfaces_of_a_pod_in_one_subnet() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    let env = [("CNI_NETNS", pod.path()), ("CNI_IFNAME", "net1".into())];
    let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
    let answer = node.sluice("ADD", &env, &network);
    for stays in ["10.77.0.0/24", "fd77::/64"] {
        let line = format!("a route to {stays} already");
        assert!(answer.stderr.contains(&line), "{answer:?}");
    }
    answer.ok();
    assert_eq!(
        addresses(&pod, "net1"),
        ["10.77.0.3/24 permanent", "fd77::3/64 permanent"]
    );
    let of_eth0 = pod.ip(&["-6", "route", "show", "fd77::/64"]);
    assert_eq!((of_eth0.len(), &of_eth0[0]["dev"]), (1, &json!("eth0")));
}

#[test]
fn keys_of_other_plugins_are_moot_with_a_line_or_refused() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network_of(&["10.77.0.0/24"]);
    network["bridge"] = "cni0".into();
    network["isGateway"] = true.into();
    network["cni.dev/example"] = 1.into();
    let answer = node.add(&pod, &network);
    for line in ["bridge has no effect: ", "isGateway has no effect: "] {
        assert!(answer.stderr.contains(line), "{answer:?}");
    }
    answer.ok();
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
    network["isGatway"] = true.into();
    node.add(&pod, &network).fails(7, "did you mean isGateway?");
    node.assert_clean(Some(&pod));
}

#[test]
fn results_of_earlier_plugins_are_kept() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network_of(&["10.77.0.0/24"]);
    network["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net0", "sandbox": pod.path()}],
        "ips": [{"address": "10.1.0.2/24", "interface": 0}],
    });
    let result = node.add(&pod, &network).ok();
    assert_eq!(result["interfaces"][0]["name"], "net0");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][0]["interface"], 0);
    assert_eq!(result["ips"][1]["interface"], 2);
}

#[test]
fn differing_settings_are_named_but_no_error() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network();
    network["dataplane"]["maxPorts"] = 12.into();
    let answer = node.add(&pod, &network);
    assert!(
        answer.stderr.contains("dataplane.maxPorts is 12"),
        "{answer:?}"
    );
    assert!(answer.stderr.contains("runs with 256"), "{answer:?}");
    answer.ok();
}

#[test]
fn a_bad_configuration_leaves_no_trace() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    for (key, value, code, needle) in [
        ("cniVersion", json!("9.0.0"), 1, "9.0.0"),
        ("name", json!("a/b"), 7, "a/b"),
        ("localMTU", json!(9000), 7, "localMTU"),
        ("mtu", json!(1279), 7, "1280"),
        ("localMtu", json!(65_001), 7, "65000"),
        ("mtu", json!("1500"), 7, "invalid type"),
        ("dataplane", json!({"maxPorts": 0}), 7, "maxPorts"),
        ("ipam", json!({}), 7, "ipam.type"),
        ("ipam", json!({"type": "../../bin/sh"}), 7, "plain name"),
        ("ipam", json!({"type": "nosuch"}), 102, "CNI_PATH"),
    ] {
        let mut network = node.network();
        network[key] = value;
        node.add(&pod, &network).fails(code, needle);
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn a_bad_environment_leaves_no_trace() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.network();
    let (pod_path, host_path) = (pod.path(), node.host.path());
    for (name, value, needle) in [
        ("CNI_CONTAINERID", "", "CNI_CONTAINERID not set"),
        ("CNI_CONTAINERID", "../c1", "CNI_CONTAINERID"),
        ("CNI_IFNAME", "", "CNI_IFNAME not set"),
        ("CNI_IFNAME", "eth0/x", "CNI_IFNAME"),
        ("CNI_NETNS", "", "CNI_NETNS not set"),
        ("CNI_NETNS", "/run/netns/sluice-plugin-none", "CNI_NETNS"),
        ("CNI_NETNS", "/etc/hostname", "not a network namespace"),
        ("CNI_NETNS", &host_path, "the host's own"),
        ("CNI_PATH", "", "CNI_PATH"),
    ] {
        let env = [("CNI_NETNS", pod_path.as_str()), (name, value)];
        node.sluice("ADD", &env, &network).fails(4, needle);
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn an_interface_that_exists_is_left_alone() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    pod.exec(&[
        "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x0",
    ]);
    let before = pod.link("eth0");
    node.add(&pod, &node.network()).fails(103, "left alone");
    assert_eq!(pod.link("eth0"), before);
    node.assert_clean(None);
}

#[test]
fn a_repeated_add_is_refused_and_the_first_pod_keeps_its_address() {
    let (node, pod, other) = (Node::new(), Space::new("pod"), Space::new("pod"));
    let network = node.network();
    node.add(&pod, &network).ok();
    node.add(&pod, &network).fails(103, "eth0");
    node.add(&other, &network).fails(103, "attached already");
    assert_eq!(node.reserved(), ["10.77.0.2", "fd77::2"]);
    assert_eq!(node.daemon().attached().len(), 1);
    assert_eq!(pod.links(), ["lo", "eth0"]);
    assert_eq!(other.links(), ["lo"]);
}

#[test]
fn a_daemon_that_is_down_means_try_again() {
    let (mut node, pod) = (Node::new(), Space::new("pod"));
    node.daemon = None;
    node.add(&pod, &node.network())
        .fails(11, "is sluiced running?");
    node.assert_clean(Some(&pod));
}

#[test]
fn a_refusal_by_the_daemon_undoes_everything() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    for (refusal, code) in [
        (ErrorCode::Busy, 11),
        (ErrorCode::Exhausted, 11),
        (ErrorCode::Invalid, 7),
        (ErrorCode::Conflict, 103),
        (ErrorCode::Unsupported, 101),
        (ErrorCode::Failed, 101),
    ] {
        node.daemon().refuse_attach(Some(refusal));
        let error = node
            .add(&pod, &node.network())
            .fails(code, "the daemon refused");
        assert_eq!(error.get("details"), None, "{error}");
        node.assert_clean(Some(&pod));
    }
}

#[test]
fn an_attach_without_an_answer_is_taken_back() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    node.daemon().lose_attach();
    node.add(&pod, &node.network())
        .fails(11, "closed without an answer");
    node.assert_clean(Some(&pod));
}

#[test]
fn exhausted_ranges_pass_on_what_ipam_said() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    // The second range has room for the gateway and one address; the first
    // range's address must be given back when that one is taken.
    let network = node.network_of(&["10.77.0.0/24", "fd77::/126"]);
    let others = [Space::new("pod"), Space::new("pod")];
    for (other, id) in others.iter().zip(["o1", "o2"]) {
        let env = [("CNI_NETNS", other.path()), ("CNI_CONTAINERID", id.into())];
        let env = env.each_ref().map(|(key, value)| (*key, value.as_str()));
        node.sluice("ADD", &env, &network).ok();
    }
    let reserved = node.reserved();
    let error = node
        .add(&pod, &network)
        .fails(999, "ADD by IPAM plugin host-local");
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("no IP addresses available")
    );
    assert_eq!(node.reserved(), reserved);
    assert_eq!(pod.links(), ["lo"]);
    assert_eq!(node.daemon().attached().len(), 2);
}

#[test]
fn unusable_answers_of_ipam_are_given_back() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let log = node.file("log");
    for (answer, code, needle) in [
        (json!({"ips": []}), 102, "gave no address"),
        (json!({"ips": [{"address": "nonsense"}]}), 102, "decode"),
        (
            json!({"ips": [{"address": "224.0.0.1/24"}]}),
            102,
            "unicast",
        ),
        // The kernel finds this one out, when the veth is there.
        (
            json!({
                "ips": [{"address": "10.77.0.11/24"}],
                "routes": [{"dst": "10.9.0.0/16", "gw": "10.77.0.11"}],
            }),
            100,
            "Nexthop has invalid gateway",
        ),
    ] {
        let network = node.stub_ipam(&format!(
            "echo $CNI_COMMAND $CNI_IFNAME >> {}; [ $CNI_COMMAND = DEL ] || echo '{answer}'",
            log.display()
        ));
        node.add(&pod, &network).fails(code, needle);
        node.assert_clean(Some(&pod));
        let calls = std::fs::read_to_string(&log).unwrap();
        assert_eq!(calls, "ADD eth0\nDEL eth0\n");
        std::fs::remove_file(&log).unwrap();
    }
}

#[test]
fn what_cannot_be_undone_is_a_detail() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.stub_ipam(
        "if [ $CNI_COMMAND = ADD ]; then
            echo '{\"ips\": [{\"address\": \"10.77.0.11/24\"}]}'
        else
            echo '{\"code\": 5, \"msg\": \"disk full\"}'; exit 1
        fi",
    );
    node.daemon().refuse_attach(Some(ErrorCode::Failed));
    let error = node.add(&pod, &network).fails(101, "the daemon refused");
    let details = error["details"].as_str().unwrap();
    assert!(
        details.contains("DEL by IPAM plugin stub: disk full"),
        "{details}"
    );
    node.assert_clean(Some(&pod));
}

/// "address/length state" of each address that is not link-local.
#[track_caller]
fn addresses(pod: &Space, ifname: &str) -> Vec<String> {
    let shown = pod.ip(&["address", "show", ifname]);
    let infos = shown[0]["addr_info"].as_array().unwrap();
    let global = infos.iter().filter(|info| info["scope"] == "global");
    global
        .map(|info| {
            assert_eq!(info["noprefixroute"], true, "{info}");
            assert_eq!(info["tentative"], Value::Null, "{info}");
            let (local, length) = (info["local"].as_str().unwrap(), &info["prefixlen"]);
            assert_eq!(info["valid_life_time"], u32::MAX);
            format!("{local}/{length} permanent")
        })
        .collect()
}

fn neighbours(pod: &Space) -> Vec<String> {
    let mut all: Vec<_> = ["-4", "-6"]
        .iter()
        .flat_map(|family| {
            pod.ip(&[
                family,
                "neighbour",
                "show",
                "dev",
                "eth0",
                "nud",
                "permanent",
            ])
        })
        .map(|n| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            format!(
                "{} {} {}",
                text(&n["dst"]),
                text(&n["lladdr"]),
                text(&n["state"][0])
            )
        })
        .collect();
    all.sort();
    all
}

fn parse_mac(text: &str) -> Vec<u8> {
    let bytes = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).unwrap());
    let mac: Vec<_> = bytes.collect();
    assert_ne!(mac, GATEWAY_MAC);
    mac
}
