//! Which way the first fragment of a datagram went: the later ones have no
//! ports, and must go the same.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::packet::DatagramId;
use crate::return_path::Way;
use crate::time::Nanos;

/// Datagrams that are remembered; a new one takes the place of an older.
const REMEMBERED: usize = 256;

/// What has not been put together by then never will be: Linux's `ipfrag_time`.
const LIFETIME: Nanos = Nanos::from_millis(30_000);

/// Datagram -> way, for the first fragments that have just been forwarded.
#[derive(Debug)]
pub(crate) struct Fragments {
    places: Box<[Option<Entry>]>,
    seed: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    datagram: DatagramId,
    way: Way,
    since: Nanos,
}

impl Fragments {
    pub(crate) fn new() -> Self {
        Self {
            places: vec![None; REMEMBERED].into_boxed_slice(),
            seed: RandomState::default(),
        }
    }

    /// Remembers how a first fragment leaves; `None` is the plain way.
    pub(crate) fn set(&mut self, datagram: DatagramId, way: Option<Way>, now: Nanos) {
        let place = self.place(&datagram);
        let entry = &mut self.places[place];
        match way {
            Some(way) => {
                *entry = Some(Entry {
                    datagram,
                    way,
                    since: now,
                });
            }
            None if entry.is_some_and(|entry| entry.datagram == datagram) => *entry = None,
            None => {}
        }
    }

    /// How the datagram's first fragment left, if not the plain way.
    pub(crate) fn get(&self, datagram: &DatagramId, now: Nanos) -> Option<Way> {
        let entry = self.places[self.place(datagram)]?;
        (entry.datagram == *datagram && now - entry.since < LIFETIME).then_some(entry.way)
    }

    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    fn place(&self, datagram: &DatagramId) -> usize {
        self.seed.hash_one(datagram) as usize % REMEMBERED
    }
}
