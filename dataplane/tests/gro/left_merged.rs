//! Segments that their sender's stack has left merged.

use std::net::IpAddr;

use sluice_control::{Limit, Shaping};
use sluice_dataplane::lab::{GATEWAY_MAC, HOST, Lab, LabOptions, MTU, v4, v6};
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::MAX_CHUNKS;
use sluice_dataplane::xsk::memory::Sent;

use super::{
    CUT, OUTSIDE, POD, SENDER, in_one_turn, in_one_turn_to, is_right, lab, lab_with, lens,
    merged_link, pieces,
};

/// So many segments of 400 bytes as their sender's stack leaves them, to the pod.
fn left_merged(from: impl Into<IpAddr>, count: usize) -> Datagram {
    build::tcp((from.into(), 80), (v4(POD), 4000))
        .sequence(0)
        .dont_fragment()
        .payload(vec![7; count * usize::from(CUT)])
        .partial()
}

#[test]
fn what_a_stack_left_merged_goes_on_as_it_is() {
    for (from, src) in [(HOST, OUTSIDE.into()), (SENDER, v4(SENDER))] {
        for mtu in [1500, MTU] {
            let mut lab = lab_with(mtu, true);
            let frame = left_merged(src, 100).frame(merged_link(CUT));
            let arrived = in_one_turn(&mut lab, from, &[frame]);
            assert_eq!(lens(&arrived), [40_000]);
            assert_eq!(arrived[0].segment, Some(CUT));
            assert_eq!(arrived[0].bytes[6..12], GATEWAY_MAC, "the mark stays here");
            assert_eq!(lab.counters(POD).cut_frames.get(), 0);
        }
    }
    let mut lab = lab();
    let out = build::tcp((v4(SENDER), 80), (OUTSIDE, 4000)).dont_fragment();
    let frame = out.payload([7; 999]).partial().frame(merged_link(CUT));
    let arrived = in_one_turn_to(&mut lab, HOST, SENDER, &[frame]);
    assert_eq!((lens(&arrived), arrived[0].segment), (vec![999], Some(CUT)));
}

/// Nine segments of 400 bytes and one of 9, merged by the sender's stack, arrive
/// by themselves, and are counted where they were cut.
#[track_caller]
fn arrives_cut(lab: &mut Lab, cut_at: u16) {
    let frame = left_merged(v4(SENDER), 9).payload([7; 9]).partial();
    let arrived = in_one_turn(lab, SENDER, &[frame.frame(merged_link(CUT))]);
    let step = u32::from(CUT);
    let expected: Vec<_> = (0..10)
        .map(|n| (n * step, if n < 9 { CUT.into() } else { 9 }))
        .collect();
    assert_eq!(
        arrived.iter().flat_map(pieces).collect::<Vec<_>>(),
        expected
    );
    assert!(arrived.iter().all(is_right));
    assert_eq!(lab.counters(cut_at).cut_frames.get(), 9);
}

#[test]
fn who_takes_no_merged_segments_gets_them_cut() {
    let mut without = LabOptions::default();
    (without.features.gso, without.features.multi_buffer) = (false, false);
    arrives_cut(&mut Lab::new(without), POD);
    let no_gro = LabOptions {
        gro: false,
        ..LabOptions::default()
    };
    arrives_cut(&mut Lab::new(no_gro), POD);
    let (rate, burst) = (1_000_000_000, 1_000_000);
    let limit = Some(Limit { rate, burst });
    for (ingress, egress, pod) in [(limit, None, POD), (None, limit, SENDER)] {
        let mut lab = lab();
        let shaping = Shaping {
            ingress,
            egress,
            ..Shaping::default()
        };
        lab.shape(pod, &shaping, MTU);
        arrives_cut(&mut lab, pod);
    }
}

