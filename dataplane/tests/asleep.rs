//! How a worker is woken, in all orders that memory allows: loom tries them.

#[path = "../src/handoff/asleep.rs"]
mod asleep;

/// What the module has from the standard library in the daemon.
mod atomic {
    pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use asleep::Asleep;

/// A ring's index, a worker's sleep and its eventfd.
struct World {
    published: AtomicUsize,
    asleep: Asleep,
    wakeups: AtomicUsize,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            published: AtomicUsize::new(0),
            asleep: Asleep::new(),
            wakeups: AtomicUsize::new(0),
        })
    }

    fn hand_over(&self) {
        self.published.fetch_add(1, Ordering::Release);
        if self.asleep.is_to_be_woken() {
            self.wakeups.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether the worker finds work in its last look before it sleeps.
    fn lie_down(&self) -> bool {
        self.asleep.announce();
        self.published.load(Ordering::Acquire) > 0
    }
}

#[test]
fn what_is_handed_over_is_seen_or_wakes() {
    loom::model(|| {
        let world = World::new();
        let other = Arc::clone(&world);
        let writer = thread::spawn(move || other.hand_over());
        let saw = world.lie_down();
        writer.join().unwrap();
        let woken = world.wakeups.load(Ordering::Acquire);
        assert!(saw || woken == 1, "asleep with work before it");
    });
}

#[test]
fn one_of_several_wakes() {
    loom::model(|| {
        let world = World::new();
        let writers: Vec<_> = (0..2)
            .map(|_| {
                let other = Arc::clone(&world);
                thread::spawn(move || other.hand_over())
            })
            .collect();
        let saw = world.lie_down();
        for writer in writers {
            writer.join().unwrap();
        }
        let woken = world.wakeups.load(Ordering::Acquire);
        assert!(woken <= 1 && (saw || woken == 1), "{woken} wakeups");
    });
}

/// Between two sleeps it is awake: the second one is announced anew.
#[test]
fn each_sleep_is_told_of_its_own() {
    loom::model(|| {
        let world = World::new();
        let other = Arc::clone(&world);
        world.asleep.announce();
        world.asleep.end();
        let writer = thread::spawn(move || other.hand_over());
        let saw = world.lie_down();
        writer.join().unwrap();
        let woken = world.wakeups.load(Ordering::Acquire);
        assert!(saw || woken == 1, "asleep with work before it");
    });
}
