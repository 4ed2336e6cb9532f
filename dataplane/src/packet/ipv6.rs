//! The IPv6 header and its extension headers (RFC 8200).

use std::net::Ipv6Addr;

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::transport::{self, Upper};
use super::{Fragment, Ip, Malformed, protocol};

/// Length of the fixed header.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
/// Version 6, no traffic class, no flow.
pub(super) const VERSION: u32 = 6 << 28;
/// The largest payload, put together from fragments or not.
const MAX_PAYLOAD: usize = 65_535;
/// More extension headers than this have no use but to hide something.
const MAX_EXTENSIONS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// Version (4 bits), traffic class (8 bits), flow label (20 bits).
    pub(super) version_class_flow: U32,
    pub(super) payload_length: U16,
    pub(super) next_header: u8,
    pub(super) hop_limit: u8,
    pub(super) src: [u8; 16],
    pub(super) dst: [u8; 16],
}

/// What all extension headers begin with, and the routing header's next two.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extension {
    next_header: u8,
    /// Beyond the first eight bytes, in units of eight; the authentication
    /// header counts units of four (RFC 4302 section 2.2).
    length: u8,
    routing_type: u8,
    segments_left: u8,
    rest: [u8; 4],
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FragmentHeader {
    next_header: u8,
    reserved: u8,
    /// Offset in units of eight bytes (13 bits), reserved (2), more follow (1).
    offset_more: U16,
    identification: U32,
}

/// Parses the packet at `l3` that must end at or before `end`, of which
/// `head` holds the beginning.
#[inline]
pub(super) fn parse(head: &[u8], l3: usize, end: usize) -> Result<Ip, Malformed> {
    let bytes = head.get(l3..).unwrap_or_default();
    let (header, payload) = Header::ref_from_prefix(bytes).map_err(|_| Malformed::Ipv6Header)?;
    if header.version_class_flow.get() >> 28 != 6 {
        return Err(Malformed::Ipv6Header);
    }
    let payload_length = usize::from(header.payload_length.get());
    let is_jumbogram = payload_length == 0 && header.next_header == HOP_BY_HOP;
    if is_jumbogram || payload_length > end.saturating_sub(l3 + HEADER_LEN) {
        return Err(Malformed::Ipv6Length);
    }

    let payload = payload.get(..payload_length).unwrap_or(payload);
    let chain = walk(header.next_header, payload, payload_length)?;
    let upper = if chain.fragment == Fragment::Later {
        Upper::default()
    } else {
        let payload = payload.get(chain.length..).unwrap_or_default();
        transport::peek(chain.protocol, protocol::ICMPV6, payload)?
    };

    let offset = |value: usize| u16::try_from(value).map_err(|_| Malformed::Ipv6Length);
    Ok(Ip {
        src: Ipv6Addr::from(header.src).into(),
        dst: Ipv6Addr::from(header.dst).into(),
        l3: offset(l3)?,
        l4: offset(l3 + HEADER_LEN + chain.length)?,
        packet_len: u32::from(header.payload_length.get()) + 40,
        protocol: chain.protocol,
        ttl: header.hop_limit,
        fragment: chain.fragment,
        dont_fragment: true,
        ports: upper.ports,
        icmp: upper.icmp,
    })
}

/// Where a chain of extension headers leads.
struct Chain {
    /// Length of all extension headers.
    length: usize,
    /// What follows them.
    protocol: u8,
    fragment: Fragment,
}

#[inline]
fn walk(next_header: u8, payload: &[u8], payload_length: usize) -> Result<Chain, Malformed> {
    let mut chain = Chain {
        length: 0,
        protocol: next_header,
        fragment: Fragment::Whole,
    };
    let mut walked = 0;
    while let Some((header, length)) = extension(&chain, payload)? {
        walked += 1;
        // RFC 8200 section 4.1: hop-by-hop options come first or not at all.
        let is_out_of_place = chain.protocol == HOP_BY_HOP && walked > 1;
        if walked > MAX_EXTENSIONS || is_out_of_place {
            return Err(Malformed::Ipv6Extension);
        }
        if chain.protocol == FRAGMENT {
            chain.fragment = fragment(payload, chain.length, payload_length)?;
        }
        chain.length += length;
        chain.protocol = header.next_header;
        if chain.fragment == Fragment::Later {
            break;
        }
    }
    Ok(chain)
}

/// The extension header at the end of `chain` with its length, or `None` if
/// that is the upper layer's.
#[inline]
fn extension<'a>(
    chain: &Chain,
    payload: &'a [u8],
) -> Result<Option<(&'a Extension, usize)>, Malformed> {
    let (unit, fixed) = match chain.protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (8, 8),
        AUTHENTICATION => (4, 8),
        // Its second byte is reserved: eight bytes always.
        FRAGMENT => (0, 8),
        _ => return Ok(None),
    };
    let rest = payload.get(chain.length..).unwrap_or_default();
    let (header, _) = Extension::ref_from_prefix(rest).map_err(|_| Malformed::Ipv6Extension)?;
    let length = fixed + usize::from(header.length) * unit;
    if length > rest.len() {
        return Err(Malformed::Ipv6Extension);
    }
    Ok(Some((header, length)))
}

