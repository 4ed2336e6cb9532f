//! Limits on bandwidth, as the receiver's kernel sees them.
//!
//! What is asserted holds on a busy machine, too: a frame is stamped after it
//! was let go, so that up to no moment more may have come than the limit lets
//! pass from the sender's start to then. Over windows in between a late stamp
//! makes frames look close: `sluice-bench shaping` looks at those, on a quiet
//! machine, and dataplane/tests/shaping.rs does in simulated time.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sluice_control::{AskedLimit, AttachmentId, Limit, LimitChange, Shaping};

use crate::harness::arrivals::{Arrival, Arrivals};
use crate::harness::flows::{Echo, Flow, connect_ends, transfer};
use crate::harness::{
    Container, List, NODE4, NODE6, Node, OUT4, OUT6, Options, Pod, Space, in_parallel, wait_until,
};

const MBIT: u64 = 1_000_000;
const RATES: [u64; 5] = [MBIT, 10 * MBIT, 100 * MBIT, 1_000 * MBIT, 5_000 * MBIT];

/// How long a sender sends.
const TIME: Duration = Duration::from_millis(MILLIS);
const MILLIS: u64 = 250;

/// How often a limit may be tried on a busy machine until most of it is seen.
const TRIES: usize = 3;

/// Payload of datagrams that fit every way.
const DATAGRAM: usize = 1200;

/// How many pings go beside what is sent.
const PINGS: u64 = 12;

/// What AF_XDP sockets count of frames that come too fast.
const RING_LOSSES: [&str; 2] = ["rx_dropped", "rx_ring_full"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Udp,
    Tcp,
}

/// A client reaches a server.
#[derive(Clone, Copy)]
struct Way<'a> {
    client: &'a Space,
    server: &'a Space,
    /// Where the server listens.
    bind: SocketAddr,
    /// What the client connects to.
    target: SocketAddr,
}

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// What became of what was sent.
struct Delivery {
    /// The sender's start, since the epoch.
    start: Duration,
    /// In the order of their time.
    arrivals: Vec<Arrival>,
    /// Datagrams, or bytes of TCP, that the sender's kernel took.
    sent: u64,
}

impl<'a> Way<'a> {
    /// From pod to pod.
    fn direct(client: &'a Space, server: &'a Space, address: IpAddr) -> Self {
        Self {
            client,
            server,
            bind: (address, 7000).into(),
            target: (address, 7000).into(),
        }
    }

    /// Sends for a time, datagrams at a rate, and notes what arrives.
    #[track_caller]
    fn carry(&self, sender: Sender, protocol: Protocol, rate: u64) -> Delivery {
        match protocol {
            Protocol::Udp => {
                let [from, to] = sender.first(self.udp());
                // Above that, system calls would be the limit.
                let size = if rate > 200 * MBIT { 30_000 } else { DATAGRAM };
                self.watch(sender, to.local_addr().unwrap(), || {
                    flood(&from, size, rate, TIME)
                })
            }
            Protocol::Tcp => {
                let listener = self.server.in_netns(|| TcpListener::bind(self.bind));
                let ends = connect_ends(self.client, self.target, &listener.unwrap());
                let [from, to] = sender.first(ends);
                self.watch(sender, to.local_addr().unwrap(), || pour(&from, &to))
            }
        }
    }

    /// Sockets that are connected to each other.
    #[track_caller]
    fn udp(&self) -> [UdpSocket; 2] {
        // A process that another test starts holds the socket before until its exec.
        let server = wait_until("the address is free", || {
            self.server.in_netns(|| UdpSocket::bind(self.bind)).ok()
        });
        let any: IpAddr = match self.target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let client = self.client.in_netns(|| UdpSocket::bind((any, 0))).unwrap();
        client.connect(self.target).unwrap();
        let patience = Some(Duration::from_millis(100));
        server.set_read_timeout(patience).unwrap();
        let peer = wait_until("the first datagram arrives", || {
            client.send(b"hello").unwrap();
            server.recv_from(&mut [0; 5]).ok()
        });
        server.connect(peer.1).unwrap();
        [client, server]
    }

    fn watch(&self, sender: Sender, to: SocketAddr, send: impl FnOnce() -> u64) -> Delivery {
        let receiver = match sender {
            Sender::Client => self.server,
            Sender::Server => self.client,
        };
        let arrivals = Arrivals::watch(receiver, to.ip());
        let start = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let sent = send();
        Delivery::new(start, arrivals.stop(), sent)
    }
}

