//! Each rate, twice of which is offered.

use super::envelope::{bytes_within, worst_excess};
use super::traffic::{Carried, Datagrams, float};
use super::{DESIGNS, Direction, MBIT, Plan, in_words, limit, section};
use crate::clock::SECOND;
use crate::topology::{Limit, TopologyError};

const RATES: [u64; 5] = [MBIT, 10 * MBIT, 100 * MBIT, 1000 * MBIT, 5000 * MBIT];
/// Of IP packets, bytes, before they are fragmented.
const SIZES: [u64; 3] = [64, 1500, 65_000];

const HEADS: [&str; 11] = [
    "rate",
    "direction",
    "datagrams, bytes",
    "offered to sluice",
    "carried",
    "most over the envelope, bytes",
    "not noted",
    "offered to bridge + bandwidth",
    "carried",
    "most over the envelope, bytes",
    "not noted",
];

const TEXT: &str = "Twice the rate offered by UDP from pod to pod of a node, counted where it \
    enters the receiver's stack, by the kernel's time stamps; offered and carried are parts of \
    the rate. Not noted: packets that the counting socket had no room for. The envelope: over every window of \
    at least 10 ms no more than burst + rate x window + one frame; a negative figure is what was \
    left of it at the worst. Sluice counts bytes of IP packets, the kernel's token bucket those \
    of Ethernet frames, 14 more each: each is held to its own.";

/// A section of the report.
///
/// # Errors
/// A node could not be set up, or sockets were refused.
pub(super) fn measure(plan: &Plan) -> Result<String, TopologyError> {
    let mut rows = vec![];
    for rate in RATES {
        for direction in Direction::ALL {
            let limit = limit(rate);
            let beds = plan.beds(direction, limit)?;
            for size in SIZES {
                let mut row = vec![in_words(rate), direction.name().into(), size.to_string()];
                for (design, bed) in DESIGNS.iter().zip(&beds) {
                    let datagrams = Datagrams {
                        direction,
                        size,
                        rate: 2 * rate,
                        time: plan.time,
                    };
                    let carried = datagrams.offer(plan, bed, *design)?;
                    row.extend(figures(plan, limit, &carried));
                }
                eprintln!("{}", row.join("  "));
                rows.push(row);
            }
        }
    }
    Ok(section("Rates", TEXT, &HEADS, &rows))
}

fn figures(plan: &Plan, limit: Limit, carried: &Carried) -> [String; 4] {
    let full = float(limit.rate) / 8.0 * plan.time.as_secs_f64();
    let came = bytes_within(&carried.arrivals, plan.time.as_secs() * SECOND);
    let excess = worst_excess(&carried.arrivals, limit);
    [
        format!("{:.3}", float(carried.offered) / full),
        format!("{:.4}", float(came) / full),
        excess.map_or("nothing came".into(), |excess| excess.to_string()),
        carried.missed.to_string(),
    ]
}
