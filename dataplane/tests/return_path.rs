//! What came from the host port goes back through it, over in-memory kernels.
//! No privileges needed.

use std::net::{IpAddr, SocketAddr};

use sluice_dataplane::lab::{GATEWAY_MAC, GATEWAY_V4, HOST, Lab, LabOptions, link, mac, v4, v6};
use sluice_dataplane::packet::Ethernet;
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;

/// The client's slot and the server's.
const CLIENT: u16 = 1;
const SERVER: u16 = 2;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

type Make = fn(SocketAddr, SocketAddr) -> Datagram;

const PROTOCOLS: [Make; 3] = [
    |src, dst| build::tcp(src, dst),
    |src, dst| build::udp(src, dst),
    |src, dst| build::sctp(src, dst),
];

fn lab() -> Lab {
    Lab::new(LabOptions::default())
}

/// Client and server, in either IP version.
fn ends() -> [[SocketAddr; 2]; 2] {
    let (client, server) = ((v4(CLIENT), 4000), (v4(SERVER), 80));
    let ends4 = [client.into(), server.into()];
    let (client, server) = ((v6(CLIENT), 4000), (v6(SERVER), 80));
    [ends4, [client.into(), server.into()]]
}

fn request() -> Datagram {
    let [client, server] = ends()[0];
    build::tcp(client, server)
}

fn answer() -> Datagram {
    let [client, server] = ends()[0];
    build::tcp(server, client)
}

/// To which slot a frame goes; one in, one out, and nothing dropped.
#[track_caller]
fn way(lab: &mut Lab, from: u16, datagram: &Datagram) -> u16 {
    let arrived = lab.send(from, &datagram.frame(link(from)));
    assert_eq!(arrived.len(), 1);
    arrived[0].0
}

/// In use, once a turn has passed.
fn sessions(lab: &mut Lab) -> u64 {
    lab.run();
    lab.node().sessions
}

#[test]
fn an_answer_goes_back_where_the_question_came_from() {
    for make in PROTOCOLS {
        for [client, server] in ends() {
            let mut lab = lab();
            let question = make(client, server).payload([7; 100]);
            let reply = make(server, client).payload([8; 100]).partial();
            // Of SCTP no checksum is partial.
            let complete = make(server, client).payload([8; 100]).frame(link(SERVER));
            assert_eq!(way(&mut lab, SERVER, &reply), CLIENT, "asked directly");
            assert_eq!(way(&mut lab, HOST, &question), SERVER);
            let arrived = lab.send(SERVER, &reply.frame(link(SERVER)));
            let to_host = Ethernet {
                dst: mac(HOST),
                src: GATEWAY_MAC,
            };
            // The host counts the hop, and gets a partial checksum as such.
            assert_eq!(arrived[0].0, HOST);
            assert_eq!(arrived[0].1.bytes, reply.frame(to_host));
            assert!(arrived[0].1.checksum.is_some() || reply.frame(link(SERVER)) == complete);
            assert_eq!(sessions(&mut lab), 1);

            // Other ports, and the server's own questions, are none of it.
            let other = SocketAddr::new(client.ip(), 4001);
            assert_eq!(way(&mut lab, SERVER, &make(server, other)), CLIENT);
            assert_eq!(way(&mut lab, CLIENT, &make(client, server)), SERVER);
            lab.assert_conserved();
        }
    }
}

#[test]
fn a_pod_that_reaches_itself_through_a_service_gets_its_answers_back() {
    let mut lab = lab();
    let own = v4(SERVER);
    let question = build::udp((own, 4000), (own, 53));
    assert_eq!(way(&mut lab, HOST, &question), SERVER);
    let reply = build::udp((own, 53), (own, 4000));
    assert_eq!(way(&mut lab, SERVER, &reply), HOST);
    // Its port to itself: no answer could be told from a question.
    let mirror = build::udp((own, 53), (own, 53));
    assert_eq!(way(&mut lab, HOST, &mirror), SERVER);
    assert_eq!(sessions(&mut lab), 1);
    lab.assert_conserved();
}

#[test]
fn what_is_from_no_pod_of_the_node_needs_no_session() {
    let mut lab = lab();
    for src in [IpAddr::from([198, 51, 100, 7]), GATEWAY_V4.into()] {
        let question = build::tcp((src, 4000), (v4(SERVER), 80)).flags(SYN);
        assert_eq!(way(&mut lab, HOST, &question), SERVER);
        let reply = build::tcp((v4(SERVER), 80), (src, 4000)).flags(SYN_ACK);
        assert_eq!(way(&mut lab, SERVER, &reply), HOST);
    }
    assert_eq!(
        way(&mut lab, HOST, &build::ping(v4(CLIENT), v4(SERVER))),
        SERVER
    );
    assert_eq!(sessions(&mut lab), 0);
    lab.assert_conserved();
}

