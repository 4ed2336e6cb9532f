//! DEL: detach a pod.
//!
//! Succeeds when nothing is left, whether there was anything or not: runtimes
//! repeat it, and call it for ADDs that failed. All steps are tried; their
//! failures are reported together.

use std::io::ErrorKind;

use sluice_control::{AttachmentId, Client, ClientError, Request};
use sluice_link::Netlink;

use crate::args::Args;
use crate::config::Network;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::log;
use crate::names;

/// Detaches the pod and gives its addresses back.
pub(crate) fn del(args: &Args, network: &Network) -> Result<(), Error> {
    let id = network.attachment_id(args);
    let steps = [
        detach(&Client::new(&network.socket()), &id),
        // Also when the link is gone already: the addresses may not be.
        match network.ipam_type {
            Some(_) => Ipam::find_for(args, network).and_then(|ipam| ipam.del()),
            None => Ok(()),
        },
        // Last: while the link is there no ADD of the same attachment begins,
        // whose new addresses IPAM would take for the old ones.
        Netlink::new()
            .map_err(Error::from)
            .and_then(|netlink| delete_link(&netlink, &names::host_ifname(&id))),
    ];
    Error::all(steps)
}

/// Tells the daemon to forget the attachment. A daemon that is down finds out
/// when it starts: the link is gone.
pub(crate) fn detach(client: &Client, id: &AttachmentId) -> Result<(), Error> {
    let ask = || log::timed("detach", || client.ask(Request::Detach { id: id.clone() }));
    let answer = match ask() {
        // It ended meanwhile: now it is down, or the next one answers.
        Err(ClientError::Broken { cause, .. }) if cause.kind() != ErrorKind::TimedOut => ask(),
        answer => answer,
    };
    match answer {
        Ok(_) => Ok(()),
        Err(error @ ClientError::Down { .. }) => {
            tracing::warn!("detach {id}: {error} Going on without it.");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Deletes the host's end, and the pod's with it. It is gone already when the
/// pod's namespace is.
pub(crate) fn delete_link(netlink: &Netlink, host_ifname: &str) -> Result<(), Error> {
    log::timed("delete the link", || netlink.delete_link(host_ifname))?;
    Ok(())
}
