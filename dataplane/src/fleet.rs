//! All workers: which of them is asked what.
//!
//! Each has its own ports, sessions and pool. Addresses, the host port and the
//! mapped ports of the node all of them know.

use std::sync::Arc;
use std::thread;

use mio::{Poll, Waker};
use sluice_control::{BusyPoll, Shaping};

use crate::counters::{NodeSnapshot, PortCounters};
use crate::engine::Engine;
use crate::handoff::{Peers, Sleeper, Underway};
use crate::mappings::Mappings;
use crate::next_hops::Uplink;
use crate::ownership::Ownership;
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::port::{PortId, PortSpec};
use crate::sessions::{self, Listed, Session};
use crate::shaper::Shapers;
use crate::verdict::DropReason;
use crate::worker::{self, Limits, WAKER, WorkerError, WorkerHandle, WorkerOptions};
use crate::xsk::{Depot, Doorbell, FramePool, Xsk};

/// Sockets that one thread closes at the end.
const CLOSED_BY_ONE: usize = 8;

/// What the workers are started with.
#[derive(Debug)]
pub struct FleetOptions {
    /// How many workers; at least one.
    pub workers: u16,
    /// All the UMEM's chunks.
    pub pool: FramePool,
    /// The doorbell that the XDP program rings.
    pub doorbell: Doorbell,
    /// How to wait.
    pub busy_poll: BusyPoll,
    /// CPUs to run on; empty means any. Several workers have one each, by turns.
    pub cpus: Vec<u16>,
    /// Slots: the largest number of ports, the host's and the uplink's included.
    pub slots: u16,
    /// The MAC address of every port's near end.
    pub gateway_mac: [u8; 6],
    /// Whether checksums may leave partial, with a request to complete them.
    pub tx_metadata: bool,
}

/// The control thread's handle of the workers. Each call waits until they have
/// done what was asked.
#[derive(Debug)]
pub struct Fleet {
    /// By number. Empty only while they are stopped.
    workers: Vec<WorkerHandle>,
    depot: Option<Arc<Depot>>,
    underway: Underway,
}

/// Starts the workers' threads.
///
/// # Errors
/// A thread, its epoll instance or its CPU affinity could not be set up; those
/// started before have ended.
pub fn start(options: FleetOptions) -> Result<Fleet, WorkerError> {
    let umem = options.pool.umem();
    let pools = options.pool.share(options.workers);
    let mut fleet = Fleet {
        workers: Vec::with_capacity(pools.len()),
        depot: pools.first().and_then(FramePool::depot).cloned(),
        underway: Underway::default(),
    };
    let mut polls = Vec::with_capacity(pools.len());
    let mut sleepers = Vec::with_capacity(pools.len());
    for _ in &pools {
        let failed = |operation| move |cause| WorkerError::Start { operation, cause };
        let poll = Poll::new().map_err(failed("epoll"))?;
        let waker = Waker::new(poll.registry(), WAKER).map_err(failed("eventfd"))?;
        polls.push(poll);
        sleepers.push(Arc::new(Sleeper::new(waker)));
    }
    let (peers, underway) = Peers::connect(&sleepers);
    fleet.underway = underway;
    let parts = pools.into_iter().zip(polls).zip(sleepers).zip(peers);
    for (number, (((pool, poll), sleeper), peers)) in (0..).zip(parts) {
        let pipeline = Pipeline::new(
            umem,
            PipelineOptions {
                gateway_mac: options.gateway_mac,
                tx_metadata: options.tx_metadata,
                slots: options.slots,
                sessions: sessions::CAPACITY,
            },
        );
        let engine = Engine::new(pipeline, pool, options.doorbell.clone(), options.slots);
        fleet.workers.push(worker::start(WorkerOptions {
            name: format!("worker-{number}"),
            engine: engine.among(peers),
            poll,
            sleeper,
            always: options.busy_poll == BusyPoll::Always,
            cpus: cpus(&options.cpus, number, options.workers),
        })?);
    }
    Ok(fleet)
}

/// The CPUs of one worker.
fn cpus(all: &[u16], worker: usize, workers: u16) -> Vec<u16> {
    if workers <= 1 || all.is_empty() {
        return all.to_vec();
    }
    vec![all[worker % all.len()]]
}

impl Fleet {
    /// Adds a port and fills its FILL ring: to be called before the socket
    /// goes into the XSKMAP.
    ///
    /// # Errors
    /// The slot is not free, or a worker is gone.
    pub fn add(&self, port: PortSpec) -> Result<Arc<PortCounters>, WorkerError> {
        let (id, kind) = (port.id, port.kind);
        let addresses: Arc<[_]> = port.addresses.as_slice().into();
        let owner = self.owner(id);
        let counters = owner.add(port)?;
        // Others only once it is there to take what they send.
        for worker in self.others(id) {
            worker.learn(id, kind, Arc::clone(&addresses))?;
        }
        Ok(counters)
    }

