//! The IPv4 header (RFC 791).

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{self, Sum};
use super::transport::{self, Upper};
use super::{Fragment, Ip, Malformed, protocol};

/// Length of a header without options.
pub(super) const HEADER_LEN: usize = size_of::<Header>();
/// Version 4, five words of header.
pub(super) const VERSION_IHL: u8 = 0x45;
/// No packet is longer, not even one put together from fragments.
const MAX_LEN: usize = 65_535;

pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset's bits; it counts units of eight bytes.
const FRAGMENT_OFFSET: u16 = 0x1fff;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// Version (4 bits), header length in 32-bit words (4 bits).
    pub(super) version_ihl: u8,
    pub(super) tos: u8,
    pub(super) total_length: U16,
    pub(super) identification: U16,
    pub(super) flags_fragment: U16,
    pub(super) ttl: u8,
    pub(super) protocol: u8,
    pub(super) checksum: U16,
    pub(super) src: [u8; 4],
    pub(super) dst: [u8; 4],
}

impl Header {
    /// With its checksum, if no options follow.
    pub(super) fn with_checksum(mut self) -> Self {
        self.checksum = 0.into();
        self.checksum = checksum::of(self.as_bytes()).into();
        self
    }
}

/// Parses the packet at `l3` that must end at or before `end`, of which
/// `head` holds the beginning.
#[inline(always)] // Else its result is copied twice on its way to the caller.
pub(super) fn parse(head: &[u8], l3: usize, end: usize) -> Result<Ip, Malformed> {
    let bytes = head.get(l3..).unwrap_or_default();
    let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| Malformed::Ipv4Header)?;
    let header_len = usize::from(header.version_ihl & 0xf) * 4;
    if header.version_ihl >> 4 != 4 || header_len < HEADER_LEN {
        return Err(Malformed::Ipv4Header);
    }
    let (options, payload) = rest
        .split_at_checked(header_len - HEADER_LEN)
        .ok_or(Malformed::Ipv4Header)?;
    let total_length = usize::from(header.total_length.get());
    if total_length < header_len || total_length > end.saturating_sub(l3) {
        return Err(Malformed::Ipv4Length);
    }
    // The header by itself has a length that the compiler knows.
    let mut sum = Sum::of(header.as_bytes());
    if !options.is_empty() {
        sum.add(options);
    }
    if sum.finish() != 0 {
        return Err(Malformed::Ipv4Checksum);
    }

    let flags_fragment = header.flags_fragment.get();
    let fragment_offset = usize::from(flags_fragment & FRAGMENT_OFFSET) * 8;
    if fragment_offset + total_length > MAX_LEN {
        return Err(Malformed::Ipv4Fragment);
    }
    let fragment = match (fragment_offset, flags_fragment & MORE_FRAGMENTS) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let upper = if fragment == Fragment::Later {
        Upper::default()
    } else {
        let payload = payload.get(..total_length - header_len).unwrap_or(payload);
        transport::peek(header.protocol, protocol::ICMP, payload)?
    };

    let offset = |value: usize| u16::try_from(value).map_err(|_| Malformed::Ipv4Length);
    Ok(Ip {
        src: Ipv4Addr::from(header.src).into(),
        dst: Ipv4Addr::from(header.dst).into(),
        l3: offset(l3)?,
        l4: offset(l3 + header_len)?,
        packet_len: u32::from(header.total_length.get()),
        protocol: header.protocol,
        ttl: header.ttl,
        fragment,
        dont_fragment: flags_fragment & DONT_FRAGMENT != 0,
        ports: upper.ports,
        icmp: upper.icmp,
    })
}

