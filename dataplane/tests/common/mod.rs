//! What namespace tests share. They run as root, in namespaces of their own,
//! and leave nothing behind.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod pods;

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use serde_json::Value;
use sluice_link::Netns;

/// How long a condition may take to hold.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before looking again.
const PAUSE: Duration = Duration::from_millis(2);

/// A network namespace that goes when it is dropped.
#[derive(Debug)]
pub(crate) struct TestNetns {
    name: String,
    netns: Netns,
}

impl TestNetns {
    /// Makes `sluice-<purpose>-<process>-<number>`, with `lo` up.
    pub(crate) fn new(purpose: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(Uid::effective().is_root(), "namespace tests need root");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-{purpose}-{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let path = format!("/run/netns/{name}");
        let netns = Netns::open(path.as_ref()).unwrap_or_else(|error| panic!("{error}"));
        let netns = Self { name, netns };
        netns.ip("link set lo up");
        netns
    }

    /// The name, as `ip netns` has it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `job` inside, on a thread of its own.
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        self.netns
            .run(job)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a command inside and returns what it writes to stdout.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> String {
        self.run(|| run(program, arguments))
    }

    /// Runs `ip` with these words inside.
    pub(crate) fn ip(&self, words: &str) -> String {
        let words: Vec<&str> = words.split_whitespace().collect();
        self.command("ip", &words)
    }

    /// What `ip -json` says to these words inside.
    pub(crate) fn ip_json(&self, words: &str) -> Value {
        let text = self.ip(&format!("-details -json {words}"));
        match text.trim() {
            "" => Value::Array(Vec::new()),
            text => serde_json::from_str(text).expect("ip speaks JSON"),
        }
    }

    /// All that an attachment may leave behind: links, routes, neighbours,
    /// rules and nftables, to be compared before and after.
    pub(crate) fn state(&self) -> Vec<(&'static str, String)> {
        let mut state: Vec<_> = [
            "link",
            "address",
            "-4 route show table all",
            "-6 route show table all",
            "-4 rule",
            "-6 rule",
            "neigh",
        ]
        .map(|object| (object, self.ip(&format!("-json {object}"))))
        .into();
        state.push(("nft", self.command("nft", &["list", "ruleset"])));
        state
    }

    /// Waits until the state is `expected`, and shows the difference if not.
    pub(crate) fn returns_to(&self, expected: &[(&'static str, String)]) {
        let give_up = Instant::now() + PATIENCE;
        while self.state() != expected && Instant::now() < give_up {
            thread::sleep(PAUSE);
        }
        assert_eq!(self.state(), expected);
    }
}

impl Drop for TestNetns {
    fn drop(&mut self) {
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !thread::panicking() {
            assert!(deleted.expect("run ip").success(), "delete {}", self.name);
        }
    }
}

/// Runs a command that must succeed and returns what it writes to stdout.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Waits until `condition` holds, at most [`PATIENCE`].
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < give_up, "waited in vain until {what}");
        thread::sleep(PAUSE);
    }
}
