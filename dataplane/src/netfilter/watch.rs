//! Who else changes our table, as the kernel notifies it: firewall managers
//! flush the whole ruleset when they start.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::socket::SockProtocol;

use super::nft::Port;
use super::ruleset::TABLE;
use crate::netlink::{Message, Socket, attribute};

/// The group of changes to nftables (`NFNLGRP_NFTABLES`).
const GROUP: u32 = 7;
/// `NFPROTO_INET`, in the first byte of `struct nfgenmsg`.
const INET: u8 = 1;
const NFGENMSG_BYTES: usize = 4;
/// `NFTA_TABLE_NAME`, and every other object's name of its table.
const TABLE_NAME: u16 = 1;

/// Notifications of changes to nftables in one namespace.
#[derive(Debug)]
pub(super) struct Watch(Socket);

impl Watch {
    /// From now on, in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub(super) fn open() -> io::Result<Self> {
        Socket::listen(SockProtocol::NetlinkNetFilter, &[GROUP]).map(Self)
    }

    /// Whether our table was changed by somebody else since the last call.
    /// What `own` did is ours: all of it is here when nft has ended.
    pub(super) fn was_touched(&mut self, own: Option<Port>) -> bool {
        let mut is_touched = false;
        loop {
            match self.0.receive() {
                Ok(messages) => {
                    let mut foreign = messages.filter(|m| own != Some(m.port));
                    is_touched |= foreign.any(|message| is_about_us(&message));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return is_touched,
                // Some were lost: somebody else's, unless we just made many.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    is_touched |= own.is_none();
                }
                Err(error) => {
                    tracing::warn!(%error, "could not read the changes to nftables");
                    return is_touched;
                }
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn is_about_us(message: &Message<'_>) -> bool {
    let name = message
        .payload
        .get(NFGENMSG_BYTES..)
        .and_then(|attributes| attribute(attributes, TABLE_NAME));
    message.payload.first() == Some(&INET)
        && name.and_then(|name| name.strip_suffix(&[0])) == Some(TABLE.as_bytes())
}
