//! TCP segments that are merged on their way, over in-memory kernels: what the
//! receiver gets is the stream that was sent. No privileges needed.

mod left_merged;
mod stream;

use etherparse::{SlicedPacket, TcpSlice, TransportSlice};
use sluice_dataplane::lab::{GATEWAY_MAC, HOST, Lab, LabOptions, MTU, link, mac, v4};
use sluice_dataplane::packet::Ethernet;
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::packet::ethernet::MERGED;
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::memory::Sent;
use sluice_dataplane::xsk::{Features, MAX_CHUNKS, Unsent};

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
fn who_does_not_take_merged_segments_gets_them_one_by_one_for_a_while() {
    for (refusal, reason, pause) in [
        (Unsent::Refused, DropReason::MergedRefused, 10_000),
        (Unsent::Full, DropReason::TxRingFull, 1_000),
    ] {
        are_not_taken(refusal, reason, pause);
    }
}

/// `pause` is in milliseconds.
#[track_caller]
fn are_not_taken(refusal: Unsent, reason: DropReason, pause: u64) {
    let mut lab = lab();
    let mut next = 0..;
    let mut three = |lab: &mut Lab| {
        let all = next.by_ref().take(3).map(segment);
        lens(&in_one_turn(lab, SENDER, &frames(all)))
    };
    lab.refuse_merged(POD, Some(refusal));
    assert!(three(&mut lab).is_empty());
    let drops = &lab.counters(POD).drops;
    assert_eq!(drops.get(reason), 1);
    lab.refuse_merged(POD, None);
    assert_eq!(three(&mut lab), [MSS; 3]);
    lab.wait(Nanos::from_millis(pause - 1));
    assert_eq!(three(&mut lab), [MSS; 3]);
    lab.wait(Nanos::from_millis(1));
    assert_eq!(three(&mut lab), [3 * MSS]);
    assert_eq!(lab.counters(POD).merged_frames.get(), 2 + 2);
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
