//! 64-byte frames as fast as they go.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, recvmmsg, sendmmsg, sendmsg};

use super::{Meter, Progress, Talk, Values};
use crate::topology::TopologyError;

/// Payload of a frame of 64 bytes: 14 Ethernet, 20 IPv4, 8 UDP and 4 FCS more.
const PAYLOAD: usize = SEGMENT as usize;
const SEGMENT: u16 = 18;
/// Datagrams a system call.
const BATCH: usize = 64;

/// UDP from an application into an application. What counts is what arrived.
///
/// # Errors
/// The sockets are refused, or the server is not reached.
pub(crate) fn flood(talk: &Talk<'_>) -> Result<Values, TopologyError> {
    let (server, client) = (talk.udp_server()?, talk.udp_client()?);
    let progress = Progress::default();
    let meter = Meter::run(
        talk,
        &progress,
        vec![
            (talk.receiver_cpu, Box::new(|| receive(&server, &progress))),
            (talk.sender_cpu, Box::new(|| send(&client, &progress))),
        ],
    )?;
    Ok(meter.packets())
}

/// UDP from an application to `arrived`, which says how much has been counted.
/// The kernel cuts the frames (UDP_SEGMENT): an application that sends each by
/// itself is slower than what forwards, and would be what is measured.
///
/// # Errors
/// As [`flood`].
pub(crate) fn flood_into_sink(
    talk: &Talk<'_>,
    arrived: impl Fn() -> io::Result<u64> + Sync,
) -> Result<Values, TopologyError> {
    let client = talk.udp_client()?;
    let progress = Progress::default();
    let follow = || {
        let mut known = arrived()?;
        while !progress.is_over() {
            std::thread::sleep(std::time::Duration::from_millis(1));
            let now = arrived()?;
            progress.received.add(now - known);
            known = now;
        }
        Ok(())
    };
    let meter = Meter::run(
        talk,
        &progress,
        vec![
            (talk.receiver_cpu, Box::new(follow)),
            (
                talk.sender_cpu,
                Box::new(|| send_segments(&client, &progress)),
            ),
        ],
    )?;
    Ok(meter.packets())
}

fn send_segments(socket: &UdpSocket, progress: &Progress) -> io::Result<()> {
    let payload = [0x5a; PAYLOAD * BATCH];
    let segments = [ControlMessage::UdpGsoSegments(&SEGMENT)];
    while !progress.is_over() {
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&payload)],
            &segments,
            MsgFlags::empty(),
            None,
        );
        match sent {
            Ok(length) => progress.sent.add((length / PAYLOAD) as u64),
            Err(errno) if is_passing(errno) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The interface's queue is full, or nobody listens yet or any more.
fn is_passing(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOBUFS | Errno::EAGAIN | Errno::ECONNREFUSED | Errno::EINTR
    )
}

fn send(socket: &UdpSocket, progress: &Progress) -> io::Result<()> {
    let payload = [0x5a; PAYLOAD];
    let messages = [[IoSlice::new(&payload)]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let nobody = [None; BATCH];
    while !progress.is_over() {
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &messages,
            nobody,
            [],
            MsgFlags::empty(),
        );
        match sent {
            Ok(results) => progress.sent.add(results.count() as u64),
            Err(errno) if is_passing(errno) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn receive(socket: &UdpSocket, progress: &Progress) -> io::Result<()> {
    let mut memory = [[0; PAYLOAD]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    while !progress.is_over() {
        let mut buffers = memory.each_mut().map(|buffer| [IoSliceMut::new(buffer)]);
        let got = recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            buffers.iter_mut(),
            MsgFlags::MSG_WAITFORONE,
            None,
        );
        match got {
            Ok(results) => progress.received.add(results.count() as u64),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
