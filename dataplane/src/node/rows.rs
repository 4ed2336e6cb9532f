//! What `sluiced show` answers, as JSON.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Add;

use serde_json::{Value, json};

use super::NodeError;
use super::book::{Book, Entry};
use super::uplink;
use super::wiring::{Wired, Wiring};
use crate::counters::{NodeSnapshot, PortCounters};
use crate::host_port::DATAPLANE_INTERFACE;
use crate::packet::{Flow, protocol};
use crate::port::PortId;
use crate::probe::Report;
use crate::sessions::{Listed, Session};
use crate::verdict::DropReason;
use crate::xsk::Statistics;

/// Of so many an answer has room (`MAX_MESSAGE_BYTES`).
const MOST_SESSIONS: usize = 8192;

/// A row for the host port, each pod port and each queue of the uplink, by slot.
pub(super) fn ports(wiring: &Wiring, book: &Book, uplink: &str) -> Value {
    let host = wiring.host().into_iter().map(|host| {
        let mut row = counters(host);
        row["kind"] = json!("host");
        row["interface"] = json!(DATAPLANE_INTERFACE);
        row
    });
    let pods = book.sorted().into_iter().map(pod);
    let uplink = wiring.uplink().iter().map(move |queue| {
        let mut row = counters(queue);
        row["kind"] = json!("uplink");
        row["interface"] = json!(uplink);
        row
    });
    host.chain(pods).chain(uplink).collect()
}

/// What the kernel offers, whether that is enough to merge TCP segments, and how
/// hostPorts are served from outside.
pub(super) fn kernel(report: &Report, uplink: &uplink::State) -> Value {
    let mut answer = json!(report);
    answer["gro"] = json!(report.features().can_merge());
    answer["uplink"] = json!(uplink);
    answer
}

fn pod(entry: &Entry) -> Value {
    let attachment = &entry.attachment;
    let mut row = counters(&entry.wired);
    row["kind"] = json!("pod");
    row["interface"] = json!(attachment.host_ifname);
    row["network"] = json!(attachment.id.network);
    row["container_id"] = json!(attachment.id.container_id);
    row["ifname"] = json!(attachment.id.ifname);
    row["pod"] = json!(attachment.pod);
    row["addresses"] = json!(attachment.addresses);
    row["mac"] = json!(mac(attachment.pod_mac));
    row["mtu"] = json!(attachment.mtu);
    row["frame_mtu"] = json!(attachment.frame_mtu());
    row["shaping"] = json!(attachment.shaping);
    row["ip_masq"] = json!(attachment.ip_masq);
    row["gro"] = json!(attachment.gro);
    row
}

/// A row for each port of the node that leads to a pod, by port.
pub(super) fn host_ports(book: &Book) -> Value {
    let mut rows: Vec<_> = book
        .sorted()
        .into_iter()
        .map(|entry| &entry.attachment)
        .flat_map(|attachment| {
            attachment
                .redirects()
                .map(move |r| (r.from, r.to, attachment))
        })
        .collect();
    rows.sort_unstable_by_key(|(from, ..)| (from.port, from.protocol, from.address));
    rows.into_iter()
        .map(|(from, to, attachment)| {
            json!({
                "protocol": from.protocol,
                "host": SocketAddr::new(from.address, from.port),
                "to": to,
                "pod": attachment.pod,
                "network": attachment.id.network,
                "container_id": attachment.id.container_id,
                "ifname": attachment.id.ifname,
                "snat": attachment.snat,
                "masq_all": attachment.masq_all,
            })
        })
        .collect()
}

fn counters(wired: &Wired) -> Value {
    json!({
        "slot": wired.id.slot,
        "generation": wired.id.generation,
        "counters": wired.counters.snapshot(),
        "xdp_statistics": wired.socket.statistics(),
    })
}

/// What ports dropped that are gone: a node's drops never decrease.
#[derive(Debug)]
pub(super) struct PastDrops([u64; DropReason::COUNT]);

impl PastDrops {
    pub(super) fn none() -> Self {
        Self([0; DropReason::COUNT])
    }

    pub(super) fn add(&mut self, port: &PortCounters) {
        for (reason, past) in DropReason::ALL.into_iter().zip(&mut self.0) {
            *past += port.drops.get(reason);
        }
    }

    fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()]
    }
}

