//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken in the machine's byte order: ones' complement addition
//! commutes with a byte swap, so one swap at the end is enough (RFC 1071
//! section 2 (B)).

use std::net::IpAddr;

/// A ones' complement sum over bytes that may lie in several slices.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Below 2^33; see [`halves`].
    value: u64,
    /// The bytes so far were odd in number: the next one is a low byte.
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            value: 0,
            odd: false,
        }
    }

    /// The sum of the first bytes; cheap where the compiler knows how many.
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            value: sum(bytes),
            odd: bytes.len() % 2 == 1,
        }
    }

    /// The sum of the pseudo header of a transport packet of `len` bytes
    /// (RFC 9293 section 3.1, RFC 8200 section 8.1).
    #[inline]
    #[must_use]
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, len: u32) -> Self {
        let protocol = u16::from(protocol).to_be();
        let sum = address(src) + address(dst) + u64::from(protocol) + u64::from(len.to_be());
        Self {
            value: halves(sum),
            odd: false,
        }
    }

    /// Adds the next bytes.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let mut sum = sum(bytes);
        if self.odd {
            // RFC 1071 section 2 (B): what starts in a low byte is swapped.
            sum = u64::from(folded(sum).swap_bytes());
        }
        self.value = halves(self.value + sum);
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// The folded sum, not complemented: what the kernel leaves in the field
    /// of a packet whose checksum is partial, when taken of a pseudo header.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        u16::from_be(folded(self.value))
    }

    /// The checksum: the complement of the sum. Zero over bytes that contain
    /// their correct checksum.
    #[inline]
    #[must_use]
    pub const fn finish(self) -> u16 {
        !self.fold()
    }
}

/// The checksum of `bytes`.
#[inline]
#[must_use]
pub fn of(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.finish()
}

/// The checksum after one 16-bit word of what it covers went from `old` to
/// `new` (RFC 1624 section 3, equation 3).
#[inline]
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !folded(!checksum as u64 + !old as u64 + new as u64)
}

/// Bytes that change under a checksum. They begin at an even offset in what it
/// covers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    removed: Sum,
    added: Sum,
}

impl Change {
    /// Puts `new` where `old` was.
    #[inline]
    pub fn replace(&mut self, old: &[u8], new: &[u8]) {
        self.removed.add(old);
        self.added.add(new);
    }

    /// The checksum after the change, as [`update`] gives it for one word.
    #[inline]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !folded(!checksum as u64 + !self.removed.fold() as u64 + self.added.fold() as u64)
    }
}

/// The sum of 16-bit words, taken eight bytes at a time: both halves go into
/// a sum twice as wide, which cannot overflow below 2^34 bytes and which the
/// compiler turns into vector additions.
#[inline]
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum: u64 = words
        .iter()
        .map(|word| halves(u64::from_ne_bytes(*word)))
        .sum();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = rest {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    halves(sum)
}

#[inline]
fn address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

/// Both halves of `sum` added: the same in ones' complement, and below 2^33.
#[inline]
const fn halves(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

#[inline]
const fn folded(sum: u64) -> u16 {
    // Added to itself with its halves swapped, a number has in its upper half
    // the sum of both, and the carry of the lower one with it.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// The C code of RFC 1071 section 4.1, word for word.
    fn rfc1071(mut bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        while bytes.len() > 1 {
            sum += u32::from(u16::from_be_bytes([bytes[0], bytes[1]]));
            bytes = &bytes[2..];
        }
        if !bytes.is_empty() {
            // "Add left-over byte, if any": as the high byte of a word, since
            // the RFC's machine is big-endian.
            sum += u32::from(bytes[0]) << 8;
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(!sum & 0xffff).unwrap()
    }

    proptest! {
        #[test]
        fn equals_rfc_1071_and_etherparse(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0xff)], 0..300),
            start in 0..8_usize,
        ) {
            // Slices that begin at any address.
            let bytes = bytes.get(start..).unwrap_or_default();
            let etherparse = etherparse::checksum::Sum16BitWords::new().add_slice(bytes);
            prop_assert_eq!(of(bytes), rfc1071(bytes));
            prop_assert_eq!(of(bytes), etherparse.ones_complement().to_be());
        }

        #[test]
        fn is_the_same_over_any_slices(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
        ) {
            let mut sum = Sum::new();
            for slice in &slices {
                sum.add(slice);
            }
            prop_assert_eq!(sum.finish(), of(&slices.concat()));
        }

        #[test]
        fn update_equals_a_new_sum(
            mut bytes in prop::collection::vec(any::<u8>(), 20),
            word in 0..10_usize,
            new in any::<u16>(),
        ) {
            // A header has at least its version: not all is zero.
            bytes[(word * 2 + 2) % 20] |= 1;
            let before = of(&bytes);
            let at = word * 2..word * 2 + 2;
            let old = u16::from_be_bytes([bytes[at.start], bytes[at.start + 1]]);
            bytes[at].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(update(before, old, new), of(&bytes));
            let mut change = Change::default();
            change.replace(&old.to_be_bytes(), &new.to_be_bytes());
            prop_assert_eq!(change.apply(before), of(&bytes));
        }
    }

    #[test]
    fn carries_of_a_long_packet_are_not_lost() {
        let bytes = vec![0xff; 65_535];
        assert_eq!(of(&bytes), rfc1071(&bytes));
    }

    #[test]
    fn pseudo_headers_are_those_of_the_rfcs() {
        let src = Ipv4Addr::new(192, 0, 2, 1);
        let dst = Ipv4Addr::new(198, 51, 100, 2);
        let mut header = [src.octets(), dst.octets()].concat();
        header.extend([0, 17, 0x12, 0x34]);
        let sum = Sum::pseudo_header(src.into(), dst.into(), 17, 0x1234);
        assert_eq!(sum.finish(), rfc1071(&header));

        let src = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1);
        let dst = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0xffff, 0, 2);
        let mut header = [src.octets(), dst.octets()].concat();
        header.extend([0, 1, 0x23, 0x45, 0, 0, 0, 58]);
        let sum = Sum::pseudo_header(src.into(), dst.into(), 58, 0x1_2345);
        assert_eq!(sum.finish(), rfc1071(&header));
    }
}
