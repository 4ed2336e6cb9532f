use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::packet::protocol;

const HOST: PortId = port(0);

const fn port(slot: u16) -> PortId {
    PortId {
        slot,
        generation: 0,
    }
}

fn address(number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(number) + 1)
}

/// A session of the pod in `slot` with the client of that number, not
/// translated. Port 7 on both sides.
fn session(protocol: u8, client: u32, slot: u16) -> Session {
    let flow = Flow {
        src: address(client),
        dst: Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(slot)),
        src_port: 7,
        dst_port: 7,
        protocol,
    };
    Session {
        original: flow,
        translated: flow,
        pod: port(slot),
        client: HOST,
        next_hop: None,
    }
}

fn seconds(seconds: u64) -> Nanos {
    Nanos::from_millis(seconds * 1000)
}

/// A packet of a session, if that is found.
fn packet(sessions: &mut Sessions, flow: &Flow, signal: Signal, now: Nanos) -> Option<State> {
    let found = sessions.find(flow, now)?;
    sessions.follow(found, signal, now);
    Some(sessions.state(found))
}

/// Opens a session, and has the pod answer and the client go on.
fn establish(sessions: &mut Sessions, session: Session, now: Nanos) {
    sessions.open(session, now).unwrap();
    packet(sessions, &session.answer(), Signal::Data, now);
    let state = packet(sessions, &session.original, Signal::Data, now);
    assert_eq!(state, Some(State::Open { finished: None }));
}

/// All that are over, at once.
fn expire_all(sessions: &mut Sessions, now: Nanos) {
    while sessions.expire(now) > 0 {}
}

#[test]
fn a_session_is_found_by_both_flows_until_its_time_is_over() {
    let mut sessions = Sessions::new(8, 2);
    let flow = session(protocol::UDP, 1, 1).original;
    let translated = Flow {
        src: address(9),
        src_port: 4000,
        ..flow
    };
    let session = Session {
        original: flow,
        translated,
        pod: port(1),
        client: HOST,
        next_hop: None,
    };
    let opened = sessions.open(session, Nanos(0)).unwrap();
    assert_eq!(sessions.find(&flow, Nanos(0)), Some(opened));
    let answer = sessions.find(&translated.reversed(), Nanos(0)).unwrap();
    assert_eq!(answer.direction, Direction::Answer);
    assert_eq!(sessions.get(answer), &session);
    assert_eq!(sessions.find(&flow.reversed(), Nanos(0)), None);
    assert_eq!(sessions.find(&translated, Nanos(0)), None);

    assert!(sessions.find(&flow, seconds(30)).is_some());
    assert_eq!(sessions.find(&flow, seconds(31)), None);
    assert_eq!(sessions.in_use(), 1, "over, but still there");
    assert_eq!(sessions.expire(seconds(31)), 1);
    assert_eq!((sessions.in_use(), sessions.has_any(port(1))), (0, false));
}

#[test]
fn each_class_lives_as_long_as_it_should_after_its_last_packet() {
    type Case<'a> = (u8, &'a [(Direction, Signal)], u64);
    let (client, pod) = (Direction::Request, Direction::Answer);
    let cases: &[Case] = &[
        (protocol::UDP, &[], 30),
        (protocol::UDP, &[(pod, Signal::Data)], 120),
        (
            protocol::SCTP,
            &[(pod, Signal::Data), (client, Signal::Data)],
            240,
        ),
        (protocol::TCP, &[(client, Signal::Open)], 240),
        (
            protocol::TCP,
            &[(pod, Signal::Data), (client, Signal::Data)],
            7440,
        ),
        (protocol::TCP, &[(pod, Signal::Reset)], 240),
    ];
    for (protocol, packets, timeout) in cases {
        let mut sessions = Sessions::new(8, 2);
        let session = session(*protocol, 1, 1);
        let mut now = seconds(5);
        sessions.open(session, now).unwrap();
        for (from, signal) in *packets {
            now = now + seconds(20);
            let flow = match from {
                Direction::Request => session.original,
                Direction::Answer => session.answer(),
            };
            packet(&mut sessions, &flow, *signal, now).unwrap();
        }
        // A packet that changes nothing prolongs it as well.
        now = now + seconds(20);
        packet(&mut sessions, &session.original, Signal::Data, now).unwrap();
        let end = now + seconds(*timeout);
        assert!(
            sessions.find(&session.original, end).is_some(),
            "{packets:?}"
        );
        let late = end + seconds(1);
        assert!(
            sessions.find(&session.original, late).is_none(),
            "{packets:?}"
        );
    }
}

