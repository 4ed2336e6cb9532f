//! The control socket under clients that mean no good.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::harness::flows::{Echo, Flow, ping};
use crate::harness::{Node, Options, PATIENCE};

fn connect(node: &Node) -> UnixStream {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The answer to a whole request.
fn ask(node: &Node, request: &[u8]) -> Value {
    let mut stream = connect(node);
    // A daemon that has heard enough closes before we have said everything.
    let _ = stream
        .write_all(request)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    serde_json::from_slice(&answer).unwrap_or(Value::Null)
}

#[test]
fn only_the_owner_may_use_the_socket() {
    let node = Node::start(&Options::default());
    let mode = |path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
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
    ] {
        let answer = ask(&node, request);
        let shown = String::from_utf8_lossy(&request[..request.len().min(60)]);
        assert_eq!(answer["error"]["code"], code, "{shown}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }
    // Far too much: an error or a closed door, but no daemon that eats it all.
    ask(&node, &vec![b' '; 8 << 20]);
    assert!(node.client.describe().is_ok());
    node.finish();
}

#[test]
fn hostile_clients_do_not_stop_an_add() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echo = Echo::udp(&b, b.v4());
    let flow = Flow::udp(&a, echo.address);
    // More than it serves at a time.
    let mut idle: Vec<_> = (0..300).map(|_| connect(&node)).collect();
    for (number, stream) in idle.iter_mut().enumerate() {
        // The daemon has hung up on the first of them.
        let _ = stream.write_all(&br#"{"protocol": {"min": 1"#[..number % 20]);
    }
    // Asked much, and never reads the answers.
    let deaf: Vec<_> = (0..50).map(|_| connect(&node)).collect();
    for mut stream in &deaf {
        stream
            .write_all(br#"{"protocol": {"min": 1, "max": 1}, "op": "show-ports"}"#)
            .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let c = node.add("c");
    ping(&a, c.v4());
    c.del();
    assert_eq!(node.ports().len(), 3);
    drop((idle, deaf));
    assert!(flow.stop() > 10, "traffic alongside");
    node.finish();
}
