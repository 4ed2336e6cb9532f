//! What is sent through a node, by plain sockets with their default settings.

mod echo;
mod first;
mod flood;
mod tcp;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use echo::{tcp_echo, udp_echo};
pub(crate) use first::first_packets;
pub(crate) use flood::{flood, flood_into_sink};
pub(crate) use tcp::streams;

use super::measure::{Measure, Values};
use crate::cores;
use crate::topology::{Space, TopologyError};

/// How long a socket waits before it looks whether the measurement is over.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long the first packet of a connection may take.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Who talks to whom, where, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Talk<'a> {
    pub(crate) client: &'a Space,
    pub(crate) server: &'a Space,
    /// What the client sends to.
    pub(crate) target: SocketAddr,
    /// Where the server listens.
    pub(crate) port: u16,
    pub(crate) sender_cpu: usize,
    pub(crate) receiver_cpu: usize,
    /// How long is measured, after a short time that is not.
    pub(crate) time: Duration,
}

impl Talk<'_> {
    fn any(&self) -> SocketAddr {
        (Ipv4Addr::UNSPECIFIED, self.port).into()
    }

    fn udp_server(&self) -> Result<UdpSocket, TopologyError> {
        let socket = self.server.run(|| UdpSocket::bind(self.any()))?;
        let socket = socket.and_then(|socket| {
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        });
        socket.map_err(|error| {
            TopologyError::refused("listen on UDP port", self.port.to_string(), error)
        })
    }

    fn udp_client(&self) -> Result<UdpSocket, TopologyError> {
        let connect = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(self.target)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        self.client
            .run(connect)?
            .map_err(|error| self.unreached(error))
    }

    /// A connection: the client's end and the server's.
    fn connection(&self) -> Result<(TcpStream, TcpStream), TopologyError> {
        let listen = || std::net::TcpListener::bind(self.any());
        let listener = self.server.run(listen)?.map_err(|error| {
            TopologyError::refused("listen on TCP port", self.port.to_string(), error)
        })?;
        let connect = || TcpStream::connect_timeout(&self.target, HANDSHAKE);
        let client = self.client.run(connect)?;
        let pair = client.and_then(|client| {
            let (server, _) = listener.accept()?;
            for end in [&client, &server] {
                end.set_read_timeout(Some(PATIENCE))?;
                end.set_write_timeout(Some(PATIENCE))?;
            }
            Ok((client, server))
        });
        pair.map_err(|error| self.unreached(error))
    }

    fn unreached(&self, error: io::Error) -> TopologyError {
        let from = self.client.name();
        TopologyError::refused("reach", format!("{} from {from}", self.target), error)
    }
}

/// What sender and receiver have done so far.
#[derive(Debug, Default)]
struct Progress {
    over: AtomicBool,
    /// On cache lines of their own.
    sent: Count,
    received: Count,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicU64);

impl Count {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Progress {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// What happened in the measured time.
#[derive(Debug, Clone, Copy)]
struct Meter {
    seconds: f64,
    sent: u64,
    received: u64,
    /// CPU time of the whole machine, seconds.
    busy: f64,
}

impl Meter {
    /// Lets the jobs run, each on its CPU, and measures in their midst. The
    /// first failure of a job counts.
    fn run(
        talk: &Talk<'_>,
        progress: &Progress,
        jobs: Vec<(usize, Box<dyn FnOnce() -> io::Result<()> + Send + '_>)>,
    ) -> Result<Self, TopologyError> {
        let failed = |error| TopologyError::refused("measure", talk.target.to_string(), error);
        thread::scope(|scope| {
            let mut threads = vec![];
            for (cpu, job) in jobs {
                let thread = thread::Builder::new().spawn_scoped(scope, move || {
                    cores::pin(cpu)?;
                    job()
                });
                match thread {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        progress.over.store(true, Ordering::Relaxed);
                        return Err(failed(error));
                    }
                }
            }
            thread::sleep(warm_up(talk.time));
            let start = Reading::take(progress);
            thread::sleep(talk.time);
            let end = Reading::take(progress);
            progress.over.store(true, Ordering::Relaxed);
            for thread in threads {
                let panicked = |_| Err(io::Error::other("a thread panicked"));
                thread.join().unwrap_or_else(panicked).map_err(failed)?;
            }
            Ok(end?.since(&start?))
        })
    }

    /// The values of a measurement that counts packets.
    fn packets(&self) -> Values {
        let received = per_second(self.received, self.seconds) / 1e6;
        let cores = self.busy / self.seconds;
        Values::from([
            (Measure::Received, received),
            (Measure::Sent, per_second(self.sent, self.seconds) / 1e6),
            (Measure::BusyCores, cores),
            (Measure::ReceivedPerCore, received / cores),
        ])
    }

    /// The values of a measurement that counts bytes.
    fn bytes(&self) -> Values {
        let gigabytes = per_second(self.received, self.seconds) / 1e9;
        let cores = self.busy / self.seconds;
        Values::from([
            (Measure::Throughput, gigabytes * 8.0),
            (Measure::BusyCores, cores),
            (Measure::CpuPerGigabyte, cores / gigabytes),
        ])
    }
}

/// Time for caches, buffers and TCP's windows to fill.
fn warm_up(time: Duration) -> Duration {
    (time / 5).clamp(Duration::from_millis(50), Duration::from_millis(200))
}

/// Counts below 2^53 are exact.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

struct Reading {
    at: Instant,
    sent: u64,
    received: u64,
    busy: f64,
}

impl Reading {
    fn take(progress: &Progress) -> Result<Self, TopologyError> {
        Ok(Self {
            busy: super::cpu::busy_seconds()?,
            at: Instant::now(),
            sent: progress.sent.get(),
            received: progress.received.get(),
        })
    }

    fn since(&self, start: &Self) -> Meter {
        Meter {
            seconds: (self.at - start.at).as_secs_f64(),
            sent: self.sent - start.sent,
            received: self.received - start.received,
            busy: self.busy - start.busy,
        }
    }
}

/// Whether a call ended only because its time was up.
fn is_patience(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
