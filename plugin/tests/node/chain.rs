//! Reference plugins chained behind ours, as a runtime runs a list.

use std::fs;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::harness::flows::{Echo, check_tcp, ping};
use crate::harness::{Container, List, NODE4, Node, OUT4, OUT6, Options, Pod, Snapshot, all_ok};

/// What the runtime says to the plugins of [`everything`].
fn arguments() -> [(&'static str, Value); 2] {
    let mapping = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    // Bits per second, and bits.
    let limits = json!({
        "ingressRate": 1_000_000, "ingressBurst": 1_000_000,
        "egressRate": 1_000_000, "egressBurst": 1_000_000,
    });
    [("portMappings", json!([mapping])), ("bandwidth", limits)]
}

/// All reference plugins that belong behind one that makes the interface.
fn everything(node: &Node, version: &str) -> List {
    let mut plugins = vec![
        json!({
            "type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "promisc": true,
            "dataDir": node.dir().join("tuning"),
        }),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "firewall", "backend": "iptables"}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}}),
    ];
    if version < "0.4.0" {
        plugins.retain(|plugin| plugin["type"] != "firewall");
    }
    node.chain(&plugins).with("cniVersion", version)
}

/// portmap looks for the rules of one family among those of the other, behind
/// `bridge` too, and so fails where iptables and ip6tables are both there.
#[track_caller]
fn check_all_but_portmap(pod: &Pod) {
    let mut answers = pod.check();
    let portmap = answers.pop().unwrap();
    assert_eq!(answers.len(), 4);
    all_ok(answers);
    if !portmap.success {
        portmap.fails(999, &["could not check ipv6 dnat"]);
    }
}

/// The first run leaves what these plugins make once and keep: their chains,
/// and jumps to them.
#[track_caller]
fn leave_lasting_chains(node: &Node) {
    let pod = node.add_by(&everything(node, "1.0.0"), "first", &arguments());
    let addresses = pod.addresses();
    pod.del();
    let rules = node.space().exec("nft list ruleset");
    assert!(
        rules.contains("CNI-HOSTPORT-DNAT") && rules.contains("CNI-FORWARD"),
        "{rules}"
    );
    assert!(!rules.contains("CNI-DN-"), "{rules}");
    assert_not_in(&rules, &addresses);
}

#[track_caller]
fn assert_not_in(rules: &str, addresses: &[IpAddr]) {
    for address in addresses {
        let named = rules.contains(&format!("{address} "));
        assert!(!named, "{address}: {rules}");
    }
}

#[test]
fn the_whole_chain_in_every_version() {
    let node = Node::start(&Options::default());
    leave_lasting_chains(&node);
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let before = Snapshot::take(&node);
        let list = everything(&node, version);
        assert_eq!(list.without_its_version(), Vec::<&str>::new());
        let pod = node.add_by(&list, "pod", &arguments());
        let result = pod.result();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][0]["name"], pod.host_ifname());
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        for ip in result["ips"].as_array().unwrap() {
            assert_eq!(ip["interface"], 1);
        }
        assert_eq!(pod.sysctl("net/core/somaxconn"), "500");
        assert!(pod.exec("ip link show eth0").contains("PROMISC"));
        if version >= "0.4.0" {
            check_all_but_portmap(&pod);
        }
        ping(&pod, OUT4);
        ping(&pod, OUT6);
        ping(node.space(), pod.v4());

        for _ in 0..2 {
            pod.detach();
        }
        assert_eq!(pod.links(), ["lo"]);
        before.assert_unchanged(&node);
        assert_eq!(fs::read_dir(node.dir().join("tuning")).unwrap().count(), 0);
    }
    let latest = everything(&node, "1.1.0");
    assert!(!latest.without_its_version().contains(&"sluice"));
    node.finish();
}

/// containerd and CRI-O run it on every pod, before all others.
#[test]
fn beside_loopback() {
    let node = Node::start(&Options::default());
    let loopback = json!({
        "cniVersion": "0.3.1", "name": "cni-loopback", "plugins": [{"type": "loopback"}],
    });
    let loopback = List::new(loopback, node.runtime());
    let space = node.site.space("pod");
    let lo = Container::new(&space, "pod", "lo");
    let eth0 = Container::new(&space, "pod", "eth0");
    let result = loopback.add(&lo).ok();
    let pod = Pod::join(space, eth0, node.chain(&[]));
    ping(&pod, pod.v4());
    ping(&pod, "127.0.0.1".parse().unwrap());
    ping(node.space(), pod.v6());
    all_ok(loopback.del(&lo, Some(&result)));
    pod.del();
    node.finish();
}

