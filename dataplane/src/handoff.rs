//! Frames handed from worker to worker: a ring for each two and direction, so
//! that each has one writer and one reader.
//!
//! Handed over is by the batch: one store of the ring's index, one look whether
//! the reader sleeps. A ring without room drops, it never waits.

mod asleep;
mod sleeper;

/// Those of the loom test are loom's.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrayvec::ArrayVec;
use crossbeam::utils::CachePadded;
use rtrb::chunks::ReadChunk;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::ownership::Ownership;
use crate::packet::{Ip, icmp};
use crate::pipeline::Handoff;
use crate::port::{PortId, SHARE_AT_LEAST};
use crate::xsk::{BATCH_SIZE, Frame, FramePool};

pub use sleeper::Sleeper;

/// Frames between two workers in one direction: sixteen batches.
const RING: usize = 1024;

/// What one worker hands to another.
#[derive(Debug)]
pub(crate) enum Crossing {
    /// A frame for a port of the other's, or one that asks its sessions.
    Frame(PortId, Handoff),
    /// A frame that was dropped, and counted: the other has its source, which is
    /// told why.
    Tell(Tell),
}

/// An ICMP error to be made.
#[derive(Debug)]
pub(crate) struct Tell {
    /// Who gets it.
    pub(crate) source: PortId,
    /// About which frame.
    pub(crate) frame: Frame,
    /// What it says.
    pub(crate) error: icmp::Error,
    /// The frame's headers.
    pub(crate) ip: Ip,
}

const _: () = assert!(size_of::<Crossing>() <= 192, "three cache lines");

impl Crossing {
    pub(crate) fn frame(&self) -> &Frame {
        match self {
            Self::Frame(_, handoff) => &handoff.frame,
            Self::Tell(tell) => &tell.frame,
        }
    }

    pub(crate) fn into_frame(self) -> Frame {
        match self {
            Self::Frame(_, handoff) => handoff.frame,
            Self::Tell(tell) => tell.frame,
        }
    }

    fn chunks(&self) -> usize {
        self.frame().chunks().into()
    }
}

/// Chunks on their way from one worker to another.
type Held = Arc<CachePadded<AtomicUsize>>;

/// How many chunks are on their way between workers, for who is none.
#[derive(Debug, Clone, Default)]
pub struct Underway(Vec<Held>);

impl Underway {
    /// The sum; approximate while frames move.
    #[must_use]
    pub fn chunks(&self) -> usize {
        let held = self.0.iter().map(|held| held.load(Ordering::Relaxed));
        held.sum()
    }
}

/// A worker's ends of the rings between it and the others.
#[derive(Debug)]
pub struct Peers {
    ownership: Ownership,
    /// By worker, itself included.
    outboxes: Vec<Option<Outbox>>,
    pub(crate) inboxes: Vec<Inbox>,
}

impl Peers {
    /// Of the only worker.
    #[must_use]
    pub fn none() -> Self {
        Self {
            ownership: Ownership::ALONE,
            outboxes: Vec::new(),
            inboxes: Vec::new(),
        }
    }

    /// Of workers that sleep as these do, in their order; and what is on its way
    /// between them.
    ///
    /// # Panics
    /// If there is none, or more than 65,535.
    #[must_use]
    pub fn connect(sleepers: &[Arc<Sleeper>]) -> (Vec<Self>, Underway) {
        let Ok(workers @ 1..) = u16::try_from(sleepers.len()) else {
            panic!("{} workers", sleepers.len());
        };
        if workers == 1 {
            return (vec![Self::none()], Underway::default());
        }
        let mut all: Vec<Self> = (0..workers)
            .map(|worker| Self {
                ownership: Ownership::of(worker, workers),
                outboxes: Vec::new(),
                inboxes: Vec::new(),
            })
            .collect();
        let mut underway = Underway::default();
        for from in 0..all.len() {
            for to in 0..all.len() {
                if from == to {
                    all[from].outboxes.push(None);
                    continue;
                }
                let (outbox, inbox) = connect(Arc::clone(&sleepers[to]));
                underway.0.push(Arc::clone(&outbox.held));
                all[from].outboxes.push(Some(outbox));
                all[to].inboxes.push(inbox);
            }
        }
        (all, underway)
    }

    /// Which ports are this worker's.
    #[must_use]
    pub fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Hands something to the worker that has `port`, with the next flush at
    /// the latest.
    ///
    /// # Errors
    /// Itself: that worker has as much as it may, or the port is one's own.
    #[inline]
    #[allow(clippy::result_large_err, reason = "the packet path allocates nothing")]
    pub(crate) fn push(
        &mut self,
        port: PortId,
        crossing: Crossing,
        pool: &FramePool,
    ) -> Result<(), Crossing> {
        let owner = usize::from(self.ownership.owner(port));
        match self.outboxes.get_mut(owner) {
            Some(Some(outbox)) => outbox.push(crossing, pool),
            _ => Err(crossing),
        }
    }

