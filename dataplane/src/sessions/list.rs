//! Doubly linked lists through the sessions: each session is in two of them.

/// The end of a list.
const NONE: u32 = u32::MAX;

/// Which of a session's two lists.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chain {
    /// With those of equal timeout; free sessions with each other.
    Timeout,
    /// With those of one owner.
    Owner,
}

/// A session's neighbours in one list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    prev: u32,
    next: u32,
}

impl Links {
    pub(super) const fn none() -> Self {
        Self {
            prev: NONE,
            next: NONE,
        }
    }
}

/// Who is in lists.
pub(super) trait Linked {
    fn links(&mut self, chain: Chain) -> &mut Links;
}

/// The ends of a list, by index. New ones join at the tail.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(super) const fn empty() -> Self {
        Self {
            head: NONE,
            tail: NONE,
        }
    }

    /// The one that has been in the list for longest.
    #[inline]
    pub(super) fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(super) fn push<T: Linked>(&mut self, chain: Chain, entries: &mut [T], new: u32) {
        *entries[new as usize].links(chain) = Links {
            prev: self.tail,
            next: NONE,
        };
        match self.tail {
            NONE => self.head = new,
            tail => entries[tail as usize].links(chain).next = new,
        }
        self.tail = new;
    }

    pub(super) fn remove<T: Linked>(&mut self, chain: Chain, entries: &mut [T], old: u32) {
        let Links { prev, next } = *entries[old as usize].links(chain);
        match prev {
            NONE => self.head = next,
            prev => entries[prev as usize].links(chain).next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => entries[next as usize].links(chain).prev = prev,
        }
    }

    /// Appends all of `other`, whatever their number, at once.
    pub(super) fn append<T: Linked>(&mut self, chain: Chain, entries: &mut [T], other: Self) {
        match (self.tail, other.head) {
            (_, NONE) => {}
            (NONE, _) => *self = other,
            (tail, head) => {
                entries[tail as usize].links(chain).next = head;
                entries[head as usize].links(chain).prev = tail;
                self.tail = other.tail;
            }
        }
    }
}
