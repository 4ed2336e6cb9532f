//! A node to run the plugin on.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::space::Space;

/// The versions of the specification that the plugin supports.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn reference_plugins() -> String {
    std::env::var("SLUICE_TEST_CNI_PATH").unwrap_or_else(|_| "/usr/lib/cni".into())
}

pub(crate) struct Node {
    pub(crate) host: Space,
    pub(crate) daemon: Option<Daemon>,
    dir: TempDir,
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: Value,
    pub(crate) stderr: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.success, "{self:?}");
        self.stdout
    }

    /// Asserts a failure with this code, whose message holds `needle`.
    #[track_caller]
    pub(crate) fn fails(self, code: u32, needle: &str) -> Value {
        assert!(!self.success, "{self:?}");
        assert_eq!(self.stdout["code"], code, "{self:?}");
        let message = self.stdout["msg"].as_str().unwrap();
        assert!(message.contains(needle), "{needle:?} is not in {message:?}");
        self.stdout
    }
}

impl Node {
    pub(crate) fn new() -> Self {
        let host = Space::new("host");
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&dir.path().join("sluiced.sock"), &host);
        Self {
            host,
            daemon: Some(daemon),
            dir,
        }
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    /// A network with an IPv4 and an IPv6 range.
    pub(crate) fn network(&self) -> Value {
        self.network_of(&["10.77.0.0/24", "fd77::/64"])
    }

    pub(crate) fn network_of(&self, subnets: &[&str]) -> Value {
        let ranges: Vec<_> = subnets.iter().map(|s| json!([{"subnet": s}])).collect();
        self.network_with(json!({
            "type": "host-local",
            "ranges": ranges,
            "dataDir": self.dir.path().join("ipam"),
        }))
    }

    pub(crate) fn network_with(&self, ipam: Value) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "sluice",
            "dataplane": {"runDir": self.dir.path()},
            "ipam": ipam,
        })
    }

    /// Puts an IPAM plugin named "stub" on CNI_PATH, a shell script.
    pub(crate) fn stub_ipam(&self, script: &str) -> Value {
        self.script("stub", script);
        self.network_with(json!({"type": "stub"}))
    }

    /// Puts a shell script on CNI_PATH.
    pub(crate) fn script(&self, name: &str, script: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn add(&self, pod: &Space, network: &Value) -> Answer {
        self.sluice("ADD", &[("CNI_NETNS", &pod.path())], network)
    }

    /// CHECK of what an ADD to this network answered with `result`.
    pub(crate) fn check(&self, pod: &Space, network: &Value, result: &Value) -> Answer {
        let mut network = network.clone();
        network["prevResult"] = result.clone();
        self.sluice("CHECK", &[("CNI_NETNS", &pod.path())], &network)
    }

    /// GC with these container IDs, each with eth0, as the valid ones.
    pub(crate) fn gc(&self, network: &Value, valid: &[&str]) -> Answer {
        let valid = valid.iter();
        let valid: Vec<Value> = valid
            .map(|id| json!({"containerID": id, "ifname": "eth0"}))
            .collect();
        let mut network = network.clone();
        network["cni.dev/valid-attachments"] = valid.into();
        self.sluice("GC", &[], &network)
    }

    pub(crate) fn del(&self, network: &Value) -> Answer {
        self.sluice("DEL", &[], network)
    }

    /// Runs the plugin for eth0 of container c1, unless `env` says otherwise.
    pub(crate) fn sluice(&self, command: &str, env: &[(&str, &str)], network: &Value) -> Answer {
        let path = self.cni_path();
        let mut all = vec![
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", path.as_str()),
        ];
        all.extend(env);
        let output = self.run(&all, network.to_string().as_bytes());
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

    pub(crate) fn cni_path(&self) -> String {
        format!("{}:{}", reference_plugins(), self.dir.path().display())
    }

    /// Runs the plugin in the host's namespace, with these variables only.
    pub(crate) fn run(&self, env: &[(&str, &str)], stdin: &[u8]) -> Output {
        let mut child = Command::new("nsenter")
            .arg(format!("--net={}", self.host.path()))
            .arg(env!("CARGO_BIN_EXE_sluice"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A plugin that needs no input may be gone before it is written.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    /// Addresses that host-local holds to be in use.
    pub(crate) fn reserved(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(self.dir.path().join("ipam/pods")) else {
            return vec![];
        };
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut addresses: Vec<_> = names.filter(|n| n.starts_with(['1', 'f'])).collect();
        addresses.sort();
        addresses
    }

    /// Asserts that nothing is left of any attachment.
    #[track_caller]
    pub(crate) fn assert_clean(&self, pod: Option<&Space>) {
        assert_eq!(self.host.links(), ["lo"]);
        if let Some(pod) = pod {
            assert_eq!(pod.links(), ["lo"]);
        }
        assert_eq!(self.reserved(), Vec::<String>::new());
        if let Some(daemon) = &self.daemon {
            assert_eq!(daemon.attached(), []);
        }
    }
}
