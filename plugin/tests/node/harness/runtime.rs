//! What a container runtime does: it runs the plugin.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::Space;

/// A network configuration, as a runtime hands it to the plugin.
#[derive(Debug, Clone)]
pub(crate) struct Network(pub(crate) Value);

impl Network {
    /// The same network with one key set.
    #[must_use]
    pub(crate) fn with(&self, key: &str, value: impl Into<Value>) -> Self {
        let mut network = self.clone();
        network.0[key] = value.into();
        network
    }

    /// The conflist of this one plugin, as it lies in `/etc/cni/net.d`.
    pub(crate) fn conflist(&self) -> Value {
        let mut plugin = self.0.clone();
        let object = plugin.as_object_mut().unwrap();
        let version = object.remove("cniVersion");
        let name = object.remove("name");
        json!({"cniVersion": version, "name": name, "plugins": [plugin]})
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    success: bool,
    stdout: Value,
    /// Shown when an expectation is not met.
    #[expect(dead_code, reason = "read by Debug")]
    stderr: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.stdout
    }

    /// Asserts a failure with this code, whose message holds every needle.
    #[track_caller]
    pub(crate) fn fails(&self, code: u32, needles: &[&str]) {
        assert!(!self.success, "{self:?}");
        assert_eq!(self.stdout["code"], code, "{self:?}");
        let message = self.stdout["msg"].as_str().unwrap();
        for needle in needles {
            assert!(message.contains(needle), "{needle:?} is not in {message:?}");
        }
    }
}

/// Runs the plugin on a node.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    netns: PathBuf,
}

impl Runtime {
    pub(crate) fn new(node: &Space) -> Self {
        Self { netns: node.path() }
    }

    /// An operation on eth0 of a container in the namespace at `netns`.
    pub(crate) fn run(&self, verb: &str, id: &str, netns: &Path, network: &Network) -> Answer {
        let mut child = std::process::Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .arg(env!("CARGO_BIN_EXE_sluice"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", cni_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = network.0.to_string();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(stdin.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        Answer {
            success: output.status.success(),
            stdout: match stdout.as_str() {
                "" => Value::Null,
                json => serde_json::from_str(json).unwrap(),
            },
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Where the reference plugins are, and ours.
fn cni_path() -> String {
    let reference =
        std::env::var("SLUICE_TEST_CNI_PATH").unwrap_or_else(|_| "/usr/lib/cni".to_owned());
    let ours = Path::new(env!("CARGO_BIN_EXE_sluice")).parent().unwrap();
    format!("{reference}:{}", ours.display())
}
