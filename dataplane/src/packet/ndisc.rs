//! Neighbour discovery for IPv6 (RFC 4861): recognised, checked, answered.

use std::net::{IpAddr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::Sum;
use super::ethernet::Ethernet;
use super::icmp::Message;
use super::transport::Icmp;
use super::{Fragment, Ip, Malformed, protocol};

/// Proves that a message comes from this link: no router lets it pass.
const HOP_LIMIT: u8 = 255;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// Flags of an advertisement, in the word after the checksum.
const ROUTER: u32 = 1 << 31;
const SOLICITED: u32 = 1 << 30;
const OVERRIDE: u32 = 1 << 29;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// A message of neighbour discovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ndisc {
    /// Who has the target address?
    NeighbourSolicitation {
        /// Who is asked for.
        target: Ipv6Addr,
        /// The asker's link address, if it says it.
        source_link_address: Option<[u8; 6]>,
    },
    /// The sender has the target address.
    NeighbourAdvertisement {
        /// Whose link address it is.
        target: Ipv6Addr,
        /// The link address, if the sender says it.
        target_link_address: Option<[u8; 6]>,
    },
    /// Is there a router?
    RouterSolicitation,
    /// The sender is one.
    RouterAdvertisement,
    /// Use another next hop.
    Redirect,
}

/// The message that a packet carries, or `None` if it is not neighbour
/// discovery.
///
/// # Errors
/// [`Malformed::NeighbourDiscovery`] if it breaks a rule of RFC 4861 sections
/// 6.1, 7.1 or 8.1, comes from a group, is fragmented (RFC 6980), or is longer
/// than `head`.
pub fn parse(head: &[u8], ip: &Ip) -> Result<Option<Ndisc>, Malformed> {
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else {
        return Ok(None);
    };
    let Some((ROUTER_SOLICITATION..=REDIRECT, code)) = ip.icmp else {
        return Ok(None);
    };
    let bytes = head
        .get(usize::from(ip.l4)..ip.end())
        .ok_or(Malformed::NeighbourDiscovery)?;
    let mut sum = Sum::pseudo_header(ip.src, ip.dst, protocol::ICMPV6, ip.l4_len());
    sum.add(bytes);
    let is_intact = sum.finish() == 0;
    let is_from_link = ip.ttl == HOP_LIMIT && ip.fragment == Fragment::Whole;
    // RFC 4291 section 2.7: a group sends nothing, and could not be answered.
    if !is_intact || !is_from_link || code != 0 || src.is_multicast() {
        return Err(Malformed::NeighbourDiscovery);
    }
    message(bytes, src, dst)
        .map(Some)
        .ok_or(Malformed::NeighbourDiscovery)
}

/// The target address, where a message has one.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Target([u8; 16]);

/// The message's own rules; `None` if it breaks one.
fn message(bytes: &[u8], src: Ipv6Addr, dst: Ipv6Addr) -> Option<Ndisc> {
    let (icmp, body) = Icmp::ref_from_prefix(bytes).ok()?;
    match icmp.kind {
        NEIGHBOUR_SOLICITATION => {
            let (target, options) = target(body)?;
            let source_link_address = link_address(options, SOURCE_LINK_ADDRESS)?;
            // Section 7.1.1: who has no address yet asks the target's group and
            // tells no link address.
            let is_probe = src.is_unspecified();
            if is_probe && (!is_solicited_node(dst) || source_link_address.is_some()) {
                return None;
            }
            Some(Ndisc::NeighbourSolicitation {
                target,
                source_link_address,
            })
        }
        NEIGHBOUR_ADVERTISEMENT => {
            let (target, options) = target(body)?;
            // Section 7.1.2: what goes to a group answers nobody.
            if dst.is_multicast() && icmp.rest.get() & SOLICITED != 0 {
                return None;
            }
            Some(Ndisc::NeighbourAdvertisement {
                target,
                target_link_address: link_address(options, TARGET_LINK_ADDRESS)?,
            })
        }
        ROUTER_SOLICITATION => {
            // Section 6.1.1.
            let source_link_address = link_address(body, SOURCE_LINK_ADDRESS)?;
            let is_valid = !src.is_unspecified() || source_link_address.is_none();
            is_valid.then_some(Ndisc::RouterSolicitation)
        }
        ROUTER_ADVERTISEMENT => {
            // Section 6.1.2. Reachable time and retransmission timer come first.
            link_address(body.get(8..)?, SOURCE_LINK_ADDRESS)?;
            src.is_unicast_link_local()
                .then_some(Ndisc::RouterAdvertisement)
        }
        _ => {
            // Section 8.1. The redirected destination follows the target.
            let (_, rest) = target(body)?;
            let (destination, options) = Target::ref_from_prefix(rest).ok()?;
            link_address(options, TARGET_LINK_ADDRESS)?;
            let is_valid =
                src.is_unicast_link_local() && !Ipv6Addr::from(destination.0).is_multicast();
            is_valid.then_some(Ndisc::Redirect)
        }
    }
}

