//! Free chunks, and how those of a closed socket come back.

use super::frame::{Chunk, Frame};
use super::umem::Umem;

/// The free chunks of one worker: takes and frees without a lock, since only
/// that worker has it.
#[derive(Debug)]
pub struct FramePool {
    umem: &'static Umem,
    free: Vec<u32>,
}

impl FramePool {
    /// A pool that owns every chunk: for the UMEM's maker, once.
    pub(super) fn of_all(umem: &'static Umem) -> Self {
        Self {
            umem,
            free: (0..umem.chunks()).rev().collect(),
        }
    }

    /// How many chunks are free.
    #[must_use]
    pub fn free_chunks(&self) -> usize {
        self.free.len()
    }

    /// The memory that the chunks are of.
    #[must_use]
    pub fn umem(&self) -> &'static Umem {
        self.umem
    }

    /// Takes a free chunk.
    #[inline]
    pub fn take(&mut self) -> Option<Chunk> {
        let index = self.free.pop()?;
        Some(Chunk {
            index,
            umem: self.umem.number(),
        })
    }

    /// Frees a chunk.
    #[inline]
    pub fn give(&mut self, chunk: Chunk) {
        self.umem.check(chunk.umem);
        self.free.push(chunk.index);
    }

    /// An empty frame of one chunk, to write an answer into.
    #[inline]
    pub fn frame(&mut self) -> Option<Frame> {
        let chunk = self.take()?;
        Some(self.umem.empty(chunk))
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
            self.free.push(chunk);
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
                self.free.push(chunk);
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

#[cfg(test)]
mod tests {
    use super::*;

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
