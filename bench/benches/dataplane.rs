//! Time a frame takes in each piece of the packet path, over kernels in
//! memory: `cargo bench -p sluice-bench --bench dataplane`.

mod work;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice_dataplane::xsk::BATCH_SIZE;

/// Times `run` alone, not what has to be prepared for it.
fn timed<T>(what: &mut T, times: u64, prepare: impl Fn(&mut T), run: impl Fn(&mut T)) -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..times {
        prepare(what);
        let start = Instant::now();
        run(what);
        sum += start.elapsed();
    }
    sum
}

fn dataplane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch of 64 frames");
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    let frame = work::frame();
    group.bench_function("parse", |bencher| {
        bencher.iter(|| work::parse_batch(&frame));
    });
    let mut rings = work::Rings::new();
    group.bench_function("rings", |bencher| {
        bencher.iter_custom(|times| {
            timed(
                &mut rings,
                times,
                work::Rings::prepare,
                work::Rings::move_batch,
            )
        });
    });
    let limited = work::Pods::limited(work::HALF_THE_LOAD);
    assert!(limited.waiting() > 0, "nothing waits for half the load");
    for (name, mut pods) in [
        ("pipeline, pod to pod", work::Pods::new()),
        (
            "the same, bucket above the load",
            work::Pods::limited(work::ABOVE_THE_LOAD),
        ),
        ("the same, queue at half the load", limited),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                timed(&mut pods, times, work::Pods::prepare, work::Pods::turn)
            });
        });
    }
    let mut table = work::Table::new();
    group.bench_function("session table, 32768 sessions", |bencher| {
        bencher.iter(|| table.look_up_batch());
    });
    group.finish();
}

criterion_group!(benches, dataplane);
criterion_main!(benches);
