//! One control connection: reads a request to its end, answers, closes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use sluice_control::{ErrorCode, MAX_MESSAGE_BYTES, Refusal, Response};

use super::MAX_REQUEST_BYTES;

/// A client, somewhere between its first byte and our last.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    state: State,
    deadline: Instant,
}

#[derive(Debug)]
enum State {
    /// Reading the request.
    Asking(Incoming),
    /// Writing the answer, this many bytes are out.
    Answering { answer: Vec<u8>, written: usize },
}

/// A request, as far as it has come.
#[derive(Debug, Default)]
struct Incoming {
    /// Nothing any more once it is too long.
    bytes: Vec<u8>,
    length: usize,
}

/// What became of an [`Connection::advance`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The client must do something first.
    Waiting,
    /// The answer is out.
    Done,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self {
            stream,
            state: State::Asking(Incoming::default()),
            deadline,
        }
    }

    /// When to give up on the client.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the request is not complete yet.
    pub(super) fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking(_))
    }

    /// Reads and writes as far as the client lets us, without waiting.
    pub(super) fn advance(
        &mut self,
        patience: Duration,
        serve: impl FnOnce(&[u8]) -> Response,
    ) -> io::Result<Progress> {
        if let State::Asking(request) = &mut self.state {
            let response = match request.read(&mut self.stream)? {
                Reading::Unfinished => return Ok(Progress::Waiting),
                Reading::Finished => serve(&request.bytes),
                Reading::TooLong => Response::Error(Refusal::new(
                    ErrorCode::Invalid,
                    format!(
                        "read a request: it is longer than {MAX_REQUEST_BYTES} bytes; \
                         has the pod more than 10,000 hostPorts?"
                    ),
                )),
            };
            self.state = State::Answering {
                answer: serde_json::to_vec(&response)?,
                written: 0,
            };
            self.deadline = Instant::now() + patience;
        }
        self.write()
    }

    fn write(&mut self) -> io::Result<Progress> {
        let State::Answering { answer, written } = &mut self.state else {
            return Ok(Progress::Waiting);
        };
        while *written < answer.len() {
            match self.stream.write(&answer[*written..]) {
                Ok(bytes) => *written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.stream.shutdown(Shutdown::Both)?;
        Ok(Progress::Done)
    }
}

enum Reading {
    Unfinished,
    Finished,
    TooLong,
}

impl Incoming {
    /// Goes on reading what is too long, for as long as a client of ours may
    /// send: closed earlier, the connection would break under the client, which
    /// would not hear why.
    fn read(&mut self, stream: &mut UnixStream) -> io::Result<Reading> {
        let mut buffer = [0; 4096];
        while self.length < MAX_MESSAGE_BYTES {
            match stream.read(&mut buffer) {
                Ok(0) if self.is_too_long() => break,
                Ok(0) => return Ok(Reading::Finished),
                Ok(bytes) => self.take_in(&buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Reading::Unfinished);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Reading::TooLong)
    }

    fn take_in(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        if self.is_too_long() {
            self.bytes = Vec::new();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    fn is_too_long(&self) -> bool {
        self.length > MAX_REQUEST_BYTES
    }
}
