//! What a connection's first packet costs with many hostPorts: it prints, and
//! plugin/README.md has what was measured.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::harness::{NODE4, Node, Options, PATIENCE, Pod, Space};

/// Both nodes have as many pods: each is a port, which costs by itself.
const PODS: u16 = 100;
const MAPPINGS_OF_A_POD: u16 = 100;
const FIRST_HOST_PORT: u16 = 2000;
const POD_PORT: u16 = 80;
const CONNECTIONS: u16 = 2000;
/// Never used before, so that each is a new connection.
const FIRST_CLIENT_PORT: u16 = 20_000;

#[test]
fn the_first_packet_with_one_mapping_and_with_ten_thousand() {
    for uplink in ["auto", "none"] {
        let nodes = [false, true].map(|has_many| Mapped::start(uplink, has_many));
        let mut times = [const { Vec::new() }; 2];
        for port in (FIRST_CLIENT_PORT..).take(CONNECTIONS.into()) {
            for (node, times) in nodes.iter().zip(&mut times) {
                times.push(node.first_packet(port));
            }
        }
        let [one, many] = times.map(median);
        println!(
            "uplink {uplink}: the first packet takes {one:.1?} with 1 mapping and {many:.1?} \
             with {} (ratio {:.3}); an ADD took {:.1?}, with {MAPPINGS_OF_A_POD} mappings {:.1?}",
            PODS * MAPPINGS_OF_A_POD,
            many.as_secs_f64() / one.as_secs_f64(),
            nodes[0].add,
            nodes[1].add,
        );
        nodes.into_iter().for_each(Mapped::finish);
    }
}

/// A node with mappings, and a server behind the first of them.
struct Mapped {
    node: Node,
    pods: Vec<Pod>,
    server: UdpSocket,
    /// The median ADD.
    add: Duration,
}

impl Mapped {
    fn start(uplink: &'static str, has_many: bool) -> Self {
        let node = Node::start(&Options {
            max_ports: PODS,
            uplink,
        });
        let space = node.site.space("server");
        let server = bind(&space, POD_PORT);
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let spaces = (1..PODS).map(|number| node.site.space(&format!("p{number}")));
        let spaces: Vec<_> = std::iter::once(space).chain(spaces).collect();
        let mut times = Vec::new();
        let pods = spaces.into_iter().zip(0..).map(|(space, number)| {
            let count = match (has_many, number) {
                (true, _) => MAPPINGS_OF_A_POD,
                (false, 0) => 1,
                (false, _) => 0,
            };
            let first = FIRST_HOST_PORT + number * MAPPINGS_OF_A_POD;
            let mappings = (0..count).map(|more| (first + more, POD_PORT + more, "udp", ""));
            let network = node.pods().mapped(&Vec::from_iter(mappings));
            let start = Instant::now();
            let pod = Pod::add(space, &format!("p{number}"), &network, &node.runtime());
            times.push(start.elapsed());
            pod
        });
        let pods = pods.collect();
        Self {
            pods,
            server,
            add: median(times),
            node,
        }
    }

    /// From an outside client's first datagram to its arrival in the pod.
    fn first_packet(&self, port: u16) -> Duration {
        let client = bind(self.node.outside(), port);
        let start = Instant::now();
        let to = SocketAddr::new(NODE4, FIRST_HOST_PORT);
        client.send_to(&port.to_be_bytes(), to).unwrap();
        let mut buffer = [0; 3];
        let length = self.server.recv(&mut buffer).unwrap();
        let time = start.elapsed();
        assert_eq!(buffer[..length], port.to_be_bytes());
        time
    }

    fn finish(self) {
        self.pods.into_iter().for_each(Pod::del);
        self.node.finish();
    }
}

fn bind(space: &Space, port: u16) -> UdpSocket {
    space
        .in_netns(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
        .unwrap()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
