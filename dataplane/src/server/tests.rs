use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream as Stream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};
use sluice_control::MAX_MESSAGE_BYTES;

use super::*;

/// A server in a folder of its own, with a client's view of it.
struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("sluiced.sock")
    }

    /// Runs `clients` against a server that echoes requests, with this much
    /// patience.
    fn serve<T>(&self, patience: Duration, clients: impl FnOnce(&Self) -> T) -> T {
        let mut server = Server::bind(&self.path()).unwrap();
        server.patience = patience;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    server.turn(Duration::from_millis(10), echo).unwrap();
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| clients(self)));
            stop.store(true, Ordering::Relaxed);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn connect(&self) -> Stream {
        let stream = Stream::connect(self.path()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    fn ask(&self, request: &[u8]) -> Value {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        answer(stream)
    }

    fn ask_json(&self, request: &Value) -> Value {
        self.ask(request.to_string().as_bytes())
    }
}

/// Answers with the request, and with more than a socket holds to `show-ports`.
fn echo(request: Request) -> Response {
    match request {
        Request::ShowPorts => Response::Ok("x".repeat(1 << 20).into()),
        request => Response::Ok(serde_json::to_value(request).unwrap()),
    }
}

/// Null where there is none.
fn answer(mut stream: Stream) -> Value {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
}

fn describe() -> Value {
    json!({"protocol": {"min": 1, "max": 1}, "requires": [], "op": "describe"})
}

fn detach() -> Value {
    let id = json!({"network": "pods", "container_id": "c1", "ifname": "eth0"});
    json!({"protocol": {"min": 1, "max": 1}, "op": "detach", "id": id})
}

#[test]
fn a_request_gets_its_answer() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        assert_eq!(rig.ask_json(&describe()), json!({"ok": {"op": "describe"}}));
        assert_eq!(rig.ask_json(&detach())["ok"]["id"]["container_id"], "c1");
    });
}

#[test]
fn a_request_in_pieces_gets_its_answer() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let mut stream = rig.connect();
        for byte in describe().to_string().bytes() {
            stream.write_all(&[byte]).unwrap();
        }
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(answer(stream)["ok"]["op"], "describe");
    });
}

#[test]
fn nonsense_is_refused_and_says_why() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let half = &describe().to_string().into_bytes()[..20];
        let oversized = vec![b' '; MAX_REQUEST_BYTES + 1];
        let beside = |key: &str, value: &str| {
            let text = describe().to_string();
            format!("{},\"{key}\":{value}}}", &text[..text.len() - 1]).into_bytes()
        };
        let deep = beside("x", &("[".repeat(30_000) + &"]".repeat(30_000)));
        let huge = describe().to_string().replace("\"max\":1", "\"max\":1e999");
        let many = describe()
            .to_string()
            .replace("\"max\":1", "\"max\":4294967296");
        let twice = beside("op", "\"detach\"");
        for (request, why) in [
            (&b""[..], "EOF"),
            (b"\xff\xfe\x00", "expected value"),
            (b"[]", "read a request"),
            (b"{\"op\": \"describe\"}", "protocol"),
            (half, "EOF"),
            (&oversized, "longer than 1048576 bytes"),
            (&deep, "recursion limit"),
            (huge.as_bytes(), "out of range"),
            (many.as_bytes(), "4294967296"),
            (&twice, "duplicate field"),
        ] {
            let answer = rig.ask(request);
            assert_eq!(answer["error"]["code"], "invalid", "{answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(why), "{message:?} lacks {why:?}");
        }
    });
}

/// A pod with thousands of hostPorts, and what no pod needs.
#[test]
fn a_long_request_is_served_and_one_too_long_is_told_so() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let padded = |length: usize| {
            let mut request = describe().to_string().into_bytes();
            request.resize(length, b' ');
            rig.ask(&request)
        };
        assert_eq!(padded(MAX_REQUEST_BYTES)["ok"]["op"], "describe");
        for length in [MAX_REQUEST_BYTES + 1, MAX_MESSAGE_BYTES - 1] {
            let answer = padded(length);
            let message = answer["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains("hostPorts"), "{answer}");
        }
        // What is no client of ours is not listened to for ever.
        let mut endless = rig.connect();
        let sent = endless.write_all(&vec![b' '; 2 * MAX_MESSAGE_BYTES]);
        assert!(sent.is_err(), "{sent:?}");
    });
}

#[test]
fn an_unknown_operation_is_refused_by_name() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let mut request = describe();
        request["op"] = json!("dance");
        let answer = rig.ask_json(&request);
        assert_eq!(answer["error"]["code"], "invalid");
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("dance")
        );
    });
}

