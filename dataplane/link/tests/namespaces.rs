//! The crate against a real kernel, in namespaces of its own.
//!
//! Needs root, and fails without: a test that skips itself proves nothing.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde_json::Value;
use sluice_link::features::{self, Feature};
use sluice_link::{AddressOptions, Hop, Netlink, Netns, Route, VethPair, VethPeer, sysctl};

const NEAR: [u8; 6] = [0x02, 0x53, 0, 0, 0, 1];
const FAR: [u8; 6] = [0x02, 0x53, 0, 0, 0, 2];

/// A named namespace, deleted when dropped.
struct Space {
    name: String,
}

impl Space {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-link-{}-{count}", std::process::id());
        run("ip", &["netns", "add", &name]);
        Self { name }
    }

    fn open(&self) -> Netns {
        Netns::open(&PathBuf::from("/run/netns").join(&self.name)).unwrap()
    }

    fn netlink(&self) -> Netlink {
        Netlink::in_netns(&self.open()).unwrap()
    }

    /// Output of a command inside.
    fn exec(&self, command: &[&str]) -> String {
        let netns = format!("--net=/run/netns/{}", self.name);
        run("nsenter", &[&[netns.as_str()], command].concat())
    }

    /// Output of `ip -j -d`, parsed.
    fn ip(&self, arguments: &[&str]) -> Value {
        let out = self.exec(&[&["ip", "-j", "-d"], arguments].concat());
        if out.trim().is_empty() {
            return Value::Array(vec![]);
        }
        serde_json::from_str(&out).unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.name]);
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?} (these tests need root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn pair(peer: Option<&Netns>) -> VethPair<'_> {
    VethPair {
        name: "near0".into(),
        mac: Some(NEAR),
        mtu: 65_000,
        peer: VethPeer {
            name: "far0".into(),
            mac: Some(FAR),
            mtu: 9000,
            netns: peer,
        },
    }
}

/// A namespace with a veth pair in it, up; returns the near end's index.
fn wired() -> (Space, Netlink, u32) {
    let space = Space::new();
    let netlink = space.netlink();
    netlink.create_veth(&pair(None)).unwrap();
    for name in ["far0", "near0"] {
        let link = netlink.link(name).unwrap().unwrap();
        netlink.set_up(link.index).unwrap();
    }
    let index = netlink.link("near0").unwrap().unwrap().index;
    (space, netlink, index)
}

#[test]
fn a_veth_appears_ready_made_in_both_namespaces() {
    let (host, pod) = (Space::new(), Space::new());
    let netlink = host.netlink();
    netlink.create_veth(&pair(Some(&pod.open()))).unwrap();

    for (space, name, mac, mtu) in [(&host, "near0", NEAR, 65_000), (&pod, "far0", FAR, 9000)] {
        let link = space.netlink().link(name).unwrap().unwrap();
        assert_eq!(
            (link.name.as_str(), link.mac, link.mtu),
            (name, Some(mac), mtu)
        );
        assert!(!link.up);
        let seen = &space.ip(&["link", "show", name])[0];
        assert_eq!(seen["ifindex"], link.index);
        assert_eq!(seen["num_tx_queues"], 1, "{seen}");
        assert_eq!(seen["num_rx_queues"], 1, "{seen}");
    }
    assert_eq!(host.netlink().link("far0").unwrap(), None);
    let names: Vec<_> = netlink
        .links()
        .unwrap()
        .into_iter()
        .map(|l| l.name)
        .collect();
    assert_eq!(names, ["lo", "near0"]);

    let again = netlink.create_veth(&pair(Some(&pod.open()))).unwrap_err();
    assert_eq!(again.errno(), Some(libc::EEXIST));

    assert!(netlink.delete_link("near0").unwrap());
    assert!(!netlink.delete_link("near0").unwrap());
    assert_eq!(pod.netlink().link("far0").unwrap(), None);
}

#[test]
fn a_taken_name_in_the_pod_leaves_no_half_pair() {
    let (host, pod) = (Space::new(), Space::new());
    pod.exec(&[
        "ip", "link", "add", "far0", "type", "veth", "peer", "name", "x0",
    ]);
    let error = host
        .netlink()
        .create_veth(&pair(Some(&pod.open())))
        .unwrap_err();
    assert_eq!(error.errno(), Some(libc::EEXIST));
    assert_eq!(host.netlink().link("near0").unwrap(), None);
}

