//! What a change on the node costs the traffic that goes on meanwhile. The
//! blocked time is that in which as many frames arrive as were lost: lost
//! frames / offered load, the frame-loss method of RFC 6201.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Serialize;
use sluice_control::{AskedLimit, LimitChange};

use super::dut::{Amount, Load};
use super::path::Path;
use crate::error::BenchError;
use crate::pktgen::{SinkBy, Sizes};
use crate::topology::{Bed, Container, Tools, interrupt};

/// The load runs this long before something changes, and after it.
const QUIET: Duration = Duration::from_secs(1);
/// Pods that are added and deleted one after the other.
const PODS: u32 = 10;
/// A limit that the load does not reach, in bit/s, and its burst in bits.
const LIMIT: AskedLimit = AskedLimit {
    rate: 100_000_000_000,
    burst: Some(512_000_000),
};

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    /// Nothing: what the load loses by itself.
    Nothing,
    /// Ten pods are added, then deleted.
    AddAndDel,
    /// The receiving pod gets limits, and loses them again.
    Limits,
    /// The daemon is ended as by a service manager, and started again.
    Restart,
    /// The daemon is killed, and started again.
    Crash,
}

impl Change {
    pub(crate) const ALL: [Self; 5] = [
        Self::Nothing,
        Self::AddAndDel,
        Self::Limits,
        Self::Restart,
        Self::Crash,
    ];

    /// For people.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::AddAndDel => "ADD and DEL of 10 pods",
            Self::Limits => "limits set and removed",
            Self::Restart => "restart of the daemon",
            Self::Crash => "SIGKILL of the daemon, start",
        }
    }
}

/// What a change cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Cost {
    /// What changed.
    pub(crate) change: Change,
    /// Frames a second that were offered.
    pub(crate) rate: f64,
    /// Frames that were sent.
    pub(crate) sent: u64,
    /// Frames that were lost.
    pub(crate) lost: u64,
    /// Frames that came behind later ones.
    pub(crate) reordered: u64,
    /// Milliseconds of the load that were lost.
    pub(crate) blocked_ms: f64,
    /// Milliseconds that the change itself took.
    pub(crate) took_ms: f64,
}

/// Offers `rate` frames a second of 64 bytes for `seconds`, and makes the
/// change when a second of it is over.
///
/// # Errors
/// The trial or the change could not be made, or the change took longer than
/// the trial.
pub(crate) fn measure(
    change: Change,
    bed: &mut Bed,
    tools: &Tools,
    path: &Path,
    (rate, seconds): (f64, f64),
) -> Result<Cost, BenchError> {
    let load = Load {
        rate: Some(rate),
        amount: Amount::Seconds(seconds),
    };
    // The sink that sees order, too.
    let trial = path.trial(Sizes::Fixed(64), load, SinkBy::Xsk);
    let start = Instant::now();
    let mut made: Option<Result<Duration, BenchError>> = None;
    let outcome = trial.run(|_| {
        if made.is_none() && start.elapsed() > QUIET {
            let begun = Instant::now();
            made = Some(make(change, bed, tools).map(|()| begun.elapsed()));
        }
    })?;
    let took = made.unwrap_or(Ok(Duration::ZERO))?;
    if QUIET * 2 + took > Duration::from_secs_f64(seconds) {
        return Err(BenchError::Refused(format!(
            "{}: it took {:.1} s, so trials of {seconds} s are too short: choose longer ones",
            change.title(),
            took.as_secs_f64()
        )));
    }
    Ok(Cost {
        change,
        rate: outcome.sent.rate,
        sent: outcome.sent.packets,
        lost: outcome.lost,
        reordered: outcome.received.reordered.unwrap_or(0),
        blocked_ms: blocked(outcome.lost, outcome.sent.rate) * 1e3,
        took_ms: took.as_secs_f64() * 1e3,
    })
}

/// Seconds of a load of `rate` that `lost` frames are.
fn blocked(lost: u64, rate: f64) -> f64 {
    if rate > 0.0 { lost as f64 / rate } else { 0.0 }
}

fn make(change: Change, bed: &mut Bed, tools: &Tools) -> Result<(), BenchError> {
    match change {
        Change::Nothing => {}
        Change::AddAndDel => {
            for number in 0..PODS {
                interrupt::check()?;
                let space = bed.space(&format!("r{number}"))?;
                let container = Container::new(&space);
                let Some(list) = bed.list() else {
                    return Err(no_plugins());
                };
                let result = list.add(&container)?;
                list.del(&container, &result)?;
            }
        }
        Change::Limits => {
            for change in [LimitChange::Limit(LIMIT), LimitChange::Unlimited] {
                bed.set_limits(change)?;
            }
        }
        Change::Restart => bed.restart(tools, Signal::SIGTERM)?,
        Change::Crash => bed.restart(tools, Signal::SIGKILL)?,
    }
    Ok(())
}

fn no_plugins() -> BenchError {
    BenchError::Refused("this design attaches no pods by plugins".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blocked_time_is_what_was_lost_of_the_load() {
        assert_eq!(blocked(5_000, 10_000.0), 0.5);
        assert_eq!(blocked(0, 10_000.0), 0.0);
        assert_eq!(blocked(0, 0.0), 0.0);
    }
}
