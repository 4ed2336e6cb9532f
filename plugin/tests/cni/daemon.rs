//! A daemon that only takes notes.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use sluice_control::{
    Attachment, DataplaneSettings, Envelope, ErrorCode, NodeFacts, NodeStatus, Refusal, Request,
    Response,
};

use crate::space::Space;

pub(crate) const GATEWAY_MAC: [u8; 6] = [0x02, 0x53, 0x4c, 0x55, 0x49, 0x43];

/// Speaks the control protocol and remembers what it was told. At Attach it
/// brings the host's end up, as the real daemon does.
pub(crate) struct Daemon {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    host: String,
    facts: NodeFacts,
    attached: Vec<Attachment>,
    /// The refusal of every Attach, of every Detach, and of every Check.
    refuse_attach: Option<ErrorCode>,
    refuse_detach: Option<ErrorCode>,
    refuse_check: Option<ErrorCode>,
    /// Whether the connection breaks before Attach, though done, is answered.
    lose_attach: bool,
    /// The same for the next Detach.
    lose_detach: bool,
    stop: bool,
}

impl Daemon {
    pub(crate) fn start(socket: &Path, host: &Space) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let facts = NodeFacts {
            tcp_segmentation_offload: true,
            gateway_mac: GATEWAY_MAC,
            max_mtu: 65_000,
            uplink_mtu: 1500,
            checksum_offload: true,
            settings: DataplaneSettings {
                run_dir: socket.parent().unwrap().to_owned(),
                ..DataplaneSettings::default()
            },
            bandwidth: None,
        };
        let state = Arc::new(Mutex::new(State {
            host: host.path(),
            facts,
            attached: vec![],
            refuse_attach: None,
            refuse_detach: None,
            refuse_check: None,
            lose_attach: false,
            lose_detach: false,
            stop: false,
        }));
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut state = shared.lock().unwrap();
                if state.stop {
                    return;
                }
                state.serve(stream.unwrap());
            }
        });
        Self {
            socket: socket.to_owned(),
            state,
            thread: Some(thread),
        }
    }

    pub(crate) fn attached(&self) -> Vec<Attachment> {
        self.state.lock().unwrap().attached.clone()
    }

    /// Changes what the daemon believes is attached.
    pub(crate) fn change_attached(&self, change: impl FnOnce(&mut Vec<Attachment>)) {
        change(&mut self.state.lock().unwrap().attached);
    }

    pub(crate) fn refuse_attach(&self, code: Option<ErrorCode>) {
        self.state.lock().unwrap().refuse_attach = code;
    }

    pub(crate) fn refuse_detach(&self, code: Option<ErrorCode>) {
        self.state.lock().unwrap().refuse_detach = code;
    }

    pub(crate) fn refuse_check(&self, code: Option<ErrorCode>) {
        self.state.lock().unwrap().refuse_check = code;
    }

    pub(crate) fn lose_attach(&self) {
        self.state.lock().unwrap().lose_attach = true;
    }

    pub(crate) fn lose_one_detach(&self) {
        self.state.lock().unwrap().lose_detach = true;
    }

    pub(crate) fn change_facts(&self, change: impl FnOnce(&mut NodeFacts)) {
        change(&mut self.state.lock().unwrap().facts);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.state.lock().unwrap().stop = true;
        // Wakes the thread from its accept.
        drop(UnixStream::connect(&self.socket));
        self.thread.take().map(JoinHandle::join);
        fs::remove_file(&self.socket).unwrap();
    }
}

impl State {
    fn serve(&mut self, mut stream: UnixStream) {
        let mut request = vec![];
        stream.read_to_end(&mut request).unwrap();
        let envelope: Envelope = serde_json::from_slice(&request).unwrap();
        let lost = match envelope.request {
            Request::Attach { .. } => self.lose_attach,
            Request::Detach { .. } => std::mem::take(&mut self.lose_detach),
            _ => false,
        };
        let answer = self.answer(envelope.request);
        if !lost {
            let answer = serde_json::to_vec(&answer).unwrap();
            stream.write_all(&answer).unwrap();
        }
    }

    fn is_full(&self) -> bool {
        self.attached.len() >= usize::from(self.facts.settings.max_ports)
    }

    fn answer(&mut self, request: Request) -> Response {
        let refused = match request {
            Request::Attach { .. } if self.is_full() => Some(ErrorCode::Exhausted),
            Request::Attach { .. } => self.refuse_attach,
            Request::Detach { .. } => self.refuse_detach,
            Request::Check { .. } => self.refuse_check,
            _ => None,
        };
        if let Some(code) = refused {
            return Response::Error(Refusal::new(code, "the daemon refused"));
        }
        match request {
            Request::Describe => Response::Ok(serde_json::to_value(&self.facts).unwrap()),
            Request::Attach { attachment, .. } => {
                let up = ["ip", "link", "set", &attachment.host_ifname, "up"];
                let net = format!("--net={}", self.host);
                let status = Command::new("nsenter").arg(net).args(up).status().unwrap();
                assert!(status.success(), "the host's end must exist at Attach");
                self.attached.push(attachment);
                Response::Ok(Value::Null)
            }
            Request::Detach { id } => {
                self.attached.retain(|attachment| attachment.id != id);
                Response::Ok(Value::Null)
            }
            Request::Check { .. } => Response::Ok(Value::Null),
            Request::Status => {
                let status = NodeStatus {
                    attached: self.attached.len(),
                    max_ports: self.facts.settings.max_ports,
                };
                Response::Ok(serde_json::to_value(status).unwrap())
            }
            Request::Attachments { network } => {
                let mut listed = self.attached.clone();
                listed.retain(|a| network.as_ref().is_none_or(|name| a.id.network == *name));
                Response::Ok(serde_json::to_value(listed).unwrap())
            }
            other => panic!("the plugin asked {other:?}"),
        }
    }
}
