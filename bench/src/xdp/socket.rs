//! An AF_XDP socket with a UMEM of its own.
#![expect(
    unsafe_code,
    reason = "xsk-rs leaves the ownership of frames to its user: see the parent module"
)]

use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::socket::Fd;
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use super::{CHUNKS, RING, refused, refused_by};
use crate::error::BenchError;

/// A closed socket keeps its queue a little longer: the kernel waits for a
/// grace period. 5 to 17 ms were seen, more on a busy machine.
const QUEUE_IS_FREED: Duration = Duration::from_secs(2);

/// A socket, its rings and its memory.
pub(super) struct Opened {
    pub(super) umem: Umem,
    /// All chunks: none is in a ring.
    pub(super) free: Vec<FrameDesc>,
    /// Bytes of a chunk that a frame may take.
    pub(super) chunk: usize,
    pub(super) tx: TxQueue,
    pub(super) rx: RxQueue,
    pub(super) fill: FillQueue,
    pub(super) completed: CompQueue,
}

/// Opens a socket on a queue of an interface of the calling thread's namespace.
///
/// # Errors
/// What the kernel or libxdp said.
pub(super) fn open(interface: &str, queue: u32) -> Result<Opened, BenchError> {
    let name: Interface = interface
        .parse()
        .map_err(|error| refused_by("name", interface, error))?;
    let give_up = Instant::now() + QUEUE_IS_FREED;
    loop {
        let count = NonZeroU32::new(CHUNKS).expect("not zero");
        let config = umem_config();
        let (umem, free) = Umem::new(config, count, false)
            .map_err(refused("make the memory of an AF_XDP socket on", interface))?;
        // SAFETY: the UMEM is new, and no other socket uses it or its rings.
        let made = unsafe { Socket::new(socket_config(), &umem, &name, queue) };
        match made {
            Ok((tx, rx, Some((fill, completed)))) => {
                close_on_exec(tx.fd(), interface)?;
                return Ok(Opened {
                    umem,
                    free,
                    chunk: config.mtu() as usize,
                    tx,
                    rx,
                    fill,
                    completed,
                });
            }
            Ok((_, _, None)) => {
                return Err(refused_by(
                    "open an AF_XDP socket on",
                    interface,
                    "it came without rings",
                ));
            }
            Err(error) if is_busy(&error) && Instant::now() < give_up => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(refused("open an AF_XDP socket on", interface)(error)),
        }
    }
}

/// libxdp does not: a daemon that is started during a measurement would hold
/// the socket, and with it the queue, for as long as it runs.
fn close_on_exec(socket: &Fd, interface: &str) -> Result<(), BenchError> {
    // SAFETY: the socket is open for as long as its rings are, and they are
    // the caller's.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map(drop)
        .map_err(BenchError::system(
            "set FD_CLOEXEC of the socket on",
            interface,
        ))
}

fn is_busy(error: &dyn Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    cause.and_then(io::Error::raw_os_error) == Some(libc::EBUSY)
}

/// The sockets here are in copy mode: a veth has no other.
fn socket_config() -> SocketConfig {
    let ring = ring_size();
    SocketConfig::builder()
        .rx_queue_size(ring)
        .tx_queue_size(ring)
        // libxdp's own program would take all that arrives, ARP too.
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP | BindFlags::XDP_USE_SG)
        .build()
}

fn umem_config() -> UmemConfig {
    let ring = ring_size();
    UmemConfig::builder()
        .fill_queue_size(ring)
        .comp_queue_size(ring)
        .build()
        .expect("chunks of the default size have room for the headroom")
}

fn ring_size() -> QueueSize {
    QueueSize::new(RING).expect("a power of two")
}
