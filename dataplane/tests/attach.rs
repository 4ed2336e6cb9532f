//! A whole node in a real namespace: what attaching and detaching do to the
//! kernel, and what is refused. Needs root.

mod common;

use std::fs;
use std::net::{TcpListener, UdpSocket};

use common::pods::{Folder, ask, attach, delete_veth, detach, make_veth, mapping, pod, refused};
use common::{TestNetns, wait_until};
use nix::mount::{MsFlags, mount, umount};
use sluice_control::{
    Attachment, DataplaneSettings, ErrorCode, NodeFacts, PodAddress, Request, Response,
};
use sluice_dataplane::host_port::GATEWAY_MAC;
use sluice_dataplane::node::Node;
use sluice_dataplane::probe::Feature;
use sluice_dataplane::remains;
use sluice_link::{Netlink, XdpMode};

/// Runs `test` with a node in a namespace, and sees to it that nothing is left.
fn with_node(test: impl FnOnce(&TestNetns, &mut Node) + Send) {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    let before = netns.state();
    netns.run(|| {
        let mut node = folder.start();
        wait_until("the host port is up", || {
            ["sluice0", "sluice-dp"]
                .iter()
                .all(|end| netns.ip_json(&format!("link show dev {end}"))[0]["operstate"] == "UP")
        });
        let started = netns.state();
        test(&netns, &mut node);
        assert_eq!(node.attached(), 0, "the test detaches what it attached");
        netns.returns_to(&started);
        assert_eq!(folder.journal(), [""; 0]);
        drop(node);
        folder.reset();
    });
    assert_eq!(netns.state(), before);
}

#[test]
fn a_pod_is_attached_and_detached() {
    with_node(|netns, node| {
        let pod = pod(11);
        make_veth(&pod);
        attach(node, &pod).unwrap();
        let link = &netns.ip_json("link show dev slv11")[0];
        assert!(link["xdp"]["prog"]["id"].is_u64(), "{link}");
        assert!(link["flags"].as_array().unwrap().contains(&"UP".into()));
        let routes = netns.ip("route show proto 83");
        assert!(routes.contains("10.77.0.11 via 169.254.1.2"), "{routes}");
        assert!(
            netns
                .ip("-6 route show proto 83")
                .contains("fd00:77::11 via fe80::1")
        );
        assert!(
            netns
                .command("nft", &["list", "ruleset"])
                .contains("10.77.0.0/24")
        );

        let rows = ask(node, Request::ShowPorts);
        assert_eq!(rows[0]["kind"], "host");
        assert_eq!(rows[1]["interface"], "slv11");
        assert_eq!(rows[1]["container_id"], "c11");
        assert_eq!(rows[1]["mac"], "02:00:00:00:00:0b");
        assert_eq!(ask(node, Request::ShowStats)["chunks"]["unaccounted"], 0);

        let listed = |node: &mut Node, network: Option<&str>| {
            let network = network.map(str::to_owned);
            ask(node, Request::Attachments { network })
        };
        assert_eq!(listed(node, None), serde_json::json!([pod]));
        assert_eq!(
            listed(node, Some(&pod.id.network)),
            serde_json::json!([pod])
        );
        assert_eq!(listed(node, Some("other")), serde_json::json!([]));
        assert_eq!(ask(node, Request::Status)["attached"], 1);

        // The runtime may repeat both.
        attach(node, &pod).unwrap();
        assert_eq!(node.attached(), 1);
        detach(node, &pod);
        detach(node, &pod);
        assert_eq!(ask(node, Request::ShowStats)["chunks"]["unaccounted"], 0);
        delete_veth(&pod);
    });
}

