//! SIGTERM and SIGINT as something to wait for, in place of a handler.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that ask for a clean exit.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks them in this thread and in those it starts: to be called before
    /// any other thread runs, since the kernel picks one that does not block.
    pub(crate) fn block() -> io::Result<Self> {
        let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&signals, flags)?))
    }

    /// The number of a signal that has come.
    pub(crate) fn pending(&self) -> io::Result<Option<u32>> {
        Ok(self.0.read_signal()?.map(|signal| signal.ssi_signo))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