#[test]
fn a_reset_shortens_and_data_takes_it_back() {
    let mut sessions = Sessions::new(8, 2);
    let session = session(protocol::TCP, 1, 1);
    establish(&mut sessions, session, Nanos(0));
    let reset = packet(&mut sessions, &session.original, Signal::Reset, Nanos(0));
    assert_eq!(reset, Some(State::Reset));
    assert!(sessions.find(&session.original, seconds(240)).is_some());
    assert!(sessions.find(&session.original, seconds(241)).is_none());
    packet(&mut sessions, &session.answer(), Signal::Data, seconds(100)).unwrap();
    assert!(sessions.find(&session.original, seconds(7540)).is_some());
}

#[test]
fn finding_does_not_prolong() {
    let mut sessions = Sessions::new(8, 2);
    let session = session(protocol::UDP, 1, 1);
    sessions.open(session, Nanos(0)).unwrap();
    for second in 0..31 {
        assert!(sessions.find(&session.original, seconds(second)).is_some());
    }
    assert!(sessions.find(&session.original, seconds(31)).is_none());
}

#[test]
fn two_sessions_share_no_flow() {
    let mut sessions = Sessions::new(8, 3);
    let first = session(protocol::UDP, 1, 1);
    let found = sessions.open(first, Nanos(0)).unwrap();
    assert_eq!(sessions.open(first, Nanos(0)), Err(Refused::Taken(found)));
    // Another client, whose translated source port is the first one's.
    let second = Session {
        original: Flow {
            src: address(2),
            ..first.original
        },
        ..first
    };
    let Err(Refused::Taken(taken)) = sessions.open(second, Nanos(0)) else {
        panic!("its answers would go to either");
    };
    assert_eq!(taken.direction, Direction::Answer);
    // Once that is over, or removed, the flow is free.
    assert!(sessions.open(second, seconds(31)).is_ok());
    let second = sessions.find(&second.original, seconds(31)).unwrap();
    sessions.remove(second);
    assert!(sessions.open(first, seconds(31)).is_ok());

    let mirror = Flow {
        dst: first.original.src,
        ..first.original
    };
    let mirror = Session {
        original: mirror,
        translated: mirror,
        ..first
    };
    assert_eq!(sessions.open(mirror, seconds(31)), Err(Refused::Mirror));
}

#[test]
fn a_removed_pods_sessions_are_gone_at_once_and_their_room_soon() {
    let mut sessions = Sessions::new(4096, 4);
    for client in 0..1000 {
        establish(&mut sessions, session(protocol::TCP, client, 1), Nanos(0));
        establish(&mut sessions, session(protocol::UDP, client, 2), Nanos(0));
    }
    sessions.remove_pod(port(1));
    assert!(!sessions.has_any(port(1)) && sessions.has_any(port(2)));
    for client in 0..1000 {
        let [gone, other] = [(protocol::TCP, 1), (protocol::UDP, 2)]
            .map(|(protocol, slot)| session(protocol, client, slot));
        assert_eq!(sessions.find(&gone.original, Nanos(0)), None);
        assert_eq!(sessions.find(&gone.answer(), Nanos(0)), None);
        assert!(sessions.find(&other.answer(), Nanos(0)).is_some());
    }
    // The slot's next pod has the same flows, while the room is not free yet.
    let next = PortId {
        slot: 1,
        generation: 1,
    };
    let again = Session {
        pod: next,
        ..session(protocol::TCP, 5, 1)
    };
    sessions.open(again, Nanos(0)).unwrap();
    assert_eq!(sessions.in_use(), 2000, "one gone, one new");
    let mut turns = 0;
    while sessions.expire(Nanos(0)) > 0 {
        turns += 1;
    }
    assert_eq!((sessions.in_use(), turns), (1001, 16));
    assert!(sessions.find(&again.answer(), Nanos(0)).is_some());
}

