//! When shapers that hold frames may let the next one go.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Direction;
use crate::port::PortId;
use crate::time::Nanos;

/// One entry for each shaper that holds frames, the earliest first. Pods that
/// are idle, or within their limits, cost nothing.
#[derive(Debug)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Nanos, PortId, Direction)>>,
}

impl Timers {
    /// Timers for so many ports; allocates no more after that.
    pub(crate) fn new(ports: usize) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(Direction::ALL.len() * ports),
        }
    }

    /// The shaper is due at that time. It must not be waiting already.
    pub(crate) fn push(&mut self, at: Nanos, port: PortId, direction: Direction) {
        debug_assert!(
            self.heap.len() < self.heap.capacity(),
            "each shaper waits once"
        );
        self.heap.push(Reverse((at, port, direction)));
    }

    /// When the first is due.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// Takes one that is due.
    pub(crate) fn pop(&mut self, now: Nanos) -> Option<(PortId, Direction)> {
        if self.next()? > now {
            return None;
        }
        let Reverse((_, port, direction)) = self.heap.pop()?;
        Some((port, direction))
    }

    /// Forgets shapers that are no more.
    pub(crate) fn forget(&mut self, gone: impl Fn(PortId, Direction) -> bool) {
        self.heap
            .retain(|Reverse((_, port, direction))| !gone(*port, *direction));
    }
}
