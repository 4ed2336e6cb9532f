//! What a turn of the loop costs by itself: an engine over in-memory kernels,
//! whose part is not counted.
//!
//! ```text
//! cargo build --release -p sluice-dataplane --no-default-features --example turns
//! target/release/examples/turns
//! valgrind --tool=callgrind --toggle-collect='*measured*' target/release/examples/turns udp 100
//! ```

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use sluice_dataplane::lab::{HOST, Lab, LabOptions, link, v4, v6};
use sluice_dataplane::packet::build;
use sluice_dataplane::xsk::BATCH_SIZE;

/// The pods that send and receive.
const SENDER: u16 = 1;
const RECEIVER: u16 = 2;

/// What is sent in each turn, by which port.
struct Case {
    name: &'static str,
    from: u16,
    frames: Vec<Vec<u8>>,
}

fn cases() -> Vec<Case> {
    let of = |name, from, frame: &dyn Fn(u32) -> Vec<u8>| Case {
        name,
        from,
        frames: (0..u32::try_from(BATCH_SIZE).unwrap_or(u32::MAX))
            .map(frame)
            .collect(),
    };
    let udp4 = build::udp((v4(SENDER), 1000), (v4(RECEIVER), 9)).payload([0; 18]);
    let udp6 = build::udp((v6(SENDER), 1000), (v6(RECEIVER), 9)).payload([0; 18]);
    let segment = |n: u32| {
        let tcp = build::tcp((v4(SENDER), 1000), (v4(RECEIVER), 9)).dont_fragment();
        tcp.sequence(n * 1448).payload([0; 1448])
    };
    vec![
        of("udp", SENDER, &|_| {
            udp4.clone().partial().frame(link(SENDER))
        }),
        of("udp-v6", SENDER, &|_| {
            udp6.clone().partial().frame(link(SENDER))
        }),
        of("udp-host", HOST, &|_| udp4.frame(link(HOST))),
        of("tcp-partial", SENDER, &|n| {
            segment(n).partial().frame(link(SENDER))
        }),
        of("tcp", SENDER, &|n| segment(n).frame(link(SENDER))),
    ]
}

#[inline(never)]
fn measured(lab: &mut Lab) {
    lab.turn();
}

/// How long each round took, the shortest first, and how many frames arrived.
fn run(case: &Case, rounds: u32) -> (Vec<Duration>, usize) {
    let mut options = LabOptions::default();
    // By the rings: what is sent beside them the kernel copies within the turn.
    options.features.gso = false;
    let mut lab = Lab::new(options);
    let mut spent = Vec::new();
    let mut arrived = 0;
    for _ in 0..rounds {
        for frame in &case.frames {
            assert!(lab.inject(case.from, frame), "no room to receive");
        }
        let started = Instant::now();
        measured(&mut lab);
        spent.push(started.elapsed());
        arrived += black_box(lab.take(RECEIVER)).len();
    }
    spent.sort_unstable();
    (spent, arrived)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next();
    let rounds = arguments
        .next()
        .map_or(Ok(20_000), |text| text.parse::<u32>())?
        .max(1);
    for case in cases() {
        if only.as_ref().is_some_and(|only| only != case.name) {
            continue;
        }
        let (spent, arrived) = run(&case, rounds);
        let of_round = |place: usize| spent[place].as_nanos() / case.frames.len() as u128;
        println!(
            "{:12} {:4} ns a frame (median; least {}), {arrived} frames became of {}",
            case.name,
            of_round(spent.len() / 2),
            of_round(0),
            spent.len() * case.frames.len(),
        );
    }
    Ok(())
}
