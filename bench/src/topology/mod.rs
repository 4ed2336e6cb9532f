//! Nodes to measure on: the same namespaces and pods, by Sluice or by what
//! users would take instead of it.

mod bed;
mod chain;
mod daemon;
mod error;
mod floor;
pub(crate) mod interrupt;
mod leftovers;
mod ovs;
mod pod;
mod process;
mod runtime;
mod site;
mod space;

pub(crate) use bed::{Bed, BedSpec, Design, Feature, HOST_PORT, POD_PORT, SERVICE};
pub(crate) use chain::Tools;
pub(crate) use error::TopologyError;
pub(crate) use leftovers::remove_leftovers;
pub(crate) use pod::Pod;
pub(crate) use runtime::{Container, Limit, Limits, List};
pub(crate) use site::{NODE, OUTSIDE};
pub(crate) use space::Space;
