//! What daemons and plugins leave on a node, removed.

use std::fs;
use std::io;
use std::path::Path;

use sluice_control::DataplaneSettings;
use sluice_link::{LinkError, Netlink};

use crate::host_port::{HOST_INTERFACE, HostPort};
use crate::journal::Journal;
use crate::netfilter;
use crate::node::{self, NodeError};
use crate::program;
use crate::run_dir::{FolderError, RunDirLock};

/// Why nothing is removed.
#[derive(Debug, thiserror::Error)]
pub enum RemainsError {
    /// A daemon runs with this folder, or the folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A daemon runs in this namespace, or the kernel does not say.
    #[error(transparent)]
    Node(#[from] Box<NodeError>),
    /// The kernel does not answer.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Removes pods' interfaces, the host port with its routes, the nftables
/// table, pins, journal, socket and lock, in the calling thread's namespace and
/// in this folder; goes on after a failure. Interfaces go before pins: no frame
/// passes one without the program. Answers what could not be removed.
///
/// Forwarding stays on: others may rely on it by now.
///
/// # Errors
/// A daemon runs in this namespace or with this folder; nothing is removed.
pub fn remove(settings: &DataplaneSettings) -> Result<Vec<String>, RemainsError> {
    let lock = RunDirLock::take(&settings.run_dir)?;
    let netlink = Netlink::new()?;
    node::check_alone(&netlink).map_err(Box::new)?;
    let mut failures = Vec::new();
    let mut note = |result: Result<(), NodeError>| {
        failures.extend(result.err().map(|error| error.to_string()));
    };
    let pods = remove_pods(&netlink);
    // Where one stays, so does the program on it.
    let are_gone = pods.is_ok();
    note(pods);
    note(remove_host_port(&netlink));
    note(netfilter::remove().map_err(NodeError::from));
    if are_gone {
        note(program::remove_pins(&settings.bpffs()).map_err(NodeError::from));
    }
    note(Journal::clear(&settings.journal()).map_err(NodeError::from));
    failures.extend(remove_file(&settings.socket()));
    failures.extend(lock.remove());
    Ok(failures)
}

/// Goes on after a failure, and answers the first.
fn remove_pods(netlink: &Netlink) -> Result<(), NodeError> {
    let mut outcome = Ok(());
    for link in netlink.links()?.iter().filter(|link| node::is_pods(link)) {
        let deleted = netlink.delete_link(&link.name);
        outcome = outcome.and(deleted.map(drop).map_err(NodeError::from));
    }
    outcome
}

fn remove_host_port(netlink: &Netlink) -> Result<(), NodeError> {
    if HostPort::find(netlink)?.is_some() {
        netlink.delete_link(HOST_INTERFACE)?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Option<String> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Some(format!("remove {}: {error}", path.display()))
        }
        _ => None,
    }
}
