//! One control connection: reads a request to its end, answers, closes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use sluice_control::{ErrorCode, Refusal, Response};

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
    /// Reading the request; what has come so far.
    Asking(Vec<u8>),
    /// Writing the answer, this many bytes are out.
    Answering { answer: Vec<u8>, written: usize },
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
            state: State::Asking(Vec::new()),
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
            let response = match read_to_end(&mut self.stream, request)? {
                Reading::Unfinished => return Ok(Progress::Waiting),
                Reading::Finished => serve(request),
                Reading::TooLong => Response::Error(Refusal::new(
                    ErrorCode::Invalid,
                    format!("read a request: it is longer than {MAX_REQUEST_BYTES} bytes"),
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

fn read_to_end(stream: &mut UnixStream, request: &mut Vec<u8>) -> io::Result<Reading> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(Reading::Finished),
            Ok(bytes) => request.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Reading::Unfinished);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if request.len() > MAX_REQUEST_BYTES {
            return Ok(Reading::TooLong);
        }
    }
}
