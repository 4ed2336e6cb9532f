//! A real way through a network, from one namespace to another.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::dut::{Amount, Answer, Dut, Load};
use crate::error::BenchError;
use crate::pktgen::{
    Outcome, Place, Progress, Protocol, SendBy, SendSpec, SinkBy, SinkSpec, Sizes, Trial,
};
use crate::topology::interrupt;

/// The longest that a burst of counted frames may take, in seconds.
const MOST: f64 = 120.0;

/// From where to where, and how.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Path {
    /// Where the generator runs.
    pub(crate) from: Place,
    /// Where the sink runs.
    pub(crate) into: Place,
    /// The sink's interface.
    pub(crate) interface: String,
    /// Where the generator sends to.
    pub(crate) to: SocketAddr,
    /// The port that arrives.
    pub(crate) sink_port: u16,
    /// UDP or TCP.
    pub(crate) protocol: Protocol,
    /// How many flows.
    pub(crate) flows: u16,
    /// By what is sent.
    pub(crate) by: SendBy,
    /// By what is received, but for the latency, which AF_XDP sees.
    pub(crate) sink: SinkBy,
    /// Seconds to wait after each trial for what is on its way.
    pub(crate) drain: f64,
}

impl Path {
    /// A trial of frames of these sizes.
    pub(crate) fn trial(&self, sizes: Sizes, load: Load, sink: SinkBy) -> Trial {
        let (seconds, count) = match load.amount {
            Amount::Seconds(seconds) => (seconds, None),
            Amount::Frames(frames) => (MOST, Some(frames)),
        };
        Trial {
            from: self.from.clone(),
            send: SendSpec {
                to: self.to,
                sizes,
                protocol: self.protocol,
                flows: self.flows,
                rate: load.rate,
                seconds,
                count,
                by: self.by,
            },
            to: self.into.clone(),
            sink: SinkSpec {
                interface: self.interface.clone(),
                port: self.sink_port,
                flows: self.flows,
                by: sink,
            },
            drain: self.drain,
        }
    }
}

/// A path as a device under test, for frames of given sizes.
pub(crate) struct Wire<'a> {
    path: &'a Path,
    sizes: Sizes,
    /// By what is received.
    sink: SinkBy,
    /// Told what goes on.
    progress: &'a mut dyn FnMut(&str),
    /// Packets that no network lost: the sink was too slow.
    pub(crate) overrun: u64,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(path: &'a Path, sizes: Sizes, progress: &'a mut dyn FnMut(&str)) -> Self {
        Self {
            path,
            sizes,
            sink: path.sink,
            progress,
            overrun: 0,
        }
    }

    /// The same network, looked at by a sink that sees delays.
    pub(crate) fn with_latency(mut self) -> Self {
        if self.sink == SinkBy::Xdp {
            self.sink = SinkBy::Xsk;
        }
        self
    }
}

impl Dut for Wire<'_> {
    fn offer(&mut self, load: Load) -> Result<Answer, BenchError> {
        interrupt::check()?;
        let trial = self.path.trial(self.sizes, load, self.sink);
        let what = match (load.rate, load.amount) {
            (_, Amount::Frames(frames)) => format!("a burst of {frames}"),
            (None, _) => "as fast as possible".to_owned(),
            (Some(rate), _) => format!("{rate:.0} frames a second"),
        };
        let outcome = trial.run(|progress: &Progress| {
            let received = progress.received.load(Ordering::Relaxed);
            (self.progress)(&format!("{what}, {received} received"));
        })?;
        self.overrun += outcome.received.overrun.unwrap_or(0);
        Ok(answer(&outcome))
    }
}

/// A trial's outcome as the RFC's tests want it.
pub(crate) fn answer(outcome: &Outcome) -> Answer {
    Answer {
        sent: outcome.sent.packets,
        lost: outcome.lost,
        rate: outcome.sent.rate,
        latency: outcome.received.latency,
    }
}
