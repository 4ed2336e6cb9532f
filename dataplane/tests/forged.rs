//! Journal files that no daemon wrote: each costs its own pod at most. Needs
//! root.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use common::pods::{Folder, ask, attach, delete_veth, detach, make_veth, pod, refused};
use common::{TestNetns, wait_until};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use sluice_control::{Attachment, DataplaneSettings, ErrorCode, Request};
use sluice_dataplane::node::Node;

/// Puts something in the place of a file with this content.
type Spoil = fn(&Path, good: &str);

/// Makes a file say something else.
type Change = fn(&mut Attachment);

/// Runs `test` after a daemon that served pods 11 and 12, whose namespace has
/// an uplink.
fn after_a_daemon(test: impl FnOnce(&TestNetns, &Folder) + Send) {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    netns.ip("link add up0 type veth peer name far0");
    netns.ip("link set up0 up");
    netns.ip("address add 192.0.2.2/24 dev up0");
    let before = netns.state();
    netns.run(|| {
        let mut node = folder.start();
        for pod in [pod(11), pod(12)] {
            make_veth(&pod);
            attach(&mut node, &pod).unwrap();
        }
        drop(node);
        test(&netns, &folder);
        folder.reset();
    });
    assert_eq!(netns.state(), before);
}

fn is_up(netns: &TestNetns, interface: &str) -> bool {
    let link = &netns.ip_json(&format!("link show dev {interface}"))[0];
    link["flags"].as_array().unwrap().contains(&"UP".into())
}

fn has_program(netns: &TestNetns, interface: &str) -> bool {
    netns.ip_json(&format!("link show dev {interface}"))[0]["xdp"]["prog"].is_object()
}

/// Writes a journal file as a daemon does, whatever it says.
fn forge(folder: &Folder, interface: &str, attachment: &Attachment) {
    let text = serde_json::json!({"format": 1, "attachment": attachment}).to_string();
    fs::write(folder.file(interface), text).unwrap();
}

#[test]
fn a_file_that_says_nothing_costs_its_pod_alone() {
    let spoils: [(&str, Spoil); 8] = [
        ("empty", |path, _| fs::write(path, "").unwrap()),
        ("half", |path, good| {
            fs::write(path, &good[..good.len() / 2]).unwrap()
        }),
        ("newer", |path, good| {
            fs::write(path, good.replace("\"format\":1", "\"format\":2")).unwrap();
        }),
        ("another's", |path, good| {
            fs::write(path, good.replace("slv12", "slv11")).unwrap()
        }),
        ("huge", |path, _| {
            File::create(path).unwrap().set_len(1 << 30).unwrap()
        }),
        ("FIFO", |path, _| mkfifo(path, Mode::S_IRWXU).unwrap()),
        ("link", |path, _| {
            symlink(path.with_file_name("slv11.json"), path).unwrap()
        }),
        ("folder", |path, _| fs::create_dir(path).unwrap()),
    ];
    after_a_daemon(|netns, folder| {
        let (path, aside) = (folder.file("slv12"), folder.aside("slv12"));
        let good = fs::read_to_string(&path).unwrap();
        for (what, spoil) in spoils {
            fs::remove_file(&path).unwrap();
            spoil(&path, &good);
            for _ in 0..2 {
                let node = folder.start();
                assert_eq!(node.attached(), 1, "{what}");
                assert!(is_up(netns, "slv11") && !is_up(netns, "slv12"), "{what}");
                assert!(has_program(netns, "slv12"), "{what}");
                assert_eq!(folder.journal(), ["slv11.json", "slv12.json.bad"], "{what}");
                drop(node);
            }
            let removed = fs::remove_file(&aside).or_else(|_| fs::remove_dir(&aside));
            removed.unwrap();
            fs::write(&path, &good).unwrap();
            assert_eq!(folder.start().attached(), 2, "{what}");
            assert!(is_up(netns, "slv12"), "{what}");
        }
    });
}

#[test]
fn what_was_set_aside_goes_with_its_pod() {
    after_a_daemon(|_, folder| {
        let spoil = || {
            fs::write(folder.file("slv12"), "{").unwrap();
            folder.start()
        };
        let gone = |folder: &Folder| {
            assert_eq!(folder.journal(), ["slv11.json"]);
            assert!(!folder.pin("slv12").exists());
        };
        // While a daemon runs, as when the runtime's DEL deletes the interface,
        let mut node = spoil();
        assert!(folder.pin("slv12").exists());
        delete_veth(&pod(12));
        node.forget_all_gone().unwrap();
        gone(folder);
        make_veth(&pod(12));
        attach(&mut node, &pod(12)).unwrap();
        drop(node);
        // while none does,
        drop(spoil());
        delete_veth(&pod(12));
        let mut node = folder.start();
        gone(folder);
        make_veth(&pod(12));
        attach(&mut node, &pod(12)).unwrap();
        drop(node);
        // or when its container comes back at once.
        let mut node = spoil();
        refused(
            &mut node,
            &pod(12),
            ErrorCode::Conflict,
            "slv12 belongs to the pod",
        );
        delete_veth(&pod(12));
        make_veth(&pod(12));
        attach(&mut node, &pod(12)).unwrap();
        assert_eq!(folder.journal(), ["slv11.json", "slv12.json"]);
        assert_eq!(node.attached(), 2);
    });
}

