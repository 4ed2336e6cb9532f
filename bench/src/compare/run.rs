//! A run: cases one after the other, in each of them rounds of all arms.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::cases::{Arm, Case, Work};
use super::evaluate;
use super::sample::Sampler;
use crate::report::{CaseReport, Problem};
use crate::topology::{Bed, BedSpec, Design, Feature, Tools, TopologyError, interrupt};

/// What a sample takes beside its measured time: warming up, sockets, and the
/// distance of the cores, twice.
const AROUND: Duration = Duration::from_millis(350);

/// What to measure and how.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) cases: Vec<Case>,
    pub(crate) pairs: u32,
    /// Of a sample.
    pub(crate) time: Duration,
    pub(crate) cpus: [usize; 2],
    pub(crate) tools: Tools,
}

impl Plan {
    /// About how long it takes.
    pub(crate) fn estimate(&self) -> Duration {
        let specs: HashSet<_> = self.specs().collect();
        let built: Duration = specs.into_iter().map(building).sum();
        built
            + self
                .cases
                .iter()
                .map(|case| self.case_time(case))
                .sum::<Duration>()
    }

    fn specs(&self) -> impl Iterator<Item = BedSpec> {
        let arms = self.cases.iter().flat_map(|case| &case.arms);
        arms.map(|arm| arm.spec)
    }

    fn case_time(&self, case: &Case) -> Duration {
        let arms = case.arms.iter();
        let round: Duration = arms.map(|arm| self.sample_time(arm, case.work)).sum();
        round * self.pairs
    }

    fn sample_time(&self, arm: &Arm, work: Work) -> Duration {
        match work {
            // Whole chains of processes.
            Work::AddDel(at_once) => {
                let pods = u32::from(at_once.max(10));
                let ours = arm.spec.design == Design::Sluice;
                Duration::from_millis(if ours { 40 } else { 400 }) * pods
            }
            Work::FirstPacket => Duration::from_millis(100),
            Work::Rest => self.time.max(Duration::from_secs(1)),
            Work::Flood(_)
            | Work::Sink
            | Work::Streams(..)
            | Work::UdpEcho(_)
            | Work::TcpEcho(_) => self.time + AROUND,
        }
    }

    /// Measures everything.
    ///
    /// # Errors
    /// It was interrupted. What else fails is told in the reports.
    pub(crate) fn run(&self) -> Result<Vec<CaseReport>, TopologyError> {
        let bar = progress_bar(self.estimate());
        let mut sampler = Sampler::new(self.cpus, self.time);
        let mut beds = Beds {
            tools: &self.tools,
            bar: &bar,
            built: BTreeMap::new(),
        };
        let mut reports = vec![];
        for (number, case) in self.cases.iter().enumerate() {
            reports.push(self.case(case, &mut beds, &mut sampler)?);
            let later: HashSet<_> = self.cases[number + 1..]
                .iter()
                .flat_map(|case| case.arms.iter().map(|arm| arm.spec))
                .collect();
            beds.built.retain(|spec, _| {
                let is_needed = later.contains(spec);
                if !is_needed {
                    sampler.forget(*spec);
                }
                is_needed
            });
        }
        bar.finish_and_clear();
        Ok(reports)
    }

    fn case(
        &self,
        case: &Case,
        beds: &mut Beds<'_>,
        sampler: &mut Sampler,
    ) -> Result<CaseReport, TopologyError> {
        let mut problems = vec![];
        let mut samples = vec![vec![]; case.arms.len()];
        let mut working = vec![];
        for index in 0..case.arms.len() {
            let arm = &case.arms[index];
            let built = beds.build(arm.spec);
            interrupt::check()?;
            match built {
                Ok(()) => working.push(index),
                Err(problem) => problems.push(Problem {
                    arm: arm.label(),
                    ..problem
                }),
            }
        }
        for round in 0..self.pairs {
            for index in order(case.arms.len(), round) {
                interrupt::check()?;
                let arm = &case.arms[index];
                if let (true, Some(Ok(bed))) = (working.contains(&index), beds.built.get(&arm.spec))
                {
                    beds.bar
                        .set_message(format!("{}, {}", case.id, arm.label()));
                    match sampler.take(bed, arm, case.work, round) {
                        Ok(sample) => samples[index].push(sample),
                        // What Ctrl-C broke is no problem of the arm.
                        Err(_) if interrupt::is_set() => return Err(TopologyError::Interrupted),
                        Err(error) => {
                            problems.push(Problem {
                                arm: arm.label(),
                                cause: format!("given up in round {round}: {error}"),
                                is_missing: false,
                            });
                            working.retain(|working| *working != index);
                        }
                    }
                }
                beds.bar.inc(millis(self.sample_time(arm, case.work)));
            }
        }
        for Problem { arm, cause, .. } in &problems {
            beds.bar
                .suspend(|| eprintln!("{}, {arm}: {cause}", case.id));
        }
        Ok(evaluate::case(case, samples, problems))
    }
}

/// The nodes that are set up, or why they are not.
struct Beds<'a> {
    tools: &'a Tools,
    bar: &'a ProgressBar,
    built: BTreeMap<BedSpec, Result<Bed, Problem>>,
}

impl Beds<'_> {
    /// Sets up a node, unless it is there.
    fn build(&mut self, spec: BedSpec) -> Result<(), Problem> {
        if !self.built.contains_key(&spec) {
            self.bar.set_message(format!("setting up {spec:?}"));
            let bed = Bed::build(spec, self.tools).map_err(|error| Problem {
                arm: String::new(),
                cause: error.to_string(),
                is_missing: matches!(error, TopologyError::Missing(_)),
            });
            self.bar.inc(millis(building(spec)));
            self.built.insert(spec, bed);
        }
        match self.built.get(&spec) {
            Some(Err(problem)) => Err(problem.clone()),
            _ => Ok(()),
        }
    }
}

/// In which order a round runs its arms: the first in the middle, the second
/// and third beside it, and so on; every other round backwards.
fn order(arms: usize, round: u32) -> Vec<usize> {
    let odd = (0..arms).filter(|arm| arm % 2 == 1).rev();
    let mut order: Vec<_> = odd.chain((0..arms).step_by(2)).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// About how long it takes to set up a node.
fn building(spec: BedSpec) -> Duration {
    let pods = match spec.feature {
        Feature::Crowd(count) | Feature::LimitedCrowd(count, _) => u32::from(count) + 2,
        Feature::HostPorts(_) => 101,
        _ => 2,
    };
    let pod = match spec.design {
        Design::Sluice => 40,
        _ => 130,
    };
    Duration::from_millis(500) + Duration::from_millis(pod) * pods
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn progress_bar(time: Duration) -> ProgressBar {
    let bar = ProgressBar::new(millis(time));
    let template = "{bar:30} {percent:>3} %, {eta} to go: {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_arm_runs_amid_the_others_and_every_other_round_backwards() {
        assert_eq!(order(5, 0), [3, 1, 0, 2, 4]);
        assert_eq!(order(5, 1), [4, 2, 0, 1, 3]);
        assert_eq!(order(2, 0), [1, 0]);
        assert_eq!(order(1, 3), [0]);
    }
}
