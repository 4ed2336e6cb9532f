//! hostPorts for processes of the host, with real sockets in a real namespace:
//! a listener on an address that is not the loopback's stands for the pod.
//! Needs root.

mod common;

use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use aya::programs::links::{FdLink, PinnedLink};
use common::TestNetns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sluice_bpf::connect;
use sluice_control::{HostEnd, Protocol, Redirect};
use sluice_dataplane::host_sockets;
use sluice_dataplane::mapping_tables::MappingTables;
use sluice_dataplane::stale_sockets;
use tempfile::TempDir;

const NODE4: &str = "10.9.0.1";
const NODE6: &str = "fd00:9::1";
const POD4: &str = "10.9.1.1";
const POD6: &str = "fd00:9:1::1";
/// The node's address that comes later.
const LATE4: &str = "10.9.0.2";

const HOST_PORT: u16 = 8080;
const CONTAINER_PORT: u16 = 5001;

/// How long an answer may take; waiting for none takes as long.
const PATIENCE: Duration = Duration::from_millis(500);

/// A bpf file system that goes when it is dropped.
struct BpfFs(TempDir);

impl BpfFs {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let none: Option<&str> = None;
        mount(
            Some("bpf"),
            folder.path(),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn attach(&self) -> MappingTables {
        let tables = MappingTables::open(self.path()).unwrap_or_else(|error| panic!("{error}"));
        host_sockets::attach(self.path()).unwrap_or_else(|error| panic!("{error}"));
        tables
    }

    /// The ids of the programs that the pins hold.
    fn programs(&self) -> HashSet<u32> {
        let folder = self.path().join("mappings1");
        let program = |name| {
            let link = FdLink::from(PinnedLink::from_pin(folder.join(name)).unwrap());
            link.info().unwrap().program_id()
        };
        connect::PROGRAMS.into_iter().map(program).collect()
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Both protocols' port of every address of a family.
fn any(address: &str) -> [HostEnd; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| HostEnd {
        address: ip(address),
        protocol,
        port: HOST_PORT,
    })
}

/// Has these ports lead to the pod.
fn map(tables: &mut MappingTables, ends: &[HostEnd]) {
    for from in ends {
        let pod = if from.address.is_ipv4() { POD4 } else { POD6 };
        let to = SocketAddr::new(ip(pod), CONTAINER_PORT);
        tables.map(&Redirect { from: *from, to }).unwrap();
    }
}

fn map_any(tables: &mut MappingTables) {
    map(tables, &any("0.0.0.0"));
    map(tables, &any("::"));
}

/// Runs `test` in a namespace with the node's and the pod's addresses, where
/// the pod echoes what it gets over TCP and UDP.
fn with_pod(test: impl FnOnce(&BpfFs) + Send) {
    let netns = TestNetns::new("sockets");
    netns.ip("link add left type veth peer name right");
    netns.ip("link set left up");
    netns.ip("link set right up");
    for address in [NODE4, POD4] {
        netns.ip(&format!("addr add {address}/32 dev left"));
    }
    for address in [NODE6, POD6] {
        netns.ip(&format!("addr add {address}/128 dev left nodad"));
    }
    netns.run(|| {
        for address in [POD4, POD6] {
            echo(address);
        }
        test(&BpfFs::mount());
    });
}

/// Serves on threads that end with the process.
fn echo(address: &str) {
    let at = SocketAddr::new(ip(address), CONTAINER_PORT);
    let listener = TcpListener::bind(at).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut question = [0; 4];
            // A client may leave without a question.
            if stream.read_exact(&mut question).is_ok() {
                let _ = stream.write_all(&question);
            }
        }
    });
    let socket = UdpSocket::bind(at).unwrap();
    thread::spawn(move || {
        let mut question = [0; 4];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&question[..len], from);
        }
    });
}

/// What a TCP client gets, with the peer that it sees.
fn tcp(to: &str) -> io::Result<SocketAddr> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip(to), HOST_PORT), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"ping")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"ping");
    stream.peer_addr()
}

