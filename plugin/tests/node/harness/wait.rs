//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

/// How long anything may take. A test that passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `found` gives something; fails with `what` if it never does.
#[track_caller]
pub(crate) fn wait_until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
