//! The worker: one thread that owns an [`Engine`], spins while there is
//! traffic and for a short time after, then sleeps in epoll.
//!
//! The loop is the one that was measured to be fastest. What decides: no
//! blocking within 50 us of the last frame (blocking costs 3 us a round trip),
//! and the CPU given away after each turn with frames: who gets them may run on
//! it, and would wait until the worker stops spinning (60 us instead of 6.5).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{self, Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::counters::{NodeCounters, PortCounters};
use crate::cpus::{self, CpuError};
use crate::engine::Engine;
use crate::handoff::Sleeper;
use crate::mappings::Mappings;
use crate::next_hops::{NextHops, Uplink};
use crate::port::{Port, PortId, PortKind, PortSpec};
use crate::sessions::{Listed, Session};
use crate::shaper::Shapers;
use crate::time::{Clock, Nanos};
use crate::xsk::{Closed, Socket, XskError};

/// Spinning after the last frame. 20 us is enough for back-to-back traffic,
/// 500 us brings nothing more (measured).
const SPIN: Nanos = Nanos::from_micros(50);

/// A busy worker asks epoll at least this often: for frames whose bell rang
/// before its bit was taken back.
const ASK_EPOLL: Nanos = Nanos::from_micros(50);

/// The nap while the kernel has not taken everything.
const RETRY: Duration = Duration::from_millis(1);

/// Sockets that one look at epoll names; others the next one does.
const EVENTS: usize = 256;

/// Giving the CPU away for longer than this starves the worker: a neighbour
/// spins too, and the kernel lets it.
const YIELD_AT_MOST: Nanos = Nanos::from_micros(200);

/// How long the worker then keeps the CPU before it tries again.
const KEEP_CPU: Nanos = Nanos::from_millis(10);

/// Commands waiting for the worker; each sender waits for its answer, so more
/// than a few are never there.
const COMMANDS: usize = 64;

/// The eventfd's token, no port's slot.
pub(crate) const WAKER: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// A frame that may go so soon is waited for: waking up takes as long.
const WAKING_UP: Nanos = Nanos::from_micros(30);

/// What a worker is started with.
#[derive(Debug)]
pub(crate) struct WorkerOptions {
    /// Its thread's name.
    pub(crate) name: String,
    pub(crate) engine: Engine,
    /// What it sleeps in; `sleeper` wakes it.
    pub(crate) poll: Poll,
    pub(crate) sleeper: Arc<Sleeper>,
    /// Whether it never sleeps.
    pub(crate) always: bool,
    /// CPUs to run on; empty means any.
    pub(crate) cpus: Vec<u16>,
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
    Learn(PortId, PortKind, Arc<[IpAddr]>, Sender<()>),
    Forget(PortId, Sender<()>),
    Remove(PortId, Sender<Option<Box<Port>>>),
    Reclaim(Closed, Sender<u32>),
    Map(Arc<Mappings>, Sender<Arc<Mappings>>),
    Uplink(Box<Uplink>, Sender<NextHops>),
    List(Page, Sender<Page>),
    Resume(Vec<Session>, Sender<usize>),
    Shape(Limits, Sender<Shapers>),
    Stop,
}

/// Other limits for a port, and the MTU that goes with them.
pub(crate) struct Limits {
    pub(crate) port: PortId,
    pub(crate) shapers: Shapers,
    pub(crate) mtu: u32,
}

/// The control thread's handle of a worker. Each call waits until the worker
/// has done what was asked.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    commands: Sender<Command>,
    sleeper: Arc<Sleeper>,
    counters: Arc<NodeCounters>,
    thread: JoinHandle<Engine>,
}

