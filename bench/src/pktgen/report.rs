//! A trial's outcome for people.

use std::fmt::Write;

use super::send::Sent;
use super::sink::Received;
use super::trial::Outcome;

/// The lines about what was sent.
pub(crate) fn sent(sent: &Sent) -> String {
    let mut text = format!(
        "sent       {} packets in {:.2} s: {}\n",
        sent.packets,
        sent.seconds,
        rates(sent.rate, sent.packets, sent.bytes)
    );
    if sent.given_up > 0 {
        let _ = writeln!(
            text,
            "           {} more were due, but the generator was too slow",
            sent.given_up
        );
    }
    text
}

/// The lines about what arrived.
pub(crate) fn received(received: &Received) -> String {
    let mut text = format!(
        "received   {} packets in {:.2} s: {}\n",
        received.packets,
        received.seconds,
        rates(received.rate, received.packets, received.bytes)
    );
    let counts = [
        ("duplicated", received.duplicated),
        ("reordered", received.reordered),
        ("corrupted", received.corrupted),
        ("foreign", received.foreign),
        ("overrun", received.overrun),
    ];
    for (name, count) in counts {
        if let Some(count) = count {
            let _ = writeln!(text, "{name:10} {count}");
        }
    }
    if let Some(latency) = &received.latency {
        let _ = writeln!(
            text,
            "latency    {:.1} us at least, {:.1} p50, {:.1} p90, {:.1} p99, {:.1} p99.9, \
             {:.1} at most",
            latency.min, latency.p50, latency.p90, latency.p99, latency.p999, latency.max
        );
    }
    text
}

/// All of a trial.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    format!(
        "{}{}lost       {} ({:.4} %)\n",
        sent(&outcome.sent),
        received(&outcome.received),
        outcome.lost,
        outcome.loss() * 100.0
    )
}

/// `1.204 Mpps, 578 Mbit/s`
fn rates(rate: f64, packets: u64, bytes: u64) -> String {
    let bits = bytes as f64 * 8.0 / packets.max(1) as f64 * rate;
    format!("{}pps, {}bit/s", scaled(rate), scaled(bits))
}

/// A number with three or four digits and the prefix of its unit.
pub(crate) fn scaled(value: f64) -> String {
    match value {
        v if v >= 1e9 => format!("{:.3} G", v / 1e9),
        v if v >= 1e6 => format!("{:.3} M", v / 1e6),
        v if v >= 1e3 => format!("{:.3} k", v / 1e3),
        v => format!("{v:.0} "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(scaled(1_204_000.0), "1.204 M");
        assert_eq!(scaled(12.0), "12 ");
        assert_eq!(rates(1e6, 10, 640), "1.000 Mpps, 512.000 Mbit/s");
    }
}
