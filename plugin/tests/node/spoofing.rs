//! What a pod may not send, on the wire: dropped under its reason, and seen
//! by nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use etherparse::ArpOperation;

use crate::harness::flows::ping;
use crate::harness::frames::{BROADCAST, Ends, arp};
use crate::harness::wire::{Injector, Sniffer, holds};
use crate::harness::{NODE4, NODE6, Node, Options, Pod, wait_until};

const MARK: &[u8] = b"forged by the test";
const FOREIGN_MAC: [u8; 6] = [0x02, 0xbd, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// A forged frame, and the reason it is to be dropped for.
struct Forgery {
    reason: &'static str,
    frame: Vec<u8>,
}

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// What `a` would send to `b` if it were honest.
fn honest(a: &Pod, b: &Pod, like: IpAddr) -> Ends {
    let (gateway, mac) = a.macs();
    Ends {
        src_mac: mac,
        dst_mac: gateway,
        src: a.address_like(like),
        dst: b.address_like(like),
    }
}

fn forgeries(a: &Pod, b: &Pod) -> Vec<Forgery> {
    let mut all = forged_ip(a, b);
    all.extend(forged_arp(a, b));
    all.extend(forged_discovery(a, b));
    all.into_iter()
        .map(|(reason, frame)| Forgery { reason, frame })
        .collect()
}

fn forged_ip(a: &Pod, b: &Pod) -> Vec<(&'static str, Vec<u8>)> {
    let v4 = honest(a, b, NODE4);
    let v6 = honest(a, b, NODE6);
    let src = |ends: Ends, src: &str| {
        Ends {
            src: parse(src),
            ..ends
        }
        .udp(MARK)
    };
    let dst = |ends: Ends, dst: &str| {
        Ends {
            dst: parse(dst),
            ..ends
        }
        .udp(MARK)
    };
    let mac = |ends: Ends, dst_mac| Ends { dst_mac, ..ends };
    let mut corrupt = v4.udp(MARK);
    corrupt[14 + 10] ^= 1;
    vec![
        (
            "spoofed-mac",
            Ends {
                src_mac: FOREIGN_MAC,
                ..v4
            }
            .udp(MARK),
        ),
        (
            "spoofed-mac",
            Ends {
                src_mac: b.macs().1,
                ..v6
            }
            .udp(MARK),
        ),
        ("spoofed-address", src(v4, "10.77.0.200")),
        ("spoofed-address", src(v4, "127.0.0.1")),
        ("spoofed-address", src(v4, "198.51.100.1")),
        ("spoofed-address", src(v6, "fd77::beef")),
        ("spoofed-address", src(v6, "::1")),
        (
            "spoofed-address",
            Ends {
                src: b.v4(),
                dst: a.gateway_like(NODE4),
                ..v4
            }
            .udp(MARK),
        ),
        ("wrong-mac", mac(v4, b.macs().1).udp(MARK)),
        ("wrong-mac", mac(v6, FOREIGN_MAC).udp(MARK)),
        ("broadcast", mac(v4, BROADCAST).udp(MARK)),
        ("broadcast", dst(mac(v4, BROADCAST), "255.255.255.255")),
        ("broadcast", dst(v4, "255.255.255.255")),
        (
            "multicast",
            dst(mac(v4, [1, 0, 0x5e, 0, 0, 0xfb]), "224.0.0.251"),
        ),
        ("multicast", dst(mac(v6, ALL_NODES_MAC), "ff02::1")),
        ("multicast", dst(v6, "ff05::2")),
        ("martian", dst(v4, "127.0.0.1")),
        ("martian", dst(v4, "240.0.0.1")),
        ("martian", dst(v6, "::1")),
        ("link-local", dst(v6, "fe80::1")),
        ("unknown-ethertype", vlan(0x8100, &v4.udp(MARK))),
        ("unknown-ethertype", vlan(0x88a8, &v6.udp(MARK))),
        ("unknown-ethertype", v4.other(0x88cc, MARK)),
        ("malformed-ipv4-checksum", corrupt),
    ]
}

/// The frame with a tag of VLAN 7.
fn vlan(kind: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &kind.to_be_bytes(), &[0, 7], &frame[12..]].concat()
}

fn forged_arp(a: &Pod, b: &Pod) -> Vec<(&'static str, Vec<u8>)> {
    let mac = a.macs().1;
    let (own, gateway) = (a.v4(), a.gateway_like(NODE4));
    let ask = |sender, target| arp(mac, ArpOperation::REQUEST, sender, target);
    vec![
        ("spoofed-arp", ask((mac, b.v4()), gateway)),
        ("spoofed-arp", ask((mac, gateway), gateway)),
        ("spoofed-arp", ask((FOREIGN_MAC, own), gateway)),
        (
            "spoofed-arp",
            arp(mac, ArpOperation::REPLY, (mac, gateway), b.v4()),
        ),
        (
            "spoofed-mac",
            arp(
                FOREIGN_MAC,
                ArpOperation::REQUEST,
                (FOREIGN_MAC, own),
                gateway,
            ),
        ),
        ("arp-unanswered", ask((mac, own), b.v4())),
        (
            "arp-unanswered",
            arp(mac, ArpOperation::REPLY, (mac, own), b.v4()),
        ),
        ("malformed-arp", ask((mac, own), gateway)[..30].to_vec()),
    ]
}

