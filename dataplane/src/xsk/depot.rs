//! Where workers' pools exchange free chunks, so that one that mostly frees
//! feeds one that mostly takes.

use crossbeam::queue::ArrayQueue;

/// Chunks that change hands at a time.
pub(super) const MAGAZINE: usize = 64;

/// Free chunks that no pool has, by magazines. Lock-free.
#[derive(Debug)]
pub struct Depot {
    magazines: ArrayQueue<[u32; MAGAZINE]>,
}

impl Depot {
    /// An empty one with room for `chunks`.
    pub(super) fn new(chunks: usize) -> Self {
        Self {
            magazines: ArrayQueue::new((chunks / MAGAZINE).max(1)),
        }
    }

    /// How many chunks lie here.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        self.magazines.len() * MAGAZINE
    }

    /// Stores a magazine; false where there is no room, which there always is
    /// for the chunks of one UMEM.
    pub(super) fn put(&self, magazine: [u32; MAGAZINE]) -> bool {
        self.magazines.push(magazine).is_ok()
    }

    /// Gives a full magazine.
    pub(super) fn take(&self) -> Option<[u32; MAGAZINE]> {
        self.magazines.pop()
    }
}
