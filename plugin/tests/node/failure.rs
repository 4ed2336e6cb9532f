//! What fails says why and leaves nothing behind.

use std::fs;
use std::process::Command;

use sluice_control::{
    Attachment, AttachmentId, ClientError, ErrorCode, PodAddress, Request, Shaping,
};

use crate::harness::flows::{Echo, Flow, ping};
use crate::harness::{NODE4, NODE6, Node, Options, Pod, Snapshot, wait_until};

#[test]
fn more_pods_than_ports_are_refused() {
    let node = Node::start(&Options {
        max_ports: 2,
        ..Options::default()
    });
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let before = Snapshot::take(&node);
    let space = node.site.space("c");
    node.try_add(&node.pods(), &space, "c")
        .fails(11, &["all 2 ports are taken", "maxPorts"]);
    before.assert_unchanged(&node);
    assert_eq!(space.links(), ["lo"]);
    assert_eq!(node.ports().len(), 3);
    b.del();
    drop(space);
    ping(&a, node.add("c").v4());
    node.finish();
}

#[test]
fn an_address_has_one_holder() {
    let node = Node::start(&Options::default());
    let holder = node.add("holder");
    let before = Snapshot::take(&node);
    // Another IPAM's book, which knows nothing of the first one's pods.
    let mut rivals = node.network("rivals", &["10.77.0.0/24"]);
    rivals.0["ipam"]["dataDir"] = node.dir().join("rivals").to_str().unwrap().into();
    let space = node.site.space("rival");
    node.try_add(&rivals, &space, "rival")
        .fails(103, &["holder", "pods", &holder.v4().to_string()]);
    before.assert_unchanged(&node);
    assert_eq!(space.links(), ["lo"]);
    let leases = fs::read_dir(node.dir().join("rivals/rivals")).unwrap();
    let names = leases.map(|lease| lease.unwrap().file_name().into_string().unwrap());
    let leases: Vec<_> = names.filter(|name| name.starts_with("10.")).collect();
    assert_eq!(leases, Vec::<String>::new());
    ping(node.space(), holder.v4());
    node.finish();
}

#[test]
fn an_attachment_is_made_once() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    let before = Snapshot::take(&node);
    node.try_add(&node.pods(), &pod, "pod")
        .fails(103, &["eth0"]);
    before.assert_unchanged(&node);
    ping(node.space(), pod.v4());
    node.finish();
}

#[test]
fn without_the_daemon_add_fails_and_del_works() {
    let mut node = Node::start(&Options::default());
    let pod = node.add("pod");
    assert!(node.stop().success());
    let before = Snapshot::take(&node);
    let space = node.site.space("late");
    node.try_add(&node.pods(), &space, "late")
        .fails(11, &["sluiced"]);
    before.assert_unchanged(&node);
    assert_eq!(space.links(), ["lo"]);

    let interface = pod.host_ifname().to_owned();
    assert!(node.space().links().contains(&interface));
    for _ in 0..2 {
        pod.detach();
        assert!(!node.space().links().contains(&interface));
        assert_eq!(pod.links(), ["lo"]);
    }
    let leases = fs::read_dir(node.dir().join("ipam/pods")).unwrap();
    let mut names = leases.map(|lease| lease.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        names.find(|name| name.starts_with("10.") || name.starts_with("fd")),
        None
    );
}

#[test]
fn a_pod_whose_namespace_vanished_holds_nothing_and_comes_back() {
    let node = Node::start(&Options::default());
    let other = node.add("other");
    let (before, chunks) = (Snapshot::take(&node), node.stats()["chunks"].clone());
    let pod = node.add("pod");
    let address = pod.v4().to_string();
    drop(pod);
    wait_until("its port is free, though nobody sent a DEL", || {
        (node.ports().len() == 2).then_some(())
    });
    assert_eq!(node.stats()["chunks"], chunks);
    assert!(
        !node
            .space()
            .exec("ip route show proto 83")
            .contains(&address)
    );
    // Its address is IPAM's.
    let space = node.site.space("pod");
    node.try_del(&node.pods(), &space, "pod").ok();
    before.assert_unchanged(&node);
    drop(space);
    ping(&other, node.add("pod").v4());
    node.finish();
}

