//! The engine over in-memory kernels: where frames go and what is answered.
//! No privileges needed.

use std::net::IpAddr;

use sluice_dataplane::lab::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, HOST, Lab, LabOptions, link, mac, v4, v6,
};
use sluice_dataplane::packet::{Ethernet, Ip, Packet, build, offload, parse};
use sluice_dataplane::port::link_local;
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::Features;
use sluice_dataplane::xsk::memory::Sent;

const OUTSIDE: [u8; 4] = [198, 51, 100, 7];

fn lab() -> Lab {
    Lab::new(LabOptions::default())
}

/// What Debian 12's own kernel offers.
fn bare_kernel() -> LabOptions {
    LabOptions {
        features: Features {
            multi_buffer: false,
            tx_metadata: false,
            tx_budget: false,
            gso: false,
            tso: false,
        },
        ..LabOptions::default()
    }
}

/// The link layer of what arrives at a slot's far end.
fn to(slot: u16) -> Ethernet {
    Ethernet {
        dst: mac(slot),
        src: GATEWAY_MAC,
    }
}

fn only(arrived: &[(u16, Sent)]) -> (u16, &[u8]) {
    assert_eq!(arrived.len(), 1);
    (arrived[0].0, &arrived[0].1.bytes)
}

fn ip(frame: &[u8]) -> Ip {
    match parse(frame, frame.len()).unwrap().packet {
        Packet::Ip(ip) => ip,
        other => panic!("not IP: {other:?}"),
    }
}

#[test]
fn pods_reach_each_other_through_the_gateway() {
    let frames = [
        build::udp((v4(1), 1000), (v4(2), 2000)),
        build::udp((v6(1), 1000), (v6(2), 2000)),
        build::tcp((v4(1), 1000), (v4(2), 2000)),
        build::sctp((v6(1), 1000), (v6(2), 2000)),
        build::ping(v4(1), v4(2)),
        build::ping(v6(1), v6(2)),
    ];
    let mut lab = lab();
    for datagram in frames {
        let datagram = datagram.payload([7; 100]);
        let arrived = lab.send(1, &datagram.frame(link(1)));
        assert_eq!(only(&arrived), (2, &datagram.ttl(63).frame(to(2))[..]));
        assert_eq!(arrived[0].1.checksum, None, "complete checksums stay");
    }
    assert_eq!(lab.counters(1).rx_frames.get(), 6);
    assert_eq!(lab.counters(2).tx_frames.get(), 6);
    assert_eq!(
        lab.counters(1).rx_bytes.get(),
        lab.counters(2).tx_bytes.get()
    );
    lab.assert_no_chunk_lost();
}

#[test]
fn the_host_port_takes_what_is_for_no_pod_and_counts_no_hop() {
    let mut lab = lab();
    let out = build::udp((v4(1), 1000), (OUTSIDE, 53)).ttl(1);
    let arrived = lab.send(1, &out.frame(link(1)));
    assert_eq!(only(&arrived), (HOST, &out.frame(to(HOST))[..]));

    let back = build::udp((OUTSIDE, 53), (v4(1), 1000)).ttl(1);
    let arrived = lab.send(HOST, &back.frame(link(HOST)));
    assert_eq!(only(&arrived), (1, &back.frame(to(1))[..]));
    lab.assert_no_chunk_lost();
}

#[test]
fn a_partial_checksum_is_requested_not_computed() {
    let mut lab = lab();
    let jumbo = build::tcp((v4(1), 1000), (v4(2), 2000))
        .payload(vec![9; 64_000])
        .partial();
    let arrived = lab.send(1, &jumbo.frame(link(1)));
    assert_eq!(only(&arrived), (2, &jumbo.ttl(63).frame(to(2))[..]));
    assert_eq!(arrived[0].1.checksum, Some((34, 16)));

    let inner = build::tcp((v6(1), 1), (v6(2), 2))
        .payload([1; 50])
        .partial();
    let outer = build::udp((v4(1), 1000), (v4(2), 4789))
        .payload(build::vxlan(&inner.frame(link(1))))
        .no_checksum();
    let arrived = lab.send(1, &outer.frame(link(1)));
    let inner_start = 14 + 20 + 8 + 8 + 14 + 40;
    assert_eq!(arrived[0].1.checksum, Some((inner_start, 16)));
    lab.assert_no_chunk_lost();
}

#[test]
fn without_tx_metadata_a_partial_checksum_is_completed() {
    for (from, dst) in [
        (IpAddr::from(v4(1)), IpAddr::from(v4(2))),
        (v6(1).into(), v6(2).into()),
    ] {
        let mut lab = Lab::new(bare_kernel());
        let datagram = build::udp((from, 1000), (dst, 2000)).payload([5; 3001]);
        let arrived = lab.send(1, &datagram.clone().partial().frame(link(1)));
        assert_eq!(only(&arrived), (2, &datagram.ttl(63).frame(to(2))[..]));
        assert_eq!(arrived[0].1.checksum, None);
        let bytes = &arrived[0].1.bytes;
        assert_eq!(offload::partial(bytes, &ip(bytes)), None);
    }
}