impl Sender {
    /// The sender first.
    fn first<T>(self, [client, server]: [T; 2]) -> [T; 2] {
        match self {
            Self::Client => [client, server],
            Self::Server => [server, client],
        }
    }
}

impl Delivery {
    fn new(start: Duration, mut arrivals: Vec<Arrival>, sent: u64) -> Self {
        arrivals.sort_by_key(|arrival| arrival.at);
        Self {
            start,
            arrivals,
            sent,
        }
    }

    fn bytes(&self) -> u64 {
        self.arrivals.iter().map(|arrival| arrival.bytes).sum()
    }

    /// Up to no moment more came than the limit lets pass, and one frame.
    #[track_caller]
    fn assert_within(&self, limit: Limit, what: &str) {
        let sizes = self.arrivals.iter().map(|arrival| arrival.bytes);
        let frame = u128::from(sizes.max().unwrap_or(0));
        let mut came = 0;
        for arrival in &self.arrivals {
            came += u128::from(arrival.bytes);
            let time = arrival.at.saturating_sub(self.start);
            // The clock that stamps is steered; the daemon's is not: 500 ppm
            // at most (adjtimex(2)).
            let earned = u128::from(limit.rate) * time.as_nanos() * 1001 / 1000;
            let allowed = u128::from(limit.burst) / 8 + earned / 8_000_000_000 + frame;
            assert!(
                came <= allowed,
                "{what}: {came} bytes in the first {time:?}, not more than {allowed} may be"
            );
        }
    }

    /// What came, in percent of what the limit earns in the time.
    fn share(&self, limit: Limit) -> u64 {
        self.bytes() * 100 / (limit.rate / 8 * MILLIS / 1000)
    }
}

/// What a limit lets pass comes, or most of it: the faster, the more it is the
/// machine that counts. The sender or the worker may have no CPU for most of a
/// try: the kernel still takes apart what the test before had.
#[track_caller]
fn assert_gets_on(limit: Limit, what: &str, carry: impl FnMut() -> Delivery) {
    let least = match limit.rate / MBIT {
        0..=10 => 80,
        11..=100 => 50,
        101..=1_000 => 20,
        _ => 3,
    };
    let shares = std::iter::repeat_with(carry).map(|delivery| delivery.share(limit));
    let mut seen = Vec::new();
    let gets_on = shares.take(TRIES).any(|share| {
        seen.push(share);
        share >= least
    });
    assert!(gets_on, "{what}: {seen:?} % of {limit}, never {least}");
}

/// Sends datagrams at a rate, in bits of payload a second, for a time. What a
/// busy machine puts off is not made up for. Returns how many.
fn flood(socket: &UdpSocket, size: usize, rate: u64, time: Duration) -> u64 {
    const MOST_AT_ONCE: u64 = 32;
    let payload = vec![7; size];
    let start = Instant::now();
    let (mut due, mut sent) = (0, 0);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return sent;
        }
        let bits = u128::from(rate) * elapsed.as_nanos() / 1_000_000_000;
        let now_due = u64::try_from(bits).unwrap() / 8 / size as u64;
        for _ in due..now_due.min(due + MOST_AT_ONCE) {
            // Refused where the path's MTU has just become known.
            sent += u64::from(socket.send(&payload).is_ok());
        }
        due = now_due;
        thread::sleep(Duration::from_millis(1));
    }
}

/// As much TCP as goes. Returns how many bytes the sender's kernel took.
fn pour(mut from: &TcpStream, mut to: &TcpStream) -> u64 {
    let patience = Some(Duration::from_millis(20));
    from.set_write_timeout(patience).unwrap();
    to.set_read_timeout(patience).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 17];
            while !is_over.load(Ordering::Relaxed) {
                // Nothing for a moment.
                let _ = to.read(&mut buffer);
            }
        });
        let (buffer, start, mut sent) = (vec![7; 1 << 17], Instant::now(), 0);
        while start.elapsed() < TIME {
            sent += from.write(&buffer).unwrap_or(0) as u64;
        }
        is_over.store(true, Ordering::Relaxed);
        sent
    })
}

