//! An in-memory kernel: the other ends of a socket's four rings.
//!
//! Everything above the rings runs over it without privileges, in tests,
//! benches and fuzzing, by the code that runs over the real kernel.

use std::sync::{Arc, Mutex, PoisonError};

use super::cursor::{Consumer, Layout, Producer, in_memory};
use super::rings::{RECEIVE_RING, Rings, TRANSMIT_RING};
use super::socket::{Features, InMemory, Shared, Unsent, Xsk};
use super::umem::{CHUNK_SIZE, Umem};

/// Where the kernel puts a packet in its chunk (`XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;

/// The kernel's side of one in-memory socket.
#[derive(Debug)]
pub struct MemoryKernel {
    umem: &'static Umem,
    fill: Consumer<u64>,
    rx: Producer<libc::xdp_desc>,
    tx: Consumer<libc::xdp_desc>,
    completion: Producer<u64>,
    /// A closed socket's chunks are not the kernel's any more.
    shared: Shared,
}

/// A frame that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its bytes, as they lay in the UMEM.
    pub bytes: Vec<u8>,
    /// The checksum request: csum_start and csum_offset, in bytes.
    pub checksum: Option<(u16, u16)>,
    /// Merged segments have this much data each, the last perhaps less.
    pub segment: Option<u16>,
}

/// A socket over an in-memory kernel, and that kernel's side of it.
///
/// # Panics
/// If the UMEM has had 2^32 sockets.
#[must_use]
pub fn socket(umem: &'static Umem, features: Features) -> (Xsk, MemoryKernel) {
    let shared = Arc::new(Mutex::new(InMemory {
        is_open: true,
        merged: Vec::new(),
        refusal: None,
    }));
    let fill: Layout<u64> = in_memory(RECEIVE_RING);
    let rx: Layout<libc::xdp_desc> = in_memory(RECEIVE_RING);
    let tx: Layout<libc::xdp_desc> = in_memory(TRANSMIT_RING);
    let completion: Layout<u64> = in_memory(TRANSMIT_RING);
    let rings = Rings {
        fill: Producer::new(fill.clone()),
        rx: Consumer::new(rx.clone()),
        tx: Producer::new(tx.clone()),
        completion: Consumer::new(completion.clone()),
    };
    let kernel = MemoryKernel {
        umem,
        fill: Consumer::new(fill),
        rx: Producer::new(rx),
        tx: Consumer::new(tx),
        completion: Producer::new(completion),
        shared: Arc::clone(&shared),
    };
    match Xsk::in_memory(umem, features, rings, shared) {
        Ok(xsk) => (xsk, kernel),
        Err(error) => panic!("{error}"),
    }
}

impl MemoryKernel {
    /// Has the socket send merged TCP segments as such.
    pub fn set_gso(&self, xsk: &mut Xsk) {
        xsk.set_gso_in_memory(Arc::clone(&self.shared));
    }

