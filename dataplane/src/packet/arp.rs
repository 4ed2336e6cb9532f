//! Address resolution for IPv4 over Ethernet (RFC 826).

use std::net::Ipv4Addr;

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Malformed;
use super::ethernet::{self, Ethernet};

const HTYPE_ETHERNET: u16 = 1;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// What an ARP packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has it.
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub operation: Operation,
    /// The sender's link address.
    pub sender_mac: [u8; 6],
    /// The sender's address; 0.0.0.0 in a probe (RFC 5227 section 1.1).
    pub sender_ip: Ipv4Addr,
    /// Meaningless in a request.
    pub target_mac: [u8; 6],
    /// Who is asked for.
    pub target_ip: Ipv4Addr,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    htype: U16,
    ptype: U16,
    hlen: u8,
    plen: u8,
    operation: U16,
    sender_mac: [u8; 6],
    sender_ip: [u8; 4],
    target_mac: [u8; 6],
    target_ip: [u8; 4],
}

pub(super) fn parse(bytes: &[u8]) -> Result<Arp, Malformed> {
    let (header, _) = Header::ref_from_prefix(bytes).map_err(|_| Malformed::Arp)?;
    let kind = (
        header.htype.get(),
        header.ptype.get(),
        header.hlen,
        header.plen,
    );
    if kind != (HTYPE_ETHERNET, ethernet::IPV4, 6, 4) {
        return Err(Malformed::Arp);
    }
    let operation = match header.operation.get() {
        REQUEST => Operation::Request,
        REPLY => Operation::Reply,
        _ => return Err(Malformed::Arp),
    };
    Ok(Arp {
        operation,
        sender_mac: header.sender_mac,
        sender_ip: header.sender_ip.into(),
        target_mac: header.target_mac,
        target_ip: header.target_ip.into(),
    })
}

/// Writes a whole frame with `arp` into `out` and returns its length, or
/// `None` if `out` is too short.
pub fn write(out: &mut [u8], addresses: Ethernet, arp: &Arp) -> Option<usize> {
    let frame = Frame {
        ethernet: ethernet::Header::new(addresses, ethernet::ARP),
        arp: Header {
            htype: HTYPE_ETHERNET.into(),
            ptype: ethernet::IPV4.into(),
            hlen: 6,
            plen: 4,
            operation: match arp.operation {
                Operation::Request => REQUEST,
                Operation::Reply => REPLY,
            }
            .into(),
            sender_mac: arp.sender_mac,
            sender_ip: arp.sender_ip.octets(),
            target_mac: arp.target_mac,
            target_ip: arp.target_ip.octets(),
        },
    };
    frame.write_to_prefix(out).ok()?;
    Some(size_of::<Frame>())
}

/// Turns the frame that holds `request` into its reply: the one asked for has
/// the link address `mac`. Padding stays as it is.
///
/// `None`, and nothing done, if `frame` is too short to have held a request.
pub fn reply_in_place(frame: &mut [u8], request: &Arp, mac: [u8; 6]) -> Option<usize> {
    let addresses = Ethernet {
        dst: request.sender_mac,
        src: mac,
    };
    let reply = Arp {
        operation: Operation::Reply,
        sender_mac: mac,
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    write(frame, addresses, &reply)
}

#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Frame {
    ethernet: ethernet::Header,
    arp: Header,
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::fixture::{A4, B4, LINK, broken_rule};
    use super::super::{Packet, parse};
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_request_becomes_its_reply() {
        let mut frame = build::arp_request(LINK.src, A4, B4);
        frame.resize(60, 0);
        let Packet::Arp(request) = parse(&frame, 60).unwrap().packet else {
            panic!("not ARP");
        };
        assert_eq!((request.sender_ip, request.target_ip), (A4, B4));

        assert_eq!(reply_in_place(&mut frame, &request, MAC), Some(42));
        let mut expected = [LINK.src, MAC].concat();
        expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        expected.extend([&MAC[..], &B4.octets(), &LINK.src, &A4.octets()].concat());
        expected.resize(60, 0);
        assert_eq!(frame, expected);
    }

    #[test]
    fn other_hardware_protocols_and_operations_are_malformed() {
        let request = build::arp_request(LINK.src, A4, B4);
        assert_eq!(broken_rule(&request), None);
        assert_eq!(broken_rule(&request[..41]), Some(Malformed::Arp));
        // htype, ptype, hlen, plen, and RARP's operation.
        for (offset, value) in [(15, 6), (16, 0x86), (18, 8), (19, 16), (21, 3), (21, 0)] {
            let mut frame = request.clone();
            frame[offset] = value;
            assert_eq!(broken_rule(&frame), Some(Malformed::Arp), "{offset}");
        }
    }

    #[test]
    fn a_frame_too_short_for_a_reply_is_left_alone() {
        let mut frame = build::arp_request(LINK.src, A4, B4);
        let Packet::Arp(request) = parse(&frame, 42).unwrap().packet else {
            panic!("not ARP");
        };
        let before = frame.clone();
        assert_eq!(reply_in_place(&mut frame[..41], &request, MAC), None);
        assert_eq!(frame, before);
    }
}
