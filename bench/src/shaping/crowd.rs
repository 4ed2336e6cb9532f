//! The throughput of two pods without limits beside 250 that send twice what
//! they may.
//!
//! On a machine of few CPUs the senders themselves take from the two. That is
//! told apart in two ways. Their thread's CPU time is measured: what the two pods
//! carry is set beside the part of that CPU which was left to them. And the same
//! senders send aside, by a pair of veths of their own whose other end drops what
//! comes: the same system calls and the same way through the pods' stacks, but
//! none of it reaches the daemon.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::time::ClockId;

use super::{MBIT, Plan, limit, section};
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
/// Whom they send to aside (RFC 5737).
const ASIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const HEADS: [&str; 7] = [
    "the 250 pods send",
    "Gbit/s",
    "of a CPU for sending",
    "Gbit/s for a CPU left",
    "of nothing's",
    "of aside's",
    "to the sink, Mbit/s",
];

const TEXT: &str = "One TCP stream between two pods without limits, beside 250 pods of 1 Mbit/s \
    egress that send 2 Mbit/s each. The 250 send from the CPU of the stream's sender: the part \
    of it that their thread takes, with all that the kernel does in its system calls, is \
    measured, and the stream's rate divided by what is left. Aside: the same datagrams, by a \
    veth of the pod's own whose other end drops them. Medians with their 95 % intervals. The \
    goal: 0.9 at least, to their limits.";

/// Where the senders send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Nowhere,
    Aside,
    Limits,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Of the two pods, Gbit/s.
    throughput: f64,
    /// CPU time of the senders, of all time.
    sending: f64,
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
    let spec = BedSpec {
        design: Design::Sluice,
        // The last one is the sink: nothing limits what it gets.
        feature: Feature::LimitedCrowd(SENDERS + 1, limits),
    };
    let bed = Bed::build(spec, &plan.tools)?;
    let crowd = Crowd::of(&bed)?;
    let rounds = if plan.quick { 5 } else { 15 };
    let ways = [
        (To::Nowhere, "nothing"),
        (To::Aside, "aside"),
        (To::Limits, "to their limits"),
    ];
    let mut samples = ways.map(|_| vec![]);
    for round in 0..rounds {
        for turn in 0..ways.len() {
            interrupt::check()?;
            let index = (turn + round) % ways.len();
            samples[index].push(crowd.sample(plan, ways[index].0)?);
        }
    }
    let rows: Vec<_> = ways
        .iter()
        .zip(&samples)
        .map(|((_, way), own)| row(way, own, [&samples[0], &samples[1]]))
        .collect();
    Ok(section("Beside 250 limited pods", TEXT, &HEADS, &rows))
}

/// A row of what was measured, beside others.
fn row(way: &str, own: &[Sample], others: [&[Sample]; 2]) -> Vec<String> {
    let all = |value: fn(&Sample) -> f64| own.iter().map(value).collect::<Vec<_>>();
    let [nothing, aside] = others.map(|other| {
        let pairs = own.iter().zip(other);
        let pairs: Vec<_> = pairs
            .map(|(own, other)| (own.bare(), other.bare()))
            .collect();
        words(paired_ratio(&pairs, 1))
    });
    vec![
        way.to_owned(),
        words(bootstrapped_median(&all(|sample| sample.throughput), 1)),
        words(bootstrapped_median(&all(|sample| sample.sending), 1)),
        words(bootstrapped_median(&all(Sample::bare), 1)),
        nothing,
        aside,
        words(bootstrapped_median(&all(|sample| sample.at_sink), 1)),
    ]
}

impl Sample {
    /// The throughput, bare of the CPU that the senders took.
    fn bare(&self) -> f64 {
        self.throughput / (1.0 - self.sending)
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

    fn sample(&self, plan: &Plan, to: To) -> Result<Sample, TopologyError> {
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
        let (throughput, sent) = thread::scope(|scope| {
            let sending = scope.spawn(|| {
                cores::pin(plan.sender_cpu)?;
                self.send(to, &is_over)
            });
            let throughput = streams(&talk, 1);
            is_over.store(true, Ordering::Relaxed);
            (throughput, sending.join())
        });
        let panicked = |_| Err(io::Error::other("a thread panicked"));
        let sending = sent.unwrap_or_else(panicked).map_err(failed)?;
        let bits = (received(self.sink)? - before) * 8.0;
        let at_sink = bits / clock::seconds(clock::now() - start) / 1e6;
        let throughput = throughput?.get(&Measure::Throughput).copied();
        Ok(Sample {
            throughput: throughput.unwrap_or(f64::NAN),
            sending,
            at_sink,
        })
    }

    /// The pods one after the other, a millisecond's worth at a time. Returns
    /// which part of its time the thread took a CPU.
    fn send(&self, to: To, is_over: &AtomicBool) -> io::Result<f64> {
        let way = match to {
            To::Nowhere => return Ok(0.0),
            To::Limits => 0,
            To::Aside => 1,
        };
        let payload = [0x5a; PAYLOAD];
        let mut sockets = self.sockets.iter().cycle();
        let start = clock::now();
        let mut due = start;
        while !is_over.load(Ordering::Relaxed) {
            let now = clock::now();
            // What a busy machine puts off is made up for, to a degree.
            due = due.max(now.saturating_sub(20_000_000));
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
            thread::sleep(Duration::from_millis(1));
        }
        let own = ClockId::CLOCK_THREAD_CPUTIME_ID.now()?;
        let elapsed = clock::seconds(clock::now() - start);
        Ok(Duration::from(own).as_secs_f64() / elapsed)
    }
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
