//! A node in a test tube: an [`Engine`] over in-memory kernels, with a host
//! port and pods. For tests, fuzzing and benches; it needs no privileges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use sluice_control::Shaping;

use crate::counters::PortCounters;
use crate::engine::Engine;
use crate::packet::Ethernet;
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::port::{PortId, PortKind, PortSpec};
use crate::shaper::Shapers;
use crate::time::Nanos;
use crate::xsk::memory::{self, MemoryKernel, Sent};
use crate::xsk::{Doorbell, Features, FramePool, Umem};

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

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            pods: 2,
            uplinks: 0,
            reserve: 4096,
            sessions: 4096,
            features: Features {
                multi_buffer: true,
                tx_metadata: true,
                tx_budget: true,
            },
            gro: true,
        }
    }
}

/// An engine with its kernels.
#[derive(Debug)]
pub struct Lab {
    /// The engine under test.
    pub engine: Engine,
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
        let pipeline = Pipeline::new(
            umem,
            PipelineOptions {
                gateway_mac: GATEWAY_MAC,
                tx_metadata: options.features.tx_metadata,
                slots,
                sessions: options.sessions,
            },
        );
        let mut lab = Self {
            engine: Engine::new(pipeline, pool, doorbell.clone(), slots),
            doorbell,
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
        let (xsk, kernel) = memory::socket(self.umem, self.features);
        let (kind, addresses) = match slot {
            HOST => (PortKind::Host, vec![]),
            slot if slot >= self.first_uplink => (PortKind::Uplink, vec![]),
            _ => (
                PortKind::Pod,
                vec![IpAddr::V4(v4(slot)), IpAddr::V6(v6(slot))],
            ),
        };
        let spec = PortSpec {
            id,
            kind,
            xsk,
            mac: mac(slot),
            mtu,
            addresses,
            gateways: vec![GATEWAY_V4.into(), GATEWAY_V6.into()],
            shapers: Shapers::default(),
            gro: kind == PortKind::Pod && self.gro,
        };
        let Ok(port) = self.engine.add(spec, self.now) else {
            panic!("slot {slot} is not free");
        };
        self.ports[usize::from(slot)] = Some(LabPort {
            id,
            kernel,
            counters: port.counters.clone(),
        });
        id
    }

    /// Removes a port, as a Detach does.
    pub fn detach(&mut self, slot: u16) {
        let Some(port) = self.ports[usize::from(slot)].take() else {
            return;
        };
        if let Some(port) = self.engine.remove(port.id) {
            let closed = port.xsk.close();
            self.engine.reclaim(closed);
        }
    }

    /// Holds a pod to limits, as Attach and `set bandwidth` do.
    pub fn shape(&mut self, slot: u16, shaping: &Shaping, mtu: u32) {
        if let Some(port) = &self.ports[usize::from(slot)] {
            let shapers = Shapers::new(shaping, mtu);
            drop(self.engine.set_shapers(port.id, shapers, mtu, self.now));
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

    /// Turns the loop until nothing moves, and gives what arrived at each
    /// port's far end.
    pub fn run(&mut self) -> Vec<(u16, Sent)> {
        let mut arrived = Vec::new();
        loop {
            let turn = self.engine.turn(self.now);
            let before = arrived.len();
            for port in self.ports.iter_mut().flatten() {
                let sent = port.kernel.transmit();
                arrived.extend(sent.into_iter().map(|sent| (port.id.slot, sent)));
            }
            if turn.frames == 0 && arrived.len() == before {
                return arrived;
            }
        }
    }

    /// One turn of the loop; the far ends take nothing.
    pub fn turn(&mut self) {
        self.engine.turn(self.now);
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

    /// Fails unless every chunk is in exactly one place.
    ///
    /// # Panics
    /// If a chunk is missing or was counted twice.
    pub fn assert_no_chunk_lost(&mut self) {
        // What was sent comes back in the turn after the kernel completed it.
        let held: u64 = self
            .ports
            .iter()
            .flatten()
            .filter_map(|port| self.engine.port(port.id))
            .map(|port| u64::from(port.xsk.filled()) + u64::from(port.xsk.sent()))
            .sum();
        let free = self.engine.free_chunks() as u64;
        let waiting = u64::from(self.engine.held_chunks());
        assert_eq!(
            held + waiting + free,
            u64::from(self.umem.chunks()),
            "chunks in rings ({held}), in shapers ({waiting}) and free ({free})"
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
            came += counters.rx_frames.get() + counters.icmp_errors.get();
            went += counters.tx_frames.get() + counters.merged_frames.get() + dropped;
        }
        assert_eq!(came, went, "frames that came, and that went");
        self.assert_no_chunk_lost();
    }

    /// Takes the lab apart: its memory, with all chunks free.
    #[must_use]
    pub fn into_pool(mut self) -> FramePool {
        for slot in 0..u16::try_from(self.ports.len()).unwrap_or(u16::MAX) {
            self.detach(slot);
        }
        self.engine.into_pool()
    }
}
