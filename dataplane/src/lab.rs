//! A node in a test tube: one [`Engine`] or several over in-memory kernels, with a
//! host port and pods. For tests, fuzzing and benches; it needs no privileges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Add;
use std::sync::Arc;

use sluice_control::Shaping;

use crate::counters::{NodeSnapshot, PortCounters};
use crate::engine::Engine;
use crate::handoff::{Peers, Sleeper, Underway};
use crate::mappings::Mappings;
use crate::next_hops::Uplink;
use crate::ownership::Ownership;
use crate::packet::Ethernet;
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::port::{PortId, PortKind, PortSpec};
use crate::shaper::Shapers;
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::memory::{self, MemoryKernel, Sent};
use crate::xsk::{Doorbell, Features, FramePool, Umem, Unsent};

/// The MAC address of every port's near end.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0xff, 1];
/// The pods' gateway.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The pods' gateway.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
/// The host port's slot.
pub const HOST: u16 = 0;
/// The MTU of all ports.
pub const MTU: u32 = 65_000;

/// What a lab is made of.
#[derive(Debug, Clone, Copy)]
pub struct LabOptions {
    /// How many workers share the ports.
    pub workers: u16,
    /// How many pods, in slots 1 and up.
    pub pods: u16,
    /// How many queues of an uplink, in the slots after the pods'.
    pub uplinks: u16,
    /// Chunks of the UMEM beyond those that fill the ports' rings.
    pub reserve: u32,
    /// How many sessions there is room for.
    pub sessions: u32,
    /// What the kernel offers.
    pub features: Features,
    /// Whether TCP segments to pods are merged.
    pub gro: bool,
}

impl LabOptions {
    /// As many workers as the environment variable `SLUICE_TEST_WORKERS` says, as
    /// the namespace suite takes it, or one.
    ///
    /// # Panics
    /// If it says something else than a number from 1 to 16.
    fn workers() -> u16 {
        match std::env::var("SLUICE_TEST_WORKERS") {
            Err(_) => 1,
            Ok(text) => match text.parse() {
                Ok(workers @ 1..=16) => workers,
                _ => panic!("SLUICE_TEST_WORKERS is {text}: 1 to 16 are possible"),
            },
        }
    }
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            workers: Self::workers(),
            pods: 2,
            uplinks: 0,
            reserve: 4096,
            sessions: 4096,
            features: Features {
                multi_buffer: true,
                tx_metadata: true,
                tx_budget: true,
                gso: true,
                tso: true,
            },
            gro: true,
        }
    }
}

/// Engines with their kernels.
#[derive(Debug)]
pub struct Lab {
    /// By worker.
    engines: Vec<Engine>,
    underway: Underway,
    doorbell: Doorbell,
    ports: Vec<Option<LabPort>>,
    first_uplink: u16,
    features: Features,
    gro: bool,
    umem: &'static Umem,
    now: Nanos,
}

#[derive(Debug)]
struct LabPort {
    id: PortId,
    kernel: MemoryKernel,
    counters: Arc<PortCounters>,
}

/// The MAC address at the far end of a slot.
#[must_use]
pub fn mac(slot: u16) -> [u8; 6] {
    let [high, low] = slot.to_be_bytes();
    [2, 0, 0, 0, high, low]
}

/// A pod's IPv4 address.
#[must_use]
pub fn v4(slot: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(GATEWAY_V4.to_bits() + 9 + u32::from(slot))
}

/// A pod's IPv6 address.
#[must_use]
pub fn v6(slot: u16) -> Ipv6Addr {
    Ipv6Addr::from_bits(GATEWAY_V6.to_bits() + 9 + u128::from(slot))
}

/// The link layer of what a slot's far end sends to the gateway.
#[must_use]
pub fn link(slot: u16) -> Ethernet {
    Ethernet {
        dst: GATEWAY_MAC,
        src: mac(slot),
    }
}

fn slots(options: LabOptions) -> u16 {
    options.pods + 1 + options.uplinks
}

impl Lab {
    /// A lab with a host port and pods.
    ///
    /// # Panics
    /// Where the memory for it is missing.
    #[must_use]
    pub fn new(options: LabOptions) -> Self {
        let slots = slots(options);
        let chunks = u32::from(slots) * crate::xsk::FILL_DEPTH + options.reserve;
        let Ok((umem, pool)) = Umem::create(chunks) else {
            panic!("no memory for {chunks} chunks");
        };
        Self::over(umem, pool, options)
    }

    /// A lab over memory that exists: what [`Lab::into_pool`] gave back.
    #[must_use]
    pub fn over(umem: &'static Umem, pool: FramePool, options: LabOptions) -> Self {
        let slots = slots(options);
        let doorbell = Doorbell::in_memory(slots);
        let restless = || Arc::new(Sleeper::restless());
        let sleepers: Vec<_> = (0..options.workers).map(|_| restless()).collect();
        let (peers, underway) = Peers::connect(&sleepers);
        let pools = pool.share(options.workers).into_iter();
        let engine = |(pool, peers)| {
            let pipeline = Pipeline::new(
                umem,
                PipelineOptions {
                    gateway_mac: GATEWAY_MAC,
                    tx_metadata: options.features.tx_metadata,
                    slots,
                    sessions: options.sessions,
                },
            );
            Engine::new(pipeline, pool, doorbell.clone(), slots).among(peers)
        };
        let mut lab = Self {
            engines: pools.zip(peers).map(engine).collect(),
            underway,
            doorbell: doorbell.clone(),
            ports: (0..slots).map(|_| None).collect(),
            first_uplink: options.pods + 1,
            features: options.features,
            gro: options.gro,
            umem,
            now: Nanos(0),
        };
        for slot in 0..slots {
            lab.attach(slot, 0, MTU);
        }
        lab
    }

