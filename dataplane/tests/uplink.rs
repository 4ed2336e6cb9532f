//! The uplink's XDP program between two real namespaces: what it takes from
//! the kernel, and what it leaves. Needs root.

mod common;

use std::collections::HashSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use common::{TestNetns, wait_until};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, connect, socket,
};
use sluice_control::{HostEnd, Protocol, Redirect};
use sluice_dataplane::mapping_tables::MappingTables;
use sluice_dataplane::packet::Ethernet;
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::program::{
    PortProgram, ProgramError, ProgramOptions, UplinkOptions, UplinkProgram,
};
use sluice_dataplane::xsk::{Batch, Device, Features, FramePool, Umem, Xsk};
use sluice_link::{Link, Netlink, Netns, VethPair, VethPeer, XdpMode};

const UPLINK: &str = "up0";
const FAR_END: &str = "out0";

const NODE4: &str = "192.0.2.1";
const NODE6: &str = "2001:db8::1";
const OUTSIDE4: &str = "192.0.2.9";
const OUTSIDE6: &str = "2001:db8::9";

const MAPPED: u16 = 8080;
/// In use by the host and not mapped, as ssh's.
const HOSTS: u16 = 22;
const CLIENT: u16 = 40_000;
/// Frames from here end a trial.
const LAST_CLIENT: u16 = 40_001;

/// How long an answer may take that must come; waiting for none takes less.
const PATIENCE: Duration = Duration::from_secs(30);
const NO_ANSWER: Duration = Duration::from_millis(300);

const FEATURES: Features = Features {
    multi_buffer: true,
    tx_metadata: false,
    tx_budget: false,
    gso: false,
    tso: false,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn mapped(address: &str, protocol: Protocol) -> HostEnd {
    HostEnd {
        address: ip(address),
        protocol,
        port: MAPPED,
    }
}

/// A socket with its memory.
struct Tap {
    xsk: Xsk,
    pool: FramePool,
    umem: &'static Umem,
}

impl Tap {
    fn open(link: &Link) -> Self {
        let (umem, mut pool) = Umem::create(512).unwrap();
        let device = Device {
            name: &link.name,
            index: link.index,
            queue: 0,
        };
        let mut xsk = Xsk::open(umem, &device, FEATURES, None).unwrap();
        xsk.refill(&mut pool);
        Self { xsk, pool, umem }
    }

    fn send(&mut self, frame: &[u8]) {
        let mut to_send = self.pool.frame().unwrap();
        self.umem.set_content(&mut to_send, frame);
        self.xsk.send(to_send, None).unwrap();
        self.xsk.flush();
        self.xsk.reap(&mut self.pool);
    }

    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut batch = Batch::new();
        self.xsk.receive(&mut batch);
        let frames = batch.drain(..).map(|frame| {
            let bytes = self.umem.head(&frame).to_vec();
            self.pool.free(frame);
            bytes
        });
        let frames = frames.collect();
        self.xsk.refill(&mut self.pool);
        frames
    }
}

/// A node with an uplink, and a host outside.
struct Net {
    node: TestNetns,
    outside: TestNetns,
}

impl Net {
    fn new() -> Self {
        let (node, outside) = (TestNetns::new("node"), TestNetns::new("outside"));
        node.run(|| {
            let peer = Netns::open(&Path::new("/run/netns").join(outside.name())).unwrap();
            Netlink::new()
                .unwrap()
                .create_veth(&VethPair {
                    name: UPLINK.to_owned(),
                    mac: None,
                    mtu: 1500,
                    peer: VethPeer {
                        name: FAR_END.to_owned(),
                        mac: None,
                        mtu: 1500,
                        netns: Some(&peer),
                    },
                })
                .unwrap();
        });
        for (netns, device, v4, v6) in [
            (&node, UPLINK, NODE4, NODE6),
            (&outside, FAR_END, OUTSIDE4, OUTSIDE6),
        ] {
            netns.ip(&format!("addr add {v4}/24 dev {device}"));
            netns.ip(&format!("addr add {v6}/64 dev {device} nodad"));
            netns.ip(&format!("link set {device} up"));
        }
        Self { node, outside }
    }
}

