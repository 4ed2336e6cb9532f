//! `sluice-bench compare` as it is run, with tiny cases: real namespaces, the
//! real plugin and daemon, the real `bridge`; and how it and `node` end early.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

fn compare() -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_sluice-bench"));
    for name in ["sluice", "sluiced"] {
        let file = program.with_file_name(name);
        assert!(
            file.is_file(),
            "{} is missing; build it first: cargo build",
            file.display()
        );
    }
    let mut command = Command::new(program);
    command.arg("compare");
    if let Some(folder) = std::env::var_os("SLUICE_TEST_CNI_PATH") {
        command.arg("--cni-path").arg(folder);
    }
    command
}

fn said(output: &Output) -> String {
    let text = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Namespaces and folders of a run that is over.
fn left_by(pid: u32) -> Vec<String> {
    let prefix = format!("sluice-bench-{pid}-");
    let names = ["/run", "/run/netns"].into_iter().flat_map(|folder| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    });
    names.filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn a_tiny_run_writes_all_its_forms_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let mut command = compare();
    command
        .args(["--cases", "udp-hostport,udp-sink,tcp-in,add"])
        .args(["--pairs", "1", "--seconds", "0.1", "--json"])
        .arg(file("run.json"))
        .arg("--markdown")
        .arg(file("run.md"))
        .arg("--html")
        .arg(file("run.html"));
    let child = command.spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(left_by(pid), [""; 0]);

    let text = fs::read_to_string(file("run.json")).unwrap();
    let run: Value = serde_json::from_str(&text).unwrap();
    let cases = run["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let plotted = case["plotted"].as_str().unwrap();
        for arm in case["arms"].as_array().unwrap() {
            let median = arm["medians"][plotted].as_f64();
            assert!(median.is_some_and(|value| value > 0.0), "{arm}");
            let cores = arm["samples"][0]["cores"].as_array().unwrap();
            assert!(
                cores.iter().all(|time| time.as_f64().unwrap() > 0.0),
                "{arm}"
            );
        }
        assert_ne!(case["comparisons"].as_array().unwrap().len(), 0);
    }
    let tables = fs::read_to_string(file("run.md")).unwrap();
    assert!(tables.contains("| sluice | apart |"), "{tables}");
    let page = fs::read_to_string(file("run.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 5, "goals and four cases");

    // The same forms of the file.
    let mut again = compare();
    again.arg("--from").arg(file("run.json"));
    let output = again.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), tables);
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let mut command = compare();
    command.args(["--cases", "udp-hostport", "--pairs", "400"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let daemon = format!("/run/sluice-bench-{pid}-0/run/sluiced.sock");
    let start = Instant::now();
    while !Path::new(&daemon).exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "no daemon came");
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(left_by(pid), [""; 0]);
}

#[test]
fn a_node_that_is_told_to_end_ends_its_command_and_leaves_nothing() {
    let mut node = Command::new(env!("CARGO_BIN_EXE_sluice-bench"));
    node.args([
        "node",
        "--design",
        "floor",
        "sh",
        "-c",
        "echo here; exec sleep 1000",
    ]);
    let mut child = node.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut said).unwrap();
    assert_eq!(said, "here\n");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(!child.wait().unwrap().success());
    // The command has it open while it lives.
    assert_eq!(output.read_line(&mut said).unwrap(), 0);
    assert_eq!(left_by(child.id()), [""; 0]);
}

#[test]
fn an_unknown_case_is_an_error_that_names_it() {
    let output = compare().args(["--cases", "upd"]).output().unwrap();
    assert!(!output.status.success());
    assert!(
        said(&output).contains("there is no case \"upd\""),
        "{}",
        said(&output)
    );
}
