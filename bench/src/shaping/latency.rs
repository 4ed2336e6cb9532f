//! A ping beside bulk transfers that fill the same limit.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::traffic::float;
use super::{DESIGNS, Direction, MBIT, Plan, in_words, limit, name, section};
use crate::clock::{self, SECOND};
use crate::compare::{Measure, Talk, streams};
use crate::stats::percentile;
use crate::topology::{Bed, POD_PORT, TopologyError, interrupt};

const RATES: [u64; 2] = [10 * MBIT, 100 * MBIT];
const FLOWS: [u16; 2] = [1, 8];
/// Each design has its turn so often.
const ROUNDS: u32 = 3;
/// Of pings.
const PAUSE: u64 = SECOND / 100;
const PING_PORT: u16 = POD_PORT + 1000;
/// Bulk is at its rate by then, and later answers count as lost.
const SETTLED: Duration = Duration::from_secs(1);

const HEADS: [&str; 10] = [
    "rate",
    "direction",
    "TCP flows",
    "",
    "p50, ms",
    "p99, ms",
    "most, ms",
    "lost",
    "pings",
    "TCP, Mbit/s",
];

const TEXT: &str = "A UDP ping of 8 bytes, 100 a second, to a pod whose ingress or egress is \
    filled by bulk TCP: round trips between two processes. The two take turns, three each. The \
    goal: p99 under 10 ms, and a third of the reference's at most.";

/// A section of the report.
///
/// # Errors
/// A node could not be set up, or sockets were refused.
pub(super) fn measure(plan: &Plan) -> Result<String, TopologyError> {
    let mut rows = vec![];
    for direction in Direction::ALL {
        for rate in RATES {
            for flows in FLOWS {
                let beds = plan.beds(direction, limit(rate))?;
                let mut found = [Pings::default(), Pings::default()];
                for _ in 0..ROUNDS {
                    for (found, bed) in found.iter_mut().zip(&beds) {
                        interrupt::check()?;
                        found.add(beside_bulk(plan, bed, direction, flows)?);
                    }
                }
                for (design, pings) in DESIGNS.iter().zip(&found) {
                    let mut row = vec![
                        in_words(rate),
                        direction.name().into(),
                        flows.to_string(),
                        name(*design).into(),
                    ];
                    row.extend(pings.figures());
                    eprintln!("{}", row.join("  "));
                    rows.push(row);
                }
            }
        }
    }
    Ok(section("A ping beside bulk", TEXT, &HEADS, &rows))
}

/// What became of pings.
#[derive(Debug, Default)]
struct Pings {
    sent: u64,
    /// Milliseconds.
    times: Vec<f64>,
    /// Of bulk beside them, Gbit/s, each round.
    bulk: Vec<f64>,
}

impl Pings {
    fn add(&mut self, more: Self) {
        self.sent += more.sent;
        self.times.extend(more.times);
        self.bulk.extend(more.bulk);
    }

    fn figures(&self) -> [String; 6] {
        let percent = |percent| {
            let time = percentile(&self.times, percent);
            time.map_or("–".into(), |time| format!("{time:.2}"))
        };
        let bulk = self.bulk.iter().sum::<f64>() / float(self.bulk.len() as u64);
        [
            percent(50),
            percent(99),
            percent(100),
            (self.sent - self.times.len() as u64).to_string(),
            self.sent.to_string(),
            format!("{:.1}", bulk * 1000.0),
        ]
    }
}

fn beside_bulk(
    plan: &Plan,
    bed: &Bed,
    direction: Direction,
    flows: u16,
) -> Result<Pings, TopologyError> {
    let [from, to] = direction.ends(bed);
    let time = plan.time / 2;
    let talk = Talk {
        client: &from.space,
        server: &to.space,
        target: (to.address, POD_PORT).into(),
        port: POD_PORT,
        sender_cpu: plan.sender_cpu,
        receiver_cpu: plan.receiver_cpu,
        time: time + 2 * SETTLED,
    };
    let (bulk, pings) = thread::scope(|scope| {
        let bulk = scope.spawn(|| streams(&talk, flows));
        thread::sleep(SETTLED);
        let pings = ping(bed, time);
        (bulk.join(), pings)
    });
    let panicked = |_| {
        let error = io::Error::other("a thread panicked");
        Err(TopologyError::refused(
            "send to",
            talk.target.to_string(),
            error,
        ))
    };
    let mut pings = pings?;
    let bulk = bulk.unwrap_or_else(panicked)?;
    pings.bulk.extend(bulk.get(&Measure::Throughput));
    Ok(pings)
}

/// From the client to the server, whichever is limited.
fn ping(bed: &Bed, time: Duration) -> Result<Pings, TopologyError> {
    let target = (bed.server.address, PING_PORT);
    let failed = |error| TopologyError::refused("ping", bed.server.address.to_string(), error);
    let open = |port| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        io::Result::Ok(socket)
    };
    let server = bed.server.space.run(|| open(PING_PORT))?.map_err(failed)?;
    let client = bed.client.space.run(|| open(0))?.map_err(failed)?;
    client.connect(target).map_err(failed)?;
    let is_over = AtomicBool::new(false);
    let (sent, times) = thread::scope(|scope| {
        scope.spawn(|| answer(&server, &is_over));
        let hearing = scope.spawn(|| hear(&client, &is_over));
        let sent = ask(&client, time);
        thread::sleep(SETTLED);
        is_over.store(true, Ordering::Relaxed);
        (sent, hearing.join())
    });
    let panicked = |_| io::Error::other("a thread panicked");
    Ok(Pings {
        sent: sent.map_err(failed)?,
        times: times.map_err(panicked).map_err(failed)?,
        bulk: vec![],
    })
}

/// Each ping carries its time.
fn ask(client: &UdpSocket, time: Duration) -> io::Result<u64> {
    let start = clock::now();
    let pings = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / PAUSE;
    for number in 0..pings {
        let due = start + number * PAUSE;
        while clock::now() < due {
            clock::doze_until(due);
        }
        client.send(&clock::now().to_be_bytes())?;
    }
    Ok(pings)
}

fn answer(server: &UdpSocket, is_over: &AtomicBool) {
    let mut buffer = [0; 8];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((length, peer)) = server.recv_from(&mut buffer) {
            // One that is not sent is one that is lost.
            let _ = server.send_to(&buffer[..length], peer);
        }
    }
}

fn hear(client: &UdpSocket, is_over: &AtomicBool) -> Vec<f64> {
    let mut times = vec![];
    let mut buffer = [0; 8];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok(8) = client.recv(&mut buffer) {
            let time = clock::now().saturating_sub(u64::from_be_bytes(buffer));
            times.push(clock::seconds(time) * 1000.0);
        }
    }
    times
}
