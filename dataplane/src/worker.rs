//! The worker: one thread that owns an [`Engine`], spins while there is
//! traffic and for a short time after, then sleeps in epoll.
//!
//! The loop is the one that was measured to be fastest. What decides: no
//! blocking within 50 us of the last frame (blocking costs 3 us a round trip),
//! the CPU given away after a bulk of frames (the receiver runs on it), a short
//! wait when batches are tiny and the rate is high (a wakeup for one frame
//! costs as much as for several).

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use sluice_control::{BusyPoll, Shaping};

use crate::counters::{NodeCounters, PortCounters};
use crate::cpus::{self, CpuError};
use crate::engine::Engine;
use crate::mappings::Mappings;
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::port::{Port, PortId, PortSpec};
use crate::sessions::{self, Listed, Session};
use crate::shaper::Shapers;
use crate::time::{Clock, Nanos};
use crate::xsk::{Closed, Doorbell, FramePool, Xsk, XskError};

/// Spinning after the last frame. 20 us is enough for back-to-back traffic,
/// 500 us brings nothing more (measured).
const SPIN: Nanos = Nanos::from_micros(50);

/// A busy worker asks epoll at least this often: for frames whose bell rang
/// before its bit was taken back.
const ASK_EPOLL: Nanos = Nanos::from_micros(50);

/// The nap while the kernel has not taken everything.
const RETRY: Duration = Duration::from_millis(1);

/// A turn of so many chunks is bulk, be it one jumbo frame: the CPU is given
/// away after it.
const BULK: usize = 8;

/// Giving the CPU away for longer than this starves the worker: a neighbour
/// spins too, and the kernel lets it.
const YIELD_AT_MOST: Nanos = Nanos::from_micros(200);

/// How long the worker then keeps the CPU before it tries again.
const KEEP_CPU: Nanos = Nanos::from_millis(10);

/// The window over which the rate is judged, and the frames in it that are
/// "high": half a million a second.
const RATE_WINDOW: Nanos = Nanos::from_micros(64);
const HIGH_RATE: usize = 32;

/// At a high rate, turns of less than bulk are followed by so long a wait.
const WAIT: Nanos = Nanos::from_micros(2);

/// Commands waiting for the worker; each sender waits for its answer, so more
/// than a few are never there.
const COMMANDS: usize = 64;

/// Sockets that one thread closes at the end.
const CLOSED_BY_ONE: usize = 8;

const WAKER: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// A frame that may go so soon is waited for: waking up takes as long.
const WAKING_UP: Nanos = Nanos::from_micros(30);

/// What a worker is started with.
#[derive(Debug)]
pub struct WorkerOptions {
    /// All the UMEM's chunks.
    pub pool: FramePool,
    /// The doorbell that the XDP program rings.
    pub doorbell: Doorbell,
    /// How to wait.
    pub busy_poll: BusyPoll,
    /// CPUs to run on; empty means any.
    pub cpus: Vec<u16>,
    /// Slots: the largest number of pod ports, and one for the host port.
    pub slots: u16,
    /// The MAC address of every port's near end.
    pub gateway_mac: [u8; 6],
    /// Whether checksums may leave partial, with a request to complete them.
    pub tx_metadata: bool,
}