    /// Adds a port; slot 0 is the host's, the last are the uplink's.
    ///
    /// # Panics
    /// If the slot is taken or beyond the last.
    pub fn attach(&mut self, slot: u16, generation: u16, mtu: u32) -> PortId {
        let id = PortId { slot, generation };
        let (mut xsk, kernel) = memory::socket(self.umem, self.features);
        let (kind, addresses) = match slot {
            HOST => (PortKind::Host, vec![]),
            slot if slot >= self.first_uplink => (PortKind::Uplink, vec![]),
            _ => (
                PortKind::Pod,
                vec![IpAddr::V4(v4(slot)), IpAddr::V6(v6(slot))],
            ),
        };
        if self.features.gso {
            kernel.set_gso(&mut xsk);
        }
        let spec = PortSpec {
            id,
            kind,
            xsk,
            mac: mac(slot),
            mtu,
            addresses,
            gateways: vec![GATEWAY_V4.into(), GATEWAY_V6.into()],
            shapers: Shapers::default(),
            gro: self.gro && kind != PortKind::Uplink,
        };
        let addresses = spec.addresses.clone();
        let owner = self.owner(id);
        let Ok(port) = self.engines[owner].add(spec, self.now) else {
            panic!("slot {slot} is not free");
        };
        let counters = port.counters.clone();
        for (worker, engine) in self.engines.iter_mut().enumerate() {
            if worker != owner {
                engine.learn(id, kind, &addresses);
            }
        }
        self.ports[usize::from(slot)] = Some(LabPort {
            id,
            kernel,
            counters,
        });
        id
    }

    /// The worker that has a port.
    fn owner(&self, id: PortId) -> usize {
        let workers = u16::try_from(self.engines.len()).unwrap_or(u16::MAX);
        Ownership::of(0, workers).owner(id).into()
    }

    /// Removes a port, as a Detach does.
    pub fn detach(&mut self, slot: u16) {
        let Some(port) = self.ports[usize::from(slot)].take() else {
            return;
        };
        for engine in &mut self.engines {
            engine.forget(port.id);
        }
        let owner = self.owner(port.id);
        if let Some(port) = self.engines[owner].remove(port.id) {
            let closed = port.xsk.close();
            self.engines[owner].reclaim(closed);
        }
    }

    /// Sets the mapped ports of the node.
    pub fn set_mappings(&mut self, mappings: Mappings) {
        let mappings = Arc::new(mappings);
        for engine in &mut self.engines {
            drop(engine.set_mappings(Arc::clone(&mappings)));
        }
    }

    /// Sets what all workers know of the uplink.
    pub fn set_uplink(&mut self, uplink: &Uplink) {
        for engine in &mut self.engines {
            drop(engine.set_uplink(uplink.clone()));
        }
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.engines.len()
    }

    /// Holds a pod to limits, as Attach and `set bandwidth` do.
    pub fn shape(&mut self, slot: u16, shaping: &Shaping, mtu: u32) {
        if let Some(id) = self.ports[usize::from(slot)].as_ref().map(|port| port.id) {
            let shapers = Shapers::new(shaping, mtu);
            let owner = self.owner(id);
            drop(self.engines[owner].set_shapers(id, shapers, mtu, self.now));
        }
    }

    /// Lets time pass.
    pub fn wait(&mut self, time: Nanos) {
        self.now = self.now + time;
    }

    /// The far end of `slot` sends a frame. False: the kernel dropped it, for
    /// want of chunks to receive into.
    pub fn inject(&mut self, slot: u16, frame: &[u8]) -> bool {
        let Some(port) = &mut self.ports[usize::from(slot)] else {
            return false;
        };
        if slot < self.first_uplink {
            self.doorbell.ring(slot);
        }
        port.kernel.deliver(frame)
    }

    /// Has the far end of `slot` take no merged TCP segments for this reason, or take
    /// them again.
    pub fn refuse_merged(&mut self, slot: u16, refusal: Option<Unsent>) {
        if let Some(port) = &mut self.ports[usize::from(slot)] {
            port.kernel.refuse_merged(refusal);
        }
    }

    /// Turns the loops until nothing moves, and gives what arrived at each
    /// port's far end.
    pub fn run(&mut self) -> Vec<(u16, Sent)> {
        let mut arrived = Vec::new();
        loop {
            let before = arrived.len();
            let frames = self.turn();
            arrived.extend(self.take_all());
            if frames == 0 && arrived.len() == before {
                return arrived;
            }
        }
    }

