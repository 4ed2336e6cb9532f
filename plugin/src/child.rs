//! Running another program for as long as we have patience.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// What became of a program.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It ended by itself. Its stderr was ours.
    Ended(Output),
    /// It did not, and was killed with all that it had started.
    Killed,
}

/// Runs a program with `input` on its stdin.
///
/// # Errors
/// The kernel's reason why it cannot be run.
pub(crate) fn run(
    command: &mut Command,
    input: Vec<u8>,
    patience: Duration,
) -> io::Result<Outcome> {
    let give_up = Instant::now() + patience;
    // A process group of its own: shell scripts and the like start others,
    // which must not outlive them.
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()?;
    let (said, answer) = mpsc::channel();
    // Threads that nobody waits for: a program may end without reading, answer
    // before it has read everything, or leave its end of a pipe to others.
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why in its answer.
        thread::spawn(move || stdin.write_all(&input));
    }
    if let Some(mut stdout) = child.stdout.take() {
        thread::spawn(move || {
            let mut text = Vec::new();
            said.send(stdout.read_to_end(&mut text).map(|_| text))
        });
    }
    let answer = match answer.recv_timeout(patience) {
        Ok(answer) => Some(answer?),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
    };
    match (answer, wait_until(&mut child, give_up)?) {
        (Some(stdout), Some(status)) => Ok(Outcome::Ended(Output {
            status,
            stdout,
            stderr: Vec::new(),
        })),
        _ => {
            kill(&mut child)?;
            Ok(Outcome::Killed)
        }
    }
}

/// How the child ended; `None` if it still runs. It closes its stdout by
/// ending, so there is next to nothing to wait for.
fn wait_until(child: &mut Child, give_up: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= give_up {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills the child's group and takes its exit status, so that no zombie stays.
fn kill(child: &mut Child) -> io::Result<()> {
    if let Ok(group) = i32::try_from(child.id()) {
        // There may be nobody left in it.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    child.wait().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    const LONG: Duration = Duration::from_secs(30);

    fn sh(script: &str, patience: Duration) -> Outcome {
        let input = vec![b'x'; 1 << 20];
        run(
            Command::new("/bin/sh").args(["-c", script]),
            input,
            patience,
        )
        .unwrap()
    }

    #[test]
    fn an_answer_is_taken_whatever_was_read() {
        for (script, code) in [
            ("echo hello", 0),
            ("cat > /dev/null; echo hello; exit 3", 3),
        ] {
            let Outcome::Ended(output) = sh(script, LONG) else {
                panic!("{script} was killed");
            };
            assert_eq!(output.stdout, b"hello\n");
            assert_eq!(output.status.code(), Some(code));
        }
    }

    /// Also one that says something first, or closes its stdout.
    #[test]
    fn what_never_ends_is_killed_with_its_children() {
        for last in ["wait", "echo hello; wait", "exec >&-; wait"] {
            let folder = tempfile::tempdir().unwrap();
            let pids = folder.path().join("pids");
            let script = format!(
                "sleep 1000 > /dev/null & echo $! $$ > {0}.new; mv {0}.new {0}; {last}",
                pids.display()
            );
            let outcome = sh(&script, Duration::from_secs(1));
            assert!(matches!(outcome, Outcome::Killed), "{last}: {outcome:?}");
            let pids = fs::read_to_string(&pids).unwrap();
            for pid in pids.split_whitespace() {
                let give_up = Instant::now() + LONG;
                while is_running(pid) {
                    assert!(Instant::now() < give_up, "{last}: {pid} still runs");
                    thread::sleep(Duration::from_millis(1));
                }
            }
            let child = pids.split_whitespace().last().unwrap();
            assert!(!Path::new("/proc").join(child).exists(), "a zombie is left");
        }
    }

    /// A killed grandchild is its new parent's to bury.
    fn is_running(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }
}
