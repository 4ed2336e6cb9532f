//! Packets inside packets: VXLAN, Geneve, GRE, and IP in IP.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Ip, ethernet, ipv4, ipv6, protocol};

/// IANA's.
const VXLAN_PORT: u16 = 4789;
/// The one that Linux took before there was any.
const OLD_VXLAN_PORT: u16 = 8472;
const GENEVE_PORT: u16 = 6081;

const UDP_LEN: usize = 8;

/// RFC 7348 section 5.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Vxlan {
    /// Only the flag I (1 << 27) is defined; it must be set.
    flags: U32,
    vni: U32,
}

/// RFC 8926 section 3.4.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Geneve {
    /// Version (2 bits), length of the options in 32-bit words (6 bits).
    version_options: u8,
    flags: u8,
    protocol: U16,
    vni: U32,
}

/// RFC 2784 section 2.1, RFC 2890 section 2.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Gre {
    flags_version: U16,
    protocol: U16,
}

/// The fields of four bytes that follow the GRE header: checksum, key,
/// sequence number.
const GRE_FIELDS: [u16; 3] = [0x8000, 0x2000, 0x1000];
/// Source routes (RFC 1701) and versions other than 0 (PPTP) are not walked.
const GRE_UNKNOWN: u16 = 0x4000 | 0b111;

/// Whether a packet may carry another.
#[inline]
pub(super) fn is_one(ip: &Ip) -> bool {
    match ip.protocol {
        protocol::IPV4 | protocol::IPV6 | protocol::GRE => true,
        protocol::UDP => matches!(
            ip.ports,
            Some((_, VXLAN_PORT | OLD_VXLAN_PORT | GENEVE_PORT))
        ),
        _ => false,
    }
}

/// The packet that `ip` carries, if `ip` is a tunnel's and both are well
/// formed. Frames inside must be untagged.
pub(super) fn inner(head: &[u8], ip: &Ip) -> Option<Ip> {
    let l4 = usize::from(ip.l4);
    let (ethertype, at) = match ip.protocol {
        protocol::IPV4 => (ethernet::IPV4, l4),
        protocol::IPV6 => (ethernet::IPV6, l4),
        protocol::GRE => gre(head, l4)?,
        protocol::UDP => match ip.ports? {
            (_, VXLAN_PORT | OLD_VXLAN_PORT) => vxlan(head, l4 + UDP_LEN)?,
            (_, GENEVE_PORT) => geneve(head, l4 + UDP_LEN)?,
            _ => return None,
        },
        _ => return None,
    };
    let (ethertype, at) = if ethertype == ethernet::TEB {
        let header: &ethernet::Header = header_at(head, at)?;
        (header.ethertype.get(), at + ethernet::HEADER_LEN)
    } else {
        (ethertype, at)
    };
    match ethertype {
        ethernet::IPV4 => ipv4::parse(head, at, ip.end()).ok(),
        ethernet::IPV6 => ipv6::parse(head, at, ip.end()).ok(),
        _ => None,
    }
}

fn vxlan(head: &[u8], at: usize) -> Option<(u16, usize)> {
    let header: &Vxlan = header_at(head, at)?;
    (header.flags.get() & 1 << 27 != 0).then_some((ethernet::TEB, at + size_of::<Vxlan>()))
}

fn geneve(head: &[u8], at: usize) -> Option<(u16, usize)> {
    let header: &Geneve = header_at(head, at)?;
    let version = header.version_options >> 6;
    let options = usize::from(header.version_options & 0x3f) * 4;
    (version == 0).then_some((header.protocol.get(), at + size_of::<Geneve>() + options))
}

fn gre(head: &[u8], at: usize) -> Option<(u16, usize)> {
    let header: &Gre = header_at(head, at)?;
    let flags = header.flags_version.get();
    let fields = GRE_FIELDS
        .iter()
        .filter(|field| flags & **field != 0)
        .count()
        * 4;
    (flags & GRE_UNKNOWN == 0).then_some((header.protocol.get(), at + size_of::<Gre>() + fields))
}

fn header_at<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    head: &[u8],
    at: usize,
) -> Option<&T> {
    T::ref_from_prefix(head.get(at..)?)
        .ok()
        .map(|(header, _)| header)
}