/// Pings while `job` runs: most are answered. Those that a busy machine finds no
/// place for in a ring are not.
#[track_caller]
fn pinged<T>(from: &Space, to: IpAddr, job: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let pings = scope.spawn(|| {
            let said = from.output(&format!("ping -n -c {PINGS} -i 0.02 -W 1 {to}"));
            String::from_utf8(said.stdout).unwrap()
        });
        let done = job();
        let said = pings.join().unwrap();
        let answered = said.matches(" time=").count() as u64;
        assert!(answered * 2 > PINGS, "{said}");
        done
    })
}

/// Pings where twice the rate is within the system calls' reach: what is above is
/// not offered, and fills the rings in which a ping would be.
fn is_slow(rate: u64) -> bool {
    rate <= 100 * MBIT
}

#[track_caller]
fn pinged_if<T>(pings: bool, from: &Space, to: IpAddr, job: impl FnOnce() -> T) -> T {
    if pings { pinged(from, to, job) } else { job() }
}

fn id(pod: &Pod) -> AttachmentId {
    AttachmentId {
        network: "pods".into(),
        container_id: pod.id().into(),
        ifname: "eth0".into(),
    }
}

fn change(rate: Option<u64>) -> LimitChange {
    rate.map_or(LimitChange::Unlimited, |rate| {
        LimitChange::Limit(AskedLimit { rate, burst: None })
    })
}

/// Sets a pod's limits, bits a second.
#[track_caller]
fn set(node: &Node, pod: &Pod, ingress: Option<u64>, egress: Option<u64>) -> Shaping {
    let [ingress, egress] = [ingress, egress].map(|rate| Some(change(rate)));
    node.client.set_shaping(id(pod), ingress, egress).unwrap()
}

/// Sets one limit of a pod, lifts the other, and returns the one.
#[track_caller]
fn set_only(node: &Node, pod: &Pod, direction: Direction, rate: u64) -> Limit {
    let limit = match direction {
        Direction::Ingress => set(node, pod, Some(rate), None).ingress,
        Direction::Egress => set(node, pod, None, Some(rate)).egress,
    };
    limit.expect("a limit")
}

/// Frames that a pod's limits dropped.
fn shaped_away(node: &Node, pod: &Pod) -> u64 {
    let counters = node.row(pod).counters;
    let drops = counters.drops.iter();
    drops
        .filter(|(reason, _)| reason.starts_with("queue-"))
        .map(|(_, count)| count)
        .sum()
}

/// Frames of a pod that came too fast for its rings.
fn lost_in_rings(node: &Node, pod: &Pod) -> u64 {
    let statistics = node.row(pod).xdp_statistics.expect("the socket is open");
    RING_LOSSES.iter().map(|name| statistics[*name]).sum()
}

/// Nothing waits any more.
#[track_caller]
fn finish(node: Node, pods: Vec<Pod>) {
    wait_until("no frame waits", || {
        (node.stats()["chunks"]["held"] == 0).then_some(())
    });
    drop(pods);
    node.finish();
}

#[test]
fn every_rate_between_pods_of_a_node() {
    let node = Node::start(&Options::default());
    let [pod, peer] = ["pod", "peer"].map(|name| node.add(name));
    for rate in RATES {
        for direction in [Direction::Ingress, Direction::Egress] {
            let limit = set_only(&node, &pod, direction, rate);
            for (address, protocol) in pod
                .addresses()
                .into_iter()
                .flat_map(|address| [Protocol::Udp, Protocol::Tcp].map(|p| (address, p)))
            {
                let what = format!("{direction:?} {rate} {address} {protocol:?}");
                let way = Way::direct(&peer, &pod, address);
                let (sender, source) = match direction {
                    Direction::Ingress => (Sender::Client, &peer),
                    Direction::Egress => (Sender::Server, &pod),
                };
                assert_gets_on(limit, &what, || {
                    let before = [shaped_away(&node, &pod), lost_in_rings(&node, source)];
                    let carry = || way.carry(sender, protocol, 2 * rate);
                    let delivery = pinged_if(is_slow(rate), &peer, address, carry);
                    delivery.assert_within(limit, &what);
                    let after = [shaped_away(&node, &pod), lost_in_rings(&node, source)];
                    let [shaped, lost] = [0, 1].map(|index| after[index] - before[index]);
                    if protocol == Protocol::Udp && is_slow(rate) {
                        let (sent, came) = (delivery.sent, datagrams(&delivery));
                        assert!(shaped != 0 || rate > 10 * MBIT, "{what}");
                        // Pings are shaped away, too.
                        let seen = came + shaped + lost;
                        assert!(
                            (sent..=sent + PINGS).contains(&seen),
                            "{what}: of {sent}, {came} came, {shaped} were shaped away, {lost} lost"
                        );
                    }
                    delivery
                });
            }
        }
    }
    finish(node, vec![pod, peer]);
}