fn link(name: &str) -> Link {
    Netlink::new().unwrap().link(name).unwrap().unwrap()
}

/// What a daemon has of its uplink.
struct Daemon {
    tables: MappingTables,
    ports: PortProgram,
    taken: Tap,
}

impl Daemon {
    /// Maps [`MAPPED`] and lets its frames come to a socket. To be called in
    /// the node's namespace.
    fn start(run_dir: &Path) -> Self {
        let bpffs = run_dir.join("bpf");
        let ports = PortProgram::load(&ProgramOptions {
            multi_buffer: true,
            slots: 1,
            bpffs: bpffs.clone(),
        })
        .unwrap_or_else(|error| panic!("{error}"));
        let mut tables = MappingTables::open(&bpffs).unwrap_or_else(|error| panic!("{error}"));
        tables
            .set_addresses(&HashSet::from([ip(NODE4), ip(NODE6)]))
            .unwrap();
        for (address, pod) in [("0.0.0.0", "10.77.0.10"), ("::", "fd00:77::10")] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let redirect = Redirect {
                    from: mapped(address, protocol),
                    to: at(pod, 80),
                };
                tables.map(&redirect).unwrap();
            }
        }
        let mut uplink = load(&ports);
        let link = link(UPLINK);
        let taken = Tap::open(&link);
        taken
            .xsk
            .socket()
            .with_fd(|fd| uplink.set_socket(0, fd).unwrap())
            .unwrap();
        uplink
            .attach(&link, XdpMode::Driver)
            .unwrap_or_else(|error| panic!("{error}"));
        Self {
            tables,
            ports,
            taken,
        }
    }

    /// Dies: its sockets close, its pins stay.
    fn die(self) {
        drop(self.taken.xsk.close());
    }

    /// What comes, up to the frame that ends a trial.
    fn take(&mut self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        wait_until("the last frame has come", || {
            frames.extend(self.taken.receive());
            frames.last().is_some_and(|frame| frame == last)
        });
        frames.pop();
        frames
    }
}

