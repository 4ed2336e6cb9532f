//! Explicit congestion notification (RFC 3168).

use std::net::IpAddr;

use super::rewrite::header_at;
use super::{Ip, checksum, ipv4, ipv6};

/// The field's two bits: set by a sender that understands marks, both by whom
/// marks (section 5).
const CONGESTION_EXPERIENCED: u8 = 0b11;

/// Marks a packet, if its sender understands marks; says whether it is marked.
///
/// `head` is the slice that was parsed.
#[inline]
pub fn mark(head: &mut [u8], ip: &Ip) -> bool {
    match ip.src {
        IpAddr::V4(_) => header_at::<ipv4::Header>(head, ip.l3).is_some_and(|header| {
            let old = header.tos;
            if old & CONGESTION_EXPERIENCED == 0 {
                return false;
            }
            header.tos |= CONGESTION_EXPERIENCED;
            // The checksum covers it as the low byte of a word.
            let word = |tos| u16::from_be_bytes([header.version_ihl, tos]);
            let checksum = checksum::update(header.checksum.get(), word(old), word(header.tos));
            header.checksum = checksum.into();
            true
        }),
        IpAddr::V6(_) => header_at::<ipv6::Header>(head, ip.l3).is_some_and(|header| {
            // Version, traffic class and flow label are one word; the field is
            // the traffic class's end (RFC 8200 section 7).
            let marks = u32::from(CONGESTION_EXPERIENCED) << 20;
            let word = header.version_class_flow.get();
            if word & marks == 0 {
                return false;
            }
            header.version_class_flow = (word | marks).into();
            true
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    /// DSCP 0x2e (expedited forwarding) around each value of the field.
    const DSCP: u8 = 0x2e << 2;

    #[test]
    fn only_who_understands_marks_is_marked() {
        for pair in [(A4.into(), B4.into()), (A6.into(), B6.into())] as [(IpAddr, IpAddr); 2] {
            let udp = |tos| {
                let (src, dst) = pair;
                build::udp((src, 1), (dst, 2))
                    .traffic_class(tos)
                    .frame(LINK)
            };
            let marked = udp(DSCP | 0b11);
            for ecn in 0..=0b11 {
                let before = udp(DSCP | ecn);
                let mut after = before.clone();
                let packet = ip(&after);
                assert_eq!(mark(&mut after, &packet), ecn != 0);
                // The builder's header checksum is the one of RFC 791.
                let expected = if ecn == 0 { &before } else { &marked };
                assert_eq!(&after, expected, "{ecn}");
            }
        }
    }

    #[test]
    fn a_slice_too_short_is_left_alone() {
        let frame = build::udp((A4, 1), (B4, 2)).traffic_class(1).frame(LINK);
        let packet = ip(&frame);
        assert!(!mark(&mut frame.clone()[..20], &packet));
    }
}