/// The packet at `l3` that an ICMP error quotes: its header, if what follows is
/// not a later fragment. Its checksum is its sender's business.
pub(super) fn quoted(head: &[u8], l3: usize) -> Option<Ip> {
    let (header, _) = Header::ref_from_prefix(head.get(l3..)?).ok()?;
    let header_len = usize::from(header.version_ihl & 0xf) * 4;
    let flags_fragment = header.flags_fragment.get();
    let is_valid = header.version_ihl >> 4 == 4 && header_len >= HEADER_LEN;
    if !is_valid || flags_fragment & FRAGMENT_OFFSET != 0 {
        return None;
    }
    Some(Ip {
        src: Ipv4Addr::from(header.src).into(),
        dst: Ipv4Addr::from(header.dst).into(),
        l3: u16::try_from(l3).ok()?,
        l4: u16::try_from(l3 + header_len).ok()?,
        packet_len: header.total_length.get().into(),
        protocol: header.protocol,
        ttl: header.ttl,
        fragment: match flags_fragment & MORE_FRAGMENTS {
            0 => Fragment::Whole,
            _ => Fragment::First,
        },
        dont_fragment: flags_fragment & DONT_FRAGMENT != 0,
        ports: None,
        icmp: None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::fixture::{A4, B4, LINK, broken_rule, ip};
    use super::*;

    /// The rule that a frame breaks once `change` has been made to its IPv4
    /// header and the checksum is right again.
    fn rule_broken_by(change: impl Fn(&mut [u8])) -> Option<Malformed> {
        let mut frame = build::udp((A4, 1), (B4, 2)).payload([0; 16]).frame(LINK);
        change(&mut frame[14..]);
        frame[24..26].fill(0);
        let checksum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        broken_rule(&frame)
    }

    #[test]
    fn options_and_padding_are_no_part_of_the_payload() {
        let datagram = build::udp((A4, 5000), (B4, 53)).payload(b"x");
        let mut frame = datagram
            .ttl(9)
            .dont_fragment()
            .options(&[7, 3, 4])
            .frame(LINK);
        let packet_len = frame.len() - 14;
        frame.resize(60, 0xee);
        let expected = Ip {
            src: A4.into(),
            dst: B4.into(),
            l3: 14,
            l4: 38,
            packet_len: u32::try_from(packet_len).unwrap(),
            protocol: 17,
            ttl: 9,
            fragment: Fragment::Whole,
            dont_fragment: true,
            ports: Some((5000, 53)),
            icmp: None,
        };
        assert_eq!(ip(&frame), expected);
        assert_eq!((expected.end(), expected.l4_len()), (47, 9));
    }

    #[test]
    fn a_header_that_breaks_a_rule_is_malformed() {
        assert_eq!(rule_broken_by(|_| ()), None);
        let version_6 = rule_broken_by(|header| header[0] = 0x65);
        let four_words = rule_broken_by(|header| header[0] = 0x44);
        let longer_than_frame = rule_broken_by(|header| header[0] = 0x4f);
        assert_eq!(version_6, Some(Malformed::Ipv4Header));
        assert_eq!(four_words, Some(Malformed::Ipv4Header));
        assert_eq!(longer_than_frame, Some(Malformed::Ipv4Header));

        let below_header = rule_broken_by(|header| header[3] = 19);
        let beyond_frame = rule_broken_by(|header| header[3] += 1);
        assert_eq!(below_header, Some(Malformed::Ipv4Length));
        assert_eq!(beyond_frame, Some(Malformed::Ipv4Length));

        let mut frame = build::udp((A4, 1), (B4, 2)).frame(LINK);
        frame[24] ^= 1;
        assert_eq!(broken_rule(&frame), Some(Malformed::Ipv4Checksum));
        assert_eq!(broken_rule(&frame[..33]), Some(Malformed::Ipv4Header));
    }

    #[test]
    fn a_fragment_has_no_ports_after_the_first() {
        let datagram = build::udp((A4, 5000), (B4, 53)).payload([1; 40]);
        let fragments = datagram.fragments(LINK, 16);
        let seen: Vec<_> = fragments
            .iter()
            .map(|frame| (ip(frame).fragment, ip(frame).ports))
            .collect();
        let expected = [
            (Fragment::First, Some((5000, 53))),
            (Fragment::Later, None),
            (Fragment::Later, None),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_fragment_that_ends_beyond_the_largest_packet_is_malformed() {
        // 20 bytes of header, 24 of payload: 65,488 / 8 is the last offset.
        let at = |offset: u16| {
            rule_broken_by(|header| header[6..8].copy_from_slice(&offset.to_be_bytes()))
        };
        assert_eq!(at(8186), None);
        assert_eq!(at(8187), Some(Malformed::Ipv4Fragment));
        assert_eq!(at(FRAGMENT_OFFSET), Some(Malformed::Ipv4Fragment));
    }

    #[test]
    fn a_transport_header_cut_short_is_malformed_but_in_later_fragments() {
        for (protocol, header_len) in [(1, 8), (6, 20), (17, 8), (132, 12)] {
            let short = build::raw(A4, B4, protocol).payload(vec![0; header_len - 1]);
            assert_eq!(broken_rule(&short.frame(LINK)), Some(Malformed::Transport));
            // What the frame is padded with does not complete it.
            let mut padded = short.frame(LINK);
            padded.resize(60, 0);
            assert_eq!(broken_rule(&padded), Some(Malformed::Transport));
            let complete = build::raw(A4, B4, protocol).payload(vec![0; header_len]);
            assert_eq!(broken_rule(&complete.frame(LINK)), None);
        }
        let datagram = build::tcp((A4, 1), (B4, 2)).payload([0; 3]);
        let rules = datagram
            .fragments(LINK, 16)
            .iter()
            .map(|frame| broken_rule(frame))
            .collect::<Vec<_>>();
        assert_eq!(rules, [Some(Malformed::Transport), None]);
    }
}
