//! What the plugin and the daemon both do to network interfaces.
//!
//! - [`Netns`]: an open network namespace, and running code inside it
//! - [`Netlink`]: links, addresses, routes, neighbours and rules, blocking calls
//! - [`features`]: offloads of an interface (the ethtool ioctl)
//! - [`sysctl`]: keys under `/proc/sys`
//!
//! "The calling thread's namespace" matters throughout: a Linux thread, not a
//! process, is in a network namespace. [`Netns::run`] never changes that of
//! its caller, so that no early return can leave a thread in the wrong one.

mod error;
pub mod features;
mod netlink;
mod netns;
pub mod sysctl;

pub use error::LinkError;
pub use netlink::{
    AddressOptions, Forwarding, Hop, Link, Neighbour, Netlink, Route, VethPair, VethPeer, XdpMode,
};
pub use netns::Netns;