/// More chunks than a kernel takes, as from a stack whose `gso_max_size` is not ours:
/// it is cut, and merged again as far as that goes.
#[test]
fn what_is_too_long_to_go_on_is_cut() {
    let mut lab = lab();
    let all = left_merged(v4(SENDER), 0).payload(vec![7; 65_300]);
    let arrived = in_one_turn(&mut lab, SENDER, &[all.frame(merged_link(CUT))]);
    let all: Vec<_> = arrived.iter().flat_map(pieces).collect();
    let expected = (0..164).map(|n| (n * 400, 400.min(65_300 - n as usize * 400)));
    assert_eq!(all, expected.collect::<Vec<_>>());
    assert_eq!(arrived.len(), 164_usize.div_ceil(MAX_CHUNKS.into()));
}

/// The kernel cuts no packet with such headers: as if the port took none at all.
#[test]
fn what_has_extension_headers_is_cut() {
    const FRAGMENT: u8 = 44;
    let segments = |n: u32| {
        let base = build::tcp((v6(SENDER), 80), (v6(POD), 4000)).sequence(n * 1000);
        base.payload([7; 1000]).partial()
    };
    let mut lab = lab();
    let atomic = segments(0).extension(FRAGMENT, &[0; 6]);
    let arrived = in_one_turn(&mut lab, SENDER, &[atomic.frame(merged_link(CUT))]);
    let segment_of = |sent: &Sent| sent.segment;
    assert_eq!(
        arrived.iter().map(segment_of).collect::<Vec<_>>(),
        [None; 3]
    );
    // The others still go on merged.
    let arrived = in_one_turn(&mut lab, SENDER, &[segments(1).frame(merged_link(CUT))]);
    assert_eq!(
        arrived.iter().map(segment_of).collect::<Vec<_>>(),
        [Some(CUT)]
    );
}

#[test]
fn what_the_mark_does_not_hold_for_goes_as_it_is_or_nowhere() {
    let mut lab = lab_with(1500, true);
    let mut send = |datagram: Datagram, data_len: u16| {
        let frame = datagram.frame(merged_link(data_len));
        lens(&in_one_turn(&mut lab, SENDER, &[frame]))
    };
    // The kernel has cut it by itself.
    let udp = build::udp((v4(SENDER), 80), (v4(POD), 4000)).payload([7; 112]);
    assert_eq!(send(udp.clone(), 18), [100], "12 bytes less of headers");
    assert_eq!(send(left_merged(v4(SENDER), 1), CUT), [400]);
    let complete = build::tcp((v4(SENDER), 80), (v4(POD), 4000)).payload([7; 400]);
    assert_eq!(send(complete.clone(), CUT), [400]);
    // Nobody computes it, or more than can be.
    assert!(send(complete.payload([7]), CUT).is_empty());
    assert!(send(left_merged(v4(SENDER), 2), 47).is_empty());
    assert!(send(left_merged(v4(SENDER), 2), 0).is_empty());
    let drops = &lab.counters(SENDER).drops;
    assert_eq!(drops.get(DropReason::SpoofedMac), 3);
    // Each would be too long.
    let mut lab = lab_with(1500, true);
    let long = left_merged(v4(SENDER), 10).frame(merged_link(1461));
    assert!(in_one_turn(&mut lab, SENDER, &[long]).is_empty());
    assert_eq!(lab.counters(POD).drops.get(DropReason::TooBig), 1);
    assert_eq!(lab.counters(SENDER).icmp_errors.get(), 1);
}

#[test]
fn without_memory_for_all_segments_none_is_cut() {
    let mut options = LabOptions {
        gro: false,
        ..LabOptions::default()
    };
    options.workers = 1;
    options.reserve = 64;
    let mut lab = Lab::new(options);
    let frame = left_merged(v4(SENDER), 100).frame(merged_link(CUT));
    assert!(in_one_turn(&mut lab, SENDER, &[frame]).is_empty());
    let counters = lab.counters(POD);
    assert_eq!(counters.drops.get(DropReason::QueueMemory), 1);
    assert_eq!(counters.cut_frames.get(), 0);
}
