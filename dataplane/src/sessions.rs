//! The session table: which conversations of a pod do not go the plain way,
//! and how.
//!
//! Of fixed capacity; nothing is allocated once it is made. A session is found
//! by two flows: by what the client sends, and by what the pod answers. It
//! belongs to the pod, goes with it at once, and otherwise some time after its
//! last packet (`sessions/state.rs` has the timeouts).
//!
//! What keeps a flood in bounds:
//! - A pod may have as many sessions as are free for all others then (dynamic
//!   thresholds, Choudhury and Hahne 1998), and a quarter of that which no two
//!   ends have confirmed.
//! - A pod that is at its limit loses its own oldest unconfirmed session, or
//!   one that seems to have said all, to the new one. It never loses a
//!   conversation that goes on, nor does another pod anything.
//! - Else the new one is refused.

mod index;
mod list;
mod state;

use crate::packet::{Flow, Signal, protocol};
use crate::port::PortId;
use crate::time::Nanos;

use index::Index;
use list::{Chain, Linked, Links, List};
use state::{Class, Rank};

pub use state::{Direction, State};

/// How many sessions a worker has room for: at 128 bytes each 8 MiB, and 2 for
/// the index, touched as they are used.
pub const CAPACITY: u32 = 65_536;

/// A packet is noted this long after the last that was noted, so that not each
/// one moves its session in the lists. A session lives by so much longer.
const NOTE_EVERY: Nanos = Nanos::from_millis(1000);

/// At most so many sessions are removed in one turn.
const REMOVE_AT_ONCE: usize = 64;

/// Unconfirmed sessions are at most this part of what is free.
const OPENING_PART: u32 = 4;

/// How the packets of one conversation go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// What the client sends.
    pub original: Flow,
    /// What the pod gets instead. Equal to `original` in a session that only
    /// says by which port answers leave.
    pub translated: Flow,
    /// The pod, to which the session belongs.
    pub pod: PortId,
    /// The port by which answers leave.
    pub client: PortId,
    /// To which MAC address, if there may be several behind that port.
    pub next_hop: Option<[u8; 6]>,
}

impl Session {
    /// Whether the pod gets anything else than the client sends.
    #[inline]
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.original != self.translated
    }

    /// Whether the client's next packet would make it anew, and the same: of UDP,
    /// where nothing is translated.
    #[inline]
    fn is_renewable(&self) -> bool {
        self.original.protocol == protocol::UDP && !self.is_translated()
    }

    /// What the pod sends in answer.
    #[must_use]
    pub fn answer(&self) -> Flow {
        self.translated.reversed()
    }
}

/// A session as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// How its packets go.
    pub session: Session,
    /// How far it has come.
    pub state: State,
    /// How long ago its last packet was noted, which is a second behind at most.
    pub idle: Nanos,
    /// How long it lives if no more come.
    pub left: Nanos,
}

/// A session that was found. Good until the table changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    place: u32,
    /// Whose packet the flow is by which it was found.
    pub direction: Direction,
}

/// Why there is no new session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// One of its flows is another session's. The caller may remove that, or
    /// try other ports.
    Taken(Found),
    /// Its answers are its questions: no packet could be told by it.
    Mirror,
    /// The pod has as many sessions as are free for others.
    Share,
    /// No session is free.
    Full,
}

/// The session table.
#[derive(Debug)]
pub struct Sessions {
    index: Index,
    /// Grows to its capacity, which is allocated at once.
    entries: Vec<Entry>,
    free: List,
    in_use: u32,
    capacity: u32,
    /// By class: who was heard of longest ago comes first.
    timeouts: [List; Class::ALL.len()],
    /// By the pods' slots.
    owners: Box<[Owner]>,
    /// Sessions of pods that are gone, not taken apart yet.
    orphans: List,
    recycled: u64,
}

#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    session: Session,
    state: State,
    /// When the last packet was noted.
    heard: Nanos,
    by_timeout: Links,
    by_owner: Links,
}

const _: () = assert!(size_of::<Entry>() == 128, "two cache lines");