    /// Takes a port out of the tables, closes its socket, and has its chunks
    /// taken back. A success also if there is no such port.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn remove(&self, id: PortId) -> Result<(), WorkerError> {
        for worker in self.others(id) {
            worker.forget(id)?;
        }
        let owner = self.owner(id);
        match owner.remove(id)? {
            None => Ok(()),
            // Here and not on the worker: closing waits for an RCU grace period.
            Some(port) => owner.reclaim(port.xsk.close()),
        }
    }

    /// Changes what a port's traffic is held to, and the largest packet that goes
    /// with it, in bytes. A success also if there is no such port.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn set_shaping(
        &self,
        port: PortId,
        shaping: &Shaping,
        mtu: u32,
    ) -> Result<(), WorkerError> {
        let shapers = Shapers::new(shaping, mtu);
        let limits = Limits { port, shapers, mtu };
        // The former ones are freed here and not on the worker.
        self.owner(port).set_shapers(limits).map(drop)
    }

    /// Sets the mapped ports of the node.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn set_mappings(&self, mappings: Mappings) -> Result<(), WorkerError> {
        let mappings = Arc::new(mappings);
        for worker in &self.workers {
            // The former ones are freed here and not on the last worker.
            drop(worker.set_mappings(Arc::clone(&mappings))?);
        }
        Ok(())
    }

    /// Sets what is known of the uplink.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn set_uplink(&self, uplink: &Uplink) -> Result<(), WorkerError> {
        for worker in &self.workers {
            // The former next hops are freed here and not on the worker.
            drop(worker.set_uplink(uplink.clone())?);
        }
        Ok(())
    }

    /// Opens sessions of conversations that are under way, as far as there is
    /// room. Answers how many.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn resume(&self, sessions: Vec<Session>) -> Result<usize, WorkerError> {
        let mut shares: Vec<Vec<Session>> = vec![Vec::new(); self.workers.len()];
        for session in sessions {
            shares[self.owner_of(session.pod)].push(session);
        }
        let mut resumed = 0;
        for (worker, share) in self.workers.iter().zip(shares) {
            resumed += worker.resume(share)?;
        }
        Ok(resumed)
    }

    /// All sessions, in no order. Those that come or go meanwhile may be in it.
    ///
    /// # Errors
    /// A worker is gone.
    pub fn sessions(&self) -> Result<Vec<Listed>, WorkerError> {
        let mut all = Vec::new();
        for worker in &self.workers {
            worker.list_sessions(&mut all)?;
        }
        Ok(all)
    }

    /// What each worker counts, by number.
    #[must_use]
    pub fn snapshots(&self) -> Vec<NodeSnapshot> {
        let counters = self.workers.iter().map(WorkerHandle::counters);
        counters.map(|counters| counters.snapshot()).collect()
    }

    /// Drops for this reason that no port counts.
    #[must_use]
    pub fn drops(&self, reason: DropReason) -> u64 {
        let counters = self.workers.iter().map(WorkerHandle::counters);
        counters.map(|counters| counters.drops.get(reason)).sum()
    }

    /// Free chunks that are in no worker's pool.
    #[must_use]
    pub fn stored_chunks(&self) -> usize {
        self.depot.as_ref().map_or(0, |depot| depot.free_chunks())
    }

    /// Chunks on their way from one worker to another.
    #[must_use]
    pub fn chunks_underway(&self) -> usize {
        self.underway.chunks()
    }

    /// Whether all threads still run.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.workers.iter().all(WorkerHandle::is_alive)
    }

    fn owner_of(&self, port: PortId) -> usize {
        let workers = u16::try_from(self.workers.len()).unwrap_or(u16::MAX);
        Ownership::of(0, workers).owner(port).into()
    }

    fn owner(&self, port: PortId) -> &WorkerHandle {
        &self.workers[self.owner_of(port)]
    }

    fn others(&self, port: PortId) -> impl Iterator<Item = &WorkerHandle> {
        let owner = self.owner_of(port);
        let workers = self.workers.iter().enumerate();
        workers.filter_map(move |(number, worker)| (number != owner).then_some(worker))
    }
}

/// Stops the threads and waits for their end; the sockets close with them.
impl Drop for Fleet {
    fn drop(&mut self) {
        let workers = std::mem::take(&mut self.workers);
        workers.iter().for_each(WorkerHandle::stop);
        // All of them first: what one has handed over another still gets.
        let engines: Vec<Engine> = workers.into_iter().filter_map(WorkerHandle::join).collect();
        close(engines.into_iter().flat_map(Engine::into_sockets).collect());
    }
}

