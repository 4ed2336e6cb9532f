//! Where a flow's session lies: open addressing with linear probing, and
//! backward-shift deletion instead of tombstones, so that a table that has
//! seen millions of sessions come and go is as fast as a new one.
//!
//! A slot holds a tag and not the key: eight fit into a cache line, and a
//! lookup reads one slot and one session. The hash is seeded at random, so that
//! nobody outside can choose flows that meet in one place.

use std::hash::BuildHasher;

use foldhash::quality::RandomState;

use super::Direction;
use crate::packet::Flow;

/// Slots a key: half of them stay empty.
const SLOTS_PER_KEY: usize = 2;

/// A session's place, and by which of its two keys it was found.
pub(super) type Place = (u32, Direction);

/// Flow -> place. Which flow a place stands for, the caller knows.
#[derive(Debug)]
pub(super) struct Index {
    /// The tag in the upper half; place and direction, plus one, in the lower
    /// half: zero is an empty slot.
    slots: Box<[u64]>,
    mask: usize,
    seed: RandomState,
}

impl Index {
    pub(super) fn new(keys: usize) -> Self {
        let slots = (keys * SLOTS_PER_KEY).next_power_of_two();
        Self {
            slots: vec![0; slots].into_boxed_slice(),
            mask: slots - 1,
            seed: RandomState::default(),
        }
    }

    /// The place of `flow`, of those whose key it is.
    #[inline]
    pub(super) fn find(&self, flow: &Flow, is_key: impl Fn(Place) -> bool) -> Option<Place> {
        let tag = self.tag(flow);
        let mut at = self.home(tag);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if tag_of(slot) == tag {
                let place = place_of(slot);
                if is_key(place) {
                    return Some(place);
                }
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Enters a key that is not there yet. The caller keeps to the number of
    /// keys that the index was made for.
    pub(super) fn insert(&mut self, flow: &Flow, (session, direction): Place) {
        let tag = self.tag(flow);
        let mut at = self.home(tag);
        while self.slots[at] != 0 {
            at = (at + 1) & self.mask;
        }
        let place = u64::from(session << 1 | direction as u32) + 1;
        self.slots[at] = u64::from(tag) << 32 | place;
    }

    /// Takes a key out.
    pub(super) fn remove(&mut self, flow: &Flow, place: Place) {
        let tag = self.tag(flow);
        let mut at = self.home(tag);
        while tag_of(self.slots[at]) != tag || place_of(self.slots[at]) != place {
            if self.slots[at] == 0 {
                debug_assert!(false, "{flow:?} is not in the index");
                return;
            }
            at = (at + 1) & self.mask;
        }
        // What stands behind the gap moves into it, unless it would then stand
        // before its home.
        let mut gap = at;
        loop {
            at = (at + 1) & self.mask;
            let slot = self.slots[at];
            if slot == 0 {
                break;
            }
            let from_home = at.wrapping_sub(self.home(tag_of(slot))) & self.mask;
            if from_home >= at.wrapping_sub(gap) & self.mask {
                self.slots[gap] = slot;
                gap = at;
            }
        }
        self.slots[gap] = 0;
    }

    #[inline]
    fn tag(&self, flow: &Flow) -> u32 {
        (self.seed.hash_one(flow) >> 32) as u32
    }

    #[inline]
    fn home(&self, tag: u32) -> usize {
        tag as usize & self.mask
    }
}

#[inline]
const fn tag_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

/// What an occupied slot names.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the lower half")]
const fn place_of(slot: u64) -> Place {
    let place = (slot as u32).wrapping_sub(1);
    let direction = match place & 1 {
        0 => Direction::Request,
        _ => Direction::Answer,
    };
    (place >> 1, direction)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv6Addr;

    use super::*;

    fn flow(number: u32) -> Flow {
        Flow {
            src: Ipv6Addr::from_bits(number.into()),
            dst: Ipv6Addr::LOCALHOST,
            src_port: 1,
            dst_port: 2,
            protocol: 17,
        }
    }

    #[test]
    fn what_is_removed_leaves_everything_else_to_be_found() {
        let keys = 64_usize;
        let mut index = Index::new(keys);
        let mut expected = HashMap::new();
        for _ in 0..100_000 {
            let number = fastrand::u32(0..200);
            let place = (number, Direction::Answer);
            if expected.remove(&number).is_some() {
                index.remove(&flow(number), place);
            } else if expected.len() < keys {
                expected.insert(number, place);
                index.insert(&flow(number), place);
            }
            let asked = fastrand::u32(0..200);
            let found = index.find(&flow(asked), |(session, _)| session == asked);
            assert_eq!(found, expected.get(&asked).copied());
        }
        for (number, place) in expected {
            index.remove(&flow(number), place);
        }
        assert!(index.slots.iter().all(|slot| *slot == 0));
    }
}
