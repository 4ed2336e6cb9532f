//! Mapped ports of the node, over in-memory kernels: the first packet goes by
//! the host, whose part these tests play, the rest past it. No privileges needed.

use std::net::{IpAddr, SocketAddr};

use sluice_control::{Limit, Shaping};
use sluice_dataplane::lab::{GATEWAY_MAC, HOST, Lab, LabOptions, MTU, link, mac, v4, v6};
use sluice_dataplane::mappings::{Mapping, Mappings};
use sluice_dataplane::next_hops::{NextHops, Path, Uplink};
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::packet::{Ethernet, protocol};
use sluice_dataplane::port::PortId;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::memory::Sent;

/// A pod of the node that asks.
const ASKER: u16 = 1;
/// The pod behind the mapped port.
const SERVER: u16 = 2;
const UPLINK: u16 = 3;
const OTHER_QUEUE: u16 = 4;

const NODE4: &str = "192.0.2.1";
const NODE6: &str = "2001:db8::1";
const OUTSIDE4: &str = "198.51.100.7";
const OUTSIDE6: &str = "2001:db8:7::7";
/// The next hop to what is outside, and another one.
const ROUTER: [u8; 6] = [2, 9, 9, 9, 9, 1];
const OTHER_ROUTER: [u8; 6] = [2, 9, 9, 9, 9, 2];

const HOST_PORT: u16 = 8080;
const CONTAINER_PORT: u16 = 80;

type Make = fn(SocketAddr, SocketAddr) -> Datagram;

const PROTOCOLS: [Make; 3] = [
    |src, dst| build::tcp(src, dst).payload(b"question or answer"),
    |src, dst| build::udp(src, dst).payload(b"question or answer"),
    |src, dst| build::sctp(src, dst).payload(b"question or answer"),
];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn server(generation: u16) -> PortId {
    PortId {
        slot: SERVER,
        generation,
    }
}

/// [`HOST_PORT`] of all the node's addresses leads to the server.
fn mappings(pod: PortId) -> Mappings {
    let of = |protocol| {
        let mapping = |address: &str, pod_address| Mapping {
            address: ip(address),
            host_port: HOST_PORT,
            protocol,
            pod,
            pod_address,
            container_port: CONTAINER_PORT,
        };
        [
            mapping("0.0.0.0", v4(pod.slot).into()),
            mapping("::", v6(pod.slot).into()),
        ]
    };
    Mappings::new(
        [ip(NODE4), ip(NODE6)],
        [protocol::TCP, protocol::UDP, protocol::SCTP]
            .into_iter()
            .flat_map(of),
    )
}

/// All of both families, by one way.
fn everything(path: Path) -> [((IpAddr, u8), Path); 2] {
    ["0.0.0.0", "::"].map(|any| ((ip(any), 0), path))
}

/// The uplink with routes, and neighbours.
fn uplink(
    routes: impl IntoIterator<Item = ((IpAddr, u8), Path)>,
    neighbours: &[(IpAddr, [u8; 6])],
) -> Uplink {
    Uplink {
        mac: mac(UPLINK),
        mtu: MTU,
        next_hops: NextHops::new(routes, neighbours.iter().copied()),
    }
}

fn lab() -> Lab {
    let mut lab = Lab::new(LabOptions {
        uplinks: 2,
        ..LabOptions::default()
    });
    lab.set_mappings(mappings(server(0)));
    lab.set_uplink(&uplink(everything(Path::OnLink), &[]));
    lab
}

/// Who asks: by which port, with which link layer, from where.
#[derive(Debug, Clone, Copy)]
struct Client {
    slot: u16,
    link: Ethernet,
    address: SocketAddr,
    node: SocketAddr,
    pod: SocketAddr,
}

impl Client {
    fn new(slot: u16, link: Ethernet, address: IpAddr) -> Self {
        let (node, pod) = match address {
            IpAddr::V4(_) => (ip(NODE4), v4(SERVER).into()),
            IpAddr::V6(_) => (ip(NODE6), v6(SERVER).into()),
        };
        Self {
            slot,
            link,
            address: SocketAddr::new(address, 4000),
            node: SocketAddr::new(node, HOST_PORT),
            pod: SocketAddr::new(pod, CONTAINER_PORT),
        }
    }

