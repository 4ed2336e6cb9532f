//! What a packet carries to be known again: 18 bytes, the payload of the
//! smallest UDP packet of IPv4.

use crc32c::{crc32c, crc32c_append};

/// Bytes of a stamp.
pub(crate) const LEN: usize = 18;
/// Where its CRC begins.
const CRC: usize = LEN - 4;
/// Sequence numbers and times have 48 bits. A time wraps after 78 hours.
const WORD: u64 = (1 << 48) - 1;

/// A packet's identity, at the start of its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The flow, from 0.
    pub(crate) flow: u16,
    /// The number in its flow, from 0, modulo 2^48.
    pub(crate) sequence: u64,
    /// When it was sent: CLOCK_MONOTONIC in nanoseconds, modulo 2^48.
    pub(crate) time: u64,
}

impl Stamp {
    /// The stamp's bytes, before a payload with this CRC of what follows it.
    pub(crate) fn bytes(self, filler_crc: u32) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..2].copy_from_slice(&self.flow.to_be_bytes());
        bytes[2..8].copy_from_slice(&self.sequence.to_be_bytes()[2..]);
        bytes[8..CRC].copy_from_slice(&self.time.to_be_bytes()[2..]);
        let crc = crc32c_append(filler_crc, &bytes[..CRC]);
        bytes[CRC..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Reads a payload; `None` if a bit of it is not as it was sent.
    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        let (stamp, filler) = payload.split_first_chunk::<LEN>()?;
        let (fields, crc) = stamp.split_at(CRC);
        if crc32c_append(crc32c(filler), fields).to_be_bytes() != crc {
            return None;
        }
        let word = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        Some(Self {
            flow: u16::from_be_bytes([fields[0], fields[1]]),
            sequence: word(&fields[2..8]),
            time: word(&fields[8..]),
        })
    }

    /// How long ago it was sent, in nanoseconds; `None` if that is later than
    /// `now`: it is not from this machine, or not since it started.
    pub(crate) const fn age(self, now: u64) -> Option<u64> {
        let age = now.wrapping_sub(self.time) & WORD;
        if age > WORD / 2 { None } else { Some(age) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(stamp: Stamp, filler: &[u8]) -> Vec<u8> {
        let mut payload = stamp.bytes(crc32c(filler)).to_vec();
        payload.extend_from_slice(filler);
        payload
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(
            flow: u16, sequence in 0..=WORD, time in 0..=WORD, filler: Vec<u8>,
        ) {
            let stamp = Stamp { flow, sequence, time };
            prop_assert_eq!(Stamp::read(&payload(stamp, &filler)), Some(stamp));
        }

        #[test]
        fn a_changed_bit_is_noticed(sequence in 0..=WORD, filler: Vec<u8>, at: prop::sample::Index) {
            let mut payload = payload(Stamp { flow: 1, sequence, time: 7 }, &filler);
            let bit = at.index(payload.len() * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Stamp::read(&payload), None);
        }
    }

    #[test]
    fn less_than_a_stamp_is_none() {
        assert_eq!(Stamp::read(&[0; LEN - 1]), None);
    }

    #[test]
    fn the_age_survives_the_wrap_of_the_clock() {
        let stamp = Stamp {
            flow: 0,
            sequence: 0,
            time: WORD,
        };
        assert_eq!(stamp.age(WORD + 5), Some(5));
        assert_eq!(stamp.age(WORD - 1), None);
    }
}
