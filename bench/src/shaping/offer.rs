//! Datagrams at a rate.

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};

use crate::clock::{self, SECOND};

/// Datagrams a system call.
const BATCH: usize = 64;
/// Between two of them at slow rates.
const PAUSE: Duration = Duration::from_micros(500);
/// What a sender that was not let run makes up for, nanoseconds; but one
/// datagram at least.
const MOST_LATE: u128 = 20_000_000;
/// IPv4's and UDP's headers.
pub(super) const HEADERS: u64 = 28;

/// What to send, for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) target: SocketAddr,
    /// Payload of a datagram, bytes.
    pub(super) size: usize,
    /// Bits of IP packets a second, but for the headers of fragments.
    pub(super) rate: u64,
    pub(super) time: Duration,
}

impl Offer {
    /// From one datagram to the next.
    pub(super) fn interval(&self) -> Duration {
        let bits = (self.size as u64 + HEADERS) * 8;
        Duration::from_nanos(bits * SECOND / self.rate)
    }

    /// Sends, from the calling thread's namespace. Returns how many bytes of
    /// IP packets were taken.
    ///
    /// # Errors
    /// The socket is refused.
    pub(super) fn send(&self) -> io::Result<u64> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(self.target)?;
        let payload = vec![0x5a; self.size];
        let each = self.size as u64 + HEADERS;
        let nanos_each = self.interval().as_nanos();
        let start = clock::now();
        let end = start + u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
        // The first is due at once.
        let (mut due, mut taken) = (u128::from(start).saturating_sub(nanos_each), 0);
        loop {
            let now = clock::now();
            if now >= end {
                return Ok(taken * each);
            }
            let now = u128::from(now);
            due = due.max(now.saturating_sub(MOST_LATE.max(2 * nanos_each)));
            let wanted = now.saturating_sub(due) / nanos_each.max(1);
            if wanted == 0 {
                std::thread::sleep(PAUSE);
                continue;
            }
            let count = usize::try_from(wanted).unwrap_or(BATCH).min(BATCH);
            taken += send_batch(&socket, &payload, count)?;
            due += nanos_each * count as u128;
        }
    }
}

/// Returns how many the kernel took.
fn send_batch(socket: &UdpSocket, payload: &[u8], count: usize) -> io::Result<u64> {
    let messages = [[IoSlice::new(payload)]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(count, None);
    let sent = sendmmsg(
        socket.as_raw_fd(),
        &mut headers,
        &messages[..count],
        [None; BATCH],
        [],
        MsgFlags::empty(),
    );
    match sent {
        Ok(results) => Ok(results.count() as u64),
        // The interface's queue is full; the path's MTU has just become known;
        // nobody listens yet or any more.
        Err(Errno::ENOBUFS | Errno::EMSGSIZE | Errno::ECONNREFUSED | Errno::EAGAIN) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}
