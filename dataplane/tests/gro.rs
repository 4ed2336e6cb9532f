//! TCP segments that are merged on their way, over in-memory kernels: what the
//! receiver gets is the stream that was sent. No privileges needed.

use std::net::{IpAddr, SocketAddr};

use etherparse::{SlicedPacket, TcpSlice, TransportSlice};
use proptest::prelude::*;
use sluice_control::{Limit, Shaping};
use sluice_dataplane::lab::{GATEWAY_MAC, HOST, Lab, LabOptions, MTU, link, mac, v4, v6};
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::packet::ethernet::MERGED;
use sluice_dataplane::packet::{Ethernet, Packet, parse};
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::memory::Sent;
use sluice_dataplane::xsk::{Features, MAX_CHUNKS};

/// The pods that send and receive.
const SENDER: u16 = 1;
const POD: u16 = 2;

const OUTSIDE: [u8; 4] = [198, 51, 100, 7];
const MSS: usize = 1448;
/// How much data segments have that a stack leaves merged.
const CUT: u16 = 400;
const ACK_PSH: u8 = 0x18;

fn lab() -> Lab {
    Lab::new(LabOptions::default())
}

/// Whose receiving pod has this MTU, with or without a kernel that is told how
/// to cut merged segments. Small: each is mapped for good.
fn lab_with(mtu: u32, gso: bool) -> Lab {
    let mut options = LabOptions {
        reserve: 1024,
        sessions: 16,
        ..LabOptions::default()
    };
    options.features.gso = gso;
    let mut lab = Lab::new(options);
    lab.detach(POD);
    lab.attach(POD, 1, mtu);
    lab
}

/// The `n`-th segment of a stream of 1448 bytes each, sender to pod.
fn segment(n: u32) -> Datagram {
    let mss = u32::try_from(MSS).unwrap();
    build::tcp((v4(SENDER), 80), (v4(POD), 4000))
        .dont_fragment()
        .sequence(n * mss)
        .payload(vec![n.to_le_bytes()[0]; MSS])
}

/// The link layer of segments that a stack left merged, with so much data each.
fn merged_link(data_len: u16) -> Ethernet {
    let [high, low] = data_len.to_be_bytes();
    let [a, b, c, d] = MERGED;
    Ethernet {
        dst: GATEWAY_MAC,
        src: [a, b, c, d, high, low],
    }
}

/// Sends frames in one turn; what arrives at the pod.
fn in_one_turn(lab: &mut Lab, from: u16, frames: &[Vec<u8>]) -> Vec<Sent> {
    in_one_turn_to(lab, POD, from, frames)
}

fn in_one_turn_to(lab: &mut Lab, to: u16, from: u16, frames: &[Vec<u8>]) -> Vec<Sent> {
    for frame in frames {
        assert!(lab.inject(from, frame), "no room to receive");
    }
    lab.turn();
    let arrived = lab.take(to);
    lab.run();
    lab.assert_conserved();
    arrived
}

fn frames(segments: impl IntoIterator<Item = Datagram>) -> Vec<Vec<u8>> {
    segments
        .into_iter()
        .map(|segment| segment.frame(link(SENDER)))
        .collect()
}

fn lens(arrived: &[Sent]) -> Vec<usize> {
    arrived.iter().map(|sent| sent.bytes.len() - 54).collect()
}

#[test]
fn segments_of_a_turn_arrive_as_one_frame() {
    for make in [Datagram::partial, |complete| complete] {
        let mut lab = lab();
        let parts = (0..5).map(|n| make(segment(n)));
        let arrived = in_one_turn(&mut lab, SENDER, &frames(parts));
        let to = Ethernet {
            dst: mac(POD),
            src: GATEWAY_MAC,
        };
        let whole = (1..5_u8).fold(segment(0), |all, n| all.payload(vec![n; MSS]));
        let whole = whole.ttl(63).partial().frame(to);
        assert_eq!(arrived.len(), 1);
        assert!(arrived[0].bytes == whole);
        assert_eq!(arrived[0].checksum, Some((34, 16)));
        let counters = lab.counters(POD);
        assert_eq!(
            (counters.tx_frames.get(), counters.merged_frames.get()),
            (1, 4)
        );
        assert_eq!(counters.tx_bytes.get(), whole.len() as u64);
    }
}

