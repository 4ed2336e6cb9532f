//! Generic segmentation offload: merged TCP segments that leave as one, with word
//! of how they were cut. The receiving stack takes them whole, or the last device
//! cuts them again (the kernel's Documentation/networking/segmentation-offloads.rst).
//!
//! A descriptor of an AF_XDP ring has no place for that word. A packet socket has:
//! each frame begins with a `struct virtio_net_hdr` (packet(7), `PACKET_VNET_HDR`;
//! VIRTIO 1.2 section 5.1.6).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use arrayvec::ArrayVec;
use zerocopy::{Immutable, IntoBytes};

use super::frame::{Frame, MAX_CHUNKS};
use super::socket::SEND_BUFFER;
use super::sys;
use super::umem::Umem;
use crate::packet::segment::Cut;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const TCP4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const TCP6: u8 = 4;

/// Why merged segments cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("packet socket for merged TCP segments: {operation}: {cause}")]
pub struct GsoError {
    operation: &'static str,
    /// What the kernel said.
    #[source]
    cause: io::Error,
}

/// A packet socket that sends on any device, and receives nothing.
#[derive(Debug)]
pub struct GsoSender(OwnedFd);

/// `struct virtio_net_hdr`, in the machine's byte order.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    fn of(cut: &Cut) -> Self {
        Self {
            flags: NEEDS_CHECKSUM,
            gso_type: if cut.is_ipv4 { TCP4 } else { TCP6 },
            hdr_len: cut.headers_len,
            gso_size: cut.data_len,
            csum_start: cut.checksum.start,
            csum_offset: cut.checksum.offset,
        }
    }
}

impl GsoSender {
    /// Opens the socket.
    ///
    /// # Errors
    /// The call that failed, and why.
    pub fn open() -> Result<Self, GsoError> {
        let failed = |operation| move |cause| GsoError { operation, cause };
        let socket = sys::packet_socket().map_err(failed("socket(AF_PACKET)"))?;
        let set = |level, option, value| sys::setsockopt(socket.as_fd(), level, option, &value);
        set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)
            .map_err(failed("describe the segments (PACKET_VNET_HDR)"))?;
        // As what the rings send: a flow that goes both ways keeps its order.
        set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)
            .map_err(failed("pass queueing disciplines (PACKET_QDISC_BYPASS)"))?;
        set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER)
            .map_err(failed("raise the send buffer (SO_SNDBUFFORCE)"))?;
        Ok(Self(socket))
    }

    /// Sends a frame on the device of that index; the kernel copies it. Never
    /// waits. A device that does not take merged segments, as a veth whose other
    /// end has an XDP program, is `ENOBUFS`: what passes queueing disciplines is
    /// not cut on the way (`__dev_direct_xmit`).
    pub(super) fn send(
        &self,
        device: u32,
        umem: &Umem,
        frame: &Frame,
        cut: &Cut,
    ) -> io::Result<()> {
        let header = Header::of(cut);
        let mut pieces = ArrayVec::<_, { MAX_CHUNKS as usize + 1 }>::new();
        pieces.push(IoSlice::new(header.as_bytes()));
        for slice in umem.slices(frame) {
            let is_too_long = |_| io::Error::from_raw_os_error(libc::EMSGSIZE);
            pieces.try_push(IoSlice::new(slice)).map_err(is_too_long)?;
        }
        sys::send_to_device(self.0.as_fd(), device, &pieces)
    }
}