#[test]
fn what_cannot_be_served_is_refused_and_leaves_nothing() {
    with_node(|netns, node| {
        let good = pod(11);
        refused(node, &good, ErrorCode::Busy, "no interface slv11");

        netns.ip("link add slv11 type veth peer name other");
        refused(node, &good, ErrorCode::Invalid, "not the host's end");
        delete_veth(&good);
        let mut own = good.clone();
        own.host_ifname = "sluice-dp".into();
        refused(node, &own, ErrorCode::Invalid, "not the host's end");

        make_veth(&good);
        let before = netns.state();
        let mut odd = good.clone();
        odd.mtu = 65_001;
        refused(node, &odd, ErrorCode::Invalid, "above 65000");
        odd = good.clone();
        odd.addresses.clear();
        refused(node, &odd, ErrorCode::Invalid, "no address");
        odd = good.clone();
        odd.addresses[0].address = "169.254.1.1/32".parse().unwrap();
        refused(node, &odd, ErrorCode::Conflict, "a gateway of this node");
        assert_eq!(netns.state(), before);
        delete_veth(&good);
    });
}

/// No name becomes a path, an interface of the node's or a line of the log.
#[test]
fn tricks_with_names_are_refused_and_leave_nothing() {
    with_node(|netns, node| {
        let before = netns.state();
        let long = "a".repeat(129);
        for name in [
            "",
            ".",
            "..",
            "../c11",
            "/etc/passwd",
            "a/b",
            "a\0b",
            "a\nb",
            "a\x1b[2Jb",
            "ä",
            "a b",
            "%2e%2e%2f",
            &long,
        ] {
            let spoils: [fn(&mut Attachment, String); 4] = [
                |pod, name| pod.id.network = name,
                |pod, name| pod.id.container_id = name,
                |pod, name| pod.id.ifname = name,
                |pod, name| pod.host_ifname = name,
            ];
            for spoil in spoils {
                let mut bad = pod(11);
                spoil(&mut bad, name.to_owned());
                let refusal = attach(node, &bad).unwrap_err();
                // "%2e%2e%2f" may be an interface's name, and there is none.
                let code = if bad.validate().is_err() {
                    ErrorCode::Invalid
                } else {
                    ErrorCode::Busy
                };
                assert_eq!(refusal.code, code, "{name:?}: {refusal}");
                assert!(!refusal.message.contains(char::is_control), "{refusal:?}");
                let id = bad.id;
                ask(node, Request::Detach { id });
            }
        }
        for own in ["lo", "sluice0", "sluice-dp"] {
            let mut bad = pod(11);
            bad.host_ifname = own.to_owned();
            refused(node, &bad, ErrorCode::Invalid, "not the host's end");
        }
        assert_eq!(netns.state(), before);
    });
}

#[test]
fn an_address_an_interface_and_an_attachment_have_one_holder() {
    with_node(|_, node| {
        let (first, second) = (pod(11), pod(12));
        make_veth(&first);
        make_veth(&second);
        attach(node, &first).unwrap();

        let mut other = first.clone();
        other.pod_mac = [2, 0, 0, 0, 0, 99];
        refused(node, &other, ErrorCode::Conflict, "attached already");
        let mut other = second.clone();
        other.addresses = first.addresses.clone();
        refused(
            node,
            &other,
            ErrorCode::Conflict,
            "10.77.0.11 belongs to eth0 of container c11",
        );
        let mut other = second.clone();
        other.host_ifname = first.host_ifname.clone();
        refused(
            node,
            &other,
            ErrorCode::Conflict,
            "slv11 belongs to eth0 of container c11",
        );
        let mut other = second.clone();
        other.addresses[0].gateway = "10.77.0.11".parse().unwrap();
        refused(
            node,
            &other,
            ErrorCode::Conflict,
            "is the address of eth0 of container c11",
        );
        let mut other = second.clone();
        other.addresses[0].address = "10.77.0.1/24".parse().unwrap();
        other.addresses[0].gateway = "10.77.0.2".parse().unwrap();
        refused(node, &other, ErrorCode::Conflict, "10.77.0.1 is a gateway");

        attach(node, &second).unwrap();
        for pod in [&first, &second] {
            detach(node, pod);
            delete_veth(pod);
        }
    });
}