#[test]
fn fragments_are_forwarded() {
    let mut lab = lab();
    for datagram in [
        build::udp((v4(1), 1000), (v4(2), 2000)),
        build::udp((v6(1), 1000), (v6(2), 2000)),
    ] {
        let fragments = datagram.payload([3; 5000]).fragments(link(1), 1480);
        assert_eq!(fragments.len(), 4);
        for fragment in &fragments {
            let arrived = lab.send(1, fragment);
            assert_eq!(only(&arrived).0, 2);
            assert_eq!(arrived[0].1.checksum, None);
        }
    }
    assert_eq!(lab.counters(2).tx_frames.get(), 8);
    lab.assert_no_chunk_lost();
}

#[test]
fn order_is_kept_within_and_across_batches() {
    let mut lab = lab();
    for i in 0..200u32 {
        let frame = build::udp((v4(1), 1000), (v4(2), 2000)).payload(i.to_be_bytes());
        assert!(lab.inject(1, &frame.frame(link(1))));
    }
    let numbers: Vec<u32> = lab
        .run()
        .iter()
        .map(|(_, sent)| u32::from_be_bytes(*sent.bytes.last_chunk().unwrap()))
        .collect();
    assert_eq!(numbers, (0..200).collect::<Vec<u32>>());
}

#[test]
fn arp_and_neighbour_discovery_are_answered_for_the_gateway() {
    let mut lab = lab();
    let arrived = lab.send(1, &build::arp_request(mac(1), v4(1), GATEWAY_V4));
    let (slot, reply) = only(&arrived);
    let parsed = parse(reply, reply.len()).unwrap();
    let Packet::Arp(arp) = parsed.packet else {
        panic!("not ARP");
    };
    assert_eq!((slot, parsed.ethernet), (1, to(1)));
    assert_eq!((arp.sender_mac, arp.sender_ip), (GATEWAY_MAC, GATEWAY_V4));

    for asker in [v6(1), link_local(mac(1))] {
        let question = build::neighbour_solicitation(asker, GATEWAY_V6, Some(mac(1)));
        let [.., a, b, c] = GATEWAY_V6.octets();
        let solicited_node = Ethernet {
            dst: [0x33, 0x33, 0xff, a, b, c],
            src: mac(1),
        };
        let arrived = lab.send(1, &question.frame(solicited_node));
        let (slot, reply) = only(&arrived);
        assert_eq!((slot, reply.len()), (1, 86));
        let header = ip(reply);
        assert_eq!((header.icmp, header.dst), (Some((136, 0)), asker.into()));
    }
    assert_eq!(lab.counters(1).answered.get(), 3);
    lab.assert_no_chunk_lost();
}

#[test]
fn icmp_errors_say_what_went_wrong_and_are_limited() {
    let mut lab = lab();
    lab.detach(2);
    lab.attach(2, 1, 1500);
    let udp4 = || build::udp((v4(1), 1), (v4(2), 2));
    let udp6 = || build::udp((v6(1), 1), (v6(2), 2));
    let too_long = || vec![0; 2000];
    let cases = [
        (udp4().ttl(1), (11, 0), None),
        (udp6().ttl(1), (3, 0), None),
        (udp4().payload(too_long()), (3, 4), Some(1500)),
        (udp6().payload(too_long()), (2, 0), Some(1500)),
    ];
    for (datagram, kind, mtu) in &cases {
        let arrived = lab.send(1, &datagram.frame(link(1)));
        let (slot, error) = only(&arrived);
        let header = ip(error);
        assert_eq!((slot, header.icmp), (1, Some(*kind)));
        let gateway: IpAddr = match header.dst {
            IpAddr::V4(_) => GATEWAY_V4.into(),
            IpAddr::V6(_) => GATEWAY_V6.into(),
        };
        assert_eq!(header.src, gateway);
        if let Some(mtu) = mtu {
            let said = error[usize::from(header.l4) + 4..]
                .first_chunk::<4>()
                .unwrap();
            assert_eq!(u32::from_be_bytes(*said), *mtu);
        }
    }
    assert_eq!(lab.counters(1).icmp_errors.get(), 4);

    let short_lived = cases[0].0.frame(link(1));
    for _ in 0..1000 {
        lab.send(1, &short_lived);
    }
    assert_eq!(lab.counters(1).icmp_errors.get(), 50);
    assert_eq!(lab.counters(1).icmp_suppressed.get(), 954);
    lab.wait(Nanos::from_millis(100));
    for _ in 0..100 {
        lab.send(1, &short_lived);
    }
    assert_eq!(lab.counters(1).icmp_errors.get(), 60, "100 a second");
    lab.assert_no_chunk_lost();
}

