//! Second 1 of a pod whose limit came with the burst that runtimes send.

use std::time::Duration;

use super::envelope::bytes_within;
use super::traffic::{Datagrams, float};
use super::{DESIGNS, Direction, MBIT, Plan, in_words, name, section};
use crate::clock::SECOND;
use crate::topology::{Limit, TopologyError};

const RATE: u64 = 10 * MBIT;
/// How much more is offered.
const TIMES: u64 = 20;

const HEADS: [&str; 4] = ["rate", "direction", "", "second 1 / rate"];

const TEXT: &str = "Limits as containerd makes them of `kubernetes.io/ingress-bandwidth: 10M` and \
    `egress-bandwidth`: the burst is 2^32-1 bits. Twenty times the rate offered; bytes of the \
    second that begins with the first packet. The goal: 1.1 at most.";

/// A section of the report.
///
/// # Errors
/// A node could not be set up, or sockets were refused.
pub(super) fn measure(plan: &Plan) -> Result<String, TopologyError> {
    let limit = Limit {
        rate: RATE,
        burst: u32::MAX.into(),
    };
    let mut rows = vec![];
    for direction in Direction::ALL {
        let beds = plan.beds(direction, limit)?;
        for (design, bed) in DESIGNS.iter().zip(&beds) {
            let datagrams = Datagrams {
                direction,
                size: 1500,
                rate: TIMES * RATE,
                time: Duration::from_millis(1200),
            };
            let carried = datagrams.offer(plan, bed, *design)?;
            let bytes = bytes_within(&carried.arrivals, SECOND);
            rows.push(vec![
                in_words(RATE),
                direction.name().into(),
                name(*design).into(),
                format!("{:.3}", float(bytes) * 8.0 / float(RATE)),
            ]);
        }
    }
    Ok(section("Second 1", TEXT, &HEADS, &rows))
}
