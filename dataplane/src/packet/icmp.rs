//! ICMP errors: when one may be sent, and how it is made.

use std::net::IpAddr;

use zerocopy::{FromBytes, IntoBytes};

use super::checksum::Sum;
use super::ethernet::{self, Ethernet};
use super::transport::Icmp;
use super::{Fragment, Ip, ipv4, ipv6, protocol};

/// The longest frame that [`build`] writes.
pub const MAX_FRAME_LEN: usize = ethernet::HEADER_LEN + IPV6_MAX_LEN;
/// RFC 1812 section 4.3.2.3: as much of the original as fits into 576 bytes.
const IPV4_MAX_LEN: usize = 576;
/// RFC 4443 section 2.4 (c): as much as fits into the minimum MTU.
const IPV6_MAX_LEN: usize = 1280;
/// What Linux sends with by default (RFC 1700).
const HOP_LIMIT: u8 = 64;
/// Precedence of IPv4 errors (RFC 1812 section 4.3.2.5).
const INTERNETWORK_CONTROL: u8 = 6 << 5;

/// What went wrong with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Its time to live or hop limit ended here.
    TimeExceeded,
    /// Nobody here has its destination address.
    HostUnreachable,
    /// It is longer than the next link carries, and must not be fragmented.
    TooBig {
        /// The longest packet that the next link carries, in bytes.
        mtu: u32,
    },
}

impl Error {
    /// Type, code and the header's last four bytes in ICMP (RFC 792, and
    /// RFC 1191 section 4 for the MTU).
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (11, 0, 0),
            Self::HostUnreachable => (3, 1, 0),
            Self::TooBig { mtu } => (3, 4, mtu.min(u32::from(u16::MAX))),
        }
    }

    /// The same in ICMPv6 (RFC 4443 section 3).
    fn v6(self) -> (u8, u8, u32) {
        match self {
            Self::TimeExceeded => (3, 0, 0),
            Self::HostUnreachable => (1, 3, 0),
            Self::TooBig { mtu } => (2, 0, mtu),
        }
    }
}

/// Whether a packet may be answered by an ICMP error at all: not an error or
/// a redirect itself, not a later fragment, not sent to a group, and from one
/// host that can be answered (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)).
#[must_use]
pub fn may_answer(head: &[u8], ip: &Ip) -> bool {
    let is_link_multicast = head.first().is_none_or(|first| first & 1 != 0);
    if is_link_multicast || ip.fragment == Fragment::Later {
        return false;
    }
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            // Class E, the limited broadcast address included.
            let is_reserved = src.octets()[0] >= 240;
            let is_one_host =
                !(src.is_unspecified() || src.is_loopback() || src.is_multicast() || is_reserved);
            let is_for_group = dst.is_multicast() || dst.is_broadcast();
            // Unreachable, source quench, redirect, time exceeded, parameter problem.
            let is_error = matches!(ip.icmp, Some((3 | 4 | 5 | 11 | 12, _)));
            is_one_host && !is_for_group && !is_error
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let is_one_host = !(src.is_unspecified() || src.is_loopback() || src.is_multicast());
            // All below 128 are errors; 137 is the redirect.
            let is_error = matches!(ip.icmp, Some((0..=127 | 137, _)));
            is_one_host && !dst.is_multicast() && !is_error
        }
        _ => false,
    }
}

/// An ICMP error to be sent back to a packet's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// What went wrong.
    pub error: Error,
    /// Who says so: the gateway's address, of the packet's IP version.
    pub src: IpAddr,
    /// The gateway's link address.
    pub src_mac: [u8; 6],
    /// The link address of the packet's source.
    pub dst_mac: [u8; 6],
}

/// Writes a whole frame with the error into `out` and returns its length.
/// `out` needs [`MAX_FRAME_LEN`] bytes at most.
///
/// The packet is quoted as it stands in `head`, so call this before anything
/// is rewritten. `None` if `out` is too short, or if `reply.src` and the
/// packet are of different IP versions.
pub fn build(out: &mut [u8], head: &[u8], ip: &Ip, reply: &Reply) -> Option<usize> {
    let ((kind, code, rest), max_len, ip_len) = match ip.src {
        IpAddr::V4(_) => (reply.error.v4(), IPV4_MAX_LEN, ipv4::HEADER_LEN),
        IpAddr::V6(_) => (reply.error.v6(), IPV6_MAX_LEN, ipv6::HEADER_LEN),
    };
    let original = head.get(usize::from(ip.l3)..ip.end().min(head.len()))?;
    let room = max_len - ip_len - size_of::<Icmp>();
    let message = Message {
        addresses: Ethernet {
            dst: reply.dst_mac,
            src: reply.src_mac,
        },
        src: reply.src,
        dst: ip.src,
        hop_limit: HOP_LIMIT,
        icmp: Icmp::new(kind, code, rest),
        body: original.get(..room).unwrap_or(original),
    };
    message.write(out)
}

