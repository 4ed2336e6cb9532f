//! An AF_XDP socket with its four rings.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use super::chain::Chain;
use super::error::XskError;
use super::frame::{Frame, MAX_CHUNKS};
use super::gso::GsoSender;
use super::handle::Socket;
use super::memory::Sent;
use super::pool::{Closed, FramePool};
use super::rings::{FILL_DEPTH, Rings};
use super::sys;
use super::umem::Umem;
use crate::packet::offload::Partial;
use crate::packet::segment::Cut;

/// Frames taken from one port in one turn.
pub const BATCH_SIZE: usize = 64;

/// What one port gives in one turn.
pub type Batch = ArrayVec<Frame, BATCH_SIZE>;

/// Descriptors that one wakeup sends (`TX_BATCH_SIZE` in net/xdp/xsk.c).
const KERNEL_BUDGET: u32 = 32;

/// Descriptors that one wakeup may send instead.
const TX_BUDGET: libc::c_int = 512;

/// Wakeups in a row for one port, so that no port holds up the others: at the
/// kernel's own budget of 32 these empty a full TX ring.
const MAX_WAKEUPS: u32 = 64;

/// Sent packets are charged to the socket's send buffer until the receiving
/// stack has taken them; a full TX ring of jumbo frames is 8 MiB and skb
/// overhead.
pub(super) const SEND_BUFFER: libc::c_int = 32 << 20;

/// A device stays busy for a while after its last socket was closed: 5 to
/// 17 ms, and more than 200 with 200 ports (measured).
const BUSY_FOR_AT_MOST: Duration = Duration::from_secs(5);

/// What the kernel offers beyond plain AF_XDP, or what of it is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Frames of several chunks (`XDP_USE_SG`, Linux 6.6).
    pub multi_buffer: bool,
    /// Checksum requests (TX metadata, Linux 6.8; its flag, 6.11).
    pub tx_metadata: bool,
    /// More than 32 descriptors a wakeup (`XDP_MAX_TX_SKB_BUDGET`, 6.17).
    pub tx_budget: bool,
    /// Merged TCP segments sent as such, beside the rings: [`GsoSender`].
    pub gso: bool,
    /// Merged TCP segments taken as such from stacks that we are the device of
    /// (generic XDP and tcx, Linux 6.6).
    pub tso: bool,
}

impl Features {
    /// Whether TCP segments to pods can be merged: sent as such, or in several
    /// chunks under a checksum that nobody computes.
    #[must_use]
    pub fn can_merge(self) -> bool {
        self.gso || self.rings_take_merged()
    }

    /// Whether a stack may leave TCP segments merged for us: they come as frames of
    /// several chunks, with checksums that nobody computes, and can go on as they are.
    #[must_use]
    pub fn takes_merged(self) -> bool {
        self.tso && self.gso && self.multi_buffer && self.tx_metadata
    }

    /// Whether merged segments can be sent by [`Xsk::send`]: to a pod that takes
    /// the frame as it is, for nothing says how to cut it.
    #[must_use]
    pub fn rings_take_merged(self) -> bool {
        self.multi_buffer && self.tx_metadata
    }
}

/// A queue of a network device.
#[derive(Debug, Clone, Copy)]
pub struct Device<'a> {
    /// The device's name, for messages.
    pub name: &'a str,
    /// Its interface index.
    pub index: u32,
    /// The number of the queue. A veth's end that we made has 0 only.
    pub queue: u16,
}

/// Who has the other ends of the rings.
#[derive(Debug)]
enum Kernel {
    /// The kernel, behind this socket.
    Real(Arc<OwnedFd>),
    /// The in-memory one, which needs no wakeup.
    InMemory(Shared),
}

/// What a socket and its in-memory kernel share beside the rings.
pub(super) type Shared = Arc<Mutex<InMemory>>;

/// A socket as its in-memory kernel sees it.
#[derive(Debug)]
pub(super) struct InMemory {
    pub(super) is_open: bool,
    /// Merged segments, sent after so many of the TX ring's descriptors.
    pub(super) merged: Vec<(u32, Sent)>,
    /// What becomes of merged segments, if they are not taken.
    pub(super) refusal: Option<Unsent>,
}