impl Entry {
    fn class(&self) -> Class {
        self.state.class(self.session.original.protocol)
    }

    fn rank(&self) -> Rank {
        self.state.rank(self.session.is_renewable())
    }

    fn is_over(&self, now: Nanos) -> bool {
        self.left(now) == Nanos(0)
    }

    /// How long it lives if no more packets come.
    fn left(&self, now: Nanos) -> Nanos {
        self.class().timeout() + NOTE_EVERY - (now - self.heard)
    }

    fn has_key(&self, flow: &Flow, answered: &Flow, direction: Direction) -> bool {
        match direction {
            Direction::Request => self.session.original == *flow,
            Direction::Answer => self.session.translated == *answered,
        }
    }
}

impl Linked for Entry {
    #[inline]
    fn links(&mut self, chain: Chain) -> &mut Links {
        match chain {
            Chain::Timeout => &mut self.by_timeout,
            Chain::Owner => &mut self.by_owner,
        }
    }
}

/// A pod's sessions.
#[derive(Debug, Clone)]
struct Owner {
    /// `None`: it has none.
    pod: Option<PortId>,
    /// By rank: the oldest first.
    lists: [List; Rank::COUNT],
    sessions: u32,
    opening: u32,
}

impl Owner {
    const NONE: Self = Self {
        pod: None,
        lists: [List::empty(); Rank::COUNT],
        sessions: 0,
        opening: 0,
    };
}

impl Sessions {
    /// An empty table with room for `capacity` sessions of pods in slots below
    /// `slots`.
    #[must_use]
    pub fn new(capacity: u32, slots: u16) -> Self {
        Self {
            index: Index::new(2 * capacity as usize),
            entries: Vec::with_capacity(capacity as usize),
            free: List::empty(),
            in_use: 0,
            capacity,
            timeouts: [List::empty(); Class::ALL.len()],
            owners: vec![Owner::NONE; slots.into()].into_boxed_slice(),
            orphans: List::empty(),
            recycled: 0,
        }
    }

    /// How many sessions there are room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many sessions take room, those included that are over but not
    /// removed yet.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// How many sessions have given way to a new one of their pod.
    #[must_use]
    pub fn recycled(&self) -> u64 {
        self.recycled
    }

    /// Whether `pod` has sessions. Cheap: it saves the others the lookup.
    #[inline]
    #[must_use]
    pub fn has_any(&self, pod: PortId) -> bool {
        self.owners
            .get(usize::from(pod.slot))
            .is_some_and(|owner| owner.pod == Some(pod))
    }

    /// The session one of whose flows is `flow`. Changes nothing: for a packet
    /// of the session call [`Sessions::follow`] too, but not for an ICMP error
    /// that quotes one (RFC 5508 REQ-4, RFC 5927 section 4).
    #[inline]
    #[must_use]
    pub fn find(&self, flow: &Flow, now: Nanos) -> Option<Found> {
        let found = self.look_up(flow)?;
        self.is_alive(found, now).then_some(found)
    }

    /// The session that was found.
    #[must_use]
    pub fn get(&self, found: Found) -> &Session {
        &self.entries[found.place as usize].session
    }

    /// How far it has come.
    #[must_use]
    pub fn state(&self, found: Found) -> State {
        self.entries[found.place as usize].state
    }

    /// Sets to which MAC address answers go.
    #[inline]
    pub fn set_next_hop(&mut self, found: Found, next_hop: Option<[u8; 6]>) {
        let session = &mut self.entries[found.place as usize].session;
        if session.next_hop != next_hop {
            session.next_hop = next_hop;
        }
    }

    /// Takes note of a packet of the session, one of the direction in which it
    /// was found.
    #[inline]
    pub fn follow(&mut self, found: Found, signal: Signal, now: Nanos) {
        let entry = &self.entries[found.place as usize];
        let protocol = entry.session.original.protocol;
        let state = entry.state.after(protocol, found.direction, signal);
        if state != entry.state || now - entry.heard >= NOTE_EVERY {
            self.unlink(found.place);
            let entry = &mut self.entries[found.place as usize];
            entry.state = state;
            entry.heard = now;
            self.link(found.place);
        }
    }

