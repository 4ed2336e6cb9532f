//! What is asked of a device under test: to carry a load.

use crate::error::BenchError;
use crate::pktgen::Latency;

/// Trials shorter than this are to be called short (RFC 2544 section 24).
pub(crate) const FULL_TRIAL: f64 = 60.0;

/// What is offered in a trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Frames a second; as many as possible if `None`.
    pub(crate) rate: Option<f64>,
    /// How much of it.
    pub(crate) amount: Amount,
}

/// How much is offered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Amount {
    /// For so many seconds.
    Seconds(f64),
    /// So many frames.
    Frames(u64),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer {
    /// Frames that were sent.
    pub(crate) sent: u64,
    /// How many of them did not arrive.
    pub(crate) lost: u64,
    /// Frames a second that were really offered.
    pub(crate) rate: f64,
    /// One-way delays, if they were asked for.
    pub(crate) latency: Option<Latency>,
}

impl Answer {
    /// Lost frames of those sent, from 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        self.lost as f64 / self.sent.max(1) as f64
    }
}

/// A network between two ports.
pub(crate) trait Dut {
    /// Offers a load, and waits until all of it has arrived or is lost.
    ///
    /// # Errors
    /// The trial could not be made.
    fn offer(&mut self, load: Load) -> Result<Answer, BenchError>;
}

#[cfg(test)]
pub(crate) mod simulated {
    use super::*;

    /// A queue of `buffer` frames that is served at `capacity` frames a second,
    /// behind a sender of at most `fastest`.
    pub(crate) struct Queue {
        pub(crate) capacity: f64,
        pub(crate) buffer: f64,
        pub(crate) fastest: f64,
        /// Every load that was offered.
        pub(crate) offered: Vec<Load>,
    }

    impl Queue {
        pub(crate) fn new(capacity: f64, buffer: f64, fastest: f64) -> Self {
            Self {
                capacity,
                buffer,
                fastest,
                offered: vec![],
            }
        }
    }

    impl Dut for Queue {
        fn offer(&mut self, load: Load) -> Result<Answer, BenchError> {
            self.offered.push(load);
            let rate = load
                .rate
                .map_or(self.fastest, |rate| rate.min(self.fastest));
            let sent = match load.amount {
                Amount::Seconds(seconds) => (rate * seconds).floor(),
                Amount::Frames(frames) => frames as f64,
            };
            let queued = sent * (1.0 - self.capacity / rate);
            let lost = (queued - self.buffer).max(0.0).floor();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "whole numbers, and none is negative"
            )]
            let count = |frames: f64| frames as u64;
            Ok(Answer {
                sent: count(sent),
                lost: count(lost),
                rate,
                latency: None,
            })
        }
    }
}
