//! A start after another daemon's end: its pods taken back, its remains gone.
//!
//! The worker knows every pod before the first frame comes: a packet for a pod
//! that is not back yet would be answered "unreachable". Then the frames are
//! let in, pod by pod; last the host is made to agree.

use std::collections::HashSet;
use std::net::IpAddr;

use sluice_control::Attachment;
use sluice_link::Link;

use super::book::Entry;
use super::{Node, NodeError};
use crate::host_port::GATEWAY_MAC;

/// What the plugin's names for the host's ends of pods' veths begin with.
const POD_PREFIX: &str = "slv";

/// Whether the plugin made this interface: the host's end of a pod's veth.
pub(crate) fn is_pods(link: &Link) -> bool {
    link.mac == Some(GATEWAY_MAC) && link.name.starts_with(POD_PREFIX)
}

impl Node {
    /// Takes back what the journal says, starts the host port, and removes what
    /// belongs to nobody.
    ///
    /// # Errors
    /// The host port, the journal or the host's rules. A pod that cannot be
    /// served is no error: it stays cut off, and the log says why.
    pub(super) fn take_back(&mut self) -> Result<(), NodeError> {
        let known = self.journal.load()?;
        let links = self.netlink.links()?;
        let mut opened = Vec::new();
        for attachment in known {
            match links
                .iter()
                .find(|link| link.name == attachment.host_ifname)
            {
                Some(link) if link.mac == Some(GATEWAY_MAC) => {
                    opened.extend(self.open(attachment, link).map(|entry| (entry, link)));
                }
                _ => {
                    tracing::info!(id = %attachment.id, "its interface is gone: forgotten");
                    self.journal.remove(&attachment.host_ifname)?;
                }
            }
        }
        self.wiring.start_host()?;
        let found = self.netlink.routes()?;
        for (
            Entry {
                attachment,
                mut wired,
            },
            link,
        ) in opened
        {
            let slot = wired.id;
            match self
                .wiring
                .resume_pod(&attachment, link, &mut wired, &found)
            {
                Ok(()) => self.book.insert(Entry { attachment, wired }),
                Err(error) => {
                    self.wiring.strand(wired);
                    self.book.release(slot);
                    self.strand(attachment, &error.to_string());
                }
            }
        }
        self.remove_strangers(&links)?;
        self.wiring.settle(&self.addresses())?;
        if self.book.len() > 0 {
            tracing::info!(pods = self.book.len(), "taken back from an earlier daemon");
        }
        Ok(())
    }

    fn open(&mut self, attachment: Attachment, link: &Link) -> Option<Entry> {
        let Some(port) = self.book.reserve() else {
            self.strand(attachment, "all ports are taken; raise dataplane.maxPorts");
            return None;
        };
        match self.wiring.open_pod(&attachment, link, port) {
            Ok(wired) => Some(Entry { attachment, wired }),
            Err(error) => {
                self.book.release(port);
                self.strand(attachment, &error.to_string());
                None
            }
        }
    }

    /// It keeps its journal file, its interface and the program on it: the
    /// next start may do better.
    fn strand(&mut self, attachment: Attachment, why: &str) {
        tracing::warn!(
            id = %attachment.id,
            interface = attachment.host_ifname,
            "cannot be taken back and is cut off: {why}; then restart sluiced, or recreate the pod"
        );
        self.stranded.push(attachment);
    }

    /// Interfaces of pods that the journal does not know: an ADD that the
    /// earlier daemon did not live to answer. Nobody will ask for them again.
    /// Those of a file that was set aside stay: they are running pods'.
    fn remove_strangers(&self, links: &[Link]) -> Result<(), NodeError> {
        let entries = self.book.sorted();
        let known: HashSet<&str> = entries
            .iter()
            .map(|entry| &entry.attachment)
            .chain(&self.stranded)
            .map(|attachment| attachment.host_ifname.as_str())
            .collect();
        for link in links.iter().filter(|link| is_pods(link)) {
            if self.journal.was_set_aside(&link.name) {
                tracing::warn!(interface = link.name, "cut off: recreate this pod");
            } else if !known.contains(link.name.as_str()) {
                tracing::warn!(
                    interface = link.name,
                    "removed: the journal knows no pod with it"
                );
                self.netlink.delete_link(&link.name)?;
            }
        }
        Ok(())
    }

    fn addresses(&self) -> HashSet<IpAddr> {
        let entries = self.book.sorted();
        let pods = entries.iter().flat_map(|entry| &entry.attachment.addresses);
        pods.map(|pod| pod.address.addr()).collect()
    }
}
