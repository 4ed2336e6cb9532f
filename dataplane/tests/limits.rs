//! Limits of pods: kept in the book and the journal, changed while the pod runs.
//! Needs root.

mod common;

use std::fs;

use common::TestNetns;
use common::pods::{Folder, ask, attach, detach, make_veth, pod};
use serde_json::{Value, json};
use sluice_control::{
    AskedLimit, Attachment, Bandwidth, ErrorCode, Limit, LimitChange, NetworkBandwidth, NodeFacts,
    Request, Response, Shaping,
};
use sluice_dataplane::node::Node;

/// Pod 11, whose ingress is limited to 10 Mbit/s.
fn limited() -> Attachment {
    let mut pod = pod(11);
    pod.uplink_mtu = Some(1500);
    pod.shaping.ingress = Some(Limit {
        rate: 10_000_000,
        burst: 100_000,
    });
    pod
}

/// The pod's row, as `sluiced show ports --json` has it.
fn row(node: &mut Node, pod: &Attachment) -> Value {
    let rows = ask(node, Request::ShowPorts);
    let mut rows = rows.as_array().unwrap().iter();
    let row = rows.find(|row| row["interface"] == pod.host_ifname);
    row.unwrap().clone()
}

fn set(node: &mut Node, pod: &Attachment, egress: LimitChange) -> Response {
    node.handle(Request::SetShaping {
        id: pod.id.clone(),
        ingress: None,
        egress: Some(egress),
    })
}

fn limit(rate: u64, burst: Option<u64>) -> LimitChange {
    LimitChange::Limit(AskedLimit { rate, burst })
}

/// Runs `test` with pod 11 attached, and takes it all down.
fn with_pod(test: impl FnOnce(&Folder, Node, &Attachment) -> Node + Send) {
    let netns = TestNetns::new("limits");
    let folder = Folder::new();
    netns.run(|| {
        let mut node = folder.start();
        let pod = limited();
        make_veth(&pod);
        attach(&mut node, &pod).unwrap();
        let mut node = test(&folder, node, &pod);
        detach(&mut node, &pod);
        assert_eq!(
            ask(&mut node, Request::ShowStats)["chunks"]["unaccounted"],
            0
        );
        drop(node);
        folder.reset();
    });
}

#[test]
fn limits_are_shown_changed_and_taken_back() {
    with_pod(|folder, mut node, pod| {
        let before = row(&mut node, pod);
        assert_eq!(
            before["shaping"],
            json!({
                "ingress": {"rate": 10_000_000, "burst": 100_000},
                "queue_millis": 25, "ecn": true,
            })
        );
        assert_eq!(
            (&before["mtu"], &before["frame_mtu"]),
            (&json!(65_000), &json!(2500))
        );

        let answer = set(&mut node, pod, limit(100_000_000, None));
        let Response::Ok(answer) = answer else {
            panic!("{answer:?}");
        };
        let shaping: Shaping = serde_json::from_value(answer).unwrap();
        assert_eq!(shaping.ingress, pod.shaping.ingress);
        assert_eq!(
            shaping.egress,
            Some(Limit {
                rate: 100_000_000,
                burst: 1_000_000,
            })
        );
        drop(node);
        let mut node = folder.start();
        assert_eq!(row(&mut node, pod)["shaping"], json!(shaping));
        let network = None;
        let listed = ask(&mut node, Request::Attachments { network });
        let listed: Vec<Attachment> = serde_json::from_value(listed).unwrap();
        assert!(listed[0].reshaped);
        assert_eq!(listed[0].shaping, shaping);
        node
    });
}

#[test]
fn a_change_that_cannot_be_made_changes_nothing() {
    with_pod(|folder, mut node, pod| {
        let file = || fs::read(folder.file(&pod.host_ifname)).unwrap();
        let (before, journalled) = (row(&mut node, pod), file());
        let mut other = pod.clone();
        other.id.container_id = "c\n12".into();
        for (pod, change, code, needle) in [
            (
                pod,
                limit(999, None),
                ErrorCode::Invalid,
                "egress rate is \"999\"",
            ),
            (
                pod,
                limit(1000, Some(0)),
                ErrorCode::Invalid,
                "egress burst",
            ),
            (&other, LimitChange::Unlimited, ErrorCode::Invalid, "c\\n12"),
        ] {
            let Response::Error(refusal) = set(&mut node, pod, change) else {
                panic!("{change:?} was taken");
            };
            assert_eq!(refusal.code, code, "{refusal}");
            assert!(refusal.message.contains(needle), "{refusal}");
        }
        let folder_of_files = folder.settings().journal();
        let away = folder_of_files.with_extension("away");
        fs::rename(&folder_of_files, &away).unwrap();
        let Response::Error(refusal) = set(&mut node, pod, limit(1000, None)) else {
            panic!("it was taken, and not written down");
        };
        assert_eq!(refusal.code, ErrorCode::Failed, "{refusal}");
        fs::rename(&away, &folder_of_files).unwrap();
        let mut after = row(&mut node, pod);
        assert_eq!(after["shaping"].take(), before["shaping"]);
        assert_eq!(file(), journalled);
        node
    });
}

#[test]
fn the_plugin_learns_a_networks_limits() {
    with_pod(|_, mut node, _| {
        let facts = |node: &mut Node| -> NodeFacts {
            serde_json::from_value(ask(node, Request::Describe)).unwrap()
        };
        assert_eq!(facts(&mut node).bandwidth, None);
        let bandwidth = NetworkBandwidth {
            network: "pods".into(),
            bandwidth: Bandwidth {
                ingress: None,
                egress: Some(AskedLimit {
                    rate: 1000,
                    burst: None,
                }),
            },
            unshaped_subnets: vec!["10.0.0.0/8".parse().unwrap()],
            ..NetworkBandwidth::default()
        };
        node.limit_network(bandwidth.clone());
        assert_eq!(facts(&mut node).bandwidth, Some(bandwidth));
        node
    });
}
