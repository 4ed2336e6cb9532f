//! FlowQueue-CoDel (RFC 8290): one queue a flow, served in turn by bytes, each
//! controlled by CoDel. So one flow's bulk delays no other.
//!
//! Two things differ from the RFC:
//! - A hash names a set of eight queues, and a flow takes one of them that is
//!   idle. Two flows share a queue only where a ninth of the set comes while
//!   eight others wait, not whenever their hashes are the same.
//! - In the RFC a flow goes first when it is new. Here it does as long as it
//!   keeps within its turn's bytes: a ping every few milliseconds, too, whose
//!   second packet comes while the first one's turn is not over yet.

use super::codel::{self, Codel, Parameters};
use super::store::{Held, List, Store};
use super::{Discard, Room};
use crate::counters::Counter;
use crate::packet::{Fragment, ecn};
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::Umem;

/// Queues of a set.
const WAYS: usize = 8;
/// Queues in all.
const QUEUES: usize = 256;
const SETS: usize = QUEUES / WAYS;

/// Two of the largest datagrams, bytes. Fragments of one come all at once, and
/// without one of them the others are of no use: they may wait at any rate. Other
/// flows go past them.
const DATAGRAMS: u64 = 2 * 65_535;

/// The end of a list of queues.
const NONE: u16 = u16::MAX;

/// What a queue may hold, and how it is controlled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Bytes of IP packets.
    pub(super) bytes: u64,
    /// Whether senders that understand marks get them instead of losses.
    pub(super) ecn: bool,
    pub(super) codel: Parameters,
}

/// A flow's queue; how much it holds stands in [`Sizes`].
#[derive(Debug, Clone)]
struct FlowQueue {
    frames: List,
    /// The flow's hash.
    tag: u32,
    /// Bytes that it may still send in this round.
    credit: i64,
    codel: Codel,
    /// Its places in [`FairQueue::first`] and [`FairQueue::round`].
    places: [Place; 2],
}

impl FlowQueue {
    fn is_idle(&self) -> bool {
        self.places.iter().all(|place| !place.is_taken)
    }
}

/// A flow's place in a list.
#[derive(Debug, Clone, Copy)]
struct Place {
    is_taken: bool,
    next: u16,
}

/// Flows in a line, by their queues' numbers.
#[derive(Debug, Clone, Copy)]
struct Line {
    /// Which of a flow's places is this list's.
    place: usize,
    head: u16,
    tail: u16,
}

/// How much each queue holds, close together: whenever a queue is full the
/// largest is looked for.
#[derive(Debug)]
struct Sizes {
    each: Box<[u32; QUEUES]>,
    total: u64,
}

/// The queues of one direction of a pod.
#[derive(Debug)]
pub(super) struct FairQueue {
    flows: Box<[FlowQueue]>,
    /// Flows that came, or came back, with credit: served first.
    first: Line,
    /// Flows in turn. Each gets a quantum of credit a round.
    round: Line,
    /// Flows that are in one of the two.
    active: u32,
    bytes: Sizes,
    chunks: Sizes,
    /// Fragments that wait.
    fragments: u32,
    bounds: Bounds,
    /// So many bytes more, since they waited when the bound was lowered; as many fewer
    /// as have gone since.
    kept: u64,
}

/// What dequeuing touches beside the queues themselves.
pub(crate) struct Surroundings<'a> {
    pub(crate) store: &'a mut Store,
    pub(crate) umem: &'static Umem,
    /// Frames marked instead of dropped.
    pub(crate) marked: &'a Counter,
    pub(crate) discard: Discard<'a>,
}

/// One flow's queue, as CoDel sees it.
struct Controlled<'a, 'b> {
    index: usize,
    frames: &'a mut List,
    bytes: &'a mut Sizes,
    chunks: &'a mut Sizes,
    fragments: &'a mut u32,
    kept: &'a mut u64,
    ecn: bool,
    surroundings: &'a mut Surroundings<'b>,
}

impl codel::Queue for Controlled<'_, '_> {
    type Item = Held;

    fn pop(&mut self) -> Option<Held> {
        let held = self.surroundings.store.pop(self.frames)?;
        self.bytes.remove(self.index, held.len);
        self.chunks.remove(self.index, held.chunks());
        *self.fragments -= u32::from(is_fragment(&held));
        *self.kept = self.kept.saturating_sub(held.len.into());
        Some(held)
    }

