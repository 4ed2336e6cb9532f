//! File descriptors: enough for every port and every client, from the start.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_dataplane::server::MAX_CONNECTIONS;

/// Beside ports, clients and workers: 20 of a daemon at rest (measured), those of
/// nft while it runs, and room.
const BESIDE: u64 = 64;

/// What each worker sleeps in and is woken by: epoll, an eventfd, a timerfd.
const A_WORKER: u64 = 3;

/// Why there are not enough.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorsError {
    #[error(
        "dataplane.maxPorts is {max_ports}: with its clients sluiced may need {needed} file \
         descriptors, and its limit is {limit}; raise that (`ulimit -Hn`, LimitNOFILE= in a \
         systemd unit), or lower dataplane.maxPorts"
    )]
    TooFew {
        max_ports: u16,
        needed: u64,
        limit: u64,
    },
    #[error("set the limit of file descriptors (RLIMIT_NOFILE): {0}")]
    System(#[from] io::Error),
}

/// Raises the soft limit as far as so many ports and workers need: a pod must not
/// be refused later, nor clients cost a pod its socket.
///
/// # Errors
/// The hard limit is lower, or the kernel refuses.
pub(crate) fn reserve(max_ports: u16, workers: u16) -> Result<(), DescriptorsError> {
    let system = |errno: Errno| io::Error::from(errno);
    let (soft, limit) = getrlimit(Resource::RLIMIT_NOFILE).map_err(system)?;
    let needed = needed(max_ports, workers);
    if soft >= needed {
        return Ok(());
    }
    if limit < needed {
        return Err(DescriptorsError::TooFew {
            max_ports,
            needed,
            limit,
        });
    }
    setrlimit(Resource::RLIMIT_NOFILE, needed, limit).map_err(system)?;
    Ok(())
}

/// A socket for each port, the host port's among them.
fn needed(max_ports: u16, workers: u16) -> u64 {
    let workers = A_WORKER * u64::from(workers);
    u64::from(max_ports) + 1 + MAX_CONNECTIONS as u64 + workers + BESIDE
}
