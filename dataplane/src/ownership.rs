//! Which ports are a worker's.

use crate::port::PortId;

/// One worker of several. Ports are dealt out like cards, by their slots: known
/// to all without a table, and slots of pods are given out densely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    worker: u16,
    workers: u16,
}

impl Ownership {
    /// The only worker, whose all ports are.
    pub const ALONE: Self = Self {
        worker: 0,
        workers: 1,
    };

    /// Worker number `worker` of `workers`.
    ///
    /// # Panics
    /// If there is no such worker.
    #[must_use]
    pub fn of(worker: u16, workers: u16) -> Self {
        assert!(worker < workers, "worker {worker} of {workers}");
        Self { worker, workers }
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(self) -> u16 {
        self.workers
    }

    /// The number of the worker that has the port.
    #[inline]
    #[must_use]
    pub fn owner(self, port: PortId) -> u16 {
        port.slot % self.workers
    }

    /// Whether the port is this worker's.
    #[inline]
    #[must_use]
    pub fn has(self, port: PortId) -> bool {
        self.workers == 1 || self.owner(port) == self.worker
    }

    /// The bits of this worker's ports in word `word` of the doorbell.
    #[must_use]
    pub fn mask(self, word: u16) -> u64 {
        (0..64)
            .filter(|bit| {
                self.has(PortId {
                    slot: word * 64 + bit,
                    generation: 0,
                })
            })
            .fold(0, |mask, bit| mask | 1 << bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_one_workers() {
        for workers in 1..=16 {
            for word in 0..17 {
                let masks = (0..workers).map(|worker| Ownership::of(worker, workers).mask(word));
                let (all, bits) = masks.fold((0, 0), |(all, bits), mask| {
                    (all | mask, bits + mask.count_ones())
                });
                assert_eq!((all, bits), (u64::MAX, 64), "{workers} workers");
            }
        }
        assert_eq!(Ownership::ALONE.mask(3), u64::MAX);
    }
}