    fn outside(address: &str) -> Self {
        Self::new(UPLINK, from_router(UPLINK), ip(address))
    }

    fn pod(address: impl Into<IpAddr>) -> Self {
        Self::new(ASKER, link(ASKER), address.into())
    }

    fn all() -> [Self; 4] {
        [
            Self::outside(OUTSIDE4),
            Self::outside(OUTSIDE6),
            Self::pod(v4(ASKER)),
            Self::pod(v6(ASKER)),
        ]
    }

    /// The link layer of what it gets.
    fn to_it(self) -> Ethernet {
        Ethernet {
            dst: self.link.src,
            src: self.link.dst,
        }
    }

    fn question(&self, make: Make) -> Datagram {
        make(self.address, self.node)
    }

    fn translated_question(&self, make: Make) -> Datagram {
        make(self.address, self.pod)
    }

    fn answer(&self, make: Make) -> Datagram {
        make(self.pod, self.address)
    }

    fn translated_answer(&self, make: Make) -> Datagram {
        make(self.node, self.address)
    }

    /// The first packet, by the kernel.
    fn open(&self, lab: &mut Lab, make: Make) {
        let question = self.question(make);
        let arrived = lab.send(self.slot, &question.frame(self.link));
        assert_eq!(only(&arrived), (HOST, &question.frame(to(HOST))[..]));
        let brought = self.translated_question(make).ttl(63);
        let arrived = lab.send(HOST, &brought.frame(link(HOST)));
        assert_eq!(only(&arrived), (SERVER, &brought.frame(to(SERVER))[..]));
    }
}

fn from_router(slot: u16) -> Ethernet {
    Ethernet {
        dst: mac(slot),
        src: ROUTER,
    }
}

fn to(slot: u16) -> Ethernet {
    Ethernet {
        dst: mac(slot),
        src: GATEWAY_MAC,
    }
}

#[track_caller]
fn only(arrived: &[(u16, Sent)]) -> (u16, &[u8]) {
    assert_eq!(arrived.len(), 1, "{arrived:?}");
    (arrived[0].0, &arrived[0].1.bytes)
}

const TCP: Make = PROTOCOLS[0];
const UDP: Make = PROTOCOLS[1];

#[test]
fn after_the_first_packet_the_kernel_sees_no_more() {
    for client in Client::all() {
        for make in PROTOCOLS {
            let mut lab = lab();
            client.open(&mut lab, make);
            for _ in 0..2 {
                let arrived = lab.send(SERVER, &client.answer(make).frame(link(SERVER)));
                let expected = client.translated_answer(make).ttl(63);
                assert_eq!(
                    only(&arrived),
                    (client.slot, &expected.frame(client.to_it())[..])
                );
                let arrived = lab.send(client.slot, &client.question(make).frame(client.link));
                let expected = client.translated_question(make).ttl(63);
                assert_eq!(only(&arrived), (SERVER, &expected.frame(to(SERVER))[..]));
            }
            lab.assert_no_chunk_lost();
        }
    }
}

/// A client that does not wait has several packets with the kernel when the
/// first comes back.
#[test]
fn what_the_kernel_still_brings_changes_nothing() {
    for client in Client::all() {
        for make in PROTOCOLS {
            let mut lab = lab();
            client.open(&mut lab, make);
            for _ in 0..3 {
                let brought = client.translated_question(make).ttl(63);
                let arrived = lab.send(HOST, &brought.frame(link(HOST)));
                assert_eq!(only(&arrived), (SERVER, &brought.frame(to(SERVER))[..]));
                let arrived = lab.send(client.slot, &client.question(make).frame(client.link));
                assert_eq!(only(&arrived).0, SERVER);
            }
            let arrived = lab.send(SERVER, &client.answer(make).frame(link(SERVER)));
            let expected = client.translated_answer(make).ttl(63).frame(client.to_it());
            assert_eq!(only(&arrived), (client.slot, &expected[..]));
        }
    }
}