fn forged_discovery(a: &Pod, b: &Pod) -> Vec<(&'static str, Vec<u8>)> {
    let mac = a.macs().1;
    let gateway = a.gateway_like(NODE6);
    let ends = Ends {
        dst_mac: ALL_NODES_MAC,
        dst: parse("ff02::1"),
        ..honest(a, b, NODE6)
    };
    let as_other = Ends {
        src: b.v6(),
        ..ends
    };
    let link_local = Ends {
        src: a.link_local("eth0").unwrap(),
        ..ends
    };
    let mut far = ends.solicitation(gateway, mac);
    far[14 + 7] = 64;
    vec![
        ("spoofed-neighbour", as_other.solicitation(gateway, mac)),
        ("spoofed-neighbour", ends.solicitation(gateway, FOREIGN_MAC)),
        ("spoofed-neighbour", ends.advertisement(gateway, mac)),
        ("spoofed-neighbour", ends.advertisement(b.v6(), mac)),
        ("spoofed-neighbour", ends.advertisement(a.v6(), FOREIGN_MAC)),
        ("neighbour-unanswered", ends.solicitation(b.v6(), mac)),
        ("router-advertisement", link_local.router_advertisement()),
        ("redirect", link_local.redirect(b.v6())),
        ("malformed-neighbour-discovery", far),
    ]
}

#[test]
fn each_forgery_is_dropped_under_its_reason_and_seen_by_nobody() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let injector = Injector::new(&a, "eth0");
    // The pod's own neighbour discovery on a new interface must be over.
    ping(&a, b.v6());
    let sniffers = [Sniffer::new(&b), Sniffer::new(node.space())];
    let mut expected = BTreeMap::<_, u64>::new();
    for (number, Forgery { reason, frame }) in forgeries(&a, &b).into_iter().enumerate() {
        let before = node.row(&a).counters.dropped(reason);
        injector.send(&frame);
        wait_until(&format!("forgery {number} is counted as {reason}"), || {
            (node.row(&a).counters.dropped(reason) > before).then_some(())
        });
        *expected.entry(reason.to_owned()).or_default() += 1;
    }
    let mut counted = node.row(&a).counters.drops;
    // The pod's kernel itself sends to groups (MLD, router solicitations).
    for drops in [&mut counted, &mut expected] {
        assert!(drops.remove("multicast") >= Some(3));
    }
    assert_eq!(counted, expected);
    let last = b"honest after all";
    injector.send(&honest(&a, &b, NODE4).udp(last));
    for frame in sniffers[0].until(|frame| holds(frame, last)) {
        assert_eq!(frame[6..12], b.macs().1, "b saw {frame:02x?}");
    }
    injector.send(
        &Ends {
            dst: a.gateway_like(NODE4),
            ..honest(&a, &b, NODE4)
        }
        .udp(last),
    );
    for frame in sniffers[1].until(|frame| holds(frame, last)) {
        assert!(!holds(&frame, MARK), "the host saw {frame:02x?}");
    }
    node.finish();
}

#[test]
fn questions_to_the_gateway_are_answered() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    let (gateway_mac, mac) = pod.macs();
    let (injector, sniffer) = (Injector::new(&pod, "eth0"), Sniffer::new(&pod));
    injector.send(&arp(
        mac,
        ArpOperation::REQUEST,
        (mac, pod.v4()),
        pod.gateway_like(NODE4),
    ));
    let is_reply = |frame: &[u8]| frame[6..12] == gateway_mac && frame[20..22] == [0, 2];
    sniffer.until(is_reply).for_each(drop);

    let gateway = pod.gateway_like(NODE6);
    let ends = Ends {
        src_mac: mac,
        dst_mac: ALL_NODES_MAC,
        src: pod.v6(),
        dst: parse("ff02::1"),
    };
    injector.send(&ends.solicitation(gateway, mac));
    let is_advert = |frame: &[u8]| frame[6..12] == gateway_mac && frame.get(54) == Some(&136);
    sniffer.until(is_advert).for_each(drop);
    assert_eq!(node.row(&pod).counters.answered, 2);
    node.finish();
}

#[test]
fn traceroute_shows_the_gateway_between_pods() {
    let node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    for address in b.addresses() {
        let shown = a.exec(&format!("traceroute -n -q 1 -w 10 {address}"));
        let hops: Vec<_> = shown.lines().skip(1).collect();
        let gateway = a.gateway_like(address);
        assert_eq!(hops.len(), 2, "{shown}");
        assert!(hops[0].contains(&format!(" {gateway} ")), "{shown}");
        assert!(hops[1].contains(&format!(" {address} ")), "{shown}");
    }
    assert_eq!(node.row(&a).counters.dropped("ttl-exceeded"), 2);
    node.finish();
}
