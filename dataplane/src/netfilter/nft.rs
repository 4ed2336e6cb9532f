//! The nft program, run in the calling thread's namespace.

use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::NetfilterError;

/// How long nft may take; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The netlink port of a run: nft's process, in this process ID namespace.
pub(super) type Port = u32;

/// Carries out a transaction. Answers the netlink port that it came from.
///
/// # Errors
/// nft failed; then nothing has changed.
pub(super) fn apply(transaction: &str) -> Result<Port, NetfilterError> {
    Nft::start()?.apply(transaction)
}

/// Asks the kernel whether it would carry out a transaction; changes nothing.
///
/// # Errors
/// It would not.
pub(super) fn try_out(transaction: &str) -> Result<(), NetfilterError> {
    Nft::run(&["-c", "-f", "-"])?.apply(transaction).map(drop)
}

/// An nft that waits for a transaction; dropped without one, it changes nothing.
/// It takes as long to start as to do its work.
#[derive(Debug)]
pub struct Nft {
    child: Child,
    /// Closed, it reads to the end of file.
    stdin: Option<ChildStdin>,
}

impl Nft {
    /// Starts one.
    ///
    /// # Errors
    /// There is no nft, or the kernel gives no process.
    pub fn start() -> Result<Self, NetfilterError> {
        Self::run(&["-f", "-"])
    }

    fn run(arguments: &[&str]) -> Result<Self, NetfilterError> {
        let mut child = Command::new("nft")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|cause| match cause.kind() {
                io::ErrorKind::NotFound => NetfilterError::Missing(cause),
                _ => NetfilterError::Run(cause),
            })?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin })
    }

    /// Has it carry out a transaction.
    pub(super) fn apply(mut self, transaction: &str) -> Result<Port, NetfilterError> {
        // If nft died before, its status and stderr say more than our EPIPE.
        if let Some(mut stdin) = self.stdin.take() {
            let _ = stdin.write_all(transaction.as_bytes());
        }
        let status = wait(&mut self.child).map_err(NetfilterError::Run)?;
        if status.success() {
            return Ok(self.child.id());
        }
        let mut stderr = String::new();
        if let Some(mut said) = self.child.stderr.take() {
            said.read_to_string(&mut stderr)
                .map_err(NetfilterError::Run)?;
        }
        Err(NetfilterError::Refused {
            status,
            stderr: stderr.trim().to_owned(),
        })
    }
}

impl Drop for Nft {
    fn drop(&mut self) {
        self.stdin = None;
        // It has nothing to do, or has done it.
        let _ = wait(&mut self.child);
    }
}

/// Waits for nft's end, but not for good: the control thread waits with it.
/// What nft says fits into a pipe.
fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > give_up {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_micros(200));
    }
}
