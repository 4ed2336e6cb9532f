//! The UMEM: the chunks' bytes, and what is known of each.

use std::cell::UnsafeCell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use sluice_control::LONGEST_MERGED;

use super::frame::{Chunk, Frame, MAX_CHUNKS};
use super::pool::FramePool;
use super::sys::{self, Mapping};

/// Bytes of a chunk: the kernel's largest, so that a jumbo frame has few.
pub const CHUNK_SIZE: usize = 4096;

/// The same, as the kernel's registration has it.
const CHUNK_SIZE_U32: u32 = 4096;
const _: () = assert!(CHUNK_SIZE_U32 as usize == CHUNK_SIZE, "one size");
const _: () = assert!(
    LONGEST_MERGED as usize == MAX_CHUNKS as usize * CHUNK_ROOM,
    "what pods may send fits a frame"
);

/// Where a frame that we write starts in its chunk: the kernel leaves the same
/// room before one that it writes (`XDP_PACKET_HEADROOM`).
const HEADROOM: u16 = 256;

/// Bytes of a frame in one chunk that we write.
pub const CHUNK_ROOM: usize = CHUNK_SIZE - HEADROOM as usize;

/// `sizeof(struct xsk_tx_metadata)`, just before a frame's first byte
/// (kernel: Documentation/networking/xsk-tx-metadata.rst).
pub(super) const TX_METADATA_LEN: u32 = 24;

/// The memory that all sockets of the process share.
#[derive(Debug)]
pub struct Umem {
    memory: NonNull<u8>,
    chunks: u32,
    /// Told apart from other UMEMs of the process (tests have several).
    number: u16,
    /// How many sockets there were.
    sockets: AtomicU32,
    states: Box<[ChunkState]>,
    fd: OwnedFd,
    huge_pages: bool,
    _mapping: Mapping,
}

/// What the side array knows of a chunk.
#[derive(Debug)]
struct ChunkState {
    /// Only touched through the chunk's owner.
    meta: UnsafeCell<ChunkMeta>,
    /// The number of the socket whose rings have the chunk, or [`OWNED`]. An
    /// atomic, because reclaiming looks at every chunk, whoever owns it.
    holder: AtomicU32,
}

/// Where a chunk's bytes lie, and what follows them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkMeta {
    /// The next chunk of the frame; meaningless in its last.
    pub(super) next: u32,
    /// Where the chunk's bytes start, and how many there are.
    offset: u16,
    pub(super) len: u16,
}

/// The holder of what a [`Chunk`], a [`Frame`] or a pool owns. Sockets are
/// numbered from one, and no number is given twice: what a closed socket held
/// is never taken for another's.
const OWNED: u32 = 0;

// SAFETY: bytes and side array entries are only touched through the chunk's
// one owner (module documentation); everything else is immutable.
unsafe impl Send for Umem {}
// SAFETY: as above.
unsafe impl Sync for Umem {}