#[test]
fn what_is_translated_is_merged_as_what_it_becomes() {
    for client in Client::all() {
        let mut lab = lab();
        client.open(&mut lab, TCP);
        let part = |stream: Datagram, n: u32| {
            let segment = stream.sequence(n * 200).dont_fragment();
            segment.payload([7; 200 - b"question or answer".len()])
        };
        for n in 0..3 {
            let frame = part(client.question(TCP), n).frame(client.link);
            assert!(lab.inject(client.slot, &frame));
        }
        let whole = part(client.translated_question(TCP), 0).ttl(63);
        let whole = (1..3).fold(whole, |whole, _| {
            let whole = whole.payload(b"question or answer");
            whole.payload([7; 200 - b"question or answer".len()])
        });
        let expected = whole.partial().frame(to(SERVER));
        assert_eq!(only(&lab.run()), (SERVER, &expected[..]));
        lab.assert_conserved();
    }
}

/// The peer is the node, as it was while the answers came by the kernel, and not the
/// pod behind the mapped port.
#[test]
fn a_limit_is_of_traffic_with_the_peer_that_the_pod_sees() {
    for client in [Client::pod(v4(ASKER)), Client::pod(v6(ASKER))] {
        for (shaped, is_limited) in [(client.node.ip(), true), (client.pod.ip(), false)] {
            let mut lab = lab();
            client.open(&mut lab, UDP);
            let shaping = Shaping {
                ingress: Some(Limit {
                    rate: 1_000,
                    burst: 8,
                }),
                shaped_subnets: vec![shaped.into()],
                ..Shaping::default()
            };
            lab.shape(ASKER, &shaping, MTU);
            let answer = client.answer(UDP).frame(link(SERVER));
            assert_eq!(only(&lab.send(SERVER, &answer)).0, ASKER);
            assert_eq!(lab.send(SERVER, &answer).is_empty(), is_limited);
        }
    }
}

#[test]
fn the_kernel_sees_how_a_connection_begins_and_ends() {
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    const FIN: u8 = 0x11;
    const RST: u8 = 0x04;
    for client in Client::all() {
        let mut lab = lab();
        let asks = |flags| client.question(TCP).flags(flags).frame(client.link);
        let answers = |flags| client.answer(TCP).flags(flags).frame(link(SERVER));
        let brought = |flags| {
            let question = client.translated_question(TCP);
            question.flags(flags).frame(link(HOST))
        };
        for _ in 0..2 {
            assert_eq!(only(&lab.send(client.slot, &asks(SYN))).0, HOST);
            assert_eq!(only(&lab.send(HOST, &brought(SYN))).0, SERVER);
            assert_eq!(only(&lab.send(SERVER, &answers(SYN_ACK))).0, HOST);
            client.open(&mut lab, TCP);
            assert_eq!(
                only(&lab.send(client.slot, &client.question(TCP).frame(client.link))).0,
                SERVER
            );
            for flags in [FIN, RST] {
                assert_eq!(only(&lab.send(client.slot, &asks(flags))).0, HOST);
                assert_eq!(only(&lab.send(HOST, &brought(flags))).0, SERVER);
                assert_eq!(only(&lab.send(SERVER, &answers(flags))).0, HOST);
            }
        }
    }
}

#[test]
fn what_the_kernel_translates_otherwise_stays_with_it() {
    for client in Client::all() {
        let mut lab = lab();
        let question = client.question(TCP).frame(client.link);
        let masqueraded = Client {
            address: SocketAddr::new(client.node.ip(), 4000),
            ..client
        };
        let elsewhere = Client {
            pod: SocketAddr::new(client.pod.ip(), CONTAINER_PORT + 1),
            ..client
        };
        for brought in [masqueraded, elsewhere] {
            assert_eq!(only(&lab.send(client.slot, &question)).0, HOST);
            let brought = brought.translated_question(TCP).frame(link(HOST));
            assert_eq!(only(&lab.send(HOST, &brought)).0, SERVER);
        }
        assert_eq!(only(&lab.send(client.slot, &question)).0, HOST);
        let answer = masqueraded.answer(TCP).frame(link(SERVER));
        assert_eq!(only(&lab.send(SERVER, &answer)).0, HOST);
    }
}

