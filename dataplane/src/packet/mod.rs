//! Packets as bytes: parsed once into small values, and rewritten in place.
//!
//! Nothing in here knows about rings, ports or time, and nothing in a packet
//! can make it panic: every header is read by a checked zerocopy prefix read.
//! What a frame is, [`parse`] says; the other modules each do one thing with
//! a frame that was parsed. [`build`] and [`exercise`] are for tests and tools.
//!
//! All offsets count from the frame's first byte, all lengths are in bytes,
//! and all integers are in host byte order.

#![forbid(unsafe_code)]

pub mod arp;
pub mod build;
pub mod checksum;
mod crc32c;
mod datagram;
pub mod ecn;
pub mod ethernet;
pub mod exercise;
#[cfg(test)]
mod fixture;
pub mod flow;
pub mod icmp;
mod ip;
mod ipv4;
mod ipv6;
mod malformed;
pub mod ndisc;
pub mod offload;
pub mod quote;
pub mod rewrite;
pub mod segment;
pub mod translate;
mod transport;
mod tunnel;

use zerocopy::FromBytes;

pub use arp::Arp;
pub use datagram::DatagramId;
pub use ethernet::Ethernet;
pub use flow::{Flow, Signal, mapped};
pub use ip::{Fragment, Ip, protocol};
pub use malformed::Malformed;

/// A frame's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// The link layer.
    pub ethernet: Ethernet,
    /// What the frame carries.
    pub packet: Packet,
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// IPv4 or IPv6.
    Ip(Ip),
    /// Address resolution for IPv4.
    Arp(Arp),
    /// Anything else, VLAN-tagged frames (0x8100, 0x88a8) included.
    Other {
        /// As in the Ethernet header; below 0x600 it is an IEEE 802.3 length.
        ethertype: u16,
    },
}

/// Parses a frame of `frame_len` bytes whose first bytes are `head`.
///
/// All headers must lie in `head`: a header that begins or ends beyond it is
/// as malformed as one that ends beyond the frame.
///
/// # Errors
/// The rule that the frame breaks.
#[inline]
pub fn parse(head: &[u8], frame_len: usize) -> Result<Parsed, Malformed> {
    let head = head.get(..frame_len).unwrap_or(head);
    let (header, payload) =
        ethernet::Header::ref_from_prefix(head).map_err(|_| Malformed::Ethernet)?;
    let packet = match header.ethertype.get() {
        ethernet::IPV4 => Packet::Ip(ipv4::parse(head, ethernet::HEADER_LEN, frame_len)?),
        ethernet::IPV6 => Packet::Ip(ipv6::parse(head, ethernet::HEADER_LEN, frame_len)?),
        ethernet::ARP => Packet::Arp(arp::parse(payload)?),
        ethertype => Packet::Other { ethertype },
    };
    Ok(Parsed {
        ethernet: header.addresses(),
        packet,
    })
}

#[cfg(test)]
mod tests {
    use super::fixture::{A4, B4, LINK};
    use super::*;

    #[test]
    fn what_is_neither_ip_nor_arp_is_told_by_its_ethertype() {
        let mut frame = build::udp((A4, 1), (B4, 2)).frame(LINK);
        for ethertype in [0x8100, 0x88a8, 0x88cc, 0x0040_u16] {
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            let parsed = parse(&frame, frame.len()).unwrap();
            assert_eq!(parsed.packet, Packet::Other { ethertype });
            assert_eq!(parsed.ethernet, LINK);
        }
    }

    #[test]
    fn a_frame_shorter_than_its_header_is_malformed() {
        assert_eq!(parse(&[0; 13], 13), Err(Malformed::Ethernet));
        assert_eq!(parse(&[0; 14], 13), Err(Malformed::Ethernet));
        assert!(parse(&[0; 14], 14).is_ok());
    }
}
