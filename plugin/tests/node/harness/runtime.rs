//! What a container runtime does: it runs the plugin.

use std::ffi::OsStr;
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

    /// The same network with hostPorts, each with the pod's port, the protocol
    /// and the node's address.
    #[must_use]
    pub(crate) fn mapped(&self, mappings: &[(u16, u16, &str, &str)]) -> Self {
        let entries = mappings.iter().map(|(host, container, protocol, address)| {
            json!({
                "hostPort": host, "containerPort": container, "protocol": protocol,
                "hostIP": address,
            })
        });
        let entries: Vec<_> = entries.collect();
        self.with("runtimeConfig", json!({"portMappings": entries}))
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
    pub(crate) success: bool,
    pub(super) stdout: Value,
    /// Shown when an expectation is not met.
    #[expect(dead_code, reason = "read by Debug")]
    stderr: String,
}

impl Answer {
    pub(crate) fn is_ok(&self) -> bool {
        self.success
    }

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

/// One operation on one attachment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) verb: &'a str,
    pub(crate) id: &'a str,
    pub(crate) netns: &'a Path,
    pub(crate) ifname: &'a str,
}

impl<'a> Call<'a> {
    /// An operation on a network as a whole.
    pub(crate) fn of_no_container(verb: &'a str) -> Self {
        Self {
            verb,
            id: "",
            netns: Path::new(""),
            ifname: "",
        }
    }

    /// What is not to be said is left unset.
    fn variables(&self) -> impl Iterator<Item = (&str, &OsStr)> {
        let all = [
            ("CNI_COMMAND", self.verb.as_ref()),
            ("CNI_CONTAINERID", self.id.as_ref()),
            ("CNI_NETNS", self.netns.as_os_str()),
            ("CNI_IFNAME", self.ifname.as_ref()),
        ];
        all.into_iter()
            .filter(|(_, value): &(_, &OsStr)| !value.is_empty())
    }
}

/// Runs plugins on a node.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    netns: PathBuf,
    /// Where plugins are looked for: CNI_PATH.
    folders: Vec<PathBuf>,
    cni_args: String,
}

impl Runtime {
    /// A runtime that finds a test's own plugins in `folder`, beside the
    /// reference plugins and ours.
    pub(crate) fn new(node: &Space, folder: PathBuf) -> Self {
        let reference = std::env::var_os("SLUICE_TEST_CNI_PATH");
        let ours = Path::new(env!("CARGO_BIN_EXE_sluice")).parent().unwrap();
        Self {
            netns: node.path(),
            folders: vec![
                reference.map_or_else(|| "/usr/lib/cni".into(), PathBuf::from),
                ours.to_owned(),
                folder,
            ],
            cni_args: String::new(),
        }
    }

    /// The same with this `CNI_ARGS`.
    pub(crate) fn with_args(mut self, cni_args: &str) -> Self {
        self.cni_args = cni_args.to_owned();
        self
    }

    /// An operation of our plugin on eth0 of a container in the namespace at `netns`.
    pub(crate) fn run(&self, verb: &str, id: &str, netns: &Path, network: &Network) -> Answer {
        let call = Call {
            verb,
            id,
            netns,
            ifname: "eth0",
        };
        self.call(&call, &network.0)
    }

    /// An operation of the plugin that `configuration` is for.
    pub(crate) fn call(&self, call: &Call<'_>, configuration: &Value) -> Answer {
        let plugin = configuration["type"].as_str().unwrap();
        let mut files = self.folders.iter().map(|folder| folder.join(plugin));
        let executable = files.find(|file| file.is_file());
        let executable = executable.unwrap_or_else(|| panic!("no {plugin} in {:?}", self.folders));
        let mut child = std::process::Command::new("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .arg(executable)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .envs(call.variables())
            .env("CNI_PATH", std::env::join_paths(&self.folders).unwrap())
            .env("CNI_ARGS", &self.cni_args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let request = configuration.to_string();
        // VERSION needs no input, and may be answered before it is written.
        let _ = child.stdin.take().unwrap().write_all(request.as_bytes());
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
