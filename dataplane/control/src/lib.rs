//! What the plugin and the daemon exchange.
//!
//! A Unix stream socket, one request a connection: the client writes one JSON
//! object, shuts down its writing side, and reads one JSON object to the end
//! of file. `{"protocol": {"min": 1, "max": 1}, "requires": [], "op": ...}`.
//!
//! Rules for those who change it:
//! - fields are additive: a receiver ignores what it does not know;
//! - what must not be ignored is named in `requires`, and a daemon that lacks
//!   a required feature refuses, so that a newer plugin never gets a pod that
//!   silently lacks what was asked for;
//! - a change that an older peer would misread moves [`PROTOCOL`];
//! - Detach of any version is served: a pod must always be removable.

#![forbid(unsafe_code)]

mod attachment;
mod bandwidth;
mod client;
#[cfg(test)]
mod fixture;
mod mapping;
mod names;
mod quantity;
mod settings;
mod shaping;
mod wire;

pub use attachment::{Attachment, AttachmentId, InvalidAttachment, PodAddress, PodName};
pub use bandwidth::{AskedLimit, Bandwidth, InvalidBandwidth, LimitChange};
pub use client::{Client, ClientError};
pub use mapping::{HostEnd, PortMapping, Protocol, Redirect, check_mappings};
pub use names::{check_ifname, check_label, check_name, check_pod_mac};
pub use quantity::{parse_quantity, rounded};
pub use settings::{BusyPoll, DataplaneSettings, InvalidSettings, Uplink};
pub use shaping::{BURSTS, Limit, MAX_SUBNETS, QUEUE_MILLIS, RATES, Shaping, parse_subnets};
pub use wire::{
    Envelope, ErrorCode, LONGEST_MERGED, MAX_MESSAGE_BYTES, NetworkBandwidth, NodeFacts,
    NodeStatus, PORT_MAPPINGS, PROTOCOL, ProtocolRange, Refusal, Request, Response, SHAPING,
};
