//! Ring cursors: one producer and one consumer over shared memory.
//!
//! Both sides cache the other's index and synchronise only when the cache does
//! not suffice, so a batch costs one acquire load and one release store a ring
//! (the scheme of xdp-tools' xsk.h and of s2n-quic's `cursor.rs`).

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::sys::Mapping;

/// What keeps a ring's memory alive.
#[derive(Debug, Clone)]
pub(super) enum Backing {
    /// Shared with the kernel.
    Kernel { _mapping: Arc<Mapping> },
    /// Shared with the in-memory kernel.
    Memory { _words: Arc<[AtomicU32]> },
}

/// Where a ring's parts lie.
#[derive(Debug, Clone)]
pub(super) struct Layout<T> {
    pub(super) producer: NonNull<AtomicU32>,
    pub(super) consumer: NonNull<AtomicU32>,
    pub(super) entries: NonNull<T>,
    /// Entries; a power of two.
    pub(super) size: u32,
    /// Held, never read: dropping it would end the ring's memory.
    pub(super) _backing: Backing,
}

/// The producing side: FILL and TX of ours, RX and COMPLETION of the kernel's.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Layout<T>,
    /// Next entry to write; ahead of the shared index until `submit`.
    head: u32,
    /// The consumer's index when last looked at.
    tail: u32,
}

/// The consuming side: RX and COMPLETION of ours.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Layout<T>,
    /// Next entry to read; ahead of the shared index until `release`.
    tail: u32,
    /// The producer's index when last looked at.
    head: u32,
}

// SAFETY: the pointers lead into memory that `_backing` keeps alive and that is
// only accessed by this cursor and its one opposite, by the protocol of the
// atomic indices. Moving a cursor to another thread changes none of that.
unsafe impl<T: Send> Send for Producer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Consumer<T> {}

impl<T: Copy> Layout<T> {
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into memory that `_backing` keeps alive; only accessed
        // atomically, by us and by the kernel.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the masked index is below `size`, the number of entries.
        unsafe { self.entries.add((index & (self.size - 1)) as usize) }
    }
}

impl<T: Copy> Producer<T> {
    /// A producer that goes on where the shared indices stand.
    pub(super) fn new(ring: Layout<T>) -> Self {
        let head = ring.producer().load(Ordering::Relaxed);
        let tail = ring.consumer().load(Ordering::Acquire);
        Self { ring, head, tail }
    }

    /// How many entries can be pushed, looking afresh if fewer than `wanted`.
    pub(super) fn space(&mut self, wanted: u32) -> u32 {
        let space = self.ring.size - self.head.wrapping_sub(self.tail).min(self.ring.size);
        if space >= wanted {
            return space;
        }
        // Acquire: the consumer's reads of an entry come before its index
        // passes it, and so before our next write to it.
        self.tail = self.ring.consumer().load(Ordering::Acquire);
        self.ring.size - self.head.wrapping_sub(self.tail).min(self.ring.size)
    }

    /// Writes one entry. Returns false, and writes nothing, on a full ring.
    #[inline]
    pub(super) fn push(&mut self, value: T) -> bool {
        if self.space(1) == 0 {
            return false;
        }
        // SAFETY: the entry lies between the producer's and the consumer's
        // index, so the other side does not touch it.
        unsafe { self.ring.entry(self.head).write(value) };
        self.head = self.head.wrapping_add(1);
        true
    }

    /// Shows the consumer what was pushed.
    pub(super) fn submit(&mut self) {
        // Release: the entries are visible before the index that covers them.
        self.ring.producer().store(self.head, Ordering::Release);
    }

    /// Entries submitted or pushed that the consumer has not taken.
    pub(super) fn outstanding(&mut self) -> u32 {
        self.tail = self.ring.consumer().load(Ordering::Acquire);
        self.head.wrapping_sub(self.tail)
    }
}

impl<T: Copy> Consumer<T> {
    /// A consumer that goes on where the shared indices stand.
    pub(super) fn new(ring: Layout<T>) -> Self {
        let tail = ring.consumer().load(Ordering::Relaxed);
        let head = ring.producer().load(Ordering::Acquire);
        Self { ring, tail, head }
    }

    /// How many entries can be read, looking afresh if fewer than `wanted`.
    #[inline]
    pub(super) fn available(&mut self, wanted: u32) -> u32 {
        if self.head.wrapping_sub(self.tail) < wanted {
            // Acquire: the entries are visible once their index is.
            self.head = self.ring.producer().load(Ordering::Acquire);
        }
        self.head.wrapping_sub(self.tail).min(self.ring.size)
    }

