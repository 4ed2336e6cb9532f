//! Shaping: what a pod sends and gets is held to a rate, by a token bucket that
//! lets frames wait where they do not conform.
//!
//! A frame that conforms passes at once while none waits. Else it waits in a
//! queue of its flow ([`fair_queue`]); a timer says when the next may go. Who
//! waits too long is told by a mark or a loss. Bytes are those of IP packets.
//!
//! Every bound is there from the first frame on:
//!
//! | of | at most |
//! |---|---|
//! | a queue's time | `queueMillis` at its rate, but two of the largest frames; while fragments wait, two of the largest datagrams; on top what waited when the bound was lowered |
//! | a queue's chunks | what is its own and what is left of the shared ones, and 2048 by the workers; but two frames |
//! | all queues' chunks | half of those for frames in flight, and an eighth of them stays free: what FILL rings need comes first. Of that half, half again is the queues' own, in equal parts |

mod bucket;
mod codel;
mod fair_queue;
mod store;
mod timers;

use std::hash::BuildHasher;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnet::IpNet;
use sluice_control::{Limit, Shaping};

use crate::packet::{self, Fragment, Ip};
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::FramePool;

use bucket::TokenBucket;
use codel::Parameters;
use fair_queue::{Bounds, FairQueue};

pub(crate) use fair_queue::Surroundings;
pub(crate) use store::{Held, Store};
pub(crate) use timers::Timers;

/// Most chunks that wait in one queue, 8 MiB, by the workers there are: all of them at
/// once, when a limit is lifted, fit into the ring to another worker.
const QUEUE_CHUNKS: u32 = 2048;

/// All queues together have this part of the chunks for frames in flight.
const HELD_PART: usize = 2;

/// And this part of them stays free.
const RESERVE_PART: usize = 8;

/// Wakeups are put off to multiples of it where no token is lost: so many slow
/// pods wake the worker together.
const GRID: Nanos = Nanos::from_micros(250);

/// Ethernet's shortest frame has so many bytes after its header: that much may
/// be padding (IEEE 802.3 clause 4.2.3.3).
const SHORTEST: u32 = 46;

/// What a limit is of: as in CNI, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Direction {
    /// What comes to the pod.
    Ingress,
    /// What it sends.
    Egress,
}

impl Direction {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// What becomes of frames that may not wait.
pub(crate) type Discard<'a> = &'a mut dyn FnMut(Held, DropReason);

/// How many chunks a queue may hold at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// In all, if that is not less than two frames.
    queue: u32,
    /// More than now, since the other queues and the node need the rest.
    node: u32,
}

/// The memory for frames that wait: how it is shared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Chunks for frames in flight.
    flight: usize,
    /// Queues that may want some.
    queues: usize,
    workers: u16,
}

impl Budget {
    /// Of so many chunks for frames in flight, for the pods of so many slots, and the
    /// only worker.
    pub(crate) fn new(flight: usize, slots: u16) -> Self {
        Self {
            flight,
            queues: Direction::ALL.len() * usize::from(slots),
            workers: 1,
        }
    }

    /// The same for each of so many workers.
    pub(crate) fn among(self, workers: u16) -> Self {
        Self { workers, ..self }
    }

    /// A store for all that may wait with a worker.
    pub(crate) fn store(self) -> Store {
        let chunks = self.flight / HELD_PART / usize::from(self.workers);
        let [chunks, queues] = [chunks, self.queues].map(saturating);
        Store::new(chunks, queues)
    }

    /// What a queue may hold now.
    pub(crate) fn room(self, pool: &FramePool, store: &Store) -> Room {
        let spare = pool.available().saturating_sub(self.flight / RESERVE_PART);
        Room {
            queue: store.share().min(QUEUE_CHUNKS / u32::from(self.workers)),
            node: store.room().min(saturating(spare)),
        }
    }
}

fn saturating(chunks: usize) -> u32 {
    u32::try_from(chunks).unwrap_or(u32::MAX)
}

/// With whom traffic is limited.
#[derive(Debug, Default)]
struct Scope {
    unshaped: Vec<IpNet>,
    /// Unless it is empty: nobody else.
    shaped: Vec<IpNet>,
}