/// The target address, which is never a group's, and what follows it.
fn target(body: &[u8]) -> Option<(Ipv6Addr, &[u8])> {
    let (target, rest) = Target::ref_from_prefix(body).ok()?;
    let target = Ipv6Addr::from(target.0);
    (!target.is_multicast()).then_some((target, rest))
}

/// ff02::1:ff00:0/104 (RFC 4291 section 2.7.1).
fn is_solicited_node(address: Ipv6Addr) -> bool {
    address
        .octets()
        .starts_with(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff])
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct LinkAddress {
    kind: u8,
    /// In units of eight bytes.
    length: u8,
    mac: [u8; 6],
}

/// Walks all options and returns the link address in the first one of `kind`,
/// if there is one. `None` if an option has no length or is cut short.
fn link_address(mut options: &[u8], kind: u8) -> Option<Option<[u8; 6]>> {
    let mut found = None;
    while !options.is_empty() {
        let (option, _) = LinkAddress::ref_from_prefix(options).ok()?;
        let length = usize::from(option.length) * 8;
        if length == 0 {
            return None;
        }
        if option.kind == kind && option.length == 1 {
            found = found.or(Some(option.mac));
        }
        options = options.get(length..)?;
    }
    Some(found)
}

/// The answer to a neighbour solicitation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advertisement {
    /// Whose link address it is: the solicitation's target.
    pub target: Ipv6Addr,
    /// The target's link address, and the sender's.
    pub mac: [u8; 6],
    /// Who asked: the solicitation's IPv6 source.
    pub solicitor: Ipv6Addr,
    /// The asker's link address.
    pub solicitor_mac: [u8; 6],
}

