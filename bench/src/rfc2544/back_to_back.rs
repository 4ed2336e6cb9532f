//! Back-to-back frames: the longest burst at the sender's highest rate that
//! arrives whole (RFC 2544 section 26.4, as RFC 9004 updates it).

use serde::Serialize;

use super::dut::{Amount, Dut, Load};
use crate::error::BenchError;

/// Repetitions that RFC 9004 section 5.3 asks for at least.
pub(crate) const ASKED_REPEATS: u32 = 50;
/// A burst is found to this part of itself, or to a frame.
const RESOLUTION: u64 = 100;

/// How bursts are searched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    /// The highest rate that the sender can do, frames a second.
    pub(crate) fastest: f64,
    /// The throughput without loss, frames a second.
    pub(crate) throughput: f64,
    /// The longest burst, in seconds at the highest rate.
    pub(crate) longest: f64,
    /// How often the search is repeated, at least once.
    pub(crate) repeats: u32,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct BackToBack {
    /// The mean of the longest bursts, in frames.
    pub(crate) frames: f64,
    /// The shortest and the longest of them.
    pub(crate) range: (u64, u64),
    /// Their standard deviation.
    pub(crate) deviation: f64,
    /// How often the search was made.
    pub(crate) repeats: u32,
    /// Seconds of buffer that the mean seems to say (RFC 9004 section 5.4).
    pub(crate) implied_buffer: f64,
    /// The same without what was forwarded during the burst.
    pub(crate) corrected_buffer: f64,
}

/// Searches the longest burst. `None` where the network keeps up with the
/// sender: there is nothing that could be buffered (RFC 9004 section 5.1).
///
/// # Errors
/// As [`Dut::offer`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of frames are far below 2^53, and not negative"
)]
pub(crate) fn back_to_back(
    dut: &mut impl Dut,
    plan: Plan,
) -> Result<Option<BackToBack>, BenchError> {
    if plan.throughput >= plan.fastest {
        return Ok(None);
    }
    let ceiling = (plan.fastest * plan.longest) as u64 + 1;
    let bursts: Result<Vec<u64>, _> = (0..plan.repeats).map(|_| longest(dut, ceiling)).collect();
    let bursts = bursts?;
    let count = bursts.len() as f64;
    let frames = bursts.iter().sum::<u64>() as f64 / count;
    let squares = bursts.iter().map(|burst| (*burst as f64 - frames).powi(2));
    let implied_buffer = frames / plan.fastest;
    Ok(Some(BackToBack {
        frames,
        range: (
            bursts.iter().copied().min().unwrap_or(0),
            bursts.iter().copied().max().unwrap_or(0),
        ),
        deviation: (squares.sum::<f64>() / count).sqrt(),
        repeats: plan.repeats,
        implied_buffer,
        corrected_buffer: implied_buffer * (1.0 - plan.throughput / plan.fastest),
    }))
}

/// The longest burst below `ceiling` frames that arrives whole.
fn longest(dut: &mut impl Dut, ceiling: u64) -> Result<u64, BenchError> {
    let (mut whole, mut torn) = (0, ceiling);
    while torn - whole > (whole / RESOLUTION).max(1) {
        let frames = u64::midpoint(whole, torn);
        let answer = dut.offer(Load {
            rate: None,
            amount: Amount::Frames(frames),
        })?;
        if answer.lost == 0 {
            whole = frames;
        } else {
            torn = frames;
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dut::simulated::Queue;
    use super::*;

    fn plan(throughput: f64) -> Plan {
        Plan {
            fastest: 1e6,
            throughput,
            longest: 2.0,
            repeats: 3,
        }
    }

    proptest! {
        #[test]
        fn the_corrected_buffer_is_the_queue(
            capacity in 10_000.0..900_000.0_f64, buffer in 100.0..20_000.0_f64,
        ) {
            let mut dut = Queue::new(capacity, buffer, 1e6);
            let found = back_to_back(&mut dut, plan(capacity)).unwrap().unwrap();
            let seconds = buffer / 1e6;
            let error = (found.corrected_buffer - seconds).abs() / seconds;
            prop_assert!(error < 0.03, "{found:?} for {buffer} frames");
            prop_assert_eq!(found.range.0, found.range.1);
            prop_assert!(found.deviation == 0.0);
        }
    }

    #[test]
    fn a_network_that_keeps_up_has_none() {
        let mut dut = Queue::new(2e6, 0.0, 1e6);
        assert_eq!(back_to_back(&mut dut, plan(1e6)).unwrap(), None);
        assert!(dut.offered.is_empty());
    }

    #[test]
    fn a_network_that_takes_nothing_has_bursts_of_none() {
        let mut dut = Queue::new(0.0, 0.0, 1e6);
        let found = back_to_back(&mut dut, plan(0.0)).unwrap().unwrap();
        assert_eq!((found.range, found.corrected_buffer), ((0, 0), 0.0));
    }
}
