//! One measurement of one arm.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use super::cases::{Arm, Path, Placement, Work};
use super::cpu;
use super::measure::{Measure, Values};
use super::traffic::{Talk, first_packets, flood, flood_into_sink, streams, tcp_echo, udp_echo};
use crate::cores;
use crate::error::BenchError;
use crate::report::Sample;
use crate::stats::median;
use crate::topology::{
    Bed, BedSpec, Container, HOST_PORT, List, NODE, OUTSIDE, POD_PORT, SERVICE, Space,
    TopologyError,
};
use crate::xdp::SinkProgram;

/// The first client's port of new connections. A round has a hundred.
const FIRST_CLIENT_PORT: u16 = 20_000;
const CLIENT_PORTS: u32 = 100;
/// Rounds for which there are ports.
pub(crate) const MOST_ROUNDS: u32 = 400;
/// ADDs of a round, where they are made one at a time.
const ADDS_ALONE: u16 = 10;
/// The first hostPort of pods that come and go.
const FIRST_PASSING_PORT: u16 = 30_000;
/// A process at rest is looked at for at least this long.
const REST: Duration = Duration::from_secs(1);

/// Takes samples, on these CPUs and of this length.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// The sender's, and that of the receiver and of what forwards.
    pub(crate) cpus: [usize; 2],
    pub(crate) time: Duration,
    /// Namespaces of pods that come and go, by node.
    passing: HashMap<BedSpec, Vec<Space>>,
}

impl Sampler {
    pub(crate) fn new(cpus: [usize; 2], time: Duration) -> Self {
        Self {
            cpus,
            time,
            passing: HashMap::new(),
        }
    }

    /// Forgets what belongs to a node that is about to go.
    pub(crate) fn forget(&mut self, spec: BedSpec) {
        self.passing.remove(&spec);
    }

    /// Measures, with the distance of the cores before and after.
    ///
    /// # Errors
    /// The work could not be done.
    pub(crate) fn take(
        &mut self,
        bed: &Bed,
        arm: &Arm,
        work: Work,
        round: u32,
    ) -> Result<Sample, TopologyError> {
        let before = self.distance()?;
        bed.set_running(true);
        let done = self.work(bed, arm, work, round);
        bed.set_running(false);
        let (values, pools) = done?;
        Ok(Sample {
            round,
            cores: [before, self.distance()?],
            values,
            pools,
        })
    }

    fn distance(&self) -> Result<f64, TopologyError> {
        cores::round_trip(self.cpus)
            .map_err(|error| TopologyError::refused("measure the distance of", "two CPUs", error))
    }

    fn work(
        &mut self,
        bed: &Bed,
        arm: &Arm,
        work: Work,
        round: u32,
    ) -> Result<(Values, BTreeMap<Measure, Vec<f64>>), TopologyError> {
        let talk = |path| self.talk(bed, arm.placement, path);
        let values = match work {
            Work::Flood(path) => flood(&talk(path))?,
            Work::Sink => {
                let sink = bed
                    .server
                    .space
                    .run(|| SinkProgram::count("eth0", POD_PORT))?;
                let sink = sink.map_err(sink_failed)?;
                let arrived = || sink.counted().map(|counted| counted.frames);
                flood_into_sink(&talk(Path::PodToPod), || {
                    arrived().map_err(io::Error::other)
                })?
            }
            Work::Streams(path, count) => streams(&talk(path), count)?,
            Work::UdpEcho(path) => udp_echo(&talk(path))?,
            Work::TcpEcho(path) => tcp_echo(&talk(path))?,
            Work::FirstPacket => {
                let more = u16::try_from(round % MOST_ROUNDS * CLIENT_PORTS).unwrap_or_default();
                first_packets(&talk(Path::OutsideToHostPort), FIRST_CLIENT_PORT + more)?
            }
            Work::Rest => at_rest(bed, self.time.max(REST))?,
            Work::AddDel(at_once) => return self.add_and_del(bed, arm.spec, at_once),
        };
        Ok((values, BTreeMap::new()))
    }