/// Writes a whole frame with the answer of a router into `out` and returns
/// its length, 86, or `None` if `out` is too short.
///
/// One who asks from the unspecified address, to find out if an address is
/// taken, is answered by telling all nodes (RFC 4861 section 7.2.4).
pub fn advertisement(out: &mut [u8], answer: &Advertisement) -> Option<usize> {
    let (dst, dst_mac, solicited) = if answer.solicitor.is_unspecified() {
        (ALL_NODES, ALL_NODES_MAC, 0)
    } else {
        (answer.solicitor, answer.solicitor_mac, SOLICITED)
    };
    let body = AdvertisementBody {
        target: answer.target.octets(),
        option: LinkAddress {
            kind: TARGET_LINK_ADDRESS,
            length: 1,
            mac: answer.mac,
        },
    };
    let message = Message {
        addresses: Ethernet {
            dst: dst_mac,
            src: answer.mac,
        },
        src: answer.target.into(),
        dst: dst.into(),
        hop_limit: HOP_LIMIT,
        icmp: Icmp::new(NEIGHBOUR_ADVERTISEMENT, 0, ROUTER | solicited | OVERRIDE),
        body: body.as_bytes(),
    };
    message.write(out)
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct AdvertisementBody {
    target: [u8; 16],
    option: LinkAddress,
}

#[cfg(test)]
mod tests {
    use super::super::build::{self, Datagram};
    use super::super::fixture::{A6, B6, LINK, ip};
    use super::*;

    const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 7);
    const BAD: Result<Option<Ndisc>, Malformed> = Err(Malformed::NeighbourDiscovery);

    fn read(datagram: &Datagram) -> Result<Option<Ndisc>, Malformed> {
        let frame = datagram.frame(LINK);
        parse(&frame, &ip(&frame))
    }

    fn message(src: Ipv6Addr, dst: Ipv6Addr, kind: u8) -> Datagram {
        build::icmp(src, dst, (kind, 0), 0).ttl(255)
    }

    #[test]
    fn a_solicitation_is_read_with_its_link_address() {
        let solicitation = |source_link_address| {
            Ok(Some(Ndisc::NeighbourSolicitation {
                target: B6,
                source_link_address,
            }))
        };
        let with = build::neighbour_solicitation(A6, B6, Some(LINK.src));
        assert_eq!(read(&with), solicitation(Some(LINK.src)));
        let without = build::neighbour_solicitation(A6, B6, None);
        assert_eq!(read(&without), solicitation(None));
        let probe = build::neighbour_solicitation(Ipv6Addr::UNSPECIFIED, B6, None);
        assert_eq!(read(&probe), solicitation(None));
    }

    #[test]
    fn what_breaks_a_rule_of_all_messages_is_malformed() {
        let good = build::neighbour_solicitation(A6, B6, Some(LINK.src));
        assert!(read(&good).is_ok());
        assert_eq!(read(&good.clone().ttl(254)), BAD);
        assert_eq!(read(&good.clone().wrong_checksum()), BAD);
        // Without a length, cut short, and longer than the packet.
        assert_eq!(read(&good.clone().payload([14, 0, 0, 0, 0, 0, 0, 0])), BAD);
        assert_eq!(read(&good.clone().payload([14, 1, 0, 0])), BAD);
        assert_eq!(read(&good.clone().payload([14, 2, 0, 0, 0, 0, 0, 0])), BAD);
        assert!(read(&good.payload([14, 1, 0, 0, 0, 0, 0, 0])).is_ok());
        let with_code = build::icmp(A6, B6, (135, 1), 0).ttl(255);
        assert_eq!(read(&with_code.payload(B6.octets())), BAD);
        let from_group = build::neighbour_solicitation(ALL_NODES, B6, Some(LINK.src));
        assert_eq!(read(&from_group), BAD);
        let cut_short = message(A6, B6, 135).payload(&B6.octets()[..15]);
        assert_eq!(read(&cut_short), BAD);
        let first_fragment = &build::neighbour_solicitation(A6, B6, None).fragments(LINK, 16)[0];
        assert_eq!(parse(first_fragment, &ip(first_fragment)), BAD);
    }

    #[test]
    fn a_message_that_the_first_chunk_cuts_is_malformed() {
        let frame = build::neighbour_solicitation(A6, B6, None).frame(LINK);
        assert_eq!(parse(&frame[..77], &ip(&frame)), BAD);
    }

    #[test]
    fn a_target_is_never_a_group() {
        for kind in [135, 136] {
            assert_eq!(
                read(&message(A6, B6, kind).payload(ALL_NODES.octets())),
                BAD
            );
        }
    }

    #[test]
    fn a_probe_goes_to_the_targets_group_and_tells_no_link_address() {
        let unspecified = Ipv6Addr::UNSPECIFIED;
        assert_eq!(
            read(&message(unspecified, B6, 135).payload(B6.octets())),
            BAD
        );
        let telling = build::neighbour_solicitation(unspecified, B6, Some(LINK.src));
        assert_eq!(read(&telling), BAD);
        let telling = message(unspecified, ALL_NODES, 133).payload([1, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(read(&telling), BAD);
    }

    #[test]
    fn an_advertisement_to_a_group_is_not_solicited() {
        let to = |dst: Ipv6Addr| {
            let advertisement = build::icmp(A6, dst, (136, 0), SOLICITED).ttl(255);
            read(
                &advertisement
                    .payload(A6.octets())
                    .payload([2, 1, 2, 0, 0, 0, 0, 2]),
            )
        };
        let expected = Ndisc::NeighbourAdvertisement {
            target: A6,
            target_link_address: Some([2, 0, 0, 0, 0, 2]),
        };
        assert_eq!(to(B6), Ok(Some(expected)));
        assert_eq!(to(ALL_NODES), BAD);
    }

    #[test]
    fn router_messages_and_redirects_come_from_link_local_addresses() {
        let solicitation = message(LINK_LOCAL, ALL_NODES, 133);
        assert_eq!(read(&solicitation), Ok(Some(Ndisc::RouterSolicitation)));
        let from = |src, kind, body: &[u8]| read(&message(src, ALL_NODES, kind).payload(body));
        assert_eq!(
            from(LINK_LOCAL, 134, &[0; 8]),
            Ok(Some(Ndisc::RouterAdvertisement))
        );
        assert_eq!(from(LINK_LOCAL, 134, &[0; 7]), BAD);
        assert_eq!(from(A6, 134, &[0; 8]), BAD);
        assert_eq!(from(LINK_LOCAL, 137, &[0; 32]), Ok(Some(Ndisc::Redirect)));
        assert_eq!(from(LINK_LOCAL, 137, &[0; 31]), BAD);
        assert_eq!(from(A6, 137, &[0; 32]), BAD);
    }

    #[test]
    fn other_packets_are_none() {
        assert_eq!(read(&build::ping(A6, B6)), Ok(None));
        let ipv4 = build::icmp([10, 0, 0, 1], [10, 0, 0, 2], (135, 0), 0).frame(LINK);
        assert_eq!(parse(&ipv4, &ip(&ipv4)), Ok(None));
    }

    /// The fields of an answer: Ethernet and IPv6 destination, and flags.
    fn answer_to(solicitor: Ipv6Addr) -> ([u8; 6], Ipv6Addr, u8) {
        let answer = Advertisement {
            target: B6,
            mac: LINK.dst,
            solicitor,
            solicitor_mac: LINK.src,
        };
        let mut out = [0xee; 90];
        assert_eq!(advertisement(&mut out[..85], &answer), None);
        assert_eq!(advertisement(&mut out, &answer), Some(86));
        let out = &out[..86];
        let expected = Ndisc::NeighbourAdvertisement {
            target: B6,
            target_link_address: Some(LINK.dst),
        };
        assert_eq!(parse(out, &ip(out)), Ok(Some(expected)));

        let link = etherparse::Ethernet2Slice::from_slice_without_fcs(out).unwrap();
        let packet = etherparse::Ipv6Slice::from_slice(link.payload_slice()).unwrap();
        let icmp = etherparse::Icmpv6Slice::from_slice(packet.payload().payload).unwrap();
        let header = packet.header();
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        assert_eq!((link.source(), header.source()), (LINK.dst, B6.octets()));
        (
            link.destination(),
            header.destination().into(),
            icmp.bytes5to8()[0],
        )
    }

    #[test]
    fn the_answer_goes_to_who_asked_or_to_all_if_that_has_no_address() {
        // Router, solicited, override.
        assert_eq!(answer_to(A6), (LINK.src, A6, 0xe0));
        assert_eq!(
            answer_to(Ipv6Addr::UNSPECIFIED),
            (ALL_NODES_MAC, ALL_NODES, 0xa0)
        );
    }
}
