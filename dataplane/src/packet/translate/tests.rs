use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4Header, TcpSlice, UdpSlice};
use proptest::prelude::*;

use super::super::build::{self, Datagram};
use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
use super::*;

/// Makes a datagram between two ends.
type Make = fn(SocketAddr, SocketAddr) -> Datagram;

fn flow_of(frame: &[u8]) -> Flow {
    Flow::of(&ip(frame)).unwrap()
}

/// Whether the checksums of a frame are right, by independent crates.
fn is_right(frame: &[u8]) -> bool {
    let packet = ip(frame);
    let l4 = &frame[usize::from(packet.l4)..packet.end()];
    let is_ip_right = !packet.src.is_ipv4() || {
        let (header, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
        header.header_checksum == header.calc_header_checksum()
    };
    is_ip_right && is_transport_right(&packet, l4)
}

fn is_transport_right(packet: &Ip, l4: &[u8]) -> bool {
    match (packet.protocol, packet.src, packet.dst) {
        (protocol::TCP, src, dst) => {
            let tcp = TcpSlice::from_slice(l4).unwrap();
            let right = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    tcp.calc_checksum_ipv4(src.octets(), dst.octets())
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    tcp.calc_checksum_ipv6(src.octets(), dst.octets())
                }
                other => panic!("{other:?}"),
            };
            // In ones' complement 0 is 0xffff.
            tcp.checksum() % 0xffff == right.unwrap() % 0xffff
        }
        (protocol::UDP, src, dst) => {
            let udp = UdpSlice::from_slice(l4).unwrap();
            let (header, payload) = (udp.to_header(), udp.payload());
            let right = match (src, dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                }
                other => panic!("{other:?}"),
            };
            udp.checksum() == right.unwrap()
        }
        (protocol::SCTP, ..) => {
            let mut bytes = l4.to_vec();
            let crc = u32::from_le_bytes(*bytes[8..].first_chunk().unwrap());
            bytes[8..12].fill(0);
            crc == ::crc32c::crc32c(&bytes)
        }
        (protocol::ICMP, ..) => {
            let icmp = Icmpv4Slice::from_slice(l4).unwrap();
            let right = icmp.icmp_type().calc_checksum(icmp.payload());
            icmp.checksum() % 0xffff == right % 0xffff
        }
        (protocol::ICMPV6, IpAddr::V6(src), IpAddr::V6(dst)) => Icmpv6Slice::from_slice(l4)
            .unwrap()
            .is_checksum_valid(src.octets(), dst.octets()),
        other => panic!("{other:?}"),
    }
}

/// Two ends in one IP version, and two others.
fn ends() -> impl Strategy<Value = [SocketAddr; 4]> {
    let v4 = any::<[(Ipv4Addr, u16); 4]>().prop_map(|ends| ends.map(SocketAddr::from));
    // Those of IPv4 in IPv6 are on no wire.
    let v6 = any::<[(Ipv6Addr, u16); 4]>().prop_map(|ends| {
        ends.map(|(address, port)| (Ipv6Addr::from_bits(address.to_bits() | 1 << 127), port).into())
    });
    prop_oneof![v4, v6]
}

fn protocols() -> impl Strategy<Value = Make> {
    let make: [Make; 3] = [
        |src, dst| build::tcp(src, dst),
        |src, dst| build::udp(src, dst),
        |src, dst| build::sctp(src, dst),
    ];
    prop::sample::select(make.to_vec())
}

/// With headers between those of IP and transport.
fn with_headers(datagram: Datagram, src: SocketAddr, has_headers: bool) -> Datagram {
    match (has_headers, src) {
        (false, _) => datagram,
        (true, SocketAddr::V4(_)) => datagram.options(&[7, 3, 4]),
        (true, SocketAddr::V6(_)) => datagram.extension(0, &[1, 4]).extension(60, &[1, 12]),
    }
}

