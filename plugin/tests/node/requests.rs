//! What a runtime asks for one pod, and what becomes of it in the dataplane.

use std::thread;

use serde_json::json;

use crate::harness::flows::{Echo, check_tcp, ping};
use crate::harness::{Answer, Node, Options, Pod, all_ok};

const MAC: [u8; 6] = [0x02, 0x00, 0x5e, 0x00, 0x53, 0x01];

/// Each is alone on its link, and what it sends under that address is its own.
#[test]
fn two_pods_of_one_mac_address_reach_each_other() {
    let node = Node::start(&Options::default());
    let network = node
        .pods()
        .with("runtimeConfig", json!({"mac": "02:00:5e:00:53:01"}));
    let pods = ["a", "b"].map(|name| node.add_to(&network, name));
    for pod in &pods {
        assert_eq!(pod.macs().1, MAC);
        all_ok(pod.check());
    }
    let [a, b] = &pods;
    for address in b.addresses() {
        ping(a, address);
        check_tcp(a, Echo::tcp(b, address).address);
    }
    assert_eq!(node.row(a).counters.dropped("spoofed-mac"), 0);
    pods.into_iter().for_each(Pod::del);
    node.finish();
}

#[test]
fn a_pod_is_called_by_its_name_also_by_the_next_daemon() {
    let mut node = Node::start(&Options::default());
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=0f5e";
    let runtime = node.runtime().with_args(args);
    let fixed = node.pods().with(
        "ipam",
        json!({"type": "static", "addresses": [{"address": "10.77.0.50/24"}]}),
    );
    let pod = Pod::add(node.site.space("web"), "web", &fixed, &runtime);
    let run_dir = node.run_dir().display().to_string();
    let shown = |node: &Node| {
        let output = node.sluiced(&format!("show ports --run-dir {run_dir}"));
        String::from_utf8(output.stdout).unwrap()
    };
    let first = shown(&node);
    assert!(
        first.contains("POD") && first.contains(" default/web-0"),
        "{first}"
    );

    node.kill();
    node.restart();
    let next = shown(&node);
    assert!(next.contains(" default/web-0"), "{next}");
    let other = node.site.space("other");
    node.try_add(&fixed, &other, "other")
        .fails(103, &["10.77.0.50", "(pod default/web-0)"]);
    pod.del();
    node.finish();
}

#[test]
fn of_parallel_adds_the_winners_pod_works() {
    let node = Node::start(&Options::default());
    let (network, other, space) = (node.pods(), node.add("other"), node.site.space("pod"));
    for _ in 0..5 {
        let answers = thread::scope(|scope| {
            let adds = [(); 4].map(|()| scope.spawn(|| node.try_add(&network, &space, "pod")));
            adds.map(|add| add.join().unwrap())
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Answer::is_ok);
        for answer in lost {
            answer.fails(103, &["eth0"]);
        }
        let [winner] = won.try_into().unwrap();
        for ip in winner.ok()["ips"].as_array().unwrap() {
            let (address, _) = ip["address"].as_str().unwrap().split_once('/').unwrap();
            ping(&other, address.parse().unwrap());
        }
        node.try_del(&network, &space, "pod").ok();
    }
    assert_eq!(node.ports().len(), 2, "the other pod and the host port");
    node.finish();
}