#[test]
fn nothing_waits_for_the_next_turn() {
    let mut lab = lab();
    for n in 0..3 {
        let arrived = in_one_turn(&mut lab, SENDER, &frames([segment(n)]));
        assert_eq!(lens(&arrived), [MSS]);
        assert_eq!(arrived[0].checksum, None, "it is left alone");
    }
    assert_eq!(lab.counters(POD).merged_frames.get(), 0);
}

#[test]
fn a_frame_has_as_many_chunks_as_the_kernel_takes() {
    let mut lab = lab();
    let arrived = in_one_turn(&mut lab, SENDER, &frames((0..40).map(segment)));
    let most = usize::from(MAX_CHUNKS);
    assert_eq!(lens(&arrived), [most * MSS, most * MSS, 6 * MSS]);
    // Jumbo frames of 3 chunks each.
    let jumbo = |n: u32| {
        let base = build::tcp((v4(SENDER), 80), (v4(POD), 4000)).dont_fragment();
        base.sequence(n * 8948).payload(vec![1; 8948])
    };
    let arrived = in_one_turn(&mut lab, SENDER, &frames((0..8).map(jumbo)));
    assert_eq!(lens(&arrived), [5 * 8948, 3 * 8948]);
}

#[test]
fn a_frame_is_no_larger_than_the_pods_mtu() {
    for (mtu, expected) in [
        (1500, vec![MSS; 7]),
        (1487 + 1448, vec![MSS; 7]),
        (1488 + 1448, vec![2 * MSS, 2 * MSS, 2 * MSS, MSS]),
        (9000, vec![6 * MSS, MSS]),
        (MTU, vec![7 * MSS]),
    ] {
        let mut lab = lab_with(mtu, false);
        let arrived = in_one_turn(&mut lab, SENDER, &frames((0..7).map(segment)));
        assert_eq!(lens(&arrived), expected, "{mtu}");
        assert!(arrived.iter().all(|sent| sent.segment.is_none()));
    }
}

#[test]
fn a_frame_may_be_longer_than_the_mtu_if_it_says_how_to_cut_it() {
    for mtu in [1500, 9000, MTU] {
        let mut lab = lab_with(mtu, true);
        let arrived = in_one_turn(&mut lab, SENDER, &frames((0..7).map(segment)));
        assert_eq!(lens(&arrived), [7 * MSS], "{mtu}");
        assert_eq!(arrived[0].segment, u16::try_from(MSS).ok());
    }
}

/// The host gets merged segments after what its flow had before, and before what
/// comes after: they go there by different ways.
#[test]
fn merged_segments_keep_their_place_in_the_flow() {
    let mut lab = lab();
    let base = || build::tcp((v4(SENDER), 80), (OUTSIDE, 4000)).dont_fragment();
    let data = |n: u32| base().sequence(n * 100).payload([7; 100]);
    let bare = |n: u32| base().sequence(n * 100);
    let all = [
        bare(0),
        data(0),
        data(1),
        data(2),
        bare(3),
        data(3),
        data(4).payload([8; 7]),
    ];
    let arrived = in_one_turn_to(&mut lab, HOST, SENDER, &frames(all));
    let seen: Vec<_> = arrived
        .iter()
        .map(|sent| (pieces(sent), sent.segment))
        .collect();
    let expected = [
        (vec![(0, 0)], None),
        (vec![(0, 100), (100, 100), (200, 100)], Some(100)),
        (vec![(300, 0)], None),
        // The second is longer than the first.
        (vec![(300, 100)], None),
        (vec![(400, 107)], None),
    ];
    assert_eq!(seen, expected);
    assert_eq!(lab.counters(HOST).merged_frames.get(), 2);
    assert_eq!(lab.counters(HOST).tx_frames.get(), 5);
}

#[test]
fn who_refuses_merged_segments_gets_them_one_by_one_for_a_while() {
    let mut lab = lab();
    let mut next = 0..;
    let mut three = |lab: &mut Lab| {
        let all = next.by_ref().take(3).map(segment);
        lens(&in_one_turn(lab, SENDER, &frames(all)))
    };
    lab.refuse_merged(POD, true);
    assert!(three(&mut lab).is_empty());
    let drops = &lab.counters(POD).drops;
    assert_eq!(drops.get(DropReason::MergedRefused), 1);
    lab.refuse_merged(POD, false);
    assert_eq!(three(&mut lab), [MSS; 3]);
    lab.wait(Nanos::from_millis(9_999));
    assert_eq!(three(&mut lab), [MSS; 3]);
    lab.wait(Nanos::from_millis(1));
    assert_eq!(three(&mut lab), [3 * MSS]);
    assert_eq!(lab.counters(POD).merged_frames.get(), 2 + 2);
}

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

