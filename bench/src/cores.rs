//! CPUs: who runs where, and how far two of them are from each other.

use std::hint;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Round trips of one measurement.
const ROUNDS: u32 = 2000;
/// Measurements, the median of which counts: one may be interrupted.
const REPEATS: u32 = 5;

/// Lets the calling thread run on one CPU only.
///
/// # Errors
/// The CPU is not there, or not for this process.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .map_err(|errno| io::Error::other(format!("run on CPU {cpu}: {errno}")))
}

/// How long a cache line takes from one CPU to the other and back, in
/// nanoseconds: on shared machines it changes with where the host runs them.
///
/// # Errors
/// As [`pin`], or there is no thread to be had.
pub(crate) fn round_trip(cpus: [usize; 2]) -> io::Result<f64> {
    let line = Line::default();
    thread::scope(|scope| {
        let other = thread::Builder::new().spawn_scoped(scope, || {
            pin(cpus[1]).inspect_err(|_| line.give_up())?;
            line.answer();
            io::Result::Ok(())
        })?;
        let asked = thread::Builder::new().spawn_scoped(scope, || {
            pin(cpus[0]).inspect_err(|_| line.give_up())?;
            Ok(line.ask())
        });
        let asked = match asked {
            Ok(asked) => joined(asked),
            Err(error) => {
                line.give_up();
                Err(error)
            }
        };
        joined(other)?;
        asked
    })
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    let panicked = |_| Err(io::Error::other("the thread panicked"));
    thread.join().unwrap_or_else(panicked)
}

/// A counter alone on its cache line. The asker makes it odd, the other side even.
#[derive(Default)]
#[repr(align(128))]
struct Line {
    count: AtomicU32,
    /// Only ever written if a side cannot go on.
    given_up: Apart,
}

#[derive(Default)]
#[repr(align(128))]
struct Apart(AtomicBool);

impl Line {
    fn give_up(&self) {
        self.given_up.0.store(true, Ordering::Relaxed);
    }

    fn ask(&self) -> f64 {
        let mut next = 0;
        let mut times = [0.0; REPEATS as usize];
        for time in &mut times {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                self.count.store(next + 1, Ordering::Release);
                next += 2;
                if !self.wait_for(next) {
                    return f64::NAN;
                }
            }
            *time = start.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS);
        }
        crate::stats::median(&times).unwrap_or(f64::NAN)
    }

    fn answer(&self) {
        for count in (1..).step_by(2).take((ROUNDS * REPEATS) as usize) {
            if !self.wait_for(count) {
                return;
            }
            self.count.store(count + 1, Ordering::Release);
        }
    }

    /// Whether the count came, or the other side gave up.
    fn wait_for(&self, count: u32) -> bool {
        loop {
            if self.count.load(Ordering::Acquire) == count {
                return true;
            }
            if self.given_up.0.load(Ordering::Relaxed) {
                return false;
            }
            hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        let error = round_trip([0, 1023]).unwrap_err().to_string();
        assert!(error.contains("CPU 1023"), "{error}");
    }

    #[test]
    fn a_round_trip_takes_time() {
        let time = round_trip([0, 1]).unwrap();
        assert!(time > 1.0, "{time}");
    }
}
