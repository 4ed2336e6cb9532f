//! Whether arrivals stay within a rate and a burst over every window.

use crate::topology::Limit;

/// Shorter windows than this are not looked at, nanoseconds.
const SHORTEST: u64 = 10_000_000;

const BITS_NS: i128 = 8_000_000_000;

/// A packet's arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    /// Nanoseconds by any one clock.
    pub(super) at: u64,
    pub(super) bytes: u32,
}

/// By how many bytes most came over what may: over every window of at least
/// 10 ms burst + rate x window + one frame, the largest that came. Negative
/// where it is never reached. Nothing of nothing.
///
/// Arrivals are in the order of their time. A window is worst where it begins
/// and ends with an arrival, or is as short as may be.
pub(super) fn worst_excess(arrivals: &[Arrival], limit: Limit) -> Option<i64> {
    let rate = i128::from(limit.rate);
    let earned = |time: u64| rate * i128::from(time);
    let frame = i128::from(arrivals.iter().map(|arrival| arrival.bytes).max()?);
    let (mut long, mut recent) = (0, 0);
    // Bytes before each of the two; the best beginning of a long window so far.
    let (mut before_long, mut before_recent, mut came) = (0, 0, 0);
    let mut best: Option<i128> = None;
    let mut worst = i128::MIN;
    for arrival in arrivals {
        came += i128::from(arrival.bytes);
        while arrivals[long].at + SHORTEST <= arrival.at {
            let beginning = earned(arrivals[long].at) - before_long * BITS_NS;
            best = Some(best.map_or(beginning, |best| best.max(beginning)));
            before_long += i128::from(arrivals[long].bytes);
            long += 1;
        }
        while arrivals[recent].at + SHORTEST < arrival.at {
            before_recent += i128::from(arrivals[recent].bytes);
            recent += 1;
        }
        let short = (came - before_recent) * BITS_NS - earned(SHORTEST);
        let long = best.map(|best| came * BITS_NS - earned(arrival.at) + best);
        worst = worst.max(short).max(long.unwrap_or(i128::MIN));
    }
    let allowed = i128::from(limit.burst) * 1_000_000_000 + frame * BITS_NS;
    i64::try_from((worst - allowed).div_euclid(BITS_NS)).ok()
}

/// The bytes of the first `time` nanoseconds, from the first arrival on.
pub(super) fn bytes_within(arrivals: &[Arrival], time: u64) -> u64 {
    let start = arrivals.first().map_or(0, |first| first.at);
    let within = arrivals.iter().take_while(|a| a.at < start + time);
    within.map(|arrival| u64::from(arrival.bytes)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    /// A megabyte a second: 1000 bytes a millisecond.
    const LIMIT: Limit = Limit {
        rate: 8_000_000,
        burst: 16_000,
    };

    fn every(pause: u64, bytes: u32, count: u64) -> Vec<Arrival> {
        (0..count)
            .map(|i| Arrival {
                at: i * pause,
                bytes,
            })
            .collect()
    }

    /// The definition, window by window.
    fn by_definition(arrivals: &[Arrival], limit: Limit) -> Option<i64> {
        let frame = i128::from(arrivals.iter().map(|a| a.bytes).max()?);
        let mut worst = i128::MIN;
        for first in 0..arrivals.len() {
            for last in first..arrivals.len() {
                let bytes: i128 = arrivals[first..=last]
                    .iter()
                    .map(|a| i128::from(a.bytes))
                    .sum();
                let window = (arrivals[last].at - arrivals[first].at).max(SHORTEST);
                let earned = i128::from(limit.rate) * i128::from(window);
                worst = worst.max(bytes * BITS_NS - earned);
            }
        }
        let allowed = i128::from(limit.burst) * 1_000_000_000 + frame * BITS_NS;
        i64::try_from((worst - allowed).div_euclid(BITS_NS)).ok()
    }

    #[test]
    fn a_steady_rate_is_within() {
        // 11 packets in the closed shortest window, of which 10 are earned.
        let excess = worst_excess(&every(MS, 1000, 100), LIMIT);
        assert_eq!(excess, Some(1000 - 2000 - 1000));
        assert_eq!(worst_excess(&[], LIMIT), None);
    }

    #[test]
    fn twice_the_rate_is_not() {
        let excess = worst_excess(&every(MS, 2000, 101), LIMIT);
        assert_eq!(excess, Some(202_000 - 100_000 - 2000 - 2000));
    }

    #[test]
    fn a_burst_at_the_end_counts() {
        let mut arrivals = every(MS, 500, 100);
        arrivals.extend(
            [Arrival {
                at: 99 * MS,
                bytes: 20_000,
            }; 2],
        );
        let excess = worst_excess(&arrivals, LIMIT);
        assert_eq!(excess, Some(40_000 + 11 * 500 - 10_000 - 2000 - 20_000));
    }

    #[test]
    fn bytes_are_counted_from_the_first_arrival_on() {
        let arrivals = [5, 6, 14, 15].map(|ms| Arrival {
            at: ms * MS,
            bytes: 10,
        });
        assert_eq!(bytes_within(&arrivals, 10 * MS), 30);
        assert_eq!(bytes_within(&[], MS), 0);
    }

    proptest! {
        #[test]
        fn every_window_is_looked_at(
            steps in prop::collection::vec((0..4 * MS, 1_u32..9000), 0..60),
            rate in 1_000_u64..10_000_000_000,
            burst in 1_u64..1_000_000,
        ) {
            let mut at = 0;
            let arrivals: Vec<_> = steps
                .into_iter()
                .map(|(step, bytes)| {
                    at += step;
                    Arrival { at, bytes }
                })
                .collect();
            let limit = Limit { rate, burst };
            prop_assert_eq!(worst_excess(&arrivals, limit), by_definition(&arrivals, limit));
        }
    }
}