#[test]
fn only_pods_that_take_it_get_merged_segments() {
    let bare = |change: fn(&mut Features)| {
        let mut options = LabOptions::default();
        change(&mut options.features);
        options
    };
    for options in [
        bare(|features| (features.gso, features.multi_buffer) = (false, false)),
        bare(|features| (features.gso, features.tx_metadata) = (false, false)),
        LabOptions {
            gro: false,
            ..LabOptions::default()
        },
    ] {
        let mut lab = Lab::new(options);
        let arrived = in_one_turn(&mut lab, SENDER, &frames((0..3).map(segment)));
        assert_eq!(lens(&arrived), [MSS; 3], "{options:?}");
        assert_eq!(lab.counters(POD).merged_frames.get(), 0);
    }
    // Beyond the host port a frame has to be cut up again.
    let mut lab = Lab::new(bare(|features| features.gso = false));
    let out = |n: u32| {
        let base = build::tcp((v4(SENDER), 80), (OUTSIDE, 4000)).dont_fragment();
        base.sequence(n * 100).payload([7; 100])
    };
    for frame in frames((0..3).map(out)) {
        assert!(lab.inject(SENDER, &frame));
    }
    assert_eq!(lab.run().len(), 3);
    lab.assert_conserved();
}

#[test]
fn a_segment_whose_checksum_is_wrong_stays_as_it_is_and_alone() {
    for bad in 0..5 {
        let mut lab = lab();
        let parts = (0..5).map(|n| match n == bad {
            true => segment(n).wrong_checksum(),
            false => segment(n),
        });
        let arrived = in_one_turn(&mut lab, SENDER, &frames(parts));
        let wrong: Vec<_> = arrived.iter().filter(|sent| !is_right(sent)).collect();
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].checksum, None);
        assert_eq!(wrong[0].bytes.len(), 54 + MSS);
        assert_eq!(lens(&arrived).iter().sum::<usize>(), 5 * MSS);
        assert!(arrived.len() <= 3);
    }
}

#[test]
fn more_flows_than_are_held_lose_nothing() {
    let mut lab = lab();
    let mut all = Vec::new();
    for n in 0..5 {
        for port in 0..12 {
            let base = build::tcp((v4(SENDER), 80), (v4(POD), 4000 + port)).dont_fragment();
            all.push(base.sequence(n * 100).payload([7; 100]));
        }
    }
    let arrived = in_one_turn(&mut lab, SENDER, &frames(all));
    assert_eq!(lens(&arrived).iter().sum::<usize>(), 5 * 12 * 100);
}

/// One frame of a conversation, before it is built.
#[derive(Debug, Clone)]
struct Sketch {
    flow: usize,
    place: Place,
    size: Size,
    change: Change,
    checksum: Checksum,
}

/// Where in the stream it lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    Next,
    /// The one before it is lost.
    Later,
    /// It comes again.
    Again,
    /// It overtakes the one before it, which follows.
    Early,
}

#[derive(Debug, Clone, Copy)]
enum Size {
    Full,
    Short,
    None,
    Jumbo,
    /// Several, which the sender's stack has left merged.
    Merged,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    None,
    Flags(u8),
    Window,
    Acknowledgment,
    Class(u8),
    Ttl,
    Timestamp,
    IpOptions,
    Padded,
    Identification(u16),
    MayFragment,
}