fn fragment(payload: &[u8], at: usize, payload_length: usize) -> Result<Fragment, Malformed> {
    let rest = payload.get(at..).unwrap_or_default();
    let (header, _) =
        FragmentHeader::ref_from_prefix(rest).map_err(|_| Malformed::Ipv6Extension)?;
    let offset_more = header.offset_more.get();
    // The units of eight bytes and the mask of the low three bits cancel out.
    let offset = usize::from(offset_more & !0b111);
    // The fragment header itself is gone after reassembly.
    if payload_length - size_of::<FragmentHeader>() + offset > MAX_PAYLOAD {
        return Err(Malformed::Ipv6Fragment);
    }
    Ok(match (offset, offset_more & 1) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    })
}

/// The packet at `l3` that an ICMP error quotes: its headers, if what follows
/// is not a later fragment.
pub(super) fn quoted(head: &[u8], l3: usize) -> Option<Ip> {
    let (header, payload) = Header::ref_from_prefix(head.get(l3..)?).ok()?;
    if header.version_class_flow.get() >> 28 != 6 {
        return None;
    }
    let payload_length = usize::from(header.payload_length.get());
    let payload = payload.get(..payload_length).unwrap_or(payload);
    let chain = walk(header.next_header, payload, payload_length).ok()?;
    if chain.fragment == Fragment::Later {
        return None;
    }
    Some(Ip {
        src: Ipv6Addr::from(header.src).into(),
        dst: Ipv6Addr::from(header.dst).into(),
        l3: u16::try_from(l3).ok()?,
        l4: u16::try_from(l3 + HEADER_LEN + chain.length).ok()?,
        packet_len: u32::from(header.payload_length.get()) + 40,
        protocol: chain.protocol,
        ttl: header.hop_limit,
        fragment: chain.fragment,
        dont_fragment: true,
        ports: None,
        icmp: None,
    })
}

/// The destination that the packet's transport checksum covers: the last
/// segment while a routing header still leads elsewhere (RFC 8200 section 8.1).
///
/// Routing types: 0 (RFC 5095 retired it) and 2 (RFC 6275) list the segments
/// in order, 4 (segment routing, RFC 8754) the last one first.
pub(super) fn final_destination(head: &[u8], ip: &Ip, dst: Ipv6Addr) -> Ipv6Addr {
    let Some((routing_type, segments)) = route(head, ip) else {
        return dst;
    };
    let last = match routing_type {
        0 | 2 => <[u8; 16]>::read_from_suffix(segments).map(|(_, last)| last),
        4 => <[u8; 16]>::read_from_prefix(segments).map(|(last, _)| last),
        _ => return dst,
    };
    last.map_or(dst, Ipv6Addr::from)
}

/// The datagram's identification, if the packet is a fragment.
pub(super) fn identification(head: &[u8], ip: &Ip) -> Option<u32> {
    let (_, header) = extensions(head, ip).find(|(kind, _)| *kind == FRAGMENT)?;
    let (header, _) = FragmentHeader::ref_from_prefix(header).ok()?;
    Some(header.identification.get())
}

/// Type and segments of a routing header that has segments left.
pub(super) fn route<'a>(head: &'a [u8], ip: &Ip) -> Option<(u8, &'a [u8])> {
    extensions(head, ip).find_map(|(kind, bytes)| {
        let (header, segments) = Extension::ref_from_prefix(bytes).ok()?;
        let is_routed = kind == ROUTING && header.segments_left > 0;
        is_routed.then_some((header.routing_type, segments))
    })
}

