//! `sluice-bench shaping`: limits on bandwidth, beside those of the reference
//! plugin `bandwidth` behind `bridge`, on the same machine, in the same minutes.

mod arrivals;
mod crowd;
mod envelope;
mod latency;
mod offer;
mod rates;
mod second;
mod traffic;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use nix::unistd::geteuid;

use crate::report::table;
use crate::topology::{Bed, BedSpec, Design, Feature, Limit, Limits, Pod, Tools, TopologyError};
use crate::topology::{interrupt, remove_leftovers};

const MBIT: u64 = 1_000_000;
/// Who is measured, in this order.
const DESIGNS: [Design; 2] = [Design::Sluice, Design::Bridge];

/// What there is to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Each rate, twice of which is offered.
    Rates,
    /// What a burst of 2^32-1 bits lets pass in second 1.
    Second,
    /// A ping beside bulk.
    Latency,
    /// Two pods' throughput beside 250 limited ones.
    Crowd,
}

/// The command line of `sluice-bench shaping`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Two seconds instead of ten, and less of everything: a look, not a result.
    #[arg(long)]
    quick: bool,
    /// Length of a measurement: 10, quick 2.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: Option<u64>,
    /// What to measure, with commas between; without it all.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    parts: Option<Vec<Part>>,
    /// The senders' CPU, and that of the receivers and of what forwards.
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "0,1")]
    cpus: Vec<usize>,
    /// Where sluice and sluiced are, if not beside this program.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where the reference plugins are.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    cni_path: PathBuf,
    /// Write the tables here; without it they are printed.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// Runs the subcommand.
///
/// # Errors
/// Something is missing, or failed, or it was interrupted.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if !geteuid().is_root() {
        return Err("this makes network namespaces: run it as root".into());
    }
    let plan = args.plan()?;
    plan.tools.check()?;
    interrupt::watch()?;
    remove_leftovers();
    let all = Part::value_variants();
    let mut text = String::new();
    for part in args.parts.as_deref().unwrap_or(all) {
        text += &match part {
            Part::Rates => rates::measure(&plan)?,
            Part::Second => second::measure(&plan)?,
            Part::Latency => latency::measure(&plan)?,
            Part::Crowd => crowd::measure(&plan)?,
        };
    }
    match &args.markdown {
        Some(file) => fs::write(file, text)
            .map_err(|e| TopologyError::refused("write", file.display().to_string(), e))?,
        None => print!("{text}"),
    }
    Ok(())
}

/// What to measure, and with what.
#[derive(Debug)]
struct Plan {
    quick: bool,
    /// Of a measurement.
    time: Duration,
    sender_cpu: usize,
    receiver_cpu: usize,
    tools: Tools,
}

impl Args {
    fn plan(&self) -> Result<Plan, Box<dyn Error>> {
        let &[sender_cpu, receiver_cpu] = &self.cpus[..] else {
            return Err("--cpus takes two CPUs".into());
        };
        let seconds = self.seconds.unwrap_or(if self.quick { 2 } else { 10 });
        Ok(Plan {
            quick: self.quick,
            time: Duration::from_secs(seconds),
            sender_cpu,
            receiver_cpu,
            tools: Tools::find(self.binaries.as_deref(), &self.cni_path, receiver_cpu)?,
        })
    }
}

impl Plan {
    /// A node of each design, on which the server has a limit.
    fn beds(&self, direction: Direction, limit: Limit) -> Result<[Bed; 2], TopologyError> {
        interrupt::check()?;
        let limits = match direction {
            Direction::Ingress => Limits {
                ingress: Some(limit),
                egress: None,
            },
            Direction::Egress => Limits {
                ingress: None,
                egress: Some(limit),
            },
        };
        let [ours, theirs] = DESIGNS.map(|design| {
            let feature = Feature::Limited(limits);
            Bed::build(BedSpec { design, feature }, &self.tools)
        });
        Ok([ours?, theirs?])
    }
}

/// Of which limit, seen from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Who sends what is limited, and who gets it.
    fn ends(self, bed: &Bed) -> [&Pod; 2] {
        match self {
            Self::Ingress => [&bed.client, &bed.server],
            Self::Egress => [&bed.server, &bed.client],
        }
    }
}

fn name(design: Design) -> &'static str {
    match design {
        Design::Sluice => "sluice",
        _ => "bridge + bandwidth",
    }
}

/// A burst that both designs can work with: 10 ms of the rate, two frames at least.
fn limit(rate: u64) -> Limit {
    const TWO_FRAMES: u64 = 2 * 1514 * 8;
    Limit {
        rate,
        burst: (rate / 100).max(TWO_FRAMES),
    }
}

/// `10 Mbit/s`
fn in_words(rate: u64) -> String {
    match rate / MBIT {
        mbit if mbit >= 1000 => format!("{} Gbit/s", mbit / 1000),
        mbit => format!("{mbit} Mbit/s"),
    }
}

/// A section with a table.
fn section(title: &str, text: &str, heads: &[&str], rows: &[Vec<String>]) -> String {
    format!("## {title}\n\n{text}\n\n{}\n", table(heads, rows))
}