/// The workers' counters, drops by reason and by the kernel over all ports,
/// and where the UMEM's chunks are.
pub(super) fn stats(wiring: &Wiring, book: &Book, past: &PastDrops) -> Value {
    let pods = book.sorted().into_iter().map(|entry| &entry.wired);
    let ports: Vec<&Wired> = wiring
        .host()
        .into_iter()
        .chain(pods)
        .chain(wiring.uplink())
        .collect();
    let sum = |count: &dyn Fn(&PortCounters) -> u64| -> u64 {
        ports.iter().map(|port| count(&port.counters)).sum()
    };
    let fleet = wiring.fleet();
    let drops = DropReason::ALL.into_iter().map(|reason| {
        let past = past.get(reason) + fleet.drops(reason);
        json!({
            "reason": reason.name(),
            "frames": past + sum(&|port| port.drops.get(reason)),
            "help": reason.help(),
        })
    });
    let workers = fleet.snapshots();
    let all = workers
        .iter()
        .cloned()
        .fold(NodeSnapshot::default(), NodeSnapshot::add);
    let free = all.free_chunks + fleet.stored_chunks() as u64;
    let fill = sum(&|port| port.filled_chunks.get());
    let tx = sum(&|port| port.sent_chunks.get());
    let handoff = fleet.chunks_underway() as u64;
    // Under traffic this is not zero, and may be negative: the numbers are
    // read one after the other while chunks move.
    let unaccounted = [free, fill, tx, all.held_chunks, handoff]
        .into_iter()
        .fold(i128::from(all.chunks), |left, part| left - i128::from(part));
    json!({
        "ports": ports.len(),
        "chunks": {
            "total": all.chunks,
            "free": free,
            "fill": fill,
            "tx": tx,
            "held": all.held_chunks,
            "handoff": handoff,
            "unaccounted": unaccounted,
        },
        "worker": all,
        "workers": workers,
        "merged_frames": sum(&|port| port.merged_frames.get()),
        "drops": drops.collect::<Value>(),
        "xdp_statistics": total(ports.iter().filter_map(|port| port.socket.statistics())),
    })
}

/// The sessions by pod and client, at most so many, and how many there are.
pub(super) fn sessions(
    wiring: &Wiring,
    book: &Book,
    uplink: &str,
    limit: usize,
) -> Result<Value, NodeError> {
    let mut sessions = wiring.sessions()?;
    sessions.sort_unstable_by_key(|listed| {
        let Flow {
            src,
            dst,
            src_port,
            dst_port,
            protocol,
        } = listed.session.original;
        (listed.session.pod, src, src_port, dst, dst_port, protocol)
    });
    let pods = book.sorted().into_iter();
    let interface = |entry: &Entry| (entry.wired.id, entry.attachment.host_ifname.clone());
    let mut interfaces: HashMap<PortId, String> = pods.map(interface).collect();
    if let Some(host) = wiring.host() {
        interfaces.insert(host.id, DATAPLANE_INTERFACE.to_owned());
    }
    for queue in wiring.uplink() {
        interfaces.insert(queue.id, uplink.to_owned());
    }
    let shown = sessions.iter().take(limit.min(MOST_SESSIONS));
    let rows = shown.map(|listed| session(listed, &interfaces));
    Ok(json!({ "total": sessions.len(), "sessions": rows.collect::<Value>() }))
}

fn session(listed: &Listed, interfaces: &HashMap<PortId, String>) -> Value {
    let Session {
        original,
        translated,
        pod,
        client,
        next_hop: _,
    } = listed.session;
    let flow = |flow: Flow| {
        json!({
            "src": SocketAddr::new(flow.src.to_canonical(), flow.src_port),
            "dst": SocketAddr::new(flow.dst.to_canonical(), flow.dst_port),
        })
    };
    let protocol = match original.protocol {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        _ => "sctp",
    };
    json!({
        "pod": interfaces.get(&pod),
        "answers_leave_by": interfaces.get(&client),
        "protocol": protocol,
        "original": flow(original),
        "translated": flow(translated),
        "state": listed.state.name(),
        "idle_ms": listed.idle.0 / 1_000_000,
        "left_ms": listed.left.0 / 1_000_000,
    })
}

fn total(statistics: impl Iterator<Item = Statistics>) -> Statistics {
    statistics.fold(Statistics::default(), |sum, port| Statistics {
        rx_dropped: sum.rx_dropped + port.rx_dropped,
        rx_invalid_descs: sum.rx_invalid_descs + port.rx_invalid_descs,
        tx_invalid_descs: sum.tx_invalid_descs + port.tx_invalid_descs,
        rx_ring_full: sum.rx_ring_full + port.rx_ring_full,
        rx_fill_ring_empty_descs: sum.rx_fill_ring_empty_descs + port.rx_fill_ring_empty_descs,
        tx_ring_empty_descs: sum.tx_ring_empty_descs + port.tx_ring_empty_descs,
    })
}

fn mac(bytes: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = bytes;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
