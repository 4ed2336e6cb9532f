//! Any bytes through every function of `packet`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sluice_dataplane::packet::exercise;

fuzz_target!(|input: &[u8]| exercise::frame(&exercise::frame_of(input)));