    fn talk<'a>(&self, bed: &'a Bed, placement: Placement, path: Path) -> Talk<'a> {
        let (client, server) = (&bed.client.space, &bed.server.space);
        let (node, outside) = (bed.node(), bed.outside());
        let pod = SocketAddr::from((bed.server.address, POD_PORT));
        let host_port = SocketAddr::from((NODE, HOST_PORT));
        let beyond = SocketAddr::new(IpAddr::V4(OUTSIDE), POD_PORT);
        let (client, server, target) = match path {
            Path::PodToPod => (client, server, pod),
            Path::PodToHostPort => (client, server, host_port),
            Path::OutsideToHostPort => (outside, server, host_port),
            Path::OutsideToPod => (outside, server, pod),
            Path::PodToOutside => (client, outside, beyond),
            Path::HostToPod => (node, server, pod),
            Path::PodToService => (client, server, SERVICE),
        };
        let [first, second] = self.cpus;
        let (sender_cpu, receiver_cpu) = match placement {
            Placement::Apart => (first, second),
            Placement::Together => (first, first),
            Placement::OneCpu => (second, second),
        };
        Talk {
            client,
            server,
            target,
            port: POD_PORT,
            sender_cpu,
            receiver_cpu,
            time: self.time,
        }
    }

    /// ADD and DEL of whole chains, each as one value in milliseconds.
    fn add_and_del(
        &mut self,
        bed: &Bed,
        spec: BedSpec,
        at_once: u16,
    ) -> Result<(Values, BTreeMap<Measure, Vec<f64>>), TopologyError> {
        let list = bed.list().ok_or_else(|| {
            TopologyError::Missing("this design is no plugin: it has no ADD".into())
        })?;
        let count = at_once.max(ADDS_ALONE);
        let spaces = self.passing.entry(spec).or_default();
        for number in spaces.len()..count.into() {
            spaces.push(bed.space(&format!("p{number}"))?);
        }
        let containers: Vec<_> = spaces
            .iter()
            .zip(FIRST_PASSING_PORT..)
            .map(|(space, port)| Container::new(space).mapped(port, POD_PORT, &["tcp", "udp"]))
            .collect();
        let (adds, dels) = match at_once {
            1 => one_by_one(list, &containers)?,
            _ => all_at_once(list, &containers)?,
        };
        let mut values = Values::new();
        for (measure, times) in [(Measure::AddP50, &adds), (Measure::DelP50, &dels)] {
            values.extend(median(times).map(|middle| (measure, middle)));
        }
        let pools = BTreeMap::from([(Measure::AddP99, adds), (Measure::DelP99, dels)]);
        Ok((values, pools))
    }
}

type Times = (Vec<f64>, Vec<f64>);

fn one_by_one(list: &List, containers: &[Container]) -> Result<Times, TopologyError> {
    let (mut adds, mut dels) = (vec![], vec![]);
    for container in containers {
        let (time, result) = timed(|| list.add(container))?;
        adds.push(time);
        dels.push(timed(|| list.del(container, &result))?.0);
    }
    Ok((adds, dels))
}

fn all_at_once(list: &List, containers: &[Container]) -> Result<Times, TopologyError> {
    let added = at_once(containers, |container| timed(|| list.add(container)))?;
    let pairs: Vec<_> = containers.iter().zip(&added).collect();
    let deleted = at_once(&pairs, |(container, (_, result))| {
        timed(|| list.del(container, result))
    })?;
    let times = added.into_iter().map(|(time, _)| time).collect();
    Ok((times, deleted.into_iter().map(|(time, ())| time).collect()))
}

/// Does a job for each item, all at the same time.
fn at_once<T: Sync, R: Send>(
    items: &[T],
    job: impl Fn(&T) -> Result<R, TopologyError> + Sync,
) -> Result<Vec<R>, TopologyError> {
    thread::scope(|scope| {
        let start = |item| {
            let job = &job;
            thread::Builder::new().spawn_scoped(scope, move || job(item))
        };
        let threads: Vec<_> = items.iter().map(start).collect();
        let refused = |error| TopologyError::refused("start", "a thread", error);
        let joined = threads.into_iter().map(|thread| {
            let panicked = |_| Err(refused(io::Error::other("it panicked")));
            thread.map_err(refused)?.join().unwrap_or_else(panicked)
        });
        // All of them are waited for, also behind a failure.
        let joined: Vec<_> = joined.collect();
        joined.into_iter().collect()
    })
}

fn sink_failed(error: BenchError) -> TopologyError {
    TopologyError::refused("count in", "an XDP program", io::Error::other(error))
}

/// What a job took, in milliseconds.
fn timed<T>(job: impl FnOnce() -> Result<T, TopologyError>) -> Result<(f64, T), TopologyError> {
    let start = Instant::now();
    let done = job()?;
    Ok((start.elapsed().as_secs_f64() * 1000.0, done))
}

fn at_rest(bed: &Bed, time: Duration) -> Result<Values, TopologyError> {
    let pid = bed
        .daemon()
        .ok_or_else(|| TopologyError::Missing("this design has no daemon".into()))?;
    let (start, before) = (Instant::now(), cpu::process_nanoseconds(pid)?);
    thread::sleep(time);
    let used = Duration::from_nanos(cpu::process_nanoseconds(pid)? - before);
    let percent = 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64();
    Ok(Values::from([(Measure::IdleCpu, percent)]))
}
