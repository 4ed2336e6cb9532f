//! `sluice-bench compare`: Sluice beside what users would take instead, on
//! the same machine, in the same minutes.

mod args;
mod cases;
mod catalogue;
mod cpu;
mod evaluate;
mod goals;
mod machine;
mod measure;
mod run;
mod sample;
mod traffic;

pub(crate) use args::{Args, run};
pub(crate) use cases::Placement;
pub(crate) use goals::Verdict;
pub(crate) use measure::{Better, Measure, Values};
pub(crate) use traffic::{Talk, streams};
