//! Counters that one thread writes and any thread may read.

use std::collections::BTreeMap;
use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::verdict::DropReason;

/// A counter with one writer: adding is a plain load and store.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the counter's one writer may call it.
    #[inline]
    pub fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    /// Sets the value. Only the counter's one writer may call it.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Reads the value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Drops by reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts one drop.
    #[inline]
    pub fn count(&self, reason: DropReason) {
        self.0[reason.index()].add(1);
    }

    /// How many frames were dropped for this reason.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()].get()
    }

    /// The reasons that occurred, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason.name(), self.get(reason)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// What a port counts. Bytes are Ethernet bytes without the frame check
/// sequence, as in the pod's interface statistics.
///
/// Over all ports, always: `rx_frames` + `cut_frames` + `icmp_errors` = `tx_frames` +
/// `merged_frames` + drops, those included that a worker counts for itself, and
/// what waits in shapers. Every frame received or cut off one, and every ICMP error
/// made of one that was dropped, is queued to a port, becomes the end of one that is,
/// or is dropped. What a port's kernel then does with a queued
/// frame is not in here: an interface that is down on the pod's side takes and
/// loses it.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Frames that came from the port.
    pub rx_frames: Counter,
    /// Their bytes.
    pub rx_bytes: Counter,
    /// Frames queued to the port.
    pub tx_frames: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Frames to the port that became the end of another, and are no frame any
    /// more.
    pub merged_frames: Counter,
    /// TCP segments that their sender's stack had merged and this port's worker cut,
    /// beyond the first of each frame.
    pub cut_frames: Counter,
    /// Frames from the port that were questions and became answers.
    pub answered: Counter,
    /// Frames dropped: on departure from this port, or on arrival at it.
    pub drops: Drops,
    /// ICMP errors sent to the port.
    pub icmp_errors: Counter,
    /// ICMP errors that the rate limit held back.
    pub icmp_suppressed: Counter,
    /// Chunks in the port's FILL and RX rings.
    pub filled_chunks: Counter,
    /// Chunks in the port's TX and COMPLETION rings.
    pub sent_chunks: Counter,
    /// Chunks of frames that wait in the port's shapers.
    pub queued_chunks: Counter,
    /// Frames that the port's shapers marked instead of dropping them (ECN).
    pub marked: Counter,
}

/// A port's counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PortSnapshot {
    /// Frames that came from the port.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames queued to the port.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames to the port that became the end of another.
    pub merged_frames: u64,
    /// Segments cut off frames for the port's sake.
    pub cut_frames: u64,
    /// Frames from the port that became answers.
    pub answered: u64,
    /// Frames dropped, by reason.
    pub drops: BTreeMap<&'static str, u64>,
    /// ICMP errors sent to the port.
    pub icmp_errors: u64,
    /// ICMP errors that the rate limit held back.
    pub icmp_suppressed: u64,
    /// Chunks in the port's FILL and RX rings.
    pub filled_chunks: u64,
    /// Chunks in the port's TX and COMPLETION rings.
    pub sent_chunks: u64,
    /// Chunks of frames that wait in the port's shapers.
    pub queued_chunks: u64,
    /// Frames that the port's shapers marked instead of dropping them (ECN).
    pub marked: u64,
}

impl PortCounters {
    /// Reads all counters, one after the other.
    #[must_use]
    pub fn snapshot(&self) -> PortSnapshot {
        PortSnapshot {
            rx_frames: self.rx_frames.get(),
            rx_bytes: self.rx_bytes.get(),
            tx_frames: self.tx_frames.get(),
            tx_bytes: self.tx_bytes.get(),
            merged_frames: self.merged_frames.get(),
            cut_frames: self.cut_frames.get(),
            answered: self.answered.get(),
            drops: self.drops.snapshot(),
            icmp_errors: self.icmp_errors.get(),
            icmp_suppressed: self.icmp_suppressed.get(),
            filled_chunks: self.filled_chunks.get(),
            sent_chunks: self.sent_chunks.get(),
            queued_chunks: self.queued_chunks.get(),
            marked: self.marked.get(),
        }
    }
}

/// What a worker counts for the node.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// Turns of the worker's loop.
    pub turns: Counter,
    /// Turns that moved frames.
    pub busy_turns: Counter,
    /// Times that the worker went to sleep.
    pub sleeps: Counter,
    /// Chunks of the UMEM.
    pub chunks: Counter,
    /// Chunks in the worker's pool.
    pub free_chunks: Counter,
    /// Chunks of frames that wait in shapers.
    pub held_chunks: Counter,
    /// Chunks of removed ports that were taken back.
    pub reclaimed_chunks: Counter,
    /// Sessions that take room. Those that are over are counted until a turn
    /// removes them.
    pub sessions: Counter,
    /// Sessions that there is room for.
    pub session_capacity: Counter,
    /// Sessions that have given way to a new one of their pod.
    pub recycled_sessions: Counter,
    /// Frames handed to other workers.
    pub handed_frames: Counter,
    /// Drops of frames from other workers' ports, which no port of this one
    /// counts.
    pub drops: Drops,
}

/// A worker's counters at one moment, or the sum of several workers'.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodeSnapshot {
    /// Turns of the worker's loop.
    pub turns: u64,
    /// Turns that moved frames.
    pub busy_turns: u64,
    /// Times that the worker went to sleep.
    pub sleeps: u64,
    /// Chunks of the UMEM.
    pub chunks: u64,
    /// Chunks in the worker's pool.
    pub free_chunks: u64,
    /// Chunks of frames that wait in shapers.
    pub held_chunks: u64,
    /// Chunks of removed ports that were taken back.
    pub reclaimed_chunks: u64,
    /// Sessions that take room.
    pub sessions: u64,
    /// Sessions that there is room for.
    pub session_capacity: u64,
    /// Sessions that have given way to a new one of their pod.
    pub recycled_sessions: u64,
    /// Frames handed to other workers.
    pub handed_frames: u64,
}

impl Add for NodeSnapshot {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            turns: self.turns + other.turns,
            busy_turns: self.busy_turns + other.busy_turns,
            sleeps: self.sleeps + other.sleeps,
            // The same for all.
            chunks: self.chunks.max(other.chunks),
            free_chunks: self.free_chunks + other.free_chunks,
            held_chunks: self.held_chunks + other.held_chunks,
            reclaimed_chunks: self.reclaimed_chunks + other.reclaimed_chunks,
            sessions: self.sessions + other.sessions,
            session_capacity: self.session_capacity + other.session_capacity,
            recycled_sessions: self.recycled_sessions + other.recycled_sessions,
            handed_frames: self.handed_frames + other.handed_frames,
        }
    }
}

impl NodeCounters {
    /// Reads all counters, one after the other.
    #[must_use]
    pub fn snapshot(&self) -> NodeSnapshot {
        NodeSnapshot {
            turns: self.turns.get(),
            busy_turns: self.busy_turns.get(),
            sleeps: self.sleeps.get(),
            chunks: self.chunks.get(),
            free_chunks: self.free_chunks.get(),
            held_chunks: self.held_chunks.get(),
            reclaimed_chunks: self.reclaimed_chunks.get(),
            sessions: self.sessions.get(),
            session_capacity: self.session_capacity.get(),
            recycled_sessions: self.recycled_sessions.get(),
            handed_frames: self.handed_frames.get(),
        }
    }
}
