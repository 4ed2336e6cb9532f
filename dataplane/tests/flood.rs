//! A million seeded frames, half of them mutations of valid flows, beside
//! traffic that must not lose anything. No privileges needed.

use fastrand::Rng;
use sluice_dataplane::lab::{HOST, Lab, LabOptions, link, mac, v4, v6};
use sluice_dataplane::packet::{Ethernet, build};
use sluice_dataplane::time::Nanos;

const FRAMES: u32 = 1_000_000;
/// Frames a round: no more than a FILL ring holds.
const ROUND: u32 = 64;
/// The attacker's slot, and the two that talk to each other.
const ATTACKER: u16 = 1;
const TALKER: u16 = 2;
const LISTENER: u16 = 3;

fn valid_flows() -> Vec<Vec<u8>> {
    let tcp = build::tcp((v6(ATTACKER), 1000), (v6(LISTENER), 80)).payload([1; 200]);
    let inner = tcp.frame(link(ATTACKER));
    vec![
        build::udp((v4(ATTACKER), 1000), (v4(LISTENER), 53))
            .payload([1; 64])
            .frame(link(ATTACKER)),
        tcp.partial().frame(link(ATTACKER)),
        build::udp((v4(ATTACKER), 1000), (v4(LISTENER), 4789))
            .payload(build::vxlan(&inner))
            .frame(link(ATTACKER)),
        build::ping(v6(ATTACKER), v6(LISTENER)).frame(link(ATTACKER)),
        build::arp_request(mac(ATTACKER), v4(ATTACKER), v4(LISTENER)),
        build::neighbour_solicitation(v6(ATTACKER), v6(LISTENER), Some(mac(ATTACKER)))
            .frame(link(ATTACKER)),
    ]
}

fn random(rng: &mut Rng) -> Vec<u8> {
    let len = rng.usize(1..300);
    let mut frame: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
    // Every second one gets past the first checks.
    if rng.bool() && len >= 14 {
        frame[..6].copy_from_slice(&link(ATTACKER).dst);
        frame[6..12].copy_from_slice(&mac(ATTACKER));
        frame[12..14].copy_from_slice(rng.choice([&[8, 0], &[8, 6], &[0x86, 0xdd]]).unwrap());
    }
    frame
}

fn mutated(rng: &mut Rng, flows: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = rng.choice(flows).unwrap().clone();
    for _ in 0..rng.usize(1..4) {
        match rng.u8(..3) {
            0 => {
                let at = rng.usize(..frame.len());
                frame[at] ^= 1 << rng.u8(..8);
            }
            1 => {
                let at = rng.usize(..frame.len());
                frame[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff]).unwrap();
            }
            _ => frame.truncate(rng.usize(1..=frame.len())),
        }
    }
    frame
}

#[test]
fn malformed_frames_harm_nobody() {
    let mut lab = Lab::new(LabOptions {
        pods: 3,
        ..LabOptions::default()
    });
    let mut rng = Rng::with_seed(0x51_0ce);
    let flows = valid_flows();
    let mut talked = 0u64;
    let mut delivered_of_attack = 0u64;
    for round in 0..FRAMES / ROUND {
        for _ in 0..ROUND {
            let frame = if rng.bool() {
                random(&mut rng)
            } else {
                mutated(&mut rng, &flows)
            };
            assert!(lab.inject(ATTACKER, &frame));
        }
        let talk = build::udp((v4(TALKER), 7), (v4(LISTENER), 7)).payload(round.to_be_bytes());
        assert!(lab.inject(TALKER, &talk.frame(link(TALKER))));
        lab.wait(Nanos::from_micros(100));
        let expected = talk.ttl(63).frame(Ethernet {
            dst: mac(LISTENER),
            src: link(TALKER).dst,
        });
        for (slot, sent) in lab.run() {
            if slot == LISTENER && sent.bytes == expected {
                talked += 1;
            } else if slot != ATTACKER {
                delivered_of_attack += 1;
            }
        }
    }
    assert_eq!(talked, u64::from(FRAMES / ROUND), "the talk lost nothing");
    let attacker = lab.counters(ATTACKER);
    let drops: u64 = [HOST, ATTACKER, TALKER, LISTENER]
        .iter()
        .flat_map(|slot| lab.counters(*slot).drops.snapshot().into_values())
        .sum();
    assert_eq!(attacker.rx_frames.get(), u64::from(FRAMES / ROUND * ROUND));
    // A mutation may leave a frame valid, or make it a question: what was
    // neither delivered nor answered was dropped.
    assert_eq!(
        drops,
        attacker.rx_frames.get() - delivered_of_attack - attacker.answered.get()
    );
    assert!(drops > u64::from(FRAMES) / 2, "most of it is malformed");
    lab.assert_no_chunk_lost();
}