    /// Takes no merged segments for this reason, or takes them again.
    pub fn refuse_merged(&mut self, refusal: Option<Unsent>) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.refusal = refusal;
    }

    /// Receives a frame, in as many chunks as it takes. Returns false, as the
    /// kernel drops it, when the FILL ring has too few chunks, the RX ring too
    /// little room, or the socket is closed.
    pub fn deliver(&mut self, frame: &[u8]) -> bool {
        let shared = Arc::clone(&self.shared);
        let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if !shared.is_open {
            return false;
        }
        let room = CHUNK_SIZE - HEADROOM;
        let pieces: Vec<&[u8]> = frame.chunks(room).collect();
        let Ok(count) = u32::try_from(pieces.len()) else {
            return false;
        };
        if self.fill.available(count) < count || self.rx.space(count) < count || count == 0 {
            return false;
        }
        for (i, piece) in pieces.iter().enumerate() {
            let Some(chunk) = self.fill.pop() else {
                return false;
            };
            let addr = chunk + HEADROOM as u64;
            self.umem.kernel_writes(addr, piece);
            let last = i + 1 == pieces.len();
            self.rx.push(libc::xdp_desc {
                addr,
                len: u32::try_from(piece.len()).unwrap_or(u32::MAX),
                options: if last { 0 } else { libc::XDP_PKT_CONTD },
            });
        }
        self.fill.release();
        self.rx.submit();
        true
    }

    /// Sends everything in the TX ring and completes it, and merged segments in
    /// between; nothing once the socket is closed.
    pub fn transmit(&mut self) -> Vec<Sent> {
        let shared = Arc::clone(&self.shared);
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut frames = Vec::new();
        if !shared.is_open {
            return frames;
        }
        let mut merged = shared.merged.drain(..).peekable();
        let mut bytes = Vec::new();
        let mut checksum = None;
        for taken in 0.. {
            while let Some((_, sent)) = merged.next_if(|(after, _)| *after == taken) {
                frames.push(sent);
            }
            let Some(desc) = self.tx.pop() else { break };
            if desc.options & libc::XDP_TX_METADATA != 0 {
                checksum = self.umem.kernel_reads_request(desc.addr);
            }
            bytes.extend(self.umem.kernel_reads(desc.addr, desc.len));
            self.completion.push(desc.addr);
            if desc.options & libc::XDP_PKT_CONTD == 0 {
                frames.push(Sent {
                    bytes: std::mem::take(&mut bytes),
                    checksum: checksum.take(),
                    segment: None,
                });
            }
        }
        self.tx.release();
        self.completion.submit();
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::super::Batch;
    use super::*;
    use crate::packet::offload::Partial;

    const ALL: Features = Features {
        multi_buffer: true,
        tx_metadata: true,
        tx_budget: true,
        gso: true,
        tso: true,
    };

    #[test]
    fn a_jumbo_frame_crosses_two_sockets_unharmed() {
        let (umem, mut pool) = Umem::create(1024).unwrap();
        let (mut a, mut kernel_a) = socket(umem, ALL);
        let (mut b, mut kernel_b) = socket(umem, ALL);
        a.refill(&mut pool);
        b.refill(&mut pool);
        let frame: Vec<u8> = (0..65_014u32).map(|i| (i % 251) as u8).collect();
        assert!(kernel_a.deliver(&frame));
        let mut batch = Batch::new();
        a.receive(&mut batch);
        let got = batch.pop().unwrap();
        assert_eq!((got.len(), got.chunks()), (65_014, 17));
        let partial = Partial {
            start: 34,
            offset: 16,
        };
        b.send(got, Some(partial)).unwrap();
        b.flush();
        assert_eq!(
            kernel_b.transmit(),
            vec![Sent {
                bytes: frame,
                checksum: Some((34, 16)),
                segment: None,
            }]
        );
        assert_eq!(pool.free_chunks(), 1024 - 2 * 256);
        assert_eq!((a.filled(), b.sent()), (256 - 17, 17));
        b.reap(&mut pool);
        a.refill(&mut pool);
        assert_eq!(pool.free_chunks(), 1024 - 2 * 256);
        let _ = pool.reclaim(a.close());
        let _ = pool.reclaim(b.close());
        assert_eq!(pool.free_chunks(), 1024);
    }

    #[test]
    fn a_full_ring_gives_the_frame_back() {
        let (umem, mut pool) = Umem::create(2049).unwrap();
        let (mut a, mut kernel) = socket(umem, ALL);
        for _ in 0..2048 {
            a.send(pool.frame().unwrap(), None).unwrap();
        }
        let refused = a.send(pool.frame().unwrap(), None).unwrap_err();
        pool.free(refused);
        a.flush();
        assert_eq!(kernel.transmit().len(), 2048);
        a.reap(&mut pool);
        assert_eq!(pool.free_chunks(), 2049);
    }

    #[test]
    fn a_closed_sockets_kernel_touches_nothing() {
        let (umem, mut pool) = Umem::create(256).unwrap();
        let (mut a, mut kernel) = socket(umem, ALL);
        a.refill(&mut pool);
        assert_eq!(pool.reclaim(a.close()), 256);
        assert!(!kernel.deliver(&[0; 60]));
        assert_eq!(kernel.transmit(), vec![]);
    }

    #[test]
    fn closing_one_socket_takes_nothing_from_another() {
        let (umem, mut pool) = Umem::create(512).unwrap();
        let (mut a, _kernel) = socket(umem, ALL);
        let (mut b, _kernel) = socket(umem, ALL);
        a.refill(&mut pool);
        b.refill(&mut pool);
        assert_eq!(pool.reclaim(a.close()), 256);
        assert_eq!(pool.reclaim(b.close()), 256);
    }

    #[test]
    fn an_empty_fill_ring_drops() {
        let (umem, mut pool) = Umem::create(256).unwrap();
        let (mut a, mut kernel) = socket(umem, ALL);
        assert!(!kernel.deliver(&[0; 60]));
        a.refill(&mut pool);
        assert!(kernel.deliver(&[0; 60]));
        let mut batch = Batch::new();
        a.receive(&mut batch);
        for frame in batch {
            pool.free(frame);
        }
        let _ = pool.reclaim(a.close());
        assert_eq!(pool.free_chunks(), 256);
    }
}