#[test]
fn a_full_node_says_how_to_make_room() {
    with_node(|netns, node| {
        let pods: Vec<_> = (11..=13).map(pod).collect();
        for pod in &pods {
            make_veth(pod);
        }
        attach(node, &pods[0]).unwrap();
        attach(node, &pods[1]).unwrap();
        let before = netns.state();
        refused(node, &pods[2], ErrorCode::Exhausted, "dataplane.maxPorts");
        assert_eq!(netns.state(), before);
        detach(node, &pods[0]);
        attach(node, &pods[2]).unwrap();
        detach(node, &pods[1]);
        detach(node, &pods[2]);
        pods.iter().for_each(delete_veth);
    });
}

/// The XDP program cannot be attached: all that came before is undone.
#[test]
fn a_failure_half_way_leaves_nothing() {
    with_node(|netns, node| {
        let mut pod = pod(11);
        pod.mtu = 1500;
        make_veth(&pod);
        let path = netns.command("mktemp", &[]);
        let path = path.trim();
        fs::write(path, sluice_bpf::OBJECT).unwrap();
        netns.ip(&format!("link set dev slv11 xdpdrv obj {path} sec xdp"));
        fs::remove_file(path).unwrap();
        let before = netns.state();
        refused(node, &pod, ErrorCode::Conflict, "another XDP program");
        assert_eq!(netns.state(), before);
        netns.ip("link set dev slv11 xdpdrv off");
        attach(node, &pod).unwrap();
        detach(node, &pod);
        delete_veth(&pod);
    });
}

#[test]
fn a_pod_whose_interface_vanished_holds_nothing() {
    with_node(|_, node| {
        let pod = pod(11);
        make_veth(&pod);
        attach(node, &pod).unwrap();
        delete_veth(&pod);
        // Its container comes back on an interface of the same name,
        make_veth(&pod);
        attach(node, &pod).unwrap();
        delete_veth(&pod);
        // and then its address goes to another.
        let mut heir = self::pod(12);
        heir.addresses = pod.addresses.clone();
        make_veth(&heir);
        attach(node, &heir).unwrap();
        assert_eq!(node.attached(), 1);
        delete_veth(&heir);
        detach(node, &heir);
        assert_eq!(ask(node, Request::ShowStats)["chunks"]["unaccounted"], 0);
    });
}

/// Runs `test` between a node with pods 11 and 12 and the next one, which must
/// take back `expected` of them and leave nothing of others.
fn between_two_nodes(expected: &[u8], test: impl FnOnce(&TestNetns, &Folder) + Send) {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    let before = netns.state();
    netns.run(|| {
        let mut node = folder.start();
        for number in [11, 12] {
            let mut pod = pod(number);
            pod.addresses[0].gateway = format!("10.77.0.{}", 100 + number).parse().unwrap();
            make_veth(&pod);
            attach(&mut node, &pod).unwrap();
        }
        drop(node);
        test(&netns, &folder);
        let mut node = folder.start();
        assert_eq!(node.attached(), expected.len());
        assert_eq!(
            ask(&mut node, Request::ShowStats)["chunks"]["unaccounted"],
            0
        );
        let routes = netns.ip("route show proto 83");
        assert_eq!(routes.lines().count(), 1 + expected.len(), "{routes}");
        let addresses = netns.ip("address show dev sluice0");
        for number in [11, 12] {
            let is_served = expected.contains(&number);
            let file = format!("slv{number}.json");
            assert_eq!(folder.journal().contains(&file), is_served);
            // As long as there is an interface, there is the program on it.
            let interface = format!("slv{number}");
            let link = Netlink::new().unwrap().link(&interface).unwrap();
            assert!(link.is_some() || !is_served);
            assert_eq!(folder.pin(&interface).exists(), link.is_some());
            let route = format!("10.77.0.{number} via");
            assert_eq!(routes.contains(&route), is_served, "{routes}");
            let gateway = format!("10.77.0.{}", 100 + number);
            assert_eq!(addresses.contains(&gateway), is_served, "{addresses}");
            detach(&mut node, &pod(number));
        }
        assert_eq!(netns.ip("route show proto 83").lines().count(), 1);
        assert_eq!(netns.command("nft", &["list", "ruleset"]), "");
        drop(node);
        folder.reset();
    });
    assert_eq!(netns.state(), before);
}

