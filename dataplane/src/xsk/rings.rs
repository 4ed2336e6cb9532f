//! The four rings of a socket: their sizes, and where the kernel maps them.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::cursor::{Backing, Consumer, Layout, Producer};
use super::sys::{self, Mapping};

/// Chunks kept ready for each port to receive into: fifteen jumbo frames. More
/// brought nothing at 65,000 bytes (measured).
pub const FILL_DEPTH: u32 = 256;

/// FILL and RX ring entries: all of a port's chunks fit, twice.
pub(super) const RECEIVE_RING: u32 = 512;
const _: () = assert!(FILL_DEPTH <= RECEIVE_RING, "every chunk has its entry");

/// TX and COMPLETION ring entries: a batch of jumbo frames is 1,088 chunks.
pub(super) const TRANSMIT_RING: u32 = 2048;

/// The four rings, from this side.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) fill: Producer<u64>,
    pub(super) rx: Consumer<libc::xdp_desc>,
    pub(super) tx: Producer<libc::xdp_desc>,
    pub(super) completion: Consumer<u64>,
}

impl Rings {
    /// Sizes the four rings of a socket and maps them (af_xdp.rst, "Rings").
    /// The reply with flags is of Linux 5.4; older kernels have no
    /// need_wakeup and are not served.
    pub(super) fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        for (option, size) in [
            (libc::XDP_UMEM_FILL_RING, RECEIVE_RING),
            (libc::XDP_UMEM_COMPLETION_RING, TRANSMIT_RING),
            (libc::XDP_RX_RING, RECEIVE_RING),
            (libc::XDP_TX_RING, TRANSMIT_RING),
        ] {
            let size = libc::c_int::try_from(size).map_err(io::Error::other)?;
            sys::setsockopt(fd, libc::SOL_XDP, option, &size)?;
        }
        let none = libc::xdp_ring_offset {
            producer: 0,
            consumer: 0,
            desc: 0,
            flags: 0,
        };
        let zero = libc::xdp_mmap_offsets {
            rx: none,
            tx: none,
            fr: none,
            cr: none,
        };
        let offsets = sys::getsockopt(fd, libc::XDP_MMAP_OFFSETS, zero)?;
        let fill_page = page_offset(libc::XDP_UMEM_PGOFF_FILL_RING)?;
        let completion_page = page_offset(libc::XDP_UMEM_PGOFF_COMPLETION_RING)?;
        Ok(Self {
            fill: Producer::new(map_ring(fd, RECEIVE_RING, &offsets.fr, fill_page)?),
            completion: Consumer::new(map_ring(fd, TRANSMIT_RING, &offsets.cr, completion_page)?),
            rx: Consumer::new(map_ring(
                fd,
                RECEIVE_RING,
                &offsets.rx,
                libc::XDP_PGOFF_RX_RING,
            )?),
            tx: Producer::new(map_ring(
                fd,
                TRANSMIT_RING,
                &offsets.tx,
                libc::XDP_PGOFF_TX_RING,
            )?),
        })
    }
}

fn page_offset(offset: libc::c_ulonglong) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(io::Error::other)
}

fn map_ring<T: Copy>(
    fd: BorrowedFd<'_>,
    size: u32,
    offsets: &libc::xdp_ring_offset,
    page: libc::off_t,
) -> io::Result<Layout<T>> {
    let place = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
    let (producer, consumer, entries) = (
        place(offsets.producer)?,
        place(offsets.consumer)?,
        place(offsets.desc)?,
    );
    let len = entries + size as usize * size_of::<T>();
    let mapping = Arc::new(Mapping::new(fd, len, page)?);
    let base = mapping.base();
    // SAFETY: the kernel gave the offsets for this mapping; it aligns the
    // indices to cache lines and the entries to their size.
    let (producer, consumer, entries) =
        unsafe { (base.add(producer), base.add(consumer), base.add(entries)) };
    Ok(Layout {
        producer: producer.cast(),
        consumer: consumer.cast(),
        entries: entries.cast(),
        size,
        _backing: Backing::Kernel { _mapping: mapping },
    })
}
