//! Nodes with pods: a folder for the one, veths for the others.

use std::path::PathBuf;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use sluice_control::{
    Attachment, AttachmentId, DataplaneSettings, ErrorCode, PodAddress, PortMapping, Protocol,
    Refusal, Request, Response, Shaping,
};
use sluice_dataplane::host_port::GATEWAY_MAC;
use sluice_dataplane::node::Node;
use sluice_dataplane::remains;
use sluice_link::{Netlink, VethPair, VethPeer};
use tempfile::TempDir;

pub(crate) const MAX_PORTS: u16 = 2;

/// A folder for a node.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn settings(&self) -> DataplaneSettings {
        DataplaneSettings {
            run_dir: self.0.path().join("run"),
            max_ports: MAX_PORTS,
            ..DataplaneSettings::default()
        }
    }

    pub(crate) fn start(&self) -> Node {
        Node::start(self.settings(), &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Names in the journal.
    pub(crate) fn journal(&self) -> Vec<String> {
        let entries = self.settings().journal().read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// An interface's file in the journal.
    pub(crate) fn file(&self, interface: &str) -> PathBuf {
        self.settings().journal().join(format!("{interface}.json"))
    }

    /// The same, set aside.
    pub(crate) fn aside(&self, interface: &str) -> PathBuf {
        self.settings()
            .journal()
            .join(format!("{interface}.json.bad"))
    }

    pub(crate) fn pin(&self, interface: &str) -> PathBuf {
        self.settings().bpffs().join("links").join(interface)
    }

    /// What `sluiced reset` does.
    pub(crate) fn reset(&self) {
        let failures = remains::remove(&self.settings());
        let failures = failures.unwrap_or_else(|error| panic!("{error}"));
        assert!(failures.is_empty(), "{failures:?}");
        assert!(!self.settings().run_dir.exists());
    }
}

impl Drop for Folder {
    /// A test that failed leaves its mount.
    fn drop(&mut self) {
        let _ = umount2(&self.settings().bpffs(), MntFlags::MNT_DETACH);
    }
}

/// Pod `number` of a network, its veth not made yet.
pub(crate) fn pod(number: u8) -> Attachment {
    let (v4, v6) = (
        format!("10.77.0.{number}/24"),
        format!("fd00:77::{number}/64"),
    );
    pod_with(number, &[&v4, &v6])
}

/// The same with these addresses.
pub(crate) fn pod_with(number: u8, addresses: &[&str]) -> Attachment {
    let address = |text: &&str| PodAddress {
        address: text.parse().unwrap(),
        gateway: match text.contains(':') {
            true => "fe80::1".parse().unwrap(),
            false => "10.77.0.1".parse().unwrap(),
        },
    };
    Attachment {
        id: AttachmentId {
            network: "pods".into(),
            container_id: format!("c{number}"),
            ifname: "eth0".into(),
        },
        host_ifname: format!("slv{number}"),
        pod_mac: [2, 0, 0, 0, 0, number],
        addresses: addresses.iter().map(address).collect(),
        mtu: 65_000,
        ip_masq: true,
        pod: None,
        mappings: Vec::new(),
        snat: true,
        masq_all: false,
        uplink_mtu: None,
        shaping: Shaping::default(),
        reshaped: false,
        gro: true,
    }
}

/// A port of the node that leads to port 80 of a pod, by TCP.
pub(crate) fn mapping(host_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping {
        host_port,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
    }
}

pub(crate) fn make_veth(attachment: &Attachment) {
    let pair = VethPair {
        name: attachment.host_ifname.clone(),
        mac: Some(GATEWAY_MAC),
        mtu: attachment.mtu,
        peer: VethPeer {
            name: format!("{}-pod", attachment.host_ifname),
            mac: Some(attachment.pod_mac),
            mtu: attachment.mtu,
            netns: None,
        },
    };
    Netlink::new().unwrap().create_veth(&pair).unwrap();
}

pub(crate) fn delete_veth(attachment: &Attachment) {
    let deleted = Netlink::new().unwrap().delete_link(&attachment.host_ifname);
    assert!(deleted.unwrap(), "{} was there", attachment.host_ifname);
}

pub(crate) fn attach(node: &mut Node, attachment: &Attachment) -> Result<(), Refusal> {
    let attachment = attachment.clone();
    match node.handle(Request::Attach {
        attachment,
        netns: None,
    }) {
        Response::Ok(_) => Ok(()),
        Response::Error(refusal) => Err(refusal),
    }
}

pub(crate) fn detach(node: &mut Node, attachment: &Attachment) {
    let id = attachment.id.clone();
    let response = node.handle(Request::Detach { id });
    assert_eq!(response, Response::Ok(Value::Null));
}

pub(crate) fn refused(node: &mut Node, attachment: &Attachment, code: ErrorCode, why: &str) {
    let refusal = attach(node, attachment).expect_err(why);
    assert_eq!(refusal.code, code, "{refusal}");
    let message = refusal.to_string();
    assert!(message.contains(why), "{message:?} lacks {why:?}");
    assert!(message.contains(&attachment.id.to_string()), "{message}");
}

pub(crate) fn ask(node: &mut Node, request: Request) -> Value {
    match node.handle(request) {
        Response::Ok(value) => value,
        Response::Error(refusal) => panic!("{refusal}"),
    }
}
