//! Throughput: the highest rate without loss (RFC 2544 section 26.1, RFC 1242
//! section 3.17), and the one with a loss that an application may bear.

use serde::Serialize;

use super::dut::{Amount, Dut, Load};
use crate::error::BenchError;

/// The search ends when it knows the rate to this part of the sender's.
const RESOLUTION: f64 = 0.01;

/// A rate that was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Throughput {
    /// Frames a second that were offered; 0 if even the lowest rate was too
    /// high.
    pub(crate) rate: f64,
    /// Lost frames of those sent in the trial at that rate, from 0 to 1.
    pub(crate) loss: f64,
    /// The sender could not send faster: the network may be able to do more.
    pub(crate) sender_limited: bool,
}

/// A trial that was made.
#[derive(Debug, Clone, Copy)]
struct Tried {
    /// The rate that was asked for.
    asked: f64,
    /// What was really offered.
    rate: f64,
    loss: f64,
}

/// Searches rates, and remembers every trial: a second goal begins with what is
/// known from the first.
pub(crate) struct Search<'a, D: Dut> {
    dut: &'a mut D,
    seconds: f64,
    /// What the sender does when it may do all it can.
    fastest: f64,
    tried: Vec<Tried>,
}

impl<'a, D: Dut> Search<'a, D> {
    /// Begins with a trial of all that the sender can do.
    ///
    /// # Errors
    /// As [`Dut::offer`].
    pub(crate) fn new(dut: &'a mut D, seconds: f64) -> Result<Self, BenchError> {
        let answer = dut.offer(Load {
            rate: None,
            amount: Amount::Seconds(seconds),
        })?;
        let first = Tried {
            asked: answer.rate,
            rate: answer.rate,
            loss: answer.loss(),
        };
        Ok(Self {
            dut,
            seconds,
            fastest: answer.rate,
            tried: vec![first],
        })
    }

    /// The highest rate that the sender can do, frames a second.
    pub(crate) const fn fastest(&self) -> f64 {
        self.fastest
    }

    /// Trials so far.
    pub(crate) const fn trials(&self) -> usize {
        self.tried.len()
    }

    /// The highest rate at which at most this part of the frames is lost.
    ///
    /// # Errors
    /// As [`Dut::offer`].
    pub(crate) fn throughput(&mut self, tolerated: f64) -> Result<Throughput, BenchError> {
        let passes = |tried: &&Tried| tried.loss <= tolerated;
        loop {
            let failed = self.tried.iter().filter(|tried| !passes(tried));
            let ceiling = failed
                .map(|tried| tried.asked)
                .fold(f64::INFINITY, f64::min);
            // What passed above a rate that failed was luck.
            let best = self
                .tried
                .iter()
                .filter(|tried| tried.asked < ceiling)
                .max_by(|a, b| a.asked.total_cmp(&b.asked))
                .copied();
            let floor = best.map_or(0.0, |best| best.asked);
            if ceiling.is_infinite() || ceiling - floor <= RESOLUTION * self.fastest {
                return Ok(Throughput {
                    rate: best.map_or(0.0, |best| best.rate),
                    loss: best.map_or(0.0, |best| best.loss),
                    sender_limited: ceiling.is_infinite(),
                });
            }
            self.attempt(f64::midpoint(floor, ceiling))?;
        }
    }

    fn attempt(&mut self, asked: f64) -> Result<(), BenchError> {
        let answer = self.dut.offer(Load {
            rate: Some(asked),
            amount: Amount::Seconds(self.seconds),
        })?;
        self.tried.push(Tried {
            asked,
            rate: answer.rate,
            loss: answer.loss(),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dut::simulated::Queue;
    use super::*;

    proptest! {
        #[test]
        fn the_rate_is_found_to_a_hundredth_of_the_senders(
            capacity in 10_000.0..990_000.0_f64, seconds in 1.0..60.0_f64,
        ) {
            let mut dut = Queue::new(capacity, 0.0, 1e6);
            let mut search = Search::new(&mut dut, seconds).unwrap();
            let found = search.throughput(0.0).unwrap();
            prop_assert!(!found.sender_limited);
            prop_assert!(found.loss == 0.0);
            // A frame that is not quite lost yet.
            prop_assert!(found.rate <= capacity + 1.0, "{} of {capacity}", found.rate);
            prop_assert!(found.rate >= capacity - 10_000.0, "{} of {capacity}", found.rate);
            // A hundredth is found by seven halvings.
            prop_assert!(search.trials() <= 8);
        }

        #[test]
        fn a_loss_that_is_tolerated_is_found_from_there(capacity in 10_000.0..900_000.0_f64) {
            let mut dut = Queue::new(capacity, 0.0, 1e6);
            let mut search = Search::new(&mut dut, 10.0).unwrap();
            let strict = search.throughput(0.0).unwrap();
            let known = search.trials();
            let partial = search.throughput(0.005).unwrap();
            prop_assert!(partial.rate >= strict.rate);
            prop_assert!(partial.loss <= 0.005);
            // A queue loses 0.5 % at 1 / 0.995 of its capacity.
            prop_assert!(partial.rate <= capacity / 0.995 + 1.0);
            prop_assert!(partial.rate >= capacity / 0.995 - 10_000.0);
            prop_assert!(search.trials() <= known + 7);
        }
    }

    #[test]
    fn a_network_that_takes_all_is_not_searched() {
        let mut dut = Queue::new(2e6, 0.0, 1e6);
        let mut search = Search::new(&mut dut, 1.0).unwrap();
        let found = search.throughput(0.0).unwrap();
        assert_eq!(
            found,
            Throughput {
                rate: 1e6,
                loss: 0.0,
                sender_limited: true
            }
        );
        assert_eq!(search.trials(), 1);
    }

    #[test]
    fn a_network_that_takes_nothing_has_no_throughput() {
        let mut dut = Queue::new(0.0, 0.0, 1e6);
        let found = Search::new(&mut dut, 1.0).unwrap().throughput(0.0).unwrap();
        assert_eq!(
            found,
            Throughput {
                rate: 0.0,
                loss: 0.0,
                sender_limited: false
            }
        );
    }
}
