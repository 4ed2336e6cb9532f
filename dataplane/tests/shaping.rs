//! Limits over in-memory kernels, in simulated time: what departs, and when. No
//! privileges needed.

use std::net::IpAddr;

use proptest::prelude::*;
use sluice_control::{Limit, Shaping};
use sluice_dataplane::lab::{HOST, Lab, LabOptions, MTU, link, v4, v6};
use sluice_dataplane::packet::{Packet, build, parse, protocol};
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::memory::Sent;

const MEGABIT: u64 = 1_000_000;

/// Steps of simulated time: a worker's turns are far shorter, its waits are as
/// exact.
const STEP: Nanos = Nanos::from_micros(50);

fn limit(rate: u64, burst: u64) -> Option<Limit> {
    Some(Limit { rate, burst })
}

fn ingress(rate: u64, burst: u64) -> Shaping {
    Shaping {
        ingress: limit(rate, burst),
        ..Shaping::default()
    }
}

fn egress(rate: u64, burst: u64) -> Shaping {
    Shaping {
        egress: limit(rate, burst),
        ..Shaping::default()
    }
}

/// A UDP frame with `len` bytes of IP packet.
fn udp4(from: u16, to: u16, port: u16, len: usize) -> Vec<u8> {
    build::udp((v4(from), port), (v4(to), 9))
        .payload(vec![0; len - 28])
        .frame(link(from))
}

fn ip_len(sent: &Sent) -> u64 {
    match parse(&sent.bytes, sent.bytes.len()).map(|parsed| parsed.packet) {
        Ok(Packet::Ip(ip)) => ip.packet_len.into(),
        other => panic!("{other:?}"),
    }
}

/// When a packet of how many bytes came to a pod.
type Departures = Vec<(u64, u64)>;

/// Offers frames in turn at `rate` bits a second for so many milliseconds, and
/// gives what arrives at `slot` in that time.
fn offer(lab: &mut Lab, slot: u16, frames: &[Vec<u8>], rate: u64, millis: u64) -> Departures {
    let mut departures = Vec::new();
    let mut earned = 0;
    let mut next = 0;
    for step in 0..millis * 1_000_000 / STEP.0 {
        earned += rate * STEP.0;
        loop {
            let frame = &frames[next % frames.len()];
            let cost = (frame.len() as u64 - 14) * 8 * 1_000_000_000;
            if earned < cost {
                break;
            }
            earned -= cost;
            next += 1;
            let bytes = &frame[6..12];
            let from = u16::from_be_bytes([bytes[4], bytes[5]]);
            assert!(lab.inject(from, frame), "no room to receive");
            lab.turn();
        }
        for (to, sent) in lab.run() {
            if to == slot {
                departures.push((step * STEP.0, ip_len(&sent)));
            }
        }
        lab.wait(STEP);
    }
    lab.assert_no_chunk_lost();
    departures
}

/// Over every window no more than the burst, what the rate earns, and a frame.
fn assert_envelope(departures: &Departures, rate: u64, burst: u64) {
    let largest = departures.iter().map(|(_, len)| len).max();
    let largest = largest.copied().unwrap_or(0);
    // Of all windows that end with a departure the worst begins where the
    // earlier ones left most: bytes so far less what was earned so far.
    let mut bytes = 0i128;
    let mut least = i128::MAX;
    for (at, len) in departures {
        let earned = i128::from(rate) * i128::from(*at) / 8_000_000_000;
        least = least.min(bytes - earned);
        bytes += i128::from(*len);
        let excess = bytes - earned - least - i128::from(burst / 8) - i128::from(largest);
        assert!(excess <= 1, "{excess} bytes too many at {at} ns");
    }
}

fn total(departures: &Departures) -> u64 {
    departures.iter().map(|(_, len)| len).sum()
}