/// A pod must not reach the host's stack unfiltered because the daemon ended.
#[test]
fn the_next_daemon_takes_the_pods_back() {
    between_two_nodes(&[11, 12], |netns, folder| {
        for pod in ["slv11", "slv12"] {
            let link = &netns.ip_json(&format!("link show dev {pod}"))[0];
            assert!(link["xdp"]["prog"].is_object(), "{link}");
            assert!(folder.pin(pod).exists());
        }
        assert!(netns.command("nft", &["list", "ruleset"]).contains("masq4"));
        assert_eq!(folder.journal(), ["slv11.json", "slv12.json"]);
    });
}

#[test]
fn what_went_while_no_daemon_ran_is_forgotten() {
    between_two_nodes(&[12], |_, _| delete_veth(&pod(11)));
}

#[test]
fn a_bad_journal_file_costs_one_pod() {
    between_two_nodes(&[11], |_, folder| {
        fs::write(folder.settings().journal().join("slv12.json"), "{").unwrap();
    });
}

#[test]
fn what_the_journal_does_not_know_is_removed() {
    between_two_nodes(&[11, 12], |netns, _| {
        make_veth(&pod(13));
        netns.ip("route add 10.77.0.99 via 169.254.1.2 dev sluice0 onlink proto 83");
    });
}

/// What it lacks this time it may have next time.
#[test]
fn a_pod_that_cannot_be_taken_back_stays_cut_off() {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    let with_ports = |max_ports| DataplaneSettings {
        max_ports,
        ..folder.settings()
    };
    netns.run(|| {
        let pods = [pod(11), pod(12)];
        let mut node = folder.start();
        for pod in &pods {
            make_veth(pod);
            attach(&mut node, pod).unwrap();
        }
        drop(node);
        for (max_ports, without, served) in [
            (1, &[][..], 1),
            (2, &[Feature::MultiBuffer][..], 0),
            (2, &[], 2),
        ] {
            let node = Node::start(with_ports(max_ports), without).unwrap();
            assert_eq!(node.attached(), served);
            let link = &netns.ip_json("link show dev slv12")[0];
            assert!(link["xdp"]["prog"].is_object(), "{link}");
            assert_eq!(folder.journal().len(), 2);
        }
        let mut node = Node::start(with_ports(1), &[]).unwrap();
        for pod in &pods {
            detach(&mut node, pod);
            delete_veth(pod);
        }
        assert_eq!(folder.journal(), [""; 0]);
        drop(node);
        folder.reset();
    });
}

#[test]
fn a_journal_that_cannot_be_written_refuses_the_pod() {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    netns.run(|| {
        let mut node = folder.start();
        let pod = pod(11);
        make_veth(&pod);
        let before = netns.state();
        let journal = folder.settings().journal();
        for (flags, why) in [
            (MsFlags::empty(), "No space left"),
            (MsFlags::MS_RDONLY, "Read-only"),
        ] {
            let options = Some("size=4k,nr_inodes=1");
            mount(Some("tmpfs"), &journal, Some("tmpfs"), flags, options).unwrap();
            refused(&mut node, &pod, ErrorCode::Failed, why);
            refused(&mut node, &pod, ErrorCode::Failed, "dataplane.runDir");
            assert_eq!(folder.journal(), [""; 0]);
            umount(&journal).unwrap();
            assert_eq!(netns.state(), before);
        }
        attach(&mut node, &pod).unwrap();
        detach(&mut node, &pod);
        delete_veth(&pod);
        drop(node);
        folder.reset();
    });
}

