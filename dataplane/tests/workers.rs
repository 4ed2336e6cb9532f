//! Several workers do what one does: the same conversations over one, two and
//! three, in random turns. No privileges needed.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use proptest::prelude::*;
use sluice_dataplane::lab::{HOST, Lab, LabOptions, link, mac, v4, v6};
use sluice_dataplane::mappings::{Mapping, Mappings};
use sluice_dataplane::packet::build::{self, Datagram};
use sluice_dataplane::packet::{Ethernet, protocol};
use sluice_dataplane::port::PortId;
use sluice_dataplane::time::Nanos;
use sluice_dataplane::verdict::DropReason;
use sluice_dataplane::xsk::memory::Sent;

const PODS: u16 = 5;
/// The pods that ports of the node lead to: one of each of two workers.
const SERVERS: [u16; 2] = [2, 3];
const UPLINKS: [u16; 2] = [PODS + 1, PODS + 2];
/// An MTU that some frames do not fit.
const SMALL_MTU: u32 = 1500;

const NODE4: [u8; 4] = [192, 0, 2, 1];
const OUTSIDE4: [u8; 4] = [198, 51, 100, 7];
const ROUTER: [u8; 6] = [2, 9, 9, 9, 9, 1];

/// Between two steps: questions that nobody brought back are forgotten then, of
/// which the table has more room the more workers there are.
const STEP: Nanos = Nanos::from_millis(1001);

/// A client of a mapped port, and the server behind it, by number.
#[derive(Debug, Clone, Copy)]
struct Talk(usize, usize);

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A pod sends to a pod: from, to, how many frames of how many bytes, TTL.
    Direct([u16; 2], u16, usize, u8),
    /// A pod sends beyond the node.
    Out(u16),
    /// The host sends to a pod what a pod has sent to a Service.
    Service([u16; 2]),
    /// The pod answers.
    ServiceAnswer([u16; 2]),
    /// A client asks a mapped port of the node: flags, TTL.
    Ask(Talk, u8, u8),
    /// It does, and the kernel brings what it asks to the pod.
    Open(Talk, u8),
    /// The pod answers.
    Answer(Talk, u8),
    /// The client says that the answer was too big.
    Error(Talk),
    /// A pod goes, and another one comes in its place.
    Replace(u16),
    /// All pods send to the next one, so many frames.
    Burst(u16),
}

const ACK: u8 = 0x10;
const SYN: u8 = 0x02;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;

fn steps() -> impl Strategy<Value = Step> {
    let pod = || 1..=PODS;
    let pods = || [1..=PODS, 1..=PODS];
    let talk = || (0..CLIENTS, 0..SERVERS.len()).prop_map(|(client, server)| Talk(client, server));
    let flags = || prop_oneof![4 => Just(ACK), 1 => Just(SYN), 1 => Just(FIN), 1 => Just(RST)];
    let ttl = || prop_oneof![4 => Just(64_u8), 1 => Just(1)];
    let len = prop_oneof![Just(40_usize), Just(3000), Just(40_000)];
    prop_oneof![
        4 => (pods(), 1..6_u16, len, ttl())
            .prop_map(|(pods, frames, len, ttl)| Step::Direct(pods, frames, len, ttl)),
        1 => pod().prop_map(Step::Out),
        2 => pods().prop_map(Step::Service),
        2 => pods().prop_map(Step::ServiceAnswer),
        6 => (talk(), flags(), ttl()).prop_map(|(talk, flags, ttl)| Step::Ask(talk, flags, ttl)),
        5 => (talk(), flags()).prop_map(|(talk, flags)| Step::Open(talk, flags)),
        4 => (talk(), flags()).prop_map(|(talk, flags)| Step::Answer(talk, flags)),
        2 => talk().prop_map(Step::Error),
        1 => pod().prop_map(Step::Replace),
        2 => (1..40_u16).prop_map(Step::Burst),
    ]
}

/// Who asks mapped ports: two pods, and one outside by each queue.
const CLIENTS: usize = 4;

