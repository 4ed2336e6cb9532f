//! Node-wide settings: the `dataplane` object of the network configuration.
//!
//! One file configures a node: the plugin reads this object from the
//! configuration that the runtime hands it, `sluiced run --conflist` from the
//! conflist itself.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::check_ifname;

/// How the worker waits when there is no traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BusyPoll {
    /// Spin for about 50 us after the last frame, then sleep.
    #[default]
    Hybrid,
    /// Never sleep: the worker has a core of its own.
    Always,
}

/// Which interface leads to the rest of the world. Its frames for mapped ports
/// of the node (hostPorts) need not pass the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Uplink {
    /// That of the default route, if it can do that.
    #[default]
    Auto,
    /// All frames pass the kernel.
    None,
    /// The one of this name, if it can do that.
    Interface(String),
}

impl From<String> for Uplink {
    fn from(text: String) -> Self {
        match text.as_str() {
            "auto" => Self::Auto,
            "none" => Self::None,
            _ => Self::Interface(text),
        }
    }
}

impl From<Uplink> for String {
    fn from(uplink: Uplink) -> Self {
        match uplink {
            Uplink::Auto => "auto".to_owned(),
            Uplink::None => "none".to_owned(),
            Uplink::Interface(name) => name,
        }
    }
}

/// The `dataplane` object of the network configuration. Every key is optional.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DataplaneSettings {
    /// Where the control socket, the pins and the journal live.
    pub run_dir: PathBuf,
    /// How many pod interfaces the node may have; sizes the UMEM at start.
    pub max_ports: u16,
    /// How many workers share the ports.
    pub workers: u16,
    /// How the workers wait.
    pub busy_poll: BusyPoll,
    /// CPUs that the worker may run on; empty means any. Several workers have one
    /// each, by turns.
    pub cpus: Vec<u16>,
    /// The interface to the rest of the world.
    pub uplink: Uplink,
}

impl Default for DataplaneSettings {
    fn default() -> Self {
        Self {
            run_dir: PathBuf::from("/run/sluice"),
            max_ports: 256,
            workers: 1,
            busy_poll: BusyPoll::default(),
            cpus: Vec::new(),
            uplink: Uplink::default(),
        }
    }
}

/// A value in the `dataplane` object that the daemon could not run with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dataplane.{key} is {value}: {rule}")]
pub struct InvalidSettings {
    /// The key, as in the configuration.
    pub key: &'static str,
    /// What it holds.
    pub value: String,
    /// What it must hold.
    pub rule: &'static str,
}

impl DataplaneSettings {
    /// The control socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("sluiced.sock")
    }

    /// Where the bpf file system with the pinned links is mounted.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.run_dir.join("bpf")
    }

    /// Where the attachments are journalled, one file each.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.run_dir.join("attachments")
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first key whose value the daemon could not run with.
    pub fn validate(&self) -> Result<(), InvalidSettings> {
        // A Unix socket's path has 108 bytes with its NUL (unix(7)).
        if !self.run_dir.is_absolute() || self.socket().as_os_str().len() > 107 {
            return Err(InvalidSettings {
                key: "runDir",
                value: self.run_dir.display().to_string(),
                rule: "must be an absolute path of at most 94 bytes",
            });
        }
        if !is_plain(&self.run_dir) {
            return Err(InvalidSettings {
                key: "runDir",
                value: self.run_dir.display().to_string(),
                rule: "must not contain '..'",
            });
        }
        if !(1..=1024).contains(&self.max_ports) {
            return Err(InvalidSettings {
                key: "maxPorts",
                value: self.max_ports.to_string(),
                rule: "must be from 1 to 1024",
            });
        }
        if !(1..=16).contains(&self.workers) {
            return Err(InvalidSettings {
                key: "workers",
                value: self.workers.to_string(),
                rule: "must be from 1 to 16",
            });
        }
        if let Some(cpu) = self.cpus.iter().find(|cpu| **cpu >= 1024) {
            return Err(InvalidSettings {
                key: "cpus",
                value: cpu.to_string(),
                rule: "must hold CPU numbers below 1024",
            });
        }
        if let Uplink::Interface(name) = &self.uplink
            && check_ifname(name).is_err()
        {
            return Err(InvalidSettings {
                key: "uplink",
                value: name.clone(),
                rule: "must be \"auto\", \"none\" or the name of an interface",
            });
        }
        Ok(())
    }
}

/// Settings as a daemon tells them. It may be of a newer release: keys and values
/// that this one does not know count as not there.
pub(crate) fn told<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<DataplaneSettings, D::Error> {
    let mut told = Map::<String, Value>::deserialize(deserializer)?;
    told.retain(|key, value| {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        DataplaneSettings::deserialize(Value::Object(alone)).is_ok()
    });
    DataplaneSettings::deserialize(Value::Object(told)).map_err(serde::de::Error::custom)
}

fn is_plain(path: &Path) -> bool {
    !path
        .components()
        .any(|part| matches!(part, std::path::Component::ParentDir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_gives_the_defaults() {
        let settings: DataplaneSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, DataplaneSettings::default());
        assert_eq!(settings.validate(), Ok(()));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = serde_json::from_str::<DataplaneSettings>(r#"{"maxport": 3}"#).unwrap_err();
        assert!(error.to_string().contains("maxport"), "{error}");
    }

    #[test]
    fn each_bound_names_its_key() {
        for (json, key) in [
            (r#"{"runDir": "run"}"#, "runDir"),
            (r#"{"runDir": "/run/../etc"}"#, "runDir"),
            (r#"{"maxPorts": 0}"#, "maxPorts"),
            (r#"{"maxPorts": 1025}"#, "maxPorts"),
            (r#"{"workers": 0}"#, "workers"),
            (r#"{"workers": 17}"#, "workers"),
            (r#"{"cpus": [1024]}"#, "cpus"),
            (r#"{"uplink": ""}"#, "uplink"),
            (r#"{"uplink": "a/b"}"#, "uplink"),
            (r#"{"uplink": "sixteen-letters-"}"#, "uplink"),
        ] {
            let settings: DataplaneSettings = serde_json::from_str(json).unwrap();
            assert_eq!(settings.validate().unwrap_err().key, key, "{json}");
        }
    }

    #[test]
    fn an_uplink_is_written_as_it_was_read() {
        for (text, uplink) in [
            ("auto", Uplink::Auto),
            ("none", Uplink::None),
            ("eth0", Uplink::Interface("eth0".into())),
        ] {
            let json = format!("\"{text}\"");
            assert_eq!(serde_json::from_str::<Uplink>(&json).unwrap(), uplink);
            assert_eq!(serde_json::to_string(&uplink).unwrap(), json);
        }
    }
}