#[test]
fn of_the_same_ports_directly_and_through_a_service_the_last_syn_wins() {
    let mut lab = lab();
    for _ in 0..3 {
        assert_eq!(way(&mut lab, HOST, &request().flags(SYN)), SERVER);
        assert_eq!(way(&mut lab, SERVER, &answer().flags(SYN_ACK)), HOST);
        // A late segment of an earlier connection changes nothing.
        assert_eq!(way(&mut lab, CLIENT, &request().flags(ACK)), SERVER);
        assert_eq!(way(&mut lab, SERVER, &answer().flags(ACK)), HOST);

        assert_eq!(way(&mut lab, CLIENT, &request().flags(SYN)), SERVER);
        assert_eq!(way(&mut lab, SERVER, &answer().flags(SYN_ACK)), CLIENT);
        assert_eq!(sessions(&mut lab), 0);
    }
    lab.assert_conserved();
}

#[test]
fn of_the_same_ports_directly_and_through_a_service_the_last_datagram_wins() {
    for [client, server] in ends() {
        let mut lab = lab();
        let (question, reply) = (build::udp(client, server), build::udp(server, client));
        for _ in 0..3 {
            assert_eq!(way(&mut lab, HOST, &question), SERVER);
            assert_eq!(way(&mut lab, SERVER, &reply), HOST);
            assert_eq!(way(&mut lab, SERVER, &reply), HOST);
            assert_eq!(way(&mut lab, CLIENT, &question), SERVER);
            assert_eq!(way(&mut lab, SERVER, &reply), CLIENT);
        }
        lab.assert_conserved();
    }
}

#[test]
fn a_connection_that_the_server_opens_is_no_answer() {
    let mut lab = lab();
    assert_eq!(way(&mut lab, HOST, &request().flags(SYN)), SERVER);
    assert_eq!(way(&mut lab, SERVER, &answer().flags(SYN)), CLIENT);
    assert_eq!(way(&mut lab, CLIENT, &request().flags(SYN_ACK)), SERVER);
    assert_eq!(way(&mut lab, SERVER, &answer().flags(ACK)), CLIENT);
    assert_eq!(sessions(&mut lab), 0);

    // Both ask each other through Services, with the same ports: the last one
    // gets its answers.
    assert_eq!(way(&mut lab, HOST, &request().flags(SYN)), SERVER);
    assert_eq!(way(&mut lab, HOST, &answer().flags(SYN)), CLIENT);
    assert_eq!(way(&mut lab, CLIENT, &request().flags(SYN_ACK)), HOST);
    // Where each has a worker's table of its own, both get them.
    assert_eq!(sessions(&mut lab), lab.workers().min(2) as u64);
    lab.assert_conserved();
}

/// As after a restart of the daemon.
#[test]
fn a_connection_in_mid_flow_is_remembered_by_the_clients_next_segment() {
    let mut lab = lab();
    assert_eq!(way(&mut lab, HOST, &request().flags(ACK)), SERVER);
    assert_eq!(way(&mut lab, SERVER, &answer().flags(ACK)), HOST);
    // Nothing answers a reset.
    let [client, _] = ends()[0];
    let reset = build::tcp(client, (v4(SERVER), 81)).flags(0x04);
    assert_eq!(way(&mut lab, HOST, &reset), SERVER);
    assert_eq!(sessions(&mut lab), 1);
}

#[test]
fn an_error_about_a_question_goes_back_where_that_came_from() {
    for [client, server] in ends() {
        let mut lab = lab();
        let question = build::udp(client, server).payload([1; 30]);
        let kind = if client.is_ipv4() { (3, 3) } else { (1, 4) };
        let error = build::icmp(server.ip(), client.ip(), kind, 0).payload(question.packet());
        assert_eq!(way(&mut lab, SERVER, &error), CLIENT, "asked directly");
        assert_eq!(way(&mut lab, HOST, &question), SERVER);
        // It does not prolong the session either.
        for _ in 0..3 {
            assert_eq!(way(&mut lab, SERVER, &error), HOST);
            lab.wait(Nanos::from_millis(11_000));
        }
        assert_eq!(way(&mut lab, SERVER, &error), CLIENT);
        assert_eq!(sessions(&mut lab), 0);
        lab.assert_conserved();
    }
}

#[test]
fn an_error_about_another_pods_answer_goes_the_plain_way() {
    let mut lab = Lab::new(LabOptions {
        pods: 3,
        ..LabOptions::default()
    });
    let [client, server] = ends()[0];
    let question = build::udp(client, server);
    assert_eq!(way(&mut lab, HOST, &question), SERVER);
    let liar = 3;
    let own = build::udp(client, (v4(liar), 80));
    assert_eq!(way(&mut lab, HOST, &own), liar);
    let about =
        |packet: &Datagram| build::icmp(v4(liar), v4(CLIENT), (3, 3), 0).payload(packet.packet());
    assert_eq!(way(&mut lab, liar, &about(&own)), HOST);
    assert_eq!(way(&mut lab, liar, &about(&question)), CLIENT);
    lab.assert_conserved();
}