#[test]
fn the_plugin_learns_what_it_needs() {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    netns.ip("link add up0 mtu 1400 type veth peer name far0");
    netns.ip("link set up0 up");
    netns.ip("address add 192.0.2.1/24 dev up0");
    netns.ip("route add default via 192.0.2.2");
    netns.run(|| {
        let settings = folder.settings();
        let without = [Feature::MultiBuffer, Feature::TxMetadata];
        let mut node = Node::start(settings.clone(), &without).unwrap();
        let facts: NodeFacts = serde_json::from_value(ask(&mut node, Request::Describe)).unwrap();
        assert_eq!(
            facts,
            NodeFacts {
                gateway_mac: GATEWAY_MAC,
                max_mtu: 3498,
                uplink_mtu: 1400,
                checksum_offload: false,
                tcp_segmentation_offload: false,
                settings,
                bandwidth: None,
            }
        );
        let kernel = ask(&mut node, Request::ShowKernel);
        assert_eq!(kernel["features"][0]["state"], "without");
        drop(node);
        folder.reset();
    });
}

/// Only the other end of the pod's veth gets the program that marks what it sends.
#[test]
fn merged_segments_are_taken_from_the_pods_own_interface_only() {
    with_node(|_, node| {
        let here = Some("/proc/thread-self/ns/net".into());
        let nowhere = Some("/proc/thread-self/ns/mnt".into());
        let mut right = pod(11);
        right.id.ifname = format!("{}-pod", right.host_ifname);
        let mut wrong_mac = pod(12);
        wrong_mac.id.ifname = format!("{}-pod", wrong_mac.host_ifname);
        let cases = [
            (right.clone(), right.pod_mac, here.clone(), XdpMode::Stack),
            (right.clone(), right.pod_mac, nowhere, XdpMode::Driver),
            (right.clone(), right.pod_mac, None, XdpMode::Driver),
            (pod(11), right.pod_mac, here.clone(), XdpMode::Driver),
            (wrong_mac, [2, 0, 0, 0, 0, 99], here, XdpMode::Driver),
        ];
        for (number, (mut attachment, mac, netns, mode)) in cases.into_iter().enumerate() {
            make_veth(&attachment);
            attachment.pod_mac = mac;
            let interface = attachment.host_ifname.clone();
            let request = Request::Attach {
                attachment: attachment.clone(),
                netns,
            };
            ask(node, request);
            let link = Netlink::new().unwrap().link(&interface).unwrap().unwrap();
            assert_eq!(link.xdp_mode, Some(mode), "case {number}");
            detach(node, &attachment);
            delete_veth(&attachment);
        }
    });
}

#[test]
fn vanished_pods_make_room() {
    with_node(|_, node| {
        for number in 11..=12 {
            let pod = pod(number);
            make_veth(&pod);
            attach(node, &pod).unwrap();
            delete_veth(&pod);
        }
        let newcomer = pod(13);
        make_veth(&newcomer);
        attach(node, &newcomer).unwrap();
        assert_eq!(node.attached(), 1);
        detach(node, &newcomer);
        delete_veth(&newcomer);
        assert_eq!(ask(node, Request::ShowStats)["chunks"]["unaccounted"], 0);
    });
}

/// A pod must not cost the node its address, its router or a route.
#[test]
fn what_is_the_nodes_own_stays_so() {
    with_node(|netns, node| {
        netns.ip("link add up0 type veth peer name far0");
        netns.ip("link set up0 up");
        netns.ip("address add 192.0.2.2/24 dev up0");
        netns.ip("route add default via 192.0.2.1");
        netns.ip("route add 10.77.0.11/32 via 192.0.2.1");
        let pod = pod(11);
        make_veth(&pod);
        let before = netns.state();
        for (address, gateway, why) in [
            ("192.0.2.2/24", "192.0.2.9", "is this node's own"),
            ("192.0.2.1/24", "192.0.2.9", "is a router of this node"),
            ("192.0.2.7/24", "192.0.2.1", "is a router of this node"),
        ] {
            let mut greedy = pod.clone();
            greedy.addresses[0] = PodAddress {
                address: address.parse().unwrap(),
                gateway: gateway.parse().unwrap(),
            };
            refused(node, &greedy, ErrorCode::Conflict, why);
        }
        refused(node, &pod, ErrorCode::Failed, "has another route");
        assert_eq!(netns.state(), before);
        delete_veth(&pod);
        netns.ip("link delete up0");
    });
}

