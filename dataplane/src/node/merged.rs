//! Where ports' programs run: so that merged TCP segments come as such from whom
//! says how they are cut.

use std::path::Path;

use aya::programs::links::FdLink;
use sluice_control::Attachment;
use sluice_link::{Link, XdpMode};

use super::wiring::Wiring;
use crate::program::{FarEnd, MergedMark, ProgramError};

/// What says how merged segments are cut; on the host's end of the host port for as
/// long as it is held.
pub(super) struct Mark {
    program: MergedMark,
    _host: FdLink,
}

impl Mark {
    /// Loads the program, and attaches it to what this interface sends.
    pub(super) fn on(host_interface: &str) -> Result<Self, ProgramError> {
        let mut program = MergedMark::load()?;
        let host = program.attach(host_interface)?;
        Ok(Self {
            program,
            _host: host,
        })
    }
}

/// Where the program of a veth runs that is to take merged segments, or is not: its
/// far end then cuts them itself.
pub(super) fn mode(takes_merged: bool) -> XdpMode {
    if takes_merged {
        XdpMode::Stack
    } else {
        XdpMode::Driver
    }
}

impl Wiring {
    /// Has a new pod's interface say how the merged segments that it sends are cut,
    /// and says where the program of the host's end is to run. A pod that cannot say
    /// it sends none.
    pub(super) fn mark_far_end(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        netns: Option<&Path>,
    ) -> XdpMode {
        let (Some(mark), Some(netns)) = (&mut self.mark, netns) else {
            return mode(false);
        };
        let far = FarEnd {
            netns,
            ifname: &attachment.id.ifname,
            mac: attachment.pod_mac,
        };
        match mark.program.attach_beyond(link, &far) {
            Ok(()) => mode(true),
            Err(error) => {
                tracing::warn!(
                    id = %attachment.id,
                    %error,
                    "its kernel cuts the TCP segments that it sends: slower"
                );
                mode(false)
            }
        }
    }

    /// Where the program of a pod's interface is to run that an earlier daemon wired:
    /// the far end is as it was.
    pub(super) fn mode_of(&self, link: &Link) -> XdpMode {
        mode(link.xdp_mode == Some(XdpMode::Stack) && self.features.takes_merged())
    }

    /// Where the uplink's program runs: as early as can be, but not so that the
    /// other end of a veth has to cut what it sends to pods by way of the kernel. A
    /// NIC's segments are merged after the program.
    pub(super) fn uplink_mode(&self, link: &Link) -> XdpMode {
        mode(self.features.takes_merged() && link.kind.as_deref() == Some("veth"))
    }
}