/// Why the worker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("start the worker thread: {operation}: {cause}")]
    Start {
        /// What failed.
        operation: &'static str,
        /// Why.
        cause: io::Error,
    },
    /// It does not run on the CPUs that it should.
    #[error("start the worker thread: {0}")]
    Cpus(#[from] CpuError),
    /// Its thread has ended.
    #[error("the worker thread has ended; restart sluiced")]
    Gone,
    /// The slot is taken, or beyond the last.
    #[error("slot {0} of the worker is not free")]
    Slot(u16),
    /// epoll refused the socket.
    #[error("watch the socket of slot {slot} (epoll): {cause}")]
    Watch {
        /// The port's slot.
        slot: u16,
        /// What the kernel said.
        cause: io::Error,
    },
    /// A socket could not be opened.
    #[error(transparent)]
    Xsk(#[from] XskError),
}

/// A port's counters; or why it was not added, with what it was to be made of:
/// its socket closes with the one who asked, not on the worker.
type Added = Result<Arc<PortCounters>, (WorkerError, Box<PortSpec>)>;

/// Sessions to be copied out in one go. The memory is the asker's.
struct Page {
    /// Where to begin; afterwards where to go on, unless that was all.
    place: Option<u32>,
    sessions: Vec<Listed>,
}

/// As many places are looked at between two turns: some 50 us.
const PAGE: usize = 512;

/// What the control thread asks of the worker; applied between turns.
enum Command {
    Add(Box<PortSpec>, Sender<Added>),
    Remove(PortId, Sender<Option<Box<Port>>>),
    Reclaim(Closed, Sender<u32>),
    Map(Box<Mappings>, Sender<Mappings>),
    List(Page, Sender<Page>),
    Resume(Vec<Session>, Sender<usize>),
    Shape(Limits, Sender<Shapers>),
    Stop,
}

/// Other limits for a port, and the MTU that goes with them.
struct Limits {
    port: PortId,
    shapers: Shapers,
    mtu: u32,
}

/// The control thread's handle of the worker. Each call waits until the worker
/// has done what was asked.
#[derive(Debug)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    waker: Waker,
    counters: Arc<NodeCounters>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the worker's thread.
///
/// # Errors
/// The thread, its epoll instance or its CPU affinity could not be set up.
pub fn start(options: WorkerOptions) -> Result<WorkerHandle, WorkerError> {
    let failed = |operation| move |cause| WorkerError::Start { operation, cause };
    let poll = Poll::new().map_err(failed("epoll"))?;
    let waker = Waker::new(poll.registry(), WAKER).map_err(failed("eventfd"))?;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)
        .map_err(io::Error::from)
        .and_then(|timer| {
            let fd = timer.as_fd().as_raw_fd();
            let registry = poll.registry();
            registry.register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
            Ok(timer)
        })
        .map_err(failed("timerfd"))?;
    let (commands, receiver) = channel::bounded(COMMANDS);
    let umem = options.pool.umem();
    let pipeline = Pipeline::new(
        umem,
        PipelineOptions {
            gateway_mac: options.gateway_mac,
            tx_metadata: options.tx_metadata,
            slots: options.slots,
            sessions: sessions::CAPACITY,
        },
    );
    let engine = Engine::new(pipeline, options.pool, options.doorbell, options.slots);
    let counters = engine.counters().clone();
    let (ready, started) = channel::bounded(1);
    let worker = Worker {
        engine,
        clock: Clock::start(),
        commands: receiver,
        poll,
        timer,
        events: Events::with_capacity(usize::from(options.slots) + 2),
        always: options.busy_poll == BusyPoll::Always,
        pace: Pace::default(),
        stopped: false,
    };
    let cpus = options.cpus;
    let thread = thread::Builder::new()
        .name("worker".to_owned())
        .spawn(move || {
            let pinned = if cpus.is_empty() {
                Ok(())
            } else {
                cpus::pin(&cpus)
            };
            let is_pinned = pinned.is_ok();
            // Nobody waits any more: then there is nobody to work for.
            if ready.send(pinned).is_ok() && is_pinned {
                close(worker.run().into_sockets());
            }
        })
        .map_err(failed("spawn"))?;
    started.recv().map_err(|_| WorkerError::Gone)??;
    Ok(WorkerHandle {
        commands,
        waker,
        counters,
        thread: Some(thread),
    })
}

/// Closes sockets, many at a time: each waits for an RCU grace period, and
/// those who wait together wait for the same one. One after the other, 250
/// would take three seconds, in which the next daemon cannot start.
fn close(sockets: impl Iterator<Item = Xsk>) {
    let mut sockets: Vec<Xsk> = sockets.collect();
    thread::scope(|scope| {
        while !sockets.is_empty() {
            let some = sockets.split_off(sockets.len().saturating_sub(CLOSED_BY_ONE));
            // Without a thread to spare they are closed here.
            let _ = thread::Builder::new().spawn_scoped(scope, || drop(some));
        }
    });
}

impl WorkerHandle {
    /// Adds a port and fills its FILL ring: to be called before the socket
    /// goes into the XSKMAP.
    ///
    /// # Errors
    /// The slot is not free, or the worker is gone.
    pub fn add(&self, port: PortSpec) -> Result<Arc<PortCounters>, WorkerError> {
        let (answer, answered) = channel::bounded(1);
        self.send(Command::Add(Box::new(port), answer))?;
        answered
            .recv()
            .map_err(|_| WorkerError::Gone)?
            .map_err(|(error, _spec)| error)
    }

