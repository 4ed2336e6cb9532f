//! Requests and responses as they cross the control socket.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Attachment, AttachmentId, Bandwidth, LimitChange};

/// The protocol version that this build speaks.
pub const PROTOCOL: u32 = 1;

/// Feature: [`Attachment::mappings`] are served.
pub const PORT_MAPPINGS: &str = "port-mappings";

/// Feature: [`Attachment::shaping`] is kept to.
pub const SHAPING: &str = "shaping";

/// The longest frame of merged segments, bytes: 17 chunks of 4096 bytes, of which the
/// kernel leaves 256 free.
pub const LONGEST_MERGED: u32 = 17 * (4096 - 256);

/// No request or response is longer than this; `show` of 1,024 ports fits, each
/// with as many subnets as limits may have.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// The protocol versions that a client can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolRange {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

impl ProtocolRange {
    /// What this build can speak.
    pub const OURS: Self = Self {
        min: PROTOCOL,
        max: PROTOCOL,
    };

    /// Whether `version` is among them.
    #[must_use]
    pub fn contains(self, version: u32) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

/// What a client sends: versions, required features, the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The protocol versions that the client can speak.
    pub protocol: ProtocolRange,
    /// Features that the daemon must have to serve this request.
    #[serde(default)]
    pub requires: Vec<String>,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// What the daemon can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is moved a few times"
)]
pub enum Request {
    /// What the plugin must know before it makes a veth.
    Describe,
    /// Serve this pod interface. Its veth exists already.
    Attach {
        /// The interface.
        attachment: Attachment,
        /// The pod's namespace as the daemon finds it: with it the pod's interface
        /// can say how merged segments are cut, and send some.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        netns: Option<PathBuf>,
    },
    /// Stop serving a pod interface; a success also if it is not known.
    Detach {
        /// Which one.
        id: AttachmentId,
    },
    /// Whether the kernel still has what a pod's mappings need.
    Check {
        /// Which pod interface.
        id: AttachmentId,
    },
    /// Whether the node has room for another pod.
    Status,
    /// What is attached, of one network or of all.
    Attachments {
        /// The network's name; `None` for all of the node.
        #[serde(default)]
        network: Option<String>,
    },
    /// The ports with their counters, for people and programs.
    ShowPorts,
    /// Node-wide counters: drops by reason, chunks, the worker's turns.
    ShowStats,
    /// What the kernel offers and what its gaps cost.
    ShowKernel,
    /// Which conversations of pods go another way than the plain one.
    ShowSessions {
        /// At most so many; an answer has room for 8,192.
        limit: usize,
    },
    /// Ports of the node and where they lead.
    ShowHostPorts,
    /// Change the limits of a pod while it runs.
    SetShaping {
        /// Which pod interface.
        id: AttachmentId,
        /// Of what comes to the pod; `None`: stays as it is.
        #[serde(default)]
        ingress: Option<LimitChange>,
        /// Of what it sends; `None`: stays as it is.
        #[serde(default)]
        egress: Option<LimitChange>,
    },
}

impl Request {
    /// The features that a daemon must have to serve this request.
    #[must_use]
    pub fn requires(&self) -> Vec<String> {
        let features = match self {
            Self::Attach { attachment, .. } => [
                (!attachment.mappings.is_empty()).then_some(PORT_MAPPINGS),
                attachment.shaping.is_limited().then_some(SHAPING),
            ],
            Self::Check { .. } | Self::ShowHostPorts => [Some(PORT_MAPPINGS), None],
            Self::SetShaping { .. } => [Some(SHAPING), None],
            _ => [None, None],
        };
        features.into_iter().flatten().map(str::to_owned).collect()
    }
}

/// What the plugin must know before it makes a veth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The MAC address of every host end, and so of each pod's gateway.
    pub gateway_mac: [u8; 6],
    /// The largest MTU that a pod's interface may have, bytes of IP packet.
    pub max_mtu: u32,
    /// The MTU of the way out of the node, the default for `mtu`.
    pub uplink_mtu: u32,
    /// Whether pods may leave checksums partial. If not, the plugin switches
    /// their checksum offload off.
    pub checksum_offload: bool,
    /// Whether they may leave TCP segments merged: TCP's, and no longer than
    /// [`LONGEST_MERGED`].
    #[serde(default)]
    pub tcp_segmentation_offload: bool,
    /// The settings the daemon runs with, so that the plugin can say where
    /// its configuration differs.
    #[serde(deserialize_with = "crate::settings::told")]
    pub settings: crate::DataplaneSettings,
    /// Limits of a plugin `bandwidth` that is chained behind ours, which has no
    /// effect there: for the pods of its network, whatever the runtime asks for
    /// them, unless our own object has limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<NetworkBandwidth>,
}

