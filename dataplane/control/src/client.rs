//! The client's side of the control socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde::de::DeserializeOwned;

use crate::{
    Attachment, AttachmentId, Envelope, LimitChange, MAX_MESSAGE_BYTES, NodeFacts, NodeStatus,
    ProtocolRange, Refusal, Request, Response, Shaping,
};

/// Longer than any request takes: binding 100 sockets one after the other
/// with the kernel's slowest bind seen (85 ms) is 8.5 s.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks the daemon, one connection a request.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there: the daemon is not running.
    #[error("connect to the daemon at {}: {cause}; {}", socket.display(), advice(cause))]
    Down {
        /// The socket's path.
        socket: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The connection broke, or the answer made no sense.
    #[error("ask the daemon at {} to {op}: {cause}", socket.display())]
    Broken {
        /// The socket's path.
        socket: PathBuf,
        /// The request's name.
        op: &'static str,
        /// What went wrong.
        cause: io::Error,
    },
    /// The daemon answered no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => "run this as root",
        _ => "is sluiced running?",
    }
}

impl Client {
    /// A client of the daemon that listens at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Asks for what the plugin must know before it makes a veth.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn describe(&self) -> Result<NodeFacts, ClientError> {
        self.ask_for(Request::Describe)
    }

    /// Asks how full the node is.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn status(&self) -> Result<NodeStatus, ClientError> {
        self.ask_for(Request::Status)
    }

    /// Asks what is attached to a network, or to all of the node.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn attachments(&self, network: Option<&str>) -> Result<Vec<Attachment>, ClientError> {
        let network = network.map(str::to_owned);
        self.ask_for(Request::Attachments { network })
    }

    /// Changes the limits of a pod, and returns what they are then. A direction
    /// without a change stays as it is.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn set_shaping(
        &self,
        id: AttachmentId,
        ingress: Option<LimitChange>,
        egress: Option<LimitChange>,
    ) -> Result<Shaping, ClientError> {
        self.ask_for(Request::SetShaping {
            id,
            ingress,
            egress,
        })
    }

    /// Sends a request whose answer has a type.
    fn ask_for<T: DeserializeOwned>(&self, request: Request) -> Result<T, ClientError> {
        let op = request.name();
        let value = self.ask(request)?;
        serde_json::from_value(value).map_err(|error| self.broken(op, error.into()))
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// The daemon cannot be reached, does not answer in time, or refuses.
    pub fn ask(&self, request: Request) -> Result<serde_json::Value, ClientError> {
        let op = request.name();
        let mut stream = reach(&self.socket, TIMEOUT).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => self.broken(op, in_words(cause)),
            _ => ClientError::Down {
                socket: self.socket.clone(),
                cause,
            },
        })?;
        let envelope = Envelope {
            protocol: ProtocolRange::OURS,
            requires: request.requires(),
            request,
        };
        let answer = exchange(&mut stream, &envelope).map_err(|cause| self.broken(op, cause))?;
        match answer {
            Response::Ok(value) => Ok(value),
            Response::Error(refusal) => Err(refusal.into()),
        }
    }

    fn broken(&self, op: &'static str, cause: io::Error) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            op,
            cause,
        }
    }
}

/// Connects, and neither that nor a write takes longer than `patience`:
/// `UnixStream::connect` waits for ever where a stopped daemon's queue is full.
fn reach(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let patience = TimeVal::new(patience.as_secs().try_into().unwrap_or(i64::MAX), 0);
    setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

fn exchange(stream: &mut UnixStream, envelope: &Envelope) -> io::Result<Response> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&serde_json::to_vec(envelope)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    let most = MAX_MESSAGE_BYTES as u64;
    stream
        .take(most)
        .read_to_end(&mut answer)
        .map_err(in_words)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the connection was closed without an answer",
        ));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// A timeout comes as EAGAIN, "Resource temporarily unavailable".
fn in_words(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::WouldBlock {
        return error;
    }
    let seconds = TIMEOUT.as_secs();
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {seconds} s; is sluiced stopped, or does it hang? see its log"),
    )
}

impl Request {
    fn name(&self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Check { .. } => "check",
            Self::Status => "status",
            Self::Attachments { .. } => "attachments",
            Self::ShowPorts => "show-ports",
            Self::ShowStats => "show-stats",
            Self::ShowKernel => "show-kernel",
            Self::ShowSessions { .. } => "show-sessions",
            Self::ShowHostPorts => "show-host-ports",
            Self::SetShaping { .. } => "set-shaping",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;
    use nix::sys::socket::{Backlog, bind, listen};
    use std::os::unix::net::UnixListener;

    fn served_by(answer: &'static [u8]) -> Result<serde_json::Value, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            request
        });
        let answer = Client::new(&path).ask(Request::ShowStats);
        assert!(server.join().unwrap().contains("show-stats"));
        answer
    }

    #[test]
    fn an_answer_comes_back() {
        let value = served_by(br#"{"ok": {"a": 1}}"#).unwrap();
        assert_eq!(value["a"], 1);
    }

    #[test]
    fn a_refusal_comes_back_as_one() {
        let error = served_by(br#"{"error": {"code": "busy", "message": "later"}}"#).unwrap_err();
        assert!(matches!(error, ClientError::Refused(r) if r.code == ErrorCode::Busy));
    }

    #[test]
    fn silence_and_nonsense_are_broken_connections() {
        for answer in [&b""[..], b"{", b"[]"] {
            let error = served_by(answer).unwrap_err();
            assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        }
    }

    /// Where a stopped daemon accepts nobody.
    #[test]
    fn a_full_queue_is_not_waited_at_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let patience = Duration::from_secs(1);
        let _queued = reach(&path, patience).unwrap();
        let error = reach(&path, patience).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
        assert!(in_words(error).to_string().contains("is sluiced stopped"));
    }

    #[test]
    fn nobody_there_says_what_to_do() {
        let error = Client::new(Path::new("/nonexistent/s"))
            .ask(Request::Describe)
            .unwrap_err();
        assert!(error.to_string().contains("is sluiced running?"), "{error}");
    }
}