impl Scope {
    #[inline]
    fn covers(&self, peer: IpAddr) -> bool {
        let is_in = |subnets: &[IpNet]| subnets.iter().any(|subnet| subnet.contains(&peer));
        !is_in(&self.unshaped) && (self.shaped.is_empty() || is_in(&self.shaped))
    }
}

/// One direction's limit, and the frames that wait for it.
#[derive(Debug)]
pub(crate) struct Shaper {
    limit: Limit,
    bounds: Bounds,
    scope: Scope,
    bucket: TokenBucket,
    queue: FairQueue,
    seed: RandomState,
    /// Is in [`Timers`].
    pub(crate) waits: bool,
}

impl Shaper {
    /// A shaper for `limit`, of a pod with this MTU; its bucket is full.
    fn new(limit: Limit, shaping: &Shaping, mtu: u32) -> Self {
        let bucket = TokenBucket::new(limit.rate, depth(limit), Nanos::default());
        let bounds = Bounds {
            bytes: shaping.queue_bytes(limit, mtu),
            ecn: shaping.ecn,
            codel: Parameters::new(mtu, bucket.time_of(mtu)),
        };
        Self {
            limit,
            bounds,
            scope: Scope {
                unshaped: shaping.unshaped_subnets.clone(),
                shaped: shaping.shaped_subnets.clone(),
            },
            bucket,
            queue: FairQueue::new(bounds),
            seed: RandomState::default(),
            waits: false,
        }
    }

    /// Has the limits of `other` from now on; what waits goes on waiting.
    fn adopt(&mut self, other: &mut Self, now: Nanos) {
        // A debt to the same limit remains.
        if self.limit != other.limit {
            self.bucket
                .change(other.limit.rate, depth(other.limit), now);
        }
        self.limit = other.limit;
        self.bounds = other.bounds;
        self.queue.set_bounds(other.bounds);
        std::mem::swap(&mut self.scope, &mut other.scope);
    }

    /// Whether the limit is of traffic with `peer`, too.
    #[inline]
    pub(crate) fn covers(&self, peer: IpAddr) -> bool {
        self.scope.covers(peer)
    }

    /// Gives a frame back that may pass at once. Else it waits, or is discarded.
    #[inline]
    pub(crate) fn offer(
        &mut self,
        held: Held,
        flow: &Flow,
        room: Room,
        surroundings: &mut Surroundings<'_>,
    ) -> Option<Held> {
        if self.queue.is_empty() && self.bucket.conforms(held.since) {
            self.bucket.take(held.len);
            return Some(held);
        }
        let hash = self.seed.hash_one(flow);
        self.queue.enqueue(held, hash, room, surroundings);
        None
    }

    /// The next frame that may go now.
    pub(crate) fn release(
        &mut self,
        now: Nanos,
        surroundings: &mut Surroundings<'_>,
    ) -> Option<Held> {
        if !self.bucket.conforms(now) {
            return None;
        }
        let held = self.queue.dequeue(now, surroundings)?;
        self.bucket.take(held.len);
        Some(held)
    }

    /// When to ask for the next frame; `None` if there is none. In the next turn if
    /// it may go by now, else together with others where the bucket has room meanwhile.
    pub(crate) fn due(&self, now: Nanos) -> Option<Nanos> {
        if self.queue.is_empty() {
            return None;
        }
        let at = self.bucket.conforms_at();
        if at <= now {
            return Some(now + Nanos(1));
        }
        let together = Nanos(at.0.checked_next_multiple_of(GRID.0).unwrap_or(at.0));
        let latest = self.bucket.full_at().max(at);
        Some(together.min(latest))
    }

    /// Takes a frame out, whatever the limit says.
    pub(crate) fn pop(&mut self, store: &mut Store) -> Option<Held> {
        self.queue.pop(store)
    }

    /// The chunks that wait.
    pub(crate) fn chunks(&self) -> u64 {
        self.queue.chunks()
    }
}

/// How much of a burst the bucket holds, bits. A frame comes to its receiver
/// some time after the turn's clock let it go, and not all as late: so that what
/// comes stays within the burst, too, what the rate earns in that time is kept
/// back.
fn depth(limit: Limit) -> u64 {
    const TURNS_IN_A_SECOND: u64 = 10_000;
    let late = limit.rate / TURNS_IN_A_SECOND;
    limit.burst - late.min(limit.burst / 2)
}

