//! Any bytes, as frames from a pod, the host and the uplink, through a whole engine:
//! nothing panics, every frame ends in one place, no chunk is lost.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use sluice_dataplane::lab::{GATEWAY_MAC, HOST, Lab, LabOptions, MTU, link, mac, v4, v6};
use sluice_dataplane::mappings::{Mapping, Mappings};
use sluice_dataplane::next_hops::{NextHops, Path, Uplink};
use sluice_dataplane::packet::{Ethernet, build, exercise};
use sluice_dataplane::port::PortId;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::{FILL_DEPTH, FramePool, Umem};

const OPTIONS: LabOptions = LabOptions {
    workers: 1,
    pods: 2,
    uplinks: 1,
    reserve: 256,
    sessions: 16,
    features: sluice_dataplane::xsk::Features {
        multi_buffer: true,
        tx_metadata: true,
        tx_budget: true,
        gso: true,
        tso: true,
    },
    gro: true,
};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

thread_local! {
    /// One memory for all runs: a UMEM is mapped for the life of the process.
    static MEMORY: std::cell::RefCell<Option<(&'static Umem, FramePool)>> =
        Umem::create(4 * FILL_DEPTH + OPTIONS.reserve).ok().into();
}

/// The uplink's slot.
const UPLINK: u16 = 3;

/// Port 8080 of the node leads to port 80 of the second pod.
fn mappings() -> Mappings {
    let mapping = Mapping {
        address: NODE.into(),
        host_port: 8080,
        protocol: 17,
        pod: PortId {
            slot: 2,
            generation: 0,
        },
        pod_address: v4(2).into(),
        container_port: 80,
    };
    Mappings::new([NODE.into()], [mapping])
}

/// Clients outside are on the uplink's link.
fn uplink() -> Uplink {
    let everything = ((Ipv4Addr::UNSPECIFIED.into(), 0), Path::OnLink);
    Uplink {
        mac: mac(UPLINK),
        mtu: MTU,
        next_hops: NextHops::new([everything], []),
    }
}

/// Frames of a conversation through the mapped port: by the uplink, as the host
/// translates it, and the pod's answer.
fn by_host_port(slot: u16) -> Vec<Vec<u8>> {
    let (client, node, pod) = ((CLIENT, 4000), (NODE, 8080), (v4(2), 80));
    let link = Ethernet {
        src: mac(slot),
        dst: if slot == UPLINK {
            mac(slot)
        } else {
            GATEWAY_MAC
        },
    };
    let datagram = match slot {
        HOST => build::udp(client, pod),
        2 => build::udp(pod, client),
        _ => build::udp(client, node),
    };
    let error = build::icmp(CLIENT, NODE, (3, 4), 0).payload(build::udp(node, client).packet());
    vec![
        datagram.clone().frame(link),
        datagram.partial().frame(link),
        error.frame(link),
    ]
}

/// Frames between the pods, as the pod in `slot` sends them, or the host after
/// it has translated them.
fn conversation(slot: u16) -> Vec<Vec<u8>> {
    let (from, to) = if slot == 2 { (2, 1) } else { (1, 2) };
    let tcp = build::tcp((v4(from), 80), (v4(to), 80));
    let udp = build::udp((v6(from), 53), (v6(to), 53));
    let ports = build::udp((v4(from), 4000 + from), (v4(to), 4000 + to));
    let question = build::udp((v6(to), 53), (v6(from), 53)).packet();
    let error = build::icmp(v6(from), v6(to), (1, 4), 0).payload(question);
    // Three segments in order, of which the second may join the first.
    let part = |sequence| {
        let tcp = build::tcp((v6(from), 80), (v6(to), 80));
        tcp.sequence(sequence).payload([0; 40])
    };
    let mut frames = vec![
        tcp.clone().flags(0x02).frame(link(slot)),
        tcp.flags(0x10).partial().frame(link(slot)),
        part(1).frame(link(slot)),
        part(41).frame(link(slot)),
        part(81).partial().flags(0x18).frame(link(slot)),
        udp.frame(link(slot)),
        error.frame(link(slot)),
    ];
    frames.extend(ports.payload([0; 40]).fragments(link(slot), 24));
    frames
}

fuzz_target!(|input: &[u8]| {
    let Some((umem, pool)) = MEMORY.take() else {
        panic!("no memory for the UMEM");
    };
    // One worker or two, and the same holds.
    let workers = 1 + u16::from(input.len() % 2 == 1);
    let mut lab = Lab::over(umem, pool, LabOptions { workers, ..OPTIONS });
    lab.set_mappings(mappings());
    lab.set_uplink(&uplink());
    let mut rest = input;
    let mut arrived = 0;
    // Each frame is led by its source and its length.
    while let [source, len, bytes @ ..] = rest {
        let (bytes, more) = bytes.split_at(usize::from(*len).min(bytes.len()));
        rest = more;
        let slot = u16::from(source % 4);
        let frame = match source / 4 % 3 {
            0 => exercise::frame_of(bytes),
            1 => exercise::mutated(&by_host_port(slot), bytes),
            _ => exercise::mutated(&conversation(slot), bytes),
        };
        lab.inject(slot, &frame);
        // Some meet in one turn, some know what came of others.
        if source & 0x80 != 0 {
            arrived += lab.run().len() as u64;
        }
    }
    arrived += lab.run().len() as u64;
    let mut received = 0;
    let mut dropped: u64 = DropReason::ALL
        .into_iter()
        .map(|reason| lab.worker_drops(reason))
        .sum();
    let mut errors = 0;
    let mut merged = 0;
    for slot in HOST..=UPLINK {
        let counters = lab.counters(slot);
        received += counters.rx_frames.get();
        errors += counters.icmp_errors.get();
        merged += counters.merged_frames.get();
        dropped += counters.drops.snapshot().values().sum::<u64>();
    }
    assert_eq!(received + errors, arrived + merged + dropped);
    lab.assert_no_chunk_lost();
    let pool = lab.into_pool();
    assert_eq!(pool.free_chunks(), umem.chunks() as usize);
    MEMORY.set(Some((umem, pool)));
});
