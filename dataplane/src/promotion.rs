//! The kernel decides where a new conversation with a port of the node goes;
//! from then on a session carries it past the kernel.
//!
//! A client's first packet goes to the host port as it is. Whether it answers a
//! connection of the host's own, connection tracking knows; else the kernel's
//! rules send it to the pod, and it comes back by the host port with another
//! destination. Here is remembered who asked for what, so that the two can be
//! told to be one. What the kernel translated otherwise (the source, too) is
//! not recognised and stays with it. A client that does not wait for an answer
//! has more packets on that way; what comes back after the first is no new
//! conversation.
//!
//! How a TCP connection begins and ends the kernel sees in both directions:
//! connection tracking knows it as established, should the kernel have to carry
//! it when this daemon is gone, and does not keep it for days after its end.

use std::hash::BuildHasher;
use std::net::Ipv6Addr;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::mappings::Mappings;
use crate::packet::translate::Translation;
use crate::packet::{Flow, Fragment, Signal, quote};
use crate::port::PortId;
use crate::return_path::{Parcel, ReturnPath, Way};
use crate::sessions::{Direction, Found, Refused, Session, Sessions};
use crate::time::Nanos;

/// Questions that are remembered; a new one takes the place of an older.
const REMEMBERED: usize = 1024;

/// The kernel takes microseconds; a busy one milliseconds.
const LIFETIME: Nanos = Nanos::from_millis(1000);

/// A client's packet that went to the host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Question {
    /// As the client sent it.
    flow: Flow,
    /// By which port it came.
    client: PortId,
    /// From which MAC address, if there may be several behind that port.
    next_hop: Option<[u8; 6]>,
}

/// Questions that the kernel is about to bring back.
#[derive(Debug)]
struct Pending {
    places: Box<[Option<(Question, Nanos)>]>,
    seed: RandomState,
}

impl Pending {
    fn new() -> Self {
        Self {
            places: vec![None; REMEMBERED].into_boxed_slice(),
            seed: RandomState::default(),
        }
    }

    fn note(&mut self, question: Question, now: Nanos) {
        let place = self.place(&question.flow);
        self.places[place] = Some((question, now));
    }

    /// What the sender of `flow` has just asked, whatever its destination was.
    fn get(&self, flow: &Flow, now: Nanos) -> Option<Question> {
        let (question, since) = self.places[self.place(flow)]?;
        let is_it = asker(&question.flow) == asker(flow) && now - since < LIFETIME;
        is_it.then_some(question)
    }

    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    fn place(&self, flow: &Flow) -> usize {
        self.seed.hash_one(asker(flow)) as usize % REMEMBERED
    }
}

/// What the kernel's rules leave as it is.
fn asker(flow: &Flow) -> (Ipv6Addr, u16, u8) {
    (flow.src, flow.src_port, flow.protocol)
}

/// What a client's packet asks of a mapped port, or an ICMP error is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// As the client sends.
    flow: Flow,
    is_error: bool,
    /// The pod behind the port, with whose worker the sessions are.
    pub(crate) pod: PortId,
}

/// The node's mapped ports, and who is asking for them.
#[derive(Debug)]
pub(crate) struct Promotion {
    mappings: Arc<Mappings>,
    pending: Pending,
}

impl Promotion {
    pub(crate) fn new() -> Self {
        Self {
            mappings: Arc::default(),
            pending: Pending::new(),
        }
    }

    /// Puts other mappings in place of these, which are returned.
    pub(crate) fn set_mappings(&mut self, mappings: Arc<Mappings>) -> Arc<Mappings> {
        std::mem::replace(&mut self.mappings, mappings)
    }

    /// What a packet asks, if it is for a mapped port of the node.
    #[inline]
    pub(crate) fn asked(&self, parcel: &Parcel) -> Option<Asked> {
        // The kernel puts fragments together, and means the same.
        if parcel.ip.fragment != Fragment::Whole {
            return None;
        }
        let (flow, is_error) = match Flow::of(parcel.ip) {
            Some(flow) => (flow, false),
            None => (quote::flow(parcel.head, parcel.ip)?.reversed(), true),
        };
        let pod = self.mappings.find(&flow)?.pod;
        Some(Asked {
            flow,
            is_error,
            pod,
        })
    }

