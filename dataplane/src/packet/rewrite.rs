//! What forwarding changes in a frame, in place.
//!
//! `head` is the slice that was parsed. One too short to hold the header is
//! left as it is.

use std::net::IpAddr;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Ip, checksum, ethernet, ipv4, ipv6};

/// Sets the link addresses.
#[inline]
pub fn macs(head: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    if let Some(header) = header_at::<ethernet::Header>(head, 0) {
        header.dst = dst;
        header.src = src;
    }
}

/// Takes one from the time to live or hop limit, and in IPv4 updates the
/// header checksum. The caller has dropped packets that had none left.
#[inline]
pub fn decrement_ttl(head: &mut [u8], ip: &Ip) {
    match ip.src {
        IpAddr::V4(_) => {
            if let Some(header) = header_at::<ipv4::Header>(head, ip.l3) {
                let ttl = header.ttl.saturating_sub(1);
                // The checksum covers the TTL as the high byte of a word, whose
                // low byte stays: it sees what is taken away, and nothing else.
                let taken = u16::from(header.ttl - ttl) << 8;
                header.checksum = checksum::update(header.checksum.get(), taken, 0).into();
                header.ttl = ttl;
            }
        }
        IpAddr::V6(_) => {
            if let Some(header) = header_at::<ipv6::Header>(head, ip.l3) {
                header.hop_limit = header.hop_limit.saturating_sub(1);
            }
        }
    }
}

#[inline]
pub(super) fn header_at<T>(head: &mut [u8], offset: u16) -> Option<&mut T>
where
    T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned,
{
    let bytes = head.get_mut(usize::from(offset)..)?;
    T::mut_from_prefix(bytes).ok().map(|(header, _)| header)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::super::{build, parse};
    use super::*;

    #[test]
    fn every_ttl_goes_down_by_one_under_a_right_checksum() {
        for ttl in 1..=255 {
            let mut frame = build::udp((A4, 1), (B4, 2)).ttl(ttl).frame(LINK);
            let packet = ip(&frame);
            decrement_ttl(&mut frame, &packet);
            let expected = build::udp((A4, 1), (B4, 2)).ttl(ttl - 1).frame(LINK);
            assert_eq!(frame, expected);
            let (header, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
        }
    }

    #[test]
    fn a_hop_limit_goes_down_by_one() {
        let mut frame = build::udp((A6, 1), (B6, 2)).ttl(64).frame(LINK);
        let packet = ip(&frame);
        decrement_ttl(&mut frame, &packet);
        assert_eq!(frame, build::udp((A6, 1), (B6, 2)).ttl(63).frame(LINK));
    }

    #[test]
    fn link_addresses_are_set() {
        let mut frame = build::udp((A4, 1), (B4, 2)).frame(LINK);
        macs(&mut frame, [1; 6], [3; 6]);
        let parsed = parse(&frame, frame.len()).unwrap();
        assert_eq!((parsed.ethernet.dst, parsed.ethernet.src), ([1; 6], [3; 6]));
    }
}