/// A million flows to one pod: its own conversations and another pod's stay,
/// and there is room for more of the other's.
#[test]
fn a_flood_to_one_pod_costs_no_conversation() {
    for (protocol, answered) in [
        (protocol::TCP, 0),
        (protocol::TCP, 1),
        (protocol::TCP, 2),
        (protocol::UDP, 0),
        (protocol::UDP, 1),
        (protocol::UDP, 2),
    ] {
        let mut sessions = Sessions::new(CAPACITY, 3);
        let [victim, other] = [1, 2].map(|slot| {
            let all = (0..1000).map(move |client| session(protocol::TCP, client, slot));
            all.collect::<Vec<_>>()
        });
        for session in victim.iter().chain(&other) {
            establish(&mut sessions, *session, Nanos(0));
        }
        let mut refused = 0;
        for client in 0..1_000_000 {
            let now = Nanos::from_micros(u64::from(client));
            let flow = session(protocol, 10_000 + client, 1);
            match sessions.open(flow, now) {
                Ok(_) if answered > 0 => {
                    packet(&mut sessions, &flow.answer(), Signal::Data, now);
                    if answered > 1 {
                        packet(&mut sessions, &flow.original, Signal::Data, now);
                    }
                }
                Ok(_) => {}
                Err(Refused::Share) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
        }
        let now = seconds(1);
        assert_eq!(
            refused + sessions.recycled() + u64::from(sessions.in_use()),
            1_002_000
        );
        let is_settled = protocol == protocol::TCP && answered == 2;
        assert_eq!(refused > 0, is_settled, "{protocol} {answered}");
        assert!(
            sessions.in_use() <= CAPACITY / 2 + 1000,
            "{}",
            sessions.in_use()
        );
        for session in victim.iter().chain(&other) {
            assert!(sessions.find(&session.answer(), now).is_some());
        }
        for client in 10_000..20_000 {
            establish(&mut sessions, session(protocol::TCP, client, 2), now);
        }
    }
}

#[test]
fn a_handshake_under_flood_has_time_to_complete() {
    let mut sessions = Sessions::new(CAPACITY, 3);
    let flood = |sessions: &mut Sessions, from: u32| {
        for client in from..from + 10_000 {
            sessions
                .open(session(protocol::TCP, client, 1), Nanos(0))
                .unwrap();
        }
    };
    flood(&mut sessions, 0);
    flood(&mut sessions, 10_000);
    let genuine = session(protocol::TCP, 99_999, 1);
    sessions.open(genuine, Nanos(0)).unwrap();
    flood(&mut sessions, 20_000);
    packet(&mut sessions, &genuine.answer(), Signal::Data, Nanos(0)).unwrap();
    let state = packet(&mut sessions, &genuine.original, Signal::Data, Nanos(0));
    assert_eq!(state, Some(State::Open { finished: None }));
}

#[test]
fn the_last_free_session_goes_to_a_pod_that_has_none() {
    let mut sessions = Sessions::new(64, 64);
    // Each takes what the thresholds leave it.
    for slot in 0..62 {
        for client in 0..64 {
            let session = session(protocol::TCP, client, slot);
            match sessions.open(session, Nanos(0)) {
                Ok(_) => {
                    packet(&mut sessions, &session.answer(), Signal::Data, Nanos(0));
                    packet(&mut sessions, &session.original, Signal::Data, Nanos(0));
                }
                Err(Refused::Share | Refused::Full) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(sessions.in_use(), 64);
    let one_more = sessions.open(session(protocol::TCP, 1, 63), Nanos(0));
    assert_eq!(one_more, Err(Refused::Full));
}

#[test]
fn all_sessions_are_listed_page_by_page() {
    let mut sessions = Sessions::new(100, 3);
    for client in 0..40 {
        sessions
            .open(session(protocol::UDP, client, 1), Nanos(0))
            .unwrap_or_else(|why| panic!("{why:?}"));
        establish(&mut sessions, session(protocol::UDP, client, 2), Nanos(0));
    }
    sessions.remove_pod(port(1));
    expire_all(&mut sessions, Nanos(0));
    let mut listed = Vec::new();
    let mut from = Some(0);
    while let Some(place) = from {
        let mut page = Vec::with_capacity(7);
        from = sessions.list(place, &mut page, seconds(100));
        listed.extend(page);
    }
    let mut clients: Vec<_> = listed.iter().map(|one| one.session.original.src).collect();
    clients.sort();
    assert_eq!(clients, (0..40).map(address).collect::<Vec<_>>());
    let expected = Listed {
        session: listed[0].session,
        state: State::Open { finished: None },
        idle: seconds(100),
        left: seconds(21),
    };
    assert_eq!((listed[0], listed[0].session.pod), (expected, port(2)));
    let mut late = Vec::with_capacity(100);
    assert_eq!(sessions.list(0, &mut late, seconds(121)), None);
    assert_eq!(late, []);
}

/// The same table as a list, searched from end to end.
struct Oracle {
    capacity: usize,
    sessions: Vec<Remembered>,
    /// Numbers what enters a list, in order.
    moves: u64,
}

struct Remembered {
    session: Session,
    state: State,
    heard: Nanos,
    moved: u64,
}

impl Oracle {
    fn find(&self, flow: &Flow) -> Option<(usize, Direction)> {
        self.sessions.iter().enumerate().find_map(|(i, one)| {
            if one.session.original == *flow {
                Some((i, Direction::Request))
            } else if one.session.answer() == *flow {
                Some((i, Direction::Answer))
            } else {
                None
            }
        })
    }

    fn packet(&mut self, flow: &Flow, signal: Signal, now: Nanos) -> Option<State> {
        let (i, direction) = self.find(flow)?;
        let one = &mut self.sessions[i];
        let state = one.state.after(flow.protocol, direction, signal);
        if state != one.state || now - one.heard >= NOTE_EVERY {
            self.moves += 1;
            (one.state, one.heard, one.moved) = (state, now, self.moves);
        }
        Some(state)
    }

    fn open(&mut self, session: Session, now: Nanos) -> Result<(), &'static str> {
        if session.original == session.answer() {
            return Err("mirror");
        }
        let taken = [session.original, session.answer()].map(|flow| self.find(&flow).is_some());
        if taken.contains(&true) {
            return Err("taken");
        }
        let free = self.capacity - self.sessions.len();
        let own = |ranks: &'static [Rank]| {
            let own = self.sessions.iter().enumerate();
            own.filter(move |(_, one)| {
                one.session.pod == session.pod
                    && ranks.contains(&one.state.rank(one.session.is_renewable()))
            })
        };
        let oldest = |rank: &'static [Rank]| own(rank).min_by_key(|(_, one)| one.moved);
        const ALL: &[Rank] = &[Rank::Opening, Rank::Settled, Rank::Renewable, Rank::Spent];
        let victim = if own(ALL).count() >= free {
            let victim = oldest(&[Rank::Spent])
                .or_else(|| oldest(&[Rank::Opening]))
                .or_else(|| oldest(&[Rank::Renewable]));
            Some(victim.ok_or(if free == 0 { "full" } else { "share" })?)
        } else if own(&[Rank::Opening]).count() >= (free / 4).max(1) {
            oldest(&[Rank::Opening])
        } else {
            None
        };
        if let Some((victim, _)) = victim {
            self.sessions.remove(victim);
        }
        self.moves += 1;
        self.sessions.push(Remembered {
            session,
            state: State::NEW,
            heard: now,
            moved: self.moves,
        });
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Open(Session),
    Packet(Flow, Signal),
    Remove(Flow),
    RemovePod(u16),
    Wait(u64),
}

/// Flows among few ends, so that they meet.
fn flows() -> impl Strategy<Value = Flow> {
    let protocol = prop::sample::select(vec![protocol::TCP, protocol::UDP, protocol::SCTP]);
    (0..4u32, 0..4u32, 0..2u16, protocol).prop_map(|(src, dst, src_port, protocol)| Flow {
        src: address(src),
        dst: address(dst),
        src_port,
        dst_port: 0,
        protocol,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let signals = [
        Signal::Open,
        Signal::Data,
        Signal::Data,
        Signal::Finish,
        Signal::Reset,
    ];
    let signals = prop::sample::select(signals.to_vec());
    let sessions = (flows(), flows(), 0..3u16, any::<bool>()).prop_map(
        |(original, translated, slot, is_translated)| Session {
            original,
            translated: Flow {
                protocol: original.protocol,
                ..if is_translated { translated } else { original }
            },
            pod: port(slot),
            client: HOST,
            next_hop: None,
        },
    );
    prop_oneof![
        4 => sessions.prop_map(Step::Open),
        8 => (flows(), any::<bool>(), signals).prop_map(|(flow, is_answer, signal)| {
            Step::Packet(if is_answer { flow.reversed() } else { flow }, signal)
        }),
        1 => flows().prop_map(Step::Remove),
        1 => (0..3u16).prop_map(Step::RemovePod),
        1 => prop_oneof![0..2_000_u64, 0..10_000_000_u64].prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_table_does_what_a_list_does(
        capacity in 1..20_u32,
        steps in prop::collection::vec(steps(), 1..120),
    ) {
        let mut sessions = Sessions::new(capacity, 3);
        let mut oracle = Oracle { capacity: capacity as usize, sessions: Vec::new(), moves: 0 };
        let mut pods = [0, 1, 2].map(port);
        let mut now = Nanos(0);
        for step in steps {
            match step {
                Step::Open(session) => {
                    let pod = pods[usize::from(session.pod.slot)];
                    let session = Session { pod, ..session };
                    let opened = sessions.open(session, now).map(|_| ()).map_err(|why| match why {
                        Refused::Taken(_) => "taken",
                        Refused::Mirror => "mirror",
                        Refused::Share => "share",
                        Refused::Full => "full",
                    });
                    prop_assert_eq!(opened, oracle.open(session, now));
                }
                Step::Packet(flow, signal) => {
                    let state = packet(&mut sessions, &flow, signal, now);
                    prop_assert_eq!(state, oracle.packet(&flow, signal, now));
                }
                Step::Remove(flow) => {
                    if let Some(found) = sessions.find(&flow, now) {
                        sessions.remove(found);
                    }
                    if let Some((i, _)) = oracle.find(&flow) {
                        oracle.sessions.remove(i);
                    }
                }
                Step::RemovePod(slot) => {
                    let pod = &mut pods[usize::from(slot)];
                    sessions.remove_pod(*pod);
                    oracle.sessions.retain(|one| one.session.pod != *pod);
                    pod.generation += 1;
                    // The room of those that are gone is free some turns
                    // later; the oracle knows nothing of that.
                    expire_all(&mut sessions, now);
                }
                Step::Wait(millis) => {
                    now = now + Nanos::from_millis(millis);
                    expire_all(&mut sessions, now);
                    oracle.sessions.retain(|one| {
                        let timeout = one.state.class(one.session.original.protocol).timeout();
                        now - one.heard < timeout + NOTE_EVERY
                    });
                }
            }
            prop_assert_eq!(sessions.in_use() as usize, oracle.sessions.len());
            for one in &oracle.sessions {
                for (flow, direction) in [
                    (one.session.original, Direction::Request),
                    (one.session.answer(), Direction::Answer),
                ] {
                    let found = sessions.find(&flow, now).map(|found| {
                        (*sessions.get(found), sessions.state(found), found.direction)
                    });
                    prop_assert_eq!(found, Some((one.session, one.state, direction)));
                }
                prop_assert!(sessions.has_any(one.session.pod));
            }
        }
        for pod in pods {
            sessions.remove_pod(pod);
        }
        expire_all(&mut sessions, now);
        prop_assert_eq!(sessions.in_use(), 0);
    }
}
