//! Frame sizes, as RFC 2544 counts them: with the 4 bytes of FCS that a veth
//! does not carry. "64" is 60 bytes and FCS.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Bytes of FCS, which are counted and never sent.
pub(crate) const FCS: usize = 4;
/// The smallest frame of Ethernet.
const MIN: usize = 64;
/// The largest with an IP packet of 65535 bytes.
const MAX: usize = 65535 + 14 + FCS;

/// The sizes of a stream's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sizes {
    /// All frames have one size, in bytes with FCS.
    Fixed(usize),
    /// Seven of 64, four of 594, one of 1518 bytes: "simple IMIX".
    Imix,
}

/// Spread, so that no run of small frames is followed by one of large ones.
const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594];

impl Sizes {
    /// The sizes in the order they are sent in, again and again, in bytes with
    /// FCS; none below `floor`.
    pub(crate) fn cycle(self, floor: usize) -> Vec<usize> {
        match self {
            Self::Fixed(size) => vec![size],
            Self::Imix => IMIX.iter().map(|size| floor.max(*size)).collect(),
        }
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("imix") {
            return Ok(Self::Imix);
        }
        match text.parse() {
            Ok(size) if (MIN..=MAX).contains(&size) => Ok(Self::Fixed(size)),
            _ => Err(format!("{MIN} to {MAX} bytes with FCS, or imix")),
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Imix => f.write_str("imix"),
        }
    }
}

impl Serialize for Sizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(size) => serializer.serialize_u64(*size as u64),
            Self::Imix => serializer.serialize_str("imix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_alike() {
        for text in ["64", "1518", "65000", "imix"] {
            assert_eq!(text.parse::<Sizes>().unwrap().to_string(), text);
        }
        for text in ["63", "65554", "", "64k", "-64"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn imix_is_seven_to_four_to_one() {
        let cycle = Sizes::Imix.cycle(0);
        let count = |size| cycle.iter().filter(|s| **s == size).count();
        assert_eq!((count(64), count(594), count(1518)), (7, 4, 1));
        assert!(Sizes::Imix.cycle(84).iter().all(|size| *size >= 84));
    }
}
