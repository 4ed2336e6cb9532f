//! A pod that sends rubbish harms itself only.

use std::net::IpAddr;

use etherparse::ArpOperation;

use crate::harness::flows::{Echo, Flow, Pattern};
use crate::harness::frames::{Ends, arp, internet_checksum};
use crate::harness::wire::Injector;
use crate::harness::{Counters, NODE4, NODE6, Node, OUT4, Options, Pod, wait_until};

const FRAMES: u64 = 100_000;
const SEED: u64 = 20_201_122;
/// No more than a port's FILL ring takes: what the kernel must drop for want
/// of room would prove nothing.
const BATCH: u64 = 64;

/// Frames that are what they claim to be.
fn valid(from: &Pod, others: [&Pod; 2]) -> Vec<Vec<u8>> {
    let (gateway, mac) = from.macs();
    let ends = |dst: IpAddr| Ends {
        src_mac: mac,
        dst_mac: gateway,
        src: from.address_like(dst),
        dst,
    };
    let addresses = others.map(Pod::addresses).concat();
    let targets = addresses.into_iter().chain([NODE4, NODE6, OUT4]);
    let mut frames: Vec<_> = targets
        .flat_map(|dst| {
            let ends = ends(dst);
            [
                ends.udp(&[7; 100]),
                ends.udp(&[8; 1400]),
                ends.tcp(&[9; 500]),
                ends.fragment(0, 100),
                // Near the end of the largest packet.
                ends.fragment(8000, 1400),
            ]
        })
        .collect();
    let v6 = ends(from.gateway_like(NODE6));
    frames.push(v6.icmpv6(128, [0; 4], &[1; 64]));
    frames.push(v6.hop_by_hop());
    frames.push(v6.solicitation(from.gateway_like(NODE6), mac));
    frames.push(arp(
        mac,
        ArpOperation::REQUEST,
        (mac, from.v4()),
        from.gateway_like(NODE4),
    ));
    frames
}

/// The next bad frame: random bytes, half of them behind the right MAC
/// addresses, or a valid frame with a few bytes changed, cut or added.
fn bad(random: &mut Pattern, valid: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = valid[random.below(valid.len())].clone();
    if random.below(2) == 0 {
        let length = 14 + random_length(random);
        let mut noise = random.bytes(length);
        match random.below(4) {
            0 | 1 => {}
            2 => noise[..14].copy_from_slice(&frame[..14]),
            _ => noise[..12].copy_from_slice(&frame[..12]),
        }
        return noise;
    }
    for _ in 0..=random.below(4) {
        let place = random.below(frame.len().min(80));
        frame[place] = random.bytes(1)[0];
    }
    match random.below(4) {
        0 => frame.truncate(14 + random.below(frame.len() - 14)),
        1 => {
            let length = random_length(random);
            frame.extend(random.bytes(length));
        }
        _ => {}
    }
    if random.below(2) == 0 {
        repair_ipv4_checksum(&mut frame);
    }
    frame
}

/// Lets a changed IPv4 header pass the first check, so that later ones are met.
fn repair_ipv4_checksum(frame: &mut [u8]) {
    if let Some(header) = frame.get_mut(14..34)
        && header[0] == 0x45
    {
        header[10..12].fill(0);
        let checksum = internet_checksum(header).to_be_bytes();
        header[10..12].copy_from_slice(&checksum);
    }
}

/// Mostly short: headers are where it hurts.
fn random_length(random: &mut Pattern) -> usize {
    match random.below(4) {
        0 => random.below(2000),
        _ => random.below(100),
    }
}

/// Frames in, frames out, and frames that became nothing, over all ports.
fn balance(counters: &[Counters]) -> (u64, u64) {
    let sum = |count: fn(&Counters) -> u64| counters.iter().map(count).sum::<u64>();
    let received = sum(|port| port.rx_frames) + sum(|port| port.icmp_errors);
    let ended = sum(|port| port.tx_frames)
        + sum(|port| port.merged_frames)
        + sum(|port| port.drops.values().sum());
    (received, ended)
}

#[test]
fn rubbish_is_counted_and_others_lose_nothing() {
    let node = Node::start(&Options::default());
    let [bad_pod, a, b] = ["bad", "a", "b"].map(|name| node.add(name));
    let tcp = Echo::tcp(&b, b.v4());
    let udp = Echo::udp(&b, b.v6());
    let flows = [Flow::tcp(&a, tcp.address), Flow::udp(&a, udp.address)];

    let frames = valid(&bad_pod, [&a, &b]);
    let injector = Injector::new(&bad_pod, "eth0");
    let mut random = Pattern(SEED);
    let before = node.row(&bad_pod).counters;
    for sent in 1..=FRAMES {
        injector.send(&bad(&mut random, &frames));
        if sent % BATCH == 0 {
            wait_until("the daemon has got what was sent", || {
                let got = node.row(&bad_pod).counters.rx_frames - before.rx_frames;
                (got >= sent).then_some(())
            });
        }
    }
    let rounds = flows.map(|flow| flow.stop());
    assert!(
        rounds.iter().all(|rounds| *rounds > 10),
        "{rounds:?} rounds alongside"
    );

    wait_until("what the pod sent is what the daemon got", || {
        let got = node.row(&bad_pod).counters.rx_frames;
        (got == bad_pod.traffic().sent_frames).then_some(())
    });
    wait_until("received = forwarded + answered + dropped", || {
        let counters: Vec<_> = node.rows().into_iter().map(|row| row.counters).collect();
        let (received, ended) = balance(&counters);
        (received == ended).then_some(())
    });
    let drops = node.row(&bad_pod).counters.drops;
    assert!(drops.values().sum::<u64>() > FRAMES / 2, "{drops:?}");
    let rules = drops
        .keys()
        .filter(|reason| reason.starts_with("malformed-"));
    // All but a frame too short for Ethernet, which packet(7) does not send.
    assert_eq!(rules.count(), 11, "rules broken: {drops:?}");
    node.finish();
}