#[test]
fn what_another_has_is_not_given_to_two() {
    let node_address = "192.0.2.2/24".parse().unwrap();
    let cases: [(&str, Change); 3] = [
        ("address", |forged| forged.addresses = pod(11).addresses),
        ("attachment", |forged| forged.id = pod(11).id),
        ("mtu", |forged| forged.mtu = 65_001),
    ];
    after_a_daemon(|netns, folder| {
        let check = |what: &str, forged: &Attachment| {
            forge(folder, "slv12", forged);
            let node = folder.start();
            assert_eq!(node.attached(), 1, "{what}");
            assert!(is_up(netns, "slv11") && !is_up(netns, "slv12"), "{what}");
            assert!(has_program(netns, "slv12"), "{what}");
            assert_eq!(folder.journal(), ["slv11.json", "slv12.json"], "{what}");
            assert!(
                netns.ip("route show proto 83").contains("10.77.0.11 via"),
                "{what}"
            );
            drop(node);
        };
        for (what, spoil) in cases {
            let mut forged = pod(12);
            spoil(&mut forged);
            check(what, &forged);
        }
        let mut forged = pod(12);
        forged.addresses[0].address = node_address;
        check("the node's", &forged);
        forge(folder, "slv12", &pod(12));
        assert_eq!(folder.start().attached(), 2);
    });
}

/// It is a running pod's; and GC must find it.
#[test]
fn what_a_pod_that_is_cut_off_has_stays_its_own() {
    after_a_daemon(|netns, folder| {
        let settings = DataplaneSettings {
            max_ports: 1,
            ..folder.settings()
        };
        let mut node = Node::start(settings, &[]).unwrap();
        assert_eq!(node.attached(), 1);
        let listed = ask(&mut node, Request::Attachments { network: None });
        assert_eq!(listed, serde_json::json!([pod(11), pod(12)]));
        let mut third = pod(13);
        third.addresses = pod(12).addresses;
        make_veth(&third);
        refused(
            &mut node,
            &third,
            ErrorCode::Conflict,
            "10.77.0.12 belongs to the pod of the interface slv12",
        );
        third.host_ifname = "slv12".to_owned();
        refused(&mut node, &third, ErrorCode::Conflict, "slv12");
        assert!(has_program(netns, "slv12"));
        detach(&mut node, &pod(12));
        assert_eq!(folder.journal(), ["slv11.json"]);
        assert!(!folder.pin("slv12").exists());
        // Its interface is the plugin's to delete: down, and so of no harm.
        assert!(!is_up(netns, "slv12"));
        delete_veth(&pod(13));
    });
}

#[test]
fn an_interface_that_is_no_pods_is_left_alone() {
    after_a_daemon(|netns, folder| {
        for interface in ["lo", "up0", "sluice0", "sluice-dp"] {
            fs::write(folder.aside(interface), "").unwrap();
            let mut forged = pod(13);
            forged.host_ifname = interface.to_owned();
            forge(folder, interface, &forged);
        }
        let mut node = folder.start();
        assert_eq!(node.attached(), 2);
        assert_eq!(folder.journal(), ["slv11.json", "slv12.json"]);
        detach(&mut node, &pod(13));
        for interface in ["lo", "up0", "sluice0", "sluice-dp"] {
            assert!(is_up(netns, interface), "{interface}");
        }
        assert!(has_program(netns, "sluice-dp") && !has_program(netns, "up0"));
    });
}

#[test]
fn a_flood_of_files_is_got_through() {
    after_a_daemon(|_, folder| {
        for number in 0..10_000 {
            fs::write(folder.file(&format!("slvx{number}")), "{").unwrap();
        }
        assert_eq!(folder.start().attached(), 2);
        assert_eq!(folder.journal().len(), 10_002);
        // Of no use to anybody: their pods are gone.
        assert_eq!(folder.start().attached(), 2);
        assert_eq!(folder.journal(), ["slv11.json", "slv12.json"]);
    });
}

#[test]
fn a_journal_that_others_may_write_to_is_refused() {
    after_a_daemon(|netns, folder| {
        let journal = folder.settings().journal();
        netns.command("chmod", &["0777", journal.to_str().unwrap()]);
        let error = Node::start(folder.settings(), &[])
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("nobody else may write"), "{error}");
        // What the message advises.
        netns.command("chmod", &["go-w", journal.to_str().unwrap()]);
        let node = folder.start();
        assert_eq!(node.attached(), 2);
        wait_until("pods are up", || {
            is_up(netns, "slv11") && is_up(netns, "slv12")
        });
    });
}