#[test]
fn fragments_follow_the_first() {
    for [client, server] in ends() {
        let mut lab = lab();
        let fragments = |src, dst, id| build::udp(src, dst).payload([1; 5000]).identification(id);
        let send = |lab: &mut Lab, from: u16, datagram: &Datagram| -> Vec<u16> {
            let frames = datagram.fragments(link(from), 1480);
            assert_eq!(frames.len(), 4);
            let sent = frames.iter().flat_map(|frame| lab.send(from, frame));
            sent.map(|(slot, _)| slot).collect()
        };
        let through_service = fragments(client, server, 1);
        assert_eq!(send(&mut lab, HOST, &through_service), [SERVER; 4]);
        let other_client = SocketAddr::new(client.ip(), 4001);
        for id in [7, 8] {
            let reply = fragments(server, client, id);
            assert_eq!(send(&mut lab, SERVER, &reply), [HOST; 4]);
        }
        // The same identification again, for one who asked directly.
        let direct = fragments(server, other_client, 8);
        assert_eq!(send(&mut lab, SERVER, &direct), [CLIENT; 4]);
        assert_eq!(sessions(&mut lab), 1);
        lab.assert_conserved();
    }
}

/// Ten times what the table has room for, once unanswered and once answered.
#[test]
fn a_flood_through_a_service_costs_others_nothing() {
    let mut lab = Lab::new(LabOptions {
        pods: 4,
        sessions: 1024,
        ..LabOptions::default()
    });
    let flooded = 3;
    let established: Vec<_> = (0..100)
        .map(|port| {
            let (client, server) = ((v4(CLIENT), 4000 + port), (v4(SERVER), 80));
            let (question, reply) = (build::tcp(client, server), build::tcp(server, client));
            way(&mut lab, HOST, &question.clone().flags(SYN));
            way(&mut lab, SERVER, &reply.clone().flags(SYN_ACK));
            way(&mut lab, HOST, &question);
            reply
        })
        .collect();
    for round in 0..2 {
        for port in 0..10_240 {
            let (client, server) = ((v6(4), port), (v6(flooded), 53));
            assert_eq!(way(&mut lab, HOST, &build::udp(client, server)), flooded);
            if round > 0 {
                let reply = build::udp(server, client);
                assert_eq!(way(&mut lab, flooded, &reply), HOST);
            }
        }
        for reply in &established {
            assert_eq!(way(&mut lab, SERVER, reply), HOST);
        }
    }
    let node = lab.node();
    let (in_use, recycled) = (node.sessions, node.recycled_sessions);
    // Half of a table at most, and in another worker's the established ones.
    assert!(in_use <= 612 && recycled > 10_000, "{in_use}, {recycled}");
    lab.assert_conserved();
}

#[test]
fn a_session_ends_with_its_time() {
    let mut lab = lab();
    let [client, server] = ends()[0];
    let (question, reply) = (build::udp(client, server), build::udp(server, client));
    assert_eq!(way(&mut lab, HOST, &question), SERVER);
    lab.wait(Nanos::from_millis(30_000));
    assert_eq!(way(&mut lab, SERVER, &reply), HOST);
    lab.wait(Nanos::from_millis(120_000));
    assert_eq!(way(&mut lab, SERVER, &reply), HOST);
    lab.wait(Nanos::from_millis(122_000));
    assert_eq!(way(&mut lab, SERVER, &reply), CLIENT);
    assert_eq!(sessions(&mut lab), 0);
}

#[test]
fn a_session_goes_with_its_pod() {
    let mut lab = lab();
    let [client, server] = ends()[0];
    let (question, reply) = (build::udp(client, server), build::udp(server, client));
    for generation in 1..20 {
        assert_eq!(way(&mut lab, HOST, &question), SERVER);
        assert_eq!(way(&mut lab, SERVER, &reply), HOST);
        lab.detach(SERVER);
        lab.attach(SERVER, generation, 65_000);
        // The next pod has the same address, and never heard the question.
        assert_eq!(way(&mut lab, SERVER, &reply), CLIENT);
        assert_eq!(sessions(&mut lab), 0);
    }
    // A client that is gone is the host's to know.
    assert_eq!(way(&mut lab, HOST, &question), SERVER);
    lab.detach(CLIENT);
    assert_eq!(way(&mut lab, SERVER, &reply), HOST);
    lab.assert_no_chunk_lost();
}

#[test]
fn an_answer_whose_way_back_is_gone_is_dropped_and_counted() {
    let mut lab = lab();
    assert_eq!(way(&mut lab, HOST, &request().flags(SYN)), SERVER);
    lab.detach(HOST);
    let frame = answer().flags(SYN_ACK).frame(link(SERVER));
    assert!(lab.send(SERVER, &frame).is_empty());
    // Another worker counts it for itself, and nobody twice.
    let counted = lab.counters(SERVER).drops.get(DropReason::PortDown);
    assert_eq!(counted + lab.worker_drops(DropReason::PortDown), 1);
    lab.assert_no_chunk_lost();
}
