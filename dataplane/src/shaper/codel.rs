//! CoDel (RFC 8289): whether a queue stands, told by how long its frames wait,
//! and when to say so to their senders.

use crate::time::Nanos;

/// What counts as a standing queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    /// A wait that is acceptable (`TARGET`).
    pub(super) target: Nanos,
    /// For how long it must be exceeded (`INTERVAL`).
    pub(super) interval: Nanos,
    /// Bytes of the largest frame: so little is no standing queue.
    pub(super) max_packet: u32,
}

impl Parameters {
    /// For a wire on which the largest frame takes `serialization`. At rates at
    /// which that exceeds RFC 8289's 5 ms the target is one such frame's time
    /// (RFC 8290 section 5.2), and as much longer is the interval.
    pub(super) fn new(max_packet: u32, serialization: Nanos) -> Self {
        const TARGET: Nanos = Nanos::from_millis(5);
        const INTERVALS: u64 = 20;
        let target = serialization.max(TARGET);
        Self {
            target,
            interval: Nanos(target.0.saturating_mul(INTERVALS)),
            max_packet,
        }
    }
}

/// A frame in a queue.
pub(super) trait Queued {
    /// When it came.
    fn since(&self) -> Nanos;
}

/// A queue that CoDel controls.
pub(super) trait Queue {
    type Item: Queued;

    /// Takes its head.
    fn pop(&mut self) -> Option<Self::Item>;

    /// What is left in it, in bytes.
    fn backlog(&self) -> u32;

    /// Tells the sender of a frame to slow down. Gives the frame back if it was
    /// marked for that, and drops it otherwise.
    fn signal(&mut self, frame: Self::Item) -> Option<Self::Item>;
}

/// The state of one queue (RFC 8289 section 5.2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Codel {
    /// When frames will have waited too long for an interval.
    first_above: Option<Nanos>,
    drop_next: Nanos,
    count: u32,
    last_count: u32,
    dropping: bool,
}

impl Codel {
    /// The next frame to go (RFC 8289 section 5.5). Where one is marked instead
    /// of dropped, it is the one to go.
    pub(super) fn dequeue<Q: Queue>(
        &mut self,
        queue: &mut Q,
        parameters: &Parameters,
        now: Nanos,
    ) -> Option<Q::Item> {
        let mut next = self.take(queue, parameters, now);
        if self.dropping {
            self.dropping = next.1;
            while self.dropping && now >= self.drop_next {
                let frame = next.0?;
                self.count = self.count.saturating_add(1);
                if let Some(marked) = queue.signal(frame) {
                    self.drop_next = self.control_law(self.drop_next, parameters);
                    return Some(marked);
                }
                next = self.take(queue, parameters, now);
                self.dropping = next.1;
                if self.dropping {
                    self.drop_next = self.control_law(self.drop_next, parameters);
                }
            }
        } else if next.1 {
            let frame = next.0?;
            let signalled = queue.signal(frame);
            self.dropping = true;
            // A queue that has just been left resumes near the rate that
            // controlled it (section 5.5).
            let delta = self.count.saturating_sub(self.last_count);
            let recently = now - self.drop_next < Nanos(parameters.interval.0.saturating_mul(16));
            self.count = if delta > 1 && recently { delta } else { 1 };
            self.drop_next = self.control_law(now, parameters);
            self.last_count = self.count;
            return match signalled {
                Some(marked) => Some(marked),
                None => self.take(queue, parameters, now).0,
            };
        }
        next.0
    }

    /// Takes a frame, and says whether one may be dropped (section 5.6).
    fn take<Q: Queue>(
        &mut self,
        queue: &mut Q,
        parameters: &Parameters,
        now: Nanos,
    ) -> (Option<Q::Item>, bool) {
        let Some(frame) = queue.pop() else {
            self.first_above = None;
            return (None, false);
        };
        let is_short = queue.backlog() <= parameters.max_packet;
        if now - frame.since() < parameters.target || is_short {
            self.first_above = None;
            return (Some(frame), false);
        }
        let first_above = *self.first_above.get_or_insert(now + parameters.interval);
        (Some(frame), now >= first_above)
    }

