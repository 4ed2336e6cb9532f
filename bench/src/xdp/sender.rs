//! Frames out of an interface by an AF_XDP socket.
#![expect(
    unsafe_code,
    reason = "xsk-rs leaves the ownership of frames to its user: see the parent module"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBufForce;
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue, Umem};

use super::{CHUNKS, CONTINUED, RING, socket};
use crate::error::BenchError;

/// The most chunks a frame may have: MAX_SKB_FRAGS of the kernel, and the head.
const MAX_CHUNKS: usize = 17;

/// What the kernel may hold of ours until the other end has taken it, in
/// bytes: its default is that of a few hundred small frames.
const SEND_BUFFER: usize = 64 << 20;

/// An AF_XDP socket to send by. Frames are queued, then flushed.
pub(crate) struct Sender {
    interface: String,
    umem: Umem,
    tx: TxQueue,
    completed: CompQueue,
    /// Chunks that are nowhere else.
    free: Vec<FrameDesc>,
    /// Chunks of whole frames, in order, not in the ring yet.
    queued: Vec<FrameDesc>,
    /// What the completion ring is read into.
    reaped: Vec<FrameDesc>,
    chunk: usize,
    /// Never used, but the socket ends with its rings.
    _receiving: (RxQueue, FillQueue),
}

impl Sender {
    /// Opens a socket on queue 0 of an interface of the calling thread's
    /// namespace.
    ///
    /// # Errors
    /// What the kernel or libxdp said.
    pub(crate) fn open(interface: &str) -> Result<Self, BenchError> {
        let opened = socket::open(interface, 0)?;
        // SAFETY: the socket is open for as long as `opened` is there.
        let fd = unsafe { BorrowedFd::borrow_raw(opened.tx.fd().as_raw_fd()) };
        setsockopt(&fd, SndBufForce, &SEND_BUFFER)
            .map_err(BenchError::system("raise the send buffer for", interface))?;
        Ok(Self {
            interface: interface.to_owned(),
            umem: opened.umem,
            tx: opened.tx,
            completed: opened.completed,
            queued: Vec::with_capacity(opened.free.len()),
            reaped: vec![FrameDesc::default(); RING as usize],
            free: opened.free,
            chunk: opened.chunk,
            _receiving: (opened.rx, opened.fill),
        })
    }

    /// The largest frame, in bytes.
    pub(crate) const fn max_frame(&self) -> usize {
        self.chunk * MAX_CHUNKS
    }

    /// Queues a frame; `false` if there is no room: flush, and try again.
    pub(crate) fn queue(&mut self, frame: &[u8]) -> bool {
        let chunks = frame.len().div_ceil(self.chunk);
        if self.free.len() < chunks || self.queued.len() + chunks > RING as usize {
            return false;
        }
        let first = self.free.len() - chunks;
        let parts = frame.chunks(self.chunk);
        for ((index, part), mut desc) in parts.enumerate().zip(self.free.drain(first..)) {
            // SAFETY: the chunk was free: it is in no ring, and not with the
            // kernel (1 and 2 of the parent module).
            let mut data = unsafe { self.umem.data_mut(&mut desc) };
            let mut cursor = data.cursor();
            cursor.set_pos(part.len());
            data.contents_mut().copy_from_slice(part);
            desc.set_options(if index + 1 < chunks { CONTINUED } else { 0 });
            self.queued.push(desc);
        }
        true
    }

    /// Gives what is queued to the kernel, as far as the ring has room, and
    /// takes back what was sent. Returns how many chunks are still queued.
    ///
    /// # Errors
    /// The interface is gone.
    pub(crate) fn flush(&mut self) -> Result<usize, BenchError> {
        // All or nothing: a frame's chunks must not be torn apart.
        // SAFETY: the chunks are of this UMEM and ours (1 and 2 of the parent
        // module); those that the ring took are forgotten here.
        let taken = unsafe { self.tx.produce(&self.queued) };
        self.queued.drain(..taken);
        if self.tx.needs_wakeup() {
            self.tx
                .wakeup()
                .map_err(BenchError::system("send by", &self.interface))?;
        }
        self.reap();
        Ok(self.queued.len())
    }

    /// Whether the kernel has sent all that it was given.
    pub(crate) fn is_idle(&self) -> bool {
        self.free.len() == CHUNKS as usize
    }

    fn reap(&mut self) {
        // SAFETY: the ring is this UMEM's, and what it yields was sent: the
        // kernel is done with it.
        let count = unsafe { self.completed.consume(&mut self.reaped) };
        self.free.extend_from_slice(&self.reaped[..count]);
    }
}