#[derive(Debug, Clone, Copy)]
enum Checksum {
    Partial,
    Complete,
    Wrong,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let place = prop_oneof![
        20 => Just(Place::Next),
        1 => Just(Place::Later),
        1 => Just(Place::Again),
        1 => Just(Place::Early),
    ];
    let size = prop_oneof![
        20 => Just(Size::Full),
        2 => Just(Size::Short),
        1 => Just(Size::None),
        1 => Just(Size::Jumbo),
        3 => Just(Size::Merged),
    ];
    let change = prop_oneof![
        30 => Just(Change::None),
        3 => Just(Change::Flags(ACK_PSH)),
        3 => any::<u8>().prop_map(Change::Flags),
        1 => Just(Change::Window),
        1 => Just(Change::Acknowledgment),
        1 => any::<u8>().prop_map(Change::Class),
        1 => Just(Change::Ttl),
        1 => Just(Change::Timestamp),
        1 => Just(Change::IpOptions),
        1 => Just(Change::Padded),
        1 => any::<u16>().prop_map(Change::Identification),
        1 => Just(Change::MayFragment),
    ];
    let checksum = prop_oneof![
        10 => Just(Checksum::Partial),
        10 => Just(Checksum::Complete),
        1 => Just(Checksum::Wrong),
    ];
    (0..FLOWS.len(), place, size, change, checksum).prop_map(
        |(flow, place, size, change, checksum)| {
            let (change, checksum) = match (size, change) {
                // As stacks leave them.
                (Size::Merged, Change::Flags(_)) => (Change::Flags(ACK_PSH), Checksum::Partial),
                (Size::Merged, Change::Padded) => (Change::None, Checksum::Partial),
                (Size::Merged, change) => (change, Checksum::Partial),
                (_, change) => (change, checksum),
            };
            Sketch {
                flow,
                place,
                size,
                change,
                checksum,
            }
        },
    )
}

/// Where flows come from: a pod, and what the host forwards from outside.
const FLOWS: [(u16, bool); 4] = [(SENDER, true), (SENDER, false), (HOST, true), (HOST, false)];

fn ends(flow: usize) -> (SocketAddr, SocketAddr) {
    let (from, is_ipv4) = FLOWS[flow];
    let (src, dst): (IpAddr, IpAddr) = match (from, is_ipv4) {
        (HOST, true) => (OUTSIDE.into(), v4(POD).into()),
        (HOST, false) => ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into(), v6(POD).into()),
        (slot, true) => (v4(slot).into(), v4(POD).into()),
        (slot, false) => (v6(slot).into(), v6(POD).into()),
    };
    ((src, 80).into(), (dst, 4000).into())
}

/// A flow's sender.
#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The next byte's place.
    next: u32,
    /// The last segment's.
    last: (u32, usize),
    identification: u16,
}

/// The frames of a sketch, each with where it comes from.
fn draw(sketch: &Sketch, stream: &mut Stream) -> Vec<(u16, Vec<u8>)> {
    let len = match sketch.size {
        Size::Full => 400,
        Size::Short => 150,
        Size::None => 0,
        Size::Jumbo => 9000,
        Size::Merged => 3000,
    };
    let after = stream.next.wrapping_add(u32::try_from(len).unwrap());
    let places = match sketch.place {
        Place::Next => vec![(stream.next, len)],
        Place::Later => vec![(after, len)],
        Place::Again => vec![stream.last],
        Place::Early => vec![(after, len), (stream.next, len)],
    };
    for (start, len) in &places {
        let end = start.wrapping_add(u32::try_from(*len).unwrap());
        if end.wrapping_sub(stream.next) < 1 << 31 {
            (stream.last, stream.next) = ((*start, *len), end);
        }
    }
    let from = FLOWS[sketch.flow].0;
    let frames = places.into_iter().map(|(start, len)| {
        stream.identification = stream.identification.wrapping_add(1);
        (from, build_one(sketch, start, len, stream.identification))
    });
    frames.collect()
}