/// What makes packets one flow, as their pod sees them: addresses and protocol,
/// and the ports where each of its packets shows them. Not so fragments: those of
/// one datagram stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ports: Option<(u16, u16)>,
}

impl Flow {
    /// That of a packet with these headers.
    #[inline]
    pub(crate) fn of(ip: &Ip) -> Self {
        Self {
            src: ip.src,
            dst: ip.dst,
            protocol: ip.protocol,
            ports: ip.ports.filter(|_| ip.fragment == Fragment::Whole),
        }
    }

    /// The same where its packets become those of another.
    #[inline]
    pub(crate) fn translated(self, to: &packet::Flow) -> Self {
        let Some((src, dst)) = to.addresses() else {
            return self;
        };
        Self {
            src,
            dst,
            ports: self.ports.map(|_| (to.src_port, to.dst_port)),
            ..self
        }
    }

    /// The pod's peer in it.
    #[inline]
    pub(crate) fn peer(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.src,
            Direction::Egress => self.dst,
        }
    }
}

/// What a frame of so many bytes in all costs: its IP packet, and what follows
/// that beyond Ethernet's padding.
#[inline]
pub(crate) fn cost(frame_len: u32, ip: &Ip) -> u32 {
    let on_wire = frame_len.saturating_sub(ip.l3.into());
    if on_wire > SHORTEST {
        on_wire.max(ip.packet_len)
    } else {
        ip.packet_len
    }
}

/// The shapers of a pod's port, for the directions that have a limit.
#[derive(Debug, Default)]
pub struct Shapers {
    ingress: Option<Box<Shaper>>,
    egress: Option<Box<Shaper>>,
}

impl Shapers {
    /// Shapers for the limits of a pod with this MTU, bytes of IP packet.
    #[must_use]
    pub fn new(shaping: &Shaping, mtu: u32) -> Self {
        let shaper =
            |limit: Option<Limit>| limit.map(|limit| Box::new(Shaper::new(limit, shaping, mtu)));
        Self {
            ingress: shaper(shaping.ingress),
            egress: shaper(shaping.egress),
        }
    }

    /// The shaper of a direction, if that is limited.
    #[inline]
    pub(crate) fn get(&self, direction: Direction) -> Option<&Shaper> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// The same, to be used.
    #[inline]
    pub(crate) fn get_mut(&mut self, direction: Direction) -> Option<&mut Shaper> {
        match direction {
            Direction::Ingress => self.ingress.as_deref_mut(),
            Direction::Egress => self.egress.as_deref_mut(),
        }
    }

    /// Has the limits of `other`. Gives what is not needed any more, with the
    /// frames that waited where there is no limit now.
    pub(crate) fn change(&mut self, mut other: Self, now: Nanos) -> Self {
        let pairs = [
            (&mut self.ingress, &mut other.ingress),
            (&mut self.egress, &mut other.egress),
        ];
        for (own, new) in pairs {
            match (own.as_deref_mut(), new.as_deref_mut()) {
                (Some(own), Some(new)) => own.adopt(new, now),
                _ => std::mem::swap(own, new),
            }
        }
        other
    }

    /// The chunks that wait.
    pub(crate) fn chunks(&self) -> u64 {
        Direction::ALL
            .into_iter()
            .filter_map(|direction| self.get(direction))
            .map(Shaper::chunks)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Ethernet, Packet, build, parse};

    #[test]
    fn fragments_of_a_datagram_are_one_flow_and_ports_tell_whole_ones_apart() {
        let link = Ethernet {
            dst: [2; 6],
            src: [4; 6],
        };
        let datagram =
            |port| build::udp(([10, 0, 0, 1], port), ([10, 0, 0, 2], 9)).payload([7; 2000]);
        let flow = |frame: &Vec<u8>| match parse(frame, frame.len()).map(|parsed| parsed.packet) {
            Ok(Packet::Ip(ip)) => Flow::of(&ip),
            other => panic!("{other:?}"),
        };
        let fragments = datagram(1).fragments(link, 1000);
        assert_eq!(fragments.len(), 3);
        for fragment in &fragments {
            assert_eq!(flow(fragment), flow(&fragments[0]));
        }
        let [one, other] = [1, 2].map(|port| flow(&datagram(port).frame(link)));
        assert_ne!(one, other);
        assert_eq!(one, flow(&datagram(1).frame(link)));
    }
}
