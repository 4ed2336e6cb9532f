//! The generator's and the sink's AF_XDP sockets, by xsk-rs, and the XDP
//! program of the sink: no ring code is shared with the dataplane.
//!
//! The only `unsafe` here is in [`socket`], [`sender`] and [`receiver`]. xsk-rs
//! hands out copyable frame descriptors and leaves it to its user that each
//! chunk is in one place at a time. Here each socket has a UMEM of its own,
//! held privately by one struct, and what keeps its calls sound is this:
//!
//! 1. A descriptor comes from the UMEM of the very struct that uses it:
//!    [`Umem::new`](xsk_rs::Umem::new), the RX ring or the completion ring.
//! 2. A descriptor is in exactly one place: on the struct's list of free ones,
//!    or in a ring, or in the kernel. It is moved, never kept, when it is
//!    given to a ring.
//! 3. Memory is touched only through descriptors on our side, for as long as
//!    the `&mut` on the struct lasts.

mod program;
mod receiver;
mod sender;
mod socket;

use std::fmt::Display;

use crate::error::BenchError;

pub(crate) use program::SinkProgram;
pub(crate) use receiver::Receiver;
pub(crate) use sender::Sender;

/// Entries of each ring.
const RING: u32 = 4096;
/// Chunks of a UMEM: a ring full, and as many on our side. 32 MiB.
const CHUNKS: u32 = 2 * RING;
/// Set on all chunks of a frame but the last (`XDP_PKT_CONTD`).
const CONTINUED: u32 = 1;

/// For `map_err`: what xsk-rs said, with its source, which it keeps apart.
fn refused<E: std::error::Error>(
    operation: &'static str,
    interface: &str,
) -> impl FnOnce(E) -> BenchError {
    let object = interface.to_owned();
    move |error| BenchError::Xdp {
        operation,
        object,
        cause: match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
        hint: "AF_XDP with several buffers a frame needs Linux 6.6 and CAP_NET_RAW, and one \
               socket at a time for a queue",
    }
}

/// The same for what says it all itself.
fn refused_by(operation: &'static str, interface: &str, cause: impl Display) -> BenchError {
    BenchError::Xdp {
        operation,
        object: interface.to_owned(),
        cause: cause.to_string(),
        hint: "the sink's program needs Linux 5.18, CAP_BPF and CAP_NET_ADMIN, no other XDP \
               program on the interface, and on a veth as many RX queues as its peer has TX queues",
    }
}
