//! STATUS: whether an ADD would find what it needs.

use std::path::PathBuf;

use sluice_control::Client;

use crate::config::Network;
use crate::error::Error;
use crate::ipam::Ipam;

/// Succeeds if the daemon answers and has a free port, and the IPAM plugin is
/// ready too.
pub(crate) fn status(path: &[PathBuf], network: &Network) -> Result<(), Error> {
    network.needs_version_of("STATUS")?;
    let steps = [
        has_room(&Client::new(&network.socket())),
        Ipam::find(network, path)
            .and_then(|ipam| ipam.status())
            .map_err(Error::into_unavailable),
    ];
    Error::all(steps)
}

fn has_room(client: &Client) -> Result<(), Error> {
    let status = client
        .status()
        .map_err(|error| Error::daemon_unavailable(&error))?;
    let most = status.max_ports;
    if status.attached < usize::from(most) {
        return Ok(());
    }
    Err(Error::unavailable(format!(
        "attach another pod: all {most} ports are taken; raise dataplane.maxPorts and restart \
         sluiced"
    )))
}
