//! The token bucket: a wire of a given rate, with credit for a pause.
//!
//! A frame may go while the bucket is not in debt, and then costs all of its
//! bytes, be it into debt. So over every time w no more than burst + rate x w
//! goes, and the rest of one frame; a frame larger than the burst goes as any
//! other; and when the next one may go does not depend on which one it is.
//!
//! Tokens are counted in bits x 10^-9: what a rate of 1 bit/s earns in a
//! nanosecond. No division, so no remainder is ever lost.

use crate::time::Nanos;

/// Tokens of a bit.
const PER_BIT: i128 = 1_000_000_000;

/// Tokens of a byte.
const PER_BYTE: i128 = 8 * PER_BIT;

/// A token bucket. Rates are bits of IP packets a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenBucket {
    rate: u64,
    depth: i128,
    /// At most `depth`; negative in debt.
    tokens: i128,
    /// Up to when tokens were earned.
    updated: Nanos,
}

impl TokenBucket {
    /// A full bucket: `rate` in bits a second, `burst` in bits.
    pub(super) fn new(rate: u64, burst: u64, now: Nanos) -> Self {
        let depth = i128::from(burst) * PER_BIT;
        Self {
            rate: rate.max(1),
            depth,
            tokens: depth,
            updated: now,
        }
    }

    /// Another rate and burst from now on. A debt is forgiven: at a much lower
    /// rate it would silence the pod.
    pub(super) fn change(&mut self, rate: u64, burst: u64, now: Nanos) {
        self.earn(now);
        self.rate = rate.max(1);
        self.depth = i128::from(burst) * PER_BIT;
        self.tokens = self.tokens.clamp(0, self.depth);
    }

    /// Whether a frame may go.
    #[inline]
    pub(super) fn conforms(&mut self, now: Nanos) -> bool {
        self.earn(now);
        self.tokens >= 0
    }

    /// A frame of `len` bytes has gone.
    #[inline]
    pub(super) fn take(&mut self, len: u32) {
        self.tokens -= i128::from(len) * PER_BYTE;
    }

    /// When the next frame may go, as far as is known now.
    pub(super) fn conforms_at(&self) -> Nanos {
        self.earned_at(0)
    }

    /// When the bucket will be full: what is earned later is lost.
    pub(super) fn full_at(&self) -> Nanos {
        self.earned_at(self.depth)
    }

    /// How long `len` bytes take at the rate.
    pub(super) fn time_of(&self, len: u32) -> Nanos {
        nanos((i128::from(len) * PER_BYTE).div_ceil_by(self.rate))
    }

    fn earned_at(&self, tokens: i128) -> Nanos {
        let missing = (tokens - self.tokens).max(0);
        self.updated + nanos(missing.div_ceil_by(self.rate))
    }

    /// A clock that stands still earns nothing, one that went back neither; one
    /// that jumped ahead, no more than fits.
    #[inline]
    fn earn(&mut self, now: Nanos) {
        let earned = i128::from((now - self.updated).0) * i128::from(self.rate);
        self.tokens = (self.tokens + earned).min(self.depth);
        self.updated = now;
    }
}

trait DivCeil {
    fn div_ceil_by(self, divisor: u64) -> i128;
}

impl DivCeil for i128 {
    /// Rounded up; neither is negative.
    fn div_ceil_by(self, divisor: u64) -> i128 {
        let divisor = i128::from(divisor);
        (self + divisor - 1) / divisor
    }
}