/// Starts a worker's thread.
///
/// # Errors
/// The thread, its timer or its CPU affinity could not be set up.
pub(crate) fn start(options: WorkerOptions) -> Result<WorkerHandle, WorkerError> {
    let failed = |operation| move |cause| WorkerError::Start { operation, cause };
    let timer = timer(&options.poll).map_err(failed("timerfd"))?;
    let (commands, receiver) = channel::bounded(COMMANDS);
    let counters = options.engine.counters().clone();
    let (ready, started) = channel::bounded(1);
    let sleeper = options.sleeper;
    let worker = Worker {
        engine: options.engine,
        clock: Clock::start(),
        commands: receiver,
        poll: options.poll,
        timer,
        sleeper: Arc::clone(&sleeper),
        events: Events::with_capacity(EVENTS),
        always: options.always,
        pace: Pace::default(),
        stopped: false,
    };
    let cpus = options.cpus;
    let thread = thread::Builder::new()
        .name(options.name)
        .spawn(move || {
            let pinned = if cpus.is_empty() {
                Ok(())
            } else {
                cpus::pin(&cpus)
            };
            let is_pinned = pinned.is_ok();
            // Nobody waits any more: then there is nobody to work for.
            if ready.send(pinned).is_ok() && is_pinned {
                worker.run()
            } else {
                worker.engine
            }
        })
        .map_err(failed("spawn"))?;
    started.recv().map_err(|_| WorkerError::Gone)??;
    Ok(WorkerHandle {
        commands,
        sleeper,
        counters,
        thread,
    })
}

/// Wakes a sleeper for the shapers.
fn timer(poll: &Poll) -> io::Result<TimerFd> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?;
    let fd = timer.as_fd().as_raw_fd();
    let registry = poll.registry();
    registry.register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
    Ok(timer)
}

/// Every call fails if the worker is gone.
impl WorkerHandle {
    /// Adds a port; fails also where its slot is not free.
    pub(crate) fn add(&self, port: PortSpec) -> Result<Arc<PortCounters>, WorkerError> {
        self.ask(|answer| Command::Add(Box::new(port), answer))?
            .map_err(|(error, _spec)| error)
    }

    /// Sets what it knows of the uplink; gives the former next hops.
    pub(crate) fn set_uplink(&self, uplink: Uplink) -> Result<NextHops, WorkerError> {
        self.ask(|answer| Command::Uplink(Box::new(uplink), answer))
    }

    /// Has it know another worker's port.
    pub(crate) fn learn(
        &self,
        id: PortId,
        kind: PortKind,
        addresses: Arc<[IpAddr]>,
    ) -> Result<(), WorkerError> {
        self.ask(|answer| Command::Learn(id, kind, addresses, answer))
    }

    /// Has it send nothing more to another worker's port.
    pub(crate) fn forget(&self, id: PortId) -> Result<(), WorkerError> {
        self.ask(|answer| Command::Forget(id, answer))
    }

    /// Takes a port out of its tables, if it is there.
    pub(crate) fn remove(&self, id: PortId) -> Result<Option<Box<Port>>, WorkerError> {
        self.ask(|answer| Command::Remove(id, answer))
    }

    /// Has it take back a closed socket's chunks.
    pub(crate) fn reclaim(&self, closed: Closed) -> Result<(), WorkerError> {
        self.ask(|answer| Command::Reclaim(closed, answer))
            .map(|_chunks| ())
    }

    /// Sets the mapped ports of the node; gives the former ones.
    pub(crate) fn set_mappings(
        &self,
        mappings: Arc<Mappings>,
    ) -> Result<Arc<Mappings>, WorkerError> {
        self.ask(|answer| Command::Map(mappings, answer))
    }

    /// Opens sessions, as far as there is room; answers how many.
    pub(crate) fn resume(&self, sessions: Vec<Session>) -> Result<usize, WorkerError> {
        self.ask(|answer| Command::Resume(sessions, answer))
    }

    /// Changes what a port's traffic is held to; gives the former shapers.
    pub(crate) fn set_shapers(&self, limits: Limits) -> Result<Shapers, WorkerError> {
        self.ask(|answer| Command::Shape(limits, answer))
    }

    /// Copies all sessions out.
    pub(crate) fn list_sessions(&self, all: &mut Vec<Listed>) -> Result<(), WorkerError> {
        let mut place = Some(0);
        while place.is_some() {
            let sessions = Vec::with_capacity(PAGE);
            let page = self.ask(|answer| Command::List(Page { place, sessions }, answer))?;
            all.extend(page.sessions);
            place = page.place;
        }
        Ok(())
    }

    /// What it counts for the node.
    pub(crate) fn counters(&self) -> &NodeCounters {
        &self.counters
    }

