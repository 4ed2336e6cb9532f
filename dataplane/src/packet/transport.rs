//! Transport headers, as far as a forwarder looks at them.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Malformed, protocol};

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Tcp {
    pub(super) src_port: U16,
    pub(super) dst_port: U16,
    pub(super) sequence: U32,
    pub(super) acknowledgment: U32,
    /// Data offset in 32-bit words (4 bits), reserved (4 bits), flags (8 bits).
    pub(super) offset_flags: U16,
    pub(super) window: U16,
    pub(super) checksum: U16,
    pub(super) urgent: U16,
}

/// The flags of a TCP segment (RFC 9293 section 3.1, RFC 3168 section 6.1).
pub(super) mod flag {
    pub(in super::super) const FIN: u16 = 1;
    pub(in super::super) const SYN: u16 = 1 << 1;
    pub(in super::super) const RST: u16 = 1 << 2;
    pub(in super::super) const PSH: u16 = 1 << 3;
    pub(in super::super) const ACK: u16 = 1 << 4;
    pub(in super::super) const URG: u16 = 1 << 5;
    pub(in super::super) const CWR: u16 = 1 << 7;
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Udp {
    pub(super) src_port: U16,
    pub(super) dst_port: U16,
    pub(super) length: U16,
    pub(super) checksum: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Sctp {
    pub(super) src_port: U16,
    pub(super) dst_port: U16,
    pub(super) verification_tag: U32,
    pub(super) checksum: U32,
}

/// ICMP and ICMPv6 have these eight bytes in common; what the last four mean
/// depends on the type.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Icmp {
    pub(super) kind: u8,
    pub(super) code: u8,
    pub(super) checksum: U16,
    pub(super) rest: U32,
}

impl Icmp {
    /// With no checksum yet.
    pub(super) fn new(kind: u8, code: u8, rest: u32) -> Self {
        Self {
            kind,
            code,
            checksum: 0.into(),
            rest: rest.into(),
        }
    }
}

/// What the beginning of a transport header tells.
#[derive(Default)]
pub(super) struct Upper {
    pub(super) ports: Option<(u16, u16)>,
    pub(super) icmp: Option<(u8, u8)>,
}

/// Looks into the header of `protocol` at the beginning of `bytes`. `icmp` is
/// the ICMP of the packet's IP version: the other's means nothing there.
///
/// The header must be complete, in first fragments too (RFC 1858 section 3,
/// RFC 7112 section 5): ports that a later fragment may overwrite are worth
/// nothing.
#[inline]
pub(super) fn peek(protocol: u8, icmp: u8, bytes: &[u8]) -> Result<Upper, Malformed> {
    let (ports, icmp) = match protocol {
        protocol::TCP => {
            let header = prefix::<Tcp>(bytes)?;
            (Some((header.src_port.get(), header.dst_port.get())), None)
        }
        protocol::UDP => {
            let header = prefix::<Udp>(bytes)?;
            (Some((header.src_port.get(), header.dst_port.get())), None)
        }
        protocol::SCTP => {
            let header = prefix::<Sctp>(bytes)?;
            (Some((header.src_port.get(), header.dst_port.get())), None)
        }
        _ if protocol == icmp => {
            let header = prefix::<Icmp>(bytes)?;
            (None, Some((header.kind, header.code)))
        }
        _ => (None, None),
    };
    Ok(Upper { ports, icmp })
}

#[inline]
fn prefix<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<&T, Malformed> {
    T::ref_from_prefix(bytes)
        .map(|(header, _)| header)
        .map_err(|_| Malformed::Transport)
}