/// By what merged segments are sent.
#[derive(Debug)]
enum Gso {
    /// On the device of this index.
    Real(Arc<GsoSender>, u32),
    InMemory(Shared),
}

/// How a flush ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// The kernel took everything.
    Done,
    /// Something is left: flush again, in the next turn.
    Pending,
    /// The device is down: what is left goes out when it is up again.
    Down,
    /// The device is gone.
    Gone,
}

/// Why merged segments were not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsent {
    /// The send buffer is full.
    Full,
    /// The device does not take them.
    Refused,
    /// The device is down, or gone.
    Down,
}

/// A bound socket: takes frames to send, gives frames received.
#[derive(Debug)]
pub struct Xsk {
    umem: &'static Umem,
    kernel: Kernel,
    rings: Rings,
    /// Marks this socket's chunks in the UMEM's side array.
    number: u32,
    features: Features,
    /// Chunks in the FILL and RX rings, and in the kernel between them.
    filled: u32,
    /// Chunks in the TX and COMPLETION rings, and in the kernel between them.
    sent: u32,
    gso: Option<Gso>,
}

impl Xsk {
    /// Opens and binds a socket on `device` in copy mode. `share` is
    /// any bound socket of the same UMEM; the first socket, without it,
    /// registers the UMEM and decides for all that follow which features are
    /// used.
    ///
    /// # Errors
    /// The call that failed, on which device, and why.
    pub fn open(
        umem: &'static Umem,
        device: &Device<'_>,
        features: Features,
        share: Option<&Socket>,
    ) -> Result<Self, XskError> {
        let failed = |operation| move |cause| XskError::new(device, operation, cause);
        // Chunk numbers of one UMEM would mean other memory in another.
        let share = match share {
            Some(first) if first.umem != umem.number() => {
                return Err(failed("share the UMEM")(io::ErrorKind::InvalidInput.into()));
            }
            Some(first) => match first.file.upgrade() {
                None => {
                    return Err(failed("share the UMEM")(io::Error::from_raw_os_error(
                        libc::EBADF,
                    )));
                }
                open => open,
            },
            None => None,
        };
        let socket = sys::xdp_socket().map_err(failed("socket(AF_XDP)"))?;
        let fd = socket.as_fd();
        if share.is_none() {
            let registration = umem.registration(features.tx_metadata);
            sys::setsockopt(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)
                .map_err(failed("register the UMEM (XDP_UMEM_REG)"))?;
        }
        let rings = Rings::map(fd).map_err(failed("set up the rings"))?;
        sys::setsockopt(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER)
            .map_err(failed("raise the send buffer (SO_SNDBUFFORCE)"))?;
        if features.tx_budget {
            sys::setsockopt(fd, libc::SOL_XDP, sys::XDP_MAX_TX_SKB_BUDGET, &TX_BUDGET)
                .map_err(failed("raise the wakeup budget (XDP_MAX_TX_SKB_BUDGET)"))?;
        }
        let share = share.as_ref().map(AsFd::as_fd);
        bind(fd, device, features, share).map_err(failed("bind"))?;
        Self::over(umem, features, rings, Kernel::Real(Arc::new(socket)))
            .map_err(failed("number the socket"))
    }

    /// A socket over the in-memory kernel.
    pub(super) fn in_memory(
        umem: &'static Umem,
        features: Features,
        rings: Rings,
        shared: Shared,
    ) -> io::Result<Self> {
        Self::over(umem, features, rings, Kernel::InMemory(shared))
    }

    /// Has merged TCP segments sent by `sender`, beside the rings, to the device
    /// of this index: the one that the socket is bound to.
    pub fn set_gso(&mut self, sender: Arc<GsoSender>, device: u32) {
        self.gso = Some(Gso::Real(sender, device));
    }

    /// The same over the in-memory kernel.
    pub(super) fn set_gso_in_memory(&mut self, shared: Shared) {
        self.gso = Some(Gso::InMemory(shared));
    }

    /// Whether merged segments are sent by [`Xsk::send_merged`].
    #[inline]
    #[must_use]
    pub fn has_gso(&self) -> bool {
        self.gso.is_some()
    }