#[test]
fn errors_carry_the_kernels_explanation() {
    let (_space, netlink, index) = wired();
    let route = Route {
        gateway: Some("10.8.0.1".parse().unwrap()),
        ..Route::new("10.9.0.0/16".parse().unwrap(), index)
    };
    let error = netlink.replace_route(&route).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENETUNREACH));
    let text = error.to_string();
    assert!(text.contains("10.9.0.0/16 via 10.8.0.1"), "{text}");
    assert!(text.contains("Nexthop has invalid gateway"), "{text}");
}

#[test]
fn addresses_come_and_go_as_asked() {
    let (space, netlink, index) = wired();
    let quiet = AddressOptions {
        no_prefix_route: true,
        link_scope: false,
        no_dad: true,
    };
    for address in ["10.77.0.11/24", "fd77::11/64"] {
        let address = address.parse().unwrap();
        netlink.add_address(index, address, quiet).unwrap();
        netlink.add_address(index, address, quiet).unwrap();
    }
    let link_scope = AddressOptions {
        link_scope: true,
        ..AddressOptions::default()
    };
    let local = "169.254.1.1/32".parse().unwrap();
    netlink.add_address(index, local, link_scope).unwrap();

    let seen = space.ip(&["address", "show", "near0"]);
    let info = |local: &str| {
        let infos = seen[0]["addr_info"].as_array().unwrap();
        infos.iter().find(|i| i["local"] == local).unwrap().clone()
    };
    for (address, length) in [("10.77.0.11", 24), ("fd77::11", 64)] {
        let info = info(address);
        assert_eq!(info["prefixlen"], length);
        assert_eq!(info["noprefixroute"], true, "{info}");
        assert_eq!(info["tentative"], Value::Null, "{info}");
        assert_eq!(info["scope"], "global");
    }
    assert_eq!(info("169.254.1.1")["scope"], "link");
    let routes = netlink.routes().unwrap();
    assert!(
        !routes
            .iter()
            .any(|r| r.destination.addr().to_string().starts_with("10."))
    );

    let listed = netlink.addresses(index).unwrap();
    for address in ["10.77.0.11/24", "fd77::11/64"] {
        let address = address.parse().unwrap();
        assert!(listed.contains(&address), "{address} is not in {listed:?}");
        assert!(netlink.delete_address(index, address).unwrap(), "{address}");
        assert!(
            !netlink.delete_address(index, address).unwrap(),
            "{address}"
        );
    }
}

#[test]
fn routes_are_read_back_as_written_and_deleted_once() {
    let (space, netlink, index) = wired();
    for address in ["10.77.0.11/24", "fd77::11/64"] {
        let options = AddressOptions {
            no_prefix_route: true,
            link_scope: false,
            no_dad: true,
        };
        netlink
            .add_address(index, address.parse().unwrap(), options)
            .unwrap();
    }
    let route = |destination: &str, gateway: &str, source: Option<&str>, mtu| Route {
        gateway: Some(gateway.parse().unwrap()),
        onlink: true,
        source: source.map(|s| s.parse::<IpAddr>().unwrap()),
        mtu,
        protocol: 83,
        ..Route::new(destination.parse().unwrap(), index)
    };
    let routes = [
        route("0.0.0.0/0", "10.77.0.1", None, Some(1500)),
        route(
            "10.77.0.0/24",
            "10.77.0.1",
            Some("10.77.0.11"),
            Some(65_000),
        ),
        route("::/0", "fd77::1", None, Some(1500)),
        route("fd77::/64", "fe80::1", Some("fd77::11"), None),
        Route {
            gateway: None,
            onlink: false,
            scope: Route::SCOPE_LINK,
            ..route("169.254.1.2/32", "0.0.0.0", None, None)
        },
        Route {
            priority: Some(50),
            advmss: Some(1200),
            scope: 200,
            ..route("10.96.0.0/12", "10.77.0.1", None, None)
        },
        Route {
            priority: Some(50),
            ..route("fd96::/64", "fd77::1", None, Some(1400))
        },
    ];
    for route in &routes {
        netlink.replace_route(route).unwrap();
        netlink.replace_route(route).unwrap();
    }
    let read = netlink.routes().unwrap();
    for route in &routes {
        let same = read.iter().filter(|r| *r == route).count();
        assert_eq!(same, 1, "{route:?} in {read:#?}");
    }
    let shown = space.exec(&["ip", "route", "get", "10.77.0.12"]);
    assert!(shown.contains("mtu 65000"), "{shown}");

    // A changed route takes the place of the old one.
    let changed = route("0.0.0.0/0", "10.77.0.2", None, Some(1400));
    netlink.replace_route(&changed).unwrap();
    let read = netlink.routes().unwrap();
    assert!(read.contains(&changed) && !read.contains(&routes[0]));
    netlink.replace_route(&routes[0]).unwrap();

    for route in &routes {
        assert!(netlink.delete_route(route).unwrap(), "{route}");
        assert!(!netlink.delete_route(route).unwrap(), "{route}");
    }
}

