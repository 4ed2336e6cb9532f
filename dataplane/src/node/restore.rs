//! A start after another daemon's end: its pods taken back, its remains gone.
//!
//! The worker knows every pod before the first frame comes: a packet for a pod
//! that is not back yet would be answered "unreachable". Then the frames are
//! let in, pod by pod; last the host is made to agree.

use std::collections::HashSet;
use std::net::IpAddr;

use sluice_control::{Attachment, AttachmentId, HostEnd};
use sluice_link::{Link, Route};

use super::book::Entry;
use super::{Node, NodeError};
use crate::host_port::GATEWAY_MAC;
use crate::journal::Loaded;
use crate::netfilter::Stale;

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
        let links = self.netlink.links()?;
        let find = |name: &str| links.iter().find(|link| link.name == name && is_pods(link));
        self.journal.prune(|interface| find(interface).is_some())?;
        let Loaded {
            attachments,
            set_aside,
        } = self.journal.load()?;
        for link in set_aside.iter().filter_map(|interface| find(interface)) {
            self.cut_off(link, None, "its journal file was set aside");
        }
        let routes = self.netlink.routes()?;
        let mut opened = Vec::new();
        let mut gone = Vec::new();
        for attachment in attachments {
            let Some(link) = find(&attachment.host_ifname) else {
                tracing::info!(id = %attachment.id, "its interface is gone: forgotten");
                gone.extend(attachment.redirects());
                // If it cannot be removed, the next start finds it again.
                if let Err(error) = self.journal.remove(&attachment.host_ifname) {
                    tracing::warn!(%error);
                }
                continue;
            };
            match self.open(&attachment, link, &routes) {
                Ok(()) => opened.push((attachment.id, link)),
                Err(why) => self.cut_off(link, Some(attachment), &why),
            }
        }
        // Before the first frame: an answer of a pod must not pass its way back.
        self.wiring
            .resume_sessions(|address| Some(self.book.owner(address)?.wired.id));
        self.wiring.start_host()?;
        // Somebody may have flushed them while no daemon ran, and for what the
        // kernel lets pass without them they come too late.
        let served = self
            .book
            .sorted()
            .into_iter()
            .map(|entry| &entry.attachment);
        self.wiring.restore_rules(served)?;
        let found = self.netlink.routes()?;
        for (id, link) in opened {
            self.resume(&id, link, &found);
        }
        self.wiring.settle(&self.addresses(), &self.mapped())?;
        self.wiring.forget_connections(&gone, Stale::There);
        self.wiring.forget_untranslated(self.book.redirects());
        // Last: a start that fails has removed nothing.
        self.remove_strangers(&links)?;
        if self.book.len() > 0 {
            tracing::info!(pods = self.book.len(), "taken back from an earlier daemon");
        }
        Ok(())
    }

    /// The worker knows the pod, and can send to it. The journal is believed no
    /// more than a client: it may be older than the node's addresses, or forged.
    fn open(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        routes: &[Route],
    ) -> Result<(), String> {
        if let Some(holder) = self.book.get(&attachment.id) {
            let interface = &holder.attachment.host_ifname;
            return Err(format!("it is attached by {interface} already"));
        }
        self.check_mtu(attachment)?;
        self.check_rivals(attachment, routes)?;
        let port = self.book.reserve().ok_or_else(|| self.is_full())?;
        match self.wiring.open_pod(attachment, link, port) {
            Ok(wired) => {
                let attachment = attachment.clone();
                self.book.insert(Entry { attachment, wired });
                Ok(())
            }
            Err(error) => {
                self.book.release(port);
                Err(error.to_string())
            }
        }
    }

    /// The pod's frames come.
    fn resume(&mut self, id: &AttachmentId, link: &Link, found: &[Route]) {
        let Some(Entry { attachment, wired }) = self.book.get_mut(id) else {
            return;
        };
        let Err(error) = self.wiring.resume_pod(attachment, link, wired, found) else {
            tell_limits(attachment);
            return;
        };
        if let Some(Entry { attachment, wired }) = self.book.remove(id) {
            self.cut_off(link, Some(attachment), &error.to_string());
            self.wiring.give_up(wired);
        }
    }

    /// Interfaces of pods that the journal does not know: an ADD that the
    /// earlier daemon did not live to answer. Nobody will ask for them again. One
    /// with a program that is not ours is another daemon's pod.
    fn remove_strangers(&self, links: &[Link]) -> Result<(), NodeError> {
        let entries = self.book.sorted();
        let served = entries.iter().map(|entry| &entry.attachment.host_ifname);
        let cut_off = self.cut_off.iter().map(|pod| &pod.interface);
        let known: HashSet<&String> = served.chain(cut_off).collect();
        let pods = links.iter().filter(|link| is_pods(link));
        for link in pods.filter(|link| !known.contains(&link.name)) {
            if !self.wiring.has_own_program(link)? {
                tracing::warn!(
                    interface = link.name,
                    "left alone: the journal knows no pod with it, but another's XDP program is \
                     on it. Was dataplane.runDir changed? If its pod is gone, delete it with \
                     `ip link delete`"
                );
                continue;
            }
            tracing::warn!(
                interface = link.name,
                "removed: the journal knows no pod with it"
            );
            self.netlink.delete_link(&link.name)?;
        }
        Ok(())
    }

    fn mapped(&self) -> HashSet<HostEnd> {
        let redirects = self.book.redirects();
        redirects.map(|redirect| redirect.from).collect()
    }

    fn addresses(&self) -> HashSet<IpAddr> {
        let entries = self.book.sorted();
        let pods = entries.iter().flat_map(|entry| &entry.attachment.addresses);
        pods.map(|pod| pod.address.addr()).collect()
    }
}

/// The journal's need not be the configuration's, and no ADD says them again.
fn tell_limits(attachment: &Attachment) {
    if attachment.shaping.is_limited() {
        tracing::info!(
            id = %attachment,
            interface = attachment.host_ifname,
            limits = %attachment.limits_in_words(),
            "taken back"
        );
    }
}
