//! The command line of `sluice-bench rfc2544`.

use std::error::Error;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path as File, PathBuf};

use clap::{ValueEnum, value_parser};
use indicatif::{ProgressBar, ProgressStyle};

use super::back_to_back::{self, ASKED_REPEATS, back_to_back};
use super::dut::{Amount, Dut, FULL_TRIAL, Load};
use super::loss;
use super::path::{Path, Wire};
use super::reconfigure::{self, Change};
use super::report::{Report, Row, Setup, cost_line};
use super::throughput::Search;
use crate::error::BenchError;
use crate::node::{DesignName, NodeArgs};
use crate::pktgen::{Latency, Place, Protocol, SendBy, SinkBy, Sizes, netns_path};
use crate::topology::{Bed, POD_PORT, Tools, interrupt};

/// The frame sizes of RFC 2544 section 9.1, and two that pods see.
const SIZES: &str = "64,128,256,512,1024,1280,1518,imix,9000";
/// Bytes of a frame beside its IP packet: header and FCS.
const ETHERNET: u64 = 18;
/// Parts of the throughput at which the latency is measured.
const LATENCY_AT: [u8; 3] = [10, 50, 90];
/// What an application may lose.
const PARTIAL: f64 = 0.005;
/// Trials of a reconfiguration are at least this long, in seconds.
const RECONFIGURATION: f64 = 10.0;

/// The tests of RFC 2544, by pods of a node that is made for it, or between
/// two namespaces that are there.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// Measure from this network namespace instead, by name or path.
    #[arg(long, value_name = "NETNS", requires_all = ["into", "to"], conflicts_with_all = ["design", "case"])]
    from: Option<String>,
    /// The namespace of the sink then.
    #[arg(long, value_name = "NETNS", requires = "from")]
    into: Option<String>,
    /// Where the generator sends to then.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "from")]
    to: Option<SocketAddr>,
    /// Tests to make, with commas between them.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "throughput,latency,loss,back-to-back,reconfiguration"
    )]
    tests: Vec<Test>,
    /// Frame sizes in bytes with FCS, with commas between them.
    #[arg(long, value_delimiter = ',', default_value = SIZES)]
    sizes: Vec<Sizes>,
    /// Length of a trial in seconds; below 60 it is called short.
    #[arg(long, default_value_t = FULL_TRIAL, value_parser = seconds)]
    trial: f64,
    /// Length of the longest burst in seconds.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    burst: f64,
    /// How often the longest burst is searched; RFC 9004 asks for 50.
    #[arg(long, default_value_t = ASKED_REPEATS, value_parser = value_parser!(u32).range(1..))]
    repeats: u32,
    /// Frames a second during a reconfiguration.
    #[arg(long, default_value_t = 50_000.0, value_parser = rate)]
    rate: f64,
    /// How many flows.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    flows: u16,
    /// What the packets look like.
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// By what to send.
    #[arg(long, value_enum, default_value = "xsk")]
    by: SendBy,
    /// By what to receive, but for the latency, which AF_XDP sees.
    #[arg(long, value_enum, default_value = "xdp")]
    sink: SinkBy,
    /// Seconds to wait after each trial for what is on its way; the RFC says 2.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    drain: f64,
    /// The generator's CPU, and that of the sink and of what forwards.
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<u16>,
    /// Write everything here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Test {
    Throughput,
    Latency,
    Loss,
    BackToBack,
    Reconfiguration,
}

/// Runs the subcommand.
///
/// # Errors
/// Something is missing, was refused, or it was interrupted. What was found
/// until then is written.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let &[_, worker_cpu] = &args.cpus[..] else {
        return Err("--cpus takes two CPUs, with a comma between them".into());
    };
    interrupt::watch()?;
    let mut node = match args.from {
        Some(_) => None,
        None => {
            let tools = args.node.tools(worker_cpu)?;
            Some((args.node.build(&tools, 0)?, tools))
        }
    };
    let path = args.path(node.as_ref().map(|(bed, _)| bed))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut report = Report::new(Setup {
        what: args.what(),
        kernel: kernel.trim().to_owned(),
        trial: args.trial,
        short: args.trial < FULL_TRIAL,
        drain: args.drain,
        path,
    });
    print!("{}", report.head());
    let measured = args.measure_all(&mut report, node.as_mut());
    if let Some(file) = &args.json {
        write(file, &report)?;
    }
    Ok(measured?)
}

fn write(file: &File, report: &Report) -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(report)?;
    fs::write(file, text).map_err(BenchError::system("write", file.display().to_string()))?;
    Ok(())
}

impl Args {
    fn has(&self, test: Test) -> bool {
        self.tests.contains(&test)
    }

    /// What is measured, for people.
    fn what(&self) -> String {
        match (&self.from, &self.into, self.to) {
            (Some(from), Some(into), Some(to)) => format!("from {from} to {to} in {into}"),
            _ => self.node.title(),
        }
    }

