//! Ctrl-C: what runs ends by itself, so that everything made goes.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

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