    /// Sends merged segments, beside the rings: flush these before, to keep the
    /// order. The frame stays the caller's.
    ///
    /// # Errors
    /// Why the kernel did not take it.
    pub fn send_merged(&mut self, frame: &Frame, cut: &Cut) -> Result<(), Unsent> {
        match &self.gso {
            None => Err(Unsent::Refused),
            Some(Gso::Real(sender, device)) => {
                let sent = sender.send(*device, self.umem, frame, cut);
                sent.map_err(|error| match error.raw_os_error() {
                    Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV) => Unsent::Down,
                    Some(libc::EAGAIN) => Unsent::Full,
                    _ => Unsent::Refused,
                })
            }
            Some(Gso::InMemory(shared)) => {
                assert!(
                    frame.chunks() <= MAX_CHUNKS,
                    "a kernel takes no more pieces"
                );
                let sent = Sent {
                    bytes: self.umem.slices(frame).flatten().copied().collect(),
                    checksum: Some((cut.checksum.start, cut.checksum.offset)),
                    segment: Some(cut.data_len),
                };
                let after = self.rings.tx.outstanding();
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(refusal) = shared.refusal {
                    return Err(refusal);
                }
                shared.merged.push((after, sent));
                Ok(())
            }
        }
    }

    fn over(
        umem: &'static Umem,
        features: Features,
        rings: Rings,
        kernel: Kernel,
    ) -> io::Result<Self> {
        let number = umem.next_socket();
        Ok(Self {
            umem,
            kernel,
            rings,
            number: number.ok_or_else(|| io::Error::other("there were 2^32 sockets"))?,
            features,
            filled: 0,
            sent: 0,
            gso: None,
        })
    }

    /// The socket for those who do not own it.
    #[must_use]
    pub fn socket(&self) -> Socket {
        Socket {
            file: match &self.kernel {
                Kernel::Real(file) => Arc::downgrade(file),
                Kernel::InMemory(_) => Weak::new(),
            },
            umem: self.umem.number(),
        }
    }

    /// Which features the socket was opened with.
    #[must_use]
    pub fn features(&self) -> Features {
        self.features
    }

    /// Chunks in the FILL and RX rings, and in the kernel between them.
    #[must_use]
    pub fn filled(&self) -> u32 {
        self.filled
    }

    /// Chunks in the TX and COMPLETION rings, and in the kernel between them.
    #[must_use]
    pub fn sent(&self) -> u32 {
        self.sent
    }

    /// Fills the FILL ring up to [`FILL_DEPTH`]. Returns false where the pool
    /// does not reach: try again when it has chunks.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool) -> bool {
        // `filled` counts the RX ring too and both rings have more entries
        // than that, so a push never fails.
        while self.filled < FILL_DEPTH {
            let Some(chunk) = pool.take() else { break };
            self.rings.fill.push(self.umem.lend(chunk, self.number));
            self.filled += 1;
        }
        self.rings.fill.submit();
        self.filled >= FILL_DEPTH
    }

    /// Takes frames that the port received, as many as the batch has room for.
    #[inline]
    pub fn receive(&mut self, batch: &mut Batch) {
        while !batch.is_full() {
            let Some(frame) = self.receive_frame() else {
                break;
            };
            batch.push(frame);
        }
        self.rings.rx.release();
    }

    #[inline]
    fn receive_frame(&mut self) -> Option<Frame> {
        // The kernel shows whole frames only; a chain without its end would
        // be one that is still being written.
        let mut chunks = 1;
        while self.rings.rx.peek(chunks - 1)?.options & libc::XDP_PKT_CONTD != 0 {
            chunks += 1;
        }
        let first = self.receive_chunk()?;
        let mut chain = Chain::new(self.umem, first);
        for _ in 1..chunks {
            match self.receive_chunk() {
                Some(more) => chain.append(self.umem, more),
                None => debug_assert!(false, "a descriptor outside the UMEM"),
            }
        }
        Some(chain.into_frame())
    }

    #[inline]
    fn receive_chunk(&mut self) -> Option<Frame> {
        let desc = self.rings.rx.pop()?;
        self.filled -= 1;
        self.umem.received(&desc)
    }

    /// Queues a frame, with a request to complete its checksum where `partial`
    /// says so. [`Xsk::flush`] sends what is queued.
    ///
    /// # Errors
    /// The frame, if the TX ring has no room for all its chunks.
    #[inline]
    pub fn send(&mut self, mut frame: Frame, partial: Option<Partial>) -> Result<(), Frame> {
        let chunks = u32::from(frame.chunks());
        if self.rings.tx.space(chunks) < chunks {
            return Err(frame);
        }
        let requested = partial.is_some_and(|partial| {
            self.umem
                .request_checksum(&mut frame, partial.start, partial.offset)
        });
        let options = if requested { libc::XDP_TX_METADATA } else { 0 };
        let tx = &mut self.rings.tx;
        self.umem.sending(frame, self.number, options, |desc| {
            tx.push(desc);
        });
        self.sent += chunks;
        Ok(())
    }

    /// Shows the kernel what was queued and wakes it until it has taken all.
    pub fn flush(&mut self) -> Flush {
        self.rings.tx.submit();
        let Kernel::Real(socket) = &self.kernel else {
            return Flush::Done;
        };
        let mut left = self.rings.tx.outstanding();
        // Before Linux 6.17, the one with the budget, the kernel shows how far
        // it got only once it has taken all it saw (commit 1eb8b0dac189): so
        // many wakeups may show no progress.
        let mut unseen = if self.features.tx_budget {
            0
        } else {
            left.div_ceil(KERNEL_BUDGET)
        };
        for _ in 0..MAX_WAKEUPS {
            if left == 0 {
                return Flush::Done;
            }
            let result = sys::wake_tx(socket.as_fd());
            let before = std::mem::replace(&mut left, self.rings.tx.outstanding());
            match result.map_err(|error| error.raw_os_error()) {
                Err(Some(libc::ENETDOWN)) => return Flush::Down,
                Err(Some(libc::ENXIO | libc::ENODEV)) => return Flush::Gone,
                // EAGAIN: the budget is spent, or the send buffer full.
                // ENOBUFS, EBUSY and others: one packet was refused, and is
                // consumed. Without progress there is no point in insisting.
                _ if left < before => {}
                _ if unseen <= 1 => return Flush::Pending,
                _ => unseen -= 1,
            }
        }
        Flush::Pending
    }

    /// Frees what the kernel has sent.
    #[inline]
    pub fn reap(&mut self, pool: &mut FramePool) {
        if self.sent == 0 {
            return;
        }
        while let Some(addr) = self.rings.completion.pop() {
            self.sent -= 1;
            if let Some(chunk) = self.umem.completed(addr) {
                pool.give(chunk);
            }
        }
        self.rings.completion.release();
    }

    /// Closes the socket; blocks for a few milliseconds (an RCU grace period),
    /// so not on the packet path. Its chunks come back by
    /// [`FramePool::reclaim`].
    pub fn close(self) -> Closed {
        let Self {
            kernel,
            rings,
            umem,
            number,
            ..
        } = self;
        // The ring mappings keep the file open as the descriptor does.
        drop(rings);
        match kernel {
            Kernel::Real(mut file) => loop {
                // Somebody may be reading the statistics just now.
                match Arc::try_unwrap(file) {
                    Ok(last) => break drop(last),
                    Err(shared) => file = shared,
                }
                thread::yield_now();
            },
            Kernel::InMemory(shared) => {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared.is_open = false;
            }
        }
        Closed::of(umem, number)
    }
}

fn bind(
    fd: BorrowedFd<'_>,
    device: &Device<'_>,
    features: Features,
    share: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    // A socket that shares a UMEM must not repeat the flags: it gets those of
    // the first (xsk_bind in net/xdp/xsk.c).
    let (flags, shared_fd) = match share {
        Some(first) => (libc::XDP_SHARED_UMEM, first.as_raw_fd()),
        None if features.multi_buffer => (
            libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP | libc::XDP_USE_SG,
            0,
        ),
        None => (libc::XDP_COPY | libc::XDP_USE_NEED_WAKEUP, 0),
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).map_err(io::Error::other)?,
        sxdp_flags: flags,
        sxdp_ifindex: device.index,
        sxdp_queue_id: device.queue.into(),
        sxdp_shared_umem_fd: u32::try_from(shared_fd).map_err(io::Error::other)?,
    };
    let started = Instant::now();
    loop {
        match sys::bind(fd, &address) {
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY)
                    && started.elapsed() < BUSY_FOR_AT_MOST =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result,
        }
    }
}
