//! What a run found, and its forms: JSON as it is, Markdown, HTML with plots.

mod html;
mod markdown;
mod plot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use html::html;
pub(crate) use markdown::{markdown, table};

use crate::compare::{Measure, Placement, Values, Verdict};
use crate::stats::Estimate;

/// Changes with what the JSON means.
pub(crate) const FORMAT: u32 = 1;
/// Cores whose cache lines take less than this to go and come back are near
/// each other, nanoseconds.
const NEAR: f64 = 200.0;

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) format: u32,
    pub(crate) setup: Setup,
    pub(crate) goals: Vec<GoalRow>,
    pub(crate) cases: Vec<CaseReport>,
}

/// Where, when and how it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Few pairs of few cases: not to be quoted.
    pub(crate) quick: bool,
    pub(crate) pairs: u32,
    /// Of one sample.
    pub(crate) seconds: f64,
    /// Where sender and receiver, and what forwards, run.
    pub(crate) cpus: [usize; 2],
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    /// How many there are.
    pub(crate) cpu_count: usize,
    /// The kernel's load averages before and after.
    pub(crate) load: [String; 2],
    pub(crate) minutes: f64,
    /// Of what is compared.
    pub(crate) versions: BTreeMap<String, String>,
}

/// What became of a goal.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GoalRow {
    pub(crate) figure: String,
    pub(crate) against: Option<String>,
    pub(crate) scope: Scope,
    pub(crate) measure: Measure,
    pub(crate) goal: f64,
    pub(crate) stretch: Option<f64>,
    /// Nothing if its case was not measured.
    pub(crate) measured: Option<Measured>,
    pub(crate) verdict: Option<Verdict>,
}

/// Which placements are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scope {
    /// The same for both.
    Same,
    /// Each design's best.
    Best,
}

/// A figure of all samples, and of those on near and on far cores.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) all: Estimate,
    pub(crate) near: Option<Estimate>,
    pub(crate) far: Option<Estimate>,
}

/// A case's samples and what they come to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CaseReport {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) plotted: Measure,
    pub(crate) arms: Vec<ArmReport>,
    pub(crate) comparisons: Vec<Comparison>,
    /// What was not measured.
    pub(crate) problems: Vec<Problem>,
}

/// An arm that was not measured, or not to the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) arm: String,
    pub(crate) cause: String,
    /// This machine does not have it: no failure.
    pub(crate) is_missing: bool,
}

/// One design in one placement.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ArmReport {
    pub(crate) label: String,
    pub(crate) placement: Placement,
    pub(crate) medians: Values,
    pub(crate) samples: Vec<Sample>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    /// A cache line's round trip between the CPUs before and after, nanoseconds.
    pub(crate) cores: [f64; 2],
    pub(crate) values: Values,
    /// Single values, where a percentile is taken of all rounds together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) pools: BTreeMap<Measure, Vec<f64>>,
}

/// How one arm is to another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) of: String,
    pub(crate) against: String,
    pub(crate) scope: Scope,
    /// Its own, and the other's.
    pub(crate) placements: [Placement; 2],
    pub(crate) measure: Measure,
    /// The paired ratio.
    pub(crate) ratio: Measured,
}

/// How far the cores were from each other during a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distance {
    Near,
    Far,
    /// It changed.
    Both,
}

impl Sample {
    pub(crate) fn distance(&self) -> Distance {
        match self.cores.map(|time| time < NEAR) {
            [true, true] => Distance::Near,
            [false, false] => Distance::Far,
            _ => Distance::Both,
        }
    }
}

impl CaseReport {
    /// Whether something failed that should not have.
    pub(crate) fn has_failed(&self) -> bool {
        self.problems.iter().any(|problem| !problem.is_missing)
    }
}