#[derive(Debug, Clone, Copy)]
struct Client {
    slot: u16,
    link: Ethernet,
    address: IpAddr,
}

fn client(number: usize) -> Client {
    let pod = |slot| Client {
        slot,
        link: link(slot),
        address: v4(slot).into(),
    };
    let outside = |slot| Client {
        slot,
        link: Ethernet {
            dst: mac(slot),
            src: ROUTER,
        },
        address: OUTSIDE4.into(),
    };
    match number {
        0 => pod(1),
        1 => pod(4),
        2 => outside(UPLINKS[0]),
        _ => outside(UPLINKS[1]),
    }
}

/// Client, port of the node and pod of one conversation.
fn ends(Talk(client, server): Talk) -> [SocketAddr; 3] {
    let [from, to] = [client, server].map(|number| u16::try_from(number).unwrap());
    [
        (self::client(client).address, 4000 + from).into(),
        (NODE4, 8080 + to).into(),
        (v4(SERVERS[server]), 80).into(),
    ]
}

/// A Service's client and the pod behind it.
fn service([from, to]: [u16; 2]) -> [SocketAddr; 2] {
    [
        (v6(from), 5000 + from * 16 + to).into(),
        (v6(to), 53).into(),
    ]
}

/// Who sends what.
type Round = Vec<(u16, Vec<u8>)>;

struct World {
    lab: Lab,
    /// `None`: turns in order.
    rng: Option<Rng>,
    generations: BTreeMap<u16, u16>,
    /// What ports have dropped that are gone.
    past: [u64; DropReason::COUNT],
}

impl World {
    fn new(workers: u16, seed: Option<u64>) -> Self {
        let lab = Lab::new(LabOptions {
            workers,
            pods: PODS,
            uplinks: 2,
            ..LabOptions::default()
        });
        let mut world = Self {
            lab,
            rng: seed.map(Rng::with_seed),
            generations: (1..=PODS).map(|pod| (pod, 0)).collect(),
            past: [0; DropReason::COUNT],
        };
        world.replace(5, SMALL_MTU);
        world
    }

    fn replace(&mut self, pod: u16, mtu: u32) {
        for (past, reason) in self.past.iter_mut().zip(DropReason::ALL) {
            *past += self.lab.counters(pod).drops.get(reason);
        }
        self.lab.detach(pod);
        let generation = self.generations.get_mut(&pod).unwrap();
        *generation += 1;
        self.lab.attach(pod, *generation, mtu);
        let mapping = |(number, slot): (u16, u16)| Mapping {
            address: "0.0.0.0".parse().unwrap(),
            host_port: 8080 + number,
            protocol: protocol::TCP,
            pod: PortId {
                slot,
                generation: self.generations[&slot],
            },
            pod_address: v4(slot).into(),
            container_port: 80,
        };
        let mappings = (0..).zip(SERVERS).map(mapping);
        self.lab
            .set_mappings(Mappings::new([NODE4.into()], mappings));
    }

    /// What arrives where, by slots, each slot's in order.
    fn step(&mut self, step: Step) -> Vec<(u16, Sent)> {
        self.lab.wait(STEP);
        let mut arrived = Vec::new();
        for round in self.rounds(step) {
            for (slot, frame) in round {
                assert!(self.lab.inject(slot, &frame), "no room to receive");
                self.dawdle(&mut arrived);
            }
            arrived.extend(self.lab.run());
            self.lab.assert_no_chunk_lost();
        }
        arrived.sort_by_key(|(slot, _)| *slot);
        arrived
    }

    /// Some frames meet in one turn, and some do not.
    fn dawdle(&mut self, arrived: &mut Vec<(u16, Sent)>) {
        let Some(rng) = &mut self.rng else {
            return;
        };
        for _ in 0..rng.u8(0..3) {
            self.lab.turn_worker(rng.usize(0..self.lab.workers()));
            self.lab.assert_no_chunk_lost();
        }
        if rng.bool() {
            arrived.extend(self.lab.take_all());
        }
    }