/// 584 years at most.
fn nanos(nanos: i128) -> Nanos {
    Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// The definition: a frame may go if from each earlier frame on, and that
    /// one included, no more went than the burst and what the rate earned since.
    /// In bits x 10^9, so exactly.
    struct Oracle {
        rate: u64,
        burst: u64,
        sent: Vec<(u64, u32)>,
    }

    impl Oracle {
        fn conforms(&self, now: u64) -> bool {
            let mut bits = 0;
            self.sent.iter().rev().all(|(at, len)| {
                bits += i128::from(*len) * 8;
                let earned = i128::from(self.rate) * i128::from(now - at);
                bits * PER_BIT <= i128::from(self.burst) * PER_BIT + earned
            })
        }
    }

    fn rates() -> impl Strategy<Value = u64> {
        prop_oneof![
            Just(1_000),
            Just(1_000_000_000_000_000),
            (3u32..=15, 1u64..10).prop_map(|(power, digit)| digit * 10u64.pow(power)),
            1_000u64..=1_000_000_000_000_000,
        ]
    }

    proptest! {
        #[test]
        fn conforms_when_the_definition_says_so(
            rate in rates(),
            burst in prop_oneof![1u64..1_000_000, Just((1 << 32) - 1)],
            steps in prop::collection::vec((0u64..3, 1u32..=65_000, 0u64..1 << 40), 1..200),
        ) {
            let mut bucket = TokenBucket::new(rate, burst, Nanos(0));
            let mut oracle = Oracle { rate, burst, sent: Vec::new() };
            let mut now = 0;
            for (kind, len, pause) in steps {
                now = match kind {
                    0 => now,
                    // The very moment, and the one before it.
                    1 if bucket.conforms_at().0 > now => {
                        let at = bucket.conforms_at().0;
                        prop_assert!(!oracle.conforms(at - 1));
                        prop_assert!(oracle.conforms(at));
                        at
                    }
                    _ => now + pause,
                };
                let conforms = bucket.conforms(Nanos(now));
                prop_assert_eq!(conforms, oracle.conforms(now));
                if conforms {
                    bucket.take(len);
                    oracle.sent.push((now, len));
                }
            }
        }
    }

    /// What a sender that never stops gets in `time`, asked at the very moment
    /// each frame may go. The burst is a frame, and what a tick of the clock earns.
    fn greedy(rate: u64, len: u32, time: u64) -> u128 {
        let burst = u64::from(len) * 8 + rate.div_ceil(SECOND);
        let mut bucket = TokenBucket::new(rate, burst, Nanos(0));
        let mut bytes = 0u128;
        loop {
            let at = bucket.conforms_at();
            if at.0 > time {
                return bytes;
            }
            assert!(bucket.conforms(at));
            bucket.take(len);
            bytes += u128::from(len);
        }
    }

    #[test]
    fn a_day_does_not_drift() {
        const DAY: u64 = 86_400;
        // Rates at which a frame takes no whole number of nanoseconds.
        for (rate, len) in [(1_000, 46), (999_983, 1_500), (7_654_321, 2_500)] {
            let bytes = greedy(rate, len, DAY * SECOND);
            let earned = u128::from(rate) * u128::from(DAY) / 8;
            let burst = u128::from(len);
            assert!(
                (earned..=earned + 2 * burst).contains(&bytes),
                "{rate} bit/s: {bytes} bytes, {earned} earned"
            );
        }
    }

    #[test]
    fn every_rate_is_exact_to_a_frame() {
        for power in 3..=15 {
            let rate = 10u64.pow(power);
            // A thousand frames, or a thousand ticks of the clock.
            let time = (1_000 * 1_500 * 8 * SECOND / rate).max(1_000);
            let earned = u128::from(rate) * u128::from(time) / u128::from(8 * SECOND);
            let burst = 1_500 + u128::from(rate.div_ceil(SECOND) / 8);
            let bytes = greedy(rate, 1_500, time);
            assert!(
                (earned..=earned + burst + 1_500).contains(&bytes),
                "{rate} bit/s: {bytes} bytes, {earned} earned"
            );
        }
    }

    #[test]
    fn a_frame_larger_than_the_burst_passes() {
        let mut bucket = TokenBucket::new(8_000, 8, Nanos(0));
        assert!(bucket.conforms(Nanos(0)));
        bucket.take(65_000);
        assert!(!bucket.conforms(Nanos(0)));
        assert_eq!(bucket.conforms_at(), Nanos(64_999 * SECOND / 1_000));
        assert!(bucket.conforms(bucket.conforms_at()));
    }

    #[test]
    fn a_clock_that_stands_goes_back_or_jumps_is_harmless() {
        let start = Nanos(1_000 * SECOND);
        let mut bucket = TokenBucket::new(8_000, 8_000, start);
        bucket.take(2_000);
        for _ in 0..1_000 {
            assert!(!bucket.conforms(start));
        }
        // Back by 1,000 s: what is missing is earned from then on.
        assert!(!bucket.conforms(Nanos(0)));
        assert!(bucket.conforms(Nanos(SECOND)));
        // Ahead by a century: the burst, no more.
        let later = Nanos(100 * 365 * 86_400 * SECOND);
        assert!(bucket.conforms(later));
        bucket.take(1_001);
        assert!(!bucket.conforms(later));
    }

    #[test]
    fn a_change_keeps_no_debt_and_no_more_than_the_new_burst() {
        let mut bucket = TokenBucket::new(1_000_000_000, 8 * 65_000, Nanos(0));
        bucket.take(130_000);
        bucket.change(1_000, 8_000, Nanos(0));
        assert!(bucket.conforms(Nanos(0)));
        bucket.change(1_000_000, 80_000, Nanos(0));
        bucket.take(1);
        assert!(!bucket.conforms(Nanos(0)));
        bucket.conforms(Nanos(SECOND));
        bucket.change(1_000_000, 800, Nanos(SECOND));
        assert_eq!(bucket.full_at(), Nanos(SECOND));
        bucket.take(101);
        assert!(!bucket.conforms(Nanos(SECOND)));
    }
}