    fn path(&self, bed: Option<&Bed>) -> Result<Path, Box<dyn Error>> {
        let (from, into, to, sink_port) = match (bed, &self.from, &self.into, self.to) {
            (Some(bed), ..) => {
                let [from, into] = [&bed.client, &bed.server].map(|pod| pod.space.path());
                (from, into, self.node.target(bed), POD_PORT)
            }
            (None, Some(from), Some(into), Some(to)) => {
                (netns_path(from), netns_path(into), to, to.port())
            }
            (None, ..) => return Err("--from, --into and --to go together".into()),
        };
        let place = |netns, cpu: usize| Place {
            netns: Some(netns),
            cpu: self.cpus.get(cpu).copied(),
        };
        Ok(Path {
            from: place(from, 0),
            into: place(into, 1),
            interface: "eth0".to_owned(),
            to,
            sink_port,
            protocol: self.protocol,
            flows: self.flows,
            by: self.by,
            sink: self.sink,
            drain: self.drain,
        })
    }

    /// All that was asked for, into the report.
    fn measure_all(
        &self,
        report: &mut Report,
        node: Option<&mut (Bed, Tools)>,
    ) -> Result<(), BenchError> {
        let style = ProgressStyle::with_template("{elapsed:>4} {spinner} {msg}");
        let bar = ProgressBar::new_spinner().with_style(style.expect("a valid template"));
        for sizes in &self.sizes {
            let mut tell = |what: &str| {
                bar.set_message(format!("{sizes} bytes: {what}"));
                bar.tick();
            };
            let row = self.measure(&report.setup.path, *sizes, &mut tell)?;
            bar.suspend(|| print!("{}", row.lines()));
            report.rows.push(row);
        }
        if let Some((bed, tools)) = node.filter(|_| self.has(Test::Reconfiguration)) {
            // Nobody but ours has a daemon to restart.
            let changes = match self.node.design {
                DesignName::Sluice => &Change::ALL[..],
                DesignName::Bridge | DesignName::Ptp => &[Change::Nothing, Change::AddAndDel],
                DesignName::Ovs | DesignName::Floor => &[Change::Nothing],
            };
            bar.suspend(|| println!("\nreconfiguration, 64 bytes"));
            for change in changes {
                bar.set_message(change.title());
                let load = (self.rate, self.trial.clamp(RECONFIGURATION, FULL_TRIAL));
                let cost = reconfigure::measure(*change, bed, tools, &report.setup.path, load)?;
                bar.suspend(|| print!("{}", cost_line(&cost)));
                report.costs.push(cost);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// All tests of one frame size.
    fn measure(
        &self,
        path: &Path,
        sizes: Sizes,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Row, BenchError> {
        let mut row = Row::new(sizes);
        let mtu = mtu(path)?;
        if let Sizes::Fixed(size) = sizes
            && size as u64 > u64::from(mtu) + ETHERNET
        {
            row.skipped = Some(format!("the pods' MTU is {mtu}"));
            return Ok(row);
        }
        let mut wire = Wire::new(path, sizes, tell);
        let mut search = Search::new(&mut wire, self.trial)?;
        let throughput = search.throughput(0.0)?;
        let fastest = search.fastest();
        row.fastest = fastest;
        row.throughput = Some(throughput);
        if self.has(Test::Throughput) {
            row.partial = Some(search.throughput(PARTIAL)?);
        }
        row.trials = search.trials();
        if self.has(Test::Loss) {
            row.curve = loss::curve(&mut wire, fastest, self.trial)?;
        }
        if self.has(Test::BackToBack) {
            let plan = back_to_back::Plan {
                fastest,
                throughput: throughput.rate,
                longest: self.burst,
                repeats: self.repeats,
            };
            row.back_to_back = back_to_back(&mut wire, plan)?;
        }
        row.overrun = wire.overrun;
        if self.has(Test::Latency) && throughput.rate > 0.0 {
            let mut wire = Wire::new(path, sizes, tell).with_latency();
            for percent in LATENCY_AT {
                let at = throughput.rate * f64::from(percent) / 100.0;
                row.latency
                    .extend(latency(&mut wire, at, self.trial)?.map(|l| (percent, l)));
            }
        }
        Ok(row)
    }
}

fn latency(dut: &mut impl Dut, at: f64, seconds: f64) -> Result<Option<Latency>, BenchError> {
    let answer = dut.offer(Load {
        rate: Some(at),
        amount: Amount::Seconds(seconds),
    })?;
    Ok(answer.latency)
}

/// The MTU of the sink's interface, in bytes of IP packet.
fn mtu(path: &Path) -> Result<u32, BenchError> {
    let interface = path.interface.clone();
    path.into.run(|| {
        let link = sluice_link::Netlink::new()?.link(&interface)?;
        link.map(|link| link.mtu)
            .ok_or_else(|| BenchError::Refused(format!("the sink has no interface {interface}")))
    })
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (0.05..=3600.0).contains(&value) => Ok(value),
        _ => Err("0.05 to 3600 seconds".into()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if (1.0..=1e9).contains(&value) => Ok(value),
        _ => Err("1 to 1000000000 frames a second".into()),
    }
}
