//! Whatever comes, what the receiver gets is the stream that was sent.

use std::net::{IpAddr, SocketAddr};

use etherparse::SlicedPacket;
use proptest::prelude::*;
use sluice_dataplane::lab::{HOST, MTU, link, v4, v6};
use sluice_dataplane::packet::{Packet, build, offload, parse};
use sluice_dataplane::xsk::memory::Sent;

use super::{
    ACK_PSH, CUT, OUTSIDE, POD, SENDER, completed, is_right, lab_with, merged_link, pieces, tcp_of,
};

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
                    Checksum::Complete => None,
                    // One of 65,536 looks as if it were left to be completed.
                    Checksum::Wrong => {
                        prop_assume!(offload::partial(&frame, &ip).is_none());
                        None
                    }
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