fn build_one(sketch: &Sketch, start: u32, len: usize, identification: u16) -> Vec<u8> {
    let (src, dst) = ends(sketch.flow);
    let mut timestamp = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    if let Change::Timestamp = sketch.change {
        timestamp[7] += 1;
    }
    let mut datagram = build::tcp(src, dst)
        .sequence(start)
        .identification(identification)
        .tcp_options(&timestamp);
    // What a byte is depends on its place alone: a stream can be checked.
    let bytes = (0..len).map(|i| byte_at(start.wrapping_add(u32::try_from(i).unwrap())));
    datagram = datagram.payload(bytes.collect::<Vec<u8>>());
    let is_ipv4 = src.is_ipv4();
    datagram = match sketch.change {
        Change::MayFragment => datagram,
        Change::IpOptions if is_ipv4 => datagram.options(&[1; 4]).dont_fragment(),
        Change::IpOptions => datagram.extension(60, &[0; 6]),
        Change::Flags(flags) => datagram.flags(flags).dont_fragment(),
        Change::Window => datagram.window(7).dont_fragment(),
        Change::Acknowledgment => datagram.acknowledgment(7).dont_fragment(),
        Change::Class(class) => datagram.traffic_class(class).dont_fragment(),
        Change::Ttl => datagram.ttl(9).dont_fragment(),
        Change::Identification(id) => datagram.identification(id).dont_fragment(),
        Change::None | Change::Timestamp | Change::Padded => datagram.dont_fragment(),
    };
    datagram = match sketch.checksum {
        Checksum::Partial => datagram.partial(),
        Checksum::Complete => datagram,
        Checksum::Wrong => datagram.wrong_checksum(),
    };
    let mut frame = datagram.frame(match sketch.size {
        Size::Merged => merged_link(CUT),
        _ => link(FLOWS[sketch.flow].0),
    });
    if let Change::Padded = sketch.change {
        frame.extend([0xee; 6]);
    }
    frame
}

fn byte_at(place: u32) -> u8 {
    place.wrapping_mul(0x9e37_79b1).to_be_bytes()[0]
}

/// Internet checksum, as plainly as it can be written.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|word| u64::from(word[0]) << 8 | word.get(1).copied().map_or(0, u64::from));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

/// What the receiving kernel reads: the frame with its checksum completed.
fn completed(sent: &Sent) -> Vec<u8> {
    let mut bytes = sent.bytes.clone();
    if let Some((start, offset)) = sent.checksum {
        let (start, at) = (usize::from(start), usize::from(start + offset));
        let checksum = !sum(&bytes[start..]);
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

fn tcp_of<'a>(packet: &SlicedPacket<'a>) -> TcpSlice<'a> {
    match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.clone(),
        other => panic!("{other:?}"),
    }
}

/// Whether the kernel would find its checksums right; a complete one of
/// 0xffff for 0 as well.
fn is_right(sent: &Sent) -> bool {
    let bytes = completed(sent);
    let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
    let tcp = tcp_of(&packet);
    let expected = match packet.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            tcp.calc_checksum_ipv4(header.source, header.destination)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header();
            tcp.calc_checksum_ipv6(header.source(), header.destination())
        }
        other => panic!("{other:?}"),
    };
    tcp.checksum() % 0xffff == expected.unwrap() % 0xffff
}

/// The segments that a frame is cut into: sequence number and length of data.
fn pieces(sent: &Sent) -> Vec<(u32, usize)> {
    let packet = SlicedPacket::from_ethernet(&sent.bytes).unwrap();
    let tcp = tcp_of(&packet);
    let (start, len) = (tcp.sequence_number(), tcp.payload().len());
    let most = sent.segment.map_or(len.max(1), usize::from);
    (0..len.max(1))
        .step_by(most)
        .map(|at| {
            let offset = u32::try_from(at).unwrap();
            (start.wrapping_add(offset), most.min(len - at))
        })
        .collect()
}

/// What the receiver's TCP sees beside the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    /// But PSH.
    flags: u8,
    acknowledgment: u32,
    window: u16,
    tcp_options: Vec<u8>,
    class: u8,
    ttl: u8,
    dont_fragment: bool,
    is_right: bool,
}

/// A part of the stream as the receiver's TCP sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    sequence: u32,
    data: Vec<u8>,
    pushes: bool,
    header: Header,
}

/// Adds a part to those before it: to the last, if nothing tells them apart
/// but where one segment ended.
fn add(seen: &mut Vec<Part>, mut part: Part) {
    if let Some(last) = seen.last_mut()
        && !last.pushes
        && !last.data.is_empty()
        && !part.data.is_empty()
        && last.header == part.header
        && last
            .sequence
            .wrapping_add(u32::try_from(last.data.len()).unwrap())
            == part.sequence
    {
        last.data.append(&mut part.data);
        last.pushes = part.pushes;
    } else {
        seen.push(part);
    }
}