    /// The frames of a step, each round after all of the one before has arrived.
    fn rounds(&mut self, step: Step) -> Vec<Round> {
        let numbered = |[from, to]: [u16; 2], number: u16, len| {
            let mut payload = vec![0; len];
            payload[..2].copy_from_slice(&number.to_be_bytes());
            build::udp((v4(from), 1000), (v4(to), 2000)).payload(payload)
        };
        let by = |slot, datagram: &Datagram| vec![(slot, datagram.frame(link(slot)))];
        let by_client = |Talk(client, _), datagram: &Datagram| {
            let Client { slot, link, .. } = self::client(client);
            vec![(slot, datagram.frame(link))]
        };
        let asks = |talk, flags| {
            let [client, node, _] = ends(talk);
            build::tcp(client, node).flags(flags)
        };
        let round = match step {
            Step::Direct(pods, frames, len, ttl) => (0..frames)
                .map(|number| numbered(pods, number, len).ttl(ttl).dont_fragment())
                .map(|datagram| (pods[0], datagram.frame(link(pods[0]))))
                .collect(),
            Step::Out(from) => by(from, &build::udp((v4(from), 1), (OUTSIDE4, 2))),
            Step::Service(pods) => {
                let [client, server] = service(pods);
                by(HOST, &build::udp(client, server))
            }
            Step::ServiceAnswer(pods) => {
                let [client, server] = service(pods);
                by(pods[1], &build::udp(server, client))
            }
            Step::Ask(talk, flags, ttl) => by_client(talk, &asks(talk, flags).ttl(ttl)),
            Step::Open(talk, flags) => {
                let [client, _, pod] = ends(talk);
                let brought = build::tcp(client, pod).flags(flags).ttl(63);
                return vec![by_client(talk, &asks(talk, flags)), by(HOST, &brought)];
            }
            Step::Answer(talk, flags) => {
                let [client, _, pod] = ends(talk);
                by(SERVERS[talk.1], &build::tcp(pod, client).flags(flags))
            }
            Step::Error(talk) => {
                let [client, node, _] = ends(talk);
                let answer = build::tcp(node, client).payload([7; 64]).packet();
                let error = build::icmp(client.ip(), node.ip(), (3, 4), 1400);
                by_client(talk, &error.payload(answer))
            }
            Step::Replace(pod) => {
                let mtu = if pod == 5 { SMALL_MTU } else { 65_000 };
                self.replace(pod, mtu);
                Vec::new()
            }
            Step::Burst(frames) => (0..frames)
                .flat_map(|number| (1..=PODS).map(move |pod| (number, pod)))
                .map(|(number, pod)| {
                    let datagram = numbered([pod, pod % PODS + 1], number, 40);
                    (pod, datagram.frame(link(pod)))
                })
                .collect(),
        };
        vec![round]
    }

    /// Drops by reason, wherever they are counted.
    fn drops(&self) -> Vec<(DropReason, u64)> {
        let slots = 0..=UPLINKS[1];
        DropReason::ALL
            .into_iter()
            .map(|reason| {
                let ports = slots.clone();
                let ports = ports.map(|slot| self.lab.counters(slot).drops.get(reason));
                let others = self.past[reason.index()] + self.lab.worker_drops(reason);
                (reason, ports.sum::<u64>() + others)
            })
            .filter(|(_, drops)| *drops > 0)
            .collect()
    }

