//! The dataplane of one worker: its ports, tables and pool, and one turn of
//! its loop. No thread, no sleep, no clock: those are the worker's.

mod crossing;
mod cutting;
mod shaping;
mod watching;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::cutting::CUT_AT_ONCE;
use crate::counters::NodeCounters;
use crate::gro::{Arrival, Departure, Gro};
use crate::handoff::{Crossing, Peers, Tell};
use crate::mappings::Mappings;
use crate::next_hops::{NextHops, Uplink};
use crate::packet::offload::Partial;
use crate::packet::{Ethernet, icmp, protocol};
use crate::pipeline::{Destination, Handoff, Pipeline, Rejection};
use crate::port::{Port, PortId, PortKind, PortSpec};
use crate::sessions::{Session, Sessions};
use crate::shaper::{Budget, Direction, Store, Timers};
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::{BATCH_SIZE, Batch, Closed, Doorbell, FILL_DEPTH, Frame, FramePool, Xsk};

/// How far ahead of the frame at hand headers are fetched into the cache.
const PREFETCH: usize = 8;

/// How long a port is looked at after its last frame before its doorbell bit
/// is taken back.
const SILENCE: Nanos = Nanos::from_micros(100);

/// The ports, tables and pool of one worker.
#[derive(Debug)]
pub struct Engine {
    ports: Vec<Option<Box<Port>>>,
    pipeline: Pipeline,
    pool: FramePool,
    doorbell: Doorbell,
    /// Which of the doorbell's bits are this worker's.
    mine: Vec<u64>,
    peers: Peers,
    gro: Gro,
    /// Slots whose rings are looked at in every turn; a bit each in `listed`.
    active: Vec<u16>,
    listed: Vec<u64>,
    /// Slots with frames queued since the last flush.
    dirty: Vec<u16>,
    /// Slots whose FILL ring the pool could not fill.
    hungry: Vec<u16>,
    /// Slots whose sockets are to be watched, or no more.
    to_change: Vec<u16>,
    /// Frames that wait in shapers, and when these are due.
    store: Store,
    timers: Timers,
    budget: Budget,
    /// So many segments may still be cut of what was taken from a port.
    cuts_left: usize,
    counters: Arc<NodeCounters>,
}

/// What one turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turn {
    /// Frames received, from ports and from other workers.
    pub frames: usize,
    /// Some frames wait for the kernel or for another worker to take them.
    pub pending: bool,
    /// When a frame that waits in a shaper may go.
    pub due: Option<Nanos>,
    /// Some sockets are to be watched, or no more.
    pub(crate) rewatch: bool,
}

impl Engine {
    /// An engine without ports, for slots below `slots`: that of the only worker.
    #[must_use]
    pub fn new(pipeline: Pipeline, pool: FramePool, doorbell: Doorbell, slots: u16) -> Self {
        let counters = Arc::<NodeCounters>::default();
        counters.chunks.set(pool.umem().chunks().into());
        counters.free_chunks.set(pool.free_chunks() as u64);
        let capacity = pipeline.sessions().capacity();
        counters.session_capacity.set(capacity.into());
        let filled = usize::from(slots) * FILL_DEPTH as usize;
        let budget = Budget::new(
            (pool.umem().chunks() as usize).saturating_sub(filled),
            slots,
        );
        Self {
            ports: (0..slots).map(|_| None).collect(),
            pipeline,
            pool,
            listed: vec![0; doorbell.words().len()],
            mine: vec![u64::MAX; doorbell.words().len()],
            peers: Peers::none(),
            doorbell,
            gro: Gro::default(),
            active: Vec::with_capacity(slots.into()),
            dirty: Vec::with_capacity(slots.into()),
            hungry: Vec::with_capacity(slots.into()),
            to_change: Vec::with_capacity(slots.into()),
            store: budget.store(),
            timers: Timers::new(slots.into()),
            budget,
            cuts_left: 0,
            counters,
        }
    }

