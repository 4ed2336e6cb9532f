//! Frames from an interface by AF_XDP sockets, one a queue.
#![expect(
    unsafe_code,
    reason = "xsk-rs leaves the ownership of frames to its user: see the parent module"
)]

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue, Umem};

use super::{RING, socket};
use crate::error::BenchError;

/// Frames that are taken from a queue in one go.
const BATCH: usize = 64;

/// The sockets of all queues of an interface.
pub(crate) struct Receiver {
    queues: Vec<Queue>,
}

impl Receiver {
    /// Opens a socket on each queue of an interface of the calling thread's
    /// namespace. Nothing arrives until a program redirects to them.
    ///
    /// # Errors
    /// What the kernel or libxdp said.
    pub(crate) fn open(interface: &str, queues: u32) -> Result<Self, BenchError> {
        let queues = (0..queues).map(|queue| Queue::open(interface, queue));
        Ok(Self {
            queues: queues.collect::<Result<_, _>>()?,
        })
    }

    /// The sockets, by queue.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = RawFd> {
        self.queues.iter().map(|queue| queue.rx.fd().as_raw_fd())
    }

    /// Waits until something is there, at most `millis` milliseconds.
    ///
    /// # Errors
    /// The kernel's reason, but for a signal.
    pub(crate) fn wait(&self, millis: u8) -> Result<(), BenchError> {
        let fds = self.sockets().map(|fd| {
            // SAFETY: the socket is open for as long as `self` is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            PollFd::new(fd, PollFlags::POLLIN)
        });
        let mut fds: Vec<PollFd<'_>> = fds.collect();
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(BenchError::system("wait for", "frames")(errno)),
        }
    }

    /// Takes what is there, at most a batch a queue: whole frames, which are
    /// valid for the call of `handle` only. Returns how many.
    pub(crate) fn take(&mut self, mut handle: impl FnMut(&[u8])) -> usize {
        let queues = self.queues.iter_mut();
        queues.map(|queue| queue.take(&mut handle)).sum()
    }

    /// Frames that the kernel dropped so far because the RX ring was full or
    /// no chunk was left: we were too slow.
    ///
    /// # Errors
    /// The kernel's reason.
    pub(crate) fn overrun(&self) -> Result<u64, BenchError> {
        let mut overrun = 0;
        for queue in &self.queues {
            let statistics = queue.rx.fd().xdp_statistics();
            let statistics =
                statistics.map_err(BenchError::system("read", "statistics of the socket"))?;
            overrun += statistics.rx_ring_full() + statistics.rx_dropped();
        }
        Ok(overrun)
    }
}

/// The socket of one queue.
struct Queue {
    umem: Umem,
    rx: RxQueue,
    fill: FillQueue,
    /// What the RX ring is read into.
    arrived: Vec<FrameDesc>,
    /// A frame of several chunks, put together; the chunks before the last one
    /// of a frame that is not whole yet.
    joined: Vec<u8>,
    /// Chunks that wait for room in the FILL ring.
    free: Vec<FrameDesc>,
    /// Never used, but the socket ends with its rings.
    _sending: (TxQueue, CompQueue),
}

impl Queue {
    fn open(interface: &str, queue: u32) -> Result<Self, BenchError> {
        let opened = socket::open(interface, queue)?;
        let mut queue = Self {
            umem: opened.umem,
            rx: opened.rx,
            fill: opened.fill,
            arrived: vec![FrameDesc::default(); BATCH],
            joined: Vec::with_capacity(1 << 16),
            free: opened.free,
            _sending: (opened.tx, opened.completed),
        };
        queue.refill();
        Ok(queue)
    }

    fn take(&mut self, handle: &mut impl FnMut(&[u8])) -> usize {
        // SAFETY: the ring is this UMEM's, and what it yields the kernel has
        // filled and handed over.
        let count = unsafe { self.rx.consume(&mut self.arrived) };
        let mut frames = 0;
        for desc in &self.arrived[..count] {
            // SAFETY: the chunk is ours until it goes to the FILL ring again,
            // which is after this loop (2 and 3 of the parent module).
            let data = unsafe { self.umem.data(desc) };
            let part = data.contents();
            if desc.has_more_frames() {
                self.joined.extend_from_slice(part);
                continue;
            }
            if self.joined.is_empty() {
                handle(part);
            } else {
                self.joined.extend_from_slice(part);
                handle(&self.joined);
                self.joined.clear();
            }
            frames += 1;
        }
        self.free.extend_from_slice(&self.arrived[..count]);
        self.refill();
        frames
    }

    fn refill(&mut self) {
        let room = self.fill.nb_free(RING) as usize;
        let keep = self.free.len().saturating_sub(room);
        // SAFETY: the chunks are of this UMEM and were free (1 and 2 of the
        // parent module); those that the ring took are forgotten here.
        let taken = unsafe { self.fill.produce(&self.free[keep..]) };
        self.free.truncate(self.free.len() - taken);
    }
}
