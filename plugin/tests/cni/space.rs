//! Network namespaces, and looking into them.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

/// A named network namespace, deleted when dropped.
pub(crate) struct Space {
    name: String,
}

impl Space {
    pub(crate) fn new(role: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-plugin-{}-{role}-{count}", std::process::id());
        run("ip", &["netns", "add", &name]);
        Self { name }
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Output of a command inside.
    pub(crate) fn exec(&self, command: &[&str]) -> String {
        let netns = format!("--net={}", self.path());
        run("nsenter", &[&[netns.as_str()], command].concat())
    }

    /// Output of `ip -j -d`, parsed.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Vec<Value> {
        let out = self.exec(&[&["ip", "-j", "-d"], arguments].concat());
        match out.trim() {
            "" => vec![],
            json => serde_json::from_str(json).unwrap(),
        }
    }

    pub(crate) fn link(&self, name: &str) -> Value {
        self.ip(&["link", "show", name]).remove(0)
    }

    pub(crate) fn links(&self) -> Vec<String> {
        let links = self.ip(&["link"]);
        links
            .iter()
            .map(|l| l["ifname"].as_str().unwrap().into())
            .collect()
    }

    /// "destination via gateway mtu N flags" of each route of the main table,
    /// the kernel's own left out.
    pub(crate) fn routes(&self) -> Vec<String> {
        let mut routes = self.ip(&["-4", "route"]);
        routes.extend(self.ip(&["-6", "route"]));
        let own = routes.iter().filter(|r| r["protocol"] != "kernel");
        own.map(|r| {
            let text = |key: &str| r[key].as_str().unwrap().to_owned();
            let mtu = &r["metrics"][0]["mtu"];
            format!(
                "{} via {} mtu {mtu} {}",
                text("dst"),
                text("gateway"),
                r["flags"]
            )
        })
        .collect()
    }

    pub(crate) fn sysctl(&self, key: &str) -> String {
        self.exec(&["cat", &format!("/proc/sys/{key}")])
            .trim()
            .into()
    }

    /// Names and states of the transmit checksum offloads.
    pub(crate) fn checksum_offloads(&self, ifname: &str) -> Vec<(String, String)> {
        let shown = self.exec(&["ethtool", "-k", ifname]);
        let lines = shown.lines().filter_map(|line| line.split_once(": "));
        lines
            .map(|(name, state)| (name.trim().to_owned(), state.to_owned()))
            .filter(|(name, _)| name.starts_with("tx-checksum"))
            .collect()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.name]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?} (these tests need root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