/// Adds what the receiver's TCP sees of a frame to what it has seen of its
/// flow, which it gives. `is_here`: it has been forwarded.
fn look(sent: &Sent, seen: &mut [Vec<Part>], is_here: bool) -> usize {
    let bytes = completed(sent);
    let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
    let tcp = tcp_of(&packet);
    let (src, class, ttl, dont_fragment): (IpAddr, _, _, _) = match packet.net.as_ref().unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let ip = ip.header();
            let class = ip.slice()[1];
            (ip.source_addr().into(), class, ip.ttl(), ip.dont_fragment())
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let ip = ip.header();
            (
                ip.source_addr().into(),
                ip.traffic_class(),
                ip.hop_limit(),
                true,
            )
        }
        other => panic!("{other:?}"),
    };
    let flow = (0..FLOWS.len())
        .find(|flow| ends(*flow).0.ip() == src)
        .unwrap();
    // The host's stack has counted its own hop before.
    let hops = u8::from(!is_here && FLOWS[flow].0 != HOST);
    let header = Header {
        flags: tcp.slice()[13] & !0x08,
        acknowledgment: tcp.acknowledgment_number(),
        window: tcp.window_size(),
        tcp_options: tcp.options().to_vec(),
        class,
        ttl: ttl - hops,
        dont_fragment,
        is_right: is_right(sent),
    };
    let part = Part {
        sequence: tcp.sequence_number(),
        data: tcp.payload().to_vec(),
        pushes: tcp.psh(),
        header,
    };
    add(&mut seen[flow], part);
    flow
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The oracle: per flow, byte by byte and in order, the receiver sees what
    /// was sent, however it was lost, repeated, put out of order or spoiled on
    /// its way to us.
    #[test]
    fn the_receiver_sees_the_stream_that_was_sent(
        sketches in prop::collection::vec(sketch(), 1..120),
        start in any::<u32>(),
        mtu in prop::sample::select(vec![1500, 9100, MTU]),
        gso in any::<bool>(),
        many_turns in any::<bool>(),
    ) {
        let mut lab = lab_with(mtu, gso);
        let stream = Stream { next: start, last: (start, 100), identification: 0 };
        let mut streams = [stream; FLOWS.len()];
        let (mut sent, mut got) = (vec![Vec::new(); FLOWS.len()], vec![Vec::new(); FLOWS.len()]);
        let (mut cut, mut put_together) = (vec![Vec::new(); FLOWS.len()], vec![Vec::new(); FLOWS.len()]);
        let mut arrived = Vec::new();
        for sketch in &sketches {
            for (from, frame) in draw(sketch, &mut streams[sketch.flow]) {
                let Ok(Packet::Ip(ip)) = parse(&frame, frame.len()).map(|parsed| parsed.packet)
                else { panic!("not IP") };
                prop_assume!(lab.inject(from, &frame));
                let segment = matches!(sketch.size, Size::Merged).then_some(CUT);
                if segment.is_none() && frame.len() - 14 > mtu as usize {
                    continue;
                }
                let checksum = match sketch.checksum {
                    Checksum::Partial => Some((ip.l4, 16)),
                    Checksum::Complete | Checksum::Wrong => None,
                };
                let mut bytes = frame;
                // What is padding the sum must not see.
                bytes.truncate(ip.end());
                let one = Sent { bytes, checksum, segment };
                look(&one, &mut sent, false);
                cut[sketch.flow].extend(pieces(&one));
            }
            if many_turns {
                lab.turn();
                arrived.extend(lab.take(POD));
            }
        }
        arrived.extend(lab.run().into_iter().filter(|(slot, _)| *slot == POD).map(|(_, sent)| sent));
        let mut frames = 0;
        for mut one in arrived {
            let Ok(Packet::Ip(ip)) = parse(&one.bytes, one.bytes.len()).map(|parsed| parsed.packet)
            else { panic!("not IP") };
            one.bytes.truncate(ip.end());
            let parts = pieces(&one);
            let longest = parts.iter().map(|(_, len)| *len).max().unwrap_or_default();
            let all: usize = parts.iter().map(|(_, len)| len).sum();
            prop_assert!(one.bytes.len() - 14 - all + longest <= mtu as usize);
            prop_assert_eq!(one.segment.is_some(), gso && parts.len() > 1);
            prop_assert!(one.segment.is_none() || one.checksum.is_some());
            put_together[look(&one, &mut got, true)].extend(parts);
            frames += 1;
        }
        prop_assert!(sent == got);
        // Cut as it says, it is what was sent.
        prop_assert!(!gso || cut == put_together);
        prop_assert_eq!(lab.counters(POD).tx_frames.get(), frames);
        lab.assert_conserved();
    }
}
