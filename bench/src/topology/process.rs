//! A daemon as a child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Space, TopologyError, interrupt};

/// How long a daemon may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon, ended when dropped.
#[derive(Debug)]
pub(super) struct Process {
    what: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in `space`, in a process group of its own: Ctrl-C is
    /// for us to act on. `log` takes what it says. It ends with the calling
    /// thread at the latest.
    pub(super) fn start(
        what: &'static str,
        space: &Space,
        words: &[&str],
        log: &Path,
    ) -> Result<Self, TopologyError> {
        use std::os::unix::process::CommandExt;
        let refused = |error| TopologyError::refused("start", what, error);
        let file = File::create(log).map_err(refused)?;
        let child = space
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(interrupt::UNBLOCKED)
            .args(words)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(refused)?)
            .stderr(file)
            .spawn()
            .map_err(refused)?;
        Ok(Self {
            what,
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `is_ready`.
    pub(super) fn wait_until(
        &mut self,
        mut is_ready: impl FnMut() -> bool,
    ) -> Result<(), TopologyError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            interrupt::check()?;
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("it ended: {status}")));
            }
            if is_ready() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.failed(format!("no answer in {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn failed(&self, cause: String) -> TopologyError {
        TopologyError::Start {
            what: self.what,
            cause,
            log: fs::read_to_string(&self.log).unwrap_or_default(),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Signals it, if it still runs.
    pub(super) fn signal(&self, signal: Signal) {
        // Not waited for yet, so the ID is still its own.
        let pid = self.child.id().cast_signed();
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("{} did not end in {PATIENCE:?}: killed", self.what);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
