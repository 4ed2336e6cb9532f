//! A socket as those see it who do not own it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Weak;

use super::sys;

/// `XDP_STATISTICS`: what the kernel counts for a socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Statistics {
    /// Frames dropped for other reasons than those below.
    pub rx_dropped: u64,
    /// Descriptors in the FILL ring that the kernel refused.
    pub rx_invalid_descs: u64,
    /// Descriptors in the TX ring that the kernel refused.
    pub tx_invalid_descs: u64,
    /// Frames dropped because the RX ring was full.
    pub rx_ring_full: u64,
    /// Times that the FILL ring was empty when a frame came.
    pub rx_fill_ring_empty_descs: u64,
    /// Times that the TX ring was empty at a wakeup.
    pub tx_ring_empty_descs: u64,
}

fn statistics(socket: BorrowedFd<'_>) -> io::Result<Statistics> {
    let zero = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    let read = sys::getsockopt(socket, libc::XDP_STATISTICS, zero)?;
    Ok(Statistics {
        rx_dropped: read.rx_dropped,
        rx_invalid_descs: read.rx_invalid_descs,
        tx_invalid_descs: read.tx_invalid_descs,
        rx_ring_full: read.rx_ring_full,
        rx_fill_ring_empty_descs: read.rx_fill_ring_empty_descs,
        tx_ring_empty_descs: read.tx_ring_empty_descs,
    })
}

/// A socket as those see it who do not own it. It does not keep the socket
/// open, and gives nobody a descriptor that would.
#[derive(Debug, Clone, Default)]
pub struct Socket {
    /// `None` inside: closed, or over the in-memory kernel.
    pub(super) file: Weak<OwnedFd>,
    /// The UMEM's number.
    pub(super) umem: u16,
}

impl Socket {
    /// Calls `job` with the file descriptor, for the XSKMAP. `None` if the
    /// socket is closed, or over the in-memory kernel.
    pub fn with_fd<T>(&self, job: impl FnOnce(RawFd) -> T) -> Option<T> {
        Some(job(self.file.upgrade()?.as_raw_fd()))
    }

    /// Reads `XDP_STATISTICS`. `None` as in [`Socket::with_fd`].
    #[must_use]
    pub fn statistics(&self) -> Option<Statistics> {
        statistics(self.file.upgrade()?.as_fd()).ok()
    }
}
