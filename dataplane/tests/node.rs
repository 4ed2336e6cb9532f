//! The pieces of a node in real namespaces, each by itself: XDP program, host
//! port, forwarding, probe. Needs root.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::rc::Rc;

use common::{TestNetns, wait_until};
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;
use sluice_control::PodAddress;
use sluice_dataplane::forwarding;
use sluice_dataplane::host_port::{HostPort, HostPortError};
use sluice_dataplane::probe::{self, Feature, State};
use sluice_dataplane::program::{PortProgram, ProgramError, ProgramOptions};
use sluice_link::{Link, Netlink, VethPair, VethPeer, XdpMode, sysctl};

const INTERFACE: &str = "slvtest";

/// A namespace with a veth pair, as the plugin would make it.
fn netns_with_veth(mtu: u32) -> TestNetns {
    let netns = TestNetns::new("node");
    make_veth(&netns, mtu);
    netns
}

fn make_veth(netns: &TestNetns, mtu: u32) {
    netns.run(|| {
        let pair = VethPair {
            name: INTERFACE.to_owned(),
            mac: None,
            mtu,
            peer: VethPeer {
                name: "peer".to_owned(),
                mac: None,
                mtu,
                netns: None,
            },
        };
        Netlink::new().unwrap().create_veth(&pair).unwrap();
    });
}

fn link() -> Link {
    let link = Netlink::new().unwrap().link(INTERFACE).unwrap();
    link.expect("the interface is there")
}

