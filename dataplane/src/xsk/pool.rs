//! Free chunks, and how those of a closed socket come back.

use std::ops::Range;
use std::sync::Arc;

use super::chain::Chain;
use super::depot::{Depot, MAGAZINE};
use super::frame::{Chunk, Frame};
use super::umem::Umem;

/// A pool with a depot that has so many gives a magazine away: a worker that
/// takes and frees in turn seldom needs the depot.
const KEEP: usize = 2 * MAGAZINE;

/// The free chunks of one worker: takes and frees without a lock, since only
/// that worker has it. Where there are several, a [`Depot`] is between them.
#[derive(Debug)]
pub struct FramePool {
    umem: &'static Umem,
    free: Vec<u32>,
    /// `None`: this is the only pool.
    depot: Option<Arc<Depot>>,
    /// At so many free chunks a magazine goes to the depot.
    keep: usize,
}

impl FramePool {
    /// A pool that owns every chunk: for the UMEM's maker, once.
    pub(super) fn of_all(umem: &'static Umem) -> Self {
        Self {
            umem,
            free: (0..umem.chunks()).rev().collect(),
            depot: None,
            keep: usize::MAX,
        }
    }

    /// Makes a pool for each of so many workers of the one that owns every
    /// chunk. One worker needs no depot.
    ///
    /// # Panics
    /// If it has a depot already.
    #[must_use]
    pub fn share(mut self, workers: u16) -> Vec<Self> {
        assert!(self.depot.is_none(), "a pool is shared once");
        if workers <= 1 {
            return vec![self];
        }
        let depot = Arc::new(Depot::new(self.umem.chunks() as usize));
        let pool = |free| Self {
            umem: self.umem,
            free,
            depot: Some(Arc::clone(&depot)),
            keep: KEEP,
        };
        let mut pools: Vec<Self> = (0..workers)
            .map(|_| pool(Vec::with_capacity(KEEP)))
            .collect();
        for chunk in self.free.drain(..) {
            pools[0].put(chunk);
        }
        pools
    }

    /// Makes one pool of all that share a depot again, when their workers are no
    /// more. `None` of none.
    #[must_use]
    pub fn unite(pools: impl IntoIterator<Item = Self>) -> Option<Self> {
        pools.into_iter().reduce(|mut all, mut one| {
            all.keep = usize::MAX;
            all.free.append(&mut one.free);
            while let Some(magazine) = all.depot.as_ref().and_then(|depot| depot.take()) {
                all.free.extend_from_slice(&magazine);
            }
            Self { depot: None, ..all }
        })
    }