#[test]
fn what_asks_for_no_mapped_port_is_the_hosts() {
    let mut lab = lab();
    for client in Client::all() {
        let others = [
            SocketAddr::new(client.node.ip(), HOST_PORT + 1),
            // An address that is not the node's (CVE-2025-67499).
            match client.node {
                SocketAddr::V4(_) => SocketAddr::new(ip("192.0.2.2"), HOST_PORT),
                SocketAddr::V6(_) => SocketAddr::new(ip("2001:db8::2"), HOST_PORT),
            },
        ];
        for node in others {
            let other = Client { node, ..client };
            other.open(&mut lab, UDP);
            let question = other.question(UDP).frame(client.link);
            assert_eq!(only(&lab.send(client.slot, &question)).0, HOST);
        }
    }
}

#[test]
fn the_next_pod_gets_the_next_packet() {
    for client in Client::all() {
        let mut lab = lab();
        client.open(&mut lab, UDP);
        let question = client.question(UDP).frame(client.link);
        assert_eq!(only(&lab.send(client.slot, &question)).0, SERVER);
        lab.detach(SERVER);
        assert_eq!(only(&lab.send(client.slot, &question)).0, HOST);
        let next = lab.attach(SERVER, 1, MTU);
        lab.set_mappings(mappings(next));
        client.open(&mut lab, UDP);
        assert_eq!(only(&lab.send(client.slot, &question)).0, SERVER);
        lab.assert_no_chunk_lost();
    }
}

/// An ICMP error from `from` about a packet.
fn error(from: IpAddr, to: IpAddr, about: &Datagram) -> Datagram {
    // Fragmentation needed, packet too big.
    let (kind, rest) = match from {
        IpAddr::V4(_) => ((3, 4), 1280),
        IpAddr::V6(_) => ((2, 0), 1280),
    };
    build::icmp(from, to, kind, rest).payload(about.packet())
}

#[test]
fn errors_find_both_ends() {
    for client in Client::all() {
        let mut lab = lab();
        client.open(&mut lab, TCP);
        let (address, node, pod) = (client.address.ip(), client.node.ip(), client.pod.ip());

        // From the client's end about an answer.
        let about = error(address, node, &client.translated_answer(TCP));
        let arrived = lab.send(client.slot, &about.frame(client.link));
        let expected = error(address, pod, &client.answer(TCP)).ttl(63);
        assert_eq!(only(&arrived), (SERVER, &expected.frame(to(SERVER))[..]));

        // From the pod about a question.
        let about = error(pod, address, &client.translated_question(TCP));
        let arrived = lab.send(SERVER, &about.frame(link(SERVER)));
        let expected = error(node, address, &client.question(TCP)).ttl(63);
        assert_eq!(
            only(&arrived),
            (client.slot, &expected.frame(client.to_it())[..])
        );
    }
}

#[test]
fn an_error_of_a_router_comes_by_any_queue() {
    let mut lab = lab();
    let client = Client::outside(OUTSIDE4);
    client.open(&mut lab, TCP);
    let router = ip("203.0.113.1");
    let about = error(router, client.node.ip(), &client.translated_answer(TCP));
    let arrived = lab.send(OTHER_QUEUE, &about.frame(from_router(UPLINK)));
    let expected = error(router, client.pod.ip(), &client.answer(TCP)).ttl(63);
    assert_eq!(only(&arrived), (SERVER, &expected.frame(to(SERVER))[..]));
}

/// Asserts that the server's answer to a client outside goes to this next hop.
#[track_caller]
fn answers_go_to(next_hop: [u8; 6], client: &Client, lab: &mut Lab) {
    let arrived = lab.send(SERVER, &client.answer(TCP).frame(link(SERVER)));
    let expected = client.translated_answer(TCP).ttl(63).frame(Ethernet {
        dst: next_hop,
        src: mac(UPLINK),
    });
    assert_eq!(only(&arrived), (UPLINK, &expected[..]));
}