    fn backlog(&self) -> u32 {
        self.bytes.each[self.index]
    }

    fn signal(&mut self, mut held: Held) -> Option<Held> {
        let head = self.surroundings.umem.head_mut(&mut held.handoff.frame);
        if self.ecn && ecn::mark(head, &held.handoff.meta.ip) {
            self.surroundings.marked.add(1);
            return Some(held);
        }
        (self.surroundings.discard)(held, DropReason::QueueDelay);
        None
    }
}

impl FairQueue {
    pub(super) fn new(bounds: Bounds) -> Self {
        let idle = FlowQueue {
            frames: List::EMPTY,
            tag: 0,
            credit: 0,
            codel: Codel::default(),
            places: [Place {
                is_taken: false,
                next: NONE,
            }; 2],
        };
        Self {
            flows: vec![idle; QUEUES].into_boxed_slice(),
            first: Line::empty(0),
            round: Line::empty(1),
            active: 0,
            bytes: Sizes::new(),
            chunks: Sizes::new(),
            fragments: 0,
            bounds,
            kept: 0,
        }
    }

    pub(super) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.kept = match self.bytes.total {
            total if total > bounds.bytes => total,
            _ => 0,
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.total == 0
    }

    pub(super) fn chunks(&self) -> u64 {
        self.chunks.total
    }

    /// Queues a frame of the flow that `hash` names. Where there is no room, the
    /// frame is discarded if its flow has its share of what is short, else the
    /// oldest of the flow that has most.
    pub(super) fn enqueue(
        &mut self,
        held: Held,
        hash: u64,
        room: Room,
        surroundings: &mut Surroundings<'_>,
    ) {
        let index = self.queue_of(hash);
        let (len, chunks) = (held.len, held.chunks());
        let is_fragment = is_fragment(&held);
        let mut node = room.node;
        // A frame larger than all bounds still passes an empty queue.
        while !self.is_empty() {
            let bytes = if is_fragment || self.fragments > 0 {
                self.bounds.bytes.max(DATAGRAMS)
            } else {
                self.bounds.bytes
            };
            let total = self.chunks.total + u64::from(chunks);
            let (short, reason) =
                if self.bytes.total + u64::from(len) > bytes.saturating_add(self.kept) {
                    (&self.bytes, DropReason::QueueFull)
                } else if total > room.queue.max(2 * chunks).into() || chunks > node {
                    (&self.chunks, DropReason::QueueMemory)
                } else {
                    break;
                };
            let has_share = short.exceeds_share(index, self.active);
            if has_share {
                return (surroundings.discard)(held, reason);
            }
            let largest = short.largest();
            if let Some(oldest) = self.take_oldest(largest, surroundings.store) {
                node += oldest.chunks();
                (surroundings.discard)(oldest, reason);
            }
        }
        if chunks > node {
            return (surroundings.discard)(held, DropReason::QueueMemory);
        }
        let was_empty = self.chunks.each[index] == 0;
        let flow = &mut self.flows[index];
        if let Some(held) = surroundings.store.push(&mut flow.frames, held) {
            return (surroundings.discard)(held, DropReason::QueueMemory);
        }
        self.bytes.add(index, len);
        self.chunks.add(index, chunks);
        self.fragments += u32::from(is_fragment);
        let is_idle = flow.is_idle();
        if is_idle {
            if flow.tag != tag(hash) {
                flow.codel = Codel::default();
            }
            flow.tag = tag(hash);
            flow.credit = self.bounds.quantum();
            self.active += 1;
        }
        // With credit left from this round it need not wait for the next: that
        // changes when it sends, not how much.
        if is_idle || was_empty && flow.credit > 0 {
            self.first.push(&mut self.flows, index);
        }
    }

