//! Whether epoll has to watch a port's socket.
//!
//! The kernel tells a watched socket's epoll of each frame that comes, and of
//! each that has left: under locks and with interrupts off, on the sender's CPU
//! and on the worker's, a tenth of what a small frame takes there. A worker that
//! looks at the rings anyway needs none of that. So a busy port's socket is
//! watched no more until it is less busy, or the worker sleeps.

use crate::time::Nanos;

/// Over which time a port is judged. Changing costs some 2 us.
const WINDOW: Nanos = Nanos::from_millis(1);

/// So many frames a window, both ways together, are busy: a hundred thousand a
/// second.
const BUSY: u64 = 100;

/// How busy a port is, and whether its socket is watched.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The socket is in epoll.
    pub(crate) is_on: bool,
    frames: u64,
    since: Nanos,
}

impl Watch {
    /// That of a socket which is watched.
    pub(crate) fn new(now: Nanos) -> Self {
        Self {
            is_on: true,
            frames: 0,
            since: now,
        }
    }

    /// Takes note of frames that came or went.
    #[inline]
    pub(crate) fn count(&mut self, frames: usize) {
        self.frames += frames as u64;
    }

    /// Whether it should be otherwise than it is. Judges once a window.
    #[inline]
    pub(crate) fn is_to_change(&mut self, now: Nanos) -> bool {
        let window = now - self.since;
        if window < WINDOW {
            return false;
        }
        // A longer one, after a sleep, takes as many more.
        let is_busy = self.frames * WINDOW.0 >= BUSY.saturating_mul(window.0);
        self.frames = 0;
        self.since = now;
        is_busy == self.is_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a change is wanted after so many frames over so long.
    fn after(is_on: bool, frames: usize, window: Nanos) -> bool {
        let mut watch = Watch {
            is_on,
            ..Watch::new(Nanos(0))
        };
        watch.count(frames);
        watch.is_to_change(window)
    }

    #[test]
    fn the_busy_are_not_watched_and_the_others_are() {
        assert!(after(true, 100, WINDOW));
        assert!(!after(true, 99, WINDOW));
        assert!(!after(false, 100, WINDOW));
        assert!(after(false, 99, WINDOW));
        assert!(after(false, 0, WINDOW));
    }

    #[test]
    fn nothing_changes_within_a_window() {
        let just_before = Nanos(WINDOW.0 - 1);
        assert!(!after(true, 1000, just_before));
        assert!(!after(false, 0, just_before));
    }

    #[test]
    fn a_sleep_makes_nobody_busy() {
        let long = Nanos::from_millis(10_000);
        assert!(!after(true, 1000, long));
        assert!(after(false, 1000, long));
        assert!(!after(true, 0, Nanos(u64::MAX)));
    }

    #[test]
    fn each_window_begins_anew() {
        let mut watch = Watch::new(Nanos(0));
        watch.count(1000);
        assert!(watch.is_to_change(WINDOW));
        watch.is_on = false;
        assert!(watch.is_to_change(WINDOW + WINDOW));
    }
}
