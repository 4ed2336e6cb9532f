//! Limits: what the runtime asks for, what an operator sees and changes, and
//! what comes back after a daemon's end.

use std::fs;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::harness::flows::{Echo, check_tcp};
use crate::harness::{List, NODE4, NODE6, Node, Options, Pod, Snapshot, all_ok};

/// As containerd asks for `kubernetes.io/ingress-bandwidth: 10M`.
fn ten_megabits() -> [(&'static str, Value); 1] {
    let limits = json!({
        "IngressRate": 10_000_000, "IngressBurst": u32::MAX, "EgressRate": 0, "EgressBurst": 0,
    });
    [("bandwidth", limits)]
}

fn limiting(node: &Node) -> List {
    let mut list = node.chain(&[]);
    list.configuration["plugins"][0]["capabilities"] = json!({"bandwidth": true});
    list
}

/// Runs `sluiced` against the node's daemon and returns what it says on stdout.
#[track_caller]
fn sluiced(node: &Node, words: &str) -> String {
    let output = node.sluiced(&format!("{words} --run-dir {}", node.run_dir().display()));
    assert!(output.status.success(), "{words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same, refused; returns what it says on stderr.
#[track_caller]
fn refused(node: &Node, words: &str) -> String {
    let output = node.sluiced(&format!("{words} --run-dir {}", node.run_dir().display()));
    assert_eq!(output.status.code(), Some(1), "{words}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[track_caller]
fn assert_shown(node: &Node, lines: &[&str]) {
    let shown = sluiced(node, "show ports");
    for line in lines {
        assert!(shown.contains(line), "{shown}");
    }
}

#[test]
fn limits_are_shown_changed_and_outlive_the_daemon() {
    let mut node = Node::start(&Options::default());
    let peer = node.add("peer");
    let before = Snapshot::take(&node);
    let pod = node.add_by(&limiting(&node), "pod1", &ten_megabits());
    let ingress = "ingress 10 Mbit/s, burst 12.5 kB";
    assert!(
        node.log().contains(&format!("{ingress}, queue 25 ms")),
        "{}",
        node.log()
    );
    assert_shown(&node, &[ingress, "queue 25 ms"]);
    all_ok(pod.check());

    let said = sluiced(&node, "set bandwidth pod1 --egress 20M");
    let egress = "egress 20 Mbit/s, burst 25 kB";
    assert!(
        said.contains(&format!("{ingress}, {egress}, queue 25 ms")),
        "{said}"
    );
    all_ok(pod.check());
    node.kill();
    node.restart();
    assert_shown(&node, &[ingress, egress, "queue 25 ms"]);
    // Of the limited pod, and not of the other one.
    let limits = format!("limits={ingress}, {egress}, queue 25 ms");
    let log = node.log();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("taken back id="))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    assert!(
        told[0].contains("container pod1") && told[0].contains(&limits),
        "{log}"
    );
    all_ok(pod.check());
    for (client, server) in [(&*peer, &pod), (&*pod, &peer)] {
        check_tcp(client, Echo::tcp(server, server.v6()).address);
    }

    // Two of its largest packets take longer than queueMillis.
    let said = sluiced(&node, "set bandwidth pod1 --egress 100k");
    let queues = "queue 25 ms ingress, 240 ms egress";
    assert!(said.contains(queues), "{said}");
    assert_shown(&node, &[queues]);

    let said = sluiced(
        &node,
        "set bandwidth pod --ingress unlimited --egress unlimited",
    );
    assert!(said.ends_with("no limits\n"), "{said}");
    let shown = sluiced(&node, "show ports");
    assert!(!shown.contains("LIMITS"), "{shown}");
    all_ok(pod.check());
    pod.del();
    before.assert_unchanged(&node);
    node.finish();
}

#[test]
fn a_pod_to_be_changed_must_be_the_one() {
    let node = Node::start(&Options::default());
    let pods = ["pod1", "pod2"].map(|name| node.add(name));
    for (words, needles) in [
        ("pod", ["eth0 of container pod1", "eth0 of container pod2"]),
        ("pod --interface eth0", ["container pod1", "container pod2"]),
        ("pod1 --interface eth1", ["\"eth1\"", "show ports"]),
        ("default/web", ["\"default/web\"", "show ports"]),
    ] {
        let said = refused(&node, &format!("set bandwidth {words} --ingress 1M"));
        for needle in needles {
            assert!(said.contains(needle), "{said}");
        }
    }
    let shown = sluiced(&node, "show ports");
    assert!(!shown.contains("LIMITS"), "{shown}");
    for pod in pods {
        pod.del();
    }
    node.finish();
}

/// Pings with packets of more than 3000 bytes that must not be fragmented, and
/// returns what ping says. What was learnt of path MTUs is forgotten before.
fn ping_large(from: &Pod, to: IpAddr) -> String {
    from.exec("ip route flush cache");
    from.exec("ip -6 route flush cache");
    let ping = from.output(&format!("ping -n -c 3 -i 0.2 -W 1 -M do -s 3000 {to}"));
    String::from_utf8([ping.stdout, ping.stderr].concat()).unwrap()
}

/// At 10 Mbit/s 2500 bytes take 2 ms.
#[test]
fn a_packet_that_takes_too_long_is_answered_too_big() {
    let node = Node::start(&Options::default());
    let pod = node.add_by(&limiting(&node), "pod", &ten_megabits());
    let peer = node.add("peer");
    let words = [
        (NODE4, "mtu=2500", "mtu = 2500"),
        (NODE6, "mtu: 2500", "mtu=2500"),
    ];
    for (family, known, told) in words {
        let [to_pod, to_peer] = [&pod, &peer].map(|pod| pod.address_like(family));
        // Its own route keeps the pod from sending it; others are told.
        let said = ping_large(&pod, to_peer);
        assert!(said.contains(known), "{said}");
        let before = node.row(&pod).counters.dropped("too-big");
        let said = ping_large(&peer, to_pod);
        assert!(said.contains(told), "{said}");
        assert!(node.row(&pod).counters.dropped("too-big") > before);
        // A limit that comes, or goes, while the pod runs.
        sluiced(&node, "set bandwidth pod --ingress unlimited");
        let said = ping_large(&peer, to_pod);
        assert!(said.contains(" 0% packet loss"), "{said}");
        sluiced(&node, "set bandwidth peer --egress 10M");
        let said = ping_large(&peer, to_pod);
        assert!(said.contains(told), "{said}");
        sluiced(&node, "set bandwidth pod --ingress 10M");
        sluiced(&node, "set bandwidth peer --egress unlimited");
    }
    for pod in [pod, peer] {
        pod.del();
    }
    node.finish();
}

#[test]
fn limits_of_a_bandwidth_plugin_behind_are_taken_over() {
    let mut node = Node::start(&Options::default());
    let plugin = json!({
        "type": "bandwidth", "ingressRate": 5_000_000, "ingressBurst": 80_000,
        "egressRate": 8_000_000, "egressBurst": 160_000,
    });
    let mut list = node.chain(&[plugin]);
    list.configuration["plugins"][0]["capabilities"] = json!({"bandwidth": true});
    fs::write(node.conflist(), list.configuration.to_string()).unwrap();
    assert!(node.stop().success());
    node.restart();
    let check = format!("check-config --conflist {}", node.conflist().display());
    let checked = node.sluiced(&check);
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.contains("are taken over"), "{checked}");
    assert!(
        node.log().contains("bandwidth has no effect"),
        "{}",
        node.log()
    );

    let pod = node.add_by(&list, "pod", &[]);
    let [ingress, egress] = [
        "ingress 5 Mbit/s, burst 10 kB",
        "egress 8 Mbit/s, burst 20 kB",
    ];
    assert_shown(&node, &[ingress, egress]);
    all_ok(pod.check());
    let route = pod.exec(&format!("ip route get {}", pod.gateway_like(NODE4)));
    assert!(route.contains("mtu 1500"), "{route}");
    // What a pod asks for lifts nothing.
    let greedy = node.add_by(&list, "greedy", &ten_megabits());
    let shown = sluiced(&node, "show ports");
    assert_eq!(shown.matches(ingress).count(), 2, "{shown}");
    all_ok(greedy.check());
    greedy.del();
    // They are the pod's now, whatever the next daemon's configuration says.
    fs::write(node.conflist(), node.pods().conflist().to_string()).unwrap();
    node.kill();
    node.restart();
    assert_shown(&node, &[ingress, egress]);
    all_ok(pod.check());
    pod.del();
    node.finish();
}
