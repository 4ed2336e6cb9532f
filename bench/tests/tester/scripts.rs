//! `bench/pktgen/*.sh`: with `sluice-bench pktgen`, and, since the kernel's
//! pktgen is a module that few have, with a folder in the place of its /proc.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::injector::{PORT, Plan};
use crate::rig::Rig;

/// What the kernel's pktgen writes after a run (net/core/pktgen.c).
const RESULT: &str = "Params: count 5000  min_pkt_size: 60  max_pkt_size: 60\n\
    Result: OK: 2000000(c1900000+d100000) usec, 5000 (60byte,0frags)\n  \
    2500pps 1Mb/sec (1200000bps) errors: 0\n";
const SCRIPTS: [&str; 5] = [
    "pod_to_pod",
    "hostport",
    "shaped_pod",
    "many_flows",
    "many_pods",
];

/// Runs a script between the pods of a rig.
fn run(rig: &Rig, script: &str, proc: Option<&Path>, words: &str) -> Output {
    let [from, into] = rig.names();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pktgen");
    let mut command = Command::new(folder.join(format!("{script}.sh")));
    command
        .args(["-F", from, "-R", into, "-d", "10.99.0.2"])
        .args(["-p", &PORT.to_string()])
        .args(words.split_whitespace())
        .env("SLUICE_BENCH", env!("CARGO_BIN_EXE_sluice-bench"));
    if let Some(proc) = proc {
        command.env("PKTGEN_PROC", proc);
    }
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What a folder's file holds beyond the result.
fn commands(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let commands = text.strip_prefix(RESULT).unwrap_or(&text);
    commands.lines().map(str::to_owned).collect()
}

/// The commands for a device, in their order.
fn device_commands(flows: u16) -> Vec<String> {
    let last = 10_000 + flows;
    [
        "flag QUEUE_MAP_CPU",
        "count 2500",
        "clone_skb 3",
        "pkt_size 100",
        "delay 7",
        "flag NO_TIMESTAMP",
        "dst_mac 02:00:00:00:00:09",
        "dst 10.99.0.2",
        "udp_dst_min 9000",
        "udp_dst_max 9000",
        "udp_src_min 10000",
        &format!("udp_src_max {last}"),
        "burst 4",
        "flag UDPCSUM",
    ]
    .map(str::to_owned)
    .to_vec()
}

const OPTIONS: &str = "-n 2500 -c 3 -s 100 -w 7 -m 02:00:00:00:00:09 -b 4 -k -t 2 -f 1";

#[test]
fn the_kernels_pktgen_gets_its_commands_in_order() {
    let rig = Rig::new();
    for (script, flows) in
        SCRIPTS.map(|script| (script, if script == "many_flows" { 10_000 } else { 1 }))
    {
        // All files are one: it has all commands in their order.
        let folder = TempDir::new().unwrap();
        let log = folder.path().join("log");
        fs::write(&log, RESULT).unwrap();
        for name in ["pgctrl", "kpktgend_1", "kpktgend_2", "eth0@1", "eth0@2"] {
            symlink(&log, folder.path().join(name)).unwrap();
        }
        let output = run(&rig, script, Some(folder.path()), OPTIONS);
        let mut expected = vec!["reset".to_owned()];
        for thread in [1, 2] {
            expected.push("rem_device_all".to_owned());
            expected.push(format!("add_device eth0@{thread}"));
            expected.extend(device_commands(flows));
        }
        expected.push("start".to_owned());
        assert_eq!(commands(&log), expected, "{script}");
        let said = text(&output);
        assert!(said.contains("generator  the kernel's pktgen"), "{said}");
        // Both threads' results: nothing was really sent.
        for line in [
            "sent       10000 packets in 2.00 s: 5000 pps",
            "received   0 packets: 0 pps",
            "lost       10000 (100.0000 %)",
        ] {
            assert!(said.contains(line), "{line} is not in {said}");
        }
    }
}

#[test]
fn each_file_of_the_kernels_pktgen_gets_its_own_commands() {
    let rig = Rig::new();
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name);
    for name in ["pgctrl", "kpktgend_1", "kpktgend_2"] {
        fs::write(file(name), "").unwrap();
    }
    for name in ["eth0@1", "eth0@2"] {
        fs::write(file(name), RESULT).unwrap();
    }
    text(&run(&rig, "pod_to_pod", Some(folder.path()), OPTIONS));
    assert_eq!(commands(&file("pgctrl")), ["reset", "start"]);
    for thread in [1, 2] {
        let own = commands(&file(&format!("kpktgend_{thread}")));
        assert_eq!(
            own,
            ["rem_device_all", &format!("add_device eth0@{thread}")]
        );
        let own = commands(&file(&format!("eth0@{thread}")));
        assert_eq!(own, device_commands(1));
    }
}

#[test]
fn without_it_sluice_bench_takes_its_place() {
    let rig = Rig::new();
    // A folder without pgctrl: also where the kernel has pktgen.
    let folder = TempDir::new().unwrap();
    for script in SCRIPTS {
        let words = "-n 1000 -w 100000";
        let job = || run(&rig, script, Some(folder.path()), words);
        let (output, seen) = rig.during(&Plan::NOTHING, job);
        let said = text(&output);
        assert_eq!(seen.packets, 1000, "{said}");
        for line in [
            "generator  sluice-bench pktgen",
            "sent       1000 packets",
            "received   1000 packets",
            "lost       0 (0.0000 %)",
        ] {
            assert!(said.contains(line), "{line} is not in {said}");
        }
    }
}

#[test]
fn nonsense_is_refused() {
    let rig = Rig::new();
    for words in ["-s 59", "-n 0", "-n x", "-t 1025", "-p 65536", "-z", "more"] {
        let output = run(&rig, "pod_to_pod", None, words);
        assert!(!output.status.success(), "{words}: {output:?}");
        assert!(!output.stderr.is_empty(), "{words}");
    }
}
