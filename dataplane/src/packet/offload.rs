//! Partial checksums: those that a sender left for the device to complete.
//!
//! A pod's checksums are offloaded to its veth, which computes nothing: the
//! field then holds the sum of the pseudo header, folded and not complemented
//! (`CHECKSUM_PARTIAL` in the kernel's include/linux/skbuff.h). Nothing else
//! tells such a packet from a complete one. A complete checksum that happens
//! to equal that sum is handled right all the same: completing it again gives
//! the same packet.
//!
//! A tunnel inside the pod leaves the innermost checksum partial and computes
//! its own as if that one were complete (local checksum offload, the kernel's
//! Documentation/networking/checksum-offloads.rst), so inner headers are
//! looked at too. ICMPv6 and SCTP are never partial here: Linux completes the
//! one itself, and for the other, a CRC, the pod's offload is switched off.

use std::net::IpAddr;

use zerocopy::FromBytes;
use zerocopy::byteorder::network_endian::U16;

use super::checksum::Sum;
use super::{Fragment, Ip, ipv6, protocol, tunnel};

/// As many tunnels inside each other are looked into.
const MAX_TUNNELS: u32 = 2;

/// Where a partial checksum lies: `csum_start` and `csum_offset` of struct
/// `xsk_tx_metadata`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Offset of the first byte to be summed: the transport header.
    pub start: u16,
    /// Offset of the checksum field from `start`.
    pub offset: u16,
}

impl Partial {
    /// Offset of the checksum field from the frame's first byte.
    #[inline]
    #[must_use]
    pub fn field(self) -> usize {
        usize::from(self.start) + usize::from(self.offset)
    }
}

/// Finds the partial checksum of a packet, if it has one: TCP's or UDP's, of
/// the packet or of what it carries in VXLAN, Geneve, GRE or IP.
#[inline]
#[must_use]
pub fn partial(head: &[u8], ip: &Ip) -> Option<Partial> {
    let found = if tunnel::is_one(ip) {
        find(head, ip, MAX_TUNNELS)
    } else if ip.fragment == Fragment::Whole {
        own_partial(head, ip)
    } else {
        None
    };
    found.map(|(partial, _)| partial)
}

/// The partial checksum with its sum of the pseudo header.
fn find(head: &[u8], ip: &Ip, tunnels: u32) -> Option<(Partial, u16)> {
    // The kernel completes a checksum before it fragments (ip_do_fragment).
    if ip.fragment != Fragment::Whole {
        return None;
    }
    let own = own_partial(head, ip);
    let inner = match tunnels {
        0 => None,
        _ => tunnel::inner(head, ip).and_then(|inner| find(head, &inner, tunnels - 1)),
    };
    match (own, inner) {
        // Only one of them is partial, the other equals its pseudo header's
        // sum by chance, one time in 65,536. If ours is right once the inner
        // one is completed, then it is the inner one.
        (Some(outer), Some(inner)) if is_complete_around(head, outer, inner) => Some(inner),
        (Some(outer), _) => Some(outer),
        (None, inner) => inner,
    }
}

/// The packet's own transport checksum, if it is partial.
#[inline]
fn own_partial(head: &[u8], ip: &Ip) -> Option<(Partial, u16)> {
    let (place, checksum) = own(head, ip)?;
    let dst = match ip.dst {
        IpAddr::V6(dst) => ipv6::final_destination(head, ip, dst).into(),
        dst => dst,
    };
    let sum = Sum::pseudo_header(ip.src, dst, ip.protocol, ip.l4_len()).fold();
    // The sum is never 0, which in UDP means that there is no checksum.
    (checksum == sum).then_some((place, sum))
}

/// The packet's own TCP or UDP checksum, and where it lies.
#[inline]
pub(super) fn own(head: &[u8], ip: &Ip) -> Option<(Partial, u16)> {
    let offset = match ip.protocol {
        protocol::TCP => 16,
        protocol::UDP => 6,
        _ => return None,
    };
    let place = Partial {
        start: ip.l4,
        offset,
    };
    Some((place, read(head, place.field())?))
}

/// Whether the outer checksum is right if the inner one gets completed: the
/// sum from there on is then the complement of the pseudo header's.
fn is_complete_around(head: &[u8], outer: (Partial, u16), inner: (Partial, u16)) -> bool {
    let between = usize::from(outer.0.start)..usize::from(inner.0.start);
    let Some(between) = head.get(between) else {
        return false;
    };
    let mut sum = Sum::new();
    sum.add(&outer.1.to_be_bytes());
    sum.add(between);
    sum.add(&(!inner.1).to_be_bytes());
    sum.finish() == 0
}

