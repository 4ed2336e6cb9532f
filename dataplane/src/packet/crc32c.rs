//! The checksum of SCTP (RFC 9260 section 6.8 and appendix A).
//!
//! A CRC is linear: what a change of some bytes does to it depends on how many
//! bytes follow, not on which. So it is updated like an Internet checksum, and
//! a wrong one stays wrong, without a look at the rest of the packet.
//!
//! Polynomials are kept with their highest power in the lowest bit.

/// Castagnoli's.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 1 << 31;
const X_TO_THE_8TH: u32 = ONE >> 8;

/// The CRC of `bytes`, bit by bit: for tests and tools.
pub(super) fn of(bytes: &[u8]) -> u32 {
    let register = bytes.iter().fold(u32::MAX, |register, byte| {
        (0..8).fold(register ^ u32::from(*byte), |register, _| times_x(register))
    });
    !register
}

/// What the CRC of `len` bytes changes by (exclusive or) when the first four
/// change by `difference`.
pub(super) fn change(difference: [u8; 4], len: u32) -> u32 {
    // Each byte that the CRC goes over multiplies what it has by x^8.
    let mut change = u32::from_le_bytes(difference);
    let mut power = X_TO_THE_8TH;
    let mut exponent = len;
    while exponent != 0 {
        if exponent & 1 != 0 {
            change = product(change, power);
        }
        power = product(power, power);
        exponent >>= 1;
    }
    change
}

fn product(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for place in (0..32).rev() {
        if a >> place & 1 != 0 {
            product ^= b;
        }
        b = times_x(b);
    }
    product
}

const fn times_x(polynomial: u32) -> u32 {
    polynomial >> 1 ^ if polynomial & 1 == 0 { 0 } else { POLYNOMIAL }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 3720 appendix B.4.
    #[test]
    fn known_bytes_have_the_known_crc() {
        assert_eq!(of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(of(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(of(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn equals_an_independent_crate_before_and_after_a_change(
            mut bytes in prop::collection::vec(any::<u8>(), 4..3000),
            new in any::<[u8; 4]>(),
        ) {
            let before = of(&bytes);
            prop_assert_eq!(before, crc32c::crc32c(&bytes));
            let old = *bytes.first_chunk::<4>().unwrap();
            bytes[..4].copy_from_slice(&new);
            let difference = (u32::from_ne_bytes(old) ^ u32::from_ne_bytes(new)).to_ne_bytes();
            let len = u32::try_from(bytes.len()).unwrap();
            prop_assert_eq!(before ^ change(difference, len), crc32c::crc32c(&bytes));
        }
    }
}