    /// How many chunks are free in this pool.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        self.free.len()
    }

    /// What it shares with other workers' pools, if there are any.
    #[must_use]
    pub fn depot(&self) -> Option<&Arc<Depot>> {
        self.depot.as_ref()
    }

    /// How many chunks are free for it: its own, and what the depot has.
    #[must_use]
    pub fn available(&self) -> usize {
        let stored = self.depot.as_ref().map_or(0, |depot| depot.free_chunks());
        self.free.len() + stored
    }

    /// Whether it could give `chunks`. Cheap where its own suffice.
    #[inline]
    #[must_use]
    pub fn has(&self, chunks: usize) -> bool {
        chunks <= self.free.len() || chunks <= self.available()
    }

    /// The memory that the chunks are of.
    #[must_use]
    pub fn umem(&self) -> &'static Umem {
        self.umem
    }

    /// Takes a free chunk.
    #[inline]
    pub fn take(&mut self) -> Option<Chunk> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.fetch()?,
        };
        Some(Chunk {
            index,
            umem: self.umem.number(),
        })
    }

    /// Frees a chunk.
    #[inline]
    pub fn give(&mut self, chunk: Chunk) {
        self.umem.check(chunk.umem);
        self.put(chunk.index);
    }

    #[inline]
    fn put(&mut self, chunk: u32) {
        self.free.push(chunk);
        if self.free.len() >= self.keep {
            self.store();
        }
    }

    #[cold]
    fn store(&mut self) {
        if let Some(depot) = &self.depot
            && let Some((rest, magazine)) = self.free.split_last_chunk()
            && depot.put(*magazine)
        {
            self.free.truncate(rest.len());
        }
    }

    #[cold]
    fn fetch(&mut self) -> Option<u32> {
        let magazine = self.depot.as_ref()?.take()?;
        self.free.extend_from_slice(&magazine);
        self.free.pop()
    }

    /// An empty frame of one chunk, to write an answer into.
    #[inline]
    pub fn frame(&mut self) -> Option<Frame> {
        let chunk = self.take()?;
        Some(self.umem.empty(chunk))
    }

    /// A frame of these bytes of another, one range after the other. `None` if the
    /// pool does not reach.
    pub fn copy(
        &mut self,
        frame: &Frame,
        ranges: impl IntoIterator<Item = Range<usize>>,
    ) -> Option<Frame> {
        let umem = self.umem;
        let mut full: Option<Chain> = None;
        let mut last = self.frame()?;
        let parts = ranges.into_iter().flat_map(|range| umem.part(frame, range));
        for mut bytes in parts {
            loop {
                bytes = bytes.split_at(umem.extend(&mut last, bytes)).1;
                if bytes.is_empty() {
                    break;
                }
                let Some(next) = self.frame() else {
                    append(umem, &mut full, last);
                    if let Some(chain) = full {
                        self.free(chain.into_frame());
                    }
                    return None;
                };
                append(umem, &mut full, std::mem::replace(&mut last, next));
            }
        }
        append(umem, &mut full, last);
        full.map(Chain::into_frame)
    }

    /// Frees a frame with all its chunks.
    #[inline]
    pub fn free(&mut self, frame: Frame) {
        self.umem.check(frame.umem);
        let chunks = frame.chunks;
        self.free_chain(frame.into_head(), chunks);
    }

    /// Frees all of a frame's chunks but the first.
    pub fn shorten(&mut self, frame: &mut Frame) {
        self.umem.check(frame.umem);
        let head = self.umem.meta(frame.head);
        if frame.chunks > 1 {
            self.free_chain(head.next, frame.chunks - 1);
        }
        frame.chunks = 1;
        frame.len = head.len.into();
    }

    #[inline]
    fn free_chain(&mut self, mut chunk: u32, chunks: u16) {
        for _ in 0..chunks {
            let next = self.umem.meta(chunk).next;
            self.put(chunk);
            chunk = next;
        }
    }

    /// Takes back every chunk that a closed socket's rings held, and says how
    /// many there were: also those that lay inside the kernel, which no ring
    /// shows.
    ///
    /// # Panics
    /// If the socket was of another UMEM.
    pub fn reclaim(&mut self, closed: Closed) -> u32 {
        let Closed { umem, socket } = closed;
        self.umem.check(umem);
        let mut count = 0;
        for chunk in 0..self.umem.chunks() {
            if self.umem.take_from(chunk, socket) {
                self.put(chunk);
                count += 1;
            }
        }
        count
    }
}

/// Proof that a socket is closed: the kernel writes to none of its
/// chunks any more.
#[must_use = "the closed socket's chunks are to be reclaimed"]
#[derive(Debug)]
pub struct Closed {
    umem: u16,
    socket: u32,
}

impl Closed {
    /// Only for the socket of that number, which has just closed its file.
    pub(super) fn of(umem: &Umem, socket: u32) -> Self {
        Self {
            umem: umem.number(),
            socket,
        }
    }
}