/// Closes sockets, many at a time: each waits for an RCU grace period, and
/// those who wait together wait for the same one. One after the other, 250
/// would take three seconds, in which the next daemon cannot start.
fn close(mut sockets: Vec<Xsk>) {
    thread::scope(|scope| {
        while !sockets.is_empty() {
            let some = sockets.split_off(sockets.len().saturating_sub(CLOSED_BY_ONE));
            // Without a thread to spare they are closed here.
            let _ = thread::Builder::new().spawn_scoped(scope, || drop(some));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use sluice_control::Limit;

    use super::*;
    use crate::lab::{GATEWAY_MAC, link, mac, v4};
    use crate::packet::build;
    use crate::port::PortKind;
    use crate::xsk::memory::{self, MemoryKernel};
    use crate::xsk::{Features, Umem};

    const FEATURES: Features = Features {
        multi_buffer: true,
        tx_metadata: true,
        tx_budget: true,
        gso: true,
        tso: true,
    };

    #[test]
    fn one_worker_may_use_all_cpus_and_several_have_one_each() {
        assert_eq!(cpus(&[2, 5], 0, 1), [2, 5]);
        let three: Vec<_> = (0..3).map(|number| cpus(&[2, 5], number, 3)).collect();
        assert_eq!(three, [[2], [5], [2]]);
        assert!(cpus(&[], 1, 2).is_empty());
    }

    /// Two workers' threads, and a pod of each.
    struct Node {
        fleet: Fleet,
        doorbell: Doorbell,
        kernels: Vec<MemoryKernel>,
    }

    fn port(slot: u16) -> PortId {
        PortId {
            slot,
            generation: 0,
        }
    }

    impl Node {
        fn new() -> Self {
            let doorbell = Doorbell::in_memory(3);
            let (umem, pool) = Umem::create(4096).unwrap();
            let fleet = start(FleetOptions {
                workers: 2,
                pool,
                doorbell: doorbell.clone(),
                busy_poll: BusyPoll::Hybrid,
                cpus: Vec::new(),
                slots: 3,
                gateway_mac: GATEWAY_MAC,
                tx_metadata: true,
            })
            .unwrap();
            let add = |slot| {
                let (xsk, kernel) = memory::socket(umem, FEATURES);
                let spec = PortSpec {
                    id: port(slot),
                    kind: PortKind::Pod,
                    xsk,
                    mac: mac(slot),
                    mtu: 65_000,
                    addresses: vec![v4(slot).into()],
                    gateways: Vec::new(),
                    shapers: Shapers::default(),
                    gro: false,
                };
                fleet.add(spec).unwrap();
                kernel
            };
            let kernels = (1..3).map(add).collect();
            Self {
                fleet,
                doorbell,
                kernels,
            }
        }

        /// Sends frames from pod 1, whose worker alone is woken: there is no epoll
        /// behind these sockets.
        fn send(&mut self, frames: usize, shaping: &Shaping) {
            let frame = build::udp((v4(1), 1), (v4(2), 2)).frame(link(1));
            for _ in 0..frames {
                assert!(self.kernels[0].deliver(&frame));
            }
            self.doorbell.ring(1);
            self.fleet.set_shaping(port(1), shaping, 65_000).unwrap();
        }

        fn sleeps(&self, worker: usize) -> u64 {
            self.fleet.snapshots()[worker].sleeps
        }
    }

    #[track_caller]
    fn wait_until(mut is_done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_done() {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "waited in vain"
            );
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// Many times over: sometimes it sleeps, sometimes it is about to.
    #[test]
    fn what_is_handed_to_a_sleeping_worker_wakes_it() {
        let mut node = Node::new();
        for round in 0..2000 {
            // Worker 0 has pod 2.
            let slept = node.sleeps(0);
            node.send(1, &Shaping::default());
            wait_until(|| !node.kernels[1].transmit().is_empty());
            if round % 10 == 0 {
                wait_until(|| node.sleeps(0) > slept);
            }
        }
        assert_eq!(node.fleet.snapshots()[1].handed_frames, 2000);
        wait_until(|| node.fleet.chunks_underway() == 0);
        node.fleet.remove(port(2)).unwrap();
        node.fleet.remove(port(1)).unwrap();
        let free: u64 = node.fleet.snapshots().iter().map(|of| of.free_chunks).sum();
        assert_eq!(free + node.fleet.stored_chunks() as u64, 4096);
    }

    /// A frame that is lost panics.
    #[test]
    fn what_waits_when_the_workers_end_is_freed() {
        let mut node = Node::new();
        let slow = Shaping {
            egress: Some(Limit {
                rate: 1000,
                burst: 8,
            }),
            ..Shaping::default()
        };
        node.fleet.set_shaping(port(1), &slow, 65_000).unwrap();
        node.send(3, &slow);
        wait_until(|| node.fleet.snapshots()[1].held_chunks > 0);
    }
}