/// The same over UDP, from an unconnected socket: who answers.
fn udp(to: &str) -> io::Result<SocketAddr> {
    let local = if ip(to).is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"ping", SocketAddr::new(ip(to), HOST_PORT))?;
    let mut answer = [0; 4];
    let (len, from) = socket.recv_from(&mut answer)?;
    assert_eq!(&answer[..len], b"ping");
    Ok(from)
}

/// The same over UDP, from a connected socket: whom it is connected to.
fn connected_udp(to: &str) -> io::Result<SocketAddr> {
    let local = if ip(to).is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(SocketAddr::new(ip(to), HOST_PORT))?;
    socket.send(b"ping")?;
    let mut answer = [0; 4];
    let len = socket.recv(&mut answer)?;
    assert_eq!(&answer[..len], b"ping");
    socket.peer_addr()
}

/// Asks `to` and tells who answered.
type Ask = fn(&str) -> io::Result<SocketAddr>;

const WAYS: [(&str, Ask); 3] = [("tcp", tcp), ("udp", udp), ("connected udp", connected_udp)];

/// All ways to `address` are answered, by whom was asked.
fn assert_answered(address: &str) {
    for (name, ask) in WAYS {
        let from = ask(address).unwrap_or_else(|error| panic!("{name} to {address}: {error}"));
        assert_eq!(from, SocketAddr::new(ip(address), HOST_PORT), "{name}");
    }
}

fn assert_not_answered(address: &str) {
    for (name, ask) in WAYS {
        let answered = ask(address);
        assert!(answered.is_err(), "{name} to {address}: {answered:?}");
    }
}

#[test]
fn every_address_of_the_node_and_the_loopback_lead_to_the_pod() {
    with_pod(|bpffs| {
        let mut tables = bpffs.attach();
        tables
            .set_addresses(&HashSet::from([ip(NODE4), ip(NODE6)]))
            .unwrap();
        assert_not_answered("127.0.0.1");
        map_any(&mut tables);
        for address in [NODE4, NODE6, "127.0.0.1", "127.1.2.3", "::1"] {
            assert_answered(address);
        }
        let mapped = format!("::ffff:{NODE4}");
        assert!(tcp(&mapped).is_ok() && connected_udp(&mapped).is_ok());

        assert_not_answered(LATE4);
        tables
            .set_addresses(&HashSet::from([ip(NODE4), ip(LATE4)]))
            .unwrap();
        assert_answered(LATE4);
        assert_not_answered(NODE6);

        for port in any("0.0.0.0").iter().chain(&any("::")) {
            tables.unmap(port).unwrap();
            tables.unmap(port).unwrap();
        }
        assert_not_answered("127.0.0.1");
        assert_not_answered("::1");
    });
}

#[test]
fn one_address_of_the_node_is_not_another() {
    with_pod(|bpffs| {
        let mut tables = bpffs.attach();
        tables.set_addresses(&HashSet::from([ip(NODE4)])).unwrap();
        map(&mut tables, &any("127.0.0.1"));
        assert_answered("127.0.0.1");
        for other in ["127.0.0.2", NODE4, "::1"] {
            assert_not_answered(other);
        }
    });
}

#[test]
fn a_pod_without_ipv6_is_reached_from_ipv6_by_connected_sockets() {
    with_pod(|bpffs| {
        let mut tables = bpffs.attach();
        tables.set_addresses(&HashSet::new()).unwrap();
        map(&mut tables, &any("0.0.0.0"));
        assert_answered("127.0.0.1");
        assert!(tcp("::1").is_ok() && connected_udp("::1").is_ok());
        assert_eq!(
            udp("::1").map_err(|error| error.kind()).unwrap_err(),
            ErrorKind::WouldBlock
        );
    });
}