impl Umem {
    /// Maps `chunks` chunks, on huge pages if the system has enough of them
    /// free, and gives the pool that owns them all. Mapped for the life of the
    /// process: there is no way back.
    ///
    /// # Errors
    /// What `memfd_create` or `mmap` says, mostly for want of memory.
    pub fn create(chunks: u32) -> io::Result<(&'static Self, FramePool)> {
        static NUMBERS: AtomicU16 = AtomicU16::new(0);
        let len = chunks as usize * CHUNK_SIZE;
        let (fd, mapping, huge_pages) = match map(len, true) {
            Ok((fd, mapping)) => (fd, mapping, true),
            Err(_) => {
                let (fd, mapping) = map(len, false)?;
                (fd, mapping, false)
            }
        };
        let umem: &'static Self = Box::leak(Box::new(Self {
            memory: mapping.base(),
            chunks,
            number: NUMBERS
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                    last.checked_add(1)
                })
                .map_err(|_| io::Error::other("65,535 UMEMs in one process"))?,
            sockets: AtomicU32::new(OWNED),
            states: (0..chunks)
                .map(|_| ChunkState {
                    meta: UnsafeCell::new(ChunkMeta {
                        next: 0,
                        offset: HEADROOM,
                        len: 0,
                    }),
                    holder: AtomicU32::new(OWNED),
                })
                .collect(),
            fd,
            huge_pages,
            _mapping: mapping,
        }));
        Ok((umem, FramePool::of_all(umem)))
    }

    /// How many chunks there are.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Whether they lie on huge pages.
    #[must_use]
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// The file behind the memory; a successor process could map it too.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn registration(&self, tx_metadata: bool) -> libc::xdp_umem_reg {
        libc::xdp_umem_reg {
            addr: self.memory.as_ptr().addr() as u64,
            len: u64::from(self.chunks) * CHUNK_SIZE as u64,
            chunk_size: CHUNK_SIZE_U32,
            headroom: 0,
            flags: if tx_metadata {
                libc::XDP_UMEM_TX_METADATA_LEN
            } else {
                0
            },
            tx_metadata_len: if tx_metadata { TX_METADATA_LEN } else { 0 },
        }
    }

    /// Told apart from other UMEMs of the process.
    pub(super) fn number(&self) -> u16 {
        self.number
    }

    /// A number for a new socket, if there is one left.
    pub(super) fn next_socket(&self) -> Option<u32> {
        self.sockets
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                last.checked_add(1)
            })
            .map_or(None, |last| Some(last + 1))
    }

    /// The frame's first chunk: all its headers, and as much more as fits.
    #[inline]
    #[must_use]
    pub fn head<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        self.check(frame.umem);
        self.bytes(frame.head)
    }

    /// The frame's first chunk, to change it.
    #[inline]
    pub fn head_mut<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        self.check(frame.umem);
        let meta = self.meta(frame.head);
        // SAFETY: the frame owns the chunk and is borrowed exclusively for as
        // long as the slice lives; `set_meta` keeps offset + len in the chunk.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.at(frame.head, meta.offset).as_ptr(),
                meta.len.into(),
            )
        }
    }

    /// All the frame's bytes, chunk after chunk.
    pub fn slices<'a>(&'a self, frame: &'a Frame) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.check(frame.umem);
        let mut chunk = frame.head;
        (0..frame.chunks).map(move |_| {
            let this = chunk;
            chunk = self.meta(this).next;
            self.bytes(this)
        })
    }

    /// The frame's bytes in a range, chunk after chunk.
    pub(super) fn part<'a>(
        &'a self,
        frame: &'a Frame,
        range: Range<usize>,
    ) -> impl Iterator<Item = &'a [u8]> {
        let mut end = 0;
        self.slices(frame).map(move |slice| {
            let start = end;
            end += slice.len();
            let within = |bound: usize| bound.saturating_sub(start).min(slice.len());
            let bytes = slice.get(within(range.start)..within(range.end));
            bytes.unwrap_or_default()
        })
    }

    /// Makes `bytes` the whole content of a frame of one chunk.
    ///
    /// Longer content than a chunk has room for is cut: what is written this
    /// way are answers of at most 1,300 bytes.
    pub fn set_content(&self, frame: &mut Frame, bytes: &[u8]) {
        self.check(frame.umem);
        debug_assert_eq!(frame.chunks, 1, "shorten the frame first");
        let len = self.set_meta(frame.head, HEADROOM, bytes.len());
        frame.len = len.into();
        self.head_mut(frame).copy_from_slice(&bytes[..len.into()]);
    }

    /// Adds as many of `bytes` to a frame of one chunk as that has room for; gives how
    /// many.
    pub(super) fn extend(&self, frame: &mut Frame, bytes: &[u8]) -> usize {
        self.check(frame.umem);
        debug_assert_eq!(frame.chunks, 1, "what follows would come before");
        let meta = self.meta(frame.head);
        let old = usize::from(meta.len);
        let len = self.set_meta(frame.head, meta.offset, old + bytes.len());
        frame.len = len.into();
        let (_, new) = self.head_mut(frame).split_at_mut(old);
        new.copy_from_slice(&bytes[..new.len()]);
        new.len()
    }

    /// Takes the first `bytes` off a frame, or as many as lie in its first chunk.
    #[inline]
    pub fn skip(&self, frame: &mut Frame, bytes: u16) {
        self.check(frame.umem);
        let meta = self.meta(frame.head);
        let bytes = bytes.min(meta.len);
        self.set_meta(frame.head, meta.offset + bytes, (meta.len - bytes).into());
        frame.len -= u32::from(bytes);
    }

    /// Asks the kernel to complete the checksum at `start + offset`, of what
    /// follows `start`, both from the frame's first byte (csum_start and
    /// csum_offset of `struct xsk_tx_metadata`). Returns false where there is
    /// no room for the request before the frame.
    #[inline]
    pub(super) fn request_checksum(&self, frame: &mut Frame, start: u16, offset: u16) -> bool {
        self.check(frame.umem);
        let meta = self.meta(frame.head);
        if u32::from(meta.offset) < TX_METADATA_LEN {
            return false;
        }
        let words = [
            u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM),
            u64::from(start) | u64::from(offset) << 16,
            0,
        ];
        // SAFETY: the frame owns the chunk exclusively, and the 24 bytes
        // before its first byte lie in the chunk. They may be unaligned.
        unsafe {
            let metadata = self
                .at(frame.head, meta.offset)
                .sub(TX_METADATA_LEN as usize);
            metadata.cast::<[u64; 3]>().write_unaligned(words);
        }
        true
    }

    /// Fetches a frame's headers into the cache ahead of their use: 47 of the
    /// 71 ns of receiving a packet are the miss (measured).
    #[inline]
    pub fn prefetch(&self, frame: &Frame) {
        self.check(frame.umem);
        let first = self.at(frame.head, self.meta(frame.head).offset);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch has no effect on memory, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(first.as_ptr().cast::<i8>());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = first;
    }

    #[inline]
    pub(super) fn check(&self, umem: u16) {
        assert_eq!(self.number, umem, "a frame of another UMEM");
    }

    #[inline]
    fn at(&self, chunk: u32, offset: u16) -> NonNull<u8> {
        debug_assert!(chunk < self.chunks);
        // SAFETY: owners only exist for chunks below `chunks`, and offsets
        // stay within a chunk (`set_meta`).
        unsafe {
            self.memory
                .add(chunk as usize * CHUNK_SIZE + usize::from(offset))
        }
    }

    #[inline]
    fn bytes(&self, chunk: u32) -> &[u8] {
        let meta = self.meta(chunk);
        // SAFETY: only called for chunks whose owner the caller borrows for as
        // long as the slice lives; `set_meta` keeps offset + len in the chunk.
        unsafe { std::slice::from_raw_parts(self.at(chunk, meta.offset).as_ptr(), meta.len.into()) }
    }

    #[inline]
    pub(super) fn meta(&self, chunk: u32) -> ChunkMeta {
        // SAFETY: read through the chunk's owner, which is borrowed meanwhile;
        // nobody else touches the entry (module documentation).
        unsafe { *self.states[chunk as usize].meta.get() }
    }

    #[inline]
    fn update_meta(&self, chunk: u32, update: impl FnOnce(&mut ChunkMeta)) {
        // SAFETY: as `meta`; the exclusive borrow ends with the call.
        update(unsafe { &mut *self.states[chunk as usize].meta.get() });
    }

    #[inline]
    fn set_holder(&self, chunk: u32, holder: u32) {
        self.states[chunk as usize]
            .holder
            .store(holder, Ordering::Relaxed);
    }

    /// Sets where a chunk's bytes lie, cut to what the chunk can hold; returns
    /// the length. Every slice made of a chunk relies on this one place.
    #[inline]
    fn set_meta(&self, chunk: u32, offset: u16, len: usize) -> u16 {
        let offset = usize::from(offset).min(CHUNK_SIZE);
        let len = len.min(CHUNK_SIZE - offset);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "both are at most CHUNK_SIZE, 4096"
        )]
        let (offset, len) = (offset as u16, len as u16);
        self.update_meta(chunk, |meta| {
            meta.offset = offset;
            meta.len = len;
        });
        len
    }

    // What follows turns owners into ring entries and back.

    /// A frame of one chunk without content.
    #[inline]
    pub(super) fn empty(&self, chunk: Chunk) -> Frame {
        self.check(chunk.umem);
        self.set_meta(chunk.index, HEADROOM, 0);
        Frame {
            head: chunk.index,
            len: 0,
            chunks: 1,
            umem: chunk.umem,
        }
    }

    /// Takes a chunk back from a socket, if the socket has it. The caller has
    /// the proof that the socket is closed.
    pub(super) fn take_from(&self, chunk: u32, socket: u32) -> bool {
        let has_it = self.states[chunk as usize].holder.load(Ordering::Relaxed) == socket;
        if has_it {
            self.set_holder(chunk, OWNED);
        }
        has_it
    }

    /// Gives a chunk to the kernel to receive into; the FILL ring's entry.
    #[inline]
    pub(super) fn lend(&self, chunk: Chunk, socket: u32) -> u64 {
        self.check(chunk.umem);
        self.set_holder(chunk.index, socket);
        u64::from(chunk.index) * CHUNK_SIZE as u64
    }

    /// Takes back one chunk that the kernel received into.
    #[inline]
    pub(super) fn received(&self, desc: &libc::xdp_desc) -> Option<Frame> {
        let head = self.index_of(desc.addr)?;
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of 4096")]
        let offset = (desc.addr % CHUNK_SIZE as u64) as u16;
        self.set_holder(head, OWNED);
        let len = self.set_meta(head, offset, desc.len as usize);
        Some(Frame {
            head,
            len: len.into(),
            chunks: 1,
            umem: self.number,
        })
    }

    /// Makes `more` follow chunk `last`, the last of `frame`.
    #[inline]
    pub(super) fn link(&self, frame: &mut Frame, last: u32, more: Frame) {
        self.check(frame.umem);
        self.check(more.umem);
        frame.len += more.len;
        frame.chunks += more.chunks;
        let next = more.into_head();
        self.update_meta(last, |meta| meta.next = next);
    }

    /// The frame's last chunk.
    #[inline]
    pub(super) fn last_chunk(&self, frame: &Frame) -> u32 {
        self.check(frame.umem);
        (1..frame.chunks).fold(frame.head, |chunk, _| self.meta(chunk).next)
    }

    /// Gives a frame to the kernel to send: calls `push` with one descriptor a
    /// chunk.
    #[inline]
    pub(super) fn sending(
        &self,
        frame: Frame,
        socket: u32,
        first_options: u32,
        mut push: impl FnMut(libc::xdp_desc),
    ) {
        self.check(frame.umem);
        let mut left = frame.chunks;
        let mut chunk = frame.into_head();
        let mut options = first_options;
        while left > 0 {
            left -= 1;
            if left > 0 {
                options |= libc::XDP_PKT_CONTD;
            }
            let meta = self.meta(chunk);
            self.set_holder(chunk, socket);
            push(libc::xdp_desc {
                addr: u64::from(chunk) * CHUNK_SIZE as u64 + u64::from(meta.offset),
                len: meta.len.into(),
                options,
            });
            options = 0;
            chunk = meta.next;
        }
    }

    /// Takes back one chunk that the kernel has sent; the COMPLETION ring's
    /// entry.
    #[inline]
    pub(super) fn completed(&self, addr: u64) -> Option<Chunk> {
        let index = self.index_of(addr)?;
        self.set_holder(index, OWNED);
        Some(Chunk {
            index,
            umem: self.number,
        })
    }

    // What follows is the in-memory kernel's access to the chunks that its
    // rings hold.

    pub(super) fn kernel_writes(&self, addr: u64, bytes: &[u8]) {
        let place = self.kernel_place(addr, bytes.len());
        // SAFETY: the range lies in one chunk, which the caller holds: its
        // address came through the FILL ring, which consumed its owner.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    pub(super) fn kernel_reads(&self, addr: u64, len: u32) -> &[u8] {
        let place = self.kernel_place(addr, len as usize);
        // SAFETY: the range lies in one chunk, which the caller holds: its
        // address came through the TX ring, which consumed its owner.
        unsafe { std::slice::from_raw_parts(place.as_ptr(), len as usize) }
    }

    pub(super) fn kernel_reads_request(&self, addr: u64) -> Option<(u16, u16)> {
        let metadata = self.kernel_reads(addr - u64::from(TX_METADATA_LEN), TX_METADATA_LEN);
        let (flags, request) = metadata.split_first_chunk::<8>()?;
        if u64::from_ne_bytes(*flags) & u64::from(libc::XDP_TXMD_FLAGS_CHECKSUM) == 0 {
            return None;
        }
        let (start, rest) = request.split_first_chunk::<2>()?;
        let (offset, _) = rest.split_first_chunk::<2>()?;
        Some((u16::from_ne_bytes(*start), u16::from_ne_bytes(*offset)))
    }

    fn kernel_place(&self, addr: u64, len: usize) -> NonNull<u8> {
        let place = usize::try_from(addr).unwrap_or(usize::MAX);
        assert!(
            self.index_of(addr).is_some() && place % CHUNK_SIZE + len <= CHUNK_SIZE,
            "descriptor {addr}+{len} leaves its chunk"
        );
        // SAFETY: asserted to lie in the UMEM.
        unsafe { self.memory.add(place) }
    }

    #[inline]
    fn index_of(&self, addr: u64) -> Option<u32> {
        let index = u32::try_from(addr / CHUNK_SIZE as u64).ok()?;
        (index < self.chunks).then_some(index)
    }
}

