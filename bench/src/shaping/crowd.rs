//! The throughput of two pods without limits beside 250 that send twice what
//! they may.
//!
//! On a machine of few CPUs the senders themselves take from the two: whatever
//! becomes of their datagrams. That is told apart by a thread that spins instead of
//! them, on the same CPU, in the same rhythm, and as much of the time as they took:
//! what the two pods carry beside it is what they carry without the 250, and without
//! that CPU. Dividing by the CPU time that is left says less: a stream loses more by
//! a neighbour than the time that this one takes, since it takes turns with it.
//!
//! And the same senders send aside, by a pair of veths of their own whose other end
//! drops what comes: the same system calls and the same way through the pods' stacks,
//! but nothing comes to what forwards.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::time::ClockId;

use super::{DESIGNS, MBIT, Plan, limit, name, section};
use crate::clock::{self, SECOND};
use crate::compare::{Measure, Talk, streams};
use crate::cores;
use crate::stats::{Estimate, bootstrapped_median, paired_ratio};
use crate::topology::{Bed, BedSpec, Design, Feature, Limits, POD_PORT, Pod};
use crate::topology::{TopologyError, interrupt};

const SENDERS: u16 = 250;
const RATE: u64 = MBIT;
const PORT: u16 = POD_PORT + 2000;
/// Payload of a packet of 1500 bytes.
const PAYLOAD: usize = 1472;
/// Between two datagrams of any: each pod sends twice its rate.
const PAUSE: u64 = 1500 * 8 * SECOND / (2 * RATE) / SENDERS as u64;
/// What a busy machine puts off is made up for, to this degree, nanoseconds.
const BEHIND_AT_MOST: u64 = SECOND / 50;
/// Between two turns of the senders.
const REST: Duration = Duration::from_millis(1);
/// Whom they send to aside (RFC 5737).
const ASIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const HEADS: [&str; 9] = [
    "",
    "beside the two",
    "Gbit/s",
    "of a CPU beside",
    "of beside a spinner",
    "Gbit/s for a CPU left",
    "of beside nothing",
    "of beside aside",
    "to the sink, Mbit/s",
];

const TEXT: &str = "One TCP stream between two pods without limits, beside 250 pods of 1 Mbit/s \
    egress that send 2 Mbit/s each, by one thread on the CPU of the stream's sender. A spinner: a \
    thread instead of the 250 that does nothing, as much of the time as theirs took, all that the \
    kernel does in its system calls included. Aside: the same datagrams, by a veth of the pod's \
    own whose other end drops them. \"For a CPU left\": divided by what is left of that CPU; the \
    two columns after it are of this. Medians with their 95 % intervals, of pairs of one round. \
    The goal: to their limits 0.9 at least of beside a spinner.";

/// What there is beside the two pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Spinner,
    Aside,
    Limits,
}

impl Beside {
    /// In the order of a round: a spinner after those of whom it takes the share.
    const ALL: [Self; 4] = [Self::Nothing, Self::Aside, Self::Limits, Self::Spinner];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Spinner => "a spinner",
            Self::Aside => "250 pods, aside",
            Self::Limits => "250 pods, to their limits",
        }
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Of the two pods, Gbit/s.
    throughput: f64,
    /// CPU time of what is beside them, of all time.
    taken: f64,
    /// Mbit/s.
    at_sink: f64,
}

/// A section of the report.
///
/// # Errors
/// A node could not be set up, or sockets were refused.
pub(super) fn measure(plan: &Plan) -> Result<String, TopologyError> {
    let limits = Limits {
        ingress: None,
        egress: Some(limit(RATE)),
    };
    // The last one is the sink: nothing limits what it gets.
    let feature = Feature::LimitedCrowd(SENDERS + 1, limits);
    let rounds = if plan.quick { 5 } else { 15 };
    let mut rows = vec![];
    for design in DESIGNS {
        let bed = Bed::build(BedSpec { design, feature }, &plan.tools)?;
        let found = Crowd::of(&bed)?.rounds(plan, rounds)?;
        for (beside, samples) in &found {
            let row = row(design, *beside, samples, &found);
            eprintln!("{}", row.join("  "));
            rows.push(row);
        }
    }
    Ok(section("Beside 250 limited pods", TEXT, &HEADS, &rows))
}

