//! One-way delays.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::SECOND;

/// Delays between a nanosecond and a minute, to a thousandth.
pub(crate) struct Delays {
    histogram: Histogram<u64>,
}

/// What they come to, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Latency {
    /// The smallest.
    pub(crate) min: f64,
    /// The mean.
    pub(crate) mean: f64,
    /// The median.
    pub(crate) p50: f64,
    /// 90 of 100 are not larger.
    pub(crate) p90: f64,
    /// 99 of 100 are not larger.
    pub(crate) p99: f64,
    /// 999 of 1000 are not larger.
    pub(crate) p999: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Delays {
    pub(crate) fn new() -> Self {
        Self {
            histogram: Histogram::new_with_bounds(1, 60 * SECOND, 3)
                .expect("bounds and digits that the crate allows"),
        }
    }

    /// Takes a delay, in nanoseconds.
    pub(crate) fn record(&mut self, nanos: u64) {
        self.histogram.saturating_record(nanos);
    }

    /// `None` if there was none.
    pub(crate) fn latency(&self) -> Option<Latency> {
        let all = &self.histogram;
        if all.is_empty() {
            return None;
        }
        let at = |quantile| micros(all.value_at_quantile(quantile));
        Some(Latency {
            min: micros(all.min()),
            mean: all.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(all.max()),
        })
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let mut delays = Delays::new();
        assert_eq!(delays.latency(), None);
        for micros in 1..=1000 {
            delays.record(micros * 1000);
        }
        let latency = delays.latency().unwrap();
        for (is, should) in [
            (latency.min, 1.0),
            (latency.mean, 500.5),
            (latency.p50, 500.0),
            (latency.p90, 900.0),
            (latency.p99, 990.0),
            (latency.p999, 999.0),
            (latency.max, 1000.0),
        ] {
            assert!((is - should).abs() <= should / 500.0, "{is} for {should}");
        }
    }
}
