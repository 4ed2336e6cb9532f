//! Frames on their way through the shapers: the sender's egress, then the
//! receiver's ingress.

use super::{Engine, find};
use crate::pipeline::Handoff;
use crate::port::{Port, PortId};
use crate::shaper::{Direction, Held, Shapers, Surroundings};
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::BATCH_SIZE;

impl Engine {
    /// A frame has left its source's hands: holds it to the pod's egress limit,
    /// if it has one.
    pub(super) fn leave(&mut self, to: PortId, handoff: Handoff, now: Nanos) {
        let from = handoff.meta.from;
        let source = find(&mut self.ports, from);
        let Some(source) = source.filter(|port| port.shapers.get(Direction::Egress).is_some())
        else {
            return self.deliver(to, handoff, now);
        };
        if handoff.meta.is_merged() {
            return self.cut(from, handoff, |engine, piece| engine.leave(to, piece, now));
        }
        if let Err(rejection) = self.pipeline.fits(&handoff, &source.endpoint) {
            return self.refuse(from, handoff, &rejection, now);
        }
        if let Some(held) = self.shape(from, Direction::Egress, to, handoff, now) {
            self.deliver(held.to, held.handoff, now);
        }
    }

    /// Gives a frame back that may pass now.
    pub(super) fn shape(
        &mut self,
        id: PortId,
        direction: Direction,
        to: PortId,
        handoff: Handoff,
        now: Nanos,
    ) -> Option<Held> {
        let Some(port) = find(&mut self.ports, id) else {
            return Some(Held::new(to, handoff, now));
        };
        let flow = handoff.meta.flow(direction);
        let held = Held::new(to, handoff, now);
        let Port {
            shapers, counters, ..
        } = port;
        let Some(shaper) = shapers
            .get_mut(direction)
            .filter(|shaper| shaper.covers(flow.peer(direction)))
        else {
            return Some(held);
        };
        let room = self.budget.room(&self.pool, &self.store);
        let (umem, pool) = (self.pool.umem(), &mut self.pool);
        let mut surroundings = Surroundings {
            store: &mut self.store,
            umem,
            marked: &counters.marked,
            discard: &mut |held, reason| {
                counters.drops.count(reason);
                pool.free(held.handoff.frame);
            },
        };
        let passes = shaper.offer(held, &flow, room, &mut surroundings);
        if !shaper.waits
            && let Some(at) = shaper.due(now)
        {
            shaper.waits = true;
            self.timers.push(at, id, direction);
        }
        if passes.is_none() {
            counters.queued_chunks.set(shapers.chunks());
        }
        passes
    }

    /// Sends what may go by now, of each shaper a batch at most.
    pub(super) fn release_held(&mut self, now: Nanos) {
        while let Some((id, direction)) = self.timers.pop(now) {
            for _ in 0..BATCH_SIZE {
                let Some(held) = self.next_released(id, direction, now) else {
                    break;
                };
                self.pass(direction, held, now);
            }
            self.set_timer(id, direction, now);
        }
    }

    /// Sets the timer of a shaper that has none.
    fn set_timer(&mut self, id: PortId, direction: Direction, now: Nanos) {
        let Some(port) = find(&mut self.ports, id) else {
            return;
        };
        if let Some(shaper) = port.shapers.get_mut(direction) {
            let due = shaper.due(now);
            shaper.waits = due.is_some();
            if let Some(at) = due {
                self.timers.push(at, id, direction);
            }
        }
        port.counters.queued_chunks.set(port.shapers.chunks());
    }

    fn next_released(&mut self, id: PortId, direction: Direction, now: Nanos) -> Option<Held> {
        let Port {
            shapers, counters, ..
        } = find(&mut self.ports, id)?;
        let (umem, pool) = (self.pool.umem(), &mut self.pool);
        let mut surroundings = Surroundings {
            store: &mut self.store,
            umem,
            marked: &counters.marked,
            discard: &mut |held, reason| {
                counters.drops.count(reason);
                pool.free(held.handoff.frame);
            },
        };
        shapers.get_mut(direction)?.release(now, &mut surroundings)
    }

    /// Changes the limits of a port, and the MTU that goes with them. No frame
    /// is lost: what waits for a limit that is no more goes now. Gives what is
    /// not needed any more, to be dropped where there is time for it.
    pub fn set_shapers(&mut self, id: PortId, shapers: Shapers, mtu: u32, now: Nanos) -> Shapers {
        let Some(port) = find(&mut self.ports, id) else {
            return shapers;
        };
        port.endpoint.mtu = mtu;
        let mut old = port.shapers.change(shapers, now);
        self.timers.forget(|port, _| port == id);
        for direction in Direction::ALL {
            self.set_timer(id, direction, now);
            let Some(shaper) = old.get_mut(direction) else {
                continue;
            };
            while let Some(held) = shaper.pop(&mut self.store) {
                self.pass(direction, held, now);
            }
        }
        old
    }

    /// What comes after a shaper.
    fn pass(&mut self, direction: Direction, held: Held, now: Nanos) {
        match direction {
            Direction::Egress => self.deliver(held.to, held.handoff, now),
            Direction::Ingress => self.arrive(held.to, held.handoff, now),
        }
    }

    /// Drops what waits for a port that is removed.
    pub(super) fn discard_held(&mut self, port: &mut Port) {
        let id = port.endpoint.id;
        self.timers.forget(|port, _| port == id);
        for direction in Direction::ALL {
            let Some(shaper) = port.shapers.get_mut(direction) else {
                continue;
            };
            while let Some(held) = shaper.pop(&mut self.store) {
                port.counters.drops.count(DropReason::PortDown);
                self.pool.free(held.handoff.frame);
            }
        }
    }

    /// The chunks of all frames that wait.
    #[must_use]
    pub fn held_chunks(&self) -> u32 {
        self.store.chunks()
    }
}