    /// Takes a port out of the tables, closes its socket, and has its chunks
    /// taken back. A success also if there is no such port.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn remove(&self, id: PortId) -> Result<(), WorkerError> {
        let (answer, answered) = channel::bounded(1);
        self.send(Command::Remove(id, answer))?;
        let Some(port) = answered.recv().map_err(|_| WorkerError::Gone)? else {
            return Ok(());
        };
        // Here and not on the worker: closing waits for an RCU grace period.
        let closed = port.xsk.close();
        let (answer, answered) = channel::bounded(1);
        self.send(Command::Reclaim(closed, answer))?;
        answered.recv().map_err(|_| WorkerError::Gone)?;
        Ok(())
    }

    /// Sets the mapped ports of the node.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn set_mappings(&self, mappings: Mappings) -> Result<(), WorkerError> {
        let (answer, answered) = channel::bounded(1);
        self.send(Command::Map(Box::new(mappings), answer))?;
        // The former ones are freed here and not on the worker.
        answered.recv().map_err(|_| WorkerError::Gone).map(drop)
    }

    /// Opens sessions of conversations that are under way, as far as there is
    /// room. Answers how many.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn resume(&self, sessions: Vec<Session>) -> Result<usize, WorkerError> {
        let (answer, answered) = channel::bounded(1);
        self.send(Command::Resume(sessions, answer))?;
        answered.recv().map_err(|_| WorkerError::Gone)
    }

    /// Changes what a port's traffic is held to, and the largest packet that goes
    /// with it, in bytes. A success also if there is no such port.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn set_shaping(
        &self,
        port: PortId,
        shaping: &Shaping,
        mtu: u32,
    ) -> Result<(), WorkerError> {
        let limits = Limits {
            port,
            shapers: Shapers::new(shaping, mtu),
            mtu,
        };
        let (answer, answered) = channel::bounded(1);
        self.send(Command::Shape(limits, answer))?;
        // The former ones are freed here and not on the worker.
        answered.recv().map_err(|_| WorkerError::Gone).map(drop)
    }

    /// All sessions, in no order. Those that come or go meanwhile may be in it.
    ///
    /// # Errors
    /// The worker is gone.
    pub fn sessions(&self) -> Result<Vec<Listed>, WorkerError> {
        let mut all = Vec::new();
        let mut place = Some(0);
        while place.is_some() {
            let sessions = Vec::with_capacity(PAGE);
            let (answer, answered) = channel::bounded(1);
            self.send(Command::List(Page { place, sessions }, answer))?;
            let page = answered.recv().map_err(|_| WorkerError::Gone)?;
            all.extend(page.sessions);
            place = page.place;
        }
        Ok(all)
    }

    /// The node-wide counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<NodeCounters> {
        &self.counters
    }

    /// Whether the thread still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.thread
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    fn send(&self, command: Command) -> Result<(), WorkerError> {
        self.commands.send(command).map_err(|_| WorkerError::Gone)?;
        self.waker.wake().map_err(|_| WorkerError::Gone)
    }
}

/// Stops the thread and waits for its end; its sockets close with it.
impl Drop for WorkerHandle {
    fn drop(&mut self) {
        // A thread that is gone needs no stopping.
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    engine: Engine,
    clock: Clock,
    commands: Receiver<Command>,
    poll: Poll,
    /// Wakes a sleeping worker for the shapers: mio rounds timeouts up to
    /// milliseconds.
    timer: TimerFd,
    events: Events,
    always: bool,
    pace: Pace,
    stopped: bool,
}

/// What the loop remembers to decide how to wait.
#[derive(Debug, Default)]
struct Pace {
    last_frame: Nanos,
    asked_epoll: Nanos,
    /// No yielding before this time.
    keep_cpu_until: Nanos,
    window_start: Nanos,
    window_frames: usize,
    is_rate_high: bool,
}

impl Pace {
    fn count(&mut self, frames: usize, now: Nanos) {
        self.window_frames += frames;
        let window = now - self.window_start;
        if window >= RATE_WINDOW {
            // A window that a sleep has stretched says nothing.
            let is_short = window < RATE_WINDOW + RATE_WINDOW;
            self.is_rate_high = is_short && self.window_frames >= HIGH_RATE;
            self.window_start = now;
            self.window_frames = 0;
        }
    }
}

impl Worker {
    /// Works until it is stopped.
    fn run(mut self) -> Engine {
        loop {
            let now = self.clock.now();
            self.apply_commands(now);
            if self.stopped {
                return self.engine;
            }
            let turn = self.engine.turn(now);
            self.pace.count(turn.frames, now);
            if turn.frames > 0 {
                self.pace.last_frame = now;
                self.make_way(turn.chunks, now);
                if now - self.pace.asked_epoll >= ASK_EPOLL {
                    self.ask_epoll(Some(Duration::ZERO), now);
                }
            } else if self.always
                || now - self.pace.last_frame < SPIN
                || turn.due.is_some_and(|due| due - now < WAKING_UP)
            {
                if now - self.pace.asked_epoll >= ASK_EPOLL {
                    self.ask_epoll(Some(Duration::ZERO), now);
                }
                std::hint::spin_loop();
            } else {
                self.engine.counters().sleeps.add(1);
                let limit = match turn.due {
                    Some(due) if !self.wake_at(due, now) => Some(RETRY),
                    _ => turn.pending.then_some(RETRY),
                };
                self.ask_epoll(limit, now);
            }
        }
    }

