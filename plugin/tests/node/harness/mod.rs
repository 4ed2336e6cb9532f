//! A node to test on: namespaces, the real daemon, the real plugin.

pub(crate) mod arrivals;
pub(crate) mod bad_wire;
pub(crate) mod capture;
mod daemon;
pub(crate) mod flows;
pub(crate) mod frames;
mod list;
pub(crate) mod mapped;
mod node;
mod parallel;
pub(crate) mod pinger;
mod pod;
mod process;
mod runtime;
mod site;
mod snapshot;
mod space;
mod stand;
mod wait;
pub(crate) mod wire;

pub(crate) use daemon::executable;
pub(crate) use list::{Container, List, all_ok};
pub(crate) use node::{Counters, Node, Options};
pub(crate) use parallel::in_parallel;
pub(crate) use pod::Pod;
pub(crate) use process::Holdings;
pub(crate) use runtime::{Answer, Network};
pub(crate) use site::{BEYOND4, BEYOND6, NODE4, NODE6, OUT4, OUT6, Site};
pub(crate) use snapshot::Snapshot;
pub(crate) use space::Space;
pub(crate) use stand::{Stand, report};
pub(crate) use wait::{PATIENCE, wait_until};