#[test]
fn a_node_has_one_daemon_whatever_its_folder() {
    with_node(|netns, _| {
        let before = netns.state();
        let folder = Folder::new();
        let error = Node::start(folder.settings(), &[])
            .err()
            .map(|e| e.to_string());
        let error = error.unwrap_or_default();
        assert!(error.contains("another sluiced runs"), "{error:?}");
        let error = remains::remove(&folder.settings()).unwrap_err().to_string();
        assert!(error.contains("another sluiced runs"), "{error:?}");
        assert_eq!(netns.state(), before);
    });
}

/// A daemon served `slv11`, and is gone.
fn leave_a_pod(folder: &Folder) {
    let mut node = folder.start();
    let pod = pod(11);
    make_veth(&pod);
    attach(&mut node, &pod).unwrap();
}

/// Its pods are pinned and written down in the other folder.
#[test]
fn a_daemon_with_another_folder_leaves_pods_alone() {
    let netns = TestNetns::new("node");
    let (folder, other) = (Folder::new(), Folder::new());
    netns.run(|| {
        leave_a_pod(&folder);
        let before = netns.state();
        // As if it were another kernel: the host port would have to be made anew.
        for without in [&[][..], &[Feature::MultiBuffer]] {
            let error = Node::start(other.settings(), without).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("Was dataplane.runDir changed?"), "{error:?}");
            assert_eq!(netns.state(), before);
        }
        netns.ip("link delete sluice0");
        drop(other.start());
        assert!(netns.ip("link").contains("slv11"), "it is the other's");
        other.reset();
        folder.reset();
    });
}

/// What stands in the way of one thing does not keep the others.
#[test]
fn a_reset_goes_on_after_a_failure() {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    netns.run(|| {
        leave_a_pod(&folder);
        let odd_pin = folder.pin("odd");
        let odd_file = folder.file("odd");
        for odd in [&odd_pin, &odd_file] {
            fs::create_dir(odd).unwrap();
        }
        let failures = remains::remove(&folder.settings()).unwrap();
        for odd in [&odd_pin, &odd_file] {
            let path = odd.to_str().unwrap();
            assert!(
                failures.iter().any(|failure| failure.contains(path)),
                "{failures:?}"
            );
            fs::remove_dir(odd).unwrap();
        }
        assert!(!netns.ip("link").contains("slv11"));
        assert!(!folder.pin("slv11").exists() && !folder.file("slv11").exists());
        folder.reset();
    });
}

#[test]
fn a_deleted_host_port_is_named() {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    netns.run(|| {
        let mut node = folder.start();
        let (first, second) = (pod(11), pod(12));
        make_veth(&first);
        attach(&mut node, &first).unwrap();
        make_veth(&second);
        netns.ip("link delete sluice0");
        refused(&mut node, &second, ErrorCode::Failed, "sluice0 is gone");
        let Response::Error(refusal) = node.handle(Request::Status) else {
            panic!("STATUS of a node that pods cannot leave");
        };
        assert!(refusal.message.contains("restart sluiced"), "{refusal}");
        drop(node);
        // What the message advises.
        let node = folder.start();
        assert_eq!(node.attached(), 1);
        assert!(netns.ip("route show proto 83").contains("10.77.0.11 via"));
        drop(node);
        folder.reset();
    });
}