/// What was measured beside each, round by round.
type Found = [(Beside, Vec<Sample>); Beside::ALL.len()];

/// A row of what was measured, beside the others of its design.
fn row(design: Design, beside: Beside, samples: &[Sample], found: &Found) -> Vec<String> {
    let all = |value: fn(&Sample) -> f64| {
        let values: Vec<_> = samples.iter().map(value).collect();
        words(bootstrapped_median(&values, 1))
    };
    let of = |other: Beside, value: fn(&Sample) -> f64| {
        let others = found.iter().filter(|(beside, _)| *beside == other);
        let others = others.flat_map(|(_, samples)| samples);
        let pairs = samples.iter().zip(others);
        let pairs: Vec<_> = pairs
            .map(|(own, other)| (value(own), value(other)))
            .collect();
        words(paired_ratio(&pairs, 1))
    };
    vec![
        name(design).into(),
        beside.name().into(),
        all(|sample| sample.throughput),
        all(|sample| sample.taken),
        of(Beside::Spinner, |sample| sample.throughput),
        all(Sample::for_a_cpu_left),
        of(Beside::Nothing, Sample::for_a_cpu_left),
        of(Beside::Aside, Sample::for_a_cpu_left),
        all(|sample| sample.at_sink),
    ]
}

impl Sample {
    fn for_a_cpu_left(&self) -> f64 {
        self.throughput / (1.0 - self.taken)
    }
}

fn words(estimate: Option<Estimate>) -> String {
    estimate.map_or("–".into(), |estimate| {
        let Estimate {
            value, low, high, ..
        } = estimate;
        format!("{value:.2} ({low:.2} to {high:.2})")
    })
}

/// The limited pods, and the sockets that they send by.
struct Crowd<'a> {
    bed: &'a Bed,
    sink: &'a Pod,
    /// Nobody reads it: a full socket drops, without a word.
    _socket: UdpSocket,
    /// To the sink, and aside.
    sockets: Vec<[UdpSocket; 2]>,
}

