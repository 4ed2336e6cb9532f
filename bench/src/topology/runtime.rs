//! What a container runtime does with a network configuration list: it runs
//! plugins, one process each.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use sluice_link::Netns;

use super::{Space, TopologyError};

/// Version of the specification that the reference plugins of Debian 12 and
/// ours both speak.
const CNI_VERSION: &str = "1.0.0";

/// A network configuration list, and where its plugins are and run.
#[derive(Debug, Clone)]
pub(crate) struct List {
    pub(super) name: &'static str,
    pub(super) plugins: Vec<Value>,
    /// CNI_PATH.
    pub(super) folders: Vec<PathBuf>,
    /// The node's namespace.
    pub(super) node: PathBuf,
}

/// A container, there or to be attached.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(super) id: String,
    /// Its namespace.
    pub(super) netns: PathBuf,
    /// Its hostPorts, in the way of the capability `portMappings`.
    pub(super) mappings: Vec<Value>,
    /// Its limits, in the way of the capability `bandwidth`.
    pub(super) bandwidth: Option<Value>,
}

/// What a pod's traffic is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Limits {
    pub(crate) ingress: Option<Limit>,
    pub(crate) egress: Option<Limit>,
}

/// One direction's: bits a second, and bits that may pass at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Limit {
    pub(crate) rate: u64,
    pub(crate) burst: u64,
}

impl Container {
    /// A container in a namespace, without hostPorts.
    pub(crate) fn new(space: &Space) -> Self {
        Self {
            id: space.name().to_owned(),
            netns: space.path(),
            mappings: vec![],
            bandwidth: None,
        }
    }

    /// The same with limits.
    #[must_use]
    pub(crate) fn limited(mut self, limits: Limits) -> Self {
        let mut bandwidth = json!({});
        for (way, limit) in [("ingress", limits.ingress), ("egress", limits.egress)] {
            if let Some(limit) = limit {
                bandwidth[format!("{way}Rate")] = limit.rate.into();
                bandwidth[format!("{way}Burst")] = limit.burst.into();
            }
        }
        self.bandwidth = Some(bandwidth);
        self
    }

    /// The same with a hostPort that leads to a port of its own.
    #[must_use]
    pub(crate) fn mapped(mut self, host_port: u16, port: u16, protocols: &[&str]) -> Self {
        self.mappings.extend(protocols.iter().map(
            |protocol| json!({"hostPort": host_port, "containerPort": port, "protocol": protocol}),
        ));
        self
    }
}

impl List {
    /// Each plugin in turn, with the result of the one before it: what the
    /// last one answered.
    ///
    /// # Errors
    /// The first failure, which ends it.
    pub(crate) fn add(&self, container: &Container) -> Result<Value, TopologyError> {
        let add = || {
            let mut result = None;
            for plugin in &self.plugins {
                result = Some(self.run("ADD", plugin, container, result.as_ref())?);
            }
            Ok(result.unwrap_or_default())
        };
        Netns::open(&self.node)?.run(add)?
    }

    /// Each plugin in reverse order, with the result of ADD.
    ///
    /// # Errors
    /// The first failure, which ends it.
    pub(crate) fn del(&self, container: &Container, result: &Value) -> Result<(), TopologyError> {
        let del = || {
            for plugin in self.plugins.iter().rev() {
                self.run("DEL", plugin, container, Some(result))?;
            }
            Ok(())
        };
        Netns::open(&self.node)?.run(del)?
    }

    /// Runs a plugin in the calling thread's namespace.
    fn run(
        &self,
        verb: &'static str,
        plugin: &Value,
        container: &Container,
        previous: Option<&Value>,
    ) -> Result<Value, TopologyError> {
        let name = plugin["type"].as_str().unwrap_or_default();
        let failed = |said: String| TopologyError::Plugin {
            verb,
            plugin: name.to_owned(),
            said,
        };
        let mut files = self.folders.iter().map(|folder| folder.join(name));
        let file = files.find(|file| file.is_file()).ok_or_else(|| {
            let folders = &self.folders;
            failed(format!(
                "not in {folders:?}; install containernetworking-plugins, or give --cni-path"
            ))
        })?;
        let path = std::env::join_paths(&self.folders).map_err(|e| failed(e.to_string()))?;
        let mut child = std::process::Command::new(file)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &container.id)
            .env("CNI_NETNS", &container.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            let request = self.request(plugin, container, previous).to_string();
            let written = stdin.write_all(request.as_bytes());
            written.map_err(|error| failed(error.to_string()))?;
        }
        let output = child
            .wait_with_output()
            .map_err(|error| failed(error.to_string()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!("{}; {stdout}{stderr}", output.status)));
        }
        match stdout.trim() {
            "" => Ok(Value::Null),
            json => serde_json::from_str(json).map_err(|error| failed(error.to_string())),
        }
    }

    /// "Deriving request configuration from plugin configuration": of what the
    /// runtime has to say, that for which the plugin has a capability.
    fn request(&self, plugin: &Value, container: &Container, previous: Option<&Value>) -> Value {
        let mut request = plugin.clone();
        request["cniVersion"] = CNI_VERSION.into();
        request["name"] = self.name.into();
        let mappings = (!container.mappings.is_empty()).then(|| json!(container.mappings));
        let arguments = [
            ("portMappings", mappings),
            ("bandwidth", container.bandwidth.clone()),
        ];
        for (capability, argument) in arguments {
            if let Some(argument) = argument
                && plugin["capabilities"][capability] == true
            {
                request["runtimeConfig"][capability] = argument;
            }
        }
        if let Some(previous) = previous {
            request["prevResult"] = previous.clone();
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_learns_what_it_is_capable_of() {
        let list = List {
            name: "pods",
            plugins: vec![],
            folders: vec![],
            node: PathBuf::new(),
        };
        let container = Container {
            id: "c".into(),
            netns: PathBuf::new(),
            mappings: vec![],
            bandwidth: None,
        };
        let rate = Limit { rate: 5, burst: 6 };
        let container = container.mapped(8000, 80, &["tcp", "udp"]).limited(Limits {
            ingress: Some(rate),
            egress: None,
        });
        let capable = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let request = list.request(&capable, &container, Some(&json!({"ips": []})));
        let mappings = request["runtimeConfig"]["portMappings"].as_array().unwrap();
        assert_eq!(mappings.len(), 2);
        assert_eq!(mappings[1]["hostPort"], 8000);
        assert_eq!(request["prevResult"], json!({"ips": []}));
        assert_eq!(request["runtimeConfig"].get("bandwidth"), None);
        let capable = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
        let request = list.request(&capable, &container, None);
        assert_eq!(
            request["runtimeConfig"],
            json!({"bandwidth": {"ingressRate": 5, "ingressBurst": 6}})
        );
        let request = list.request(&json!({"type": "bridge"}), &container, None);
        assert_eq!(
            request,
            json!({"type": "bridge", "name": "pods", "cniVersion": "1.0.0"})
        );
    }
}