proptest! {
    #[test]
    fn a_translated_packet_is_one_that_was_sent_so(
        [a, b, c, d] in ends(),
        make in protocols(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        has_headers in any::<bool>(),
        (is_partial, has_none) in any::<(bool, bool)>(),
    ) {
        let sent = |src: SocketAddr, dst: SocketAddr| {
            let datagram = with_headers(make(src, dst).payload(&payload), src, has_headers);
            match (is_partial, has_none) {
                (true, _) => datagram.partial().frame(LINK),
                (_, true) => datagram.no_checksum().frame(LINK),
                _ => datagram.frame(LINK),
            }
        };
        let before = sent(a, b);
        let expected = sent(c, d);
        let mut frame = before.clone();
        let packet_before = ip(&frame);
        // TCP has a checksum always; 0 is one that is wrong.
        let is_wrong = has_none && !is_partial && packet_before.protocol == protocol::TCP;
        let is_complete = !is_partial && !has_none || is_partial && packet_before.protocol == protocol::SCTP;

        let packet_after = packet(&mut frame, &packet_before, &flow_of(&expected));
        prop_assert_eq!(packet_after, Some(ip(&frame)));
        prop_assert_eq!(flow_of(&frame), flow_of(&expected));
        if !is_wrong {
            prop_assert_eq!(&frame, &expected);
        }
        prop_assert!(!is_complete || is_right(&frame));
        packet(&mut frame, &packet_after.unwrap(), &flow_of(&before)).unwrap();
        if !is_wrong {
            prop_assert_eq!(frame, before);
        }
    }

    #[test]
    fn a_wrong_checksum_stays_wrong([a, b, c, d] in ends(), make in protocols()) {
        let mut frame = make(a, b).payload(b"changed on the way").wrong_checksum().frame(LINK);
        let to = flow_of(&make(c, d).frame(LINK));
        let packet_before = ip(&frame);
        packet(&mut frame, &packet_before, &to).unwrap();
        prop_assert!(!is_right(&frame));
    }

    /// What the receiver puts together from translated fragments is the
    /// translated datagram.
    #[test]
    fn fragments_are_those_of_the_translated_datagram(
        [a, b, c, d] in ends(),
        is_tcp in any::<bool>(),
        len in 30..200_usize,
    ) {
        let make: Make = if is_tcp { |src, dst| build::tcp(src, dst) } else { |src, dst| build::udp(src, dst) };
        let to = flow_of(&make(c, d).frame(LINK));
        let expected = make(c, d).payload(vec![9; len]).fragments(LINK, 24);
        for (mut frame, expected) in make(a, b).payload(vec![9; len]).fragments(LINK, 24).into_iter().zip(expected) {
            let packet_before = ip(&frame);
            let packet_after = packet(&mut frame, &packet_before, &to);
            prop_assert_eq!(packet_after, Some(ip(&frame)));
            prop_assert_eq!(frame, expected);
        }
    }

    /// From the other end, or from a router on the way.
    #[test]
    fn an_error_is_about_the_translated_packet(
        [a, b, c, d] in ends(),
        make in protocols(),
        (has_headers, is_partial, is_from_router) in any::<(bool, bool, bool)>(),
        cut in any::<prop::sample::Index>(),
        payload in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (router, kind): (IpAddr, _) = match a {
            SocketAddr::V4(_) => (Ipv4Addr::new(192, 0, 2, 1).into(), (3, 4)),
            SocketAddr::V6(_) => (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), (2, 0)),
        };
        let to = flow_of(&make(c, d).frame(LINK));
        let sent = |src: SocketAddr, dst: SocketAddr, len: Option<usize>| {
            let datagram = with_headers(make(src, dst).payload(&payload), src, has_headers);
            let sent = if is_partial { datagram.partial() } else { datagram };
            let packet = sent.packet();
            // Of a transport header eight bytes are there always; a checksum
            // is there or not.
            let header = match to.protocol {
                protocol::TCP => 20,
                protocol::SCTP => 12,
                _ => 8,
            };
            let at_least = packet.len() - payload.len() - header + 8;
            let some = at_least + 4 * cut.index(payload.len() / 4 + 4);
            let len = len.unwrap_or(some.min(packet.len()));
            let from = if is_from_router { router } else { dst.ip() };
            (build::icmp(from, src.ip(), kind, 1280).payload(&packet[..len]).frame(LINK), len)
        };
        let (before, len) = sent(a, b, None);
        let (expected, _) = sent(c, d, Some(len));
        let mut frame = before.clone();
        let packet_before = ip(&frame);
        prop_assert_eq!(quote::flow(&frame, &packet_before), Some(flow_of(&make(a, b).frame(LINK))));
        // If the error's source is one of the ends by chance, that is another case.
        prop_assume!(![a, b].map(|end| end.ip()).contains(&router) && a.ip() != b.ip());

        let packet_after = error(&mut frame, &packet_before, &to);
        prop_assert_eq!(packet_after, Some(ip(&frame)));
        prop_assert_eq!(quote::flow(&frame, &ip(&frame)), Some(to));
        prop_assert!(is_right(&frame));
        let checksum = usize::from(packet_before.l4) + 2;
        let but_checksum = |frame: &[u8]| [&frame[..checksum], &frame[checksum + 2..]].concat();
        prop_assert_eq!(but_checksum(&frame), but_checksum(&expected));

        let back = flow_of(&make(a, b).frame(LINK));
        error(&mut frame, &packet_after.unwrap(), &back).unwrap();
        prop_assert_eq!(but_checksum(&frame), but_checksum(&before));
        prop_assert!(is_right(&frame));
    }
}

