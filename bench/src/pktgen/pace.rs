//! When the next packets are due.

use crate::clock::SECOND;

/// A generator that is this late gives up what it has not sent: a pause of the
/// machine must not become a burst that the measured network did not ask for.
const MAX_LATE: u64 = SECOND / 100;

/// Packets at a constant rate, or as many as possible. Time is an argument.
#[derive(Debug)]
pub(crate) struct Pacer {
    /// Packets in 1000 seconds; `None` for as many as possible.
    rate: Option<u64>,
    /// When number 0 is due; moves on when packets are given up.
    start: u64,
    /// Packets that were given out.
    sent: u64,
    /// Packets that were given up.
    given_up: u64,
}

impl Pacer {
    /// Packets at `rate` a second from `start` on, in nanoseconds.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are positive; a float saturates as it is cast"
    )]
    pub(crate) fn new(rate: Option<f64>, start: u64) -> Self {
        Self {
            rate: rate.map(|rate| ((rate * 1e3) as u64).max(1)),
            start,
            sent: 0,
            given_up: 0,
        }
    }

    /// How many packets to send now, at most `batch`. They count as sent.
    pub(crate) fn take(&mut self, now: u64, batch: u64) -> u64 {
        let Some(rate) = self.rate else {
            self.sent += batch;
            return batch;
        };
        self.give_up(now, rate);
        if now < self.start {
            return 0;
        }
        let due = packets(now - self.start, rate) + 1;
        let count = due.saturating_sub(self.sent).min(batch);
        self.sent += count;
        count
    }

    /// When the next packet is due; 0 for at once.
    pub(crate) fn next(&self) -> u64 {
        self.rate
            .map_or(0, |rate| self.start + span(self.sent, rate))
    }

    /// Packets that were not sent because the generator was too slow.
    pub(crate) const fn given_up(&self) -> u64 {
        self.given_up
    }

    fn give_up(&mut self, now: u64, rate: u64) {
        let late = now.saturating_sub(self.next());
        if late <= MAX_LATE {
            return;
        }
        let count = packets(late - MAX_LATE, rate);
        self.given_up += count;
        self.start += span(count, rate);
    }
}

/// Nanoseconds in the time that a rate is given for.
const PERIOD: u128 = SECOND as u128 * 1000;

/// Packets that go by in so many nanoseconds.
fn packets(nanos: u64, rate: u64) -> u64 {
    let packets = u128::from(nanos) * u128::from(rate) / PERIOD;
    u64::try_from(packets).unwrap_or(u64::MAX)
}

/// The nanoseconds that `count` packets take, rounded up: a packet is never
/// early.
fn span(count: u64, rate: u64) -> u64 {
    let span = (u128::from(count) * PERIOD).div_ceil(u128::from(rate));
    u64::try_from(span).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends by a clock that moves on by `steps`, again and again, for
    /// `duration`; the number sent.
    fn send(pacer: &mut Pacer, steps: &[u64], duration: u64, batch: u64) -> u64 {
        let (mut now, mut sent) = (0, 0);
        for step in steps.iter().cycle() {
            if now >= duration {
                break;
            }
            sent += pacer.take(now, batch);
            now += step;
        }
        sent
    }

    proptest! {
        #[test]
        fn the_rate_is_kept_however_time_is_sliced(
            rate in 1_000.0..2_000_000.0_f64,
            steps in prop::collection::vec(1_000..12_000_u64, 1..20),
        ) {
            let mut pacer = Pacer::new(Some(rate), 0);
            let sent = send(&mut pacer, &steps, SECOND, 64);
            // One batch is the most that can be due at the end.
            prop_assert!((sent as f64 - rate).abs() <= 65.0, "{sent} at {rate}");
            prop_assert_eq!(pacer.given_up(), 0);
        }

        #[test]
        fn nothing_is_early(rate in 1.0..5_000_000.0_f64, sent in 1..10_000_u64) {
            let mut pacer = Pacer::new(Some(rate), 500);
            prop_assert_eq!(pacer.take(499, 64), 0);
            for _ in 0..sent {
                let due = pacer.next();
                prop_assert_eq!(pacer.take(due - 1, 1), 0);
                prop_assert_eq!(pacer.take(due, 1), 1);
            }
        }
    }

    #[test]
    fn a_pause_is_no_burst() {
        let mut pacer = Pacer::new(Some(1_000_000.0), 0);
        assert_eq!(pacer.take(0, 64), 1);
        // A second late: 10 ms of it are made up for, the rest is not.
        let mut burst = 0;
        loop {
            match pacer.take(SECOND, 64) {
                0 => break,
                count => burst += count,
            }
        }
        assert_eq!(burst, 10_001);
        assert_eq!(pacer.given_up(), 989_999);
        assert_eq!(pacer.take(SECOND + 999, 64), 0);
        assert_eq!(pacer.take(SECOND + 1000, 64), 1);
    }

    #[test]
    fn as_fast_as_possible_is_a_batch_each_time() {
        let mut pacer = Pacer::new(None, 0);
        assert_eq!(pacer.take(0, 64), 64);
        assert_eq!(pacer.take(0, 32), 32);
        assert_eq!((pacer.next(), pacer.given_up()), (0, 0));
    }
}
