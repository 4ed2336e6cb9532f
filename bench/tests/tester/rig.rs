//! Two namespaces, and an injector between them:
//!
//! ```text
//!  from: eth0 ── left :middle: right ── eth0 :into
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use serde_json::Value;
use sluice_link::Netns;

use crate::injector::{PORT, Plan, Seen, Wire, inject, relay};

/// A named network namespace, deleted when dropped.
struct Space {
    name: String,
}

impl Space {
    fn new(name: String) -> Self {
        run("ip", &["netns", "add", &name]);
        Self { name }
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn exec(&self, words: &str) {
        let netns = format!("--net={}", self.path().display());
        let words: Vec<&str> = words.split_whitespace().collect();
        run("nsenter", &[&[netns.as_str()], words.as_slice()].concat());
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.name]);
    }
}

/// The namespaces.
pub(crate) struct Rig {
    from: Space,
    into: Space,
    middle: Space,
}

impl Rig {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let space = |role| Space::new(format!("sluice-i{}-{count}-{role}", std::process::id()));
        let rig = Self {
            from: space("from"),
            into: space("into"),
            middle: space("middle"),
        };
        // The wire itself says nothing.
        rig.middle
            .exec("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
        for (end, inner, number) in [(&rig.from, "left", 1), (&rig.into, "right", 2)] {
            // One queue, for XDP on them: the peer may not have more.
            end.exec(&format!(
                "ip link add eth0 numtxqueues 1 numrxqueues 1 type veth \
                 peer name {inner} numtxqueues 1 numrxqueues 1 netns {}",
                rig.middle.name
            ));
            end.exec(&format!("ip address add 10.99.0.{number}/24 dev eth0"));
            end.exec(&format!("ip address add fd99::{number}/64 dev eth0 nodad"));
            end.exec("ip link set eth0 up");
            rig.middle.exec(&format!("ip link set {inner} up"));
            // A raw socket would forward a checksum that is still to be filled in.
            end.exec("ethtool -K eth0 tx off");
        }
        rig
    }

    /// The names of the namespaces, the sender's first.
    pub(crate) fn names(&self) -> [&str; 2] {
        [&self.from.name, &self.into.name]
    }

    /// Runs `sluice-bench pktgen pair` with these words, while an injector does
    /// what is planned. What both saw.
    pub(crate) fn pair(&self, plan: &Plan<'_>, words: &str) -> (Value, Seen) {
        let (output, seen) = self.during(plan, || self.output(words));
        assert!(output.status.success(), "{output:?}");
        (serde_json::from_slice(&output.stdout).unwrap(), seen)
    }

    /// Runs a job while an injector does what is planned.
    pub(crate) fn during<T>(&self, plan: &Plan<'_>, job: impl FnOnce() -> T) -> (T, Seen) {
        let stop = AtomicBool::new(false);
        let middle = Netns::open(&self.middle.path()).unwrap();
        let wires = middle.run(|| [Wire::open("left"), Wire::open("right")]);
        let [left, right] = wires.unwrap();
        thread::scope(|scope| {
            let injector = scope.spawn(|| inject(&left, &right, plan, &stop));
            scope.spawn(|| relay(&right, &left, &stop));
            let done = job();
            stop.store(true, Ordering::Relaxed);
            (done, injector.join().unwrap())
        })
    }

    fn output(&self, words: &str) -> Output {
        let to = if words.contains("--v6") {
            format!("[fd99::2]:{PORT}")
        } else {
            format!("10.99.0.2:{PORT}")
        };
        let words = words.split_whitespace().filter(|word| *word != "--v6");
        self.bench(&["pktgen", "pair", "--json", "--to", &to], words)
    }

    /// Runs `sluice-bench` between the two namespaces.
    pub(crate) fn bench<'a>(
        &self,
        command: &[&str],
        words: impl IntoIterator<Item = &'a str>,
    ) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sluice-bench"))
            .args(command)
            .args(["--from", &self.from.name, "--into", &self.into.name])
            .args(words)
            .output()
            .unwrap()
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?} (these tests need root): {output:?}"
    );
}