    /// Makes it one of several.
    #[must_use]
    pub fn among(mut self, peers: Peers) -> Self {
        let ownership = peers.ownership();
        self.mine = (0..)
            .map(|word| ownership.mask(word))
            .take(self.listed.len())
            .collect();
        self.budget = self.budget.among(ownership.workers());
        self.store = self.budget.store();
        self.pipeline.ownership = ownership;
        self.peers = peers;
        self
    }

    /// What this worker counts for the node.
    #[must_use]
    pub fn counters(&self) -> &Arc<NodeCounters> {
        &self.counters
    }

    /// The pods' sessions.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        self.pipeline.sessions()
    }

    /// Opens sessions of conversations that are under way, as far as there is
    /// room; answers how many.
    pub fn resume(&mut self, sessions: &[Session], now: Nanos) -> usize {
        let table = self.pipeline.sessions_mut();
        let resumed = sessions
            .iter()
            .filter(|session| table.resume(**session, now).is_ok());
        resumed.count()
    }

    /// How many chunks are in this worker's pool.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        self.pool.free_chunks()
    }

    /// How many free chunks no worker's pool has.
    #[must_use]
    pub fn stored_chunks(&self) -> usize {
        self.pool.depot().map_or(0, |depot| depot.free_chunks())
    }

    /// The pool, when no engine is needed any more.
    #[must_use]
    pub fn into_pool(mut self) -> FramePool {
        self.peers.discard(&mut self.pool);
        self.pool
    }

    /// The sockets of all ports, when no engine is needed any more.
    pub(crate) fn into_sockets(mut self) -> impl Iterator<Item = Xsk> {
        self.peers.discard(&mut self.pool);
        let ports = std::mem::take(&mut self.ports);
        ports.into_iter().flatten().map(move |mut port| {
            self.discard_held(&mut port);
            port.xsk
        })
    }

    /// The port of that name, if it still exists.
    #[must_use]
    pub fn port(&self, id: PortId) -> Option<&Port> {
        let port = self.ports.get(usize::from(id.slot))?.as_deref()?;
        (port.endpoint.id == id).then_some(port)
    }

    /// Adds a port and fills its FILL ring.
    ///
    /// # Errors
    /// The specification back, if its slot is taken, beyond the last or another
    /// worker's.
    pub fn add(&mut self, spec: PortSpec, now: Nanos) -> Result<&Port, Box<PortSpec>> {
        let id = spec.id;
        if !self.pipeline.ownership.has(id) {
            return Err(Box::new(spec));
        }
        let Some(place @ None) = self.ports.get_mut(usize::from(id.slot)) else {
            return Err(Box::new(spec));
        };
        learn(&mut self.pipeline, id, spec.kind, &spec.addresses);
        let port = place.insert(Box::new(Port::new(spec, now)));
        refill(port, &mut self.pool, &mut self.hungry);
        port.publish_gauges();
        self.counters
            .free_chunks
            .set(self.pool.free_chunks() as u64);
        if port.endpoint.kind == PortKind::Uplink {
            // Its program rings no bell: this one is for good.
            self.doorbell.ring(id.slot);
        }
        Ok(port)
    }

    /// Takes note of another worker's port.
    pub fn learn(&mut self, id: PortId, kind: PortKind, addresses: &[IpAddr]) {
        learn(&mut self.pipeline, id, kind, addresses);
    }

    /// Has frames go to a port no more, whoever has it.
    pub fn forget(&mut self, id: PortId) {
        self.pipeline.pods.remove(id);
        if self.pipeline.host == Some(id) {
            self.pipeline.host = None;
        }
    }

    /// Takes a port out of all tables. Its chunks stay with its socket's rings
    /// until that is closed: [`Engine::reclaim`].
    pub fn remove(&mut self, id: PortId) -> Option<Box<Port>> {
        self.port(id)?;
        let mut port = self.ports.get_mut(usize::from(id.slot))?.take()?;
        self.discard_held(&mut port);
        self.forget(id);
        self.pipeline.sessions_mut().remove_pod(id);
        self.active.retain(|slot| *slot != id.slot);
        self.dirty.retain(|slot| *slot != id.slot);
        self.hungry.retain(|slot| *slot != id.slot);
        self.to_change.retain(|slot| *slot != id.slot);
        self.listed[usize::from(id.slot / 64)] &= !(1 << (id.slot % 64));
        self.doorbell.clear(id.slot);
        Some(port)
    }

    /// Takes back the chunks of a removed port's closed socket.
    pub fn reclaim(&mut self, closed: Closed) -> u32 {
        let chunks = self.pool.reclaim(closed);
        self.counters.reclaimed_chunks.add(chunks.into());
        self.counters
            .free_chunks
            .set(self.pool.free_chunks() as u64);
        chunks
    }

    /// Puts other mappings in place of these, which are returned: to be dropped
    /// where there is time for it.
    pub fn set_mappings(&mut self, mappings: Arc<Mappings>) -> Arc<Mappings> {
        self.pipeline.set_mappings(mappings)
    }

    /// Sets what is known of the uplink; its next hops take the place of those
    /// that are returned, as with [`Engine::set_mappings`].
    pub fn set_uplink(&mut self, uplink: Uplink) -> NextHops {
        let ports = self.ports.iter_mut().flatten();
        for port in ports.filter(|port| port.endpoint.kind == PortKind::Uplink) {
            port.endpoint.mac = uplink.mac;
            port.endpoint.mtu = uplink.mtu;
        }
        self.pipeline.set_next_hops(uplink.next_hops)
    }

    /// Has a port looked at, as its doorbell does.
    pub fn activate(&mut self, slot: u16) {
        let bit = 1 << (slot % 64);
        let Some(word) = self.listed.get_mut(usize::from(slot / 64)) else {
            return;
        };
        if *word & bit == 0 && matches!(self.ports.get(usize::from(slot)), Some(Some(_))) {
            *word |= bit;
            self.active.push(slot);
        }
    }

    /// One turn: a batch from each port with traffic and from each other worker,
    /// then everything out.
    pub fn turn(&mut self, now: Nanos) -> Turn {
        if !self.hungry.is_empty() {
            self.feed();
        }
        // Whoever was not changed is judged again.
        self.to_change.clear();
        self.hear_doorbell();
        let mut batch = Batch::new();
        let mut frames = self.take_over(now);
        let mut i = 0;
        while let Some(&slot) = self.active.get(i) {
            let mut got = self.serve(slot, &mut batch, now);
            if got == 0 && self.is_silent(slot, now) {
                got = self.retire(slot, &mut batch, now);
                if got == 0 {
                    self.active.swap_remove(i);
                    continue;
                }
            }
            frames += got;
            i += 1;
        }
        self.release_held(now);
        while let Some(departure) = self.gro.pop(self.pool.umem()) {
            self.release(departure, now);
        }
        let held_back = self.peers.flush();
        let pending = self.flush(now) || held_back || !self.hungry.is_empty();
        let expired = self.pipeline.sessions_mut().expire(now);
        self.counters.turns.add(1);
        let held = u64::from(self.store.chunks());
        let has_released = held != self.counters.held_chunks.get();
        if frames > 0 || pending || expired > 0 || has_released {
            let busy = u64::from(frames > 0);
            self.counters.busy_turns.add(busy);
            self.counters
                .free_chunks
                .set(self.pool.free_chunks() as u64);
            self.counters.held_chunks.set(held);
            let sessions = self.pipeline.sessions();
            self.counters.sessions.set(sessions.in_use().into());
            self.counters.recycled_sessions.set(sessions.recycled());
        }
        Turn {
            frames,
            pending,
            due: self.timers.next(),
            rewatch: !self.to_change.is_empty(),
        }
    }

    /// Takes back what was sent, wherever it is, and fills the rings that the
    /// pool could not fill before. Rare: the pool has a reserve for bursts.
    fn feed(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.xsk.reap(&mut self.pool);
        }
        let (ports, pool) = (&mut self.ports, &mut self.pool);
        self.hungry.retain(|slot| {
            let Some(port) = ports[usize::from(*slot)].as_deref_mut() else {
                return false;
            };
            port.hungry = !port.xsk.refill(pool);
            port.hungry
        });
    }

    /// Lists the ports whose bell has rung.
    #[inline]
    fn hear_doorbell(&mut self) {
        for i in 0..self.listed.len() {
            let rung = self.doorbell.words()[i].load(Ordering::Relaxed);
            let mut new = rung & self.mine[i] & !self.listed[i];
            while new != 0 {
                let bit = new.trailing_zeros();
                new &= new - 1;
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "there are at most 2^16 slots"
                )]
                self.activate((i * 64) as u16 + bit as u16);
            }
        }
    }

    /// Whether a port need not be looked at before its bell rings again, or
    /// epoll tells. The uplink has no bell.
    fn is_silent(&self, slot: u16, now: Nanos) -> bool {
        self.ports[usize::from(slot)].as_deref().is_none_or(|port| {
            port.endpoint.kind != PortKind::Uplink
                && port.watch.is_on
                && now - port.last_frame >= SILENCE
        })
    }

    /// Stops looking at a silent port, unless frames came in between: gives
    /// how many.
    fn retire(&mut self, slot: u16, batch: &mut Batch, now: Nanos) -> usize {
        // The bell rings before the frame is in the ring. Cleared first and
        // looked at last, a frame that is there is seen; one that is not yet
        // there wakes epoll.
        self.doorbell.clear(slot);
        let got = self.serve(slot, batch, now);
        if got == 0 {
            self.listed[usize::from(slot / 64)] &= !(1 << (slot % 64));
        }
        got
    }

    /// Takes one batch from a port through the pipeline: `batch` is empty
    /// before and after.
    fn serve(&mut self, slot: u16, batch: &mut Batch, now: Nanos) -> usize {
        let Some(port) = self.ports[usize::from(slot)].as_deref_mut() else {
            return 0;
        };
        port.xsk.receive(batch);
        let got = batch.len();
        port.watch.count(got);
        if port.watch.is_to_change(now) {
            self.to_change.push(slot);
        }
        if got > 0 {
            self.cuts_left = CUT_AT_ONCE;
            port.last_frame = now;
            // Before anything else: an empty FILL ring loses frames.
            refill(port, &mut self.pool, &mut self.hungry);
            port.counters.rx_frames.add(got as u64);
            let bytes: u64 = batch.iter().map(|frame| u64::from(frame.len())).sum();
            port.counters.rx_bytes.add(bytes);
            port.publish_gauges();
            self.forward(slot, batch, now);
            self.peers.flush();
        }
        got
    }

    #[inline]
    fn forward(&mut self, slot: u16, batch: &mut Batch, now: Nanos) {
        let umem = self.pool.umem();
        for frame in batch.iter().take(PREFETCH) {
            umem.prefetch(frame);
        }
        // The batch is taken from its end, so turn it round to keep the order.
        batch.reverse();
        while let Some(frame) = batch.pop() {
            if let Some(ahead) = batch.len().checked_sub(PREFETCH) {
                umem.prefetch(&batch[ahead]);
            }
            let Some(source) = self.ports[usize::from(slot)].as_deref() else {
                self.pool.free(frame);
                continue;
            };
            let id = source.endpoint.id;
            match self.pipeline.depart(frame, &source.endpoint, now) {
                Destination::Port(to, handoff) => self.leave(to, handoff, now),
                Destination::Source(answer) => {
                    source.counters.answered.add(1);
                    self.queue(id, answer, None, now);
                }
                Destination::Dropped(frame, rejection) => {
                    source.counters.drops.count(rejection.reason);
                    self.reject(id, frame, &rejection, now);
                }
            }
        }
    }

    /// Hands a frame to its destination port, within that one's ingress limit.
    #[inline(always)] // Else the headers are copied once more.
    fn deliver(&mut self, to: PortId, handoff: Handoff, now: Nanos) {
        if !self.pipeline.ownership.has(to) {
            return self.hand_over(to, Crossing::Frame(to, handoff));
        }
        if handoff.meta.is_merged() && !self.takes_merged(to, &handoff, now) {
            return self.cut(to, handoff, |engine, piece| engine.deliver(to, piece, now));
        }
        // Now, and not when it has waited: then the limit may be lower, and the MTU that
        // goes with it.
        let is_shaped = match find(&mut self.ports, to) {
            Some(port) => match self.pipeline.fits(&handoff, &port.endpoint) {
                Ok(()) => port.shapers.get(Direction::Ingress).is_some(),
                Err(rejection) => return self.refuse(to, handoff, &rejection, now),
            },
            None => false,
        };
        if !is_shaped {
            return self.arrive(to, handoff, now);
        }
        if let Some(held) = self.shape(to, Direction::Ingress, to, handoff, now) {
            self.arrive(to, held.handoff, now);
        }
    }

    /// Drops what a port cannot take, and says so to who has sent it.
    #[cold]
    fn refuse(&mut self, port: PortId, handoff: Handoff, rejection: &Rejection, now: Nanos) {
        if let Some(port) = find(&mut self.ports, port) {
            port.counters.drops.count(rejection.reason);
        }
        self.reject(handoff.meta.from, handoff.frame, rejection, now);
    }

    /// Makes a frame ready for its destination port, and queues it there.
    #[inline]
    fn arrive(&mut self, to: PortId, mut handoff: Handoff, now: Nanos) {
        let Some(target) = find(&mut self.ports, to) else {
            // A session outlives the port by which its answers leave.
            self.count_drop(handoff.meta.from, DropReason::PortDown);
            self.pool.free(handoff.frame);
            return;
        };
        match self.pipeline.arrive(&mut handoff, &target.endpoint, now) {
            Ok(partial) if target.merges(now) && handoff.meta.ip.protocol == protocol::TCP => {
                let arrival = Arrival {
                    to,
                    most: target.longest_packet(),
                    cut: handoff.meta.cut(self.pool.umem().head(&handoff.frame)),
                    frame: handoff.frame,
                    ip: handoff.meta.ip,
                    partial,
                };
                for departure in self.gro.add(self.pool.umem(), arrival) {
                    self.release(departure, now);
                }
            }
            Ok(partial) => self.queue(to, handoff.frame, partial, now),
            Err(rejection) => self.refuse(to, handoff, &rejection, now),
        }
    }

    /// Queues what may have been several frames.
    fn release(&mut self, departure: Departure, now: Nanos) {
        let Departure {
            to,
            frame,
            partial,
            segments,
            cut,
        } = departure;
        if let Some(port) = find(&mut self.ports, to) {
            port.counters.merged_frames.add(u64::from(segments) - 1);
            if let Some(cut) = cut
                && port.xsk.has_gso()
            {
                match port.send_merged(&frame, &cut, &mut self.pool, now) {
                    Ok(()) => port.count_sent(frame.len()),
                    Err(reason) => port.counters.drops.count(reason),
                }
                return self.pool.free(frame);
            }
        }
        self.queue(to, frame, partial, now);
    }

    /// Queues a frame to a port; a full ring drops, it never waits.
    #[inline]
    fn queue(&mut self, to: PortId, frame: Frame, partial: Option<Partial>, now: Nanos) {
        let Some(port) = find(&mut self.ports, to) else {
            self.pool.free(frame);
            return;
        };
        let len = frame.len();
        let queued = if port.is_down(&mut self.pool, now) {
            Err((frame, DropReason::PortDown))
        } else if !port.has_share(frame.chunks(), &mut self.pool) {
            Err((frame, DropReason::TxRingFull))
        } else {
            port.send(frame, partial, &mut self.pool, now)
                .map_err(|frame| (frame, DropReason::TxRingFull))
        };
        match queued {
            Ok(()) => {
                port.count_sent(len);
                if !port.dirty {
                    port.dirty = true;
                    self.dirty.push(to.slot);
                }
            }
            Err((frame, reason)) => {
                port.counters.drops.count(reason);
                self.pool.free(frame);
            }
        }
    }

    /// Drops a frame; where ICMP says so and the limit allows, its chunk
    /// carries the error back to its sender.
    fn reject(&mut self, source: PortId, frame: Frame, rejection: &Rejection, now: Nanos) {
        let Some((error, ip)) = rejection.error else {
            self.pool.free(frame);
            return;
        };
        let tell = Tell {
            source,
            frame,
            error,
            ip,
        };
        if self.pipeline.ownership.has(source) {
            self.tell(tell, now);
        } else {
            self.hand_over(source, Crossing::Tell(tell));
        }
    }

    fn tell(&mut self, mut tell: Tell, now: Nanos) {
        if self.explain(&mut tell, now) {
            self.queue(tell.source, tell.frame, None, now);
        } else {
            self.pool.free(tell.frame);
        }
    }

    fn explain(&mut self, tell: &mut Tell, now: Nanos) -> bool {
        let umem = self.pool.umem();
        let Tell {
            source,
            ref mut frame,
            error,
            ip,
        } = *tell;
        let Some(port) = find(&mut self.ports, source) else {
            return false;
        };
        if !icmp::may_answer(umem.head(frame), &ip) {
            return false;
        }
        let (src, src_mac, dst_mac) = match port.endpoint.kind {
            // The node is what the sender knows.
            PortKind::Uplink => {
                let Some(link) = Ethernet::of(umem.head(frame)) else {
                    return false;
                };
                (ip.dst, port.endpoint.mac, link.src)
            }
            PortKind::Host | PortKind::Pod => {
                let Some(gateway) = port.endpoint.gateway(ip.src) else {
                    return false;
                };
                (gateway, self.pipeline.gateway_mac(), port.endpoint.mac)
            }
        };
        if !port.icmp_limit.take(now) {
            port.counters.icmp_suppressed.add(1);
            return false;
        }
        let reply = icmp::Reply {
            error,
            src,
            src_mac,
            dst_mac,
        };
        let mut message = [0; icmp::MAX_FRAME_LEN];
        let Some(len) = icmp::build(&mut message, umem.head(frame), &ip, &reply) else {
            return false;
        };
        port.counters.icmp_errors.add(1);
        self.pool.shorten(frame);
        umem.set_content(frame, message.get(..len).unwrap_or_default());
        true
    }

    /// Sends what is queued, one port after the other, and says whether
    /// something is left.
    fn flush(&mut self, now: Nanos) -> bool {
        let mut left = 0;
        for i in 0..self.dirty.len() {
            let slot = self.dirty[i];
            let Some(port) = self.ports[usize::from(slot)].as_deref_mut() else {
                continue;
            };
            port.dirty = port.flush(&mut self.pool, now);
            if port.watch.is_to_change(now) {
                self.to_change.push(slot);
            }
            port.publish_gauges();
            if port.dirty {
                self.dirty[left] = slot;
                left += 1;
            }
        }
        self.dirty.truncate(left);
        left > 0
    }
}

/// Takes note of who has which address.
fn learn(pipeline: &mut Pipeline, id: PortId, kind: PortKind, addresses: &[IpAddr]) {
    for address in addresses {
        pipeline.pods.insert(*address, id);
    }
    if kind == PortKind::Host {
        pipeline.host = Some(id);
    }
}

/// The port of that name, if it still exists.
#[inline]
fn find(ports: &mut [Option<Box<Port>>], id: PortId) -> Option<&mut Port> {
    let port = ports.get_mut(usize::from(id.slot))?.as_deref_mut()?;
    (port.endpoint.id == id).then_some(port)
}

/// Fills a port's FILL ring, or notes that the pool did not reach.
#[inline]
fn refill(port: &mut Port, pool: &mut FramePool, hungry: &mut Vec<u16>) {
    if !port.xsk.refill(pool) && !port.hungry {
        port.hungry = true;
        hungry.push(port.endpoint.id.slot);
    }
}

const _: () = assert!(BATCH_SIZE > PREFETCH, "headers are fetched ahead");