    /// Whether the thread still runs.
    pub(crate) fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Has the thread end.
    pub(crate) fn stop(&self) {
        // One that is gone needs no stopping.
        let _ = self.send(Command::Stop);
    }

    /// Waits for the end of the thread, and takes over what it had; nothing if it
    /// panicked.
    pub(crate) fn join(self) -> Option<Engine> {
        self.thread.join().ok()
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, WorkerError> {
        let (answer, answered) = channel::bounded(1);
        self.send(command(answer))?;
        answered.recv().map_err(|_| WorkerError::Gone)
    }

    fn send(&self, command: Command) -> Result<(), WorkerError> {
        self.commands.send(command).map_err(|_| WorkerError::Gone)?;
        self.sleeper.wake().map_err(|_| WorkerError::Gone)
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
    sleeper: Arc<Sleeper>,
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
            if turn.rewatch {
                let poll = &self.poll;
                self.engine.change_watches(|slot, socket, is_on| {
                    watch(poll.registry(), slot, &socket, is_on)
                });
            }
            if turn.frames > 0 {
                self.pace.last_frame = now;
                self.make_way(now);
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
                let poll = &self.poll;
                let all_watched = self
                    .engine
                    .watch_all(|slot, socket, is_on| watch(poll.registry(), slot, &socket, is_on));
                let limit = match turn.due {
                    Some(due) if !self.wake_at(due, now) => Some(RETRY),
                    _ => (turn.pending || !all_watched).then_some(RETRY),
                };
                self.sleep(limit, now);
            }
        }
    }

    /// Sleeps until a socket, a command or another worker has something, or for
    /// `timeout`.
    fn sleep(&mut self, timeout: Option<Duration>, now: Nanos) {
        self.sleeper.lie_down();
        // What was handed over before wakes nobody.
        if !self.engine.has_incoming() {
            self.engine.counters().sleeps.add(1);
            self.ask_epoll(timeout, now);
        }
        self.sleeper.get_up();
    }

    /// After a turn with frames: their receiver may need this CPU.
    fn make_way(&mut self, now: Nanos) {
        if now < self.pace.keep_cpu_until {
            return;
        }
        let before = self.clock.now();
        thread::yield_now();
        let after = self.clock.now();
        if after - before > YIELD_AT_MOST {
            self.pace.keep_cpu_until = after + KEEP_CPU;
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
                Command::Learn(id, kind, addresses, answer) => {
                    self.engine.learn(id, kind, &addresses);
                    let _ = answer.send(());
                }
                Command::Forget(id, answer) => {
                    self.engine.forget(id);
                    let _ = answer.send(());
                }
                Command::Remove(id, answer) => {
                    let port = self.engine.remove(id);
                    let socket = port.as_ref().map(|port| port.xsk.socket());
                    // Closing takes it out of epoll as well.
                    let _ = watch(
                        self.poll.registry(),
                        id.slot,
                        &socket.unwrap_or_default(),
                        false,
                    );
                    let _ = answer.send(port);
                }
                Command::Reclaim(closed, answer) => {
                    let _ = answer.send(self.engine.reclaim(closed));
                }
                Command::Map(mappings, answer) => {
                    let _ = answer.send(self.engine.set_mappings(mappings));
                }
                Command::Uplink(uplink, answer) => {
                    let _ = answer.send(self.engine.set_uplink(*uplink));
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
        if let Err(cause) = watch(self.poll.registry(), slot, &spec.xsk.socket(), true) {
            return Err((WorkerError::Watch { slot, cause }, spec));
        }
        match self.engine.add(*spec, now) {
            Ok(port) => Ok(port.counters.clone()),
            Err(spec) => Err((WorkerError::Slot(slot), spec)),
        }
    }
}

/// Has epoll watch a socket, or no more. Over the in-memory kernel, whose sockets
/// wake nobody, there is nothing to do.
fn watch(registry: &Registry, slot: u16, socket: &Socket, is_on: bool) -> io::Result<()> {
    let set = |fd| {
        let mut source = SourceFd(&fd);
        if is_on {
            registry.register(&mut source, Token(slot.into()), Interest::READABLE)
        } else {
            registry.deregister(&mut source)
        }
    };
    socket.with_fd(set).unwrap_or(Ok(()))
}