/// Limits that a network has for all its pods.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NetworkBandwidth {
    /// The network's name.
    pub network: String,
    /// The limits; those of neither direction: nobody is to have any.
    pub bandwidth: Bandwidth,
    /// Traffic with these is not limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unshaped_subnets: Vec<IpNet>,
    /// If not empty, only traffic with these is limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shaped_subnets: Vec<IpNet>,
}

/// How full the node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Pod interfaces that are attached.
    pub attached: usize,
    /// Pod interfaces that the node can have (`dataplane.maxPorts`).
    pub max_ports: u16,
}

/// What kind of failure a [`Refusal`] is; decides the CNI error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request could not be understood, or a value in it is wrong.
    Invalid,
    /// No version or feature in common.
    Unsupported,
    /// The node has no room: all ports are taken.
    Exhausted,
    /// Somebody else holds what was asked for.
    Conflict,
    /// Something failed on the node.
    Failed,
    /// A passing condition: ask again.
    Busy,
}

/// A request refused: what was tried, on what, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind of failure.
    pub code: ErrorCode,
    /// Operation, object, cause, and what to do.
    pub message: String,
}

impl Refusal {
    /// A refusal with its reason.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// What the daemon answers: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// Done; the value depends on the request: [`NodeFacts`] for Describe,
    /// [`NodeStatus`] for Status, a list of [`Attachment`] for Attachments, the rows for the `show` requests,
    /// [`Shaping`](crate::Shaping) for SetShaping, `null` otherwise.
    Ok(serde_json::Value),
    /// Not done, and nothing was changed.
    Error(Refusal),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::attachment;
    use crate::{AskedLimit, Limit};

    #[test]
    fn a_request_looks_as_documented() {
        let envelope = Envelope {
            protocol: ProtocolRange::OURS,
            requires: vec![],
            request: Request::Detach {
                id: AttachmentId {
                    network: "pods".into(),
                    container_id: "c1".into(),
                    ifname: "eth0".into(),
                },
            },
        };
        assert_eq!(
            serde_json::to_value(&envelope).unwrap(),
            serde_json::json!({
                "protocol": {"min": 1, "max": 1},
                "requires": [],
                "op": "detach",
                "id": {"network": "pods", "container_id": "c1", "ifname": "eth0"},
            })
        );
    }

    #[test]
    fn limits_need_a_daemon_that_keeps_to_them() {
        let mut attachment = attachment();
        let attach = |attachment: &Attachment| {
            let attachment = attachment.clone();
            let netns = None;
            Request::Attach { attachment, netns }.requires()
        };
        assert_eq!(attach(&attachment), Vec::<String>::new());
        attachment.shaping.egress = Some(Limit {
            rate: 1000,
            burst: 8,
        });
        assert_eq!(attach(&attachment), ["shaping"]);
        let change = Request::SetShaping {
            id: attachment.id,
            ingress: Some(LimitChange::Unlimited),
            egress: Some(LimitChange::Limit(AskedLimit {
                rate: 1000,
                burst: None,
            })),
        };
        assert_eq!(change.requires(), ["shaping"]);
        assert_eq!(
            serde_json::to_value(&change).unwrap(),
            serde_json::json!({
                "op": "set-shaping",
                "id": {"network": "pods", "container_id": "c1", "ifname": "eth0"},
                "ingress": "unlimited",
                "egress": {"limit": {"rate": 1000}},
            })
        );
    }

    #[test]
    fn fields_of_a_newer_client_are_ignored() {
        let envelope: Envelope = serde_json::from_str(
            r#"{"protocol": {"min": 1, "max": 9, "odd": 1}, "new": 1, "op": "describe"}"#,
        )
        .unwrap();
        assert_eq!(envelope.request, Request::Describe);
        assert!(envelope.protocol.contains(PROTOCOL));
    }

    #[test]
    fn facts_of_a_newer_daemon_are_understood() {
        let facts: NodeFacts = serde_json::from_value(serde_json::json!({
            "gateway_mac": [2, 0, 0, 0, 0, 1],
            "max_mtu": 65000,
            "uplink_mtu": 1500,
            "checksum_offload": true,
            "settings": {"maxPorts": 7, "busyPoll": "adaptive", "new": {"key": 1}},
            "new": 1,
        }))
        .unwrap();
        let expected = crate::DataplaneSettings {
            max_ports: 7,
            ..crate::DataplaneSettings::default()
        };
        assert_eq!(facts.settings, expected);
    }

    #[test]
    fn an_error_looks_as_documented() {
        let response = Response::Error(Refusal::new(ErrorCode::Exhausted, "no port is free"));
        assert_eq!(
            serde_json::to_value(&response).unwrap(),
            serde_json::json!({"error": {"code": "exhausted", "message": "no port is free"}})
        );
    }
}
