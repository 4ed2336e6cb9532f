//! `logFile` and `logLevel`, and what goes to stderr.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::node::Node;
use crate::space::Space;

/// A node, its network with a `logFile`, and that file.
fn logging(level: &str) -> (Node, Value, std::path::PathBuf) {
    let node = Node::new();
    let mut network = node.network();
    let log = node.file("sluice.log");
    network["logFile"] = log.to_str().into();
    network["logLevel"] = level.into();
    (node, network, log)
}

fn lines(log: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn at_info_each_operation_is_a_line() {
    let (node, network, log) = logging("info");
    let pod = Space::new("pod");
    let result = node.add(&pod, &network).ok();
    node.check(&pod, &network, &result).ok();
    node.del(&network).ok();
    let lines = lines(&log);
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, verb) in lines.iter().zip(["ADD", "CHECK", "DEL"]) {
        let about =
            format!("sluice{{verb=\"{verb}\" container=\"c1\" ifname=\"eth0\"}}: done took=");
        assert!(line.contains(&about), "{line}");
        assert!(
            line.starts_with("20") && line.contains("Z  INFO "),
            "{line}"
        );
    }
    let mode = fs::metadata(&log).unwrap().permissions().mode();
    assert_eq!(mode & 0o137, 0, "{mode:o}");
}

#[test]
fn at_debug_each_step_is_a_line() {
    let (node, network, log) = logging("debug");
    let pod = Space::new("pod");
    node.add(&pod, &network).ok();
    let all = lines(&log);
    for (line, step) in all.iter().zip([
        "ask the daemon for facts",
        "make the veth pair",
        "ADD by IPAM plugin host-local in version 1.0.0",
        "attach",
        "configure the pod",
        "done",
    ]) {
        assert!(line.contains(&format!(": {step} took=")), "{line}");
    }
    assert_eq!(all.len(), 6, "{all:?}");
}

#[test]
fn a_failure_is_in_the_log_and_on_stderr_as_one_line() {
    let (node, mut network, log) = logging("error");
    let pod = Space::new("pod");
    network["ipam"]["type"] = "full".into();
    node.script(
        "full",
        "printf '{\"code\": 999, \"msg\": \"no\\\\nroom\"}'; exit 1",
    );
    let answer = node.add(&pod, &network);
    let expected = "failed code=999";
    assert!(answer.stderr.contains(expected), "{answer:?}");
    answer.fails(999, "no\nroom");
    let lines = lines(&log);
    assert_eq!(lines.len(), 1, "{lines:?}");
    let why = "error=\"ADD by IPAM plugin full: no\\nroom; undoing this: DEL";
    assert!(
        lines[0].contains(expected) && lines[0].contains(why),
        "{lines:?}"
    );
}

#[test]
fn without_a_log_stderr_is_silent_about_success() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let answer = node.add(&pod, &node.network());
    assert_eq!(answer.stderr, "");
    answer.ok();
}

#[test]
fn a_log_that_cannot_be_written_fails_nothing() {
    let (node, mut network, _) = logging("info");
    let pod = Space::new("pod");
    for path in ["/proc/nonexistent/sluice.log", "/dev/full"] {
        network["logFile"] = path.into();
        for verb in ["ADD", "DEL"] {
            let netns = pod.path();
            let answer = node.sluice(verb, &[("CNI_NETNS", &netns)], &network);
            assert!(answer.stderr.contains("write to logFile"), "{answer:?}");
            assert!(answer.stderr.contains(path), "{answer:?}");
            answer.ok();
        }
    }
    // Of one that could never be, ADD says so.
    network["logFile"] = "sluice.log".into();
    node.add(&pod, &network).fails(7, "absolute path");
    node.del(&network).ok();
    network["logFile"] = 7.into();
    node.add(&pod, &network).fails(7, "invalid type");
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}

#[test]
fn operations_at_the_same_time_do_not_cut_each_others_lines() {
    let (node, network, log) = logging("debug");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| node.del(&network).ok());
        }
    });
    for line in lines(&log) {
        let is_whole = line.starts_with("20") && line.contains("sluice{verb=\"DEL\"");
        assert!(is_whole && line.contains("took="), "{line}");
    }
}
