//! Faults of known number, and what is reported.

use std::time::Duration;

use serde_json::{Value, json};

use crate::injector::{Fault, Plan, Seen};
use crate::rig::Rig;

const PACKETS: u64 = 3000;
/// Packets of each kind of fault.
const FAULTS: u64 = 30;
/// So many packets, at a rate that no machine is too slow for.
const MODEST: &str = "--count 3000 --rate 5000 --drain 1";

/// One packet of each hundred is lost, one doubled, one swapped with the next,
/// one corrupted.
fn all(number: u64) -> Fault {
    match number % 100 {
        10 => Fault::Lose,
        20 => Fault::Duplicate,
        30 => Fault::Swap,
        40 => Fault::Corrupt,
        _ => Fault::None,
    }
}

fn losses(number: u64) -> Fault {
    match all(number) {
        Fault::Lose => Fault::Lose,
        _ => Fault::None,
    }
}

/// Asserts that all was sent, and came to the injector.
fn assert_whole(outcome: &Value, seen: &Seen) {
    assert_eq!(outcome["sent"]["packets"], PACKETS, "{outcome:#}");
    assert_eq!(seen.packets, PACKETS, "the injector was too slow");
}

/// Asserts that every fault was reported as it was injected.
fn assert_all(outcome: &Value, seen: &Seen) {
    assert_whole(outcome, seen);
    assert_eq!(outcome["lost"], FAULTS, "{outcome:#}");
    for (name, count) in [
        ("packets", PACKETS - 2 * FAULTS),
        ("duplicated", FAULTS),
        ("reordered", FAULTS),
        ("reordering_extent", 2),
        ("corrupted", FAULTS),
        ("foreign", 0),
        ("overrun", 0),
        // What was corrupted is missing, too.
        ("gaps", 2 * FAULTS),
    ] {
        assert_eq!(outcome["received"][name], count, "{name}: {outcome:#}");
    }
}

#[test]
fn an_xsk_sink_reports_each_fault() {
    let rig = Rig::new();
    let plan = Plan {
        fault: all,
        ..Plan::NOTHING
    };
    for words in [
        "--size 64",
        "--size 1000",
        "--size imix",
        "--protocol tcp --size 100",
        "--v6 --size 100",
        "--v6 --protocol tcp --size imix",
        "--by socket --size 200",
    ] {
        let (outcome, seen) = rig.pair(&plan, &format!("{MODEST} --sink xsk {words}"));
        assert_all(&outcome, &seen);
    }
}

#[test]
fn a_socket_sink_reports_each_fault() {
    let rig = Rig::new();
    // With a checksum the kernel would drop it, and it would be lost.
    fn unchecked(number: u64) -> Fault {
        match all(number) {
            Fault::Corrupt => Fault::CorruptUnchecked,
            other => other,
        }
    }
    let plan = Plan {
        fault: unchecked,
        ..Plan::NOTHING
    };
    for words in ["--size 64", "--by socket --size imix"] {
        let (outcome, seen) = rig.pair(&plan, &format!("{MODEST} --sink socket {words}"));
        assert_all(&outcome, &seen);
    }
    let plan = Plan {
        fault: all,
        ..Plan::NOTHING
    };
    let (outcome, seen) = rig.pair(&plan, &format!("{MODEST} --sink socket"));
    assert_whole(&outcome, &seen);
    assert_eq!(outcome["received"]["corrupted"], 0, "{outcome:#}");
    assert_eq!(outcome["lost"], 2 * FAULTS, "{outcome:#}");
}

#[test]
fn a_counting_sink_counts() {
    let rig = Rig::new();
    let plan = Plan {
        fault: losses,
        ..Plan::NOTHING
    };
    for words in ["--size 64", "--v6 --size 1518", "--protocol tcp --size 100"] {
        let (outcome, seen) = rig.pair(&plan, &format!("{MODEST} --sink xdp {words}"));
        assert_whole(&outcome, &seen);
        assert_eq!(
            outcome["received"]["packets"],
            PACKETS - FAULTS,
            "{outcome:#}"
        );
        assert_eq!(outcome["lost"], FAULTS, "{outcome:#}");
        assert_eq!(outcome["received"]["corrupted"], json!(null));
    }
}

#[test]
fn losses_of_many_flows_are_counted_flow_by_flow() {
    let rig = Rig::new();
    let plan = Plan {
        fault: losses,
        ..Plan::NOTHING
    };
    // 7 and 100 have no common divisor: each flow has losses.
    let (outcome, seen) = rig.pair(&plan, &format!("{MODEST} --flows 7"));
    assert_whole(&outcome, &seen);
    assert_eq!(outcome["lost"], FAULTS, "{outcome:#}");
    assert_eq!(outcome["received"]["gaps"], FAULTS, "{outcome:#}");
    assert_eq!(outcome["received"]["reordered"], 0, "{outcome:#}");
}

#[test]
fn a_packet_of_an_earlier_trial_is_foreign() {
    let rig = Rig::new();
    let (outcome, first) = rig.pair(&Plan::NOTHING, MODEST);
    assert_eq!(outcome["received"]["foreign"], 0, "{outcome:#}");
    let plan = Plan {
        stray: Some(&first.first),
        ..Plan::NOTHING
    };
    let (outcome, seen) = rig.pair(&plan, MODEST);
    assert_whole(&outcome, &seen);
    assert_eq!(outcome["received"]["foreign"], 1, "{outcome:#}");
    assert_eq!(outcome["received"]["packets"], PACKETS, "{outcome:#}");
    assert_eq!(outcome["received"]["duplicated"], 0, "{outcome:#}");
}

/// A delay that the machine's own are small beside. What is added on the way
/// is bounded only loosely: nobody knows when a thread runs.
#[test]
fn a_delay_is_reported() {
    let rig = Rig::new();
    let delay = Duration::from_millis(300);
    let plan = Plan {
        delay,
        ..Plan::NOTHING
    };
    let (outcome, seen) = rig.pair(&plan, "--count 500 --rate 1000 --drain 3");
    assert_eq!((seen.packets, seen.forwarded), (500, 500));
    assert_eq!(outcome["lost"], 0, "{outcome:#}");
    let micros = |name: &str| outcome["received"]["latency"][name].as_f64().unwrap();
    // A thousandth is what the histogram may be wrong by.
    assert!(micros("min") >= 299_700.0, "{outcome:#}");
    assert!(micros("p50") <= 600_000.0, "{outcome:#}");
}

/// The injector has the same packets pass it at the same times: what it saw is
/// the truth, however late both were.
#[test]
fn a_rate_is_reported() {
    let rig = Rig::new();
    let plan = Plan {
        gap: Duration::from_millis(2),
        ..Plan::NOTHING
    };
    let (outcome, seen) = rig.pair(&plan, "--count 500 --rate 2000 --drain 4");
    assert_eq!((seen.packets, seen.forwarded), (500, 500));
    assert_eq!(outcome["lost"], 0, "{outcome:#}");
    let (first, last) = seen.sending.unwrap();
    let truth = 500.0 / last.duration_since(first).as_secs_f64();
    let told = outcome["received"]["rate"].as_f64().unwrap();
    assert!(
        truth <= 501.1,
        "a packet each 2 ms are 500 a second: {truth}"
    );
    assert!(
        (told / truth - 1.0).abs() < 0.1,
        "{told} for {truth}: {outcome:#}"
    );
    let sent = outcome["sent"]["rate"].as_f64().unwrap();
    assert!(sent <= 2010.0, "{outcome:#}");
}