/// Its programs would go on by tables that nobody keeps.
#[test]
fn an_earlier_daemons_way_for_host_processes_goes_where_there_is_no_new_one() {
    let netns = TestNetns::new("node");
    let folder = Folder::new();
    netns.run(|| {
        drop(folder.start());
        let pins = folder.settings().bpffs().join("mappings1");
        let program = pins.join("connect4");
        assert!(program.exists());
        // The new one's tables find no place.
        let table = pins.join("mappings");
        fs::remove_file(&table).unwrap();
        fs::create_dir(&table).unwrap();
        drop(folder.start());
        assert!(!program.exists());
        fs::remove_dir(&table).unwrap();
        drop(folder.start());
        assert!(program.exists());
        folder.reset();
    });
}

fn mapped(number: u8, host_ip: Option<&str>) -> Attachment {
    let mut pod = pod(number);
    pod.mappings.push(mapping(8080, host_ip));
    pod
}

#[test]
fn a_host_port_has_one_holder() {
    with_node(|netns, node| {
        let (held, beside) = (mapped(11, Some("192.0.2.1")), mapped(12, Some("192.0.2.2")));
        for pod in [&held, &beside] {
            make_veth(pod);
        }
        attach(node, &held).unwrap();
        let before = netns.state();
        for host_ip in [None, Some("192.0.2.1")] {
            let rival = mapped(12, host_ip);
            refused(node, &rival, ErrorCode::Conflict, "eth0 of container c11");
            refused(
                node,
                &rival,
                ErrorCode::Conflict,
                "TCP port 8080 of 192.0.2.1",
            );
        }
        let mut zero = mapped(12, None);
        zero.mappings[0].host_port = 0;
        refused(node, &zero, ErrorCode::Invalid, "from 1 to 65535");
        assert_eq!(netns.state(), before);
        attach(node, &beside).unwrap();

        let rows = ask(node, Request::ShowHostPorts);
        assert_eq!(rows.as_array().unwrap().len(), 2);
        assert_eq!(rows[0]["host"], "192.0.2.1:8080");
        assert_eq!(rows[0]["to"], "10.77.0.11:80");
        assert_eq!(rows[1]["container_id"], "c12");
        for pod in [&held, &beside] {
            detach(node, pod);
            delete_veth(pod);
        }
    });
}

#[test]
fn a_host_port_on_which_a_process_listens_is_refused() {
    with_node(|netns, node| {
        let pod = mapped(11, None);
        make_veth(&pod);
        let before = netns.state();
        for address in ["127.0.0.1", "[::1]", "[::]"] {
            // A process that another test starts has the last socket until its exec.
            let mut listener = None;
            wait_until("the port is free", || {
                listener = TcpListener::bind(format!("{address}:8080")).ok();
                listener.is_some()
            });
            let process = format!("(process {}) listens there", std::process::id());
            refused(node, &pod, ErrorCode::Conflict, &process);
            drop(listener);
        }
        assert_eq!(netns.state(), before);
        // By another protocol it is another port.
        let _datagrams = UdpSocket::bind("0.0.0.0:8080").unwrap();
        wait_until("no process listens", || attach(node, &pod).is_ok());
        detach(node, &pod);
        delete_veth(&pod);
    });
}

#[test]
fn missing_rules_are_noticed_and_put_back() {
    with_node(|netns, node| {
        let pod = mapped(11, None);
        make_veth(&pod);
        attach(node, &pod).unwrap();
        let check = Request::Check { id: pod.id.clone() };
        ask(node, check.clone());
        let before = netns.state();
        netns.command("nft", &["flush", "ruleset"]);
        match node.handle(check.clone()) {
            Response::Error(refusal) => assert!(refusal.message.contains("hostPorts"), "{refusal}"),
            answer => panic!("{answer:?}"),
        }
        node.mend_rules().unwrap();
        ask(node, check);
        assert_eq!(netns.state(), before);
        detach(node, &pod);
        delete_veth(&pod);
    });
}
