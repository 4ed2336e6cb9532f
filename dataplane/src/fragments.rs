//! Which way the first fragment of a datagram went: the later ones have no
//! ports, and must not go another way.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use crate::packet::DatagramId;
use crate::port::PortId;
use crate::time::Nanos;

/// Datagrams that are remembered; a new one takes the place of an older.
const REMEMBERED: usize = 256;

/// What has not been put together by then never will be: Linux's `ipfrag_time`.
const LIFETIME: Nanos = Nanos::from_millis(30_000);

/// Datagram -> port, for the first fragments that have just been forwarded.
#[derive(Debug)]
pub(crate) struct Fragments {
    places: Box<[Option<Way>]>,
    seed: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    datagram: DatagramId,
    port: PortId,
    since: Nanos,
}

impl Fragments {
    pub(crate) fn new() -> Self {
        Self {
            places: vec![None; REMEMBERED].into_boxed_slice(),
            seed: RandomState::default(),
        }
    }

    /// Remembers by which port a first fragment leaves; `None` is the plain way.
    pub(crate) fn set(&mut self, datagram: DatagramId, port: Option<PortId>, now: Nanos) {
        let place = self.place(&datagram);
        let way = &mut self.places[place];
        match port {
            Some(port) => {
                *way = Some(Way {
                    datagram,
                    port,
                    since: now,
                });
            }
            None if way.is_some_and(|way| way.datagram == datagram) => *way = None,
            None => {}
        }
    }

    /// By which port the datagram's first fragment left, if not the plain way.
    pub(crate) fn get(&self, datagram: &DatagramId, now: Nanos) -> Option<PortId> {
        let way = self.places[self.place(datagram)]?;
        (way.datagram == *datagram && now - way.since < LIFETIME).then_some(way.port)
    }

    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    fn place(&self, datagram: &DatagramId) -> usize {
        self.seed.hash_one(datagram) as usize % REMEMBERED
    }
}
