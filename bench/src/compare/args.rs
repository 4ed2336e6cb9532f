//! The command line.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::cases::{self, Case};
use super::run::Plan;
use super::sample::MOST_ROUNDS;
use super::{evaluate, goals, machine};
use crate::cores;
use crate::report::{FORMAT, Report, html, markdown};
use crate::topology::{Tools, TopologyError, interrupt, remove_leftovers};

/// Pairs and seconds of a quick run.
const QUICK: (u32, f64) = (5, 0.3);
/// Of a full one.
const FULL: (u32, f64) = (15, 1.0);

/// The command line of `sluice-bench compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Few pairs of few cases, in under 3 minutes: a look, not a result.
    #[arg(long)]
    quick: bool,
    /// Cases to measure, with commas between them; see --list.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    cases: Option<Vec<String>>,
    /// Rounds of each case: 15, quick 5.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_ROUNDS)))]
    pairs: Option<u32>,
    /// Length of a sample: 1, quick 0.3.
    #[arg(long, value_name = "S", value_parser = seconds)]
    seconds: Option<f64>,
    /// List the cases and how long they take, and measure nothing.
    #[arg(long)]
    list: bool,
    /// The sender's CPU, and that of the receiver and of what forwards.
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        num_args = 2,
        default_value = "0,1"
    )]
    cpus: Vec<usize>,
    /// Where sluice and sluiced are, if not beside this program.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where the reference plugins are.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    cni_path: PathBuf,
    /// Write everything here, every sample too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables here; without it they are printed.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write tables and plots here, as one file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Measure nothing: write the forms of an earlier run's --json.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "cases", "list", "json"])]
    from: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.05..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.05 to 60 seconds".into()),
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Something is missing, a file cannot be written, it was interrupted, or a
/// design that should have been measured was not.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if let Some(file) = &args.from {
        let text = fs::read_to_string(file).map_err(|error| cannot("read", file, &error))?;
        let report: Report =
            serde_json::from_str(&text).map_err(|error| cannot("read", file, &error))?;
        return write(args, &report);
    }
    let plan = args.plan()?;
    if args.list {
        for case in &plan.cases {
            println!("{:22} {}", case.id, case.title);
        }
        println!("about {}", in_minutes(plan.estimate()));
        return Ok(());
    }
    let report = measure(args, &plan)?;
    write(args, &report)?;
    let failed = report.cases.iter().filter(|case| case.has_failed());
    match failed.map(|case| case.id.as_str()).collect::<Vec<_>>() {
        ids if ids.is_empty() => Ok(()),
        ids => Err(format!("not all was measured of {}: see above", ids.join(", ")).into()),
    }
}

fn measure(args: &Args, plan: &Plan) -> Result<Report, Box<dyn Error>> {
    if !geteuid().is_root() {
        return Err("this makes network namespaces: run it as root".into());
    }
    plan.tools.check()?;
    interrupt::watch()?;
    remove_leftovers();
    // Also finds out whether both CPUs can be used.
    cores::round_trip(plan.cpus)?;
    eprintln!(
        "{} cases, {} pairs each: about {}",
        plan.cases.len(),
        plan.pairs,
        in_minutes(plan.estimate())
    );
    let mut setup = machine::setup(&plan.tools, plan.cpus);
    let start = Instant::now();
    let cases = plan.run()?;
    setup.quick = args.quick;
    setup.pairs = plan.pairs;
    setup.seconds = plan.time.as_secs_f64();
    setup.minutes = start.elapsed().as_secs_f64() / 60.0;
    setup.load[1] = machine::load();
    Ok(Report {
        format: FORMAT,
        setup,
        goals: evaluate::goals(&goals::all()?, &cases),
        cases,
    })
}

fn write(args: &Args, report: &Report) -> Result<(), Box<dyn Error>> {
    if let Some(file) = &args.json {
        put(file, &serde_json::to_string_pretty(report)?)?;
    }
    if let Some(file) = &args.html {
        put(file, &html(report)?)?;
    }
    match &args.markdown {
        Some(file) => put(file, &markdown(report))?,
        None => print!("{}", markdown(report)),
    }
    Ok(())
}

fn put(file: &Path, text: &str) -> Result<(), TopologyError> {
    fs::write(file, text).map_err(|error| cannot("write", file, &error))
}

fn cannot(operation: &'static str, file: &Path, error: &dyn Error) -> TopologyError {
    let cause = std::io::Error::other(error.to_string());
    TopologyError::refused(operation, file.display().to_string(), cause)
}

fn in_minutes(time: Duration) -> String {
    format!("{:.0} min", (time.as_secs_f64() / 60.0).ceil())
}

impl Args {
    fn plan(&self) -> Result<Plan, Box<dyn Error>> {
        let (pairs, seconds) = if self.quick { QUICK } else { FULL };
        let &[first, second] = &self.cpus[..] else {
            return Err("--cpus takes two CPUs".into());
        };
        if first == second {
            return Err(format!("--cpus takes two different CPUs, not {first} twice").into());
        }
        let binaries = match &self.binaries {
            Some(folder) => folder.clone(),
            None => beside_this_program()?,
        };
        Ok(Plan {
            cases: self.selected()?,
            pairs: self.pairs.unwrap_or(pairs),
            time: Duration::from_secs_f64(self.seconds.unwrap_or(seconds)),
            cpus: [first, second],
            tools: Tools {
                binaries,
                cni_path: self.cni_path.clone(),
                worker_cpu: second,
            },
        })
    }

    fn selected(&self) -> Result<Vec<Case>, String> {
        if let Some(ids) = &self.cases {
            return cases::named(ids).map_err(|id| format!("there is no case {id:?}: see --list"));
        }
        let mut all = cases::all();
        all.retain(|case| case.is_quick || !self.quick);
        Ok(all)
    }
}

/// The folder that this program lies in.
///
/// # Errors
/// The kernel does not say.
pub(crate) fn beside_this_program() -> Result<PathBuf, TopologyError> {
    let refused = |error| TopologyError::refused("find", "the folder of this program", error);
    let own = std::env::current_exe().map_err(refused)?;
    Ok(own.parent().map(Path::to_owned).unwrap_or_default())
}
