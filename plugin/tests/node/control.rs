//! The control socket under clients that mean no good.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::flows::{Echo, Flow, ping};
use crate::harness::{Node, Options, PATIENCE, Snapshot, executable, wait_until};

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The answer to a whole request.
fn ask(node: &Node, request: &[u8]) -> Value {
    let mut stream = connect(node);
    // A daemon that has heard far too much closes before we have said everything.
    let _ = stream
        .write_all(request)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    serde_json::from_slice(&answer).unwrap_or(Value::Null)
}

/// `sluiced show ports` as a user who is nobody, who can run this copy of it.
fn show_as_nobody(node: &Node, executable: &Path) -> Output {
    const NOBODY: u32 = 65_534;
    Command::new(executable)
        .args(["show", "ports", "--run-dir"])
        .arg(node.run_dir())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Three doors, each shut by itself: the folder's mode, the socket's mode, the
/// daemon's look at who it is.
#[test]
fn another_user_is_kept_out() {
    let node = Node::start(&Options::default());
    let public = tempfile::Builder::new()
        .prefix("sluice-")
        .tempdir_in("/run")
        .unwrap();
    set_mode(public.path(), 0o755);
    let copy = public.path().join("sluiced");
    fs::copy(executable(), &copy).unwrap();
    let refused = |why: &str| {
        let output = show_as_nobody(&node, &copy);
        assert!(!output.status.success(), "{output:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(why), "{message:?} lacks {why:?}");
    };
    set_mode(node.dir(), 0o755);
    refused("Permission denied");
    set_mode(&node.run_dir(), 0o755);
    refused("Permission denied");
    set_mode(&node.socket(), 0o666);
    // The daemon hangs up on him.
    refused("to show-ports");
    assert!(
        node.log()
            .contains("refused a control client that is not root")
    );
    node.add("a").del();
    node.finish();
}

#[test]
fn only_the_owner_may_use_the_socket() {
    let node = Node::start(&Options::default());
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(node.socket()), 0o600);
    assert_eq!(mode(node.run_dir()), 0o700);
    node.finish();
}

#[test]
fn nonsense_is_refused_in_words() {
    let node = Node::start(&Options::default());
    for (request, code) in [
        (&b""[..], "invalid"),
        (b"\x00\xff\xfe", "invalid"),
        (b"GET / HTTP/1.1\r\n\r\n", "invalid"),
        (
            br#"{"protocol": {"min": 1, "max": 1}, "op": "explode"}"#,
            "invalid",
        ),
        (
            br#"{"protocol": {"min": 7, "max": 9}, "op": "describe"}"#,
            "unsupported",
        ),
        (
            br#"{"protocol": {"min": 1, "max": 1}, "requires": ["x"], "op": "describe"}"#,
            "unsupported",
        ),
        (&[b'['; 65_536], "invalid"),
        (&[b' '; (1 << 20) + 1], "invalid"),
    ] {
        let answer = ask(&node, request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
        assert_eq!(answer["error"]["code"], code, "{shown}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }
    // Far too much: an error or a closed door, but no daemon that eats it all.
    ask(&node, &vec![b' '; 16 << 20]);
    assert!(node.client.describe().is_ok());
    node.finish();
}

/// Sends a byte to each, again and again, until `stop` is set.
fn dribble(mut clients: Vec<UnixStream>, stop: &AtomicBool) {
    let request = br#"{"protocol": {"min": 1, "max": 1}, "op": "describe"}"#;
    for byte in request.iter().cycle() {
        for client in &mut clients {
            // The daemon hangs up on the slow.
            let _ = client.write_all(&[*byte]);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn a_thousand_hostile_clients_do_not_stop_an_add() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echo = Echo::udp(&b, b.v4());
    let flow = Flow::udp(&a, echo.address);
    // More than it serves at a time.
    let mut idle: Vec<_> = (0..400).map(|_| connect(&node)).collect();
    for (number, stream) in idle.iter_mut().enumerate() {
        // The daemon has hung up on the first of them.
        let _ = stream.write_all(&br#"{"protocol": {"min": 1"#[..number % 20]);
    }
    // Asked much, and never reads the answers.
    let deaf: Vec<_> = (0..300).map(|_| connect(&node)).collect();
    for mut stream in &deaf {
        let _ = stream
            .write_all(br#"{"protocol": {"min": 1, "max": 1}, "op": "show-ports"}"#)
            .and_then(|()| stream.shutdown(Shutdown::Write));
    }
    let slow: Vec<_> = (0..300).map(|_| connect(&node)).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| dribble(slow, &stop));
        let served = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..3 {
                let c = node.add("c");
                ping(&a, c.v4());
                assert_eq!(node.ports().len(), 4);
                c.del();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        served.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert_eq!(node.ports().len(), 3);
    drop((idle, deaf));
    assert!(flow.stop() > 10, "traffic alongside");
    node.finish();
}

fn descriptors(node: &Node) -> usize {
    let folder = format!("/proc/{}/fd", node.pid());
    fs::read_dir(folder).unwrap().count()
}

/// Sets the soft limit of the running daemon, and answers what it was.
fn limit_descriptors(node: &Node, soft: usize) -> usize {
    let pid = node.pid();
    let command = |words: &str| node.space().exec(words);
    let was = command(&format!(
        "prlimit --pid {pid} --nofile --noheadings --output SOFT"
    ));
    command(&format!("prlimit --pid {pid} --nofile={soft}:"));
    was.trim().parse().unwrap()
}

/// As a leak somewhere in the daemon would end.
#[test]
fn without_descriptors_an_add_says_so_and_the_daemon_lives() {
    let node = Node::start(&Options::default());
    let a = node.add("a");
    let before = Snapshot::take(&node);
    // One for a client, none for a pod's socket.
    let limit = limit_descriptors(&node, descriptors(&node) + 1);
    let clients: Vec<_> = (0..50).map(|_| connect(&node)).collect();
    let space = node.site.space("b");
    node.try_add(&node.pods(), &space, "b")
        .fails(101, &["attach", "Too many open files"]);
    before.assert_unchanged(&node);
    drop((clients, space));
    limit_descriptors(&node, limit);
    ping(&a, node.add("b").v4());
    node.finish();
}

/// The soft limit is raised as far as the ports need; if it cannot be, the
/// daemon does not start.
#[test]
fn descriptors_are_reserved_at_the_start() {
    let mut node = Node::start(&Options::default());
    assert!(node.stop().success());
    let run_with = |limits: &str| {
        let mut command = node.space().command("prlimit");
        command.arg(format!("--nofile={limits}"));
        command.arg(executable());
        command.args(["run", "--conflist"]).arg(node.conflist());
        command.stderr(Stdio::null());
        command
    };
    let mut daemon = run_with("100:4000").spawn().unwrap();
    wait_until("the daemon answers", || node.client.describe().ok());
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let soft: usize = line
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    let pid = Pid::from_raw(daemon.id().try_into().unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    // Eight pods, the host port, and as many clients as it takes.
    assert!(soft >= 8 + 1 + 256, "{soft}");

    let refused = run_with("100:300").stderr(Stdio::piped()).output().unwrap();
    assert!(!refused.status.success());
    let message = String::from_utf8(refused.stderr).unwrap();
    for needle in [
        "maxPorts",
        "file descriptors",
        "limit is 300",
        "LimitNOFILE",
    ] {
        assert!(message.contains(needle), "{needle:?} is not in {message}");
    }
}