    /// What each port has received, sent, and been told of.
    fn counts(&self) -> Vec<[u64; 3]> {
        (0..=UPLINKS[1])
            .map(|slot| {
                let counters = self.lab.counters(slot);
                [
                    counters.rx_frames.get(),
                    counters.tx_frames.get(),
                    counters.icmp_errors.get(),
                ]
            })
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn several_workers_do_what_one_does(
        steps in proptest::collection::vec(steps(), 1..60),
        seed: u64,
    ) {
        let mut one = World::new(1, None);
        let mut several = [2, 3].map(|workers| World::new(workers, Some(seed)));
        for (number, step) in steps.iter().enumerate() {
            let expected = one.step(*step);
            for several in &mut several {
                prop_assert_eq!(&several.step(*step), &expected, "step {}: {:?}", number, step);
            }
        }
        for several in &several {
            prop_assert_eq!(several.counts(), one.counts());
            prop_assert_eq!(several.drops(), one.drops());
        }
    }
}

/// What the property test relies on: its conversations do cross, by each way.
#[test]
fn a_conversation_by_a_mapped_port_crosses_workers() {
    let mut world = World::new(2, None);
    let to = |world: &mut World, step| -> Vec<u16> {
        world.step(step).iter().map(|(slot, _)| *slot).collect()
    };
    for talk in [Talk(0, 0), Talk(1, 1), Talk(2, 1), Talk(3, 0)] {
        let [pod, asker] = [SERVERS[talk.1], client(talk.0).slot];
        assert_eq!(to(&mut world, Step::Ask(talk, ACK, 64)), [HOST]);
        assert_eq!(to(&mut world, Step::Open(talk, ACK)), [HOST, pod]);
        let handed = world.lab.node().handed_frames;
        assert_eq!(to(&mut world, Step::Ask(talk, ACK, 64)), [pod]);
        assert_eq!(to(&mut world, Step::Answer(talk, ACK)), [asker]);
        assert_eq!(to(&mut world, Step::Error(talk)), [pod]);
        // The error about what has expired comes back, too.
        assert_eq!(to(&mut world, Step::Ask(talk, ACK, 1)), [asker]);
        assert_eq!(world.lab.node().handed_frames - handed, 5);
    }
    assert_eq!(world.lab.worker_drops(DropReason::TtlExceeded), 4);
    let too_big = Step::Direct([4, 5], 1, 3000, 64);
    assert_eq!(to(&mut world, too_big), [4]);
    let drops = [(DropReason::TtlExceeded, 4), (DropReason::TooBig, 1)];
    assert_eq!(world.drops(), drops);
}

/// What was handed over to a port that is gone meanwhile, or to its successor.
#[test]
fn what_is_underway_to_a_port_that_goes_is_dropped_and_counted() {
    let mut world = World::new(2, None);
    let frame = build::udp((v4(1), 1), (v4(2), 2)).frame(link(1));
    for round in 1..=10 {
        for _ in 0..7 {
            world.lab.inject(1, &frame);
        }
        world.lab.turn_worker(1);
        world.replace(2, 65_000);
        world.lab.assert_no_chunk_lost();
        assert!(world.lab.run().is_empty());
        assert_eq!(world.lab.worker_drops(DropReason::PortDown), 7 * round);
    }
    assert_eq!(world.lab.send(1, &frame).len(), 1);
    world.lab.assert_no_chunk_lost();
    // Also where nobody takes it any more.
    world.lab.inject(1, &frame);
    world.lab.turn_worker(1);
    let pool = world.lab.into_pool();
    assert_eq!(pool.free_chunks(), pool.umem().chunks() as usize);
}

/// A worker that stands still holds no more than is free for all others.
#[test]
fn a_worker_that_stands_still_exhausts_no_pool() {
    let mut lab = Lab::new(LabOptions {
        workers: 2,
        pods: 4,
        ..LabOptions::default()
    });
    let jumbo = build::udp((v4(1), 1), (v4(2), 2)).payload(vec![9; 60_000]);
    let jumbo = jumbo.frame(link(1));
    for _ in 0..500 {
        assert!(lab.inject(1, &jumbo), "no chunk to receive into");
        lab.turn_worker(1);
        lab.assert_no_chunk_lost();
    }
    assert!(lab.counters(1).drops.get(DropReason::HandoffFull) > 0);
    let frame = build::udp((v4(1), 1), (v4(3), 2)).frame(link(1));
    for _ in 0..1000 {
        assert!(lab.inject(1, &frame), "no chunk to receive into");
        lab.turn_worker(1);
        assert_eq!(lab.take(3).len(), 1);
    }
    lab.run();
    lab.assert_no_chunk_lost();
}