    /// One turn of each worker's loop, and as many as they need to take what
    /// they hand to each other; the far ends take nothing. Gives how many frames
    /// the workers got.
    pub fn turn(&mut self) -> usize {
        let all = 0..self.engines.len();
        let mut frames = all.clone().map(|worker| self.turn_worker(worker)).sum();
        while let Some(worker) = all
            .clone()
            .find(|worker| self.engines[*worker].has_incoming())
        {
            frames += self.turn_worker(worker);
        }
        frames
    }

    /// One turn of one worker's loop; the far ends take nothing. Gives how many
    /// frames it got.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn turn_worker(&mut self, worker: usize) -> usize {
        self.engines[worker].turn(self.now).frames
    }

    /// The far ends take all that has arrived there.
    pub fn take_all(&mut self) -> Vec<(u16, Sent)> {
        let mut arrived = Vec::new();
        for port in self.ports.iter_mut().flatten() {
            let sent = port.kernel.transmit();
            arrived.extend(sent.into_iter().map(|sent| (port.id.slot, sent)));
        }
        arrived
    }

    /// The far end of `slot` takes what has arrived there.
    pub fn take(&mut self, slot: u16) -> Vec<Sent> {
        match &mut self.ports[usize::from(slot)] {
            Some(port) => port.kernel.transmit(),
            None => Vec::new(),
        }
    }

    /// Sends one frame and gives what comes of it.
    pub fn send(&mut self, slot: u16, frame: &[u8]) -> Vec<(u16, Sent)> {
        self.inject(slot, frame);
        self.run()
    }

    /// A port's counters.
    ///
    /// # Panics
    /// If there is no such port.
    #[must_use]
    pub fn counters(&self, slot: u16) -> &PortCounters {
        match &self.ports[usize::from(slot)] {
            Some(port) => &port.counters,
            None => panic!("no port in slot {slot}"),
        }
    }

    /// What the workers count for the node, in sum.
    #[must_use]
    pub fn node(&self) -> NodeSnapshot {
        let counters = self.engines.iter().map(|engine| engine.counters());
        counters
            .map(|counters| counters.snapshot())
            .fold(NodeSnapshot::default(), NodeSnapshot::add)
    }

    /// Free chunks, in pools and their depot.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        let own: usize = self.engines.iter().map(Engine::free_chunks).sum();
        own + self.engines[0].stored_chunks()
    }

    /// Chunks of frames that wait in shapers.
    #[must_use]
    pub fn held_chunks(&self) -> u32 {
        self.engines.iter().map(Engine::held_chunks).sum()
    }

    /// Drops that no port counts.
    fn node_drops(&self) -> u64 {
        let reasons = DropReason::ALL.into_iter();
        reasons.map(|reason| self.worker_drops(reason)).sum()
    }

    /// Drops for this reason that no port counts.
    #[must_use]
    pub fn worker_drops(&self, reason: DropReason) -> u64 {
        let counters = self.engines.iter().map(|engine| engine.counters());
        counters.map(|counters| counters.drops.get(reason)).sum()
    }

    /// Fails unless every chunk is in exactly one place.
    ///
    /// # Panics
    /// If a chunk is missing or was counted twice.
    pub fn assert_no_chunk_lost(&mut self) {
        // What was sent comes back in the turn after the kernel completed it.
        let ids = self.ports.iter().flatten().map(|port| port.id);
        let held: u64 = ids
            .filter_map(|id| self.engines[self.owner(id)].port(id))
            .map(|port| u64::from(port.xsk.filled()) + u64::from(port.xsk.sent()))
            .sum();
        let (free, underway) = (self.free_chunks(), self.underway.chunks());
        let waiting = self.held_chunks();
        assert_eq!(
            held + u64::from(waiting) + (free + underway) as u64,
            u64::from(self.umem.chunks()),
            "chunks in rings ({held}), in shapers ({waiting}), between workers ({underway}) \
             and free ({free})"
        );
    }

    /// Fails unless every frame is accounted for, and every chunk: the law of
    /// [`PortCounters`].
    ///
    /// # Panics
    /// If a frame or a chunk is missing, or was counted twice.
    pub fn assert_conserved(&mut self) {
        let (mut came, mut went) = (0, 0);
        for LabPort { counters, .. } in self.ports.iter().flatten() {
            let dropped: u64 = counters.drops.snapshot().values().sum();
            came += counters.rx_frames.get() + counters.cut_frames.get();
            came += counters.icmp_errors.get();
            went += counters.tx_frames.get() + counters.merged_frames.get() + dropped;
        }
        went += self.node_drops();
        assert_eq!(came, went, "frames that came, and that went");
        self.assert_no_chunk_lost();
    }

    /// Takes the lab apart: its memory, with all chunks free.
    #[must_use]
    pub fn into_pool(mut self) -> FramePool {
        for slot in 0..u16::try_from(self.ports.len()).unwrap_or(u16::MAX) {
            self.detach(slot);
        }
        let pools = self.engines.into_iter().map(Engine::into_pool);
        match FramePool::unite(pools) {
            Some(pool) => pool,
            None => unreachable!("a lab has an engine"),
        }
    }
}