    /// Drops come closer by the square root of their count (section 5.6).
    fn control_law(&self, since: Nanos, parameters: &Parameters) -> Nanos {
        const SCALE: u32 = 16;
        let root = (u64::from(self.count.max(1)) << (2 * SCALE)).isqrt();
        let step = (u128::from(parameters.interval.0) << SCALE) / u128::from(root);
        since + Nanos(u64::try_from(step).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    const MS: u64 = 1_000_000;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Packet(Nanos);

    impl Queued for Packet {
        fn since(&self) -> Nanos {
            self.0
        }
    }

    /// Packets of 1,500 bytes; those that CoDel signals are noted.
    #[derive(Default)]
    struct Plain {
        packets: VecDeque<Packet>,
        marks: bool,
        signalled: Vec<Packet>,
    }

    impl Queue for Plain {
        type Item = Packet;

        fn pop(&mut self) -> Option<Packet> {
            self.packets.pop_front()
        }

        fn backlog(&self) -> u32 {
            u32::try_from(self.packets.len()).unwrap() * 1_500
        }

        fn signal(&mut self, packet: Packet) -> Option<Packet> {
            self.signalled.push(packet);
            self.marks.then_some(packet)
        }
    }

    fn parameters() -> Parameters {
        Parameters::new(1_500, Nanos::from_millis(1))
    }

    /// A packet comes every 0.8 ms and one may go every millisecond, for so many
    /// of them. The times of signals, in milliseconds.
    fn overload(codel: &mut Codel, queue: &mut Plain, from: u64, millis: u64) -> Vec<u64> {
        let mut arrival = from * MS;
        let mut signals = Vec::new();
        for at in from..from + millis {
            while arrival <= at * MS {
                queue.packets.push_back(Packet(Nanos(arrival)));
                arrival += 4 * MS / 5;
            }
            let before = queue.signalled.len();
            codel.dequeue(queue, &parameters(), Nanos(at * MS)).unwrap();
            signals.extend(std::iter::repeat_n(at, queue.signalled.len() - before));
        }
        signals
    }

    #[test]
    fn a_target_is_five_milliseconds_or_a_frame_and_the_interval_twenty() {
        assert_eq!(parameters().target, Nanos::from_millis(5));
        assert_eq!(parameters().interval, Nanos::from_millis(100));
        let slow = Parameters::new(1_500, Nanos::from_millis(12));
        assert_eq!(slow.target, Nanos::from_millis(12));
        assert_eq!(slow.interval, Nanos::from_millis(240));
    }

    /// RFC 8289 section 5.6: the n-th drop comes interval / sqrt(n) after the
    /// one before.
    #[test]
    fn drops_come_closer_by_the_square_root_of_their_count() {
        let mut codel = Codel::default();
        let signals = overload(&mut codel, &mut Plain::default(), 0, 1_000);
        let first = signals[0];
        // The queue stands at 5 ms after 25 ms, and for 100 ms after that.
        assert!((120..=135).contains(&first), "{signals:?}");
        let mut expected = first as f64;
        for (i, at) in signals.iter().enumerate().skip(1) {
            expected += 100.0 / (i as f64).sqrt();
            assert!((*at as f64 - expected).abs() <= 1.0, "{i}: {at} {expected}");
        }
        assert!(signals.len() > 10);
    }

    #[test]
    fn a_burst_that_goes_within_an_interval_is_let_be() {
        let (mut codel, mut queue) = (Codel::default(), Plain::default());
        for round in 0..20u64 {
            let start = round * 200 * MS;
            queue.packets.extend([Packet(Nanos(start)); 60]);
            for i in 0..60 {
                let now = Nanos(start + i * MS);
                assert!(codel.dequeue(&mut queue, &parameters(), now).is_some());
            }
        }
        assert!(queue.signalled.is_empty());
    }

    #[test]
    fn a_queue_of_one_packet_is_let_be_however_long_it_waits() {
        let (mut codel, mut queue) = (Codel::default(), Plain::default());
        for i in 0..1_000u64 {
            queue.packets.push_back(Packet(Nanos(i * 100 * MS)));
            let now = Nanos((i + 1) * 100 * MS);
            assert!(codel.dequeue(&mut queue, &parameters(), now).is_some());
        }
        assert!(queue.signalled.is_empty());
    }

    #[test]
    fn marked_packets_go_on() {
        let (mut codel, mut queue) = (
            Codel::default(),
            Plain {
                marks: true,
                ..Plain::default()
            },
        );
        let marks = overload(&mut codel, &mut queue, 0, 500).len();
        let (mut other, mut dropping) = (Codel::default(), Plain::default());
        let drops = overload(&mut other, &mut dropping, 0, 500).len();
        assert!(marks >= drops && drops > 3, "{marks} marks, {drops} drops");
        let left = queue.packets.len();
        let arrived = left + 500;
        assert!(arrived >= 620, "none was lost: {arrived}");
    }

    /// Section 5.5: back in the dropping state soon, it resumes near the rate
    /// that it had, and anew after a long pause.
    #[test]
    fn resumes_where_it_was() {
        let (mut codel, mut queue) = (Codel::default(), Plain::default());
        overload(&mut codel, &mut queue, 0, 1_000);
        let before = codel.count;
        queue.packets.clear();
        assert!(
            codel
                .dequeue(&mut queue, &parameters(), Nanos(1_000 * MS))
                .is_none()
        );
        assert!(!codel.dropping);
        let mut paused = codel.clone();
        let soon = overload(&mut codel, &mut queue, 1_010, 132);
        assert!(
            !soon.is_empty() && codel.count + 3 > before - 1,
            "{before} {}",
            codel.count
        );
        queue.packets.clear();
        paused.dequeue(&mut queue, &parameters(), Nanos(1_000 * MS));
        overload(&mut paused, &mut queue, 10_000, 132);
        assert_eq!(paused.count, 1);
    }

    #[test]
    fn an_empty_queue_gives_nothing() {
        let (mut codel, mut queue) = (Codel::default(), Plain::default());
        assert_eq!(codel.dequeue(&mut queue, &parameters(), Nanos(0)), None);
    }
}
