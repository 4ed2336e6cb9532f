//! AF_XDP sockets, and a packet socket beside them: the edge of the kernel, and
//! the only unsafe code of this crate (kernel: Documentation/networking/af_xdp.rst).
//!
//! # Why the unsafe code is sound
//!
//! One argument carries every block in this folder: **each chunk of the UMEM
//! has exactly one owner at any time**, and the owner is a value.
//!
//! - A [`Chunk`] owns one chunk, a [`Frame`] a chain of them, a [`Chain`] one
//!   that grows. None can be copied, and only this module mints them: when the
//!   UMEM is made (every chunk once, into the first [`FramePool`]), when the
//!   kernel returns a chunk through an RX or COMPLETION ring, and when a closed
//!   socket's chunks are reclaimed.
//! - Giving a chunk to the kernel (FILL, TX) consumes the value. What the
//!   kernel may write to is therefore never reachable from safe code.
//! - The bytes and the side array's entry of a chunk are only touched through
//!   a borrow of its owner: shared to read, exclusive to write.
//! - The UMEM is mapped once and never unmapped, so nothing can outlive it.
//!   Owners carry their UMEM's number, and every access compares it.
//! - Owners move between threads only by what orders memory: a hand-off ring, a
//!   depot's magazine, a command. So each owner sees what the one before it wrote,
//!   to the bytes as to the side array, and those need no atomics. The exception is
//!   a chunk's holder, at which reclaiming looks whoever owns the chunk: only the
//!   thread that has a socket writes the socket's number there or takes it back,
//!   and hands both on with the socket; whoever reclaims what the closed socket
//!   held has seen them.
//! - Ring memory lives as long as the ring values that point into it. Indices
//!   are free-running 32-bit counters, masked by a size that is a power of two.
//!
//! A lost `Frame` would be a leak, never unsoundness; debug builds panic on it.

#![allow(
    unsafe_code,
    reason = "the AF_XDP ABI is shared memory and raw system calls"
)]

mod chain;
mod cursor;
mod depot;
mod doorbell;
mod error;
mod frame;
mod gso;
mod handle;
pub mod memory;
mod pool;
mod rings;
mod socket;
mod sys;
mod umem;

pub use chain::Chain;
pub use depot::Depot;
pub use doorbell::Doorbell;
pub use error::XskError;
pub use frame::{Chunk, Frame, MAX_CHUNKS};
pub use gso::{GsoError, GsoSender};
pub use handle::{Socket, Statistics};
pub use pool::{Closed, FramePool};
pub use rings::FILL_DEPTH;
pub use socket::{BATCH_SIZE, Batch, Device, Features, Flush, Unsent, Xsk};
pub use umem::{CHUNK_ROOM, CHUNK_SIZE, Umem};
