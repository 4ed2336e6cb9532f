//! Sluice's BPF programs, as compiled objects, and the names of what is in
//! them: each exists once, here and in the C source.
//!
//! The XDP program of the ports is in this module; the daemon sets the sizes of
//! [`PORTS`], [`SOCKETS`] and [`DOORBELL`] when it loads the object. What says how
//! merged segments are cut is in [`merged`], the uplink's program in [`uplink`], what
//! sees the sockets of the host's processes in [`connect`], what the bench counts by
//! in [`sink`].

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

/// How merged TCP segments are cut: `merged.bpf.c`.
pub mod merged {
    /// The object, aligned as the ELF parser wants it.
    pub static OBJECT: &[u8] =
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/merged.bpf.o"));

    /// For what an interface sends (egress, by tcx or `clsact`).
    pub const PROGRAM: &str = "mark_merged";

    /// How the source MAC address of merged segments begins. The two bytes after it
    /// say how many bytes of data each has, the last perhaps fewer (`gso_size`).
    pub const MARK: [u8; 4] = *b"\x02SLG";
}

/// hostPorts for processes of the host: `connect.bpf.c`.
pub mod connect {
    /// The object, aligned as the ELF parser wants it.
    pub static OBJECT: &[u8] =
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/connect.bpf.o"));

    /// The programs, each for the operation of sockets that it is named after.
    pub const PROGRAMS: [&str; 8] = [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
    ];

    /// Constant u64: the cookie of the network namespace whose sockets are
    /// looked at.
    pub const NETNS_COOKIE: &str = "host_netns_cookie";
    /// Hash map: a mapped port of the node to the pod's.
    pub const MAPPINGS: &str = "mappings";
    /// Hash map: the node's addresses; the values mean nothing.
    pub const NODE_ADDRESSES: &str = "node_addresses";
    /// LRU hash map: what a socket talks to, and what it asked for.
    pub const PEERS: &str = "peers";
}

/// hostPorts from outside: `uplink.bpf.c`. It looks into [`connect::MAPPINGS`]
/// and [`connect::NODE_ADDRESSES`], too.
pub mod uplink {
    /// The object, aligned as the ELF parser wants it.
    pub static OBJECT: &[u8] =
        aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/uplink.bpf.o"));

    /// The program for uplinks whose frames may come in several buffers.
    pub const PROGRAM_FRAGS: &str = "uplink_frags";
    /// The same for drivers that refuse that.
    pub const PROGRAM_SINGLE: &str = "uplink_single";

    /// XSKMAP: RX queue to AF_XDP socket.
    pub const QUEUES: &str = "queues";
    /// Constant u32: the longest frame that the link carries, bytes. Longer ones are
    /// merged segments, and left to the kernel if they are not TCP's.
    pub const LONGEST_FRAME: &str = "longest_frame";
}

/// The end of a measurement: `sink.bpf.c`, for `sluice-bench`.
pub mod sink {
    /// The object, aligned as the ELF parser wants it.
    pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.bpf.o"));

    /// Counts the frames for [`PORT`] and drops them.
    pub const PROGRAM_COUNT: &str = "sink_count";
    /// Hands the frames for [`PORT`] to the socket of their queue.
    pub const PROGRAM_RECEIVE: &str = "sink_receive";

    /// Constant u16: the UDP or TCP port whose frames are taken.
    pub const PORT: &str = "sink_port";
    /// Array with a value a CPU: two u64, frames and bytes.
    pub const COUNTERS: &str = "counters";
    /// XSKMAP: RX queue to AF_XDP socket.
    pub const SOCKETS: &str = "receivers";
    /// How many entries [`SOCKETS`] has.
    pub const MAX_QUEUES: u32 = 64;
}
