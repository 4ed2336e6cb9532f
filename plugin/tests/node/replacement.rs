//! A pod that takes over a hostPort, and a UDP client that never changes its
//! port and never stops sending: ours, and beside it `bridge` with `portmap`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Container, List, NODE4, PATIENCE, Pod, Stand, in_parallel, report};

/// How often a pod takes over.
const ROUNDS: usize = 100;
/// For portmap, if nobody wants to know: its losses take their time.
const FEW_ROUNDS: usize = 5;
const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;
const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Which address the new pod gets.
#[derive(Debug, Clone, Copy)]
enum Given {
    New,
    OldPods,
}

/// How a series is run.
#[derive(Debug, Clone, Copy)]
struct Series {
    given: Given,
    rounds: usize,
    /// How long the first datagram may be on its way.
    patience: Duration,
}

#[test]
fn a_datagram_after_add_reaches_the_new_pod() {
    let series = [Given::New, Given::OldPods].map(|given| Series {
        given,
        rounds: ROUNDS,
        patience: PATIENCE,
    });
    for (series, arrived) in in_parallel(2, series, |s| arrivals(s, Stand::sluice())) {
        assert_eq!(arrived, ROUNDS, "{series:?}");
    }
}

/// Nothing is asked of portmap; it is seen how it does.
#[test]
fn the_same_by_portmap() {
    let report = report("replacement.txt");
    let series = [Given::New, Given::OldPods].map(|given| Series {
        given,
        rounds: if report.is_some() { ROUNDS } else { FEW_ROUNDS },
        patience: Duration::from_secs(1),
    });
    let arrived = in_parallel(2, series, |series| arrivals(series, Stand::portmap()));
    let lines = arrived.iter().map(|(series, arrived)| {
        let Series { given, rounds, .. } = series;
        format!("portmap, address {given:?}: {arrived} of {rounds}\n")
    });
    let text: String = lines.collect();
    match report {
        Some(file) => fs::write(file, text).unwrap(),
        None => print!("{text}"),
    }
}

/// How many first datagrams reached the new pod.
fn arrivals(series: Series, stand: Stand) -> (Series, usize) {
    let mut list = stand.list("pods", &["10.77.0.0/24"], &[]);
    if let Given::OldPods = series.given {
        let range = &mut list.configuration["plugins"][0]["ipam"]["ranges"][0][0];
        range["rangeStart"] = "10.77.0.50".into();
        range["rangeEnd"] = "10.77.0.50".into();
    }
    let client = stand.site().outside.in_netns(|| UdpSocket::bind((ANY4, 0)));
    let client = client.unwrap();
    let (to, stop) = ((NODE4, HOST_PORT), AtomicBool::new(false));
    let arrived = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = client.send_to(b"noise", to);
                // Seldom enough for the pod's socket to hold all of it.
                thread::sleep(Duration::from_millis(2));
            }
        });
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let arrives = |round: &usize| {
                let server = Server::add(&stand, &list);
                let first = format!("first {round}");
                client.send_to(first.as_bytes(), to).unwrap();
                let arrived = server.gets(first.as_bytes(), series.patience);
                server.pod.del();
                arrived
            };
            (0..series.rounds).filter(arrives).count()
        }));
        stop.store(true, Ordering::Relaxed);
        rounds.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    stand.finish();
    (series, arrived)
}

/// A pod with the hostPort, and its socket.
struct Server {
    pod: Pod,
    socket: UdpSocket,
}

impl Server {
    fn add(stand: &Stand, list: &List) -> Self {
        let space = stand.site().space("pod");
        let socket = space.in_netns(|| UdpSocket::bind((ANY4, POD_PORT)));
        let mapping = json!({"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "udp"});
        let container = Container::new(&space, "pod", "eth0");
        let container = container.with("portMappings", json!([mapping]));
        Self {
            socket: socket.unwrap(),
            pod: Pod::join(space, container, list.clone()),
        }
    }

    /// Whether this datagram arrives, among others.
    fn gets(&self, datagram: &[u8], patience: Duration) -> bool {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let give_up = Instant::now() + patience;
        let mut buffer = [0; 64];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            if &buffer[..length] == datagram {
                return true;
            }
            if Instant::now() > give_up {
                return false;
            }
        }
        false
    }
}
