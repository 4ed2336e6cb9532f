//! Whether a worker sleeps, told to those who have work for it.
//!
//! Both sides first say what they do and then look at what the other has said,
//! with a fence in between: either the sleeper sees the work, or the other sees
//! that it sleeps (the store buffering pattern). `tests/asleep.rs` has loom try
//! all orders.

use super::atomic::{AtomicBool, Ordering, fence};

/// Set from before a worker's last look for work until it is awake.
#[derive(Debug)]
pub(super) struct Asleep(AtomicBool);

impl Asleep {
    /// Of one that is awake.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Says that the worker is about to sleep: it must look for work after this.
    pub(super) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Says that it is awake.
    pub(super) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// To be called after work was published: whether the caller is to wake it.
    /// One of several callers is.
    #[must_use]
    pub(super) fn is_to_be_woken(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