/// How many of [`flood`]'s came.
fn datagrams(delivery: &Delivery) -> u64 {
    let sizes = delivery.arrivals.iter().map(|arrival| arrival.bytes);
    sizes.filter(|size| *size > DATAGRAM as u64).count() as u64
}

/// By one protocol where both would take long. Datagrams of more than a packet
/// come in fragments out there: what a slow machine loses leaves none whole.
const BY_THE_UPLINK: [(u64, Protocol); 6] = [
    (MBIT, Protocol::Tcp),
    (10 * MBIT, Protocol::Udp),
    (10 * MBIT, Protocol::Tcp),
    (100 * MBIT, Protocol::Udp),
    (1_000 * MBIT, Protocol::Tcp),
    (5_000 * MBIT, Protocol::Tcp),
];

#[test]
fn hostports_and_the_outside() {
    let node = Node::start(&Options::default());
    let mapped = [(8000, 7000, "tcp", ""), (8000, 7000, "udp", "")];
    let pod = node.add_to(&node.pods().mapped(&mapped), "pod");
    let outside = node.outside();
    for (node_address, out) in [(NODE4, OUT4), (NODE6, OUT6)] {
        let address = pod.address_like(out);
        let by_host_port = Way {
            client: outside,
            server: &pod,
            bind: (address, 7000).into(),
            target: (node_address, 8000).into(),
        };
        let to_outside = Way::direct(&pod, outside, out);
        for (way, sender, direction) in [
            (by_host_port, Sender::Client, Direction::Ingress),
            (by_host_port, Sender::Server, Direction::Egress),
            (to_outside, Sender::Client, Direction::Egress),
            (to_outside, Sender::Server, Direction::Ingress),
        ] {
            for (rate, protocol) in BY_THE_UPLINK {
                let what = format!("{direction:?} {rate} {} {protocol:?}", way.target);
                let limit = set_only(&node, &pod, direction, rate);
                assert_gets_on(limit, &what, || {
                    let before = shaped_away(&node, &pod);
                    let carry = || way.carry(sender, protocol, 2 * rate);
                    let delivery = pinged_if(is_slow(rate), node.space(), address, carry);
                    delivery.assert_within(limit, &what);
                    if protocol == Protocol::Udp && rate <= 10 * MBIT {
                        assert_ne!(shaped_away(&node, &pod), before, "{what}");
                    }
                    delivery
                });
            }
        }
    }
    finish(node, vec![pod]);
}

#[test]
fn between_two_limited_pods_both_limits_count() {
    let node = Node::start(&Options::default());
    let [from, to] = ["from", "to"].map(|name| node.add(name));
    for (egress, ingress) in [(20, 5), (5, 20)] {
        let sent = set(&node, &from, None, Some(egress * MBIT)).egress.unwrap();
        let got = set(&node, &to, Some(ingress * MBIT), None).ingress.unwrap();
        let before = [&from, &to].map(|pod| shaped_away(&node, pod));
        let way = Way::direct(&from, &to, to.v4());
        let delivery = way.carry(Sender::Client, Protocol::Udp, 40 * MBIT);
        delivery.assert_within(sent, "the sender's");
        delivery.assert_within(got, "the receiver's");
        let after = [&from, &to].map(|pod| shaped_away(&node, pod));
        // Each drops what is too much for it.
        assert_ne!(after[0], before[0]);
        assert_eq!(after[1] > before[1], egress > ingress);
    }
    finish(node, vec![from, to]);
}