fn load(ports: &PortProgram) -> UplinkProgram {
    let options = UplinkOptions {
        multi_buffer: true,
        queues: 1,
        mtu: 1500,
    };
    UplinkProgram::load(ports, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Sends frames from outside. The frames of one socket stay in order, so one
/// that is not taken before [`Sender::last`] passes.
struct Sender {
    tap: Tap,
    link: Ethernet,
}

impl Sender {
    fn send(&mut self, datagram: &Datagram) -> Vec<u8> {
        let frame = datagram.frame(self.link);
        self.tap.send(&frame);
        frame
    }

    fn last(&mut self) -> Vec<u8> {
        self.send(&build::sctp(
            (ip(OUTSIDE4), LAST_CLIENT),
            (ip(NODE4), MAPPED),
        ))
    }
}

/// Runs `test` in the node's namespace.
fn with_uplink(test: impl FnOnce(&Net, &mut Daemon, &mut Sender) + Send) {
    let net = Net::new();
    let folder = tempfile::tempdir().unwrap();
    let (tap, far_end) = net.outside.run(|| {
        let link = link(FAR_END);
        (Tap::open(&link), link.mac.unwrap())
    });
    net.node.run(|| {
        let mut sender = Sender {
            tap,
            link: Ethernet {
                src: far_end,
                dst: link(UPLINK).mac.unwrap(),
            },
        };
        let mut daemon = Daemon::start(folder.path());
        test(&net, &mut daemon, &mut sender);
        daemon.ports.detach_uplinks_but(None).unwrap();
    });
}

/// From outside to the node, in both families.
const PATHS: [(&str, &str); 2] = [(OUTSIDE4, NODE4), (OUTSIDE6, NODE6)];

#[test]
fn what_is_for_a_mapped_port_is_taken() {
    with_uplink(|_, daemon, sender| {
        let mut sent = Vec::new();
        for (from, to) in PATHS {
            let (from, to) = (at(from, CLIENT), at(to, MAPPED));
            for datagram in [
                build::tcp(from, to),
                build::udp(from, to).payload([7; 1000]),
                build::sctp(from, to),
            ] {
                sent.push(sender.send(&datagram));
            }
        }
        let last = sender.last();
        assert_eq!(daemon.take(&last), sent);
    });
}

#[test]
fn all_else_is_left_to_the_kernel() {
    with_uplink(|_, daemon, sender| {
        for (from, to) in PATHS {
            let (client, mapped) = (at(from, CLIENT), at(to, MAPPED));
            for datagram in [
                build::tcp(client, at(to, HOSTS)),
                build::udp(client, at(to, MAPPED + 1)),
                build::ping(ip(from), ip(to)),
                // Of a node's address only (CVE-2025-67499).
                build::udp(client, at(from, MAPPED)),
            ] {
                sender.send(&datagram);
            }
            let large = build::udp(client, mapped).payload([7; 2000]);
            for fragment in large.fragments(sender.link, 1480) {
                sender.tap.send(&fragment);
            }
        }
        let v4 = build::udp(at(OUTSIDE4, CLIENT), at(NODE4, MAPPED));
        let v6 = build::udp(at(OUTSIDE6, CLIENT), at(NODE6, MAPPED));
        // Router alert; an empty hop-by-hop header.
        sender.send(&v4.clone().options(&[148, 4, 0, 0]));
        sender.send(&v6.extension(0, &[1, 4, 0, 0, 0, 0]));
        let mut tagged = v4.frame(sender.link);
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        sender.tap.send(&tagged);
        sender.tap.send(&sender.link.dst);
        let last = sender.last();
        assert_eq!(daemon.take(&last), Vec::<Vec<u8>>::new());
    });
}

#[test]
fn an_icmp_error_about_an_answer_of_a_mapped_port_is_taken() {
    // Fragmentation needed, packet too big; time exceeded.
    const ERRORS4: [(u8, u8); 2] = [(3, 4), (11, 0)];
    const ERRORS6: [(u8, u8); 2] = [(2, 0), (3, 0)];
    with_uplink(|_, daemon, sender| {
        let mut sent = Vec::new();
        for ((from, to), errors) in PATHS.into_iter().zip([ERRORS4, ERRORS6]) {
            for (kind, code) in errors {
                let about = |port| {
                    let answer = build::tcp(at(to, port), at(from, CLIENT)).packet();
                    build::icmp(ip(from), ip(to), (kind, code), 1280).payload(answer)
                };
                sent.push(sender.send(&about(MAPPED)));
                sender.send(&about(HOSTS));
            }
        }
        let last = sender.last();
        assert_eq!(daemon.take(&last), sent);
    });
}

#[test]
fn the_hosts_own_conversations_from_a_mapped_port_are_left_to_it() {
    with_uplink(|net, daemon, sender| {
        for (outside, node) in PATHS {
            let listener = net
                .outside
                .run(|| TcpListener::bind(at(outside, HOSTS)).unwrap());
            let (mut client, mut server) = connect_from(at(node, MAPPED), &listener);
            server.write_all(b"ping").unwrap();
            let mut heard = [0; 4];
            client.read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"ping");

            let asker = UdpSocket::bind(at(node, MAPPED)).unwrap();
            asker.set_read_timeout(Some(PATIENCE)).unwrap();
            sender.send(&build::udp(at(outside, CLIENT), at(node, MAPPED)).payload(b"pong"));
            asker.recv(&mut heard).unwrap();
            assert_eq!(&heard, b"pong");
        }
        let last = sender.last();
        assert_eq!(daemon.take(&last), Vec::<Vec<u8>>::new());
    });
}

/// A connection with `listener` from a local port of choice: both ends.
fn connect_from(local: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = match (local, listener.local_addr().unwrap()) {
        (SocketAddr::V4(local), SocketAddr::V4(remote)) => connected(
            AddressFamily::Inet,
            &SockaddrIn::from(local),
            &SockaddrIn::from(remote),
        ),
        (SocketAddr::V6(local), SocketAddr::V6(remote)) => connected(
            AddressFamily::Inet6,
            &SockaddrIn6::from(local),
            &SockaddrIn6::from(remote),
        ),
        families => panic!("{families:?}"),
    };
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (client, listener.accept().unwrap().0)
}

fn connected<A: SockaddrLike>(family: AddressFamily, local: &A, remote: &A) -> TcpStream {
    let client = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(client.as_raw_fd(), local).unwrap();
    connect(client.as_raw_fd(), remote).unwrap();
    client.into()
}

/// Whether a process of the node that listens on [`MAPPED`] is reached.
fn is_hosts_port_reached(net: &Net) -> bool {
    let _listener = TcpListener::bind(at(NODE4, MAPPED)).unwrap();
    let connected = net
        .outside
        .run(|| TcpStream::connect_timeout(&at(NODE4, MAPPED), NO_ANSWER));
    match connected {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::TimedOut => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_dead_daemon_leaves_all_to_the_kernel_and_the_next_takes_over() {
    let net = Net::new();
    let folder = tempfile::tempdir().unwrap();
    net.node.run(|| {
        let first = Daemon::start(folder.path());
        // Alive, the mapping wins over a listener, as DNAT does.
        assert!(!is_hosts_port_reached(&net));
        let program = program_on(&net.node).expect("the program is on");
        first.die();
        assert_eq!(program_on(&net.node), Some(program));
        assert!(is_hosts_port_reached(&net));

        let second = Daemon::start(folder.path());
        assert_ne!(program_on(&net.node), Some(program));
        assert!(!is_hosts_port_reached(&net));
        second.ports.detach_uplinks_but(Some(UPLINK)).unwrap();
        assert!(program_on(&net.node).is_some());
        second.ports.detach_uplinks_but(None).unwrap();
        wait_until("the program is off", || program_on(&net.node).is_none());
        assert!(is_hosts_port_reached(&net));
    });
}

/// The id of the XDP program on the uplink.
fn program_on(node: &TestNetns) -> Option<u64> {
    let links = node.ip_json(&format!("link show dev {UPLINK}"));
    links[0]["xdp"]["prog"]["id"].as_u64()
}

#[test]
fn a_port_that_is_mapped_no_more_is_the_kernels() {
    with_uplink(|net, daemon, _| {
        assert!(!is_hosts_port_reached(net));
        let mapped = mapped("0.0.0.0", Protocol::Tcp);
        daemon.tables.unmap(&mapped).unwrap();
        assert!(is_hosts_port_reached(net));
    });
}

#[test]
fn a_foreign_program_is_left_alone() {
    let net = Net::new();
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    net.node.run(|| {
        let foreign = Daemon::start(folders[0].path());
        let before = program_on(&net.node).expect("the program is on");
        let bpffs = folders[1].path().join("bpf");
        let ports = PortProgram::load(&ProgramOptions {
            multi_buffer: true,
            slots: 1,
            bpffs: bpffs.clone(),
        })
        .unwrap();
        MappingTables::open(&bpffs).unwrap();
        let error = load(&ports)
            .attach(&link(UPLINK), XdpMode::Driver)
            .unwrap_err();
        assert!(matches!(error, ProgramError::Foreign { .. }), "{error}");
        assert_eq!(program_on(&net.node), Some(before));
        foreign.ports.detach_uplinks_but(None).unwrap();
    });
}