#[test]
fn answers_go_where_the_last_question_came_from_if_nothing_is_known() {
    let mut lab = lab();
    let client = Client::outside(OUTSIDE6);
    client.open(&mut lab, TCP);
    answers_go_to(ROUTER, &client, &mut lab);
    let moved = Ethernet {
        dst: mac(UPLINK),
        src: OTHER_ROUTER,
    };
    let question = client.question(TCP).frame(moved);
    assert_eq!(only(&lab.send(UPLINK, &question)).0, SERVER);
    answers_go_to(OTHER_ROUTER, &client, &mut lab);
}

#[test]
fn answers_follow_the_nodes_routes_and_neighbours() {
    const NEW_MAC: [u8; 6] = [2, 9, 9, 9, 9, 3];
    let [first, second] = [ip("192.0.2.254"), ip("fe80::254")];
    for address in [OUTSIDE4, OUTSIDE6] {
        let mut lab = lab();
        let client = Client::outside(address);
        client.open(&mut lab, TCP);
        for (router, next_hop) in [
            (first, OTHER_ROUTER),
            // It has another MAC address; another router; one nobody knows.
            (first, NEW_MAC),
            (second, OTHER_ROUTER),
            (first, ROUTER),
        ] {
            let known = [(router, next_hop)];
            let neighbours = if next_hop == ROUTER { &[][..] } else { &known };
            lab.set_uplink(&uplink(everything(Path::Via(router)), neighbours));
            answers_go_to(next_hop, &client, &mut lab);
        }
        lab.assert_no_chunk_lost();
    }
}

#[test]
fn a_client_whose_answers_leave_elsewhere_is_the_kernels() {
    for address in [OUTSIDE4, OUTSIDE6] {
        let mut lab = lab();
        let client = Client::outside(address);
        let length = if client.address.is_ipv4() { 32 } else { 128 };
        let elsewhere = || {
            let own = ((client.address.ip(), length), Path::Elsewhere);
            everything(Path::OnLink).into_iter().chain([own])
        };
        client.open(&mut lab, TCP);
        answers_go_to(ROUTER, &client, &mut lab);
        lab.set_uplink(&uplink(elsewhere(), &[]));
        let answer = client.answer(TCP);
        let question = client.question(TCP).frame(client.link);
        for _ in 0..2 {
            let arrived = lab.send(SERVER, &answer.frame(link(SERVER)));
            assert_eq!(only(&arrived), (HOST, &answer.frame(to(HOST))[..]));
            client.open(&mut lab, TCP);
            assert_eq!(only(&lab.send(UPLINK, &question)).0, HOST);
        }
        lab.set_uplink(&uplink(everything(Path::OnLink), &[]));
        client.open(&mut lab, TCP);
        answers_go_to(ROUTER, &client, &mut lab);
        lab.assert_no_chunk_lost();
    }
}

#[test]
fn the_uplink_may_get_another_mac_address() {
    let mut lab = lab();
    let client = Client::outside(OUTSIDE4);
    client.open(&mut lab, TCP);
    lab.set_uplink(&Uplink {
        mac: mac(OTHER_QUEUE),
        ..uplink(everything(Path::OnLink), &[])
    });
    let question = client.question(TCP);
    assert!(lab.send(UPLINK, &question.frame(client.link)).is_empty());
    assert_eq!(lab.counters(UPLINK).drops.get(DropReason::WrongMac), 1);
    let arrived = lab.send(UPLINK, &question.frame(from_router(OTHER_QUEUE)));
    assert_eq!(only(&arrived).0, SERVER);
    let arrived = lab.send(SERVER, &client.answer(TCP).frame(link(SERVER)));
    assert_eq!(only(&arrived).1[6..12], mac(OTHER_QUEUE));
}

