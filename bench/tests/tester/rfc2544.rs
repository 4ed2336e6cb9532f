//! `sluice-bench rfc2544` over a network that is known.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::injector::{Fault, PORT, Plan};
use crate::rig::Rig;

/// What was found with these tests and sizes while an injector was at work.
fn find(rig: &Rig, plan: &Plan<'_>, words: &str) -> (Value, String) {
    let file = NamedTempFile::new().unwrap();
    let to = format!("10.99.0.2:{PORT}");
    let json = file.path().to_str().unwrap();
    let command = ["rfc2544", "--to", &to, "--json", json];
    let words = words.split_whitespace();
    let (output, _) = rig.during(plan, || rig.bench(&command, words));
    assert!(output.status.success(), "{output:?}");
    let report = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    (report, String::from_utf8(output.stdout).unwrap())
}

/// An injector that is slower than the sender forwards for some time after it:
/// the counting sink would take these frames for the next trial's.
const SHORT: &str = "--trial 0.2 --drain 0.8 --sink xdp --cpus 0,1";

#[test]
fn a_network_that_always_loses_has_no_throughput() {
    let rig = Rig::new();
    // Two of a hundred: more than the 0.5 % that are tolerated.
    let plan = Plan {
        fault: |number| {
            if number % 50 == 0 {
                Fault::Lose
            } else {
                Fault::None
            }
        },
        ..Plan::NOTHING
    };
    let words = format!("{SHORT} --sizes 128 --tests throughput,loss,latency");
    let (report, said) = find(&rig, &plan, &words);
    let row = &report["rows"][0];
    assert_eq!(row["throughput"]["rate"], 0.0, "{row:#}");
    assert_eq!(row["throughput"]["sender_limited"], false, "{row:#}");
    assert_eq!(row["partial"]["rate"], 0.0, "{row:#}");
    let curve = row["curve"].as_array().unwrap();
    let percents: Vec<_> = curve
        .iter()
        .map(|point| point["percent"].as_u64())
        .collect();
    let expected: Vec<_> = (1..=10).rev().map(|tenth| Some(tenth * 10)).collect();
    assert_eq!(percents, expected);
    for point in curve {
        // The injector itself may lose more, where it is the bottleneck.
        assert!(point["loss"].as_f64().unwrap() > 0.019, "{point}");
    }
    assert_eq!(row["latency"].as_array().unwrap().len(), 0, "{row:#}");
    assert_eq!(report["setup"]["short"], true);
    assert!(said.contains("SHORT: RFC 2544 section 24"), "{said}");
}

#[test]
fn what_does_not_fit_the_mtu_is_named() {
    let rig = Rig::new();
    let words = format!("{SHORT} --sizes 9000 --tests throughput");
    let (report, said) = find(&rig, &Plan::NOTHING, &words);
    let row = &report["rows"][0];
    assert_eq!(row["skipped"], "the pods' MTU is 1500", "{row:#}");
    assert!(row["throughput"].is_null(), "{row:#}");
    assert!(
        said.contains("not measured: the pods' MTU is 1500"),
        "{said}"
    );
}

/// The real plugin and daemon, which cargo builds beside the bench.
#[test]
fn a_node_is_measured_through_all_its_changes() {
    let file = NamedTempFile::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice-bench"));
    command.args(["rfc2544", "--tests", "reconfiguration", "--sizes", "64"]);
    command.args("--trial 0.2 --drain 0.2 --rate 2000".split_whitespace());
    command.arg("--json").arg(file.path());
    if let Some(folder) = std::env::var_os("SLUICE_TEST_CNI_PATH") {
        command.arg("--cni-path").arg(folder);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    let costs = report["costs"].as_array().unwrap();
    let changes: Vec<_> = costs.iter().map(|cost| cost["change"].as_str()).collect();
    let expected = ["nothing", "add-and-del", "limits", "restart", "crash"];
    assert_eq!(changes, expected.map(Some));
    for cost in costs {
        let number = |name: &str| cost[name].as_f64().unwrap();
        assert!(number("sent") > 0.0, "{cost}");
        let blocked = number("lost") / number("rate") * 1e3;
        assert!((blocked - number("blocked_ms")).abs() < 0.001, "{cost}");
        // Without a daemon pods have no network.
        let has_gap = ["restart", "crash"].contains(&cost["change"].as_str().unwrap());
        assert!(!has_gap || number("lost") > 0.0, "{cost}");
    }
}
