//! The real plugin binary in real namespaces.
//!
//! A [`node::Node`] is a namespace for the host with the real host-local on
//! `CNI_PATH`, and a daemon that only takes notes; pods are namespaces too.
//! `SLUICE_TEST_CNI_PATH` says where the reference plugins are, if not where
//! Debian's containernetworking-plugins puts them.
//!
//! Needs root, and fails without: a test that skips itself proves nothing.

mod add;
mod check;
mod daemon;
mod del;
mod gc;
mod ipam;
mod limits;
mod log;
mod mappings;
mod node;
mod parallel;
mod requests;
mod routes;
mod space;
mod status;
mod table;
mod version;