    /// Reads one entry.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        let value = self.peek(0)?;
        self.tail = self.tail.wrapping_add(1);
        Some(value)
    }

    /// Looks at the entry that lies `ahead` of the next one.
    #[inline]
    pub(super) fn peek(&mut self, ahead: u32) -> Option<T> {
        if self.available(ahead + 1) <= ahead {
            return None;
        }
        // SAFETY: the entry lies between the consumer's and the producer's
        // index, so the other side does not touch it.
        Some(unsafe { self.ring.entry(self.tail.wrapping_add(ahead)).read() })
    }

    /// Returns what was read to the producer.
    pub(super) fn release(&mut self) {
        // Release: our reads of the entries come before the index that lets
        // the producer overwrite them.
        self.ring.consumer().store(self.tail, Ordering::Release);
    }
}

/// A ring in plain memory, as two layouts of the same words.
pub(super) fn in_memory<T: Copy>(size: u32) -> Layout<T> {
    assert!(
        size.is_power_of_two() && align_of::<T>() <= 8,
        "a ring's size is a power of two"
    );
    // The two indices, then the entries, 8-byte aligned whatever the
    // allocation's own alignment: hence one word more than they need.
    let entry_words = size as usize * size_of::<T>().div_ceil(4);
    let words: Arc<[AtomicU32]> = (0..entry_words + 3).map(|_| AtomicU32::new(0)).collect();
    let base = NonNull::from(&*words).cast::<AtomicU32>();
    let after_indices = base.as_ptr().addr() + 8;
    let skip = 2 + after_indices % 8 / 4;
    Layout {
        producer: base,
        consumer: {
            // SAFETY: there are at least three words.
            unsafe { base.add(1) }
        },
        entries: {
            // SAFETY: at most one word is skipped to reach the alignment, and
            // one more than the entries and indices need was allocated.
            unsafe { base.add(skip) }.cast::<T>()
        },
        size,
        _backing: Backing::Memory { _words: words },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64),
        Submit,
        Pop,
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<u64>().prop_map(Step::Push),
            2 => Just(Step::Submit),
            4 => Just(Step::Pop),
            2 => Just(Step::Release),
        ]
    }

    /// What a ring is: pushed entries wait, submitted ones can be read, read
    /// ones hold their place until released.
    #[derive(Default)]
    struct Oracle {
        pushed: VecDeque<u64>,
        submitted: VecDeque<u64>,
        read: usize,
    }

    impl Oracle {
        fn taken(&self) -> usize {
            self.pushed.len() + self.submitted.len() + self.read
        }
    }

    proptest! {
        #[test]
        fn a_ring_does_what_its_oracle_does(
            size in prop::sample::select(vec![1u32, 2, 8, 64]),
            start in any::<u32>(),
            steps in prop::collection::vec(step(), 0..400),
        ) {
            let ring = in_memory::<u64>(size);
            // Free-running indices wrap at 2^32: start anywhere.
            ring.producer().store(start, Ordering::Relaxed);
            ring.consumer().store(start, Ordering::Relaxed);
            let mut producer = Producer::new(ring.clone());
            let mut consumer = Consumer::new(ring);
            let mut oracle = Oracle::default();
            for step in steps {
                match step {
                    Step::Push(value) => {
                        let room = oracle.taken() < size as usize;
                        prop_assert_eq!(producer.push(value), room);
                        if room {
                            oracle.pushed.push_back(value);
                        }
                    }
                    Step::Submit => {
                        producer.submit();
                        oracle.submitted.append(&mut oracle.pushed);
                    }
                    Step::Pop => {
                        let expected = oracle.submitted.pop_front();
                        oracle.read += usize::from(expected.is_some());
                        prop_assert_eq!(consumer.pop(), expected);
                    }
                    Step::Release => {
                        consumer.release();
                        oracle.read = 0;
                    }
                }
                prop_assert_eq!(producer.outstanding() as usize, oracle.taken());
            }
        }
    }

    #[test]
    fn two_threads_see_every_entry_once_and_in_order() {
        let ring = in_memory::<libc::xdp_desc>(16);
        let mut producer = Producer::new(ring.clone());
        let mut consumer = Consumer::new(ring);
        let last = 100_000u64;
        let sender = std::thread::spawn(move || {
            for addr in 0..last {
                let desc = libc::xdp_desc {
                    addr,
                    len: 1,
                    options: 0,
                };
                while !producer.push(desc) {
                    std::thread::yield_now();
                }
                producer.submit();
            }
        });
        for expected in 0..last {
            let got = loop {
                if let Some(desc) = consumer.pop() {
                    break desc.addr;
                }
                std::thread::yield_now();
            };
            assert_eq!(got, expected);
            consumer.release();
        }
        sender.join().unwrap();
    }
}
