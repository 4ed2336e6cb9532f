//! The daemon dies, and another takes its place.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::capture::{Capture, Seen};
use crate::harness::flows::{Echo, Flow, Pattern, connect_ends, ping};
use crate::harness::{BEYOND4, NODE4, NODE6, Node, Options, Pod, Snapshot, Space, wait_until};

/// How long no daemon runs, and how often.
const GAPS: [Duration; 3] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];
const KILLS: usize = 10;

const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;

#[test]
fn a_killed_daemons_connections_go_on_with_the_next() {
    connections_go_on("auto", &GAPS);
}

/// hostPorts go by the kernel alone.
#[test]
fn a_killed_daemons_connections_go_on_without_its_uplink() {
    connections_go_on("none", &GAPS[..1]);
}

/// kill -9, again and again: connections go on each time, and what the runtime
/// does in the gap ends as specified and leaves nothing wrong.
fn connections_go_on(uplink: &'static str, gaps: &[Duration]) {
    let mut node = Node::start(&Options {
        uplink,
        ..Options::default()
    });
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let mapped = node.add_to(
        &node.pods().mapped(&[(HOST_PORT, POD_PORT, "tcp", "")]),
        "mapped",
    );
    for space in [&a, &b, &mapped, node.space(), node.outside()] {
        // By BBR's estimate of a path that stood still for seconds, a sender may keep
        // silent for 20 more, with an open window and nothing in flight.
        space.exec("sysctl -qw net.ipv4.tcp_congestion_control=reno");
    }
    let captures = [Capture::start(&a), Capture::start(&b)];
    let pairs: [(&Space, Echo); 5] = [
        (&a, Echo::tcp(&b, b.v4())),
        (&b, Echo::tcp(&a, a.v4())),
        (&a, Echo::tcp(&b, b.v6())),
        (node.space(), Echo::tcp(&a, a.v4())),
        (&a, Echo::tcp(node.outside(), BEYOND4)),
    ];
    let flows = pairs
        .each_ref()
        .map(|(client, echo)| Flow::paced_tcp(client, echo.address));
    let flows: Vec<_> = flows
        .into_iter()
        .chain(mapped_flows(&node, &mapped, &a))
        .collect();
    let open = [&a, &b].map(connections);
    assert_eq!(open.each_ref().map(Vec::len), [7, 3], "{open:?}");

    for gap in gaps.iter().cycle().take(KILLS) {
        flows.iter().for_each(Flow::goes_on);
        let before = Snapshot::take(&node);
        let doomed = node.add("doomed");
        let programs = programs(&node, &[&a, &b]);

        node.kill();
        let start = Instant::now();
        let rounds = Vec::from_iter(flows.iter().map(Flow::rounds));
        let late = ["late1", "late2"].map(|name| (name, node.site.space(name)));
        for (name, space) in &late {
            let answer = node.try_add(&node.pods(), space, name);
            answer.fails(11, &["sluiced"]);
            assert_eq!(space.links(), ["lo"]);
        }
        doomed.del();
        thread::sleep(gap.saturating_sub(start.elapsed()));
        assert_eq!(self::programs(&node, &[&a, &b]), programs);
        for (before, flow) in rounds.iter().zip(&flows) {
            // A last answer may have been in the kernel already.
            assert!(
                flow.rounds() <= before + 1,
                "who forwards without a daemon?"
            );
        }

        node.restart();
        flows.iter().for_each(Flow::goes_on);
        assert_eq!([&a, &b].map(connections), open);
        assert_eq!(node.ports().len(), 4, "three pods and the host port");
        before.assert_unchanged(&node);
        for (name, space) in late {
            let pod = Pod::add(space, name, &node.pods(), &node.runtime());
            ping(&pod, b.v4());
            pod.del();
        }
    }

    flows
        .into_iter()
        .for_each(|flow| assert!(flow.stop() > KILLS));
    for capture in captures {
        let Seen { data, resets } = capture.stop();
        assert!(data > KILLS, "only {data} segments with data were captured");
        assert_eq!(resets, 0);
    }
    for space in [&a, &b, &mapped, node.space(), node.outside()] {
        let counters = space.counters();
        for counter in ["TcpOutRsts", "TcpEstabResets", "TcpExtTCPAbortOnTimeout"] {
            assert_eq!(counters[counter], 0, "{counter} in {}", space.name());
        }
    }
    node.finish();
}

/// Flows by a pod's hostPort: from outside by both families, from a pod and from a process of
/// the host, each way alone, so that either end may be the first to send after a daemon's start.
fn mapped_flows(node: &Node, pod: &Pod, client: &Pod) -> Vec<Flow> {
    let listener = pod.in_netns(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, POD_PORT)));
    let listener = listener.unwrap();
    let clients: [(&Space, IpAddr); 5] = [
        (node.outside(), NODE4),
        (node.outside(), NODE6),
        (client, NODE4),
        (node.space(), Ipv4Addr::LOCALHOST.into()),
        (node.space(), Ipv6Addr::LOCALHOST.into()),
    ];
    let ends = |(client, address)| {
        let to = SocketAddr::new(address, HOST_PORT);
        connect_ends(client, to, &listener)
    };
    let flows = clients.into_iter().flat_map(|client| {
        let (upload, mut download) = (ends(client), ends(client));
        download.reverse();
        [Flow::one_way(upload), Flow::one_way(download)]
    });
    flows.collect()
}