    /// Shows the others what they were handed; says whether something is left,
    /// for want of room.
    #[inline]
    pub(crate) fn flush(&mut self) -> bool {
        let mut is_left = false;
        for outbox in self.outboxes.iter_mut().flatten() {
            outbox.flush();
            is_left |= !outbox.staged.is_empty();
        }
        is_left
    }

    /// Whether there is something to take over.
    pub(crate) fn has_incoming(&self) -> bool {
        self.inboxes.iter().any(|inbox| !inbox.ring.is_empty())
    }

    /// Frees all that is on its way to this worker, or has not left it yet: when
    /// none of them works any more.
    pub(crate) fn discard(&mut self, pool: &mut FramePool) {
        for outbox in self.outboxes.iter_mut().flatten() {
            for crossing in outbox.staged.drain(..) {
                pool.free(crossing.into_frame());
            }
        }
        for inbox in &mut self.inboxes {
            while let Some(batch) = inbox.batch() {
                let mut chunks = 0;
                for crossing in batch {
                    chunks += crossing.chunks();
                    pool.free(crossing.into_frame());
                }
                inbox.release(chunks);
            }
        }
    }
}

fn connect(reader: Arc<Sleeper>) -> (Outbox, Inbox) {
    let (producer, consumer) = RingBuffer::new(RING);
    let held = Held::default();
    let outbox = Outbox {
        ring: producer,
        staged: ArrayVec::new(),
        staged_chunks: 0,
        seen: 0,
        held: Arc::clone(&held),
        reader,
    };
    let inbox = Inbox {
        ring: consumer,
        held,
    };
    (outbox, inbox)
}

#[derive(Debug)]
struct Outbox {
    ring: Producer<Crossing>,
    /// What the reader has not been shown.
    staged: ArrayVec<Crossing, BATCH_SIZE>,
    /// The chunks of it that `held` does not count.
    staged_chunks: usize,
    /// What `held` was when last looked at.
    seen: usize,
    held: Held,
    reader: Arc<Sleeper>,
}

impl Outbox {
    #[inline]
    #[allow(clippy::result_large_err, reason = "the packet path allocates nothing")]
    fn push(&mut self, crossing: Crossing, pool: &FramePool) -> Result<(), Crossing> {
        let chunks = crossing.chunks();
        if !self.has_share(chunks, pool) {
            return Err(crossing);
        }
        if self.staged.is_full() {
            self.flush();
        }
        self.staged
            .try_push(crossing)
            .map_err(|full| full.element())?;
        self.staged_chunks += chunks;
        Ok(())
    }

    /// Whether the reader may have `chunks` more before it: no more than are free
    /// for all others then, as for a port (`Port::has_share`). A worker that
    /// stands still does not exhaust the pools.
    #[inline]
    fn has_share(&mut self, chunks: usize, pool: &FramePool) -> bool {
        let more = self.staged_chunks + chunks;
        let fits = |seen| seen + more <= SHARE_AT_LEAST || pool.has(seen + more);
        fits(self.seen) || {
            self.seen = self.held.load(Ordering::Relaxed);
            fits(self.seen)
        }
    }

    fn flush(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        let before = self.held.fetch_add(self.staged_chunks, Ordering::Relaxed);
        self.seen = before + self.staged_chunks;
        self.staged_chunks = 0;
        let room = self.staged.len().min(self.ring.slots());
        if let Ok(room) = self.ring.write_chunk_uninit(room)
            && !room.is_empty()
        {
            let len = room.len();
            room.fill_from_iter(self.staged.drain(..len));
            self.reader.alert();
        }
    }
}

/// The reader's end of a ring.
#[derive(Debug)]
pub(crate) struct Inbox {
    ring: Consumer<Crossing>,
    held: Held,
}

impl Inbox {
    /// At most a batch of what was handed over.
    #[inline]
    pub(crate) fn batch(&mut self) -> Option<ReadChunk<'_, Crossing>> {
        let len = self.ring.slots().min(BATCH_SIZE);
        if len == 0 {
            return None;
        }
        self.ring.read_chunk(len).ok()
    }

    /// Lets the writer know that it has taken `chunks`.
    #[inline]
    pub(crate) fn release(&self, chunks: usize) {
        self.held.fetch_sub(chunks, Ordering::Relaxed);
    }
}
