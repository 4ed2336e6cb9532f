//! The frame loss curve (RFC 2544 section 26.3).

use serde::Serialize;

use super::dut::{Amount, Dut, Load};
use crate::error::BenchError;

/// A point of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Point {
    /// Percent of the highest rate that the sender can do.
    pub(crate) percent: u8,
    /// Frames a second that were really offered.
    pub(crate) rate: f64,
    /// Lost frames of those sent, from 0 to 1.
    pub(crate) loss: f64,
}

/// From `fastest` frames a second down in steps of a tenth, until two trials
/// one after the other lose nothing.
///
/// # Errors
/// As [`Dut::offer`].
pub(crate) fn curve(
    dut: &mut impl Dut,
    fastest: f64,
    seconds: f64,
) -> Result<Vec<Point>, BenchError> {
    let mut points: Vec<Point> = vec![];
    for percent in (10..=100).rev().step_by(10) {
        let answer = dut.offer(Load {
            // At 100 % nobody has to be held back.
            rate: (percent < 100).then(|| fastest * f64::from(percent) / 100.0),
            amount: Amount::Seconds(seconds),
        })?;
        points.push(Point {
            percent,
            rate: answer.rate,
            loss: answer.loss(),
        });
        if points
            .iter()
            .rev()
            .take_while(|point| point.loss == 0.0)
            .count()
            == 2
        {
            break;
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::super::dut::simulated::Queue;
    use super::*;

    #[test]
    fn the_curve_ends_after_two_trials_without_loss() {
        let mut dut = Queue::new(750_000.0, 0.0, 1e6);
        let points = curve(&mut dut, 1e6, 10.0).unwrap();
        let percents: Vec<u8> = points.iter().map(|point| point.percent).collect();
        assert_eq!(percents, [100, 90, 80, 70, 60]);
        for point in &points {
            let expected = (1.0 - 0.75 / (f64::from(point.percent) / 100.0)).max(0.0);
            assert!((point.loss - expected).abs() < 1e-5, "{point:?}");
        }
    }

    #[test]
    fn a_network_that_always_loses_has_ten_points() {
        let mut dut = Queue::new(0.0, 0.0, 1e6);
        let points = curve(&mut dut, 1e6, 1.0).unwrap();
        assert_eq!(points.len(), 10);
        assert!(points.iter().all(|point| point.loss == 1.0));
    }
}
