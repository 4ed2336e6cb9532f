//! The same pieces, a hundred batches each and nothing else, for
//! `bench/instructions` to count: it collects only inside the functions that
//! are called here.

mod work;

/// As `bench/instructions` has it.
const BATCHES: u32 = 100;

/// The first turns of a limited pod are counted by nobody: `counted` is the one
/// function that `bench/instructions` looks at.
fn turns(mut pods: work::Pods) {
    (0..BATCHES).for_each(|_| {
        pods.prepare();
        counted(&mut pods);
    });
}

#[inline(never)]
fn counted(pods: &mut work::Pods) {
    pods.turn();
}

fn main() {
    // Cargo adds `--bench`.
    let piece = std::env::args().find(|word| !word.starts_with("--") && !word.contains('/'));
    match piece.as_deref() {
        Some("parse_batch") => {
            let frame = work::frame();
            (0..BATCHES).for_each(|_| work::parse_batch(&frame));
        }
        Some("move_batch") => {
            let mut rings = work::Rings::new();
            (0..BATCHES).for_each(|_| {
                rings.prepare();
                rings.move_batch();
            });
        }
        Some("turn") => turns(work::Pods::new()),
        Some("bucket") => turns(work::Pods::limited(work::ABOVE_THE_LOAD)),
        Some("queue") => turns(work::Pods::limited(work::HALF_THE_LOAD)),
        Some("look_up_batch") => {
            let mut table = work::Table::new();
            (0..BATCHES).for_each(|_| table.look_up_batch());
        }
        _ => println!("counted by bench/instructions"),
    }
}