    /// The next frame to go (RFC 8290 section 4.2). What CoDel drops on the way
    /// is discarded.
    pub(super) fn dequeue(
        &mut self,
        now: Nanos,
        surroundings: &mut Surroundings<'_>,
    ) -> Option<Held> {
        loop {
            let is_first = self.first.head != NONE;
            let line = if is_first {
                &mut self.first
            } else {
                &mut self.round
            };
            let index = usize::from(line.head);
            let flow = self.flows.get_mut(index)?;
            if flow.credit > 0 {
                let mut queue = Controlled {
                    index,
                    frames: &mut flow.frames,
                    bytes: &mut self.bytes,
                    chunks: &mut self.chunks,
                    fragments: &mut self.fragments,
                    kept: &mut self.kept,
                    ecn: self.bounds.ecn,
                    surroundings: &mut *surroundings,
                };
                if let Some(held) = flow.codel.dequeue(&mut queue, &self.bounds.codel, now) {
                    flow.credit -= i64::from(held.len);
                    return Some(held);
                }
            } else if !is_first {
                flow.credit += self.bounds.quantum();
                line.pop(&mut self.flows);
                line.push(&mut self.flows, index);
                continue;
            }
            line.pop(&mut self.flows);
            if is_first {
                // Empty or not, it waits for the others' turns: else it could
                // come back with new credit, and starve them (section 4.2).
                self.round.push(&mut self.flows, index);
            } else if self.flows[index].is_idle() {
                self.active -= 1;
            }
        }
    }

    /// Takes some flow's oldest frame, whatever CoDel says: to empty the queue.
    pub(super) fn pop(&mut self, store: &mut Store) -> Option<Held> {
        self.take_oldest(self.chunks.largest(), store)
    }

    fn take_oldest(&mut self, index: usize, store: &mut Store) -> Option<Held> {
        let held = store.pop(&mut self.flows[index].frames)?;
        self.bytes.remove(index, held.len);
        self.chunks.remove(index, held.chunks());
        self.fragments -= u32::from(is_fragment(&held));
        Some(held)
    }

    /// The queue for a flow: the one that it is in, else an idle one of its
    /// set, else the set's first.
    fn queue_of(&self, hash: u64) -> usize {
        #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
        let set = (hash as usize % SETS) * WAYS;
        let ways = &self.flows[set..set + WAYS];
        let is_own = |flow: &FlowQueue| flow.tag == tag(hash) && !flow.is_idle();
        let own = ways.iter().position(is_own);
        let way = own.or_else(|| ways.iter().position(FlowQueue::is_idle));
        set + way.unwrap_or(0)
    }
}

fn is_fragment(held: &Held) -> bool {
    held.handoff.meta.ip.fragment != Fragment::Whole
}

/// What tells flows of a set apart: bits that do not choose the set.
fn tag(hash: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "the upper half")]
    let tag = (hash >> 32) as u32;
    tag
}

impl Bounds {
    /// What a flow may send in a round: some small packets, but not the largest
    /// one, so that those go before it (RFC 8290 section 5.2.4).
    fn quantum(&self) -> i64 {
        const SMALL_PACKETS: i64 = 300;
        const ROUNDS: i64 = 8;
        (i64::from(self.codel.max_packet) / ROUNDS).max(SMALL_PACKETS)
    }
}

impl Sizes {
    fn new() -> Self {
        Self {
            each: Box::new([0; QUEUES]),
            total: 0,
        }
    }

    fn add(&mut self, index: usize, size: u32) {
        self.each[index] += size;
        self.total += u64::from(size);
    }

    fn remove(&mut self, index: usize, size: u32) {
        self.each[index] -= size;
        self.total -= u64::from(size);
    }

    /// Whether a queue holds more than its part of all, among so many flows.
    fn exceeds_share(&self, index: usize, flows: u32) -> bool {
        u64::from(self.each[index]) * u64::from(flows) >= self.total && self.each[index] > 0
    }

    /// Two passes, each of which the compiler vectorizes.
    fn largest(&self) -> usize {
        let most = self.each.iter().copied().max().unwrap_or(0);
        self.each.iter().position(|size| *size == most).unwrap_or(0)
    }
}

impl Line {
    const fn empty(place: usize) -> Self {
        Self {
            place,
            head: NONE,
            tail: NONE,
        }
    }

    /// Appends a flow, unless it is in the line.
    fn push(&mut self, flows: &mut [FlowQueue], index: usize) {
        #[allow(clippy::cast_possible_truncation, reason = "below QUEUES")]
        let number = index as u16;
        let place = &mut flows[index].places[self.place];
        if place.is_taken {
            return;
        }
        *place = Place {
            is_taken: true,
            next: NONE,
        };
        match flows.get_mut(usize::from(self.tail)) {
            Some(last) => last.places[self.place].next = number,
            None => self.head = number,
        }
        self.tail = number;
    }