    /// After a turn with frames: after bulk the receiver needs this CPU; at a
    /// high rate in small turns, a few more frames are about to come.
    fn make_way(&mut self, chunks: usize, now: Nanos) {
        if chunks >= BULK {
            if now < self.pace.keep_cpu_until {
                return;
            }
            let before = self.clock.now();
            thread::yield_now();
            let after = self.clock.now();
            if after - before > YIELD_AT_MOST {
                self.pace.keep_cpu_until = after + KEEP_CPU;
            }
        } else if self.pace.is_rate_high {
            let start = self.clock.now();
            while self.clock.now() - start < WAIT {
                std::hint::spin_loop();
            }
        }
    }

    /// Asks which sockets have something, and waits for it if `timeout` says
    /// so (`None`: for as long as it takes).
    fn ask_epoll(&mut self, timeout: Option<Duration>, now: Nanos) {
        self.pace.asked_epoll = now;
        // An interrupted wait is a short one.
        let _ = self.poll.poll(&mut self.events, timeout);
        for event in &self.events {
            if let Ok(slot) = u16::try_from(event.token().0) {
                self.engine.activate(slot);
            }
        }
    }

    /// Sets the timer; false where the kernel refuses.
    fn wake_at(&self, due: Nanos, now: Nanos) -> bool {
        let after = Expiration::OneShot(Duration::from(due - now).into());
        self.timer.set(after, TimerSetTimeFlags::empty()).is_ok()
    }

    fn apply_commands(&mut self, now: Nanos) {
        while let Ok(command) = self.commands.try_recv() {
            // Those who asked wait for the answer; if they are gone, so be it.
            match command {
                Command::Add(spec, answer) => {
                    let _ = answer.send(self.add(spec, now));
                }
                Command::Remove(id, answer) => {
                    let port = self.engine.remove(id);
                    let socket = port.as_ref().map(|port| port.xsk.socket());
                    // Closing takes it out of epoll as well.
                    let _ = socket.unwrap_or_default().with_fd(|fd| {
                        let registry = self.poll.registry();
                        registry.deregister(&mut SourceFd(&fd))
                    });
                    let _ = answer.send(port);
                }
                Command::Reclaim(closed, answer) => {
                    let _ = answer.send(self.engine.reclaim(closed));
                }
                Command::Map(mappings, answer) => {
                    let _ = answer.send(self.engine.set_mappings(*mappings));
                }
                Command::List(mut page, answer) => {
                    let sessions = self.engine.sessions();
                    page.place = page
                        .place
                        .and_then(|from| sessions.list(from, &mut page.sessions, now));
                    let _ = answer.send(page);
                }
                Command::Resume(sessions, answer) => {
                    let _ = answer.send(self.engine.resume(&sessions, now));
                }
                Command::Shape(limits, answer) => {
                    let Limits { port, shapers, mtu } = limits;
                    let _ = answer.send(self.engine.set_shapers(port, shapers, mtu, now));
                }
                Command::Stop => self.stopped = true,
            }
        }
    }

    fn add(&mut self, spec: Box<PortSpec>, now: Nanos) -> Added {
        let slot = spec.id.slot;
        let watched = spec.xsk.socket().with_fd(|fd| {
            let registry = self.poll.registry();
            let token = Token(slot.into());
            registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
        });
        if let Some(Err(cause)) = watched {
            return Err((WorkerError::Watch { slot, cause }, spec));
        }
        match self.engine.add(*spec, now) {
            Ok(port) => Ok(port.counters.clone()),
            Err(spec) => Err((WorkerError::Slot(slot), spec)),
        }
    }
}
