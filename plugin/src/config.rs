//! The network configuration on stdin.
//!
//! Two readings. [`Network`] is what every operation needs and takes what it
//! can get, because DEL must succeed; [`Network::settings`] is strict, because
//! ADD must not build a pod that lacks what was asked for.

use std::fmt::Display;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_control::{AttachmentId, DataplaneSettings, NodeFacts, Shaping, check_name};

use crate::args::Args;
use crate::error::Error;
use crate::gc::ValidAttachment;
use crate::keys;
use crate::limits::Limits;
use crate::log;
use crate::mappings::PortmapKeys;
use crate::requests::Requests;
use crate::result::{self, Dns, Made, PrevResult};

/// The versions of the specification whose results this plugin produces.
pub(crate) const SUPPORTED_VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The version answered in when the configuration names none of ours.
pub(crate) const LATEST_VERSION: &str = SUPPORTED_VERSIONS[SUPPORTED_VERSIONS.len() - 1];

/// Where a runtime lists the attachments that it knows, for GC.
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";

/// IPv6's minimum (RFC 8200, section 5); IPv4 could do with less.
const MIN_MTU: u32 = 1280;

/// The default of `localMtu` where the node can carry it.
const LOCAL_MTU: u32 = 65_000;

/// What every operation needs of the configuration.
#[derive(Debug)]
pub(crate) struct Network {
    /// `cniVersion`, one of [`SUPPORTED_VERSIONS`].
    pub(crate) version: &'static str,
    /// `name`
    pub(crate) name: String,
    /// `ipam.type`, if it is there.
    pub(crate) ipam_type: Option<String>,
    object: Map<String, Value>,
}