    /// Takes the first out.
    fn pop(&mut self, flows: &mut [FlowQueue]) {
        if let Some(first) = flows.get_mut(usize::from(self.head)) {
            let place = &mut first.places[self.place];
            place.is_taken = false;
            self.head = place.next;
        }
        if self.head == NONE {
            self.tail = NONE;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::packet::{Ethernet, Packet, build, parse};
    use crate::pipeline::Handoff;
    use crate::port::PortId;
    use crate::xsk::FramePool;

    const MS: u64 = 1_000_000;
    const PORT: PortId = PortId {
        slot: 1,
        generation: 0,
    };

    /// A queue with what it needs around it; what it discards is noted, by flow.
    struct Stand {
        pool: FramePool,
        store: Store,
        queue: FairQueue,
        room: Room,
        marked: Counter,
        discarded: Vec<(u8, DropReason)>,
    }

    /// The flow's number stands in the packet's first byte of payload.
    fn number(umem: &Umem, held: &Held) -> u8 {
        umem.head(&held.handoff.frame)[usize::from(held.handoff.meta.ip.l4) + 8]
    }

    fn bounds(bytes: u64) -> Bounds {
        Bounds {
            bytes,
            ecn: true,
            codel: Parameters::new(1_500, Nanos::from_millis(1)),
        }
    }

    impl Stand {
        fn new(bytes: u64) -> Self {
            let (_, pool) = Umem::create(2_048).unwrap();
            Self {
                pool,
                store: Store::new(1_024, 1),
                queue: FairQueue::new(bounds(bytes)),
                room: Room {
                    queue: 512,
                    node: 1_024,
                },
                marked: Counter::default(),
                discarded: Vec::new(),
            }
        }

        /// A packet of `len` bytes of flow `flow`, with this type of service.
        fn packet(&mut self, flow: u8, len: usize, tos: u8, now: Nanos) -> Held {
            let umem = self.pool.umem();
            let link = Ethernet {
                dst: [2; 6],
                src: [4; 6],
            };
            let bytes = build::udp(
                (Ipv4Addr::new(10, 0, 0, 1), 1_000 + u16::from(flow)),
                (Ipv4Addr::new(10, 0, 0, 2), 9),
            )
            .payload(vec![flow; len - 28])
            .traffic_class(tos)
            .frame(link);
            let mut frame = self.pool.frame().unwrap();
            umem.set_content(&mut frame, &bytes);
            let Ok(Packet::Ip(ip)) = parse(&bytes, bytes.len()).map(|parsed| parsed.packet) else {
                panic!("no packet");
            };
            Held::new(PORT, Handoff::plain(frame, PORT, ip), now)
        }

        fn offer(&mut self, flow: u8, len: usize, now: Nanos) {
            self.offer_marked(flow, len, 0, now);
        }

        fn offer_marked(&mut self, flow: u8, len: usize, tos: u8, now: Nanos) {
            let held = self.packet(flow, len, tos, now);
            let hash = u64::from(flow).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.with(|queue, room, surroundings| queue.enqueue(held, hash, room, surroundings));
        }

        fn with<T>(
            &mut self,
            f: impl FnOnce(&mut FairQueue, Room, &mut Surroundings<'_>) -> T,
        ) -> T {
            let (umem, pool, discarded) = (self.pool.umem(), &mut self.pool, &mut self.discarded);
            let mut surroundings = Surroundings {
                store: &mut self.store,
                umem,
                marked: &self.marked,
                discard: &mut |held, reason| {
                    discarded.push((number(umem, &held), reason));
                    pool.free(held.handoff.frame);
                },
            };
            f(&mut self.queue, self.room, &mut surroundings)
        }

        /// The next packet's flow, length and type of service.
        fn next(&mut self, now: Nanos) -> Option<(u8, u32, u8)> {
            let held = self.with(|queue, _, surroundings| queue.dequeue(now, surroundings))?;
            let umem = self.pool.umem();
            let tos = umem.head(&held.handoff.frame)[15];
            let next = (number(umem, &held), held.len, tos);
            self.pool.free(held.handoff.frame);
            Some(next)
        }
    }

    /// Empties the queue, and fails if a chunk is missing.
    impl Drop for Stand {
        fn drop(&mut self) {
            if std::thread::panicking() {
                return;
            }
            while let Some(held) = self.queue.pop(&mut self.store) {
                self.pool.free(held.handoff.frame);
            }
            assert!(self.queue.is_empty());
            assert_eq!(self.store.chunks(), 0);
            assert_eq!(self.pool.free_chunks(), 2_048);
        }
    }

    #[test]
    fn flows_share_by_bytes_and_keep_their_order() {
        let mut stand = Stand::new(1 << 20);
        for _ in 0..60 {
            stand.offer(1, 1_500, Nanos(0));
            for _ in 0..3 {
                stand.offer(2, 500, Nanos(0));
            }
        }
        let mut sent = [0u32; 3];
        for _ in 0..80 {
            let (flow, len, _) = stand.next(Nanos(0)).unwrap();
            sent[usize::from(flow)] += len;
        }
        assert!(sent[1].abs_diff(sent[2]) <= 2 * 1_500, "{sent:?}");
    }

    #[test]
    fn a_new_flow_goes_before_bulk_but_not_for_ever() {
        let mut stand = Stand::new(1 << 20);
        for _ in 0..20 {
            stand.offer(1, 1_500, Nanos(0));
        }
        for _ in 0..3 {
            stand.next(Nanos(0));
        }
        stand.offer(2, 84, Nanos(0));
        let places = [0; 2].map(|_| stand.next(Nanos(0)).unwrap().0);
        assert!(places.contains(&2), "{places:?}");
        // One packet at a time, again and again: bulk gets its turn between.
        let mut bulk = 0;
        for _ in 0..100 {
            stand.offer(2, 84, Nanos(0));
            bulk += u32::from(stand.next(Nanos(0)).unwrap().0 == 1);
        }
        assert!(bulk >= 3, "{bulk}");
    }

    #[test]
    fn who_has_most_gives_way() {
        let mut stand = Stand::new(15_000);
        for _ in 0..20 {
            stand.offer(1, 1_500, Nanos(0));
        }
        assert_eq!(stand.discarded, [(1, DropReason::QueueFull); 10]);
        stand.offer(2, 84, Nanos(0));
        assert_eq!(stand.discarded.len(), 11);
        assert_eq!(stand.discarded[10], (1, DropReason::QueueFull));
        assert!((0..3).any(|_| stand.next(Nanos(0)).unwrap().0 == 2));
    }

    #[test]
    fn memory_is_shared_by_chunks() {
        let mut stand = Stand::new(1 << 30);
        for _ in 0..600 {
            stand.offer(1, 60, Nanos(0));
        }
        assert_eq!(stand.queue.chunks(), 512);
        assert_eq!(stand.discarded, [(1, DropReason::QueueMemory); 88]);
        // Another flow's still gets in, and the node's reserve is nobody's.
        stand.offer(2, 60, Nanos(0));
        assert_eq!(stand.discarded.len(), 89);
        assert_eq!(stand.queue.chunks(), 512);
        stand.room = Room {
            queue: 1_024,
            node: 0,
        };
        stand.offer(3, 60, Nanos(0));
        assert_eq!(stand.discarded[89..], [(1, DropReason::QueueMemory)]);
        assert_eq!(stand.queue.chunks(), 512);
        while stand.next(Nanos(0)).is_some() {}
        stand.offer(4, 60, Nanos(0));
        assert_eq!(stand.discarded[90..], [(4, DropReason::QueueMemory)]);
    }

    #[test]
    fn a_lower_bound_discards_nothing_that_waits_and_holds_for_what_comes() {
        let mut stand = Stand::new(150_000);
        for _ in 0..100 {
            stand.offer(1, 1_500, Nanos(0));
        }
        stand.queue.set_bounds(bounds(15_000));
        for flow in [1, 2] {
            for _ in 0..5 {
                stand.offer(flow, 1_500, Nanos(0));
            }
        }
        assert_eq!(stand.discarded, []);
        stand.offer(2, 1_500, Nanos(0));
        assert_eq!(stand.discarded.pop(), Some((1, DropReason::QueueFull)));
        // When that much has gone, there is room for the bound and no more.
        for _ in 0..110 {
            stand.next(Nanos(0)).unwrap();
        }
        assert_eq!(stand.next(Nanos(0)), None);
        for _ in 0..11 {
            stand.offer(3, 1_500, Nanos(0));
        }
        assert_eq!(stand.discarded, [(3, DropReason::QueueFull)]);
    }

    #[test]
    fn a_flow_does_not_answer_for_one_that_had_its_queue() {
        let mut stand = Stand::new(1 << 20);
        let late = |at: u64| Nanos(at * MS);
        for _ in 0..200 {
            stand.offer(1, 1_500, Nanos(0));
        }
        for at in 0..200 {
            if stand.next(late(10 * at)).is_none() {
                break;
            }
        }
        let index = stand.queue.flows.iter().position(|flow| flow.tag != 0);
        let tag = |stand: &Stand| stand.queue.flows[index.unwrap()].tag;
        let (first, dropped) = (tag(&stand), stand.discarded.len());
        assert!(dropped > 5, "{dropped}");
        // Of the same set of queues.
        let held = stand.packet(2, 1_500, 0, late(2_000));
        let hash = 0x9e37_79b9_7f4a_7c15 ^ 1 << 40;
        stand.with(|queue, room, surroundings| queue.enqueue(held, hash, room, surroundings));
        assert_ne!(tag(&stand), first);
        assert_eq!(stand.queue.flows[index.unwrap()].codel, Codel::default());
    }

    #[test]
    fn a_frame_larger_than_every_bound_passes_an_empty_queue() {
        let mut stand = Stand::new(100);
        stand.room.queue = 0;
        stand.offer(1, 1_500, Nanos(0));
        assert_eq!(stand.next(Nanos(0)).unwrap().0, 1);
        assert!(stand.discarded.is_empty());
    }

    #[test]
    fn two_datagrams_may_wait_in_fragments() {
        let mut stand = Stand::new(3_000);
        let offer = |stand: &mut Stand| {
            let mut held = stand.packet(1, 1_500, 0, Nanos(0));
            held.handoff.meta.ip.fragment = Fragment::Later;
            stand.with(|queue, room, surroundings| queue.enqueue(held, 1, room, surroundings));
        };
        for _ in 0..87 {
            offer(&mut stand);
        }
        assert_eq!(stand.discarded, []);
        offer(&mut stand);
        assert_eq!(stand.discarded, [(1, DropReason::QueueFull)]);
        // Who has less still gets in, at the expense of who has most, and goes soon.
        stand.offer(2, 1_000, Nanos(0));
        assert_eq!(stand.discarded[1..], [(1, DropReason::QueueFull)]);
        let next = [0; 2].map(|_| stand.next(Nanos(0)).unwrap().0);
        assert!(next.contains(&2), "{next:?}");
        while stand.next(Nanos(0)).is_some() {}
        for _ in 0..3 {
            stand.offer(3, 1_500, Nanos(0));
        }
        assert_eq!(stand.discarded[2..], [(3, DropReason::QueueFull)]);
    }

    #[test]
    fn each_of_many_flows_has_its_own_queue() {
        let mut stand = Stand::new(1 << 20);
        // Of 256 queues in sets of eight; a ninth of a set would share one.
        for flow in 0..64 {
            for _ in 0..2 {
                stand.offer(flow, 100, Nanos(0));
            }
        }
        let active = stand.queue.flows.iter().filter(|flow| !flow.is_idle());
        assert!(active.count() >= 62);
    }

    #[test]
    fn who_understands_marks_loses_nothing_and_others_do() {
        const ECT: u8 = 0b10;
        for (tos, marked) in [(ECT, true), (0, false)] {
            let mut stand = Stand::new(1 << 20);
            for _ in 0..400 {
                stand.offer_marked(1, 1_500, tos, Nanos(0));
            }
            let mut marks = 0;
            for at in 0..300 {
                let Some((_, _, tos)) = stand.next(Nanos(at * MS)) else {
                    break;
                };
                marks += u64::from(tos == 0b11);
            }
            assert_eq!(marks > 0, marked);
            assert_eq!(stand.marked.get(), marks);
            assert_eq!(stand.discarded.is_empty(), marked);
        }
    }

    #[test]
    fn marks_are_off_where_they_are_not_wanted() {
        let mut stand = Stand::new(1 << 20);
        stand.queue.set_bounds(Bounds {
            ecn: false,
            ..bounds(1 << 20)
        });
        for _ in 0..400 {
            stand.offer_marked(1, 1_500, 0b10, Nanos(0));
        }
        for at in 0..300 {
            stand.next(Nanos(at * MS));
        }
        assert_eq!(stand.marked.get(), 0);
        assert!(!stand.discarded.is_empty());
    }
}
