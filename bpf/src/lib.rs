//! The XDP program of Sluice's ports, as a compiled object, and the names of
//! what is in it: each exists once, here and in `port.bpf.c`.
//!
//! The daemon sets the sizes of [`PORTS`], [`SOCKETS`] and [`DOORBELL`] when it
//! loads the object.

#![forbid(unsafe_code)]

/// The object, aligned as the ELF parser wants it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/port.bpf.o"));

/// The program for kernels that hand AF_XDP sockets frames in several buffers.
pub const PROGRAM_FRAGS: &str = "port_frags";
/// The same for the others: frames of one buffer, and so a small MTU.
pub const PROGRAM_SINGLE: &str = "port_single";

/// Hash map: interface index (u32) to slot (u32).
pub const PORTS: &str = "ports";
/// XSKMAP: slot to AF_XDP socket.
pub const SOCKETS: &str = "sockets";
/// Mappable array of u64 words, a bit for each slot: see [`doorbell_words`].
pub const DOORBELL: &str = "doorbell";
/// Array of one u32: the XDP action for frames of a port that has no socket.
pub const NO_SOCKET_ACTION: &str = "no_socket_action";

/// How many words of [`DOORBELL`] `slots` slots take.
#[must_use]
pub const fn doorbell_words(slots: u16) -> u32 {
    (slots as u32).div_ceil(64)
}
