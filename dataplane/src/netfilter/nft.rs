//! The nft program, run in the calling thread's namespace.

use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
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
    run(&["-f", "-"], transaction)
}

/// Asks the kernel whether it would carry out a transaction; changes nothing.
///
/// # Errors
/// It would not.
pub(super) fn try_out(transaction: &str) -> Result<(), NetfilterError> {
    run(&["-c", "-f", "-"], transaction).map(drop)
}

fn run(arguments: &[&str], transaction: &str) -> Result<Port, NetfilterError> {
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
    let port = child.id();
    // Dropped at once, which closes the pipe: nft reads to the end of file. If
    // nft died before, its status and stderr say more than our EPIPE.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(transaction.as_bytes());
    }
    wait(&mut child).map_err(NetfilterError::Run)?;
    let output = child.wait_with_output().map_err(NetfilterError::Run)?;
    if output.status.success() {
        return Ok(port);
    }
    Err(NetfilterError::Refused {
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Waits for nft's end, but not for good: the control thread waits with it.
/// What nft says fits into a pipe.
fn wait(child: &mut Child) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > give_up {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