impl Network {
    /// Reads what every operation needs.
    pub(crate) fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(stdin).map_err(|error| {
            Error::decode(format!(
                "decode the network configuration on stdin: {error}"
            ))
        })?;
        let Value::Object(object) = value else {
            return Err(Error::decode(
                "decode the network configuration on stdin: it is not a JSON object",
            ));
        };
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        // A configuration without a version is of 0.1.0 (specification 0.2.0).
        let version = text("cniVersion").unwrap_or("0.1.0");
        let version = supported(version).ok_or_else(|| Error::incompatible_version(version))?;
        let name = text("name").unwrap_or_default().to_owned();
        check_name(&name).map_err(|rule| {
            Error::configuration(format!("the network's name is {name:?}: it {rule}"))
        })?;
        let ipam_type = object
            .get("ipam")
            .and_then(|ipam| ipam.get("type")?.as_str())
            .map(str::to_owned);
        Ok(Self {
            version,
            name,
            ipam_type,
            object,
        })
    }

    /// Reads everything, refusing what ADD could not honour.
    pub(crate) fn settings(&self) -> Result<Settings, Error> {
        let sorted = keys::sort(&self.object).map_err(|error| self.misconfigured(&error))?;
        let settings = Settings::deserialize(Value::Object(sorted.ours))
            .map_err(|error| self.misconfigured(&error))?;
        let portmap = settings.portmap_keys().judge();
        let portmap = portmap.map_err(|error| self.misconfigured(&error))?;
        for line in sorted.moot.into_iter().chain(portmap) {
            tracing::warn!("{line}");
        }
        if let Some(path) = &settings.log_file {
            log::check_path(path).map_err(|rule| {
                self.misconfigured(&format!("logFile is {}: it {rule}", path.display()))
            })?;
        }
        settings
            .dataplane
            .validate()
            .map_err(|error| Error::configuration(format!("network {}: {error}", self.name)))?;
        Ok(settings)
    }

    /// Reads what is asked for this attachment alone.
    pub(crate) fn requests(&self) -> Result<Requests, Error> {
        Requests::read(&self.object).map_err(|error| self.misconfigured(&error))
    }

    /// Reads what the pod's traffic is to be held to.
    pub(crate) fn limits(&self) -> Result<Limits, Error> {
        Limits::read(&self.object).map_err(|error| self.misconfigured(&error))
    }

    fn misconfigured(&self, error: &dyn Display) -> Error {
        let name = &self.name;
        Error::configuration(format!("read the configuration of network {name}: {error}"))
    }

    /// The daemon's socket, whatever else `dataplane` holds; the default one
    /// if `runDir` cannot be used.
    pub(crate) fn socket(&self) -> PathBuf {
        let dataplane = self.object.get("dataplane");
        let run_dir = dataplane.and_then(|dataplane| dataplane.get("runDir")?.as_str());
        run_dir
            .map(|run_dir| DataplaneSettings {
                run_dir: run_dir.into(),
                ..DataplaneSettings::default()
            })
            .filter(|settings| settings.validate().is_ok())
            .unwrap_or_default()
            .socket()
    }

    /// What names the attachment of a container's interface to this network.
    pub(crate) fn attachment_id(&self, args: &Args) -> AttachmentId {
        AttachmentId {
            network: self.name.clone(),
            container_id: args.container_id.clone(),
            ifname: args.ifname.clone(),
        }
    }

    /// Refuses an operation that the configuration's version does not have.
    pub(crate) fn needs_version_of(&self, verb: &str) -> Result<(), Error> {
        let since = since(verb);
        if is_at_least(self.version, since) {
            return Ok(());
        }
        Err(Error::operation_is_newer(verb, since, self.version))
    }

    /// What ADD made, which CHECK must be told.
    pub(crate) fn made(&self) -> Result<Made, Error> {
        let result = self.object.get("prevResult").filter(|r| !r.is_null());
        let result = result.ok_or_else(|| {
            Error::configuration(
                "prevResult is missing: the container runtime must pass ADD's result to CHECK",
            )
        })?;
        Made::deserialize(result)
            .map_err(|error| Error::configuration(format!("read prevResult: {error}")))
    }

    /// The attachments that GC must leave alone. Without the list all would
    /// have to go, so it must be there. `null` is an empty one: runtimes in Go
    /// write a slice without elements so.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<ValidAttachment>, Error> {
        let list = self.object.get(VALID_ATTACHMENTS).ok_or_else(|| {
            Error::configuration(format!(
                "{VALID_ATTACHMENTS} is missing: the container runtime must list the valid \
                 attachments for GC, and nothing was removed"
            ))
        })?;
        let list = Option::deserialize(list).map_err(|error| {
            Error::configuration(format!(
                "{VALID_ATTACHMENTS} is {list}: {error}; nothing was removed"
            ))
        })?;
        Ok(list.unwrap_or_default())
    }

    /// The configuration as it goes to an IPAM plugin: as it came, but for the
    /// version if the plugin needs another.
    pub(crate) fn to_json(&self, version: &str) -> Vec<u8> {
        let mut object = self.object.clone();
        if version != self.version {
            object.insert("cniVersion".into(), version.into());
            if let Some(Value::Object(result)) = object.get_mut("prevResult") {
                result::convert(result, version);
            }
        }
        Value::Object(object).to_string().into_bytes()
    }
}

/// The version of the specification that an operation came with.
pub(crate) fn since(verb: &str) -> &'static str {
    match verb {
        "CHECK" => "0.4.0",
        "GC" | "STATUS" => "1.1.0",
        _ => SUPPORTED_VERSIONS[0],
    }
}

/// Whether one of [`SUPPORTED_VERSIONS`] is another of them, or later.
pub(crate) fn is_at_least(version: &str, least: &str) -> bool {
    let place = |version: &str| SUPPORTED_VERSIONS.iter().position(|v| *v == version);
    place(version) >= place(least)
}

/// The version to answer `stdin` in.
pub(crate) fn answer_version(stdin: &[u8]) -> &'static str {
    let value: Value = serde_json::from_slice(stdin).unwrap_or_default();
    value["cniVersion"]
        .as_str()
        .and_then(supported)
        .unwrap_or(LATEST_VERSION)
}

fn supported(version: &str) -> Option<&'static str> {
    SUPPORTED_VERSIONS.into_iter().find(|ours| *ours == version)
}