/// Appends `more` to a chain that may be yet to begin.
fn append(umem: &Umem, chain: &mut Option<Chain>, more: Frame) {
    match chain {
        Some(chain) => chain.append(umem, more),
        None => *chain = Some(Chain::new(umem, more)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// All that pools and their depot have.
    fn free(pools: &[FramePool]) -> usize {
        let own: usize = pools.iter().map(FramePool::free_chunks).sum();
        own + pools[0].depot().map_or(0, |depot| depot.free_chunks())
    }

    #[test]
    fn a_copy_has_the_bytes_of_its_ranges_and_the_pool_all_chunks_after_it() {
        let (umem, mut pool) = Umem::create(8).unwrap();
        let bytes: Vec<u8> = (0..8000_u32).map(|i| (i % 251) as u8).collect();
        let mut parts = bytes.chunks(3840).map(|part| {
            let mut frame = pool.frame().unwrap();
            umem.set_content(&mut frame, part);
            frame
        });
        let mut chain = Chain::new(umem, parts.next().unwrap());
        parts.for_each(|part| chain.append(umem, part));
        let whole = chain.into_frame();
        for (ranges, chunks) in [
            ([0..0, 0..8000], 3),
            ([0..54, 3800..4000], 1),
            ([0..54, 54..3840], 1),
            ([0..54, 54..3841], 2),
            ([7000..9000, 9000..9001], 1),
            ([5..5, 9000..9001], 1),
        ] {
            let part = |range: Range<usize>| bytes.get(range.start..range.end.min(8000));
            let parts = ranges.clone().map(|range| part(range).unwrap_or_default());
            let copy = pool.copy(&whole, ranges).unwrap();
            let copied = umem.slices(&copy).collect::<Vec<_>>().concat();
            assert_eq!(copied, parts.concat());
            assert_eq!((copy.len() as usize, copy.chunks()), (copied.len(), chunks));
            pool.free(copy);
        }
        let rest: Vec<_> = (0..3).map(|_| pool.frame().unwrap()).collect();
        assert!(
            pool.copy(&whole, [0..1, 1..8000]).is_none(),
            "two chunks are left"
        );
        rest.into_iter().for_each(|frame| pool.free(frame));
        pool.free(whole);
        assert_eq!(pool.free_chunks(), 8);
    }

    #[test]
    fn one_pool_takes_what_another_frees() {
        let (_, pool) = Umem::create(1000).unwrap();
        let mut pools = pool.share(2);
        assert_eq!(free(&pools), 1000);
        // What the other keeps for itself it cannot get.
        for _ in 0..10 {
            let mut taken = Vec::new();
            while let Some(chunk) = pools[1].take() {
                taken.push(chunk);
            }
            assert!(taken.len() > 1000 - KEEP, "{}", taken.len());
            assert!(!pools[1].has(1) && pools[0].free_chunks() < KEEP);
            let chunks: HashSet<u32> = taken.iter().map(|chunk| chunk.index).collect();
            assert_eq!(chunks.len(), taken.len(), "each is there once");
            taken.into_iter().for_each(|chunk| pools[0].give(chunk));
            assert!(pools[1].has(1000 - 2 * KEEP));
            assert_eq!(free(&pools), 1000);
        }
    }

    #[test]
    fn the_only_pool_has_no_depot() {
        let (_, pool) = Umem::create(1000).unwrap();
        let pools = pool.share(1);
        assert!(pools[0].depot().is_none() && pools[0].has(1000) && !pools[0].has(1001));
    }

    /// Threads that only take and threads that only free, and the bytes go with
    /// the chunks.
    #[test]
    fn frames_move_between_threads_and_none_is_lost() {
        const ROUNDS: u32 = 20_000;
        let (umem, pool) = Umem::create(1024).unwrap();
        let mut pools = pool.share(4);
        let (mut makers, mut takers) = (Vec::new(), Vec::new());
        for seed in 0..2 {
            let (sender, receiver) = mpsc::channel();
            let (mut taking, mut freeing) = (pools.remove(0), pools.pop().unwrap());
            makers.push(thread::spawn(move || {
                for round in 0..ROUNDS {
                    let mut frame = loop {
                        match taking.frame() {
                            Some(frame) => break frame,
                            None => thread::yield_now(),
                        }
                    };
                    let content = (round ^ seed << 31).to_le_bytes();
                    umem.set_content(&mut frame, &content);
                    sender.send((frame, content)).unwrap();
                }
                taking
            }));
            takers.push(thread::spawn(move || {
                for (frame, content) in receiver {
                    assert_eq!(umem.head(&frame), content);
                    freeing.free(frame);
                }
                freeing
            }));
        }
        let threads = makers.into_iter().chain(takers);
        let pools: Vec<FramePool> = threads.map(|thread| thread.join().unwrap()).collect();
        assert_eq!(free(&pools), 1024);
        let all = FramePool::unite(pools).unwrap();
        assert_eq!(all.free_chunks(), 1024);
        assert_eq!(all.share(1)[0].free_chunks(), 1024);
    }

    #[test]
    fn a_closed_sockets_chunks_come_back_and_no_others() {
        let (umem, mut pool) = Umem::create(6).unwrap();
        let mine = pool.frame().unwrap();
        for socket in [1, 2, 1] {
            let chunk = pool.take().unwrap();
            umem.lend(chunk, socket);
        }
        let frame = pool.frame().unwrap();
        umem.sending(frame, 1, 0, |_| ());
        assert_eq!(pool.free_chunks(), 1);
        assert_eq!(pool.reclaim(Closed::of(umem, 1)), 3);
        assert_eq!(pool.reclaim(Closed::of(umem, 1)), 0);
        assert_eq!(pool.reclaim(Closed::of(umem, 2)), 1);
        pool.free(mine);
        assert_eq!(pool.free_chunks(), 6);
    }
}
