//! What became of numbered packets: which came, came twice, or came late.

use super::stamp::Stamp;

/// A number this far beyond the last one is not from our generator: it bounds
/// the memory that a stray packet can cost. A second at 16 million a second.
const MAX_JUMP: u64 = 1 << 24;

/// What the numbers say, over all flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Different packets.
    pub(crate) received: u64,
    /// Further copies of packets that came already.
    pub(crate) duplicated: u64,
    /// Packets whose number is smaller than that of one that came earlier
    /// (RFC 4737 section 3.3).
    pub(crate) reordered: u64,
    /// How many numbers late the latest of them came.
    pub(crate) extent: u64,
    /// Packets that no generator of this measurement sent.
    pub(crate) foreign: u64,
}

/// The numbers that came, exactly: one bit for each packet.
#[derive(Debug)]
pub(crate) struct Sequences {
    flows: Vec<Flow>,
    counts: Counts,
}

#[derive(Debug, Clone, Default)]
struct Flow {
    /// One more than the largest number that came.
    next: u64,
    /// Bit `n % 64` of word `n / 64`: number n came.
    seen: Vec<u64>,
}

impl Sequences {
    /// For this many flows; the stamps of others are foreign.
    pub(crate) fn new(flows: u16) -> Self {
        Self {
            flows: vec![Flow::default(); flows.into()],
            counts: Counts::default(),
        }
    }

    /// Takes a packet that arrived. `false` if it is foreign.
    pub(crate) fn record(&mut self, stamp: &Stamp) -> bool {
        let number = stamp.sequence;
        let flow = self.flows.get_mut(usize::from(stamp.flow));
        let Some(flow) = flow.filter(|flow| number < flow.next + MAX_JUMP) else {
            self.counts.foreign += 1;
            return false;
        };
        let counts = &mut self.counts;
        if !flow.mark(number) {
            counts.duplicated += 1;
        } else {
            counts.received += 1;
            if number < flow.next {
                counts.reordered += 1;
                counts.extent = counts.extent.max(flow.next - number);
            }
        }
        flow.next = flow.next.max(number + 1);
        true
    }

    /// A packet that is not ours by something else than its number.
    pub(crate) fn stray(&mut self) {
        self.counts.foreign += 1;
    }

    /// What the numbers say so far.
    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    /// Numbers that did not come, up to the largest that did in each flow: all
    /// that can be said without the generator.
    pub(crate) fn missing(&self) -> u64 {
        let numbered: u64 = self.flows.iter().map(|flow| flow.next).sum();
        numbered - self.counts.received
    }
}

impl Flow {
    /// Whether this is the first time.
    fn mark(&mut self, number: u64) -> bool {
        let Ok(index) = usize::try_from(number / 64) else {
            return false; // not on machines with less than 2^64 of memory
        };
        if index >= self.seen.len() {
            self.seen.resize(index + 1, 0);
        }
        let bit = 1 << (number % 64);
        let is_new = self.seen[index] & bit == 0;
        self.seen[index] |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn stamp(flow: u16, sequence: u64) -> Stamp {
        Stamp {
            flow,
            sequence,
            time: 0,
        }
    }

    /// The definitions, word by word, of one flow.
    fn oracle(numbers: &[u64]) -> (Counts, u64) {
        let mut counts = Counts::default();
        for (index, number) in numbers.iter().enumerate() {
            let earlier = &numbers[..index];
            if earlier.contains(number) {
                counts.duplicated += 1;
                continue;
            }
            counts.received += 1;
            let largest = earlier.iter().max();
            if let Some(largest) = largest.filter(|largest| *largest > number) {
                counts.reordered += 1;
                counts.extent = counts.extent.max(largest + 1 - number);
            }
        }
        let came: BTreeSet<u64> = numbers.iter().copied().collect();
        let all = numbers.iter().max().map_or(0, |largest| largest + 1);
        (
            counts,
            (0..all).filter(|n| !came.contains(n)).count() as u64,
        )
    }

    proptest! {
        #[test]
        fn flows_are_counted_as_defined(packets in prop::collection::vec((0..3_u16, 0..200_u64), 0..300)) {
            let mut sequences = Sequences::new(3);
            for (flow, number) in &packets {
                prop_assert!(sequences.record(&stamp(*flow, *number)));
            }
            let (mut all, mut missing) = (Counts::default(), 0);
            for flow in 0..3 {
                let numbers = packets.iter().filter(|(f, _)| *f == flow).map(|(_, n)| *n);
                let (counts, gaps) = oracle(&numbers.collect::<Vec<_>>());
                all.received += counts.received;
                all.duplicated += counts.duplicated;
                all.reordered += counts.reordered;
                all.extent = all.extent.max(counts.extent);
                missing += gaps;
            }
            prop_assert_eq!(sequences.counts(), all);
            prop_assert_eq!(sequences.missing(), missing);
        }
    }

    #[test]
    fn strays_cost_no_memory() {
        let mut sequences = Sequences::new(1);
        assert!(!sequences.record(&stamp(1, 0)));
        assert!(!sequences.record(&stamp(0, MAX_JUMP)));
        assert!(!sequences.record(&stamp(0, (1 << 48) - 1)));
        let counts = Counts {
            foreign: 3,
            ..Counts::default()
        };
        assert_eq!(sequences.counts(), counts);
        assert!(sequences.flows[0].seen.is_empty());
    }
}
