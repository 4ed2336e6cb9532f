//! Pods of an earlier daemon that this one does not serve: they stay cut off,
//! whole, until they are deleted or a later daemon does better.

use sluice_control::{Attachment, AttachmentId};
use sluice_link::Link;

use super::book::{Claim, claim};
use super::{Node, NodeError};

/// A pod that is not served. Its interface is down, with the earlier daemon's
/// program on it, and its file is in the journal.
#[derive(Debug)]
pub(super) struct CutOff {
    pub(super) interface: String,
    /// Index of the interface: its name may come back on another.
    index: u32,
    /// Unknown where the journal's file was set aside.
    pub(super) attachment: Option<Attachment>,
}

impl CutOff {
    pub(super) fn is(&self, id: &AttachmentId) -> bool {
        self.attachment.as_ref().is_some_and(|own| own.id == *id)
    }

    /// What it holds that `wanted` wants: it is a running pod's.
    pub(super) fn claim(&self, wanted: &Attachment) -> Option<Claim> {
        match &self.attachment {
            Some(own) => claim(own, wanted),
            None => (self.interface == wanted.host_ifname)
                .then(|| Claim::Interface(self.interface.clone())),
        }
    }
}

impl Node {
    /// Leaves a pod unserved. Its interface goes down, so that nothing passes
    /// it even if the program is not on it.
    pub(super) fn cut_off(&mut self, link: &Link, attachment: Option<Attachment>, why: &str) {
        let id = attachment.as_ref().map(|own| own.id.to_string());
        tracing::warn!(
            id,
            interface = link.name,
            "cannot be taken back and is cut off: {why}. Mend that and restart sluiced, or recreate the pod"
        );
        if let Err(error) = self.netlink.set_down(link.index) {
            tracing::warn!(%error, "could not cut a pod off");
        }
        self.cut_off.push(CutOff {
            interface: link.name.clone(),
            index: link.index,
            attachment,
        });
    }

    /// Lets go of those that `is_meant` picks: program and journal file.
    pub(super) fn release_cut_off(&mut self, is_meant: impl Fn(&CutOff) -> bool) -> Vec<NodeError> {
        let mut errors = Vec::new();
        for CutOff {
            interface, index, ..
        } in self.cut_off.extract_if(.., |pod| is_meant(pod))
        {
            tracing::info!(interface, "detached: it was cut off");
            match self.netlink.link(&interface) {
                Ok(link) => {
                    let link = link.filter(|link| link.index == index);
                    errors.extend(self.wiring.release(link.as_ref(), &interface));
                }
                Err(error) => errors.push(error.into()),
            }
            let forgotten = self.journal.remove(&interface);
            errors.extend(forgotten.err().map(NodeError::from));
        }
        errors
    }

    /// The same for those whose interface is not among `links` any more.
    pub(super) fn release_gone_cut_off(&mut self, links: &[Link]) {
        let is_gone = |pod: &CutOff| links.iter().all(|link| link.index != pod.index);
        for error in self.release_cut_off(is_gone) {
            tracing::warn!(%error, "could not let go of a pod that was cut off");
        }
    }
}