impl<'a> Crowd<'a> {
    fn of(bed: &'a Bed) -> Result<Self, TopologyError> {
        let Some((sink, senders)) = bed.others.split_last() else {
            return Err(TopologyError::Missing("no pods beside the two".into()));
        };
        let failed = |error| TopologyError::refused("send to", sink.address.to_string(), error);
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT));
        let socket = sink.space.run(bind)?.map_err(failed)?;
        let mut sockets = vec![];
        for sender in senders {
            interrupt::check()?;
            make_aside(sender)?;
            let connect = |to: Ipv4Addr| {
                let socket = UdpSocket::bind((sender.address, 0))?;
                socket.connect((to, PORT))?;
                socket.set_nonblocking(true)?;
                io::Result::Ok(socket)
            };
            let both = || Ok([connect(sink.address)?, connect(ASIDE)?]);
            sockets.push(sender.space.run(both)?.map_err(failed)?);
        }
        Ok(Self {
            bed,
            sink,
            _socket: socket,
            sockets,
        })
    }

    /// Measures beside each in turn.
    fn rounds(&self, plan: &Plan, rounds: usize) -> Result<Found, TopologyError> {
        let mut found = Beside::ALL.map(|beside| (beside, vec![]));
        // What the senders took of a CPU the last time.
        let mut share = 0.0;
        for round in 0..rounds {
            for turn in 0..found.len() {
                interrupt::check()?;
                let index = (turn + round) % found.len();
                let (beside, samples) = &mut found[index];
                let sample = self.sample(plan, *beside, share)?;
                if *beside == Beside::Limits {
                    share = sample.taken;
                }
                samples.push(sample);
            }
        }
        Ok(found)
    }

    /// Measures once; a spinner takes `share` of the CPU.
    fn sample(&self, plan: &Plan, beside: Beside, share: f64) -> Result<Sample, TopologyError> {
        let bed = self.bed;
        let talk = Talk {
            client: &bed.client.space,
            server: &bed.server.space,
            target: (bed.server.address, POD_PORT).into(),
            port: POD_PORT,
            sender_cpu: plan.sender_cpu,
            receiver_cpu: plan.receiver_cpu,
            time: plan.time / 5,
        };
        let failed = |error| TopologyError::refused("send to", talk.target.to_string(), error);
        let is_over = AtomicBool::new(false);
        let (start, before) = (clock::now(), received(self.sink)?);
        let (throughput, taken) = thread::scope(|scope| {
            let neighbour = scope.spawn(|| {
                cores::pin(plan.sender_cpu)?;
                let start = clock::now();
                match beside {
                    Beside::Nothing => return Ok(0.0),
                    Beside::Spinner => spin(share, &is_over)?,
                    Beside::Limits => self.send(0, &is_over)?,
                    Beside::Aside => self.send(1, &is_over)?,
                }
                Ok(clock::seconds(cpu_time()?) / clock::seconds(clock::now() - start))
            });
            let throughput = streams(&talk, 1);
            is_over.store(true, Ordering::Relaxed);
            (throughput, neighbour.join())
        });
        let panicked = |_| Err(io::Error::other("a thread panicked"));
        let taken = taken.unwrap_or_else(panicked).map_err(failed)?;
        let bits = (received(self.sink)? - before) * 8.0;
        let at_sink = bits / clock::seconds(clock::now() - start) / 1e6;
        let throughput = throughput?.get(&Measure::Throughput).copied();
        Ok(Sample {
            throughput: throughput.unwrap_or(f64::NAN),
            taken,
            at_sink,
        })
    }

    /// The pods one after the other, a millisecond's worth at a time; `way` is
    /// that of [`Crowd::sockets`].
    fn send(&self, way: usize, is_over: &AtomicBool) -> io::Result<()> {
        let payload = [0x5a; PAYLOAD];
        let mut sockets = self.sockets.iter().cycle();
        let mut due = clock::now();
        while !is_over.load(Ordering::Relaxed) {
            let now = clock::now();
            due = due.max(now.saturating_sub(BEHIND_AT_MOST));
            while due < now
                && let Some(pair) = sockets.next()
            {
                match pair[way].send(&payload) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                due += PAUSE;
            }
            thread::sleep(REST);
        }
        Ok(())
    }
}

/// Spins for a share of the time, in the rhythm of those who send.
fn spin(share: f64, is_over: &AtomicBool) -> io::Result<()> {
    let start = clock::now();
    while !is_over.load(Ordering::Relaxed) {
        let now = clock::now();
        let owed = clock::seconds(now - start) * share - clock::seconds(cpu_time()?);
        let owed = Duration::try_from_secs_f64(owed).unwrap_or_default();
        let owed = u64::try_from(owed.as_nanos()).unwrap_or(u64::MAX);
        while clock::now() < now.saturating_add(owed.min(BEHIND_AT_MOST)) {
            std::hint::spin_loop();
        }
        thread::sleep(REST);
    }
    Ok(())
}

/// The CPU time of this thread, nanoseconds.
fn cpu_time() -> io::Result<u64> {
    let time = Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?);
    Ok(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// A pair of veths in the pod: the other end drops what is for nobody.
fn make_aside(pod: &Pod) -> Result<(), TopologyError> {
    for words in [
        "ip link add aside0 type veth peer name aside1",
        "ip link set aside0 up",
        "ip link set aside1 up",
        &format!("ip route add {ASIDE} dev aside0"),
        &format!("ip neigh add {ASIDE} lladdr 02:00:00:00:00:01 dev aside0 nud permanent"),
    ] {
        pod.space.exec(words)?;
    }
    Ok(())
}

/// Bytes that came to a pod's interface.
fn received(pod: &Pod) -> Result<f64, TopologyError> {
    let shown = pod.space.exec("ip -j -s link show eth0")?;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
    let bytes = shown[0]["stats64"]["rx"]["bytes"].as_f64();
    bytes.ok_or_else(|| TopologyError::Missing("`ip -s link` shows no bytes".into()))
}
