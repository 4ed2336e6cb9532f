//! Mapped ports of the node, told to the worker.
//!
//! It only carries faster what the host's rules mean: what it is not told, the
//! kernel serves.

use std::collections::HashSet;
use std::net::IpAddr;

use sluice_control::Redirect;
use sluice_link::{Netlink, sysctl};

use super::NodeError;
use super::book::Book;
use super::wiring::Wiring;
use crate::mappings::{Mapping, Mappings};
use crate::port::PortId;

/// What was told last.
#[derive(Default)]
pub(super) struct Mapped {
    addresses: HashSet<IpAddr>,
    redirects: Vec<(PortId, Redirect)>,
}

impl Mapped {
    /// Looks at the node's addresses, and at the attachments, and tells the
    /// worker if something has changed.
    pub(super) fn tell(
        &mut self,
        book: &Book,
        wiring: &Wiring,
        netlink: &Netlink,
    ) -> Result<(), NodeError> {
        let redirects = redirects(book);
        // A node without mapped ports need not look at anything.
        if redirects.is_empty() && self.redirects.is_empty() {
            return Ok(());
        }
        let addresses: HashSet<IpAddr> = netlink
            .all_addresses()?
            .into_iter()
            .map(|net| net.addr())
            .filter(|address| !address.is_loopback())
            .collect();
        if redirects == self.redirects && addresses == self.addresses {
            return Ok(());
        }
        // A kernel that has seen but the beginning of a connection, and carries it
        // on when this daemon is gone, must not mistrust what it finds
        // (Documentation/networking/nf_conntrack-sysctl.rst).
        sysctl::write("net/netfilter/nf_conntrack_tcp_be_liberal", "1")?;
        let mappings = redirects.iter().map(|(pod, redirect)| Mapping {
            address: redirect.from.address,
            host_port: redirect.from.port,
            protocol: redirect.from.protocol.number(),
            pod: *pod,
            pod_address: redirect.to.ip(),
            container_port: redirect.to.port(),
        });
        wiring.set_mappings(Mappings::new(addresses.iter().copied(), mappings))?;
        (self.redirects, self.addresses) = (redirects, addresses);
        Ok(())
    }
}

/// Where ports of the node lead, by pods.
fn redirects(book: &Book) -> Vec<(PortId, Redirect)> {
    let entries = book.sorted().into_iter();
    let redirects = entries.flat_map(|entry| {
        let redirects = entry.attachment.redirects();
        redirects.map(|redirect| (entry.wired.id, redirect))
    });
    redirects.collect()
}
