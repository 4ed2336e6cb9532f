//! Who owns a chunk, and who a packet. Values that only this folder makes.

/// Chunks of the longest frame. The kernel has room for one more (its
/// `MAX_SKB_FRAGS`, 17, besides the first).
pub const MAX_CHUNKS: u16 = 17;

/// Owns one chunk.
#[must_use = "a chunk that is dropped is lost"]
#[derive(Debug)]
pub struct Chunk {
    pub(super) index: u32,
    pub(super) umem: u16,
}

/// Owns one packet: a chain of chunks, all headers in the first.
#[must_use = "a frame that is dropped is lost: send it or free it"]
#[derive(Debug)]
pub struct Frame {
    pub(super) head: u32,
    /// Bytes in all, from the Ethernet header on.
    pub(super) len: u32,
    pub(super) chunks: u16,
    pub(super) umem: u16,
}

const _: () = assert!(size_of::<Frame>() == 12, "a frame is moved often");

#[cfg(debug_assertions)]
impl Drop for Frame {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "lost {self:?}");
    }
}

impl Frame {
    /// Bytes in all, from the Ethernet header on.
    #[inline]
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no byte in it. The kernel never gives such a frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many chunks it is made of.
    #[inline]
    #[must_use]
    pub fn chunks(&self) -> u16 {
        self.chunks
    }

    #[inline]
    pub(super) fn into_head(self) -> u32 {
        let head = self.head;
        std::mem::forget(self);
        head
    }
}

#[cfg(test)]
mod tests {
    use super::super::umem::Umem;

    #[test]
    #[should_panic(expected = "lost Frame")]
    #[cfg(debug_assertions)]
    fn a_lost_frame_is_noticed() {
        let (_, mut pool) = Umem::create(1).unwrap();
        drop(pool.frame());
    }
}