#[test]
fn a_pod_is_told_the_uplinks_mtu_and_a_client_the_pods() {
    let mut lab = lab();
    let client = Client::outside(OUTSIDE4);
    lab.set_uplink(&Uplink {
        mtu: 1500,
        ..uplink(everything(Path::OnLink), &[])
    });
    client.open(&mut lab, UDP);
    let large = client.answer(UDP).payload([0; 1500]).dont_fragment();
    let arrived = lab.send(SERVER, &large.frame(link(SERVER)));
    let (slot, told) = only(&arrived);
    assert_eq!((slot, &told[34..36]), (SERVER, &[3, 4][..]));
    assert_eq!(told[40..42], 1500_u16.to_be_bytes());

    // The node says so, about the packet as the client knows it.
    let last_hop = client.question(UDP).ttl(1);
    let arrived = lab.send(UPLINK, &last_hop.frame(client.link));
    let (slot, told) = only(&arrived);
    assert_eq!((slot, &told[34..36]), (UPLINK, &[11, 0][..]));
    assert_eq!(told[..6], ROUTER);
    assert_eq!(told[6..12], mac(UPLINK));
    assert_eq!(
        IpAddr::from(<[u8; 4]>::try_from(&told[26..30]).unwrap()),
        ip(NODE4)
    );
    assert_eq!(told[42..62], last_hop.packet()[..20]);
}

#[test]
fn what_nobody_outside_can_have_sent_is_dropped() {
    let mut lab = lab();
    let mut sources = vec![ip("127.0.0.1"), ip("224.0.0.1"), ip("0.0.0.0"), ip("::1")];
    sources.extend([ip("ff02::1"), v4(ASKER).into(), v6(SERVER).into()]);
    let count = sources.len() as u64;
    for source in sources {
        let client = Client::new(UPLINK, from_router(UPLINK), source);
        assert!(
            lab.send(UPLINK, &client.question(UDP).frame(client.link))
                .is_empty()
        );
    }
    let drops = &lab.counters(UPLINK).drops;
    assert_eq!(drops.get(DropReason::Martian), count);

    let client = Client::outside(OUTSIDE4);
    let others = client.question(UDP).frame(from_router(OTHER_QUEUE));
    assert!(lab.send(UPLINK, &others).is_empty());
    assert_eq!(lab.counters(UPLINK).drops.get(DropReason::WrongMac), 1);
    lab.assert_no_chunk_lost();
}

#[test]
fn questions_in_fragments_go_by_the_kernel_and_answers_do_not() {
    for client in Client::all() {
        let mut lab = lab();
        client.open(&mut lab, UDP);
        let payload = [3; 3000];
        let question = client.question(UDP).payload(payload);
        for fragment in question.fragments(client.link, 1480) {
            assert_eq!(only(&lab.send(client.slot, &fragment)).0, HOST);
        }
        let answer = client.answer(UDP).payload(payload);
        let expected = client.translated_answer(UDP).payload(payload).ttl(63);
        let expected = expected.fragments(client.to_it(), 1480);
        for (fragment, expected) in answer.fragments(link(SERVER), 1480).iter().zip(&expected) {
            let arrived = lab.send(SERVER, fragment);
            assert_eq!(only(&arrived), (client.slot, &expected[..]));
        }
        lab.assert_no_chunk_lost();
    }
}

#[test]
fn a_partial_checksum_stays_partial() {
    let mut lab = lab();
    let client = Client::pod(v4(ASKER));
    client.open(&mut lab, TCP);
    let question = client.question(TCP).partial().frame(client.link);
    let arrived = lab.send(ASKER, &question);
    let expected = client.translated_question(TCP).partial().ttl(63);
    assert_eq!(only(&arrived), (SERVER, &expected.frame(to(SERVER))[..]));
    assert_eq!(arrived[0].1.checksum, Some((34, 16)));

    let outside = Client::outside(OUTSIDE4);
    outside.open(&mut lab, TCP);
    let answer = outside.answer(TCP).partial().frame(link(SERVER));
    let arrived = lab.send(SERVER, &answer);
    assert_eq!(only(&arrived).0, UPLINK);
    assert_eq!(arrived[0].1.checksum, Some((34, 16)));
}