#[test]
fn routes_of_other_tables_are_read_and_deleted_there() {
    let (_space, netlink, index) = wired();
    let main = netlink.routes().unwrap();
    for (destination, table) in [
        ("10.9.0.0/16", 100),
        ("fd09::/64", 100),
        ("10.9.0.0/16", 4000),
    ] {
        let route = Route {
            table,
            protocol: 4,
            scope: if destination.contains(':') {
                0
            } else {
                Route::SCOPE_LINK
            },
            ..Route::new(destination.parse().unwrap(), index)
        };
        assert!(netlink.add_route(&route).unwrap(), "{route}");
        assert!(netlink.routes_of_all_tables().unwrap().contains(&route));
        assert_eq!(netlink.routes().unwrap(), main);
        assert!(netlink.delete_route(&route).unwrap(), "{route}");
        assert!(!netlink.delete_route(&route).unwrap(), "{route}");
    }
}

#[test]
fn only_the_namespaces_own_addresses_are_delivered() {
    let (space, netlink, index) = wired();
    let foreign: [IpAddr; 2] = ["10.77.0.9".parse().unwrap(), "fd77::9".parse().unwrap()];
    for address in foreign {
        assert!(!netlink.delivers(address).unwrap(), "no route: {address}");
    }
    for own in ["10.77.0.2/24", "fd77::2/64"] {
        let options = AddressOptions {
            no_dad: own.contains(':'),
            ..AddressOptions::default()
        };
        let own: IpNet = own.parse().unwrap();
        netlink.add_address(index, own, options).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !netlink.delivers(own.addr()).unwrap() {
            assert!(
                Instant::now() < deadline,
                "{}",
                space.exec(&["ip", "address"])
            );
            std::thread::yield_now();
        }
    }
    for address in foreign {
        assert!(
            !netlink.delivers(address).unwrap(),
            "a route to it: {address}"
        );
    }
}

#[test]
fn neighbours_are_permanent_and_replaceable() {
    let (space, netlink, index) = wired();
    for address in ["169.254.1.1", "fe80::1"] {
        let ip = address.parse().unwrap();
        netlink.replace_neighbour(index, ip, FAR).unwrap();
        netlink.replace_neighbour(index, ip, NEAR).unwrap();
        let seen = space.ip(&["neighbour", "show", "to", address, "dev", "near0"]);
        assert_eq!(seen[0]["lladdr"], "02:53:00:00:00:01");
        assert_eq!(seen[0]["state"][0], "PERMANENT");
        assert_eq!(netlink.neighbour(index, ip).unwrap(), Some(NEAR));
        assert_eq!(netlink.neighbour(index + 1, ip).unwrap(), None);
    }
}