/// Completes a partial checksum in software: the value for [`store`].
///
/// `slices` are the frame's bytes in order, of which those from `partial.start`
/// to `end` are summed; `end` is the packet's ([`Ip::end`]). Zero becomes
/// 0xffff, which means the same and in UDP is not "none" (the kernel's
/// `skb_checksum_help`).
#[must_use]
pub fn complete<'a>(
    slices: impl IntoIterator<Item = &'a [u8]>,
    partial: Partial,
    end: usize,
) -> u16 {
    let mut sum = Sum::new();
    let mut skip = usize::from(partial.start);
    let mut left = end.saturating_sub(skip);
    for slice in slices {
        let bytes = slice.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(slice.len());
        let bytes = bytes.get(..left).unwrap_or(bytes);
        left -= bytes.len();
        sum.add(bytes);
    }
    match sum.finish() {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Stores a checksum into the field that `partial` names.
#[inline]
pub fn store(head: &mut [u8], partial: Partial, checksum: u16) {
    let field = head.get_mut(partial.field()..).unwrap_or_default();
    if let Ok((field, _)) = U16::mut_from_prefix(field) {
        field.set(checksum);
    }
}

#[inline]
fn read(head: &[u8], at: usize) -> Option<u16> {
    let (value, _) = U16::read_from_prefix(head.get(at..)?).ok()?;
    Some(value.get())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;

    use super::super::build::{self, Datagram};
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    fn partial_of(frame: &[u8]) -> Option<(u16, u16)> {
        partial(frame, &ip(frame)).map(|partial| (partial.start, partial.offset))
    }

    /// TCP and UDP over both versions, with where the checksum lies.
    fn datagrams() -> [(Datagram, (u16, u16)); 4] {
        [
            (build::tcp((A4, 1), (B4, 2)).payload(b"odd"), (34, 16)),
            (build::udp((A4, 1), (B4, 2)).payload(b"odd"), (34, 6)),
            (build::tcp((A6, 1), (B6, 2)).payload(b"odd"), (54, 16)),
            (build::udp((A6, 1), (B6, 2)).payload(b"odd"), (54, 6)),
        ]
    }

    #[test]
    fn a_partial_checksum_is_found_and_a_complete_one_left_alone() {
        for (datagram, place) in datagrams() {
            assert_eq!(partial_of(&datagram.frame(LINK)), None);
            assert_eq!(
                partial_of(&datagram.clone().wrong_checksum().frame(LINK)),
                None
            );
            assert_eq!(
                partial_of(&datagram.clone().no_checksum().frame(LINK)),
                None
            );
            assert_eq!(partial_of(&datagram.partial().frame(LINK)), Some(place));
        }
    }

    #[test]
    fn fragments_and_icmpv6_are_never_partial() {
        let fragments = build::udp((A4, 1), (B4, 2))
            .payload([0; 64])
            .partial()
            .fragments(LINK, 32);
        assert!(fragments.iter().all(|frame| partial_of(frame).is_none()));
        assert_eq!(partial_of(&build::ping(A6, B6).partial().frame(LINK)), None);
    }

    #[test]
    fn headers_before_the_transport_are_stepped_over() {
        let options = build::tcp((A4, 1), (B4, 2)).options(&[7, 3, 4]).partial();
        assert_eq!(partial_of(&options.frame(LINK)), Some((38, 16)));
        let extensions = build::tcp((A6, 1), (B6, 2))
            .extension(60, &[0; 14])
            .partial();
        assert_eq!(partial_of(&extensions.frame(LINK)), Some((70, 16)));
    }

    #[test]
    fn a_routing_header_tells_the_destination_that_is_summed() {
        let segments = [[1_u8; 16], B6.octets()];
        let list = |kind: u8, left: u8, segments: [[u8; 16]; 2]| {
            let header = [kind, left, 0, 0, 0, 0];
            let routing = [&header[..], segments.as_flattened()].concat();
            let mut frame = build::tcp((A6, 1), (B6, 2))
                .extension(43, &routing)
                .partial()
                .frame(LINK);
            if left > 0 {
                let next_segment = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9).octets();
                frame[38..54].copy_from_slice(&next_segment);
            }
            partial_of(&frame)
        };
        let [first, last] = segments;
        assert_eq!(list(0, 1, [first, last]), Some((94, 16)));
        assert_eq!(list(2, 1, [first, last]), Some((94, 16)));
        assert_eq!(list(4, 1, [last, first]), Some((94, 16)));
        assert_eq!(list(4, 0, [first, first]), Some((94, 16)));
        assert_eq!(list(4, 1, [first, last]), None);
    }

    /// What carries a frame or packet, and how long its headers are.
    type Tunnel = (&'static str, fn(&Datagram) -> Datagram, u16);

    const TUNNELS: [Tunnel; 10] = [
        (
            "VXLAN",
            |inner| build::udp((A4, 9), (B4, 4789)).payload(build::vxlan(&inner.frame(LINK))),
            50,
        ),
        (
            "VXLAN of Linux",
            |inner| build::udp((A6, 9), (B6, 8472)).payload(build::vxlan(&inner.frame(LINK))),
            70,
        ),
        (
            "Geneve",
            |inner| build::udp((A4, 9), (B4, 6081)).payload(build::geneve(&[], &inner.frame(LINK))),
            50,
        ),
        (
            "Geneve with options",
            |inner| {
                build::udp((A6, 9), (B6, 6081)).payload(build::geneve(&[0; 12], &inner.frame(LINK)))
            },
            82,
        ),
        (
            "GRE with Ethernet",
            |inner| build::raw(A4, B4, 47).payload(build::gre(0, 0x6558, &inner.frame(LINK))),
            38,
        ),
        (
            "GRE with key",
            |inner| build::raw(A6, B6, 47).payload(build::gre(0x2000, 0x6558, &inner.frame(LINK))),
            62,
        ),
        (
            "GRE with all fields",
            |inner| build::raw(A4, B4, 47).payload(build::gre(0xb000, 0x6558, &inner.frame(LINK))),
            50,
        ),
        (
            "GRE with IPv4",
            |inner| build::raw(A4, B4, 47).payload(build::gre(0, 0x0800, &inner.packet())),
            24,
        ),
        (
            "IP in IPv4",
            |inner| {
                build::raw(A4, B4, if inner.packet()[0] == 0x45 { 4 } else { 41 })
                    .payload(inner.packet())
            },
            20,
        ),
        (
            "IP in IPv6",
            |inner| {
                build::raw(A6, B6, if inner.packet()[0] == 0x45 { 4 } else { 41 })
                    .payload(inner.packet())
            },
            40,
        ),
    ];

    #[test]
    fn the_inner_checksum_of_a_tunnel_is_found() {
        for (name, tunnel, headers) in TUNNELS {
            for (inner, (start, offset)) in datagrams() {
                if name == "GRE with IPv4" && start == 54 {
                    continue;
                }
                assert_eq!(partial_of(&tunnel(&inner).frame(LINK)), None, "{name}");
                let frame = tunnel(&inner.partial()).frame(LINK);
                assert_eq!(
                    partial_of(&frame),
                    Some((start + headers, offset)),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn two_tunnels_inside_each_other_are_looked_into_and_no_more() {
        let [(_, vxlan, 50), .., (_, ip_in_ip, 40)] = TUNNELS else {
            panic!("the table changed");
        };
        let (inner, _) = &datagrams()[0];
        let two = vxlan(&ip_in_ip(&inner.clone().partial()));
        assert_eq!(partial_of(&two.frame(LINK)), Some((34 + 40 + 50, 16)));
        assert_eq!(partial_of(&ip_in_ip(&two).frame(LINK)), None);
    }

    #[test]
    fn what_only_looks_like_a_tunnel_is_none() {
        let inner = build::tcp((A4, 1), (B4, 2)).partial();
        let vxlan = build::vxlan(&inner.frame(LINK));
        let other_port = build::udp((A4, 9), (B4, 4790)).payload(&vxlan);
        assert_eq!(partial_of(&other_port.frame(LINK)), None);
        let mut no_vni = vxlan.clone();
        no_vni[0] = 0;
        let no_vni = build::udp((A4, 9), (B4, 4789)).payload(no_vni);
        assert_eq!(partial_of(&no_vni.frame(LINK)), None);
        let pptp = build::raw(A4, B4, 47).payload(build::gre(0x2001, 0x6558, &inner.frame(LINK)));
        assert_eq!(partial_of(&pptp.frame(LINK)), None);
        // The inner packet is longer than what carries it; padding does not count.
        let cut = build::raw(A4, B4, 4).payload(&inner.packet()[..39]);
        let mut padded = cut.frame(LINK);
        padded.push(0);
        assert_eq!(partial_of(&padded), None);
    }

    #[test]
    fn a_partial_outer_checksum_is_found_around_a_complete_inner_one() {
        for (inner, _) in datagrams() {
            let vxlan = build::vxlan(&inner.frame(LINK));
            let outer = build::udp((A4, 9), (B4, 4789)).payload(vxlan).partial();
            assert_eq!(partial_of(&outer.frame(LINK)), Some((34, 6)));
        }
    }

    /// The frames of a VXLAN tunnel, one for each of 2^16 networks.
    fn vxlan_frames(
        inner: &Datagram,
        finish: fn(Datagram) -> Datagram,
    ) -> impl Iterator<Item = Vec<u8>> {
        let inner = build::vxlan(&inner.frame(LINK));
        (0..=u16::MAX).map(move |vni| {
            let mut payload = inner.clone();
            payload[4..6].copy_from_slice(&vni.to_be_bytes());
            finish(build::udp((A4, 9), (B4, 4789)).payload(payload)).frame(LINK)
        })
    }

    /// A tunnel's checksum is complete as of a complete inner one, and one
    /// time in 65,536 equals its pseudo header's sum: then it must not be
    /// taken for the partial one.
    #[test]
    fn an_outer_checksum_that_equals_its_pseudo_header_by_chance_is_not_partial() {
        let inner = build::tcp((A4, 1), (B4, 2)).payload(b"data");
        let is_chance = |frame: &Vec<u8>| partial_of(frame) == Some((34, 6));
        let mut frame = vxlan_frames(&inner, |outer| outer).find(is_chance).unwrap();
        let inner = inner.partial().packet();
        frame[64..].copy_from_slice(&inner);
        assert_eq!(partial_of(&frame), Some((84, 16)));
    }

    #[test]
    fn an_inner_checksum_that_equals_its_pseudo_header_by_chance_is_not_partial() {
        let inner = (0..=u16::MAX)
            .map(|word| build::tcp((A4, 1), (B4, 2)).payload(word.to_be_bytes()))
            .find(|inner| partial_of(&inner.frame(LINK)).is_some())
            .unwrap();
        for frame in vxlan_frames(&inner, Datagram::partial).take(99) {
            assert_eq!(partial_of(&frame), Some((34, 6)));
        }
    }

    #[test]
    fn completion_gives_what_an_independent_crate_computes() {
        for (datagram, _) in datagrams() {
            let mut frame = datagram.partial().frame(LINK);
            let packet = ip(&frame);
            let found = partial(&frame, &packet).unwrap();
            let checksum = complete([&frame[..]], found, packet.end());
            store(&mut frame, found, checksum);

            let l4 = &frame[usize::from(packet.l4)..];
            let expected = match (packet.protocol, packet.src, packet.dst) {
                (protocol::TCP, IpAddr::V4(src), IpAddr::V4(dst)) => {
                    let tcp = etherparse::TcpSlice::from_slice(l4).unwrap();
                    tcp.calc_checksum_ipv4(src.octets(), dst.octets()).unwrap()
                }
                (protocol::TCP, IpAddr::V6(src), IpAddr::V6(dst)) => {
                    let tcp = etherparse::TcpSlice::from_slice(l4).unwrap();
                    tcp.calc_checksum_ipv6(src.octets(), dst.octets()).unwrap()
                }
                (_, IpAddr::V4(src), IpAddr::V4(dst)) => {
                    let udp = etherparse::UdpSlice::from_slice(l4).unwrap();
                    let header = udp.to_header();
                    header
                        .calc_checksum_ipv4_raw(src.octets(), dst.octets(), udp.payload())
                        .unwrap()
                }
                (_, IpAddr::V6(src), IpAddr::V6(dst)) => {
                    let udp = etherparse::UdpSlice::from_slice(l4).unwrap();
                    let header = udp.to_header();
                    header
                        .calc_checksum_ipv6_raw(src.octets(), dst.octets(), udp.payload())
                        .unwrap()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(checksum, expected);
        }
    }

    #[test]
    fn a_completed_checksum_is_never_zero() {
        let zero = (0..=u16::MAX)
            .map(|word| build::udp((A4, 1), (B4, 2)).payload(word.to_be_bytes()))
            .find(|datagram| datagram.frame(LINK)[40..42] == [0xff, 0xff])
            .unwrap();
        let frame = zero.partial().frame(LINK);
        let found = partial(&frame, &ip(&frame)).unwrap();
        assert_eq!(complete([&frame[..]], found, frame.len()), 0xffff);
    }

    proptest! {
        #[test]
        fn completion_is_the_same_over_any_slices(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            padding in 0..8_usize,
        ) {
            let datagram = build::udp((A6, 1), (B6, 2)).payload(payload);
            let complete_frame = datagram.frame(LINK);
            let mut frame = datagram.partial().frame(LINK);
            let end = frame.len();
            // What follows the packet is not summed.
            frame.resize(end + padding, 0xee);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(frame.len())).collect();
            cuts.sort_unstable();
            let mut slices = Vec::new();
            let mut rest = &frame[..];
            for cut in cuts.iter().rev() {
                let (before, slice) = rest.split_at(*cut);
                slices.insert(0, slice);
                rest = before;
            }
            slices.insert(0, rest);

            let found = partial(&frame, &ip(&frame)).unwrap();
            let checksum = complete(slices, found, end);
            prop_assert_eq!(&checksum.to_be_bytes()[..], &complete_frame[60..62]);
        }
    }
}