/// The ids of the XDP programs on the host's ends of pods' veths and on the
/// host port.
#[track_caller]
fn programs(node: &Node, pods: &[&Pod]) -> Vec<u64> {
    let pods = pods.iter().map(|pod| pod.host_ifname());
    let program = |interface: &str| {
        let links = node
            .space()
            .json(&format!("ip -j link show dev {interface}"));
        let id = &links[0]["xdp"]["prog"]["id"];
        id.as_u64().expect("a program is on the interface")
    };
    pods.chain(["sluice-dp"]).map(program).collect()
}

/// Every TCP connection of a pod: its two ends, and the socket's inode.
#[track_caller]
fn connections(pod: &Pod) -> Vec<Vec<String>> {
    let shown = pod.exec("ss -Htne state established");
    let rows = shown.lines().map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let inode = words.iter().find(|word| word.starts_with("ino:"));
        let known = [words[2], words[3], inode.expect("an inode")];
        known.map(str::to_owned).to_vec()
    });
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

/// Whenever the daemon dies, what was half done is finished or undone by the
/// plugin, the next daemon and the runtime's DEL.
#[test]
fn kills_amid_adds_and_dels_leave_nothing_wrong() {
    let mut node = Node::start(&Options::default());
    let neighbour = node.add("neighbour");
    let before = Snapshot::take(&node);
    let (runtime, network) = (node.runtime(), node.pods());
    let pods = [1, 2, 3, 4].map(|number| format!("p{number}"));
    let pods = pods.map(|id| (node.site.space(&id), id));
    let is_over = AtomicBool::new(false);
    let added = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (space, id) in &pods {
            scope.spawn(|| {
                let run = |verb| runtime.run(verb, id, &space.path(), &network);
                while !is_over.load(Ordering::Relaxed) {
                    if run("ADD").is_ok() {
                        added.fetch_add(1, Ordering::Relaxed);
                    } else {
                        assert_eq!(space.links(), ["lo"]);
                    }
                    run("DEL");
                }
            });
        }
        let mut pause = Pattern(1);
        for _ in 0..2 * KILLS {
            thread::sleep(Duration::from_millis(pause.next() % 200));
            node.kill();
            node.restart();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(added.into_inner() > KILLS);
    for (space, id) in &pods {
        node.try_del(&network, space, id).ok();
        assert_eq!(space.links(), ["lo"]);
    }
    assert_eq!(node.ports().len(), 2, "the neighbour and the host port");
    before.assert_unchanged(&node);
    ping(node.space(), neighbour.v6());
    node.finish();
}

/// An IPAM plugin that answers when the test lets it.
const PATIENT: &str = r#"#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then
    touch "${0%/*}/asked"
    until [ -e "${0%/*}/go-on" ]; do sleep 0.01; done
fi
exec "${CNI_PATH%%:*}/host-local"
"#;

/// A start removes interfaces that the journal does not know, also one whose
/// ADD is not at an end.
#[test]
fn an_add_that_a_start_came_between_is_to_be_tried_again() {
    let mut node = Node::start(&Options::default());
    let before = Snapshot::take(&node);
    node.script("patient", PATIENT);
    let (runtime, folder) = (node.runtime(), node.plugins());
    let mut network = node.pods();
    network.0["ipam"]["type"] = "patient".into();
    let space = node.site.space("pod");
    thread::scope(|scope| {
        let add = scope.spawn(|| runtime.run("ADD", "pod", &space.path(), &network));
        let asked = folder.join("asked");
        wait_until("IPAM is asked", || asked.exists().then_some(()));
        node.kill();
        node.restart();
        fs::write(folder.join("go-on"), "").unwrap();
        add.join().unwrap().fails(11, &["try again"]);
    });
    assert_eq!(space.links(), ["lo"]);
    before.assert_unchanged(&node);
    let pod = Pod::add(space, "pod", &network, &runtime);
    ping(node.space(), pod.v4());
    pod.del();
    node.finish();
}

/// A daemon cannot mend that, but the next one can; systemd starts it.
#[test]
fn a_deleted_host_port_ends_the_daemon_and_the_next_one_makes_it_anew() {
    let mut node = Node::start(&Options::default());
    let pod = node.add("pod");
    ping(&pod, NODE4);
    node.space().exec("ip link delete sluice0");
    let status = node.client.status();
    assert!(status.is_err(), "{status:?}");
    assert!(!node.wait_for_end().success());
    let log = fs::read_to_string(node.conflist().with_extension("log")).unwrap();
    assert!(log.contains("the host port sluice0 is gone"), "{log}");
    node.restart();
    ping(&pod, NODE4);
    ping(node.space(), pod.v6());
    node.finish();
}

/// Another folder has neither the journal nor the pins of the pods that run.
#[test]
fn a_daemon_with_another_folder_leaves_pods_alone() {
    let mut node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echo = Echo::tcp(&b, b.v4());
    let flow = Flow::paced_tcp(&a, echo.address);
    flow.goes_on();
    let before = Snapshot::take(&node);
    node.kill();
    let other = node.dir().join("other");
    let run = format!(
        "run --conflist {} --run-dir {}",
        node.conflist().display(),
        other.display()
    );
    let ended = node.sluiced(&run);
    assert!(!ended.status.success(), "{ended:?}");
    let log = String::from_utf8(ended.stderr).unwrap();
    for needle in ["dataplane.runDir", "sluiced reset"] {
        assert!(log.contains(needle), "{needle:?} is not in {log}");
    }
    before.assert_unchanged(&node);
    node.restart();
    flow.goes_on();
    flow.stop();
    node.finish();
}

#[test]
fn a_stopped_daemons_pods_are_the_next_ones() {
    let mut node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echo = Echo::tcp(&b, b.v4());
    let flow = Flow::tcp(&a, echo.address);
    flow.goes_on();
    assert!(node.stop().success());
    node.restart();
    flow.goes_on();
    flow.stop();
    node.finish();
}
