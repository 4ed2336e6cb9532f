//! What arrived at a raw socket: a packet of ours, whole or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sluice_dataplane::packet::checksum::{self, Sum};

use super::stamp::Stamp;

/// What a frame or a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A packet as it was sent.
    Whole(Stamp),
    /// Some bit is not as it was sent.
    Corrupted,
}

impl Arrival {
    /// Reads a UDP payload.
    pub(crate) fn of_payload(payload: &[u8]) -> Self {
        Stamp::read(payload).map_or(Self::Corrupted, Self::Whole)
    }

    /// Reads a frame that the sink's program took. IP and transport checksums
    /// must be right; a transport checksum may also be partial, as a sender
    /// with checksum offload leaves it.
    pub(crate) fn of_frame(frame: &[u8]) -> Self {
        payload(frame).map_or(Self::Corrupted, Self::of_payload)
    }
}

/// The payload of a frame without a fault in its headers. Bytes behind the IP
/// packet are Ethernet's padding.
fn payload(frame: &[u8]) -> Option<&[u8]> {
    let (ethernet, packet) = frame.split_at_checked(14)?;
    let (source, destination, protocol, segment): (IpAddr, IpAddr, _, _) = match ethernet[12..] {
        [0x08, 0x00] => {
            let (header, _) = packet.split_first_chunk::<20>()?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            if header[0] != 0x45 || checksum::of(header) != 0 {
                return None;
            }
            let (source, destination) = (v4(header, 12)?, v4(header, 16)?);
            (source, destination, header[9], packet.get(20..length)?)
        }
        [0x86, 0xdd] => {
            let (header, rest) = packet.split_first_chunk::<40>()?;
            let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
            let (source, destination) = (v6(header, 8)?, v6(header, 24)?);
            (source, destination, header[6], rest.get(..length)?)
        }
        _ => return None,
    };
    let (offset, at) = match protocol {
        17 => (8, 6),
        6 => (usize::from(segment.get(12)? >> 4) * 4, 16),
        _ => return None,
    };
    let payload = segment.get(offset..)?;
    let field = segment.get(at..at + 2)?;
    let length = u32::try_from(segment.len()).ok()?;
    let pseudo = Sum::pseudo_header(source, destination, protocol, length);
    let mut sum = pseudo;
    sum.add(segment);
    let is_right = sum.finish() == 0;
    let is_partial = field == pseudo.fold().to_be_bytes();
    (is_right || is_partial).then_some(payload)
}

fn v4(header: &[u8], at: usize) -> Option<IpAddr> {
    let bytes = header.get(at..)?.first_chunk::<4>()?;
    Some(Ipv4Addr::from(*bytes).into())
}

fn v6(header: &[u8], at: usize) -> Option<IpAddr> {
    let bytes = header.get(at..)?.first_chunk::<16>()?;
    Some(Ipv6Addr::from(*bytes).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::{Path, Protocol, Shape, Stream};
    use super::super::size::Sizes;
    use super::*;

    fn frame(v6: bool, tcp: bool, size: usize) -> Vec<u8> {
        let addresses = match v6 {
            false => ["10.77.0.2", "10.77.0.3"],
            true => ["fd77::2", "fd77::3"],
        };
        let [source, destination] = addresses.map(|address| address.parse().unwrap());
        let path = Path {
            macs: ([2; 6], [4; 6]),
            addresses: (source, destination),
            src_port: 10_000,
            dst_port: 9_000,
        };
        let shape = Shape {
            sizes: Sizes::Fixed(size),
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            flows: 1,
            run: 1,
        };
        Stream::new(&path, shape).unwrap().next(77).1.to_vec()
    }

    proptest! {
        #[test]
        fn what_was_built_is_whole_and_a_changed_bit_is_noticed(
            v6: bool, tcp: bool, size in 96..4000_usize, padding in 0..9_usize, at: prop::sample::Index,
        ) {
            let mut frame = frame(v6, tcp, size);
            let length = frame.len();
            frame.resize(length + padding, 0xaa);
            let stamp = Stamp { flow: 0, sequence: 0, time: 77 };
            prop_assert_eq!(Arrival::of_frame(&frame), Arrival::Whole(stamp));
            // All of an IPv4 packet is under some checksum, and of an IPv6
            // packet what follows the header.
            let first = if v6 { 54 } else { 14 };
            let bit = first * 8 + at.index((length - first) * 8);
            frame[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Arrival::of_frame(&frame), Arrival::Corrupted);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>, v6: bool) {
            let mut frame = vec![0; 12];
            frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
            frame.extend(bytes);
            prop_assert_eq!(Arrival::of_frame(&frame), Arrival::Corrupted);
        }
    }

    #[test]
    fn a_partial_checksum_is_right() {
        let mut frame = frame(false, false, 64);
        let [source, destination] = ["10.77.0.2", "10.77.0.3"].map(|ip| ip.parse().unwrap());
        let pseudo = Sum::pseudo_header(source, destination, 17, 26).fold();
        frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
        assert!(matches!(Arrival::of_frame(&frame), Arrival::Whole(_)));
    }
}
