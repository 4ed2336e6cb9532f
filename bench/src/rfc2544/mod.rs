//! `sluice-bench rfc2544`: the tests of RFC 2544 section 26 on a pod network,
//! and what a change of the node's configuration costs.
//!
//! - [`dut`]: what is asked of the network that is measured
//! - [`throughput`], [`loss`], [`back_to_back`]: the tests, over any such
//!   network, the simulated one of their own tests too
//! - [`path`]: a real one; [`reconfigure`]: what changes on a node under load
//! - [`cli`], [`report`]

mod back_to_back;
mod cli;
mod dut;
mod loss;
mod path;
mod reconfigure;
mod report;
mod throughput;

pub(crate) use cli::{Args, run};