/// An ICMP or ICMPv6 message of our own.
pub(super) struct Message<'a> {
    pub(super) addresses: Ethernet,
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) hop_limit: u8,
    pub(super) icmp: Icmp,
    /// What follows the ICMP header.
    pub(super) body: &'a [u8],
}

impl Message<'_> {
    /// Writes the frame into `out` and returns its length, or `None` if `out`
    /// is too short or the addresses are of different IP versions.
    pub(super) fn write(self, out: &mut [u8]) -> Option<usize> {
        let ip_len = match self.dst {
            IpAddr::V4(_) => ipv4::HEADER_LEN,
            IpAddr::V6(_) => ipv6::HEADER_LEN,
        };
        let message_len = size_of::<Icmp>() + self.body.len();
        let frame_len = ethernet::HEADER_LEN + ip_len + message_len;
        let frame = out.get_mut(..frame_len)?;
        let (ethernet, packet) = frame.split_at_mut_checked(ethernet::HEADER_LEN)?;
        let (header, message) = packet.split_at_mut_checked(ip_len)?;

        let (ethertype, mut sum) = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let fields = ipv4::Header {
                    version_ihl: ipv4::VERSION_IHL,
                    tos: INTERNETWORK_CONTROL,
                    total_length: u16::try_from(ip_len + message_len).ok()?.into(),
                    identification: 0.into(),
                    flags_fragment: ipv4::DONT_FRAGMENT.into(),
                    ttl: self.hop_limit,
                    protocol: protocol::ICMP,
                    checksum: 0.into(),
                    src: src.octets(),
                    dst: dst.octets(),
                };
                fields.with_checksum().write_to(header).ok()?;
                (ethernet::IPV4, Sum::new())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let length = u16::try_from(message_len).ok()?;
                let fields = ipv6::Header {
                    version_class_flow: ipv6::VERSION.into(),
                    payload_length: length.into(),
                    next_header: protocol::ICMPV6,
                    hop_limit: self.hop_limit,
                    src: src.octets(),
                    dst: dst.octets(),
                };
                fields.write_to(header).ok()?;
                let sum = Sum::pseudo_header(self.src, self.dst, protocol::ICMPV6, length.into());
                (ethernet::IPV6, sum)
            }
            _ => return None,
        };
        ethernet::Header::new(self.addresses, ethertype)
            .write_to(ethernet)
            .ok()?;

        let (icmp, body) = Icmp::mut_from_prefix(message).ok()?;
        *icmp = self.icmp;
        self.body.write_to(body).ok()?;
        sum.add(icmp.as_bytes());
        sum.add(body);
        icmp.checksum = sum.finish().into();
        Some(frame_len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4Slice, Ipv6Slice};

    use super::super::build as frames;
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    const GATEWAY_4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    /// The answer to a frame, checked as far as it is the same for all.
    fn answer(frame: &[u8], error: Error) -> Vec<u8> {
        let packet = ip(frame);
        let reply = Reply {
            error,
            src: match packet.src {
                IpAddr::V4(_) => GATEWAY_4.into(),
                IpAddr::V6(_) => GATEWAY_6.into(),
            },
            src_mac: LINK.dst,
            dst_mac: LINK.src,
        };
        let mut out = [0xee; MAX_FRAME_LEN];
        let len = build(&mut out, frame, &packet, &reply).unwrap();
        let out = out[..len].to_vec();
        assert_eq!(out[..12], [LINK.src, LINK.dst].concat());
        out
    }

    /// The ICMP message of an answer over IPv4, by an independent parser.
    fn v4(frame: &[u8]) -> Icmpv4Slice<'_> {
        let packet = Ipv4Slice::from_slice(&frame[14..]).unwrap();
        let header = packet.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert_eq!(
            (header.source, header.destination),
            (GATEWAY_4.octets(), A4.octets())
        );
        let icmp = Icmpv4Slice::from_slice(packet.payload().payload).unwrap();
        let checksum = icmp.icmp_type().calc_checksum(icmp.payload());
        assert_eq!(icmp.checksum(), checksum);
        icmp
    }

    /// The same over IPv6.
    fn v6(frame: &[u8]) -> Icmpv6Slice<'_> {
        let packet = Ipv6Slice::from_slice(&frame[14..]).unwrap();
        let (src, dst) = (packet.header().source(), packet.header().destination());
        assert_eq!((src, dst), (GATEWAY_6.octets(), A6.octets()));
        let icmp = Icmpv6Slice::from_slice(packet.payload().payload).unwrap();
        assert!(icmp.is_checksum_valid(src, dst));
        icmp
    }

    #[test]
    fn errors_have_the_types_and_codes_of_the_rfcs() {
        let frame_4 = frames::udp((A4, 1), (B4, 2)).frame(LINK);
        let frame_6 = frames::udp((A6, 1), (B6, 2)).frame(LINK);
        let cases = [
            (Error::TimeExceeded, (11, 0, [0; 4]), (3, 0, [0; 4])),
            (Error::HostUnreachable, (3, 1, [0; 4]), (1, 3, [0; 4])),
            (
                Error::TooBig { mtu: 1500 },
                (3, 4, [0, 0, 5, 0xdc]),
                (2, 0, [0, 0, 5, 0xdc]),
            ),
            (
                Error::TooBig { mtu: 1 << 16 },
                (3, 4, [0, 0, 0xff, 0xff]),
                (2, 0, [0, 1, 0, 0]),
            ),
        ];
        for (error, expected_4, expected_6) in cases {
            let out = answer(&frame_4, error);
            let icmp = v4(&out);
            assert_eq!(
                (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()),
                expected_4
            );
            let out = answer(&frame_6, error);
            let icmp = v6(&out);
            assert_eq!(
                (icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()),
                expected_6
            );
        }
    }

    #[test]
    fn a_short_packet_is_quoted_whole_without_its_padding() {
        let mut frame = frames::udp((A4, 1), (B4, 2)).payload(b"odd").frame(LINK);
        let packet = frame[14..].to_vec();
        frame.resize(60, 0xee);
        assert_eq!(
            v4(&answer(&frame, Error::HostUnreachable)).payload(),
            packet
        );
        let frame = frames::udp((A6, 1), (B6, 2)).payload(b"odd").frame(LINK);
        assert_eq!(
            v6(&answer(&frame, Error::HostUnreachable)).payload(),
            &frame[14..]
        );
    }

    #[test]
    fn a_long_packet_is_quoted_up_to_the_limit() {
        let frame = frames::udp((A4, 1), (B4, 2)).payload([7; 3000]).frame(LINK);
        let out = answer(&frame, Error::TooBig { mtu: 1500 });
        assert_eq!(out.len(), 14 + 576);
        assert_eq!(v4(&out).payload(), &frame[14..14 + 548]);

        let frame = frames::udp((A6, 1), (B6, 2)).payload([7; 3000]).frame(LINK);
        let out = answer(&frame, Error::TooBig { mtu: 1500 });
        assert_eq!(out.len(), MAX_FRAME_LEN);
        assert_eq!(v6(&out).payload(), &frame[14..14 + 1232]);
    }

    #[test]
    fn there_is_no_answer_without_room_or_across_ip_versions() {
        let frame = frames::udp((A4, 1), (B4, 2)).frame(LINK);
        let mut reply = Reply {
            error: Error::TimeExceeded,
            src: GATEWAY_4.into(),
            src_mac: LINK.dst,
            dst_mac: LINK.src,
        };
        let len = 14 + 28 + 28;
        let build = |out: &mut [u8], reply: &Reply| build(out, &frame, &ip(&frame), reply);
        assert_eq!(build(&mut vec![0; len], &reply), Some(len));
        assert_eq!(build(&mut vec![0; len - 1], &reply), None);
        reply.src = GATEWAY_6.into();
        assert_eq!(build(&mut vec![0; len], &reply), None);
    }

    fn may(datagram: &frames::Datagram) -> bool {
        let frame = datagram.frame(LINK);
        may_answer(&frame, &ip(&frame))
    }

    #[test]
    fn only_what_one_host_sent_to_one_host_may_be_answered() {
        let from_4 = |src: [u8; 4]| may(&frames::udp((src, 1), (B4, 2)));
        let to_4 = |dst: [u8; 4]| may(&frames::udp((A4, 1), (dst, 2)));
        assert!(from_4([10, 1, 0, 2]));
        for src in [
            [0; 4],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [240, 0, 0, 1],
            [255; 4],
        ] {
            assert!(!from_4(src), "{src:?}");
        }
        assert!(!to_4([224, 0, 0, 251]) && !to_4([255; 4]));

        let from_6 = |src: Ipv6Addr| may(&frames::udp((src, 1), (B6, 2)));
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        assert!(from_6(A6));
        for src in [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, group] {
            assert!(!from_6(src), "{src}");
        }
        assert!(!may(&frames::udp((A6, 1), (group, 2))));

        let mut frame = frames::udp((A4, 1), (B4, 2)).frame(LINK);
        frame[..6].copy_from_slice(&ethernet::BROADCAST);
        assert!(!may_answer(&frame, &ip(&frame)));
    }

    #[test]
    fn errors_are_not_answered_and_queries_are() {
        for kind in 0..=255 {
            let answered = may(&frames::icmp(A4, B4, (kind, 0), 0));
            assert_eq!(
                answered,
                ![3, 4, 5, 11, 12].contains(&kind),
                "ICMP type {kind}"
            );
            let answered = may(&frames::icmp(A6, B6, (kind, 0), 0));
            assert_eq!(answered, kind >= 128 && kind != 137, "ICMPv6 type {kind}");
        }
    }

    #[test]
    fn only_the_first_fragment_may_be_answered() {
        let fragments = frames::udp((A4, 1), (B4, 2))
            .payload([0; 64])
            .fragments(LINK, 24);
        let answered: Vec<_> = fragments
            .iter()
            .map(|frame| may_answer(frame, &ip(frame)))
            .collect();
        assert_eq!(answered, [true, false, false]);
    }
}
