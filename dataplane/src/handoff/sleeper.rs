//! A worker as those see it who may have to wake it.

use std::io;

use crossbeam::utils::CachePadded;
use mio::Waker;

use super::asleep::Asleep;

/// A worker's sleep, and the eventfd that ends it.
#[derive(Debug)]
pub struct Sleeper {
    /// Read with every batch, seldom written.
    asleep: CachePadded<Asleep>,
    /// `None`: it never sleeps.
    waker: Option<Waker>,
}

impl Sleeper {
    /// A worker that sleeps on what `waker` wakes.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self {
            asleep: CachePadded::new(Asleep::new()),
            waker: Some(waker),
        }
    }

    /// An engine without a thread.
    #[must_use]
    pub fn restless() -> Self {
        Self {
            asleep: CachePadded::new(Asleep::new()),
            waker: None,
        }
    }

    /// Wakes it, whether it sleeps or not.
    ///
    /// # Errors
    /// What the kernel says of the eventfd.
    pub fn wake(&self) -> io::Result<()> {
        self.waker.as_ref().map_or(Ok(()), Waker::wake)
    }

    /// Says that it is about to sleep: it must look for work after this.
    pub(crate) fn lie_down(&self) {
        self.asleep.announce();
    }

    /// Says that it is awake.
    pub(crate) fn get_up(&self) {
        self.asleep.end();
    }

    /// Wakes it for what was published, if it sleeps.
    pub(super) fn alert(&self) {
        if self.asleep.is_to_be_woken() {
            // An eventfd in place is not refused.
            let _ = self.wake();
        }
    }
}
