//! Where held frames lie: one store a worker, of fixed capacity, for the queues
//! of all its shapers.

use super::codel::Queued;
use crate::pipeline::Handoff;
use crate::port::PortId;
use crate::time::Nanos;

/// A frame that waits, with what its way onwards needs.
#[derive(Debug)]
pub(crate) struct Held {
    /// The frame and its headers.
    pub(crate) handoff: Handoff,
    /// Where it goes.
    pub(crate) to: PortId,
    /// What it costs, bytes of IP packet.
    pub(crate) len: u32,
    /// Since when it waits.
    pub(crate) since: Nanos,
}

impl Held {
    /// A frame that waits from now on.
    #[inline]
    pub(crate) fn new(to: PortId, handoff: Handoff, now: Nanos) -> Self {
        Self {
            len: super::cost(handoff.frame.len(), &handoff.meta.ip),
            handoff,
            to,
            since: now,
        }
    }

    /// The chunks that wait with it.
    pub(super) fn chunks(&self) -> u32 {
        self.handoff.frame.chunks().into()
    }
}

impl Queued for Held {
    fn since(&self) -> Nanos {
        self.since
    }
}

/// The end of a list of places.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Place {
    held: Option<Held>,
    /// The next of its list: a queue's, or that of the free places.
    next: u32,
}

/// A first-in, first-out list of places.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
    };
}

/// The held frames of a worker. Its budget is counted in chunks: a frame of 64
/// bytes holds one of 4096.
#[derive(Debug)]
pub(crate) struct Store {
    places: Box<[Place]>,
    free: u32,
    chunks: u32,
    /// Chunks that every queue may have, whatever the others hold.
    own: u32,
    /// Those of all queues together.
    owned: u32,
}

impl Store {
    /// Room for frames of `chunks` chunks in all, in at most so many queues.
    pub(crate) fn new(chunks: u32, queues: u32) -> Self {
        let places = (0..chunks).map(|place| Place {
            held: None,
            next: if place + 1 < chunks { place + 1 } else { NONE },
        });
        Self {
            places: places.collect(),
            free: if chunks > 0 { 0 } else { NONE },
            chunks: 0,
            own: chunks / 2 / queues.max(1),
            owned: chunks / 2 / queues.max(1) * queues,
        }
    }

    /// How many more chunks may be held.
    pub(super) fn room(&self) -> u32 {
        u32::try_from(self.places.len()).unwrap_or(u32::MAX) - self.chunks
    }

    /// How many chunks one queue may hold now: its own, and as many as are left
    /// beyond what all may still want of theirs. Who fills one queue leaves half of
    /// that part to the next (Choudhury and Hahne's dynamic threshold).
    pub(super) fn share(&self) -> u32 {
        self.own + self.room().saturating_sub(self.owned)
    }

    /// The chunks of all held frames.
    pub(crate) fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Appends a frame to a list; gives it back if there is no room.
    pub(super) fn push(&mut self, list: &mut List, held: Held) -> Option<Held> {
        let index = self.free;
        let chunks = held.chunks();
        if (self.chunks + chunks) as usize > self.places.len() {
            return Some(held);
        }
        let Some(place) = self.places.get_mut(index as usize) else {
            return Some(held);
        };
        self.free = place.next;
        *place = Place {
            held: Some(held),
            next: NONE,
        };
        self.chunks += chunks;
        match self.places.get_mut(list.tail as usize) {
            Some(last) => last.next = index,
            None => list.head = index,
        }
        list.tail = index;
        None
    }

    /// Takes the first frame of a list.
    pub(super) fn pop(&mut self, list: &mut List) -> Option<Held> {
        let index = list.head;
        let place = self.places.get_mut(index as usize)?;
        list.head = place.next;
        if list.head == NONE {
            list.tail = NONE;
        }
        place.next = self.free;
        self.free = index;
        let held = place.held.take()?;
        self.chunks -= held.chunks();
        Some(held)
    }
}

/// What waits when the worker ends goes with the worker's memory.
impl Drop for Store {
    fn drop(&mut self) {
        for held in self.places.iter_mut().filter_map(|place| place.held.take()) {
            std::mem::forget(held.handoff.frame);
        }
    }
}
