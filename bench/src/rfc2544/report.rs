//! What was found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::back_to_back::{ASKED_REPEATS, BackToBack};
use super::loss::Point;
use super::path::Path;
use super::reconfigure::Cost;
use super::throughput::Throughput;
use crate::pktgen::{Latency, Sizes, scaled};

/// How it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Setup {
    /// What was measured.
    pub(crate) what: String,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Seconds of a trial.
    pub(crate) trial: f64,
    /// Less than RFC 2544 asks for.
    pub(crate) short: bool,
    /// Seconds waited after each trial.
    pub(crate) drain: f64,
    /// From where to where, and how.
    pub(crate) path: Path,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) setup: Setup,
    pub(crate) rows: Vec<Row>,
    pub(crate) costs: Vec<Cost>,
}

/// What was found for one frame size.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// Bytes with FCS.
    pub(crate) size: Sizes,
    /// Why it was not measured.
    pub(crate) skipped: Option<String>,
    /// What the sender can do, frames a second.
    pub(crate) fastest: f64,
    /// Trials of the search for the rates.
    pub(crate) trials: usize,
    /// Without loss.
    pub(crate) throughput: Option<Throughput>,
    /// With a loss of at most 0.5 %.
    pub(crate) partial: Option<Throughput>,
    /// Delays at some percents of the throughput, in microseconds.
    pub(crate) latency: Vec<(u8, Latency)>,
    /// The frame loss curve.
    pub(crate) curve: Vec<Point>,
    /// The longest burst; `None` also where the network keeps up.
    pub(crate) back_to_back: Option<BackToBack>,
    /// Packets that the sink was too slow for: they count as lost.
    pub(crate) overrun: u64,
}

impl Row {
    pub(crate) fn new(size: Sizes) -> Self {
        Self {
            size,
            skipped: None,
            fastest: 0.0,
            trials: 0,
            throughput: None,
            partial: None,
            latency: vec![],
            curve: vec![],
            back_to_back: None,
            overrun: 0,
        }
    }

    /// The lines about this size.
    pub(crate) fn lines(&self) -> String {
        let mut text = format!("\n{} bytes\n", self.size);
        if let Some(why) = &self.skipped {
            let _ = writeln!(text, "  not measured: {why}");
            return text;
        }
        let _ = writeln!(
            text,
            "  sender         {}fps at most; {} trials",
            scaled(self.fastest),
            self.trials
        );
        for (name, found) in [
            ("throughput", &self.throughput),
            ("at 0.5 % loss", &self.partial),
        ] {
            if let Some(found) = found {
                let limit = match found.sender_limited {
                    true => ", all that the sender can do",
                    false => "",
                };
                let _ = writeln!(text, "  {name:14} {}fps{limit}", scaled(found.rate));
            }
        }
        for (percent, latency) in &self.latency {
            let _ = writeln!(
                text,
                "  latency {percent:3} %  {:.1} us p50, {:.1} p99, {:.1} p99.9, {:.1} at most",
                latency.p50, latency.p99, latency.p999, latency.max
            );
        }
        for point in &self.curve {
            let _ = writeln!(
                text,
                "  loss at {:3} %  {:.4} % at {}fps",
                point.percent,
                point.loss * 100.0,
                scaled(point.rate)
            );
        }
        if let Some(found) = &self.back_to_back {
            let few = if found.repeats < ASKED_REPEATS {
                " (few: RFC 9004 asks for 50)"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "  back-to-back   {:.0} frames, {} to {}, deviation {:.0}, of {}{few}; \
                 a buffer of {:.3} ms",
                found.frames,
                found.range.0,
                found.range.1,
                found.deviation,
                found.repeats,
                found.corrected_buffer * 1e3
            );
        }
        if self.overrun > 0 {
            let _ = writeln!(
                text,
                "  {} frames were lost at the sink, which was too slow, not on the way",
                self.overrun
            );
        }
        text
    }
}

impl Report {
    pub(crate) const fn new(setup: Setup) -> Self {
        Self {
            setup,
            rows: vec![],
            costs: vec![],
        }
    }

    /// What is measured, and how.
    pub(crate) fn head(&self) -> String {
        let setup = &self.setup;
        let short = match setup.short {
            true => " SHORT: RFC 2544 section 24 asks for 60 s.",
            false => "",
        };
        format!(
            "RFC 2544: {}. Linux {}. Trials of {} s, {} s between them.{short}\n",
            setup.what, setup.kernel, setup.trial, setup.drain
        )
    }
}

/// The line about what a change of the node cost.
pub(crate) fn cost_line(cost: &Cost) -> String {
    format!(
        "  {:28} {:8.1} ms blocked: {} lost of {} at {}fps, {} reordered; it took {:.0} ms\n",
        cost.change.title(),
        cost.blocked_ms,
        cost.lost,
        cost.sent,
        scaled(cost.rate),
        cost.reordered,
        cost.took_ms
    )
}
