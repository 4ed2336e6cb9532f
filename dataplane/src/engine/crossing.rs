//! What goes to other workers, and what comes from them.

use super::cutting::CUT_AT_ONCE;
use super::{Engine, find};
use crate::handoff::Crossing;
use crate::pipeline::Handoff;
use crate::port::PortId;
use crate::time::Nanos;
use crate::verdict::DropReason;

impl Engine {
    /// Whether other workers have handed something over.
    #[must_use]
    pub fn has_incoming(&self) -> bool {
        self.peers.has_incoming()
    }

    /// Takes at most a batch from each of the other workers.
    #[inline]
    pub(super) fn take_over(&mut self, now: Nanos) -> usize {
        let mut got = 0;
        if !self.peers.inboxes.is_empty() {
            let mut inboxes = std::mem::take(&mut self.peers.inboxes);
            for inbox in &mut inboxes {
                let Some(batch) = inbox.batch() else { continue };
                let (first, second) = batch.as_slices();
                for crossing in first.iter().chain(second) {
                    self.pool.umem().prefetch(crossing.frame());
                }
                let mut chunks = 0;
                self.cuts_left = CUT_AT_ONCE;
                for crossing in batch {
                    got += 1;
                    chunks += usize::from(crossing.frame().chunks());
                    self.receive(crossing, now);
                }
                inbox.release(chunks);
            }
            self.peers.inboxes = inboxes;
            self.peers.flush();
        }
        got
    }

    fn receive(&mut self, crossing: Crossing, now: Nanos) {
        match crossing {
            Crossing::Frame(_, handoff) if handoff.asks() => self.resolve(handoff, now),
            Crossing::Frame(to, handoff) => self.deliver(to, handoff, now),
            Crossing::Tell(tell) => self.tell(tell, now),
        }
    }

    /// Sends on what asks the sessions here.
    fn resolve(&mut self, handoff: Handoff, now: Nanos) {
        let from = handoff.meta.from;
        match self.pipeline.ask(handoff, now) {
            Ok((to, handoff)) => self.deliver(to, handoff, now),
            Err((frame, rejection)) => {
                self.count_drop(from, rejection.reason);
                self.reject(from, frame, &rejection, now);
            }
        }
    }

    /// Hands a frame to the worker that has `port`.
    pub(super) fn hand_over(&mut self, port: PortId, crossing: Crossing) {
        match self.peers.push(port, crossing, &self.pool) {
            Ok(()) => self.counters.handed_frames.add(1),
            Err(crossing) => {
                // What an error is about is counted already.
                if let Crossing::Frame(_, handoff) = &crossing {
                    self.count_drop(handoff.meta.from, DropReason::HandoffFull);
                }
                self.pool.free(crossing.into_frame());
            }
        }
    }

    /// Counts a drop of what `source` sent: the worker does where the source is
    /// another worker's, since a port's counters have one writer.
    pub(super) fn count_drop(&mut self, source: PortId, reason: DropReason) {
        match find(&mut self.ports, source) {
            Some(port) => port.counters.drops.count(reason),
            None => self.counters.drops.count(reason),
        }
    }
}