    /// How a client's packet gets to the pod, past the host port, if a session
    /// carries its conversation. Else remembers what it asks.
    #[inline]
    pub(crate) fn ask(
        &mut self,
        sessions: &mut Sessions,
        asked: &Asked,
        parcel: &Parcel,
        next_hop: Option<[u8; 6]>,
    ) -> Option<Way> {
        let Parcel {
            head,
            ip,
            port: client,
            now,
        } = *parcel;
        let flow = asked.flow;
        if asked.is_error {
            let found = asked_by(sessions, &flow, client, next_hop, now)?;
            let session = sessions.get(found);
            return Some(Way {
                port: session.pod,
                translation: Some(Translation::Error(session.answer())),
                next_hop: None,
            });
        }
        let signal = Signal::of(head, ip);
        let Some(found) = asked_by(sessions, &flow, client, next_hop, now) else {
            let question = Question {
                flow,
                client,
                next_hop,
            };
            self.pending.note(question, now);
            return None;
        };
        match signal {
            Signal::Data => {}
            // Its answer, too, is the kernel's.
            Signal::Open => {
                sessions.remove(found);
                return None;
            }
            Signal::Finish | Signal::Reset => {
                sessions.follow(found, signal, now);
                return None;
            }
        }
        sessions.follow(found, signal, now);
        sessions.set_next_hop(found, next_hop);
        let session = sessions.get(found);
        Some(Way {
            port: session.pod,
            translation: Some(Translation::Packet(session.translated)),
            next_hop: None,
        })
    }

    /// Opens a session for what the kernel has brought back by the host port,
    /// if that was asked here, was not translated but by a mapping, and its
    /// answers leave by the port that it came by.
    pub(crate) fn promote(&mut self, return_path: &mut ReturnPath, parcel: &Parcel) -> bool {
        let Parcel {
            head,
            ip,
            port: pod,
            now,
        } = *parcel;
        let Some(flow) = Flow::of(ip) else {
            return false;
        };
        if ip.fragment != Fragment::Whole || Signal::of(head, ip) != Signal::Data {
            return false;
        }
        let Some(question) = self.pending.get(&flow, now) else {
            return false;
        };
        let leads_here = self.mappings.find(&question.flow).is_some_and(|target| {
            (target.pod, target.address, target.port) == (pod, flow.dst, flow.dst_port)
        });
        let is_from_outside = question.next_hop.is_some();
        if !leads_here || is_from_outside && !return_path.next_hops.is_by_uplink(flow.src) {
            return false;
        }
        let session = Session {
            original: question.flow,
            translated: flow,
            pod,
            client: question.client,
            next_hop: question.next_hop,
        };
        let sessions = &mut return_path.sessions;
        loop {
            match sessions.open(session, now) {
                Ok(_) => return true,
                // An earlier packet has opened it.
                Err(Refused::Taken(other)) if *sessions.get(other) == session => return true,
                // What the kernel says now is true.
                Err(Refused::Taken(other)) => sessions.remove(other),
                // Then it goes on by way of the kernel.
                Err(_) => return false,
            }
        }
    }
}

/// The session in which `client` sends `flow`. What comes from outside may come
/// by any queue.
fn asked_by(
    sessions: &Sessions,
    flow: &Flow,
    client: PortId,
    next_hop: Option<[u8; 6]>,
    now: Nanos,
) -> Option<Found> {
    let found = sessions.find(flow, now)?;
    let session = sessions.get(found);
    let is_from_outside = next_hop.is_some() && session.next_hop.is_some();
    let is_asked = found.direction == Direction::Request
        && session.is_translated()
        && (session.client == client || is_from_outside);
    is_asked.then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(src_port: u16) -> Question {
        Question {
            flow: Flow {
                src: "2001:db8::9".parse().unwrap(),
                dst: "2001:db8::1".parse().unwrap(),
                src_port,
                dst_port: 8080,
                protocol: 6,
            },
            client: PortId {
                slot: 3,
                generation: 0,
            },
            next_hop: None,
        }
    }

    /// What the kernel makes of a question.
    fn translated(question: &Question) -> Flow {
        Flow {
            dst: "fd00:77::10".parse().unwrap(),
            dst_port: 80,
            ..question.flow
        }
    }

    #[test]
    fn a_question_is_known_for_a_moment() {
        let mut pending = Pending::new();
        let asked = question(4000);
        pending.note(asked, Nanos(0));
        assert_eq!(pending.get(&translated(&question(4001)), Nanos(0)), None);
        let just_before = Nanos(LIFETIME.0 - 1);
        for now in [Nanos(0), just_before] {
            assert_eq!(pending.get(&translated(&asked), now), Some(asked));
        }
        assert_eq!(pending.get(&translated(&asked), LIFETIME), None);
    }

    #[test]
    fn others_questions_push_out_but_are_not_mistaken() {
        let mut pending = Pending::new();
        let all: Vec<Question> = (0..10_000).map(question).collect();
        for asked in &all {
            pending.note(*asked, Nanos(0));
        }
        let known = all.iter().filter(|asked| {
            let found = pending.get(&translated(asked), Nanos(0));
            assert!(found.is_none() || found == Some(**asked));
            found.is_some()
        });
        assert!(known.count() <= REMEMBERED);
    }
}