#[test]
fn the_next_hop_is_the_gateway_or_the_address_itself() {
    let (_space, netlink, index) = wired();
    for (address, link, gateway, beyond) in [
        ("192.0.2.1/24", "192.0.2.9", "192.0.2.2", "203.0.113.1"),
        (
            "2001:db8::1/64",
            "2001:db8::9",
            "2001:db8::2",
            "2001:db8:9::1",
        ),
    ] {
        let options = AddressOptions {
            no_dad: true,
            ..AddressOptions::default()
        };
        netlink
            .add_address(index, address.parse().unwrap(), options)
            .unwrap();
        let [link, gateway, beyond] = [link, gateway, beyond].map(|ip| ip.parse().unwrap());
        assert_eq!(netlink.next_hop(link).unwrap(), (index, link));
        let error = netlink.next_hop(beyond).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENETUNREACH), "{error}");
        let route = Route {
            gateway: Some(gateway),
            ..Route::new(IpNet::from(beyond), index)
        };
        netlink.replace_route(&route).unwrap();
        assert_eq!(netlink.next_hop(beyond).unwrap(), (index, gateway));
    }
}

/// What the main table says of a destination: priority and next hops.
fn forwarding(netlink: &Netlink, destination: &str) -> Vec<(u32, Vec<Hop>)> {
    let all = netlink.forwarding().unwrap().into_iter();
    let destination = destination.parse().unwrap();
    let mut found: Vec<_> = all
        .filter(|route| route.destination == destination)
        .map(|route| (route.priority, route.hops))
        .collect();
    found.sort_by_key(|(priority, _)| *priority);
    found
}

#[test]
fn forwarding_has_every_next_hop_and_none_where_more_decides() {
    let (space, netlink, near) = wired();
    let far = netlink.index("far0").unwrap();
    for (link, net) in [("near0", 1), ("far0", 2)] {
        space.exec(&[
            "ip",
            "address",
            "add",
            &format!("10.0.{net}.1/24"),
            "dev",
            link,
        ]);
        let address = format!("fd00:{net}::1/64");
        space.exec(&["ip", "address", "add", &address, "dev", link, "nodad"]);
    }
    for route in [
        "default via 10.0.1.2",
        "default via 10.0.2.2 metric 5",
        "10.1.0.0/16 nexthop via 10.0.1.3 nexthop via inet6 fd00:2::3",
        "unreachable 10.2.0.0/16",
        "10.3.0.0/16 tos 0x10 via 10.0.1.2",
        "10.4.0.0/16 via 10.0.1.2 table 77",
        "fd01::/32 nexthop via fd00:1::3 nexthop via fd00:2::3",
        "fd02::/32 from fd03::/32 via fd00:1::3",
    ] {
        let words = route.split(' ');
        let command: Vec<&str> = ["ip", "route", "add"].into_iter().chain(words).collect();
        space.exec(&command);
    }
    let hop = |interface, gateway: &str| Hop {
        interface,
        gateway: gateway.parse().ok(),
    };
    for (destination, expected) in [
        ("10.0.1.0/24", vec![(0, vec![hop(near, "on the link")])]),
        (
            "0.0.0.0/0",
            vec![
                (0, vec![hop(near, "10.0.1.2")]),
                (5, vec![hop(far, "10.0.2.2")]),
            ],
        ),
        (
            "10.1.0.0/16",
            vec![(0, vec![hop(near, "10.0.1.3"), hop(far, "fd00:2::3")])],
        ),
        ("10.2.0.0/16", vec![(0, vec![])]),
        ("10.3.0.0/16", vec![(0, vec![])]),
        ("10.4.0.0/16", vec![]),
        (
            "fd01::/32",
            vec![(1024, vec![hop(near, "fd00:1::3"), hop(far, "fd00:2::3")])],
        ),
        ("fd02::/32", vec![(1024, vec![])]),
    ] {
        assert_eq!(forwarding(&netlink, destination), expected, "{destination}");
    }
}