#[test]
fn two_interfaces_of_a_pod_have_their_own_limits() {
    let node = Node::start(&Options::default());
    let limits = |ingress: u64, egress: u64| json!({"ingressRate": ingress, "egressRate": egress});
    let limited = |name, subnets: &[&str], limits: &Value| {
        let mut network = node.network(name, subnets);
        for (key, value) in limits.as_object().unwrap() {
            network.0[key] = value.clone();
        }
        network
    };
    let first = limited("pods", &["10.77.0.0/24"], &limits(10 * MBIT, 5 * MBIT));
    let second = limited("second", &["10.78.0.0/24"], &limits(2 * MBIT, 20 * MBIT));
    let peers = [
        node.add_to(&node.network("pods", &["10.77.0.0/24"]), "peer"),
        node.add_to(&node.network("second", &["10.78.0.0/24"]), "second-peer"),
    ];
    let pod = node.add_to(&first, "pod");
    let second = List::new(second.conflist(), node.runtime());
    let net1 = Container::new(&pod, "pod", "net1");
    let result = second.add(&net1).ok();
    let address = result["ips"][0]["address"].as_str().unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let addresses = [pod.v4(), address.parse().unwrap()];
    for ((peer, address), [ingress, egress]) in peers.iter().zip(addresses).zip([[10, 5], [2, 20]])
    {
        for (sender, rate) in [(Sender::Client, ingress), (Sender::Server, egress)] {
            let limit = Limit {
                rate: rate * MBIT,
                burst: rate * MBIT / 100,
            };
            let what = format!("{address} {sender:?}");
            // Never less than the largest packet.
            let limit = Limit {
                burst: limit.burst.max(65_000 * 8),
                ..limit
            };
            let way = Way::direct(peer, &pod, address);
            assert_gets_on(limit, &what, || {
                let delivery = way.carry(sender, Protocol::Udp, 2 * limit.rate);
                delivery.assert_within(limit, &what);
                delivery
            });
        }
    }
    finish(node, Vec::from(peers).into_iter().chain([pod]).collect());
}

