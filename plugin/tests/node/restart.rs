//! The daemon dies, and another takes its place.

use serde_json::Value;

use crate::harness::flows::{Echo, Flow};
use crate::harness::{Node, Options, Pod};

/// The id of the XDP program on the host's end of a pod's veth.
fn program(node: &Node, pod: &Pod) -> Value {
    let links = node
        .space()
        .json(&format!("ip -j link show dev {}", pod.host_ifname()));
    links[0]["xdp"]["prog"]["id"].clone()
}

/// kill -9, again and again: the same connection goes on each time, and the
/// program stays where it is meanwhile.
#[test]
fn a_killed_daemons_connections_go_on_with_the_next() {
    let mut node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echoes: Vec<_> = b
        .addresses()
        .into_iter()
        .map(|address| Echo::tcp(&b, address))
        .collect();
    let flows: Vec<_> = echoes
        .iter()
        .map(|echo| Flow::tcp(&a, echo.address))
        .collect();
    for _ in 0..3 {
        flows.iter().for_each(Flow::goes_on);
        let before = program(&node, &a);
        assert!(before.is_u64(), "{before}");
        node.kill();
        assert_eq!(program(&node, &a), before);
        node.restart();
        assert_eq!(node.ports().len(), 3, "both pods and the host port");
    }
    for flow in flows {
        flow.goes_on();
        flow.stop();
    }
    node.finish();
}

#[test]
fn a_stopped_daemons_pods_are_the_next_ones() {
    let mut node = Node::start(&Options::default());
    let [a, b] = ["a", "b"].map(|name| node.add(name));
    let echo = Echo::tcp(&b, b.v4());
    let flow = Flow::tcp(&a, echo.address);
    flow.goes_on();
    assert!(node.stop().success());
    node.restart();
    flow.goes_on();
    flow.stop();
    node.finish();
}

/// What the runtime does in the gap ends as specified and leaves nothing wrong.
#[test]
fn add_and_del_while_no_daemon_runs() {
    let mut node = Node::start(&Options::default());
    let [a, b, c] = ["a", "b", "c"].map(|name| node.add(name));
    node.kill();
    let space = node.site.space("late");
    node.try_add(&node.pods(), &space, "late")
        .fails(11, &["sluiced"]);
    assert_eq!(space.links(), ["lo"]);
    c.del();
    node.restart();
    assert_eq!(node.ports().len(), 3, "a, b and the host port");
    let echo = Echo::tcp(&b, b.v4());
    let flow = Flow::tcp(&a, echo.address);
    flow.goes_on();
    flow.stop();
    node.finish();
}