/// The keys of our object in the network configuration, as ADD reads them.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    /// MTU beyond the node, in bytes of IP packet.
    mtu: Option<u32>,
    /// MTU between pods of the node and of the interface, in bytes.
    local_mtu: Option<u32>,
    /// Masquerade what the pod sends beyond the node.
    pub(crate) ip_masq: bool,
    /// Make a default route whatever the interface's name.
    pub(crate) is_default_gateway: bool,
    /// Node-wide settings.
    pub(crate) dataplane: DataplaneSettings,
    /// Passed on in the result.
    pub(crate) dns: Dns,
    /// What the plugins before us in the list made.
    pub(crate) prev_result: Option<PrevResult>,
    /// Checked here, used before.
    log_file: Option<PathBuf>,
    log_level: Option<log::Level>,
    /// Let the pod reach itself through its hostPorts.
    snat: Option<bool>,
    /// Show the pod an address of the host as every hostPort client's.
    pub(crate) masq_all: bool,
    /// Merge TCP segments on their way to the pod.
    gro: Option<bool>,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    conditions_v4: Option<Vec<String>>,
    conditions_v6: Option<Vec<String>>,
}

/// An MTU for each way out of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mtus {
    /// Of routes beyond the node.
    pub(crate) uplink: u32,
    /// Of routes to pods of this node; of the interface, too, if there are no
    /// limits.
    pub(crate) local: u32,
}

impl Mtus {
    /// Those of the routes of a pod with these limits.
    pub(crate) fn under(self, shaping: &Shaping) -> Self {
        Self {
            local: shaping.mtu(self.uplink, self.local),
            ..self
        }
    }
}

impl Settings {
    /// Whether the pod reaches itself through its hostPorts.
    pub(crate) fn snat(&self) -> bool {
        self.snat.unwrap_or(true)
    }

    /// Whether TCP segments to the pod may be merged.
    pub(crate) fn gro(&self) -> bool {
        self.gro.unwrap_or(true)
    }

