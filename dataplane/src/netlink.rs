//! Netlink beyond routing: the kernel's subsystems that `sluice-link`'s
//! rtnetlink does not speak. Blocking requests, and notifications.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

/// The kernel's answers come in pieces of at most 32 KiB (netlink_dump).
const BUFFER_BYTES: usize = 64 << 10;

/// A message's header: length, type, flags, sequence number, port (netlink(7)).
const HEADER_BYTES: usize = 16;
/// An attribute's header: length, type.
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// An attribute's type without its two flags, "nested" and "big endian".
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const NESTED: u16 = 1 << 15;

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// What a request is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All objects that fit (`NLM_F_DUMP`).
    List,
    /// To be done and acknowledged (`NLM_F_ACK`).
    Do,
}

/// A message to the kernel, in the making.
#[derive(Debug)]
pub(crate) struct Request(Vec<u8>);

impl Request {
    /// A request of this type with the subsystem's own header.
    pub(crate) fn new(kind: u16, mode: Mode, header: &[u8]) -> Self {
        const REQUEST: u16 = 1;
        let flags: u16 = match mode {
            Mode::List => REQUEST | 0x300,
            Mode::Do => REQUEST | 0x4,
        };
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// Adds an attribute.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start);
    }

    /// Adds an attribute that holds others.
    pub(crate) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        fill(self);
        self.close(start);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// A message from the kernel.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    /// Port of the socket whose request caused it; 0 for none.
    pub(crate) port: u32,
    /// From the subsystem's own header on.
    pub(crate) payload: &'a [u8],
}

/// A socket of one of the kernel's subsystems, in the network namespace that
/// it was opened in.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for requests.
    ///
    /// # Errors
    /// The kernel gives none.
    pub(crate) fn open(subsystem: SockProtocol) -> io::Result<Self> {
        Self::bound(subsystem, 0, SockFlag::empty())
    }

    /// A socket that gets these groups' notifications, and never waits for one.
    ///
    /// # Errors
    /// The kernel gives none.
    pub(crate) fn listen(subsystem: SockProtocol, groups: &[u32]) -> io::Result<Self> {
        /// Enough for what one transaction of thousands of elements causes.
        const ROOM: usize = 4 << 20;
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        let socket = Self::bound(subsystem, mask, SockFlag::SOCK_NONBLOCK)?;
        setsockopt(&socket.fd, sockopt::RcvBufForce, &ROOM)?;
        Ok(socket)
    }

    fn bound(subsystem: SockProtocol, groups: u32, flags: SockFlag) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags | SockFlag::SOCK_CLOEXEC,
            subsystem,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let buffer = vec![0; BUFFER_BYTES];
        Ok(Self { fd, buffer })
    }

    /// Sends a request and gives each object of the answer to `each`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn ask(
        &mut self,
        request: Request,
        mut each: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        send(self.fd.as_raw_fd(), &request.finish(), MsgFlags::empty())?;
        loop {
            for message in self.receive()? {
                match message.kind {
                    ERROR | DONE => return ended(message.payload),
                    _ => each(message),
                }
            }
        }
    }

    /// The next messages.
    ///
    /// # Errors
    /// `WouldBlock` if there are none on a listening socket; ENOBUFS if some
    /// were lost.
    pub(crate) fn receive(&mut self) -> io::Result<impl Iterator<Item = Message<'_>>> {
        let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
        Ok(messages(&self.buffer[..length]))
    }

    /// Gives all messages that are there on a listening socket to `each`. Says
    /// whether some were lost.
    ///
    /// # Errors
    /// The kernel gives none.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        let mut is_incomplete = false;
        loop {
            match self.receive() {
                Ok(messages) => messages.for_each(|message| each(&message)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(is_incomplete);
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => is_incomplete = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the error number says that a list's end and an acknowledgement have.
fn ended(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().copied().map(i32::from_ne_bytes) {
        None | Some(0) => Ok(()),
        Some(negative) => Err(io::Error::from_raw_os_error(-negative)),
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*header.first_chunk()?)).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            port: u32::from_ne_bytes(*header.last_chunk()?),
            payload: bytes.get(HEADER_BYTES..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in `bytes`: type and value.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; ATTRIBUTE_HEADER_BYTES] = bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE;
        let value = bytes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of a type.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut request = Request::new(7, Mode::Do, &[1, 2, 3, 4]);
        request.attribute(1, b"abcde");
        request.nested(2, |inner| inner.attribute(3, &[9]));
        let bytes = request.finish();
        assert_eq!(bytes.len(), 16 + 4 + 12 + 4 + 8);
        let mut both = bytes.clone();
        both.extend_from_slice(&bytes);
        let found: Vec<_> = messages(&both).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].kind, found[1].port), (7, 0));
        let payload = &found[1].payload[4..];
        assert_eq!(attribute(payload, 1), Some(&b"abcde"[..]));
        let inner = attribute(payload, 2).unwrap();
        assert_eq!(attributes(inner).collect::<Vec<_>>(), [(3, &[9][..])]);
        assert_eq!(attribute(payload, 4), None);
    }

    #[test]
    fn what_is_cut_short_ends_the_iteration() {
        let mut request = Request::new(7, Mode::List, &[]);
        request.attribute(1, b"abcdefgh");
        let bytes = request.finish();
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
        assert_eq!(attributes(&bytes[16..24]).count(), 0);
        assert_eq!(attributes(&[0; 8]).count(), 0, "no endless loop");
        assert_eq!(messages(&[0; 32]).count(), 0);
    }

    #[test]
    fn an_end_says_how() {
        assert!(ended(&[]).is_ok());
        assert!(ended(&0_i32.to_ne_bytes()).is_ok());
        let error = ended(&(-libc::ENOENT).to_ne_bytes()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
