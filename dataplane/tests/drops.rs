//! Every reason to drop is provoked, counted where it belongs, and leaks no
//! chunk. No privileges needed.

use std::net::{Ipv4Addr, Ipv6Addr};

use sluice_control::{Limit, Shaping};
use sluice_dataplane::lab::{GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, HOST, Lab, LabOptions};
use sluice_dataplane::lab::{link, mac, v4, v6};
use sluice_dataplane::mappings::{Mapping, Mappings};
use sluice_dataplane::packet::ethernet::MERGED;
use sluice_dataplane::packet::{Ethernet, Malformed, Packet, build, checksum, parse, protocol};
use sluice_dataplane::port::{PortId, link_local};
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::Unsent;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// What causes a drop: from which slot, and which frame.
struct Provocation {
    reason: DropReason,
    slot: u16,
    frame: Vec<u8>,
}

fn pod_sends(reason: impl Into<DropReason>, frame: Vec<u8>) -> Provocation {
    Provocation {
        reason: reason.into(),
        slot: 1,
        frame,
    }
}

fn udp4() -> build::Datagram {
    build::udp((v4(1), 1000), (v4(2), 2000)).payload([1; 20])
}

fn udp6() -> build::Datagram {
    build::udp((v6(1), 1000), (v6(2), 2000)).payload([1; 20])
}

fn to(dst: [u8; 6]) -> Ethernet {
    Ethernet { dst, src: mac(1) }
}

fn solicited_node(target: Ipv6Addr) -> Ethernet {
    let [.., a, b, c] = target.octets();
    to([0x33, 0x33, 0xff, a, b, c])
}

