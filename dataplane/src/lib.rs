//! The Sluice dataplane: pods' frames, forwarded in userspace.
//!
//! Words and data flow are in this folder's README. The modules, in reading
//! order. Those of the feature `daemon` deal with the node's kernel; fuzzing
//! and benches do without them and what they depend on.

#![deny(unsafe_code)]

pub mod packet;
pub mod xsk;

pub mod counters;
pub mod cpus;
pub mod time;
pub mod verdict;

mod fragments;
mod gro;
pub mod mappings;
pub mod next_hops;
pub mod ownership;
pub mod pods;
pub mod port;
mod promotion;
mod rate_limit;
pub mod sessions;
pub mod shaper;

pub mod engine;
pub mod fleet;
pub mod handoff;
pub mod lab;
pub mod pipeline;
mod return_path;
mod watch;
pub mod worker;

#[cfg(feature = "daemon")]
mod bpf_error;
#[cfg(feature = "daemon")]
pub mod forwarding;
#[cfg(feature = "daemon")]
pub mod host_port;
#[cfg(feature = "daemon")]
pub mod host_sockets;
#[cfg(feature = "daemon")]
pub mod journal;
#[cfg(feature = "daemon")]
pub mod listeners;
#[cfg(feature = "daemon")]
pub mod mapping_tables;
#[cfg(feature = "daemon")]
pub mod netfilter;
#[cfg(feature = "daemon")]
mod netlink;
#[cfg(feature = "daemon")]
pub mod node;
#[cfg(feature = "daemon")]
pub mod probe;
#[cfg(feature = "daemon")]
pub mod program;
#[cfg(feature = "daemon")]
pub mod remains;
#[cfg(feature = "daemon")]
pub mod run_dir;
#[cfg(feature = "daemon")]
pub mod server;
#[cfg(feature = "daemon")]
mod sock_diag;
#[cfg(feature = "daemon")]
pub mod stale_sockets;
