//! Services whose endpoint is a pod of this node, with rules like kube-proxy's.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::harness::flows::{Echo, check_tcp, check_udp};
use crate::harness::{NODE4, NODE6, Node, Options, PATIENCE, Pod, wait_until};

/// Of the clusters' usual range for Services: addresses that nobody has.
const CLUSTER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));
const CLUSTER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 10));

/// The mark by which kube-proxy has a packet masqueraded.
const MASQUERADE: &str = "0x4000";

/// A table that translates for Services.
fn kube_proxy(node: &Node) {
    for command in [
        "add table inet kube",
        "add chain inet kube services { type nat hook prerouting priority dstnat; }",
        "add chain inet kube postrouting { type nat hook postrouting priority srcnat; }",
        &format!("add rule inet kube postrouting meta mark and {MASQUERADE} != 0 masquerade"),
    ] {
        node.space().exec(&format!("nft {command}"));
    }
}

/// A Service with one endpoint, a server in `pod`; its address.
fn service(node: &Node, pod: &Pod, protocol: &str, endpoint: SocketAddr) -> SocketAddr {
    let (family, cluster, to) = match endpoint {
        SocketAddr::V4(_) => ("ip", CLUSTER4, "dnat ip to"),
        SocketAddr::V6(_) => ("ip6", CLUSTER6, "dnat ip6 to"),
    };
    let port = endpoint.port();
    let own = pod.address_like(cluster);
    let asked = format!("{family} daddr {cluster} {protocol} dport {port}");
    for rule in [
        format!("{asked} {family} saddr {own} meta mark set meta mark or {MASQUERADE}"),
        format!("{asked} {to} {endpoint}"),
    ] {
        let command = format!("nft add rule inet kube services {rule}");
        node.space().exec(&command);
    }
    SocketAddr::new(cluster, port)
}

fn sessions(node: &Node) -> u64 {
    node.stats()["worker"]["sessions"].as_u64().unwrap()
}

#[test]
fn a_pod_reaches_another_of_its_node_by_a_service() {
    let node = Node::start(&Options::default());
    let [client, server] = ["client", "server"].map(|name| node.add(name));
    kube_proxy(&node);
    for like in [NODE4, NODE6] {
        let address = server.address_like(like);
        let (tcp, udp) = (Echo::tcp(&server, address), Echo::udp(&server, address));
        check_tcp(&client, service(&node, &server, "tcp", tcp.address));
        // The largest is sent in fragments, and so is the answer.
        let by_udp = service(&node, &server, "udp", udp.address);
        check_udp(&client, by_udp, &[0, 1, 1472, 5000, 65_400]);
        for echo in [&tcp, &udp] {
            assert_eq!(echo.peers(), [client.address_like(like)]);
        }
    }
    assert!(sessions(&node) >= 4);
    let shown = node.sluiced(&format!(
        "show sessions --run-dir {}",
        node.run_dir().display()
    ));
    let shown = String::from_utf8(shown.stdout).unwrap();
    for text in [
        server.host_ifname(),
        &client.v6().to_string(),
        "tcp",
        "sluice-dp",
        "open",
    ] {
        assert!(shown.contains(text), "{text} is not in {shown}");
    }
    server.del();
    wait_until("sessions go with their pod", || {
        (sessions(&node) == 0).then_some(())
    });
    node.finish();
}

#[test]
fn a_pod_reaches_itself_by_a_service() {
    let node = Node::start(&Options::default());
    let pod = node.add("pod");
    kube_proxy(&node);
    for like in [NODE4, NODE6] {
        let address = pod.address_like(like);
        let (tcp, udp) = (Echo::tcp(&pod, address), Echo::udp(&pod, address));
        check_tcp(&pod, service(&node, &pod, "tcp", tcp.address));
        check_udp(
            &pod,
            service(&node, &pod, "udp", udp.address),
            &[0, 1, 1472, 5000],
        );
        for echo in [&tcp, &udp] {
            assert!(!echo.peers().contains(&address), "masqueraded");
        }
    }
    node.finish();
}

/// From one port, now by the Service, now directly: each answer comes from
/// where the question went.
#[test]
fn the_same_ports_directly_and_by_a_service() {
    let node = Node::start(&Options::default());
    let [client, server] = ["client", "server"].map(|name| node.add(name));
    kube_proxy(&node);
    for like in [NODE4, NODE6] {
        let echo = Echo::udp(&server, server.address_like(like));
        let by_service = service(&node, &server, "udp", echo.address);
        let own = SocketAddr::new(client.address_like(like), 0);
        let socket = client.in_netns(|| UdpSocket::bind(own)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for round in 0..10_u8 {
            for to in [by_service, echo.address, echo.address, by_service] {
                socket.send_to(&[round], to).unwrap();
                let mut answer = [0; 2];
                assert_eq!(socket.recv_from(&mut answer).unwrap(), (1, to));
                assert_eq!(answer[0], round);
            }
        }
    }
    node.finish();
}

#[test]
fn who_asks_a_service_is_told_that_nobody_listens() {
    let node = Node::start(&Options::default());
    let [client, server] = ["client", "server"].map(|name| node.add(name));
    kube_proxy(&node);
    for like in [NODE4, NODE6] {
        let nobody = SocketAddr::new(server.address_like(like), 9);
        let by_service = service(&node, &server, "udp", nobody);
        let own = SocketAddr::new(client.address_like(like), 0);
        let socket = client.in_netns(|| UdpSocket::bind(own)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        client.in_netns(|| socket.connect(by_service)).unwrap();
        socket.send(b"anybody there?").unwrap();
        let refused = socket.recv(&mut [0; 1]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
    node.finish();
}
