//! The system calls, one wrapper each, with the arguments in the error.

use std::ffi::c_void;
use std::io::{self, IoSlice};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// `XDP_MAX_TX_SKB_BUDGET` (include/uapi/linux/if_xdp.h, Linux 6.17): how many
/// descriptors one wakeup may send. libc does not name it yet.
pub(super) const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Plain data that `setsockopt` and `getsockopt` may read and write.
///
/// # Safety
/// Every bit pattern must be valid, and there must be no padding.
pub(super) unsafe trait SockOpt: Copy {}
// SAFETY: an integer.
unsafe impl SockOpt for libc::c_int {}
// SAFETY: six u64 without padding.
unsafe impl SockOpt for libc::xdp_statistics {}
// SAFETY: sixteen u64 without padding.
unsafe impl SockOpt for libc::xdp_mmap_offsets {}
// SAFETY: two u64 and four u32 without padding.
unsafe impl SockOpt for libc::xdp_umem_reg {}

pub(super) fn xdp_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_XDP)
}

/// A packet socket; of no protocol, it receives nothing.
pub(super) fn packet_socket() -> io::Result<OwnedFd> {
    socket(libc::AF_PACKET)
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn setsockopt<T: SockOpt>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast::<c_void>(),
            socklen::<T>(),
        )
    };
    ok_or_errno(result)
}

/// Reads a socket option; `initial` fills what an older kernel does not write.
pub(super) fn getsockopt<T: SockOpt>(
    fd: BorrowedFd<'_>,
    option: libc::c_int,
    initial: T,
) -> io::Result<T> {
    let mut value = initial;
    let mut len = socklen::<T>();
    // SAFETY: the kernel writes at most `len` bytes into `value`, and any bit
    // pattern is a valid T.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_mut(&mut value).cast::<c_void>(),
            &raw mut len,
        )
    };
    ok_or_errno(result)?;
    Ok(value)
}

pub(super) fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    // SAFETY: the pointer and length describe `address`, which outlives the call.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            std::ptr::from_ref(address).cast::<libc::sockaddr>(),
            socklen::<libc::sockaddr_xdp>(),
        )
    };
    ok_or_errno(result)
}

/// Tells the kernel to look at the TX ring (af_xdp.rst, "XDP_USE_NEED_WAKEUP").
pub(super) fn wake_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message: no pointer is read.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            std::ptr::null(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a frame, in pieces, by a packet socket on the device of that index. A
/// packet socket takes all of a frame or nothing.
pub(super) fn send_to_device(
    fd: BorrowedFd<'_>,
    device: u32,
    pieces: &[IoSlice<'_>],
) -> io::Result<()> {
    let mut address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?,
        sll_protocol: 0, // As the frame says.
        sll_ifindex: i32::try_from(device).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: zeroes are a message without address, data and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut address).cast();
    message.msg_namelen = socklen::<libc::sockaddr_ll>();
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len() as _;
    // SAFETY: address and pieces outlive the call, which only reads them; an
    // IoSlice is laid out as an iovec (std::io::IoSlice).
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A shared anonymous file of `len` bytes, of huge pages if `huge`.
pub(super) fn memfd(len: usize, huge: bool) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | if huge { libc::MFD_HUGETLB } else { 0 };
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"sluice-umem".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: no pointers are passed.
    ok_or_errno(unsafe { libc::ftruncate(fd.as_raw_fd(), size) })?;
    Ok(fd)
}

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory at a fixed address; what may be done with it
// from which thread is decided by those who point into it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(super) fn new(fd: BorrowedFd<'_>, len: usize, offset: libc::off_t) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches
        // no memory that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { base, len })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of a mapping made in `new`, and those
        // who pointed into it held this value, which is going away.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

fn ok_or_errno(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "sizes of the few structs above"
)]
const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
