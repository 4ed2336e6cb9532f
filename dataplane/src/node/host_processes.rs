//! hostPorts for processes of the host, kept as the mappings and the node's
//! addresses are.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use nix::sys::socket::SockProtocol;
use sluice_control::{HostEnd, Protocol, Redirect};
use sluice_link::{LinkError, Netlink};

use crate::host_sockets::{self, HostSocketsError};
use crate::mapping_tables::{MappingTables, TableError};
use crate::netlink::Socket;
use crate::stale_sockets;

/// Groups of changes to addresses (`RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`).
const ADDRESS_GROUPS: [u32; 2] = [5, 9];

/// Why processes of the host do not reach pods by hostPorts as they should.
#[derive(Debug, thiserror::Error)]
pub enum HostProcessesError {
    /// The tables of mapped ports.
    #[error(transparent)]
    Tables(#[from] TableError),
    /// The programs that look into them.
    #[error(transparent)]
    Sockets(#[from] HostSocketsError),
    /// The node's addresses.
    #[error(transparent)]
    Addresses(#[from] LinkError),
    /// Changes to them.
    #[error("follow the node's addresses: {0}")]
    Follow(io::Error),
}

/// The tables, the programs, and the node's addresses.
pub(super) struct HostProcesses {
    tables: MappingTables,
    changes: Socket,
    netlink: Rc<Netlink>,
}

impl HostProcesses {
    /// Attaches the programs for the calling thread's namespace. What an earlier
    /// daemon mapped counts until [`HostProcesses::retain`].
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn start(bpffs: &Path, netlink: Rc<Netlink>) -> Result<Self, HostProcessesError> {
        let mut processes = Self {
            tables: MappingTables::open(bpffs)?,
            changes: Socket::listen(SockProtocol::NetlinkRoute, &ADDRESS_GROUPS)
                .map_err(HostProcessesError::Follow)?,
            netlink,
        };
        processes.set_addresses()?;
        host_sockets::attach(bpffs)?;
        Ok(processes)
    }

    /// # Errors
    /// A table did not take it.
    pub(super) fn map(&mut self, redirects: &[Redirect]) -> Result<(), HostProcessesError> {
        for redirect in redirects {
            self.tables.map(redirect)?;
        }
        Ok(())
    }

    /// Also ends what processes have under way by UDP with the pods.
    ///
    /// # Errors
    /// A table did not give it up; the others are gone.
    pub(super) fn unmap(&mut self, redirects: &[Redirect]) -> Result<(), HostProcessesError> {
        let mut result = Ok(());
        for Redirect { from, .. } in redirects {
            result = result.and(self.tables.unmap(from));
        }
        let datagrams = redirects
            .iter()
            .filter(|r| r.from.protocol == Protocol::Udp);
        let pods = datagrams.map(|redirect| redirect.to).collect();
        match stale_sockets::end(&self.tables, &pods) {
            Ok(0) => {}
            Ok(sockets) => tracing::debug!(sockets, "ended"),
            Err(error) => tracing::warn!(
                %error,
                "could not end connected UDP sockets of the host's processes: they go on \
                 sending to a pod that is gone"
            ),
        }
        Ok(result?)
    }

    /// Forgets all mappings but these.
    ///
    /// # Errors
    /// A table did not.
    pub(super) fn retain(&mut self, mapped: &HashSet<HostEnd>) -> Result<(), HostProcessesError> {
        Ok(self.tables.retain(mapped)?)
    }

    /// Follows changes to the node's addresses since the last call, if any.
    ///
    /// # Errors
    /// The kernel does not tell them; the next change tries again.
    pub(super) fn follow(&mut self) -> Result<(), HostProcessesError> {
        let mut is_changed = false;
        let drained = self.changes.drain(|_| is_changed = true);
        // Some were lost: all the more reason to look.
        is_changed |= drained.map_err(HostProcessesError::Follow)?;
        if is_changed {
            self.set_addresses()?;
        }
        Ok(())
    }

    /// Readable when an address of the node comes or goes.
    pub(super) fn watch(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    fn set_addresses(&mut self) -> Result<(), HostProcessesError> {
        let found = self.netlink.all_addresses()?;
        let addresses = found.into_iter().map(|found| found.addr());
        // The programs know the loopback ones by themselves.
        let nodes = addresses.filter(|address| !address.is_loopback()).collect();
        Ok(self.tables.set_addresses(&nodes)?)
    }
}
