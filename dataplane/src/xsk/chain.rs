//! A frame that grows at its end.

use super::frame::Frame;
use super::umem::Umem;

/// Owns a frame and knows its last chunk: so more is appended without looking
/// for it. The frame stays inside until it has all of it: another in its place
/// would not end there.
#[must_use = "a frame that is dropped is lost: send it or free it"]
#[derive(Debug)]
pub struct Chain {
    frame: Frame,
    last: u32,
}

impl Chain {
    /// A chain that is one frame so far.
    #[inline]
    pub fn new(umem: &Umem, frame: Frame) -> Self {
        let last = umem.last_chunk(&frame);
        Self { frame, last }
    }

    /// The frame so far.
    #[inline]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The frame, which grows no more.
    #[inline]
    pub fn into_frame(self) -> Frame {
        self.frame
    }

    /// Appends `more`, as it is.
    #[inline]
    pub fn append(&mut self, umem: &Umem, more: Frame) {
        let last = umem.last_chunk(&more);
        umem.link(&mut self.frame, self.last, more);
        self.last = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xsk::FramePool;

    fn frame(umem: &Umem, pool: &mut FramePool, parts: &[&[u8]]) -> Frame {
        let mut frames = parts.iter().map(|part| {
            let mut frame = pool.frame().unwrap();
            umem.set_content(&mut frame, part);
            frame
        });
        let mut chain = Chain::new(umem, frames.next().unwrap());
        frames.for_each(|frame| chain.append(umem, frame));
        chain.into_frame()
    }

    fn content(umem: &Umem, frame: &Frame) -> Vec<u8> {
        umem.slices(frame).flatten().copied().collect()
    }

    #[test]
    fn a_frame_is_its_chunks_in_order() {
        let (umem, mut pool) = Umem::create(8).unwrap();
        let mut frame = frame(umem, &mut pool, &[b"head", b"middle", b"tail"]);
        assert_eq!((frame.len(), frame.chunks()), (14, 3));
        assert_eq!(umem.head(&frame), b"head");
        assert_eq!(content(umem, &frame), b"headmiddletail");
        pool.shorten(&mut frame);
        assert_eq!((frame.len(), frame.chunks()), (4, 1));
        assert_eq!(pool.free_chunks(), 7);
        pool.free(frame);
        assert_eq!(pool.free_chunks(), 8);
    }

    #[test]
    fn a_frame_of_several_chunks_is_appended_without_its_beginning() {
        let (umem, mut pool) = Umem::create(8).unwrap();
        let first = frame(umem, &mut pool, &[b"one", b"two"]);
        let mut second = frame(umem, &mut pool, &[b"header three", b"four"]);
        umem.skip(&mut second, 7);
        assert_eq!((second.len(), second.chunks()), (9, 2));
        let mut chain = Chain::new(umem, first);
        chain.append(umem, second);
        chain.append(umem, frame(umem, &mut pool, &[b"five"]));
        let frame = chain.into_frame();
        assert_eq!((frame.len(), frame.chunks()), (19, 5));
        assert_eq!(content(umem, &frame), b"onetwothreefourfive");
        pool.free(frame);
        assert_eq!(pool.free_chunks(), 8);
    }

    #[test]
    fn no_more_is_skipped_than_lies_in_the_first_chunk() {
        let (umem, mut pool) = Umem::create(2).unwrap();
        let mut frame = frame(umem, &mut pool, &[b"one", b"two"]);
        umem.skip(&mut frame, 4000);
        assert_eq!((frame.len(), content(umem, &frame)), (3, b"two".to_vec()));
        pool.free(frame);
    }
}