/// Compiles an XDP program that passes everything, as somebody else's.
fn foreign_program(node: &Node) -> String {
    let source = node.dir().join("foreign.c");
    let object = node.dir().join("foreign.o");
    let program = r#"
        __attribute__((section("xdp"), used)) int foreign(void *ctx) { return 2; }
        char _license[] __attribute__((section("license"), used)) = "GPL";
    "#;
    fs::write(&source, program).unwrap();
    let clang = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object)
        .output()
        .expect("clang, which builds the daemon's program too");
    assert!(clang.status.success(), "{clang:?}");
    object.to_str().unwrap().to_owned()
}

#[test]
fn a_foreign_xdp_program_is_never_evicted() {
    let node = Node::start(&Options::default());
    let facts = &node.facts;
    let mac = facts
        .gateway_mac
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    let space = node.site.space("pod");
    node.space().exec(&format!(
        "ip link add slvforeign address {mac} numtxqueues 1 numrxqueues 1 type veth \
         peer name eth0 netns {} numtxqueues 1 numrxqueues 1",
        space.name()
    ));
    let object = foreign_program(&node);
    node.space().exec(&format!(
        "ip link set slvforeign xdpdrv obj {object} sec xdp"
    ));
    let program = || node.space().json("ip -j -d link show slvforeign")[0]["xdp"]["prog"].clone();
    let foreign = program();
    assert!(foreign["id"].is_number(), "{foreign}");
    let before = Snapshot::take(&node);

    let attachment = Attachment {
        id: AttachmentId {
            network: "pods".into(),
            container_id: "pod".into(),
            ifname: "eth0".into(),
        },
        host_ifname: "slvforeign".into(),
        pod_mac: [2, 0, 0, 0, 0, 1],
        addresses: vec![PodAddress {
            address: "10.77.0.9/24".parse().unwrap(),
            gateway: "10.77.0.1".parse().unwrap(),
        }],
        mtu: 1500,
        ip_masq: true,
        pod: None,
        mappings: Vec::new(),
        snat: true,
        masq_all: false,
        uplink_mtu: None,
        shaping: Shaping::default(),
        reshaped: false,
        gro: true,
    };
    let refused = node
        .client
        .ask(Request::Attach {
            attachment,
            netns: None,
        })
        .unwrap_err();
    let ClientError::Refused(refusal) = refused else {
        panic!("{refused}");
    };
    assert_eq!(refusal.code, ErrorCode::Conflict);
    for needle in ["slvforeign", "another XDP program"] {
        assert!(refusal.message.contains(needle), "{refusal}");
    }
    assert_eq!(program(), foreign);
    before.assert_unchanged(&node);
    assert_eq!(node.ports().len(), 1);
    node.finish();
}

/// What the kernel removed from a pod whose eth0 was set down.
fn restore_routes(pod: &Pod) {
    pod.exec(&format!(
        "ip -6 address replace {}/64 dev eth0 nodad noprefixroute",
        pod.v6()
    ));
    for like in [NODE4, NODE6] {
        let gateway = pod.gateway_like(like);
        pod.exec(&format!(
            "ip route replace default via {gateway} dev eth0 onlink"
        ));
    }
    // The kernel completes an IPv6 address some time after it was added.
    wait_until("the pod has its IPv6 address again", || {
        let route = pod.exec(&format!("ip -6 route get {}", pod.v6()));
        route.starts_with("local").then_some(())
    });
}

#[test]
fn a_pods_interface_may_go_down_and_come_up_under_traffic() {
    let node = Node::start(&Options::default());
    let [a, b, c] = ["a", "b", "c"].map(|name| node.add(name));
    let echo = Echo::udp(&c, c.v4());
    let others = Flow::udp(&a, echo.address);
    for command in ["ip link set eth0 down", "ip link set eth0 up"] {
        for address in [b.v4(), b.v6()] {
            a.output(&format!(
                "ping -n -q -c 200 -i 0.001 -W 1 -s 1000 {address}"
            ));
        }
        b.exec(command);
    }
    restore_routes(&b);
    for address in b.addresses() {
        // The pod's neighbours went too: the gateway answers for itself.
        ping(&a, address);
    }
    let interface = b.host_ifname();
    for command in ["down", "up"] {
        node.space()
            .exec(&format!("ip link set {interface} {command}"));
        let output = a.output(&format!("ping -n -q -c 200 -i 0.001 -W 1 {}", b.v4()));
        assert_eq!(
            output.status.success(),
            command == "up",
            "{command}: {output:?}"
        );
    }
    assert!(others.stop() > 10, "traffic alongside");
    node.finish();
}
