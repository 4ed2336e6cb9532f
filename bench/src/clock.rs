//! The clock of a measurement: CLOCK_MONOTONIC, which all namespaces share.

use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Longer waits than this are slept through, the rest is spun: a sleep may end
/// this much late.
const SLEEP_ERROR: u64 = 60_000;

/// Nanoseconds in a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Now, in nanoseconds since the machine started.
pub(crate) fn now() -> u64 {
    // The clock is there on every Linux, and never negative.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        u64::try_from(now.tv_sec()).unwrap_or(0) * SECOND
            + u64::try_from(now.tv_nsec()).unwrap_or(0)
    })
}

/// Comes back some time before `then`, not after it: the caller spins the rest.
pub(crate) fn doze_until(then: u64) {
    let left = then.saturating_sub(now());
    if left > SLEEP_ERROR {
        thread::sleep(Duration::from_nanos(left - SLEEP_ERROR));
    } else {
        std::hint::spin_loop();
    }
}

/// A number of nanoseconds in seconds.
pub(crate) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
