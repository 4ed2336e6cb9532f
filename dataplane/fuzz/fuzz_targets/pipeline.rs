//! Any bytes, as frames from a pod and from the host, through a whole engine:
//! nothing panics, every frame ends in one place, no chunk is lost.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_dataplane::lab::{HOST, Lab, LabOptions};
use sluice_dataplane::packet::exercise;
use sluice_dataplane::xsk::{FILL_DEPTH, FramePool, Umem};

const OPTIONS: LabOptions = LabOptions {
    pods: 2,
    reserve: 256,
    sessions: 16,
    features: sluice_dataplane::xsk::Features {
        multi_buffer: true,
        tx_metadata: true,
        tx_budget: true,
    },
};

thread_local! {
    /// One memory for all runs: a UMEM is mapped for the life of the process.
    static MEMORY: std::cell::RefCell<Option<(&'static Umem, FramePool)>> =
        Umem::create(3 * FILL_DEPTH + OPTIONS.reserve).ok().into();
}

fuzz_target!(|input: &[u8]| {
    let Some((umem, pool)) = MEMORY.take() else {
        panic!("no memory for the UMEM");
    };
    let mut lab = Lab::over(umem, pool, OPTIONS);
    let mut rest = input;
    // Each frame is led by its source and its length.
    while let [source, len, bytes @ ..] = rest {
        let (bytes, more) = bytes.split_at(usize::from(*len).min(bytes.len()));
        rest = more;
        lab.inject(u16::from(source % 3), &exercise::frame_of(bytes));
    }
    let arrived = lab.run().len() as u64;
    let mut received = 0;
    let mut dropped = 0;
    let mut errors = 0;
    for slot in HOST..=OPTIONS.pods {
        let counters = lab.counters(slot);
        received += counters.rx_frames.get();
        errors += counters.icmp_errors.get();
        dropped += counters.drops.snapshot().values().sum::<u64>();
    }
    assert_eq!(received + errors, arrived + dropped);
    lab.assert_no_chunk_lost();
    let pool = lab.into_pool();
    assert_eq!(pool.free_chunks(), umem.chunks() as usize);
    MEMORY.set(Some((umem, pool)));
});