#[test]
fn the_host_is_told_when_no_pod_has_the_address() {
    let mut lab = lab();
    let lost = build::udp((GATEWAY_V4, 1), (v4(9), 2));
    let arrived = lab.send(HOST, &lost.frame(link(HOST)));
    let (slot, error) = only(&arrived);
    assert_eq!((slot, ip(error).icmp), (HOST, Some((3, 1))));
}

#[test]
fn without_a_host_port_what_is_for_no_pod_is_dropped() {
    let mut lab = lab();
    lab.detach(HOST);
    let out = build::udp((v4(1), 1000), (OUTSIDE, 53));
    assert!(lab.send(1, &out.frame(link(1))).is_empty());
    assert_eq!(lab.counters(1).drops.get(DropReason::PortDown), 1);
    lab.assert_no_chunk_lost();
}

#[test]
fn a_pod_that_comes_and_goes_leaves_no_chunk_and_no_address() {
    let mut lab = lab();
    let frame = build::udp((v4(1), 1), (v4(2), 2)).frame(link(1));
    let answer = build::udp((v4(2), 1), (v4(1), 2)).frame(link(2));
    for generation in 1..50 {
        assert_eq!(only(&lab.send(1, &frame)).0, 2);
        // Frames lie in its rings when it goes.
        for _ in 0..20 {
            lab.inject(2, &answer);
        }
        lab.inject(1, &frame);
        lab.turn();
        lab.inject(2, &answer);
        lab.detach(2);
        lab.assert_no_chunk_lost();
        let arrived = lab.send(1, &frame);
        assert!(arrived.iter().all(|(slot, _)| *slot != 2));
        lab.attach(2, generation, 65_000);
    }
    lab.assert_no_chunk_lost();
}

#[test]
fn a_pool_without_reserve_starves_nobody_for_good() {
    let mut lab = Lab::new(LabOptions {
        pods: 2,
        reserve: 0,
        ..LabOptions::default()
    });
    let frame = build::udp((v4(1), 1), (v4(2), 2)).payload([0; 3000]);
    for _ in 0..100 {
        for _ in 0..64 {
            lab.inject(1, &frame.frame(link(1)));
        }
        lab.run();
    }
    assert_eq!(lab.counters(2).tx_frames.get(), 6400);
    let back = build::udp((v4(2), 1), (v4(1), 2)).frame(link(2));
    assert_eq!(only(&lab.send(2, &back)).0, 1);
    lab.assert_no_chunk_lost();
}

#[test]
fn receivers_that_take_nothing_leave_chunks_for_others() {
    let pods = 12;
    let mut lab = Lab::new(LabOptions {
        pods,
        reserve: 16_384,
        ..LabOptions::default()
    });
    for stuck in 3..=pods {
        let jumbo = build::udp((v4(1), 1), (v4(stuck), 2)).payload(vec![9; 60_000]);
        let jumbo = jumbo.frame(link(1));
        for _ in 0..200 {
            lab.inject(1, &jumbo);
            lab.turn();
        }
    }
    let frame = build::udp((v4(1), 1), (v4(2), 2)).frame(link(1));
    for _ in 0..1000 {
        assert!(lab.inject(1, &frame), "no chunk to receive into");
        lab.turn();
        assert_eq!(lab.take(2).len(), 1);
    }
    lab.assert_no_chunk_lost();
}

#[test]
fn many_may_send_to_one_in_one_turn() {
    let pods = 60;
    let mut lab = Lab::new(LabOptions {
        pods,
        reserve: 16_384,
        ..LabOptions::default()
    });
    let senders = 2..=pods;
    let sent = senders.clone().count() * 30;
    for sender in senders {
        let frame = build::udp((v4(sender), 1), (v4(1), 2)).frame(link(sender));
        for _ in 0..30 {
            assert!(lab.inject(sender, &frame));
        }
    }
    assert_eq!(lab.run().len(), sent);
    lab.assert_no_chunk_lost();
}

#[test]
fn padding_does_not_get_past_the_mtu() {
    let mut lab = lab();
    lab.detach(2);
    lab.attach(2, 1, 1500);
    let short = build::udp((v4(1), 1), (v4(2), 2)).payload([1; 2]);
    let mut padded = short.frame(link(1));
    padded.resize(60, 0xee);
    assert_eq!(only(&lab.send(1, &padded)).0, 2, "Ethernet's own padding");
    padded.resize(65_000, 0xee);
    assert_eq!(only(&lab.send(1, &padded)).0, 1, "too big, says ICMP");
    assert_eq!(lab.counters(2).drops.get(DropReason::TooBig), 1);
}

#[test]
fn a_padded_solicitation_makes_no_answer_of_two_chunks() {
    let mut lab = lab();
    let mut padded = build::neighbour_solicitation(v6(1), GATEWAY_V6, Some(mac(1))).frame(link(1));
    padded.resize(5000, 0xee);
    assert!(lab.send(1, &padded).is_empty());
    assert_eq!(lab.counters(1).drops.snapshot().values().sum::<u64>(), 1);
    lab.assert_no_chunk_lost();
}