#[test]
fn twice_the_rate_offered_the_rate_departs_at_every_rate_and_size() {
    for (rate, millis) in [
        (MEGABIT, 4_000),
        (10 * MEGABIT, 2_000),
        (100 * MEGABIT, 500),
        (1_000 * MEGABIT, 100),
    ] {
        for len in [64, 1_500, 65_000] {
            for (shaped, shaping) in [
                (2, ingress as fn(u64, u64) -> Shaping),
                (1, egress as fn(u64, u64) -> Shaping),
            ] {
                if len == 64 && rate > 100 * MEGABIT {
                    // A queue of that many frames has no memory: see the README.
                    continue;
                }
                let burst = (rate / 100).max(len * 8);
                let mut lab = Lab::new(LabOptions {
                    reserve: 16_384,
                    ..LabOptions::default()
                });
                lab.shape(shaped, &shaping(rate, burst), MTU);
                let frame = udp4(1, 2, 7, usize::try_from(len).unwrap());
                let departures = offer(&mut lab, 2, &[frame], 2 * rate, millis);
                assert_envelope(&departures, rate, burst);
                let earned = rate * millis / 8_000;
                let least = (earned + burst / 8) * 99 / 100 - len;
                assert!(
                    total(&departures) >= least,
                    "{rate} bit/s, {len} bytes: {} of {least}",
                    total(&departures)
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the sizes, the bursts and the pauses: never more than the
    /// envelope, and no less than it where there was enough to send.
    #[test]
    fn departures_stay_in_the_envelope(
        kilobits in 100u64..200_000,
        burst_micros in 0u64..50_000,
        lens in prop::collection::vec(46usize..9_000, 1..8),
        overload in 1u64..40,
        pauses in prop::collection::vec(0u64..300, 0..4),
        is_ingress: bool,
    ) {
        let rate = kilobits * 1_000;
        let burst = (rate * burst_micros / 1_000_000).max(8);
        let mut lab = Lab::new(LabOptions::default());
        let (slot, shaping) = if is_ingress { (2, ingress(rate, burst)) } else { (1, egress(rate, burst)) };
        lab.shape(slot, &shaping, MTU);
        let frames: Vec<_> = (1..).zip(&lens).map(|(port, len)| udp4(1, 2, port, *len)).collect();
        let mut all = Departures::new();
        let mut start = 0;
        for pause in pauses.iter().chain([&0]) {
            let departures = offer(&mut lab, 2, &frames, rate * overload / 10, 40);
            all.extend(departures.iter().map(|(at, len)| (start + at, *len)));
            lab.wait(Nanos::from_millis(*pause));
            start += (40 + pause) * 1_000_000;
        }
        assert_envelope(&all, rate, burst);
        lab.wait(Nanos::from_millis(1_000_000));
        while lab.held_chunks() > 0 {
            lab.run();
            lab.wait(Nanos::from_millis(1_000));
        }
        let dropped: u64 = [1, 2].iter().flat_map(|slot| lab.counters(*slot).drops.snapshot().into_values()).sum();
        prop_assert_eq!(lab.counters(1).rx_frames.get(), lab.counters(2).tx_frames.get() + dropped);
        lab.assert_no_chunk_lost();
    }
}

#[test]
fn a_frame_passes_the_senders_limit_and_then_the_receivers() {
    let mut lab = Lab::new(LabOptions::default());
    lab.shape(1, &egress(20 * MEGABIT, 200_000), MTU);
    lab.shape(2, &ingress(10 * MEGABIT, 100_000), MTU);
    let frame = udp4(1, 2, 7, 1_500);
    let departures = offer(&mut lab, 2, &[frame], 40 * MEGABIT, 1_000);
    assert_envelope(&departures, 10 * MEGABIT, 100_000);
    assert!(lab.counters(1).drops.get(DropReason::QueueFull) > 0);
    assert!(lab.counters(2).drops.get(DropReason::QueueFull) > 0);
    let received = lab.counters(1).rx_bytes.get();
    let lost_by_sender = lab.counters(1).drops.get(DropReason::QueueFull) * 1_514;
    let passed = received - lost_by_sender;
    assert!(
        (2_400_000..2_800_000).contains(&passed),
        "{passed} bytes in a second"
    );
}

#[test]
fn every_way_to_and_from_a_pod_is_limited() {
    let outside: IpAddr = [198, 51, 100, 7].into();
    let outside6: IpAddr = "2001:db8::7".parse().unwrap();
    let payload = vec![0; 1_000];
    let from_host = |src: IpAddr, dst: IpAddr| {
        build::udp((src, 7), (dst, 9))
            .payload(&payload)
            .frame(link(HOST))
    };
    let from_pod = |src: IpAddr, dst: IpAddr| {
        build::udp((src, 7), (dst, 9))
            .payload(&payload)
            .frame(link(1))
    };
    let ways = [
        (
            2,
            from_host(outside, v4(2).into()),
            ingress as fn(u64, u64) -> Shaping,
            2,
        ),
        (2, from_host(outside6, v6(2).into()), ingress, 2),
        (HOST, from_pod(v4(1).into(), outside), egress, 1),
        (HOST, from_pod(v6(1).into(), outside6), egress, 1),
        (2, from_pod(v6(1).into(), v6(2).into()), egress, 1),
        (2, from_pod(v6(1).into(), v6(2).into()), ingress, 2),
    ];
    for (target, frame, shaping, shaped) in ways {
        let mut lab = Lab::new(LabOptions::default());
        lab.shape(shaped, &shaping(8 * MEGABIT, 80_000), MTU);
        let departures = offer(&mut lab, target, &[frame], 16 * MEGABIT, 200);
        assert_envelope(&departures, 8 * MEGABIT, 80_000);
        assert!(total(&departures) >= 200_000);
    }
}

#[test]
fn some_subnets_may_be_left_out_or_be_all() {
    let outside = build::udp((v4(1), 7), ([198, 51, 100, 7], 9))
        .payload([0; 1_000])
        .frame(link(1));
    let inside = udp4(1, 2, 7, 1_028);
    let pods: Vec<ipnet::IpNet> = vec!["10.77.0.0/24".parse().unwrap()];
    for (unshaped, shaped, limited) in [(pods.clone(), vec![], HOST), (vec![], pods, 2)] {
        let mut lab = Lab::new(LabOptions::default());
        let shaping = Shaping {
            unshaped_subnets: unshaped,
            shaped_subnets: shaped,
            ..egress(MEGABIT, 12_000)
        };
        lab.shape(1, &shaping, MTU);
        let frames = [outside.clone(), inside.clone()];
        offer(&mut lab, 2, &frames, 20 * MEGABIT, 200);
        for slot in [HOST, 2] {
            let arrived = lab.counters(slot).tx_frames.get();
            assert_eq!(arrived < 40, slot == limited, "{slot}: {arrived}");
        }
    }
}

#[test]
fn what_is_too_large_for_a_limit_is_answered_and_not_queued() {
    for (shaped, shaping, at) in [
        (2, ingress(MEGABIT, 12_000), 2),
        (1, egress(MEGABIT, 12_000), 1),
    ] {
        let mut lab = Lab::new(LabOptions::default());
        lab.shape(shaped, &shaping, 1_500);
        let arrived = lab.send(1, &udp4(1, 2, 7, 1_501));
        assert_eq!(arrived.len(), 1);
        let (to, sent) = &arrived[0];
        let Ok(Packet::Ip(ip)) = parse(&sent.bytes, sent.bytes.len()).map(|p| p.packet) else {
            panic!("no answer");
        };
        assert_eq!(
            (*to, ip.protocol, ip.icmp),
            (1, protocol::ICMP, Some((3, 4)))
        );
        assert_eq!(lab.counters(at).drops.get(DropReason::TooBig), 1);
        assert_eq!(lab.send(1, &udp4(1, 2, 7, 1_500)).len(), 1);
        lab.assert_no_chunk_lost();
    }
}

#[test]
fn a_change_loses_nothing() {
    let mut lab = Lab::new(LabOptions::default());
    // Of which 100 bits are kept back.
    lab.shape(2, &ingress(MEGABIT, 12_200), MTU);
    for _ in 0..2 {
        lab.send(1, &udp4(1, 2, 7, 1_500));
    }
    lab.send(1, &udp4(1, 2, 7, 1_500));
    assert_eq!(lab.held_chunks(), 1);
    // Slower first: what waits is not forgotten, nor is its timer.
    lab.shape(2, &ingress(1_000, 12_000), MTU);
    lab.wait(Nanos::from_millis(1));
    assert_eq!(lab.run().len(), 1, "a change forgives the debt");
    lab.send(1, &udp4(1, 2, 7, 1_500));
    lab.send(1, &udp4(1, 2, 7, 1_500));
    lab.wait(Nanos::from_millis(100));
    assert!(lab.run().is_empty());
    // Then none at all.
    lab.shape(2, &Shaping::default(), MTU);
    assert_eq!(lab.run().len(), 2);
    assert_eq!(lab.held_chunks(), 0);
    assert_eq!(lab.counters(2).tx_frames.get(), 5);
    lab.assert_no_chunk_lost();
}

/// Frames that were queued by a larger MTU, and more bytes of them than the new
/// limit's queue holds. They wait long then: their sender is told by marks.
#[test]
fn a_far_lower_limit_loses_nothing_that_waits() {
    for (shaped, shaping) in [(2, ingress as fn(u64, u64) -> Shaping), (1, egress)] {
        let mut lab = Lab::new(LabOptions::default());
        lab.shape(shaped, &shaping(100 * MEGABIT, 12_000), 9_000);
        for _ in 0..30 {
            let large = build::udp((v4(1), 7), (v4(2), 9)).traffic_class(0b10);
            let large = large.payload(vec![0; 9_000 - 28]);
            assert!(lab.inject(1, &large.frame(link(1))));
        }
        assert_eq!(lab.run().len(), 1);
        lab.shape(shaped, &shaping(10 * MEGABIT, 12_000), 2_500);
        assert!(lab.inject(1, &udp4(1, 2, 8, 100)));
        lab.wait(STEP);
        lab.run();
        lab.shape(shaped, &shaping(MEGABIT, 12_000), 1_500);
        for _ in 0..40 {
            lab.wait(Nanos::from_millis(100));
            lab.run();
        }
        assert_eq!(lab.held_chunks(), 0);
        assert_eq!(lab.counters(2).tx_frames.get(), 31);
        lab.assert_no_chunk_lost();
    }
}

/// More than a turn's batch.
#[test]
fn what_may_go_waits_for_no_wakeup_with_others() {
    let mut lab = Lab::new(LabOptions::default());
    lab.shape(2, &ingress(1_000 * MEGABIT, 800_000), MTU);
    for _ in 0..2 {
        assert_eq!(lab.send(1, &udp4(1, 2, 7, 60_000)).len(), 1);
    }
    for _ in 0..200 {
        assert!(lab.inject(1, &udp4(1, 2, 7, 60)));
    }
    lab.run();
    assert_eq!(lab.held_chunks(), 200);
    // Of which the debt takes less than half, and all that waits a sixth.
    lab.wait(Nanos::from_micros(600));
    for _ in 0..4 {
        lab.run();
        lab.wait(Nanos(1));
    }
    assert_eq!(lab.held_chunks(), 0);
}

/// As many frames as a queue can hold go on at once.
#[test]
fn a_lifted_limit_loses_nothing_that_waits() {
    for (shaped, shaping) in [(2, ingress as fn(u64, u64) -> Shaping), (1, egress)] {
        let mut lab = Lab::new(LabOptions {
            reserve: 16_384,
            ..LabOptions::default()
        });
        let shaping = Shaping {
            queue_millis: 1_000,
            ..shaping(1_000 * MEGABIT, 8)
        };
        lab.shape(shaped, &shaping, MTU);
        let lost = |lab: &Lab| {
            let drops = [1, 2].map(|slot| lab.counters(slot).drops.snapshot());
            let by_worker = lab.worker_drops(DropReason::HandoffFull);
            by_worker + drops.iter().flat_map(|drops| drops.values()).sum::<u64>()
        };
        let mut arrived = 0;
        while lost(&lab) == 0 {
            assert!(lab.inject(1, &udp4(1, 2, 7, 60)));
            arrived += lab.run().len();
        }
        let (waiting, lost_before) = (lab.held_chunks() as usize, lost(&lab));
        assert_eq!(waiting, 2_048 / lab.workers());
        lab.shape(shaped, &Shaping::default(), MTU);
        let went = lab.run().len();
        assert_eq!(went, waiting, "after {arrived}");
        assert_eq!(lost(&lab), lost_before);
        lab.assert_no_chunk_lost();
    }
}

#[test]
fn a_change_of_one_direction_forgives_nothing_to_the_other() {
    let mut lab = Lab::new(LabOptions::default());
    let with_egress = |rate| Shaping {
        egress: limit(rate, 100_000),
        ..ingress(1_000, 8)
    };
    lab.shape(2, &with_egress(MEGABIT), MTU);
    for _ in 0..2 {
        assert!(lab.inject(1, &udp4(1, 2, 7, 1_500)));
    }
    assert_eq!(lab.run().len(), 1);
    for rate in 2..5 {
        lab.shape(2, &with_egress(rate * MEGABIT), MTU);
        lab.wait(Nanos::from_millis(1_000));
        assert!(lab.run().is_empty());
    }
    lab.wait(Nanos::from_millis(9_000));
    assert_eq!(lab.run().len(), 1);
}

#[test]
fn what_waits_for_a_pod_goes_with_it() {
    let mut lab = Lab::new(LabOptions::default());
    lab.shape(1, &egress(1_000, 8), MTU);
    lab.shape(2, &ingress(1_000, 8), MTU);
    for _ in 0..4 {
        lab.send(1, &udp4(1, 2, 7, 1_500));
        lab.send(
            HOST,
            &build::udp(([198, 51, 100, 7], 7), (v4(2), 9))
                .payload([0; 1_000])
                .frame(link(HOST)),
        );
    }
    assert!(lab.held_chunks() >= 4);
    lab.detach(2);
    lab.assert_no_chunk_lost();
    // Pod 1's go on, and find nobody.
    lab.wait(Nanos::from_millis(100_000));
    lab.run();
    let counted = lab.counters(1).drops.get(DropReason::PortDown);
    assert!(counted + lab.worker_drops(DropReason::PortDown) > 0);
    lab.detach(1);
    assert_eq!(lab.held_chunks(), 0);
    lab.assert_no_chunk_lost();
}

/// Many slow pods that send too much hold no more than their part, and others'
/// FILL rings stay full.
#[test]
fn slow_pods_leave_memory_to_others() {
    let pods = 60;
    let mut lab = Lab::new(LabOptions {
        pods: pods + 2,
        reserve: 2_048,
        ..LabOptions::default()
    });
    for slot in 1..=pods {
        let shaping = Shaping {
            queue_millis: 1_000,
            ..egress(100 * MEGABIT, 12_000)
        };
        lab.shape(slot, &shaping, MTU);
    }
    for round in 0..100 {
        for slot in 1..=pods {
            assert!(
                lab.inject(slot, &udp4(slot, pods + 1, round, 60)),
                "FILL is empty"
            );
        }
        lab.run();
        let held = lab.held_chunks();
        assert!(held <= 1_024, "{held} chunks are held");
        assert!(lab.free_chunks() >= 256);
        let unshaped = udp4(pods + 1, pods + 2, round, 60);
        assert_eq!(lab.send(pods + 1, &unshaped).len(), 1);
    }
    lab.assert_no_chunk_lost();
}

/// However many queues are as full as they may be, one that has nothing still has
/// room for its part.
#[test]
fn full_queues_leave_room_in_the_others() {
    let pods = 60;
    let mut lab = Lab::new(LabOptions {
        pods: pods + 1,
        reserve: 2_048,
        ..LabOptions::default()
    });
    let shaping = Shaping {
        queue_millis: 1_000,
        ..egress(100 * MEGABIT, 8)
    };
    for slot in 1..=pods {
        lab.shape(slot, &shaping, MTU);
    }
    let sent = |lab: &mut Lab, slot: u16, frames: u16| {
        for port in 0..frames {
            assert!(lab.inject(slot, &udp4(slot, pods + 1, port, 60)));
            lab.run();
        }
        lab.counters(slot).drops.get(DropReason::QueueMemory)
    };
    for slot in 1..=pods / 2 {
        assert!(sent(&mut lab, slot, 500) > 0, "{slot} fills its queue");
    }
    // Half of 1024 chunks among two directions of 62 slots, of each worker a part.
    let own = 512 / (2 * 62) / u16::try_from(lab.workers()).unwrap();
    for slot in pods / 2 + 1..=pods {
        assert_eq!(sent(&mut lab, slot, 1 + own), 0, "one goes at once: {slot}");
    }
    assert!(lab.held_chunks() <= 1_024);
    lab.assert_no_chunk_lost();
}

/// A bulk transfer and a ping in one pod: the ping waits for a frame or two.
#[test]
fn bulk_does_not_delay_a_ping() {
    for shaped in [1, 2] {
        let mut lab = Lab::new(LabOptions::default());
        let rate = 10 * MEGABIT;
        let shaping = if shaped == 1 {
            egress(rate, 100_000)
        } else {
            ingress(rate, 100_000)
        };
        lab.shape(shaped, &shaping, 2_500);
        let bulk: Vec<_> = (0..8).map(|flow| udp4(1, 2, 100 + flow, 2_500)).collect();
        offer(&mut lab, 2, &bulk, 2 * rate, 200);
        let ping = build::ping(v4(1), v4(2)).payload([0; 56]).frame(link(1));
        let mut worst = 0;
        for _ in 0..50 {
            lab.inject(1, &ping);
            let mut waited = 0;
            loop {
                lab.inject(1, &bulk[0]);
                let arrived = lab.run();
                let is_ping = |sent: &Sent| sent.bytes[23] == protocol::ICMP;
                if arrived.iter().any(|(to, sent)| *to == 2 && is_ping(sent)) {
                    break;
                }
                lab.wait(STEP);
                waited += STEP.0;
                assert!(waited < 100_000_000, "the ping is lost");
            }
            worst = worst.max(waited);
            lab.wait(Nanos::from_micros(9_300));
        }
        assert!(worst <= 5_000_000, "{worst} ns");
        lab.assert_no_chunk_lost();
    }
}
