//! The control socket: one request a connection, one thread for all.
//!
//! No client can stall another: nothing here waits for one. A client has five
//! seconds to send its request and five to take the answer; at most
//! [`MAX_CONNECTIONS`] are open, and a new one takes the place of the oldest
//! that has not finished its request, or else of the oldest.

mod connection;
mod request;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt,
};
use nix::unistd::Uid;
use sluice_control::{Request, Response};

use crate::run_dir::{FolderError, RunDirLock};
use connection::{Connection, Progress};

/// Connections open at a time.
pub const MAX_CONNECTIONS: usize = 256;
/// A request's size; a pod with 10,000 hostPorts takes 600 KiB. All that may be
/// open take a quarter of a GiB if root means it.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Time to send a request, and again to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);

const LISTENER: Token = Token(0);
const WATCHED: Token = Token(1);
const FIRST_CONNECTION: usize = 2;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket's folder has another daemon, or is not ours alone: others
    /// could put their own socket in the place of ours.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Something that is not a socket has the socket's name.
    #[error("serve the control socket {}: the file there is not a socket; remove it", .0.display())]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("{operation} {}: {cause}", path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The listening socket with its connections.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// A second daemon must not take over the socket and the pins.
    _folder: RunDirLock,
    poll: Poll,
    listener: UnixListener,
    /// By number, which counts up: the first is the oldest.
    connections: BTreeMap<usize, Connection>,
    next_number: usize,
    /// More clients may be waiting to be accepted; epoll would not say so again.
    is_accepting: bool,
    own_uid: u32,
    patience: Duration,
}

impl Server {
    /// Listens at `path`, with mode 0600, in place of a dead daemon's socket.
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// Another daemon lives there, or the file system refuses.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let system = |operation| {
            move |cause| ServerError::System {
                operation,
                path: path.to_owned(),
                cause,
            }
        };
        let folder = RunDirLock::take(path.parent().unwrap_or(Path::new("/")))?;
        match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => {
                return Err(ServerError::NotASocket(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(system("remove the dead daemon's socket"))?,
            Err(_) => {}
        }
        let mut listener = listen_privately(path).map_err(system("listen at"))?;
        let poll = Poll::new().map_err(system("make an epoll instance for"))?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)
            .map_err(system("watch"))?;
        Ok(Self {
            path: path.to_owned(),
            _folder: folder,
            poll,
            listener,
            connections: BTreeMap::new(),
            next_number: FIRST_CONNECTION,
            is_accepting: false,
            own_uid: Uid::effective().as_raw(),
            patience: PATIENCE,
        })
    }

    /// Lets [`Server::turn`] return as soon as `fd` is readable.
    ///
    /// # Errors
    /// The kernel cannot watch this descriptor.
    pub fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.poll
            .registry()
            .register(&mut SourceFd(&fd.as_raw_fd()), WATCHED, Interest::READABLE)
    }

    /// Waits for something to do, at most `wait`, and does it.
    ///
    /// # Errors
    /// epoll failed. What goes wrong on one connection ends that one only.
    pub fn turn(
        &mut self,
        wait: Duration,
        mut answer: impl FnMut(Request) -> Response,
    ) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_CONNECTIONS + FIRST_CONNECTION);
        match self
            .poll
            .poll(&mut events, Some(self.nearest_deadline(wait)))
        {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        for event in &events {
            let Token(number) = event.token();
            self.advance(number, &mut answer);
        }
        // In every turn: an accept that failed for want of descriptors leaves
        // clients waiting, and epoll reports them only once.
        self.accept();
        self.drop_the_slow();
        Ok(())
    }

    fn nearest_deadline(&self, wait: Duration) -> Duration {
        if self.is_accepting {
            return Duration::ZERO;
        }
        let now = Instant::now();
        self.connections
            .values()
            .map(|connection| connection.deadline().saturating_duration_since(now))
            .fold(wait, Duration::min)
    }

    fn advance(&mut self, number: usize, answer: &mut impl FnMut(Request) -> Response) {
        let Some(connection) = self.connections.get_mut(&number) else {
            return;
        };
        match connection.advance(self.patience, |bytes| request::serve(bytes, answer)) {
            Ok(Progress::Waiting) => return,
            Ok(Progress::Done) => {}
            Err(error) => tracing::debug!(%error, "a control connection broke"),
        }
        self.connections.remove(&number);
    }

    /// Takes in at most as many as may be open, so that a flood of new ones
    /// cannot keep the others from being served.
    fn accept(&mut self) {
        self.is_accepting = false;
        for _ in 0..MAX_CONNECTIONS {
            match self.listener.accept() {
                Ok((stream, _)) => self.take_in(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Each of the others has a descriptor.
                Err(error) if lacks_descriptors(&error) && self.drop_the_oldest().is_some() => {}
                Err(error) => {
                    tracing::warn!(%error, "could not accept a control connection");
                    return;
                }
            }
        }
        self.is_accepting = true;
    }

    fn take_in(&mut self, mut stream: UnixStream) {
        let peer = match getsockopt(&stream, sockopt::PeerCredentials) {
            Ok(credentials) => credentials.uid(),
            Err(error) => {
                tracing::warn!(%error, "could not read a control client's credentials");
                return;
            }
        };
        if !may_control(peer, self.own_uid) {
            tracing::warn!(uid = peer, "refused a control client that is not root");
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            self.drop_the_oldest();
        }
        let number = self.next_number;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self
            .poll
            .registry()
            .register(&mut stream, Token(number), interest)
        {
            tracing::warn!(%error, "could not watch a control connection");
            return;
        }
        self.next_number += 1;
        self.connections.insert(
            number,
            Connection::new(stream, Instant::now() + self.patience),
        );
    }

    /// Of those that have had no answer yet, if there are any.
    fn drop_the_oldest(&mut self) -> Option<Connection> {
        let mut asking = self.connections.iter().filter(|(_, c)| c.is_asking());
        let oldest = asking.next().or_else(|| self.connections.iter().next());
        let number = oldest.map(|(number, _)| *number)?;
        self.connections.remove(&number)
    }

    fn drop_the_slow(&mut self) {
        let now = Instant::now();
        self.connections
            .retain(|_, connection| connection.deadline() > now);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the control socket");
        }
    }
}

fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether a process of this user may control the daemon: root, or the user
/// the daemon runs as.
#[must_use]
pub fn may_control(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == 0 || peer_uid == own_uid
}

/// Sets the mode between bind and listen: nobody can connect before listen.
/// The umask would do as well, but it is the whole process's.
fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from_std(socket.into()))
}

#[cfg(test)]
mod tests;