#[test]
fn bandwidth_limits_nothing_and_leaves_nothing() {
    let node = Node::start(&Options::default());
    let peer = node.add("peer");
    let before = Snapshot::take(&node);
    let plugin = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let pod = node.add_by(&node.chain(&[plugin]), "pod", &arguments());
    all_ok(pod.check());
    for (client, server) in [(&*peer, &pod), (&*pod, &peer)] {
        for address in server.addresses() {
            check_tcp(client, Echo::tcp(server, address).address);
        }
    }
    let ifb = pod.result()["interfaces"][2]["name"].as_str().unwrap();
    for interface in [pod.host_ifname(), ifb] {
        let shown = node
            .space()
            .json(&format!("tc -s -j qdisc show dev {interface}"));
        let tbf = shown.iter().find(|qdisc| qdisc["kind"] == "tbf").unwrap();
        // What an interface itself has to say (MLD, router solicitations) passes
        // it; the flows had half a megabyte each.
        assert!(
            tbf["bytes"].as_u64().unwrap() < 10_000,
            "{interface}: {tbf}"
        );
    }
    pod.del();
    before.assert_unchanged(&node);
    node.finish();
}

#[test]
fn firewall_opens_a_forward_chain_that_drops() {
    let node = Node::start(&Options::default());
    for iptables in ["iptables", "ip6tables"] {
        node.space().exec(&format!("{iptables} -P FORWARD DROP"));
    }
    let plain = node.add("plain");
    let firewall = json!({"type": "firewall", "backend": "iptables"});
    let pod = node.add_by(&node.chain(&[firewall]), "pod", &[]);
    all_ok(pod.check());
    for outside in [OUT4, OUT6] {
        let shut = plain.output(&format!("ping -n -c 1 -W 1 {outside}"));
        assert!(!shut.status.success(), "{shut:?}");
        ping(&pod, outside);
        check_tcp(&pod, Echo::tcp(node.outside(), outside).address);
        // These two meet no FORWARD chain.
        ping(&plain, pod.address_like(outside));
    }
    let addresses = pod.addresses();
    pod.del();
    let rules = node.space().exec("nft list ruleset");
    assert_not_in(&rules, &addresses);
    plain.del();
    node.finish();
}

/// The daemon was told what ADD made: a plugin that changes it afterwards
/// breaks it, and CHECK says so.
#[test]
fn what_tuning_changes_on_the_interface_is_noticed() {
    let node = Node::start(&Options::default());
    for (key, value, needle) in [
        ("mac", json!("02:00:00:00:00:77"), "MAC address"),
        ("mtu", json!(1400), "the MTU 1400"),
    ] {
        let tuning = json!({"type": "tuning", key: value, "dataDir": node.dir().join("tuning")});
        let pod = node.add_by(&node.chain(&[tuning]), key, &[]);
        let answers = pod.check();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers[0].fails(104, &["eth0", needle]);
        if key == "mac" {
            let output = pod.output(&format!("ping -n -c 1 -W 1 {}", pod.gateway_like(NODE4)));
            assert!(!output.status.success(), "{output:?}");
            assert_ne!(node.row(&pod).counters.dropped("spoofed-mac"), 0);
        }
        pod.del();
    }
    node.finish();
}

#[test]
fn what_a_failed_list_made_goes_with_del() {
    let node = Node::start(&Options::default());
    node.add("first").del();
    let before = Snapshot::take(&node);
    let space = node.site.space("pod");
    let container = Container::new(&space, "pod", "eth0");

    let tuning = json!({"type": "tuning", "sysctl": {"net.core.nonsense": "1"}});
    for plugin in [tuning, json!({"type": "sbr"})] {
        let behind = node.chain(&[plugin]);
        let answer = behind.add(&container);
        assert!(!answer.success, "{answer:?}");
        all_ok(behind.del(&container, None));
        assert_eq!(space.links(), ["lo"]);
        before.assert_unchanged(&node);
    }

    // Two plugins that make the same interface: the first one's stays.
    let ipam = json!({
        "type": "host-local", "ranges": [[{"subnet": "10.88.0.0/24"}]],
        "dataDir": node.dir().join("ptp"),
    });
    let mut behind_ptp = node.chain(&[]);
    let plugins = behind_ptp.configuration["plugins"].as_array_mut().unwrap();
    plugins.insert(0, json!({"type": "ptp", "ipam": ipam}));
    behind_ptp
        .add(&container)
        .fails(103, &["eth0", "left alone"]);
    assert_eq!(space.links(), ["lo", "eth0"]);
    all_ok(behind_ptp.del(&container, None));
    assert_eq!(space.links(), ["lo"]);
    before.assert_unchanged(&node);
    node.finish();
}