fn map(len: usize, huge: bool) -> io::Result<(OwnedFd, Mapping)> {
    const HUGE: usize = 2 << 20;
    if huge && !len.is_multiple_of(HUGE) {
        return Err(io::Error::other("not a multiple of a huge page"));
    }
    let fd = sys::memfd(len, huge)?;
    let mapping = Mapping::new(fd.as_fd(), len, 0)?;
    Ok((fd, mapping))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_the_kernel_never_leaves_its_chunk() {
        let (umem, mut pool) = Umem::create(1).unwrap();
        let chunk = pool.take().unwrap();
        let addr = umem.lend(chunk, 3);
        let desc = libc::xdp_desc {
            addr: addr + 4000,
            len: 5000,
            options: 0,
        };
        let frame = umem.received(&desc).unwrap();
        assert_eq!(umem.head(&frame).len(), 96);
        pool.free(frame);
        let beyond = libc::xdp_desc {
            addr: CHUNK_SIZE as u64,
            len: 1,
            options: 0,
        };
        assert!(umem.received(&beyond).is_none());
    }

    #[test]
    #[should_panic(expected = "a frame of another UMEM")]
    fn frames_of_two_umems_do_not_mix() {
        let (_, mut pool) = Umem::create(1).unwrap();
        let (other, _) = Umem::create(1).unwrap();
        let frame = pool.frame().unwrap();
        let _ = other.head(&frame);
    }
}
