//! The packet path's pieces over kernels in memory, one batch at a time: what
//! `dataplane` measures and `instructions` counts.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part of it")]

use std::hint::black_box;
use std::net::Ipv6Addr;

use sluice_control::{Limit, Shaping};
use sluice_dataplane::lab::{Lab, LabOptions, MTU, link, v4};
use sluice_dataplane::packet::{Flow, Signal, build, parse, protocol};
use sluice_dataplane::port::PortId;
use sluice_dataplane::sessions::{Session, Sessions};
use sluice_dataplane::time::Nanos;
use sluice_dataplane::xsk::memory::{self, MemoryKernel};
use sluice_dataplane::xsk::{BATCH_SIZE, Batch, Features, FramePool, Umem, Xsk};

/// A 64-byte UDP frame from the first pod to the second, without its FCS.
pub fn frame() -> Vec<u8> {
    let payload = [0x5a; 18];
    build::udp((v4(1), 1000), (v4(2), 2000))
        .payload(payload)
        .frame(link(1))
}

/// Parses a batch of frames.
#[inline(never)]
pub fn parse_batch(frame: &[u8]) {
    for _ in 0..BATCH_SIZE {
        let parsed = parse(black_box(frame), frame.len());
        let _ = black_box(parsed);
    }
}

/// Two sockets with their kernels, and frames to move between them.
#[derive(Debug)]
pub struct Rings {
    from: Xsk,
    to: Xsk,
    kernels: [MemoryKernel; 2],
    pool: FramePool,
    batch: Batch,
    frame: Vec<u8>,
}

impl Rings {
    pub fn new() -> Self {
        let features = LabOptions::default().features;
        let (umem, pool) = Umem::create(4096).expect("16 MiB");
        let open = |features: Features| memory::socket(umem, features);
        let ((from, first), (to, second)) = (open(features), open(features));
        let mut rings = Self {
            from,
            to,
            kernels: [first, second],
            pool,
            batch: Batch::new(),
            frame: frame(),
        };
        rings.from.refill(&mut rings.pool);
        rings
    }

    /// The kernels' part: a batch arrives, what was sent is completed.
    pub fn prepare(&mut self) {
        let [from, to] = &mut self.kernels;
        to.transmit();
        for _ in 0..BATCH_SIZE {
            assert!(from.deliver(&self.frame));
        }
    }

    /// The sockets' part: RX, TX, COMPLETION and FILL of a batch.
    #[inline(never)]
    pub fn move_batch(&mut self) {
        self.to.reap(&mut self.pool);
        self.from.receive(&mut self.batch);
        for frame in self.batch.drain(..) {
            if let Err(frame) = self.to.send(frame, None) {
                self.pool.free(frame);
            }
        }
        self.to.flush();
        self.from.refill(&mut self.pool);
    }
}

/// What a batch offers to the second pod, bits of IP packets a second: one
/// arrives each [`Pods::PAUSE`].
const LOAD: u64 = BATCH_SIZE as u64 * 46 * 8 * 1000;

/// A limit that the batches never reach.
pub const ABOVE_THE_LOAD: u64 = 1000 * LOAD;

/// A limit that lets half of the batches' bytes pass: a queue waits all the time.
pub const HALF_THE_LOAD: u64 = LOAD / 2;

/// A whole engine with two pods.
#[derive(Debug)]
pub struct Pods {
    lab: Lab,
    frame: Vec<u8>,
}

impl Pods {
    const PAUSE: Nanos = Nanos::from_millis(1);

    pub fn new() -> Self {
        Self {
            lab: Lab::new(LabOptions::default()),
            frame: frame(),
        }
    }

    /// The second pod gets at most `rate` bits a second; what waits has come to
    /// its bound.
    pub fn limited(rate: u64) -> Self {
        let mut pods = Self::new();
        let shaping = Shaping {
            ingress: Some(Limit::with_chosen_burst(rate, MTU)),
            ..Shaping::default()
        };
        pods.lab.shape(2, &shaping, MTU);
        for _ in 0..200 {
            pods.prepare();
            pods.turn();
        }
        pods
    }

    /// Frames that wait for the limit.
    pub fn waiting(&self) -> u32 {
        self.lab.held_chunks()
    }

    /// The kernels' part: a batch arrives at the first pod's port, the second
    /// takes what was sent to it.
    pub fn prepare(&mut self) {
        self.lab.wait(Self::PAUSE);
        self.lab.take(2);
        for _ in 0..BATCH_SIZE {
            assert!(self.lab.inject(1, &self.frame));
        }
    }

    /// The engine's part: one turn of the loop.
    #[inline(never)]
    pub fn turn(&mut self) {
        self.lab.turn();
    }
}

/// A session table that is half full.
#[derive(Debug)]
pub struct Table {
    sessions: Sessions,
    flows: Vec<Flow>,
    next: usize,
}

impl Table {
    const SESSIONS: u32 = 32_768;
    const POD: PortId = PortId {
        slot: 1,
        generation: 0,
    };

    pub fn new() -> Self {
        let mut sessions = Sessions::new(2 * Self::SESSIONS, 2);
        let session = |client: u32| {
            let flow = Flow {
                src: Ipv6Addr::from_bits(u128::from(client) + 1),
                dst: Ipv6Addr::from_bits(0xfd00 << 112 | 1),
                src_port: 7,
                dst_port: 7,
                protocol: protocol::UDP,
            };
            Session {
                original: flow,
                translated: flow,
                pod: Self::POD,
                client: PortId {
                    slot: 0,
                    generation: 0,
                },
                next_hop: None,
            }
        };
        let mut flows = Vec::new();
        for session in (0..Self::SESSIONS).map(session) {
            sessions
                .resume(session, Nanos(0))
                .unwrap_or_else(|refused| panic!("{refused:?}"));
            flows.push(session.original);
        }
        // So that each lookup is one of memory, not of the cache.
        fastrand::Rng::with_seed(1).shuffle(&mut flows);
        Self {
            sessions,
            flows,
            next: 0,
        }
    }

    /// Finds and follows the sessions of a batch of packets.
    #[inline(never)]
    pub fn look_up_batch(&mut self) {
        for _ in 0..BATCH_SIZE {
            let flow = &self.flows[self.next % self.flows.len()];
            self.next += 1;
            if let Some(found) = self.sessions.find(black_box(flow), Nanos(1)) {
                self.sessions.follow(found, Signal::Data, Nanos(1));
                black_box(found);
            }
        }
    }
}
