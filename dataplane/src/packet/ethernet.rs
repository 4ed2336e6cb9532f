//! The Ethernet header.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an untagged header.
pub const HEADER_LEN: usize = size_of::<Header>();
/// The address of all stations.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// How the source address of merged TCP segments begins, where the interface that
/// sends them has a program for it.
pub const MERGED: [u8; 4] = *b"\x02SLG";

pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;
/// Transparent Ethernet bridging: a whole frame in GRE or Geneve.
pub(super) const TEB: u16 = 0x6558;

/// The addresses of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// To whom.
    pub dst: [u8; 6],
    /// From whom.
    pub src: [u8; 6],
}

impl Ethernet {
    /// Those of a frame; `None` if it has no header.
    #[must_use]
    pub fn of(head: &[u8]) -> Option<Self> {
        let (header, _) = Header::ref_from_prefix(head).ok()?;
        Some(header.addresses())
    }

    /// How many bytes of data each of the merged TCP segments has that the frame is,
    /// if the sender's interface says so ([`MERGED`]).
    #[inline]
    #[must_use]
    pub fn merged(&self) -> Option<u16> {
        let [a, b, c, d, size @ ..] = self.src;
        ([a, b, c, d] == MERGED).then(|| u16::from_be_bytes(size))
    }

    /// Whether the frame is for a group of stations, all of them included.
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        self.dst[0] & 1 != 0
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) dst: [u8; 6],
    pub(super) src: [u8; 6],
    pub(super) ethertype: U16,
}

impl Header {
    pub(super) fn new(addresses: Ethernet, ethertype: u16) -> Self {
        Self {
            dst: addresses.dst,
            src: addresses.src,
            ethertype: ethertype.into(),
        }
    }

    pub(super) fn addresses(&self) -> Ethernet {
        Ethernet {
            dst: self.dst,
            src: self.src,
        }
    }
}
