//! GC: remove the attachments that the runtime does not know any more.

use std::path::PathBuf;

use serde::Deserialize;
use sluice_control::{Attachment, Client};
use sluice_link::Netlink;

use crate::config::Network;
use crate::del;
use crate::error::Error;
use crate::ipam::Ipam;

/// An attachment that the runtime holds to be valid.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
    pub(crate) ifname: String,
}

/// Removes what is attached to this network and not listed as valid, as DEL
/// would, and has the IPAM plugin do the same. Goes on after failures, which
/// are reported together.
pub(crate) fn gc(path: &[PathBuf], network: &Network) -> Result<(), Error> {
    network.needs_version_of("GC")?;
    let valid = network.valid_attachments()?;
    let client = Client::new(&network.socket());
    let ipam = network.ipam_type.as_ref();
    let ipam = ipam.map(|_| Ipam::find(network, path)).transpose();
    let (ipam, missing) = match ipam {
        Ok(ipam) => (ipam, Ok(())),
        Err(error) => (None, Err(error)),
    };
    let mut steps = vec![missing];
    match client.attachments(Some(&network.name)) {
        Ok(attached) => {
            let stale = attached.into_iter().filter(|a| !is_valid(&valid, a));
            for attachment in stale {
                tracing::info!("{attachment} is not valid any more: removed");
                steps.extend(remove(&client, ipam.as_ref(), &attachment));
            }
        }
        Err(error) => steps.push(Err(error.into())),
    }
    steps.push(ipam.as_ref().map_or(Ok(()), Ipam::gc));
    Error::all(steps)
}

fn is_valid(valid: &[ValidAttachment], attachment: &Attachment) -> bool {
    let id = &attachment.id;
    valid
        .iter()
        .any(|valid| valid.container_id == id.container_id && valid.ifname == id.ifname)
}

/// The steps of DEL. The IPAM plugin is told too, since one without GC would
/// keep the addresses.
fn remove(client: &Client, ipam: Option<&Ipam>, attachment: &Attachment) -> [Result<(), Error>; 3] {
    [
        del::detach(client, &attachment.id),
        ipam.map_or(Ok(()), |ipam| ipam.del_of(&attachment.id)),
        Netlink::new()
            .map_err(Error::from)
            .and_then(|netlink| del::delete_link(&netlink, &attachment.host_ifname)),
    ]
}