#[test]
fn another_protocol_version_is_refused_but_may_detach() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        for mut request in [describe(), detach()] {
            request["protocol"] = json!({"min": 7, "max": 9});
            request["requires"] = json!(["something-new"]);
            let answer = rig.ask_json(&request);
            if request["op"] == "detach" {
                assert_eq!(answer["ok"]["op"], "detach");
            } else {
                assert_eq!(answer["error"]["code"], "unsupported");
                let message = answer["error"]["message"].as_str().unwrap();
                assert!(message.contains("7 to 9"), "{message}");
            }
        }
    });
}

#[test]
fn an_unknown_feature_is_refused_by_name() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let mut request = describe();
        request["requires"] = json!(["policing"]);
        let answer = rig.ask_json(&request);
        assert_eq!(answer["error"]["code"], "unsupported");
        assert!(
            answer["error"]["message"]
                .as_str()
                .unwrap()
                .contains("policing")
        );
    });
}

#[test]
fn a_slow_client_is_dropped_and_stalls_nobody() {
    let rig = Rig::new();
    rig.serve(Duration::from_millis(200), |rig| {
        let mut slow = rig.connect();
        slow.write_all(b"{").unwrap();
        assert_eq!(rig.ask_json(&describe())["ok"]["op"], "describe");
        // Closed without an answer, and long before our own timeout.
        assert_eq!(answer(slow), Value::Null);
    });
}

#[test]
fn idle_connections_make_room_for_a_good_request() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let idle: Vec<Stream> = (0..MAX_CONNECTIONS + 44).map(|_| rig.connect()).collect();
        assert_eq!(rig.ask_json(&describe())["ok"]["op"], "describe");
        // The oldest had to go, the youngest is still served.
        let mut idle = idle.into_iter();
        assert_eq!(answer(idle.next().unwrap()), Value::Null);
        let mut youngest = idle.next_back().unwrap();
        youngest
            .write_all(describe().to_string().as_bytes())
            .unwrap();
        youngest.shutdown(Shutdown::Write).unwrap();
        assert_eq!(answer(youngest)["ok"]["op"], "describe");
    });
}

#[test]
fn clients_that_read_no_answer_make_room_too() {
    let rig = Rig::new();
    rig.serve(PATIENCE, |rig| {
        let mut request = describe();
        request["op"] = json!("show-ports");
        let deaf: Vec<Stream> = (0..MAX_CONNECTIONS + 44)
            .map(|_| {
                let mut stream = rig.connect();
                // The first of them are gone when the last come.
                let _ = stream.write_all(request.to_string().as_bytes());
                let _ = stream.shutdown(Shutdown::Write);
                stream
            })
            .collect();
        assert_eq!(rig.ask_json(&describe())["ok"]["op"], "describe");
        drop(deaf);
    });
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let rig = Rig::new();
    let server = Server::bind(&rig.path()).unwrap();
    let mode = fs::metadata(rig.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(server);
    assert!(!rig.path().exists());
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
    let rig = Rig::new();
    drop(std::os::unix::net::UnixListener::bind(rig.path()).unwrap());
    assert!(rig.path().exists());
    let server = Server::bind(&rig.path()).unwrap();
    let error = Server::bind(&rig.path()).unwrap_err();
    assert!(
        matches!(error, ServerError::Folder(FolderError::Running(_))),
        "{error}"
    );
    drop(server);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let rig = Rig::new();
    fs::write(rig.path(), "precious").unwrap();
    let error = Server::bind(&rig.path()).unwrap_err();
    assert!(matches!(error, ServerError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(rig.path()).unwrap(), "precious");
    fs::remove_file(rig.path()).unwrap();
    fs::create_dir(rig.path()).unwrap();
    assert!(matches!(
        Server::bind(&rig.path()),
        Err(ServerError::NotASocket(_))
    ));
}

/// Neither what it points to nor the link itself.
#[test]
fn a_link_to_another_socket_is_left_alone() {
    let (rig, other) = (Rig::new(), Rig::new());
    let listener = std::os::unix::net::UnixListener::bind(other.path()).unwrap();
    std::os::unix::fs::symlink(other.path(), rig.path()).unwrap();
    assert!(matches!(
        Server::bind(&rig.path()),
        Err(ServerError::NotASocket(_))
    ));
    assert!(other.path().exists() && rig.path().is_symlink());
    drop(listener);
}

#[test]
fn only_root_and_the_daemons_own_user_may_control_it() {
    assert!(may_control(0, 0));
    assert!(may_control(0, 1000));
    assert!(may_control(1000, 1000));
    assert!(!may_control(1001, 1000));
    assert!(!may_control(1000, 0));
}