/// A packet's extension headers, each with its kind.
fn extensions<'a>(head: &'a [u8], ip: &Ip) -> impl Iterator<Item = (u8, &'a [u8])> {
    let headers = head.get(usize::from(ip.l3)..usize::from(ip.l4));
    let (next_header, bytes) = match Header::ref_from_prefix(headers.unwrap_or_default()) {
        Ok((header, bytes)) => (header.next_header, bytes),
        // No extension header's number.
        Err(_) => (protocol::IPV6, &[][..]),
    };
    let mut chain = Chain {
        length: 0,
        protocol: next_header,
        fragment: Fragment::Whole,
    };
    std::iter::from_fn(move || {
        let (header, length) = extension(&chain, bytes).ok()??;
        let found = (
            chain.protocol,
            bytes.get(chain.length..chain.length + length)?,
        );
        chain.length += length;
        chain.protocol = header.next_header;
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::fixture::{A6, B6, LINK, broken_rule, ip};
    use super::*;

    fn udp() -> build::Datagram {
        build::udp((A6, 5000), (B6, 53)).payload([1; 40])
    }

    #[test]
    fn a_packet_without_extensions_is_parsed() {
        let frame = udp().ttl(9).frame(LINK);
        let expected = Ip {
            src: A6.into(),
            dst: B6.into(),
            l3: 14,
            l4: 54,
            packet_len: 88,
            protocol: 17,
            ttl: 9,
            fragment: Fragment::Whole,
            dont_fragment: true,
            ports: Some((5000, 53)),
            icmp: None,
        };
        assert_eq!(ip(&frame), expected);
    }

    #[test]
    fn extension_headers_lead_to_the_transport_header() {
        let datagram = udp()
            .extension(HOP_BY_HOP, &[5, 2, 0, 0])
            .extension(ROUTING, &[0; 22])
            .extension(AUTHENTICATION, &[0; 22])
            .extension(DESTINATION_OPTIONS, &[0; 30]);
        let packet = ip(&datagram.frame(LINK));
        assert_eq!(packet.l4, 54 + 8 + 24 + 24 + 32);
        assert_eq!((packet.protocol, packet.ports), (17, Some((5000, 53))));
        assert_eq!(packet.l4_len(), 48);
    }

    #[test]
    fn what_is_no_extension_header_ends_the_chain() {
        for protocol in [50, 59, 135, 200] {
            let packet = ip(&build::raw(A6, B6, protocol).frame(LINK));
            assert_eq!(
                (packet.l4, packet.protocol, packet.ports),
                (54, protocol, None)
            );
        }
    }

    #[test]
    fn eight_extension_headers_are_walked_and_no_more() {
        let with = |count| {
            let add = |datagram: build::Datagram, _| datagram.extension(DESTINATION_OPTIONS, &[]);
            broken_rule(&(0..count).fold(udp(), add).frame(LINK))
        };
        assert_eq!(with(8), None);
        assert_eq!(with(9), Some(Malformed::Ipv6Extension));
    }

    #[test]
    fn hop_by_hop_options_come_first_or_not_at_all() {
        let first = udp()
            .extension(HOP_BY_HOP, &[])
            .extension(DESTINATION_OPTIONS, &[]);
        let second = udp()
            .extension(DESTINATION_OPTIONS, &[])
            .extension(HOP_BY_HOP, &[]);
        assert_eq!(broken_rule(&first.frame(LINK)), None);
        assert_eq!(
            broken_rule(&second.frame(LINK)),
            Some(Malformed::Ipv6Extension)
        );
    }

    #[test]
    fn a_header_that_breaks_a_rule_is_malformed() {
        let good = udp().extension(HOP_BY_HOP, &[]).frame(LINK);
        let changed = |offset: usize, value: u8| {
            let mut frame = good.clone();
            frame[offset] = value;
            broken_rule(&frame)
        };
        assert_eq!(broken_rule(&good[..53]), Some(Malformed::Ipv6Header));
        assert_eq!(changed(14, 0x40), Some(Malformed::Ipv6Header));
        assert_eq!(changed(19, 57), Some(Malformed::Ipv6Length));
        // A jumbogram says 0.
        assert_eq!(changed(19, 0), Some(Malformed::Ipv6Length));
        assert_eq!(changed(19, 7), Some(Malformed::Ipv6Extension));
        assert_eq!(changed(55, 7), Some(Malformed::Ipv6Extension));
        assert_eq!(changed(19, 15), Some(Malformed::Transport));
    }

    #[test]
    fn a_fragment_has_no_ports_after_the_first() {
        let datagram = udp().extension(DESTINATION_OPTIONS, &[]);
        let seen: Vec<_> = datagram
            .fragments(LINK, 24)
            .iter()
            .map(|frame| (ip(frame).fragment, ip(frame).ports, ip(frame).l4))
            .collect();
        let expected = [
            (Fragment::First, Some((5000, 53)), 70),
            (Fragment::Later, None, 70),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_atomic_fragment_is_whole() {
        let packet = ip(&udp().extension(FRAGMENT, &[0, 0, 0, 0, 0, 1]).frame(LINK));
        assert_eq!(
            (packet.fragment, packet.ports),
            (Fragment::Whole, Some((5000, 53)))
        );
    }

    #[test]
    fn a_first_fragment_without_all_headers_is_malformed() {
        let chain = udp()
            .extension(FRAGMENT, &[0, 1, 0, 0, 0, 1])
            .extension(DESTINATION_OPTIONS, &[0; 30]);
        let mut frame = chain.frame(LINK);
        assert_eq!(broken_rule(&frame), None);
        frame.truncate(54 + 8 + 16);
        frame[19] = 24;
        assert_eq!(broken_rule(&frame), Some(Malformed::Ipv6Extension));
    }

    #[test]
    fn a_fragment_that_ends_beyond_the_largest_packet_is_malformed() {
        let at = |offset: u16| {
            let [high, low] = offset.to_be_bytes();
            let later = build::raw(A6, B6, 17).payload([0; 15]);
            broken_rule(
                &later
                    .extension(FRAGMENT, &[high, low, 0, 0, 0, 1])
                    .frame(LINK),
            )
        };
        assert_eq!(at(65_520), None);
        assert_eq!(at(65_528), Some(Malformed::Ipv6Fragment));
    }
}