fn edited(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// As `edited`, with the IPv4 header's checksum made right again.
fn edited_ipv4(frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = edited(frame, at, bytes);
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    edited(frame, 24, &sum.to_be_bytes())
}

/// A neighbour discovery message to all nodes.
fn to_all_nodes(kind: u8, body: &[u8]) -> Vec<u8> {
    let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
    build::icmp(link_local(mac(1)), all_nodes, (kind, 0), 0)
        .payload(body)
        .ttl(255)
        .frame(to(ALL_NODES))
}

fn malformed() -> Vec<Provocation> {
    use Malformed as M;
    let frame4 = || udp4().frame(link(1));
    let frame6 = || udp6().frame(link(1));
    let later_fragment = udp6().payload([0; 100]).fragments(link(1), 64).remove(1);
    let from_afar = build::neighbour_solicitation(v6(1), GATEWAY_V6, Some(mac(1)))
        .ttl(64)
        .frame(solicited_node(GATEWAY_V6));
    let arp = build::arp_request(mac(1), v4(1), GATEWAY_V4);
    let short_udp = build::raw(v4(1), v4(2), protocol::UDP).payload([0; 7]);
    vec![
        pod_sends(M::Ethernet, vec![0; 13]),
        pod_sends(M::Ipv4Header, edited(frame4(), 14, &[0x44])),
        pod_sends(M::Ipv4Checksum, edited(frame4(), 24, &[0, 0])),
        pod_sends(M::Ipv4Length, edited_ipv4(frame4(), 16, &[0, 200])),
        pod_sends(M::Ipv4Fragment, edited_ipv4(frame4(), 20, &[0x1f, 0xff])),
        pod_sends(M::Ipv6Header, edited(frame6(), 14, &[0x45])),
        pod_sends(M::Ipv6Length, edited(frame6(), 18, &[0, 200])),
        pod_sends(M::Ipv6Extension, edited(frame6(), 20, &[43])),
        pod_sends(M::Ipv6Fragment, edited(later_fragment, 56, &[0xff, 0xf8])),
        pod_sends(M::Transport, short_udp.frame(link(1))),
        pod_sends(M::Arp, edited(arp, 14, &[0, 9])),
        pod_sends(M::NeighbourDiscovery, from_afar),
    ]
}

fn spoofed() -> Vec<Provocation> {
    use DropReason as R;
    let foreign_mac = Ethernet {
        dst: GATEWAY_MAC,
        src: mac(2),
    };
    let foreign_solicitation = build::neighbour_solicitation(v6(2), GATEWAY_V6, Some(mac(1)));
    let redirect = [v6(2).octets(), v6(2).octets()].concat();
    vec![
        pod_sends(R::SpoofedMac, udp4().frame(foreign_mac)),
        pod_sends(
            R::SpoofedAddress,
            build::udp((v4(2), 1), (v4(2), 2)).frame(link(1)),
        ),
        pod_sends(R::SpoofedArp, build::arp_request(mac(1), v4(2), GATEWAY_V4)),
        pod_sends(
            R::SpoofedNeighbour,
            foreign_solicitation.frame(solicited_node(GATEWAY_V6)),
        ),
        pod_sends(R::RouterAdvertisement, to_all_nodes(134, &[0; 8])),
        pod_sends(R::Redirect, to_all_nodes(137, &redirect)),
    ]
}

fn unforwardable() -> Vec<Provocation> {
    use DropReason as R;
    let other_pod = build::neighbour_solicitation(v6(1), v6(2), Some(mac(1)));
    let discover = build::udp((v4(1), 68), ([255; 4], 67));
    let mdns = build::udp((v4(1), 5353), ([224, 0, 0, 251], 5353));
    let off_link = build::udp((v6(1), 1), (link_local(mac(2)), 2));
    let loopback = build::udp((v4(1), 1), ([127, 0, 0, 1], 2));
    let too_long = build::udp((v4(1), 1), (v4(3), 2)).payload([0; 1501]);
    let to_nobody = build::udp(([198, 51, 100, 7], 1), (v4(9), 2));
    vec![
        pod_sends(R::WrongMac, udp4().frame(to(mac(2)))),
        pod_sends(R::Broadcast, discover.frame(to([0xff; 6]))),
        pod_sends(R::Multicast, mdns.frame(to([1, 0, 0x5e, 0, 0, 0xfb]))),
        pod_sends(
            R::UnknownEthertype,
            edited(udp4().frame(link(1)), 12, &[0x81, 0]),
        ),
        pod_sends(R::ArpUnanswered, build::arp_request(mac(1), v4(1), v4(2))),
        pod_sends(
            R::NeighbourUnanswered,
            other_pod.frame(solicited_node(v6(2))),
        ),
        pod_sends(R::LinkLocal, off_link.frame(link(1))),
        pod_sends(R::Martian, loopback.frame(link(1))),
        pod_sends(R::TtlExceeded, udp4().ttl(1).frame(link(1))),
        pod_sends(R::TooBig, too_long.frame(link(1))),
        Provocation {
            reason: R::NoPod,
            slot: HOST,
            frame: to_nobody.frame(link(HOST)),
        },
    ]
}

#[test]
fn every_reason_to_drop_is_provoked_and_counted_once() {
    let mut lab = Lab::new(LabOptions {
        pods: 3,
        ..LabOptions::default()
    });
    lab.detach(3);
    lab.attach(3, 1, 1500);
    let mut provoked = Vec::new();
    for provocation in malformed()
        .into_iter()
        .chain(spoofed())
        .chain(unforwardable())
    {
        let Provocation {
            reason,
            slot,
            frame,
        } = provocation;
        let (received, dropped) = (lab.counters(slot).rx_frames.get(), drops(&lab));
        let arrived = lab.send(slot, &frame);
        // What does not fit its destination is counted there.
        let at = if reason == DropReason::TooBig {
            3
        } else {
            slot
        };
        assert_eq!(
            lab.counters(at).drops.get(reason),
            1,
            "{reason:?}, but {:?}",
            lab.counters(at).drops.snapshot()
        );
        assert_eq!(lab.counters(slot).rx_frames.get(), received + 1);
        assert_eq!(drops(&lab), dropped + 1, "{reason:?} is one drop");
        for (to, sent) in &arrived {
            let Ok(Packet::Ip(ip)) = parse(&sent.bytes, sent.bytes.len()).map(|p| p.packet) else {
                panic!("{reason:?} made something that is not IP");
            };
            assert_eq!((*to, ip.protocol), (slot, protocol::ICMP), "{reason:?}");
        }
        lab.assert_no_chunk_lost();
        provoked.push(reason);
    }
    // These need a destination that does not take what it is given.
    provoked.push(overflow_a_tx_ring());
    provoked.push(overflow_another_worker());
    provoked.push(refuse_merged_segments());
    provoked.push(cut_more_than_a_turn_may());
    provoked.push(take_the_host_port_away());
    provoked.extend(fill_the_session_table());
    provoked.push(answer_in_fragments_of_sctp());
    provoked.extend(exceed_a_limit());
    for reason in DropReason::ALL {
        assert!(provoked.contains(&reason), "no test provokes {reason:?}");
    }
}

fn drops(lab: &Lab) -> u64 {
    (0..4).map(|slot| drops_at(lab, slot)).sum()
}

fn take_the_host_port_away() -> DropReason {
    let mut lab = Lab::new(LabOptions::default());
    lab.detach(HOST);
    let out = build::udp((v4(1), 1000), ([198, 51, 100, 7], 53));
    assert!(lab.send(1, &out.frame(link(1))).is_empty());
    assert_eq!(lab.counters(1).drops.get(DropReason::PortDown), 1);
    lab.assert_no_chunk_lost();
    DropReason::PortDown
}

/// By conversations that go on, from the host in a pod's name.
fn fill_the_session_table() -> [DropReason; 2] {
    let mut lab = Lab::new(LabOptions {
        workers: 1,
        pods: 8,
        sessions: 16,
        ..LabOptions::default()
    });
    let mut talk = |pod: u16, client: u16| {
        let question = build::tcp((v4(1), client), (v4(pod), 53));
        let answer = build::tcp((v4(pod), 53), (v4(1), client)).flags(SYN_ACK);
        lab.send(HOST, &question.clone().flags(SYN).frame(link(HOST)));
        lab.send(pod, &answer.frame(link(pod)));
        lab.send(HOST, &question.flags(ACK).frame(link(HOST)));
        lab.assert_no_chunk_lost();
        let drops = &lab.counters(pod).drops;
        [DropReason::SessionShare, DropReason::SessionTableFull].map(|reason| drops.get(reason))
    };
    // Half of all, then half of what is left; two packets of the ninth.
    let dropped: Vec<_> = (0..9).map(|client| talk(2, client)).collect();
    assert_eq!(dropped[7..], [[0, 0], [2, 0]]);
    for pod in 3..=6 {
        for client in 0..4 {
            talk(pod, client);
        }
    }
    assert_eq!(talk(7, 0), [0, 2]);
    [DropReason::SessionShare, DropReason::SessionTableFull]
}

/// Through a mapped port of the node, whose conversation is translated.
fn answer_in_fragments_of_sctp() -> DropReason {
    let mut lab = Lab::new(LabOptions::default());
    let (client, server) = ((v4(1), 4000), (v4(2), 80));
    let node = Ipv4Addr::new(192, 0, 2, 1);
    let mapping = Mapping {
        address: node.into(),
        host_port: 8080,
        protocol: protocol::SCTP,
        pod: PortId {
            slot: 2,
            generation: 0,
        },
        pod_address: v4(2).into(),
        container_port: 80,
    };
    lab.set_mappings(Mappings::new([node.into()], [mapping]));
    lab.send(1, &build::sctp(client, (node, 8080)).frame(link(1)));
    lab.send(HOST, &build::sctp(client, server).frame(link(HOST)));
    let answer = build::sctp(server, client).payload([0; 40]);
    let fragments = answer.fragments(link(2), 24);
    assert!(lab.send(2, &fragments[0]).is_empty());
    assert_eq!(lab.counters(1).drops.get(DropReason::Untranslatable), 1);
    lab.assert_no_chunk_lost();
    DropReason::Untranslatable
}

/// Of a pod's ingress: faster than the limit, for longer than it lets wait, and
/// with less memory than that takes.
fn exceed_a_limit() -> [DropReason; 3] {
    let frame = build::udp((v4(1), 1), (v4(2), 2))
        .payload([0; 972])
        .frame(link(1));
    // Mbit/s, milliseconds of queue, chunks in flight, milliseconds between frames.
    let cases = [
        (DropReason::QueueFull, 1, 25, 4096, 1),
        (DropReason::QueueDelay, 1, 500, 4096, 4),
        (DropReason::QueueMemory, 1000, 25, 64, 0),
    ];
    cases.map(|(reason, megabits, queue_millis, reserve, pause)| {
        let mut lab = Lab::new(LabOptions {
            reserve,
            ..LabOptions::default()
        });
        let shaping = Shaping {
            ingress: Some(Limit {
                rate: megabits * 1_000_000,
                burst: 8_000,
            }),
            queue_millis,
            ..Shaping::default()
        };
        lab.shape(2, &shaping, 1_500);
        for _ in 0..100 {
            lab.send(1, &frame);
            lab.wait(Nanos::from_millis(pause));
            lab.assert_no_chunk_lost();
        }
        let drops = &lab.counters(2).drops;
        assert!(drops.get(reason) > 0, "{:?}", drops.snapshot());
        assert_eq!(drops.snapshot().len(), 1, "{:?}", drops.snapshot());
        while lab.held_chunks() > 0 {
            lab.wait(Nanos::from_millis(10));
            lab.run();
        }
        assert_eq!(lab.counters(2).tx_frames.get() + drops_at(&lab, 2), 100);
        reason
    })
}

fn drops_at(lab: &Lab, slot: u16) -> u64 {
    lab.counters(slot).drops.snapshot().into_values().sum()
}

/// One that stands still meanwhile.
fn overflow_another_worker() -> DropReason {
    let mut lab = Lab::new(LabOptions {
        workers: 2,
        ..LabOptions::default()
    });
    let frame = build::udp((v4(1), 1), (v4(2), 2)).frame(link(1));
    let mut sent = 0;
    while lab.counters(1).drops.get(DropReason::HandoffFull) == 0 {
        assert!(lab.inject(1, &frame), "no room to receive");
        lab.turn_worker(1);
        lab.assert_no_chunk_lost();
        sent += 1;
        assert!(sent <= 2048, "the ring has 1024 entries");
    }
    assert_eq!(lab.run().len(), sent - 1, "what was handed over arrives");
    lab.assert_no_chunk_lost();
    DropReason::HandoffFull
}

fn refuse_merged_segments() -> DropReason {
    let mut lab = Lab::new(LabOptions::default());
    lab.refuse_merged(2, Some(Unsent::Refused));
    for n in 0..2 {
        let segment = build::tcp((v4(1), 1), (v4(2), 2)).dont_fragment();
        let frame = segment.sequence(n * 100).payload([0; 100]).frame(link(1));
        assert!(lab.inject(1, &frame), "no room to receive");
    }
    assert_eq!(lab.run(), []);
    assert_eq!(drops_at(&lab, 2), 1, "both, as one");
    lab.assert_no_chunk_lost();
    lab.assert_conserved();
    DropReason::MergedRefused
}

fn cut_more_than_a_turn_may() -> DropReason {
    let mut lab = Lab::new(LabOptions {
        gro: false,
        ..LabOptions::default()
    });
    let [a, b, c, d] = MERGED;
    let marked = Ethernet {
        dst: GATEWAY_MAC,
        src: [a, b, c, d, 0, 48],
    };
    let segments = build::tcp((v4(1), 1), (v4(2), 2)).dont_fragment();
    let frame = segments.payload(vec![0; 1025 * 48]).partial().frame(marked);
    for _ in 0..2 {
        assert!(lab.inject(1, &frame), "no room to receive");
    }
    assert_eq!(lab.run().len(), 1025, "the second one is lost");
    assert_eq!(lab.counters(2).drops.get(DropReason::CutLimit), 1);
    // In a turn of its own it is not.
    assert!(lab.inject(1, &frame), "no room to receive");
    assert_eq!(lab.run().len(), 1025);
    lab.assert_no_chunk_lost();
    lab.assert_conserved();
    DropReason::CutLimit
}

fn overflow_a_tx_ring() -> DropReason {
    let mut lab = Lab::new(LabOptions {
        pods: 2,
        reserve: 8192,
        ..LabOptions::default()
    });
    // 16 chunks each, and the receiver's kernel takes none meanwhile.
    let frame = build::udp((v4(1), 1), (v4(2), 2))
        .payload(vec![0; 60_000])
        .frame(link(1));
    let mut sent = 0;
    while lab.counters(2).drops.get(DropReason::TxRingFull) == 0 {
        assert!(lab.inject(1, &frame), "no room to receive");
        lab.turn();
        sent += 1;
        assert!(sent <= 2048 / 16 + 1, "the ring has 2048 entries");
    }
    assert_eq!(lab.run().len(), 2048 / 16, "what was queued arrives");
    lab.assert_no_chunk_lost();
    DropReason::TxRingFull
}