/// Datagrams carry their number, and come in fours: with a burst of one, some
/// wait at any time. The queue is long, so that it is never full.
#[test]
fn a_change_under_traffic_loses_no_frame() {
    let node = Node::start(&Options::default());
    let peer = node.add("peer");
    let network = node.pods().with("ingressRate", 30 * MBIT);
    let network = network.with("shaping", json!({"queueMillis": 1000}));
    let pod = node.add_to(&network, "pod");
    let way = Way::direct(&peer, &pod, pod.v4());
    let sockets = way.udp();
    let is_over = AtomicBool::new(false);
    let mut waited = 0;
    thread::scope(|scope| {
        let [client, server] = &sockets;
        let flows = [[client, server], [server, client]].map(|[from, to]| {
            let send = scope.spawn(|| {
                let mut number = 0_u32;
                while !is_over.load(Ordering::Relaxed) {
                    for _ in 0..4 {
                        let mut payload = [0; DATAGRAM];
                        payload[..4].copy_from_slice(&number.to_be_bytes());
                        from.send(&payload).unwrap();
                        number += 1;
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                // Is known by its length.
                from.send(&number.to_be_bytes()).unwrap();
            });
            let receive = scope.spawn(|| {
                to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut payload = [0; DATAGRAM];
                for expected in 0_u32.. {
                    let length = to.recv(&mut payload).unwrap();
                    let number = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    assert_eq!(number, expected, "a frame is lost");
                    if length == 4 {
                        assert_ne!(number, 0);
                        return;
                    }
                }
            });
            (send, receive)
        });
        for rate in ["24M", "unlimited", "40M", "1G"].iter().cycle().take(20) {
            let ways = ["ingress", "egress"].map(|way| match *rate {
                "unlimited" => format!("--{way} {rate}"),
                rate => format!("--{way} {rate} --{way}-burst 10000"),
            });
            let run_dir = node.run_dir();
            let words = format!(
                "set bandwidth pod {} --run-dir {}",
                ways.join(" "),
                run_dir.display()
            );
            let done = node.sluiced(&words);
            assert!(done.status.success(), "{done:?}");
            waited += node.stats()["chunks"]["held"].as_u64().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        for (send, receive) in flows {
            for thread in [send, receive] {
                if let Err(panic) = thread.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    });
    assert_ne!(waited, 0, "nothing waited at any change");
    assert_eq!(shaped_away(&node, &pod), 0);
    finish(node, vec![pod, peer]);
}

#[test]
fn limits_are_back_after_a_kill_under_traffic() {
    let mut node = Node::start(&Options::default());
    let [pod, peer] = ["pod", "peer"].map(|name| node.add(name));
    let limits = set(&node, &pod, Some(10 * MBIT), Some(20 * MBIT));
    let echo = Echo::tcp(&pod, pod.v6());
    let flow = Flow::tcp(&peer, echo.address);
    for _ in 0..3 {
        flow.goes_on();
        node.kill();
        // A new daemon's buckets are full: what they let pass counts anew.
        let arrivals = [&pod, &peer].map(|pod| Arrivals::watch(pod, pod.v6()));
        let start = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        node.restart();
        flow.goes_on();
        let limits = [limits.ingress.unwrap(), limits.egress.unwrap()];
        for (arrivals, limit) in arrivals.into_iter().zip(limits) {
            let delivery = Delivery::new(start, arrivals.stop(), 0);
            delivery.assert_within(limit, "after a kill");
            assert_ne!(delivery.bytes(), 0);
        }
    }
    assert!(flow.stop() > 3);
    finish(node, vec![pod, peer]);
}

/// All send twice what they may, while others' traffic goes on unharmed.
#[test]
fn two_hundred_and_fifty_limited_pods() {
    const PODS: u16 = 250;
    const RATE: u64 = MBIT / 2;
    // With its headers, every 10 ms: twice the rate.
    const SIZE: usize = 1250 - 28;
    let node = Node::start(&Options {
        max_ports: PODS + 3,
        ..Options::default()
    });
    let [sink, a, b] = ["sink", "a", "b"].map(|name| node.add(name));
    let network = node.pods().with("egressRate", RATE);
    let pods = in_parallel(10, 0..PODS, |number| {
        node.add_to(&network, &format!("p{number}"))
    });
    let to = SocketAddr::new(sink.v4(), 7000);
    let server = sink.in_netns(|| UdpSocket::bind(to)).unwrap();
    let sockets = pods.iter().map(|pod| {
        let socket = pod.in_netns(|| UdpSocket::bind((pod.v4(), 0))).unwrap();
        socket.connect(to).unwrap();
        socket
    });
    let sockets = Vec::from_iter(sockets);
    let echo = Echo::tcp(&b, b.v4());
    let flow = Flow::tcp(&a, echo.address);
    let arrivals = Arrivals::watch(&sink, sink.v4());
    let start = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let began = Instant::now();
    pinged(&a, b.v6(), || {
        let payload = [7; SIZE];
        let mut due = began;
        while began.elapsed() < Duration::from_secs(1) {
            for socket in &sockets {
                socket.send(&payload).unwrap();
            }
            due += Duration::from_millis(10);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    });
    flow.goes_on();
    assert_ne!(flow.stop(), 0);
    let mut by_pod = HashMap::<IpAddr, Vec<Arrival>>::new();
    for arrival in arrivals.stop() {
        by_pod.entry(arrival.src).or_default().push(arrival);
    }
    drop(server);
    // Never less than the largest packet.
    let limit = Limit {
        rate: RATE,
        burst: 65_000 * 8,
    };
    for pod in &pods {
        let came = by_pod.remove(&pod.v4()).unwrap_or_default();
        assert!(!came.is_empty(), "{} is starved", pod.id());
        Delivery::new(start, came, 0).assert_within(limit, pod.id());
        let reasons = node.row(pod).counters.drops;
        assert!(!reasons.contains_key("queue-memory"), "{reasons:?}");
    }
    finish(node, pods);
}

#[test]
fn subnets_are_left_out() {
    let node = Node::start(&Options::default());
    let [free, peer] = ["free", "peer"].map(|name| node.add(name));
    let subnets = Vec::from_iter(free.addresses().into_iter().map(|address| match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }));
    let network = node
        .pods()
        .with("ingressRate", MBIT)
        .with("egressRate", MBIT);
    let network = network.with("shaping", json!({"unshapedSubnets": subnets}));
    let pod = node.add_to(&network, "pod");
    for address in pod.addresses() {
        for sender in [Sender::Client, Sender::Server] {
            let way = Way::direct(&free, &pod, address);
            let before = [shaped_away(&node, &pod), lost_in_rings(&node, &free)];
            let delivery = way.carry(sender, Protocol::Udp, 20 * MBIT);
            assert_eq!(shaped_away(&node, &pod), before[0]);
            let lost = lost_in_rings(&node, &free) - before[1];
            assert_eq!(datagrams(&delivery), delivery.sent - lost);

            let limit = Limit {
                rate: MBIT,
                burst: 65_000 * 8,
            };
            let way = Way::direct(&peer, &pod, address);
            let delivery = way.carry(sender, Protocol::Udp, 20 * MBIT);
            delivery.assert_within(limit, "another's");
            assert_ne!(shaped_away(&node, &pod), before[0]);
        }
    }
    finish(node, vec![free, peer, pod]);
}

/// The queue has room for more than a window, so that nothing but CoDel says
/// "slow down": what it would drop it marks.
#[test]
fn a_flow_that_understands_marks_loses_nothing() {
    let node = Node::start(&Options::default());
    let peer = node.add("peer");
    let network = node.pods().with("ingressRate", 20 * MBIT);
    let pod = node.add_to(
        &network.with("shaping", json!({"queueMillis": 1000})),
        "pod",
    );
    for space in [&pod, &peer] {
        space.exec("sysctl -qw net.ipv4.tcp_ecn=1");
    }
    let to = SocketAddr::new(pod.v4(), 7000);
    let listener = pod.in_netns(|| TcpListener::bind(to)).unwrap();
    let send = |bytes| {
        let [client, server] = connect_ends(&peer, to, &listener);
        transfer([&client, &server], bytes, 1);
    };
    // What is sent again because it was too large cannot be marked (RFC 3168
    // section 6.1.5): the path's MTU is known to the next connection.
    send(1 << 16);
    let before = [node.row(&pod).counters.marked, shaped_away(&node, &pod)];
    send(4 << 20);
    let after = [node.row(&pod).counters.marked, shaped_away(&node, &pod)];
    assert!(after[0] > before[0]);
    assert_eq!(after[1], before[1]);
    finish(node, vec![pod, peer]);
}

/// What containerd says for "no burst given".
#[test]
fn the_largest_burst_means_none_was_given() {
    let node = Node::start(&Options::default());
    let peer = node.add("peer");
    let mut list = node.chain(&[]);
    list.configuration["plugins"][0]["capabilities"] = json!({"bandwidth": true});
    let rate = 10 * MBIT;
    let limits = json!({
        "ingressRate": rate, "ingressBurst": u32::MAX, "egressRate": rate, "egressBurst": u32::MAX,
    });
    let pod = node.add_by(&list, "pod", &[("bandwidth", limits)]);
    for sender in [Sender::Client, Sender::Server] {
        let [from, to] = sender.first(Way::direct(&peer, &pod, pod.v4()).udp());
        let way = Way::direct(&peer, &pod, pod.v4());
        let delivery = way.watch(sender, to.local_addr().unwrap(), || {
            flood(&from, DATAGRAM, 2 * rate, Duration::from_secs(1))
        });
        let first_second = delivery.start + Duration::from_secs(1);
        let came = delivery.arrivals.iter().filter(|a| a.at <= first_second);
        let bytes: u64 = came.map(|arrival| arrival.bytes).sum();
        assert!(
            bytes * 8 <= rate * 11 / 10,
            "{sender:?}: {bytes} bytes in second 1"
        );
    }
    finish(node, vec![pod, peer]);
}

/// Ten packets in a second: the worker sleeps between them.
#[test]
fn nobody_spins_for_a_slow_pod() {
    /// A worker that spins takes as many in a tenth of a second.
    const TURNS: u64 = 100_000;
    let node = Node::start(&Options::default());
    let network = node.pods().with("egressRate", MBIT / 10);
    let network = network.with("shaping", json!({"queueMillis": 1000}));
    let pod = node.add_to(&network, "pod");
    let peer = node.add("peer");
    let held = || node.stats()["chunks"]["held"].as_u64().unwrap();
    let turns = || node.stats()["worker"]["turns"].as_u64().unwrap();
    let socket = pod.in_netns(|| UdpSocket::bind((pod.v4(), 0))).unwrap();
    let before = turns();
    for _ in 0..10 {
        socket.send_to(&[0; DATAGRAM], (peer.v4(), 9)).unwrap();
    }
    wait_until("most of them wait", || (held() > 5).then_some(()));
    wait_until("they have gone", || (held() == 0).then_some(()));
    let taken = turns() - before;
    assert!(taken < TURNS, "{taken} turns");
    finish(node, vec![peer, pod]);
}