/// As Multus does it.
#[test]
fn a_pod_on_two_networks() {
    let node = Node::start(&Options::default());
    let second = node.network("second", &["10.78.0.0/24", "fd78::/64"]);
    let peers = [node.add("peer"), node.add_to(&second, "second-peer")];
    let pod = node.add("pod");
    let second = List::new(second.conflist(), node.runtime());
    let net1 = Container::new(&pod, "pod", "net1");
    let result = second.add(&net1).ok();
    assert_eq!(pod.links(), ["lo", "eth0", "net1"]);
    for family in ["-4", "-6"] {
        let defaults = pod.json(&format!("ip -j {family} route show default"));
        assert_eq!(defaults.len(), 1, "{defaults:?}");
        assert_eq!(defaults[0]["dev"], "eth0");
    }
    let through = |peer: &Pod| {
        for address in peer.addresses() {
            let echo = Echo::tcp(peer, address);
            check_tcp(&pod, echo.address);
            assert_eq!(echo.peers().len(), 1);
        }
    };
    peers.iter().for_each(through);
    let ips = result["ips"].as_array().unwrap().iter();
    for ip in ips {
        let (address, _) = ip["address"].as_str().unwrap().split_once('/').unwrap();
        ping(&peers[1], address.parse().unwrap());
    }
    all_ok(second.check(&net1, &result));
    all_ok(pod.check());
    all_ok(second.del(&net1, Some(&result)));
    assert_eq!(pod.links(), ["lo", "eth0"]);
    through(&peers[0]);
    assert_eq!(node.ports().len(), 4);
    node.finish();
}

/// A plugin of version 1.1.0 that notes what it is asked, and refuses what the
/// file `refuse` names.
const NOTARY: &str = r#"#!/bin/sh
request=$(cat)
echo "$request" | jq -c --arg verb "$CNI_COMMAND" '. + {verb: $verb}' >>"${0%/*}/notes"
if [ "$(cat "${0%/*}/refuse")" = "$CNI_COMMAND" ]; then
    echo '{"cniVersion": "1.1.0", "code": 999, "msg": "refused"}'
    exit 1
fi
[ "$CNI_COMMAND" != ADD ] || echo "$request" | jq -c .prevResult
"#;

#[test]
fn gc_and_status_of_a_list() {
    let node = Node::start(&Options::default());
    node.script("notary", NOTARY);
    let folder = node.plugins();
    let refuse = |verb: &str| fs::write(folder.join("refuse"), verb).unwrap();
    refuse("");

    let list = node.chain(&[json!({"type": "notary"})]);
    let list = list.with("cniVersion", "1.1.0");
    let [a, b] = ["a", "b"].map(|name| node.add_by(&list, name, &[]));
    all_ok(list.status());
    let unchecked = list.clone().with("disableCheck", true);
    assert!(unchecked.check(a.container(), a.result()).is_empty());

    // One plugin's failure keeps no other from its turn.
    let mut reversed = list.clone();
    reversed.configuration["plugins"]
        .as_array_mut()
        .unwrap()
        .reverse();
    refuse("GC");
    let answers = reversed.gc(&[a.container()]);
    answers[0].fails(999, &["refused"]);
    assert!(answers[1].success, "{answers:?}");
    assert_eq!(b.links(), ["lo"]);
    ping(node.space(), a.v4());

    let notes = fs::read_to_string(folder.join("notes")).unwrap();
    let notes: Vec<Value> = notes
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let verbs: Vec<_> = notes
        .iter()
        .map(|note| note["verb"].as_str().unwrap())
        .collect();
    assert_eq!(verbs, ["ADD", "ADD", "STATUS", "GC"]);
    assert_eq!(notes[0]["prevResult"], *a.result());
    assert_eq!(notes[3]["cni.dev/valid-attachments"][0]["containerID"], "a");

    refuse("STATUS");
    let answers = list.status();
    assert!(answers[0].success, "{answers:?}");
    answers[1].fails(999, &["refused"]);
    for pod in [a, b] {
        pod.del();
    }
    node.finish();
}
