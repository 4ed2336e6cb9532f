//! Network namespaces, and what can be done inside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use sluice_link::Netns;

use super::TopologyError;

/// Where `ip netns` keeps namespaces.
pub(super) const FOLDER: &str = "/run/netns";

/// A named network namespace, deleted when dropped.
#[derive(Debug)]
pub(crate) struct Space {
    name: String,
    netns: Netns,
}

impl Space {
    /// Makes a namespace, with the loopback interface up.
    ///
    /// # Errors
    /// The namespace exists, or this may not be done.
    pub(crate) fn new(name: String) -> Result<Self, TopologyError> {
        run(Command::new("ip").args(["netns", "add", &name]), "the host")?;
        let netns = Netns::open(&path(&name)).inspect_err(|_| delete(&name))?;
        let space = Self { name, netns };
        space.exec("ip link set lo up")?;
        Ok(space)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// A command inside. Not by `ip netns exec`: that makes a mount namespace
    /// too, and hides what is mounted in it.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg(program.as_ref());
        command
    }

    /// Runs a command, given as words, and returns what it printed.
    ///
    /// # Errors
    /// It could not be run, or failed.
    pub(crate) fn exec(&self, words: &str) -> Result<String, TopologyError> {
        let mut words = words.split_whitespace();
        let mut command = self.command(words.next().unwrap_or_default());
        run(command.args(words), &self.name)
    }

    /// Runs `job` on a thread inside: sockets it opens stay in this namespace.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub(crate) fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, TopologyError> {
        Ok(self.netns.run(job)?)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// What `ip netns del` does, without a process: there are hundreds.
pub(super) fn delete(name: &str) {
    let path = path(name);
    // A name that is no mount any more is a file to be removed.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_file(&path) {
        eprintln!("could not delete the namespace {name}: {error}");
    }
}

/// Runs a command to its end, and returns what it printed.
pub(super) fn run(command: &mut Command, space: &str) -> Result<String, TopologyError> {
    let output = command.stdin(Stdio::null()).output();
    let failed = |said: String| {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        TopologyError::Command {
            words: words.join(" "),
            space: space.to_owned(),
            said,
        }
    };
    let output = output.map_err(|error| failed(error.to_string()))?;
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    match output.status.success() {
        true => Ok(stdout),
        false => Err(failed(format!("{}; {stdout}{stderr}", output.status))),
    }
}
