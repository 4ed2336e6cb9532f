//! A trial: a generator in one namespace, a sink in another, and what came
//! through between them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use sluice_link::Netns;

use super::send::{SendSpec, Sent, send};
use super::sink::{Received, SinkSpec, Watch, receive};
use crate::error::BenchError;

/// How often who watches is told how far it is.
const TICK: Duration = Duration::from_millis(100);

/// Where a generator or a sink runs.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Place {
    /// The network namespace's file; the calling thread's if `None`.
    pub(crate) netns: Option<PathBuf>,
    /// The CPU; any if `None`.
    pub(crate) cpu: Option<u16>,
}

impl Place {
    /// Runs `job` there, on a thread of its own.
    ///
    /// # Errors
    /// There is no such namespace or CPU.
    pub(crate) fn run<T: Send>(
        &self,
        job: impl FnOnce() -> Result<T, BenchError> + Send,
    ) -> Result<T, BenchError> {
        let netns = match &self.netns {
            Some(path) => Netns::open(path)?,
            None => Netns::current()?,
        };
        netns.run(|| {
            if let Some(cpu) = self.cpu {
                pin(cpu)?;
            }
            job()
        })?
    }
}

/// A namespace by its name below `/run/netns`, or by its path.
pub(crate) fn netns_path(text: &str) -> PathBuf {
    if text.contains('/') {
        text.into()
    } else {
        Path::new("/run/netns").join(text)
    }
}

/// What a trial does.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Trial {
    /// Where the generator runs.
    pub(crate) from: Place,
    /// What it sends.
    pub(crate) send: SendSpec,
    /// Where the sink runs.
    pub(crate) to: Place,
    /// What it takes.
    pub(crate) sink: SinkSpec,
    /// How long to wait for what is still on its way, in seconds.
    pub(crate) drain: f64,
}

/// What a trial showed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// What was sent.
    pub(crate) sent: Sent,
    /// What arrived.
    pub(crate) received: Received,
    /// Packets that did not arrive, not even corrupted.
    pub(crate) lost: u64,
}

impl Outcome {
    /// Lost packets of those sent, from 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        self.lost as f64 / self.sent.packets.max(1) as f64
    }
}

/// Packets so far, of a trial that runs.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

impl Trial {
    /// Carries it out. `tick` is called ten times a second while it runs.
    ///
    /// # Errors
    /// The generator or the sink could not do its part.
    pub(crate) fn run(&self, mut tick: impl FnMut(&Progress)) -> Result<Outcome, BenchError> {
        let progress = Progress::default();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (ready, is_ready) = mpsc::channel();
            let sink = scope.spawn(|| {
                // Moved in, so that the channel closes when the sink fails.
                let ready = ready;
                self.to.run(|| {
                    let mut watch = Watch {
                        // Who is not there any more need not know.
                        ready: &mut || _ = ready.send(()),
                        stop: &stop,
                        progress: &progress.received,
                    };
                    receive(&self.sink, &mut watch)
                })
            });
            let sent = if is_ready.recv().is_ok() {
                let sender = scope.spawn(|| self.from.run(|| send(&self.send, &progress.sent)));
                while !sender.is_finished() {
                    thread::sleep(TICK);
                    tick(&progress);
                }
                let sent = joined(sender);
                if sent.is_ok() {
                    thread::sleep(Duration::from_secs_f64(self.drain));
                }
                Some(sent)
            } else {
                None
            };
            stop.store(true, Ordering::Relaxed);
            let received = joined(sink)?;
            let sent = sent.unwrap_or_else(|| {
                Err(BenchError::Refused("the sink ended before it began".into()))
            })?;
            let arrived = received.packets + received.corrupted.unwrap_or(0);
            Ok(Outcome {
                lost: sent.packets.saturating_sub(arrived),
                sent,
                received,
            })
        })
    }
}

/// What a thread returned; a panic of it goes on here.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Lets the calling thread run on one CPU only.
fn pin(cpu: u16) -> Result<(), BenchError> {
    let mut set = CpuSet::new();
    set.set(cpu.into())
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(BenchError::system("run on CPU", cpu.to_string()))
}
