//! Ctrl-C: what runs ends by itself, so that everything made goes.

use std::io;
use std::process::{Child, Command, ExitStatus, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use super::TopologyError;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a shell expects of a program that ended by SIGINT.
pub(crate) const EXIT_STATUS: u8 = 130;

/// From now on SIGINT, SIGTERM and SIGHUP end what runs at its next
/// [`check`]; a second one ends the process at once. Call it before any
/// thread is started: they inherit what is blocked.
///
/// # Errors
/// The kernel refuses to block the signals, or gives no thread.
pub(crate) fn watch() -> Result<(), TopologyError> {
    let refused = |cause| TopologyError::refused("watch for", "SIGINT", cause);
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals
        .thread_block()
        .map_err(|errno| refused(errno.into()))?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while signals.wait().is_ok() {
                if INTERRUPTED.swap(true, Ordering::Relaxed) {
                    exit(EXIT_STATUS.into());
                }
            }
        })
        .map_err(refused)?;
    Ok(())
}

/// Whether such a signal came.
pub(crate) fn is_set() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An error once such a signal came.
///
/// # Errors
/// [`TopologyError::Interrupted`].
pub(crate) fn check() -> Result<(), TopologyError> {
    if is_set() {
        return Err(TopologyError::Interrupted);
    }
    Ok(())
}

/// Words before a command of our own: what we have blocked to watch for it
/// would be blocked for it, too.
pub(super) const UNBLOCKED: [&str; 2] = ["env", "--default-signal=INT,TERM,HUP"];

/// A program that is signalled as it would be without us.
pub(crate) fn command(program: &str) -> Command {
    let [env, option] = UNBLOCKED;
    let mut command = Command::new(env);
    command.args([option, program]);
    command
}

/// Waits for a child, which is asked to end once such a signal came.
///
/// # Errors
/// The kernel's.
pub(crate) fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    let mut was_asked = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if is_set() && !was_asked {
            // Not waited for yet, so the ID is still its own.
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
            was_asked = true;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
