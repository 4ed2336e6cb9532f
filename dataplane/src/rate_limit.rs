//! How many ICMP errors a port may cause (RFC 1812 section 4.3.2.8, RFC 4443
//! section 2.4(f): a router must limit them).

use crate::time::Nanos;

/// One more every 10 ms: 100 a second.
const INTERVAL: Nanos = Nanos::from_millis(10);

/// As many at once after a pause: a traceroute of 3 probes over 17 hops.
const BURST: u64 = 50;

/// A bucket of permits to send an ICMP error.
#[derive(Debug, Clone)]
pub(crate) struct IcmpLimit {
    permits: u64,
    /// When the last permit was added; the remainder is carried.
    updated: Nanos,
}

impl IcmpLimit {
    /// A full bucket.
    #[must_use]
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            permits: BURST,
            updated: now,
        }
    }

    /// Takes a permit, if there is one.
    pub(crate) fn take(&mut self, now: Nanos) -> bool {
        let earned = (now - self.updated).0 / INTERVAL.0;
        self.updated = self.updated + Nanos(earned * INTERVAL.0);
        self.permits = (self.permits + earned).min(BURST);
        if self.permits == 0 {
            return false;
        }
        self.permits -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_hundred_a_second() {
        let mut limit = IcmpLimit::new(Nanos(0));
        let taken = (0..1000).filter(|_| limit.take(Nanos(0))).count();
        assert_eq!(taken, 50);
        let asked = (0..10_000u64).map(|i| Nanos(i * 1_000_000));
        let taken = asked.filter(|now| limit.take(*now)).count();
        assert_eq!(taken, 999, "10 s, the first permit after 10 ms");
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_is_harmless() {
        let mut limit = IcmpLimit::new(Nanos::from_millis(1000));
        while limit.take(Nanos::from_millis(1000)) {}
        assert!(!limit.take(Nanos(0)));
        assert!(limit.take(Nanos::from_millis(1010)));
    }
}