    fn portmap_keys(&self) -> PortmapKeys<'_> {
        PortmapKeys {
            mark_masq_bit: self.mark_masq_bit,
            external_set_mark_chain: self.external_set_mark_chain.as_deref(),
            conditions: [
                ("conditionsV4", self.conditions_v4.as_deref()),
                ("conditionsV6", self.conditions_v6.as_deref()),
            ],
        }
    }

    /// The MTUs to use on a node: the configuration's, else the node's.
    pub(crate) fn mtus(&self, facts: &NodeFacts) -> Result<Mtus, Error> {
        let most = facts.max_mtu;
        let local = self.local_mtu.unwrap_or(LOCAL_MTU.min(most));
        if local > most {
            return Err(Error::configuration(format!(
                "localMtu is {local}: it must be at most {most}, the largest that this node's \
                 kernel and daemon can carry"
            )));
        }
        let uplink = self.mtu.unwrap_or(facts.uplink_mtu.min(local));
        if !(MIN_MTU..=local).contains(&uplink) {
            return Err(Error::configuration(format!(
                "mtu is {uplink}: it must be from {MIN_MTU} (IPv6's minimum) to {local} (localMtu)"
            )));
        }
        Ok(Mtus { uplink, local })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(mut object: Value) -> Result<Settings, Error> {
        object["cniVersion"] = "1.0.0".into();
        object["name"] = "pods".into();
        object["type"] = "sluice".into();
        Network::parse(object.to_string().as_bytes())?.settings()
    }

    fn facts(max_mtu: u32, uplink_mtu: u32) -> NodeFacts {
        NodeFacts {
            gateway_mac: [2, 0, 0, 0, 0, 1],
            max_mtu,
            uplink_mtu,
            checksum_offload: true,
            tcp_segmentation_offload: true,
            settings: DataplaneSettings::default(),
            bandwidth: None,
        }
    }

    #[test]
    fn each_flaw_has_its_code() {
        for (stdin, code, needle) in [
            ("", 6, "stdin"),
            ("[]", 6, "not a JSON object"),
            (r#"{"name": "pods"}"#, 1, "0.1.0"),
            (r#"{"cniVersion": "9.0.0", "name": "pods"}"#, 1, "9.0.0"),
            (r#"{"cniVersion": "1.0.0"}"#, 7, "name"),
            (r#"{"cniVersion": "1.0.0", "name": "../etc"}"#, 7, "../etc"),
        ] {
            let error = Network::parse(stdin.as_bytes()).unwrap_err();
            assert_eq!(error.to_json(b"")["code"], code, "{stdin}");
            assert!(error.to_string().contains(needle), "{error}");
        }
    }

    #[test]
    fn keys_that_add_cannot_honour_are_named() {
        for (object, needle) in [
            (json!({"localMTU": 9000}), "localMTU"),
            (json!({"mtu": "1500"}), "1500"),
            (json!({"mtu": -1}), "-1"),
            (json!({"ipMasq": 1}), "1"),
            (json!({"dns": {"nameservers": "10.0.0.1"}}), "10.0.0.1"),
            (json!({"logLevel": "loud"}), "loud"),
            (json!({"logFile": "sluice.log"}), "sluice.log"),
            (json!({"logFile": "/var/log/../x"}), "'..'"),
            (json!({"dataplane": {"worker": 2}}), "worker"),
            (json!({"conditionsV6": ["-i", "eth1"]}), "conditionsV6"),
            (json!({"snat": "yes"}), "yes"),
            (json!({"gro": "off"}), "off"),
            (json!({"dataplane": {"maxPorts": 0}}), "maxPorts"),
        ] {
            let error = settings(object).unwrap_err();
            assert_eq!(error.to_json(b"")["code"], 7);
            assert!(error.to_string().contains(needle), "{error}");
        }
    }

    #[test]
    fn the_specifications_keys_are_accepted() {
        let object = json!({
            "ipam": {"type": "host-local"}, "capabilities": {},
            "args": {}, "dns": {"nameservers": ["10.0.0.1"]}, "disableCheck": true,
            "disableGC": true, "loadOnlyInlinedPlugins": true, "ipMasq": true,
            "prevResult": {"cniVersion": "1.0.0"}, "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        });
        let settings = settings(object).unwrap();
        assert!(settings.snat() && !settings.masq_all);
        assert!(settings.ip_masq && settings.prev_result.is_some());
    }

    /// A key that is there twice counts once.
    #[test]
    fn the_shipped_conflist_declares_every_capability() {
        let conflist = include_str!("../../deploy/10-sluice.conflist");
        let conflist: Value = serde_json::from_str(conflist).unwrap();
        let object = conflist["plugins"][0].clone();
        let all = json!({"bandwidth": true, "ips": true, "mac": true, "portMappings": true});
        assert_eq!(object["capabilities"], all);
        assert!(settings(object).unwrap().ip_masq);
    }

    #[test]
    fn the_socket_is_found_beside_any_nonsense() {
        for (dataplane, socket) in [
            (json!({"runDir": "/run/x"}), "/run/x/sluiced.sock"),
            (json!({"runDir": "../x"}), "/run/sluice/sluiced.sock"),
            (json!({"runDir": "/run/x", "new": 1}), "/run/x/sluiced.sock"),
            (json!({"new": 1}), "/run/sluice/sluiced.sock"),
            (json!(7), "/run/sluice/sluiced.sock"),
        ] {
            let object = json!({"cniVersion": "1.0.0", "name": "pods", "dataplane": dataplane});
            let network = Network::parse(object.to_string().as_bytes()).unwrap();
            assert_eq!(network.socket(), PathBuf::from(socket));
        }
    }

    #[test]
    fn mtus_default_to_what_the_node_can() {
        for (object, facts, uplink, local) in [
            (json!({}), facts(65_000, 1500), 1500, 65_000),
            (json!({}), facts(65_535, 9000), 9000, 65_000),
            (json!({}), facts(3498, 9000), 3498, 3498),
            (json!({"localMtu": 1400}), facts(65_000, 1500), 1400, 1400),
            (
                json!({"mtu": 1280, "localMtu": 9000}),
                facts(65_000, 1500),
                1280,
                9000,
            ),
        ] {
            let mtus = settings(object.clone()).unwrap().mtus(&facts).unwrap();
            assert_eq!(mtus, Mtus { uplink, local }, "{object}");
        }
    }

    #[test]
    fn mtus_out_of_range_are_refused_with_the_rule() {
        for (object, needle) in [
            (json!({"mtu": 1279}), "1280"),
            (json!({"mtu": 9001, "localMtu": 9000}), "9000 (localMtu)"),
            (json!({"localMtu": 65_001}), "at most 65000"),
            (json!({"localMtu": 1000}), "mtu is 1000"),
        ] {
            let error = settings(object)
                .unwrap()
                .mtus(&facts(65_000, 1500))
                .unwrap_err();
            assert_eq!(error.to_json(b"")["code"], 7);
            assert!(error.to_string().contains(needle), "{error}");
        }
    }
}