/// A checksum that would be 0 means "none" in UDP.
#[test]
fn a_translated_udp_checksum_is_never_zero() {
    let to = flow_of(&build::udp((A4, 1), (B4, 2)).frame(LINK));
    let zero = (0..=u16::MAX)
        .map(|word| build::udp((B4, 7), (A4, 9)).payload(word.to_be_bytes()))
        .find_map(|datagram| {
            let mut frame = datagram.frame(LINK);
            let packet_before = ip(&frame);
            packet(&mut frame, &packet_before, &to).unwrap();
            assert_ne!(frame[40..42], [0, 0]);
            (frame[40..42] == [0xff, 0xff]).then_some(frame)
        });
    assert!(is_right(&zero.expect("one in 65,536")));
}

#[test]
fn what_cannot_be_translated_is_left_alone() {
    let udp4 = build::udp((A4, 1), (B4, 2)).frame(LINK);
    let udp6 = build::udp((A6, 1), (B6, 2));
    let segments = [&[0, 1, 0, 0, 0, 0][..], &A6.octets()].concat();
    let sctp = build::sctp((A4, 1), (B4, 2)).payload([0; 40]);
    let [first, later] = [0, 1].map(|i| sctp.fragments(LINK, 24)[i].clone());
    let (to4, to6) = (flow_of(&udp4), flow_of(&udp6.frame(LINK)));
    let to_sctp = flow_of(&sctp.frame(LINK));
    let cases = [
        (udp4.clone(), to6),
        (udp6.frame(LINK), to4),
        (udp4, to_sctp),
        (
            build::ping(A4, B4).frame(LINK),
            Flow {
                protocol: protocol::ICMP,
                ..to4
            },
        ),
        (udp6.extension(43, &segments).frame(LINK), to6),
        (first, to_sctp),
    ];
    for (before, to) in cases {
        let mut frame = before.clone();
        let packet_before = ip(&frame);
        assert_eq!(packet(&mut frame, &packet_before, &to), None);
        assert_eq!(error(&mut frame, &packet_before, &to), None);
        assert_eq!(frame, before);
    }
    let mut frame = later;
    let packet_before = ip(&frame);
    assert!(packet(&mut frame, &packet_before, &to_sctp).is_some());
}

/// Its CRC goes over fragments that are not quoted.
#[test]
fn the_crc_of_a_quoted_first_fragment_is_left_alone() {
    let sctp = build::sctp((A4, 1), (B4, 2)).payload([9; 40]);
    let to = flow_of(&build::sctp((B4, 3), (A4, 4)).frame(LINK));
    let first = sctp.fragments(LINK, 24).remove(0);
    let mut frame = build::icmp(B4, A4, (11, 1), 0)
        .payload(&first[14..])
        .frame(LINK);
    let packet_before = ip(&frame);
    error(&mut frame, &packet_before, &to).unwrap();
    assert_eq!(quote::flow(&frame, &ip(&frame)), Some(to));
    let crc = |frame: &[u8], at: usize| frame[at + 8..at + 12].to_vec();
    assert_eq!(crc(&frame, 14 + 28 + 20), crc(&first, 14 + 20));
    assert!(is_right(&frame));
}

#[test]
fn a_partial_checksum_inside_a_tunnel_is_left_to_be_completed() {
    let inner = build::tcp((A4, 1), (B4, 2)).payload(b"data").partial();
    let vxlan = build::vxlan(&inner.frame(LINK));
    let sent = |src, dst| {
        build::udp((src, 9), (dst, 4789))
            .payload(&vxlan)
            .frame(LINK)
    };
    let mut frame = sent(A4, B4);
    let packet_before = ip(&frame);
    let to = flow_of(&sent(B4, A4));
    packet(&mut frame, &packet_before, &to).unwrap();
    assert_eq!(frame, sent(B4, A4));
}