#[test]
fn neighbours_are_known_once_they_have_answered() {
    let (space, peer) = (Space::new(), Space::new());
    let netlink = space.netlink();
    netlink.create_veth(&pair(Some(&peer.open()))).unwrap();
    let index = netlink.index("near0").unwrap();
    for (space, link, host) in [(&space, "near0", 1), (&peer, "far0", 2)] {
        space.exec(&[
            "ip",
            "address",
            "add",
            &format!("10.0.1.{host}/24"),
            "dev",
            link,
        ]);
        let address = format!("fd00:1::{host}/64");
        space.exec(&["ip", "address", "add", &address, "dev", link, "nodad"]);
        space.exec(&["ip", "link", "set", link, "up"]);
    }
    for address in ["10.0.1.2", "fd00:1::2"].map(|text| text.parse().unwrap()) {
        let known = || netlink.neighbours(index).unwrap().get(&address).copied();
        assert_eq!(known(), None);
        netlink.use_neighbour(index, address).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while known().is_none() {
            assert!(Instant::now() < deadline, "{address} never answered");
        }
        assert_eq!(known().unwrap().mac, FAR);
        let text = address.to_string();
        let states = ["ip", "neighbour", "change", &text, "dev", "near0", "nud"];
        for (state, is_stale) in [("stale", true), ("reachable", false)] {
            space.exec(&[&states[..], &[state]].concat());
            assert_eq!(known().unwrap().is_stale, is_stale, "{state}");
        }
        space.exec(&[&states[..], &["failed"]].concat());
        assert_eq!(known(), None);
    }
}

#[test]
fn only_rules_that_may_choose_otherwise_are_policy() {
    let (space, netlink, _) = wired();
    let rule = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        space.exec(&[&["ip"], words.as_slice()].concat());
    };
    assert_eq!(netlink.policy_rule("near0").unwrap(), None);
    for (family, selector, is_policy) in [
        ("-4", "from 10.0.0.1 lookup 77", true),
        ("-6", "from fd00::1 lookup main", true),
        ("-4", "from all lookup 77", true),
        ("-4", "fwmark 0x1 lookup main", true),
        ("-6", "iif near0 lookup 77", true),
        ("-4", "iif far0 lookup 77", false),
        ("-4", "from all lookup main", false),
        ("-4", "from all lookup main suppress_prefixlength 0", true),
        ("-6", "from all unreachable", true),
    ] {
        rule(&format!("{family} rule add {selector} pref 99"));
        let expected = is_policy.then_some(99);
        assert_eq!(
            netlink.policy_rule("near0").unwrap(),
            expected,
            "{selector}"
        );
        rule(&format!("{family} rule delete pref 99"));
    }
}

#[test]
fn offloads_are_off_where_ethtool_looks() {
    let (space, _netlink, _index) = wired();
    let states = || -> Vec<(String, String)> {
        let shown = space.exec(&["ethtool", "-k", "near0"]);
        let lines = shown.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(name, _)| name.trim().starts_with("tx-checksum"))
            .map(|(name, state)| (name.trim().into(), state.into()))
            .collect()
    };
    let state = |name: &str| {
        let all = states();
        let found = all.iter().find(|(n, _)| n == name);
        found.map(|(_, state)| state.clone()).unwrap()
    };
    assert_eq!(state("tx-checksum-sctp"), "on");
    let disable = |feature| {
        space
            .open()
            .run(|| features::disable("near0", feature))
            .unwrap()
    };

    disable(Feature::TxChecksumSctp).unwrap();
    assert_eq!(state("tx-checksum-sctp"), "off");
    assert_eq!(state("tx-checksum-ip-generic"), "on");

    disable(Feature::TxChecksum).unwrap();
    for (name, state) in states() {
        assert!(state.starts_with("off"), "{name} is {state}");
    }
    // Off already is as good.
    disable(Feature::TxChecksum).unwrap();
}

#[test]
fn only_the_job_enters_the_namespace() {
    let (space, other) = (Space::new(), Space::new());
    let netns = space.open();
    let before = Netns::current().unwrap();
    let inside = netns
        .run(|| {
            sysctl::write("net/ipv4/ip_forward", "1").unwrap();
            Netns::current().unwrap()
        })
        .unwrap();
    assert!(inside.is_same(&netns));
    assert!(!inside.is_same(&before));
    assert!(Netns::current().unwrap().is_same(&before));

    let forwarding = |space: &Space| {
        let read = || sysctl::read("net/ipv4/ip_forward").unwrap();
        space.open().run(read).unwrap()
    };
    assert_eq!(forwarding(&space), "1");
    assert_eq!(forwarding(&other), "0");
}
