//! Network namespaces, and what can be done inside them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use sluice_link::Netns;

/// A named network namespace, deleted when dropped.
#[derive(Debug)]
pub(crate) struct Space {
    name: String,
}

impl Space {
    pub(crate) fn new(name: String) -> Self {
        let output = Command::new("ip").args(["netns", "add", &name]).output();
        let output = output.expect("run ip");
        assert!(output.status.success(), "ip netns add {name}: {output:?}");
        Self { name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command inside. Not by `ip netns exec`: that makes a mount namespace
    /// too, and hides what is mounted in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        command
    }

    /// Runs a command, given as words, and returns what became of it.
    pub(crate) fn output(&self, words: &str) -> Output {
        let mut words = words.split_whitespace();
        let program = words.next().expect("a command");
        let output = self.command(program).args(words).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs a command, given as words, and returns what it printed.
    #[track_caller]
    pub(crate) fn exec(&self, words: &str) -> String {
        let output = self.output(words);
        assert!(
            output.status.success(),
            "{words} (in {}): {}{}",
            self.name,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a command like `ip -j` printed.
    #[track_caller]
    pub(crate) fn json(&self, words: &str) -> Vec<Value> {
        match self.exec(words).trim() {
            "" => vec![],
            json => serde_json::from_str(json).unwrap_or_else(|e| panic!("{words}: {e}: {json}")),
        }
    }

    /// Runs `job` on a thread inside: sockets it opens stay in this namespace.
    #[track_caller]
    pub(crate) fn in_netns<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let netns = Netns::open(&self.path()).unwrap();
        netns.run(job).unwrap()
    }

    pub(crate) fn sysctl(&self, key: &str) -> String {
        self.exec(&format!("cat /proc/sys/{key}")).trim().to_owned()
    }

    /// What its kernel has counted since it was made (`nstat`).
    #[track_caller]
    pub(crate) fn counters(&self) -> Value {
        let mut all: Value = serde_json::from_str(&self.exec("nstat --json -azs")).unwrap();
        all["kernel"].take()
    }

    /// The usable link-local address of an interface.
    pub(crate) fn link_local(&self, ifname: &str) -> Option<IpAddr> {
        let command = format!("ip -j -6 address show dev {ifname} scope link -tentative");
        let shown = self.json(&command);
        // What the filter leaves out is there as an empty object.
        let mut addresses = shown
            .iter()
            .flat_map(|link| link["addr_info"].as_array().unwrap());
        addresses.find_map(|address| address["local"].as_str()?.parse().ok())
    }

    /// The MAC address of an interface.
    #[track_caller]
    pub(crate) fn mac(&self, ifname: &str) -> [u8; 6] {
        let link = self
            .json(&format!("ip -j link show dev {ifname}"))
            .remove(0);
        parse_mac(link["address"].as_str().unwrap())
    }

    /// Names of the interfaces.
    pub(crate) fn links(&self) -> Vec<String> {
        let links = self.json("ip -j link");
        links
            .iter()
            .map(|l| l["ifname"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Six bytes, in hexadecimal and with colons.
pub(super) fn parse_mac(text: &str) -> [u8; 6] {
    let bytes = text.split(':');
    let bytes = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap());
    Vec::from_iter(bytes).try_into().unwrap()
}

impl Drop for Space {
    fn drop(&mut self) {
        // What a test failed over is gone with the namespace.
        if std::thread::panicking()
            && let Ok(sockets) = self.command("ss").args(["-tnmoie"]).output()
        {
            let sockets = String::from_utf8_lossy(&sockets.stdout);
            eprintln!("TCP in {}: {sockets}", self.name);
        }
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("could not delete the namespace {}", self.name);
        }
    }
}