    /// Copies sessions into `page`, which has room for as many places as are
    /// looked at, beginning at place `from`. Returns the place to go on at.
    pub fn list(&self, from: u32, page: &mut Vec<Listed>, now: Nanos) -> Option<u32> {
        let entries = self.entries.iter().zip(0_u32..).skip(from as usize);
        for (entry, place) in entries.take(page.capacity()) {
            // A free place has an old session in it, which nobody finds.
            let found = self.find(&entry.session.original, now);
            if found.is_some_and(|found| found.place == place) {
                page.push(Listed {
                    session: entry.session,
                    state: entry.state,
                    idle: now - entry.heard,
                    left: entry.left(now),
                });
            }
        }
        let next = from as usize + page.capacity();
        u32::try_from(next)
            .ok()
            .filter(|_| next < self.entries.len())
    }

    /// Adds the session of a conversation that is under way: both sides have
    /// been heard.
    ///
    /// # Errors
    /// As [`Sessions::open`].
    pub fn resume(&mut self, session: Session, now: Nanos) -> Result<(), Refused> {
        let opened = self.open(session, now)?;
        for direction in [Direction::Answer, Direction::Request] {
            let found = Found {
                direction,
                ..opened
            };
            self.follow(found, Signal::Data, now);
        }
        Ok(())
    }

    /// Adds a session, whose first packet has just come from its client.
    ///
    /// # Errors
    /// [`Refused`]; then nothing has changed, but for sessions removed that
    /// were over.
    pub fn open(&mut self, session: Session, now: Nanos) -> Result<Found, Refused> {
        let answer = session.answer();
        if session.original == answer {
            return Err(Refused::Mirror);
        }
        for flow in [&session.original, &answer] {
            if let Some(taken) = self.look_up(flow) {
                if self.is_alive(taken, now) {
                    return Err(Refused::Taken(taken));
                }
                self.remove(taken);
            }
        }
        self.make_room(session.pod, now)?;
        let entry = Entry {
            session,
            state: State::NEW,
            heard: now,
            by_timeout: Links::none(),
            by_owner: Links::none(),
        };
        let place = self.occupy(entry);
        self.in_use += 1;
        let owner = &mut self.owners[usize::from(session.pod.slot)];
        debug_assert!(owner.pod.is_none_or(|pod| pod == session.pod));
        owner.pod = Some(session.pod);
        owner.sessions += 1;
        self.link(place);
        self.index
            .insert(&session.original, (place, Direction::Request));
        self.index.insert(&answer, (place, Direction::Answer));
        Ok(Found {
            place,
            direction: Direction::Request,
        })
    }

    /// Removes a session.
    pub fn remove(&mut self, found: Found) {
        let place = found.place;
        self.unlink(place);
        let session = self.entries[place as usize].session;
        self.index
            .remove(&session.original, (place, Direction::Request));
        self.index
            .remove(&session.answer(), (place, Direction::Answer));
        let owner = &mut self.owners[usize::from(session.pod.slot)];
        if owner.pod == Some(session.pod) {
            owner.sessions -= 1;
            if owner.sessions == 0 {
                owner.pod = None;
            }
        }
        self.in_use -= 1;
        self.free.push(Chain::Timeout, &mut self.entries, place);
    }

    /// Removes all sessions of a pod: none is found from now on. Their room is
    /// free some turns later, however many they are.
    pub fn remove_pod(&mut self, pod: PortId) {
        if !self.has_any(pod) {
            return;
        }
        let owner = std::mem::replace(&mut self.owners[usize::from(pod.slot)], Owner::NONE);
        for list in owner.lists {
            self.orphans.append(Chain::Owner, &mut self.entries, list);
        }
    }

    /// Removes sessions that are over, not more than a turn has time for;
    /// returns how many.
    pub fn expire(&mut self, now: Nanos) -> usize {
        let mut removed = 0;
        while removed < REMOVE_AT_ONCE
            && let Some(place) = self.over(now)
        {
            self.remove_at(place);
            removed += 1;
        }
        removed
    }