#[test]
fn a_socket_bound_to_the_loopback_stays_there() {
    with_pod(|bpffs| {
        let mut tables = bpffs.attach();
        map_any(&mut tables);
        for local in ["127.0.0.1", "::1"] {
            let listener = UdpSocket::bind((local, HOST_PORT)).unwrap();
            listener.set_read_timeout(Some(PATIENCE)).unwrap();
            let bound = UdpSocket::bind((local, 0)).unwrap();
            bound.connect((local, HOST_PORT)).unwrap();
            bound.send(b"ping").unwrap();
            let (_, from) = listener.recv_from(&mut [0; 4]).unwrap();
            assert_eq!(from, bound.local_addr().unwrap());
        }
    });
}

#[test]
fn sockets_of_other_namespaces_are_left_alone() {
    with_pod(|bpffs| {
        let mut tables = bpffs.attach();
        map_any(&mut tables);
        assert_answered("127.0.0.1");
        TestNetns::new("other").run(|| {
            assert_eq!(
                tcp("127.0.0.1").unwrap_err().kind(),
                ErrorKind::ConnectionRefused
            );
        });
    });
}

#[test]
fn a_socket_that_was_led_to_a_pod_that_is_gone_is_ended_and_no_other() {
    with_pod(|bpffs| {
        let mut tables = bpffs.attach();
        tables
            .set_addresses(&HashSet::from([ip(NODE4), ip(NODE6)]))
            .unwrap();
        map_any(&mut tables);
        let connected = |address: &str, port| {
            let any = if ip(address).is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(SocketAddr::new(ip(address), port)).unwrap();
            socket
        };
        let is_answered = |socket: &UdpSocket| {
            socket.send(b"ping")?;
            socket.recv(&mut [0; 4]).map(|_| ())
        };
        let led = ["127.0.0.1", "::1", NODE4, NODE6].map(|to| connected(to, HOST_PORT));
        let direct = [POD4, POD6].map(|to| connected(to, CONTAINER_PORT));
        for socket in led.iter().chain(&direct) {
            is_answered(socket).unwrap();
        }
        let other = HashSet::from([SocketAddr::new(ip(POD4), CONTAINER_PORT + 1)]);
        assert_eq!(stale_sockets::end(&tables, &other).unwrap(), 0);
        let pods = [POD4, POD6].map(|pod| SocketAddr::new(ip(pod), CONTAINER_PORT));
        let pods = HashSet::from(pods);
        assert_eq!(stale_sockets::end(&tables, &pods).unwrap(), led.len());
        for socket in &led {
            let error = socket.recv(&mut [0; 4]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionAborted, "{error}");
            socket.send(b"ping").expect_err("it has no peer any more");
        }
        for socket in &direct {
            is_answered(socket).unwrap();
        }
        assert_eq!(stale_sockets::end(&tables, &pods).unwrap(), 0);
        // They may connect anew.
        led[0]
            .connect(SocketAddr::new(ip("127.0.0.1"), HOST_PORT))
            .unwrap();
        is_answered(&led[0]).unwrap();
    });
}

#[test]
fn programs_and_tables_outlive_the_daemon_and_are_taken_over() {
    with_pod(|bpffs| {
        let mut first = bpffs.attach();
        first.set_addresses(&HashSet::from([ip(NODE4)])).unwrap();
        map_any(&mut first);
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect((NODE4, HOST_PORT)).unwrap();
        let programs = bpffs.programs();
        drop(first);
        assert_answered(NODE4);
        assert_answered("::1");

        let mut second = bpffs.attach();
        assert!(bpffs.programs().is_disjoint(&programs));
        assert_answered(NODE4);
        assert_eq!(
            client.peer_addr().unwrap(),
            SocketAddr::new(ip(NODE4), HOST_PORT)
        );

        // What the second one does not know goes.
        let [tcp4, _] = any("0.0.0.0");
        second.retain(&HashSet::from([tcp4])).unwrap();
        assert!(tcp(NODE4).is_ok());
        assert!(udp(NODE4).is_err());
    });
}