fn load(folder: &Path, multi_buffer: bool) -> PortProgram {
    PortProgram::load(&ProgramOptions {
        multi_buffer,
        slots: 3,
        bpffs: folder.join("bpf"),
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

/// The id of the XDP program on the interface.
fn program_on(netns: &TestNetns) -> Option<u64> {
    let links = netns.ip_json(&format!("link show dev {INTERFACE}"));
    links[0]["xdp"]["prog"]["id"].as_u64()
}

#[test]
fn the_program_is_pinned_and_comes_off_with_its_pin() {
    let netns = netns_with_veth(1500);
    let folder = tempfile::tempdir().unwrap();
    netns.run(|| {
        let mut program = load(folder.path(), true);
        program.attach(&link(), XdpMode::Driver).unwrap();
        assert!(folder.path().join("bpf/links").join(INTERFACE).exists());
        assert!(program_on(&netns).is_some());
        program.detach(INTERFACE).unwrap();
        program.detach(INTERFACE).unwrap();
        wait_until("the program is off", || program_on(&netns).is_none());
    });
    assert!(!folder.path().join("bpf").exists(), "unmounted and removed");
}

#[test]
fn a_dead_daemons_program_stays_and_is_replaced_in_place() {
    let netns = netns_with_veth(1500);
    let folder = tempfile::tempdir().unwrap();
    netns.run(|| {
        let mut dead = load(folder.path(), true);
        dead.attach(&link(), XdpMode::Driver).unwrap();
        drop(dead);
        let before = program_on(&netns).expect("the pin holds the program");
        let mut program = load(folder.path(), true);
        assert_eq!(program_on(&netns), Some(before));
        program.attach(&link(), XdpMode::Driver).unwrap();
        let after = program_on(&netns).expect("a program is on");
        assert_ne!(after, before);
        program.detach(INTERFACE).unwrap();
    });
}

#[test]
fn the_pin_of_a_vanished_interface_is_in_nobodys_way() {
    let netns = netns_with_veth(1500);
    let folder = tempfile::tempdir().unwrap();
    let pin = folder.path().join("bpf/links").join(INTERFACE);
    netns.run(|| {
        let mut program = load(folder.path(), true);
        program.attach(&link(), XdpMode::Driver).unwrap();
        netns.ip(&format!("link del {INTERFACE}"));
        assert!(pin.exists(), "the kernel leaves a dead file");
        make_veth(&netns, 1500);
        program.attach(&link(), XdpMode::Driver).unwrap();
        assert!(program_on(&netns).is_some());
        netns.ip(&format!("link del {INTERFACE}"));
        program.prune(|_| true).unwrap();
        assert!(pin.exists());
        program.prune(|name| name != INTERFACE).unwrap();
        assert!(!pin.exists());
    });
}

/// The pin follows the interface it was made for, not the name.
#[test]
fn the_pin_of_a_renamed_interface_is_not_taken_for_anothers() {
    let netns = netns_with_veth(1500);
    let folder = tempfile::tempdir().unwrap();
    netns.run(|| {
        let mut dead = load(folder.path(), true);
        dead.attach(&link(), XdpMode::Driver).unwrap();
        drop(dead);
        netns.ip(&format!("link set {INTERFACE} name slvother"));
        netns.ip(&format!("link add {INTERFACE} numtxqueues 1 numrxqueues 1 type veth peer name peer2 numtxqueues 1 numrxqueues 1"));
        let mut program = load(folder.path(), true);
        program.attach(&link(), XdpMode::Driver).unwrap();
        assert!(program_on(&netns).is_some());
        program.detach(INTERFACE).unwrap();
        wait_until("the program is off", || program_on(&netns).is_none());
    });
}

/// What a pin says is believed: nobody else may make one.
#[test]
fn pins_are_only_where_nobody_else_may_write() {
    let netns = TestNetns::new("node");
    let folder = tempfile::tempdir().unwrap();
    let bpffs = folder.path().join("bpf");
    netns.run(|| {
        fs::create_dir(&bpffs).unwrap();
        let options = ProgramOptions {
            multi_buffer: true,
            slots: 3,
            bpffs: bpffs.clone(),
        };
        let source = Some("bpf");
        mount(source, &bpffs, source, MsFlags::empty(), Some("mode=1777")).unwrap();
        let error = PortProgram::load(&options).err().unwrap().to_string();
        assert!(error.contains("nobody else may write"), "{error}");
        umount(&bpffs).unwrap();
        fs::remove_dir(&bpffs).unwrap();
        symlink("/sys/fs/bpf", &bpffs).unwrap();
        let error = PortProgram::load(&options).err().unwrap().to_string();
        assert!(error.contains("no symbolic link"), "{error}");
    });
}

#[test]
fn a_foreign_program_is_left_alone() {
    let netns = netns_with_veth(1500);
    let (folder, object) = (
        tempfile::tempdir().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    fs::write(object.path(), sluice_bpf::OBJECT).unwrap();
    netns.run(|| {
        let mut program = load(folder.path(), true);
        let mut refused = |by: &str| {
            let before = program_on(&netns).expect(by);
            let error = program.attach(&link(), XdpMode::Driver).unwrap_err();
            assert!(
                matches!(error, ProgramError::Foreign { .. }),
                "{by}: {error}"
            );
            assert!(error.to_string().contains(INTERFACE), "{error}");
            assert_eq!(program_on(&netns), Some(before), "{by}");
        };

        let foreign_folder = tempfile::tempdir().unwrap();
        let mut foreign = load(foreign_folder.path(), true);
        foreign.attach(&link(), XdpMode::Driver).unwrap();
        refused("a link");
        foreign.detach(INTERFACE).unwrap();
        wait_until("the link is off", || program_on(&netns).is_none());

        let path = object.path().display();
        for mode in ["xdpdrv", "xdpgeneric"] {
            netns.ip(&format!(
                "link set dev {INTERFACE} {mode} obj {path} sec xdp"
            ));
            refused(mode);
            netns.ip(&format!("link set dev {INTERFACE} {mode} off"));
        }
    });
}

#[test]
fn the_kernel_refuses_what_one_buffer_cannot_hold() {
    let largest = probe::max_mtu(sluice_dataplane::xsk::Features {
        multi_buffer: false,
        tx_metadata: false,
        tx_budget: false,
        gso: false,
        tso: false,
    });
    let folder = tempfile::tempdir().unwrap();
    for (mtu, multi_buffer, taken) in [
        (largest, false, true),
        (largest + 100, false, false),
        (65_000, true, true),
    ] {
        let netns = netns_with_veth(mtu);
        netns.run(|| {
            let mut program = load(folder.path(), multi_buffer);
            match program.attach(&link(), XdpMode::Driver) {
                Ok(()) => assert!(taken, "MTU {mtu} was taken"),
                Err(error) => {
                    assert!(!taken, "MTU {mtu}: {error}");
                    assert!(error.to_string().contains("MTU"), "{error}");
                }
            }
            program.detach(INTERFACE).unwrap();
        });
    }
}

fn pod(address: &str, gateway: &str) -> PodAddress {
    PodAddress {
        address: address.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
    }
}

fn host_port() -> Result<HostPort, HostPortError> {
    HostPort::take_or_make(Rc::new(Netlink::new().unwrap()), 65_000, XdpMode::Driver)
}

/// The destinations of the daemon's routes to pods.
fn pod_routes(netns: &TestNetns) -> Vec<String> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let Value::Array(found) = netns.ip_json(&format!("{family} route show proto 83")) else {
            panic!("a list of routes");
        };
        let via = found.iter().filter(|route| !route["gateway"].is_null());
        routes.extend(via.map(|route| route["dst"].as_str().unwrap().to_owned()));
    }
    routes
}

fn addresses(netns: &TestNetns, interface: &str) -> Vec<String> {
    let links = netns.ip_json(&format!("address show dev {interface}"));
    let Value::Array(list) = &links[0]["addr_info"] else {
        panic!("a list of addresses");
    };
    list.iter()
        .map(|address| address["local"].as_str().unwrap().to_owned())
        .collect()
}

fn permanent_neighbours(netns: &TestNetns) -> usize {
    let neighbours = netns.ip_json("neigh show dev sluice0 nud permanent");
    neighbours.as_array().unwrap().len()
}

#[test]
fn the_host_port_leaves_nothing_behind() {
    let netns = TestNetns::new("node");
    let before = netns.state();
    netns.run(|| {
        let mut port = host_port().unwrap();
        port.bring_up().unwrap();
        port.add_pod(&pod("10.77.0.11/24", "10.77.0.1")).unwrap();
        port.add_pod(&pod("fd00:77::11/64", "fd00:77::1")).unwrap();
        port.add_pod(&pod("10.78.0.11/24", "169.254.1.1")).unwrap();
        assert_eq!(
            pod_routes(&netns),
            ["10.77.0.11", "10.78.0.11", "fd00:77::11"]
        );
        assert_ne!(netns.state(), before);
    });
    assert_eq!(netns.state(), before);
}

#[test]
fn the_host_port_has_the_settings_it_was_tried_with() {
    let netns = TestNetns::new("node");
    netns.run(|| {
        let port = host_port().unwrap();
        port.bring_up().unwrap();
        for (key, value) in [
            ("net/ipv4/conf/sluice0/rp_filter", "2"),
            ("net/ipv4/conf/sluice-dp/rp_filter", "2"),
            ("net/ipv4/conf/sluice-dp/accept_local", "1"),
            ("net/ipv6/conf/sluice0/addr_gen_mode", "1"),
            ("net/ipv6/conf/sluice-dp/addr_gen_mode", "1"),
            ("net/ipv6/conf/sluice0/accept_ra", "0"),
        ] {
            assert_eq!(sysctl::read(key).unwrap(), value, "{key}");
        }
        let dataplane: &Link = port.dataplane_end();
        assert_eq!(
            (dataplane.mtu, dataplane.name.as_str()),
            (65_000, "sluice-dp")
        );
        assert_eq!(addresses(&netns, "sluice-dp"), ["169.254.1.1"]);
        assert_eq!(permanent_neighbours(&netns), 2);
    });
}

/// With the last IPv4 address of an interface the kernel removes its routes
/// and permanent neighbours: other pods' too.
#[test]
fn a_gateway_goes_with_its_last_pod_and_takes_nothing_along() {
    let netns = TestNetns::new("node");
    netns.run(|| {
        let mut port = host_port().unwrap();
        port.bring_up().unwrap();
        let first = pod("10.77.0.11/24", "10.77.0.1");
        let second = pod("10.77.0.12/24", "10.77.0.1");
        let bystander = pod("10.78.0.11/24", "169.254.1.1");
        for pod in [&first, &second, &bystander] {
            port.add_pod(pod).unwrap();
        }
        let gateway = "10.77.0.1".to_owned();
        port.remove_pod(&first).unwrap();
        assert!(addresses(&netns, "sluice0").contains(&gateway));
        assert!(port.is_gateway("10.77.0.1".parse().unwrap()));
        port.remove_pod(&second).unwrap();
        assert!(!addresses(&netns, "sluice0").contains(&gateway));
        assert!(!port.is_gateway("10.77.0.1".parse().unwrap()));
        assert_eq!(pod_routes(&netns), ["10.78.0.11"]);
        assert_eq!(permanent_neighbours(&netns), 2);
        // Twice is fine, as DEL may come twice.
        port.remove_pod(&second).unwrap();
    });
}

#[test]
fn an_earlier_daemons_host_port_is_taken_and_repaired() {
    let netns = TestNetns::new("node");
    let pods = [
        pod("10.77.0.11/24", "10.77.0.1"),
        pod("fd00:77::11/64", "fd00:77::1"),
        pod("10.78.0.11/24", "169.254.1.1"),
    ];
    let gone = pod("10.79.0.11/24", "10.79.0.1");
    netns.run(|| {
        let netlink = Netlink::new().unwrap();
        let mut earlier = host_port().unwrap();
        earlier.bring_up().unwrap();
        for pod in pods.iter().chain([&gone]) {
            earlier.add_pod(pod).unwrap();
        }
        earlier.keep();
        let index = earlier.host_end().index;
        drop(earlier);
        let wanted = pods.iter().map(|pod| pod.address.addr()).collect();
        for damage in [
            "route show",
            "route delete 10.77.0.11",
            "address delete 10.77.0.1/32 dev sluice0",
            "address delete 169.254.1.1/32 dev sluice-dp",
            "neigh delete 169.254.1.2 dev sluice0",
            "link set sluice0 down",
            "link set sluice-dp down",
        ] {
            netns.ip(damage);
            let mut port = host_port().unwrap();
            assert_eq!(port.host_end().index, index);
            port.bring_up().unwrap();
            let found = netlink.routes().unwrap();
            for pod in &pods {
                port.restore_pod(pod, &found).unwrap();
            }
            port.sweep(&wanted).unwrap();
            assert_eq!(pod_routes(&netns).len(), 3, "after {damage}");
            assert_eq!(permanent_neighbours(&netns), 2, "after {damage}");
            let gateways = addresses(&netns, "sluice0");
            assert!(gateways.contains(&"10.77.0.1".to_owned()), "after {damage}");
            assert!(!gateways.contains(&"10.79.0.1".to_owned()));
            assert_eq!(addresses(&netns, "sluice-dp"), ["169.254.1.1"]);
        }
    });
}

#[test]
fn a_host_port_of_another_mtu_is_made_anew() {
    let netns = TestNetns::new("node");
    netns.run(|| {
        let mut earlier = host_port().unwrap();
        earlier.keep();
        drop(earlier);
        let port = HostPort::take_or_make(Rc::new(Netlink::new().unwrap()), 3498, XdpMode::Driver)
            .unwrap();
        assert_eq!(
            (port.host_end().mtu, port.dataplane_end().mtu),
            (3498, 3498)
        );
    });
}

#[test]
fn a_foreign_interface_of_that_name_is_left_alone() {
    for name in ["sluice0", "sluice-dp"] {
        let netns = TestNetns::new("node");
        netns.ip(&format!("link add {name} type veth peer name other"));
        let before = netns.state();
        let error = netns.run(|| host_port().map(drop).unwrap_err());
        assert!(
            matches!(error, HostPortError::Foreign(found) if found == name),
            "{error}"
        );
        assert_eq!(netns.state(), before);
    }
}

#[test]
fn forwarding_does_not_cost_the_node_its_router_advertisements() {
    let netns = TestNetns::new("node");
    netns.ip("link add up0 type veth peer name off0");
    netns.run(|| {
        let accept_ra = |interface: &str| format!("net/ipv6/conf/{interface}/accept_ra");
        sysctl::write(&accept_ra("up0"), "1").unwrap();
        sysctl::write(&accept_ra("off0"), "0").unwrap();
        sysctl::write(&accept_ra("default"), "1").unwrap();
        forwarding::enable().unwrap();
        assert_eq!(sysctl::read(&accept_ra("up0")).unwrap(), "2");
        assert_eq!(sysctl::read(&accept_ra("default")).unwrap(), "2");
        assert_eq!(sysctl::read(&accept_ra("off0")).unwrap(), "0");
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            assert_eq!(sysctl::read(key).unwrap(), "1", "{key}");
        }
        forwarding::enable().unwrap();
    });
}

#[test]
fn the_probe_believes_without_and_leaves_nothing() {
    let netns = TestNetns::new("node");
    let before = netns.state();
    let report = netns.run(|| {
        let netlink = Netlink::new().unwrap();
        probe::run(&netlink, &[Feature::MultiBuffer, Feature::TxMetadata]).unwrap()
    });
    let state = |feature| {
        let finding = report.features.iter().find(|f| f.feature == feature);
        &finding.expect("each feature has a line").state
    };
    assert_eq!(*state(Feature::MultiBuffer), State::Without);
    assert_eq!(*state(Feature::TxMetadata), State::Without);
    assert_ne!(*state(Feature::TxBudget), State::Without);
    assert!(!report.features().multi_buffer && !report.features().tx_metadata);
    assert_eq!(netns.state(), before);
}
