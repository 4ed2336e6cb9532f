//! The real daemon as a child process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sluice_control::{Client, NodeFacts};

use super::{Holdings, Space, wait_until};

/// The daemon, which cargo builds beside the plugin.
pub(crate) fn executable() -> PathBuf {
    let plugin = Path::new(env!("CARGO_BIN_EXE_sluice"));
    let path = plugin.with_file_name("sluiced");
    assert!(
        path.is_file(),
        "{} is missing; build it first: cargo build",
        path.display()
    );
    path
}

/// A running `sluiced run`, killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a daemon in `space` without these features, beside those that the suite
    /// is to do without, and waits until it answers.
    pub(crate) fn start(
        space: &Space,
        conflist: &Path,
        client: &Client,
        without: &[&str],
    ) -> (Self, NodeFacts) {
        let log = conflist.with_extension("log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = space.command(executable().to_str().unwrap());
        command.args(["run", "--conflist"]).arg(conflist);
        let of_suite = std::env::var("SLUICE_TEST_WITHOUT").ok();
        for features in of_suite.as_deref().iter().chain(without) {
            command.arg("--without").arg(features);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut daemon = Self { child, log };
        let facts = wait_until("the daemon answers", || {
            let status = daemon.child.try_wait().unwrap();
            assert_eq!(status, None, "the daemon ended: {}", daemon.log());
            client.describe().ok()
        });
        (daemon, facts)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Signals it; after SIGSTOP it stands still when this returns.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        if signal == Signal::SIGSTOP {
            wait_until("the daemon's threads have stopped", || {
                self.has_stopped().then_some(())
            });
        }
    }

    fn has_stopped(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let statuses = tasks.map(|task| task.unwrap().path().join("status"));
        statuses
            .map(|status| fs::read_to_string(status).unwrap())
            .all(|status| status.contains("State:\tT"))
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it holds just now.
    pub(crate) fn holdings(&self) -> Holdings {
        Holdings::of(self.child.id())
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Ends it without a chance to do anything, and waits for its end.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as a service manager does, and waits for its end.
    pub(crate) fn stop(self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> ExitStatus {
        wait_until("the daemon ends", || self.child.try_wait().unwrap())
    }

    /// Asserts that nothing went wrong inside.
    #[track_caller]
    pub(crate) fn assert_calm(&self) {
        let log = self.log();
        for word in ["panicked", "ERROR"] {
            assert!(!log.contains(word), "{word} in the daemon's log: {log}");
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log: {}", self.log());
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