    /// A session that is over, if there is one.
    fn over(&self, now: Nanos) -> Option<u32> {
        let oldest = self.timeouts.iter().filter_map(List::first);
        let mut over = oldest.filter(|place| self.entries[*place as usize].is_over(now));
        self.orphans.first().or_else(|| over.next())
    }

    fn remove_at(&mut self, place: u32) {
        self.remove(Found {
            place,
            direction: Direction::Request,
        });
    }

    #[inline]
    fn look_up(&self, flow: &Flow) -> Option<Found> {
        let answered = flow.reversed();
        let (place, direction) = self.index.find(flow, |(place, direction)| {
            self.entries[place as usize].has_key(flow, &answered, direction)
        })?;
        Some(Found { place, direction })
    }

    #[inline]
    fn is_alive(&self, found: Found, now: Nanos) -> bool {
        let entry = &self.entries[found.place as usize];
        self.has_any(entry.session.pod) && !entry.is_over(now)
    }

    /// Sees to it that `pod` may have one more session.
    fn make_room(&mut self, pod: PortId, now: Nanos) -> Result<(), Refused> {
        if self.limit_reached(pod).is_none() {
            return Ok(());
        }
        self.expire(now);
        let Some(ranks) = self.limit_reached(pod) else {
            return Ok(());
        };
        let owner = &self.owners[usize::from(pod.slot)];
        let mut oldest = ranks
            .iter()
            .filter_map(|rank| owner.lists[*rank as usize].first());
        match oldest.next() {
            Some(place) => {
                self.remove_at(place);
                self.recycled += 1;
                Ok(())
            }
            None if self.in_use == self.capacity => Err(Refused::Full),
            None => Err(Refused::Share),
        }
    }

    /// If `pod` may not have one more session: of which ranks one may go for it.
    fn limit_reached(&self, pod: PortId) -> Option<&'static [Rank]> {
        let free = self.capacity - self.in_use;
        let owner = &self.owners[usize::from(pod.slot)];
        if owner.sessions >= free {
            Some(&[Rank::Spent, Rank::Opening, Rank::Renewable])
        } else if owner.opening >= (free / OPENING_PART).max(1) {
            Some(&[Rank::Opening])
        } else {
            None
        }
    }

    /// Puts `entry` into a free place.
    fn occupy(&mut self, entry: Entry) -> u32 {
        if let Some(place) = self.free.first() {
            self.free.remove(Chain::Timeout, &mut self.entries, place);
            self.entries[place as usize] = entry;
            return place;
        }
        debug_assert!(self.entries.len() < self.entries.capacity());
        self.entries.push(entry);
        self.in_use
    }

    /// Enters a session at the end of its two lists.
    fn link(&mut self, place: u32) {
        let entry = &self.entries[place as usize];
        let (class, rank, slot) = (entry.class(), entry.rank(), entry.session.pod.slot);
        self.timeouts[class as usize].push(Chain::Timeout, &mut self.entries, place);
        let owner = &mut self.owners[usize::from(slot)];
        owner.lists[rank as usize].push(Chain::Owner, &mut self.entries, place);
        owner.opening += u32::from(rank == Rank::Opening);
    }

    /// Takes a session out of its two lists.
    fn unlink(&mut self, place: u32) {
        let entry = &self.entries[place as usize];
        let (class, rank, pod) = (entry.class(), entry.rank(), entry.session.pod);
        self.timeouts[class as usize].remove(Chain::Timeout, &mut self.entries, place);
        let owner = &mut self.owners[usize::from(pod.slot)];
        if owner.pod == Some(pod) {
            owner.lists[rank as usize].remove(Chain::Owner, &mut self.entries, place);
            owner.opening -= u32::from(rank == Rank::Opening);
        } else {
            self.orphans.remove(Chain::Owner, &mut self.entries, place);
        }
    }
}

#[cfg(test)]
mod tests;
