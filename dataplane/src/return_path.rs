//! What came from the host port goes back through it.
//!
//! The host translates what pods send to Services (kube-proxy), and must see
//! the answers to translate them back. Where the endpoint is a pod of this
//! node, as the client is, the answer would go from pod to pod past it: a
//! session of the endpoint's, one that translates nothing, says that it does
//! not.
//!
//! The same addresses and ports may be used directly as well. Then the client's
//! last SYN, or its last datagram of another protocol, says which way answers
//! go. A SYN of the pod's own is no answer.
//!
//! Without its session an answer would go wrong, and its client would get it
//! from an address that it never asked: so where there is no room for one, the
//! question is dropped.

use crate::fragments::Fragments;
use crate::next_hops::{NextHop, NextHops};
use crate::packet::translate::Translation;
use crate::packet::{DatagramId, Flow, Fragment, Ip, Signal, protocol, quote};
use crate::port::PortId;
use crate::sessions::{Direction, Found, Refused, Session, Sessions};
use crate::time::Nanos;
use crate::verdict::DropReason;

/// A packet that a port sends, or is to get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel<'a> {
    /// The frame's first chunk.
    pub(crate) head: &'a [u8],
    pub(crate) ip: &'a Ip,
    /// Whose it is.
    pub(crate) port: PortId,
    pub(crate) now: Nanos,
}

/// How a packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) port: PortId,
    pub(crate) translation: Option<Translation>,
    /// To which MAC address, if there may be several behind the port.
    pub(crate) next_hop: Option<[u8; 6]>,
}

impl Way {
    /// As it came.
    pub(crate) fn plain(port: PortId) -> Self {
        Self {
            port,
            translation: None,
            next_hop: None,
        }
    }
}

/// Sessions, what follows their first fragments, and where answers by the
/// uplink go.
#[derive(Debug)]
pub(crate) struct ReturnPath {
    pub(crate) sessions: Sessions,
    pub(crate) next_hops: NextHops,
    fragments: Fragments,
}

impl ReturnPath {
    pub(crate) fn new(sessions: Sessions) -> Self {
        Self {
            sessions,
            next_hops: NextHops::default(),
            fragments: Fragments::new(),
        }
    }

    /// How a packet of the pod leaves that answers one of a session's client, or
    /// is an ICMP error about it. The end of a translated connection is for
    /// `host` to see.
    #[inline(never)]
    pub(crate) fn leave(&mut self, parcel: &Parcel, host: Option<PortId>) -> Option<Way> {
        let datagram = DatagramId::of(parcel.head, parcel.ip);
        if parcel.ip.fragment == Fragment::Later {
            return self.fragments.get(&datagram?, parcel.now);
        }
        let found = self.answer(parcel);
        let way = found.and_then(|found| self.way_of(found, parcel, host));
        if let Some(datagram) = datagram {
            self.fragments.set(datagram, way, parcel.now);
        }
        way
    }

    /// How a session's answer leaves, or an ICMP error about it. `None` if not
    /// by the port that its client's questions come by: then the session is over,
    /// and the host has the conversation.
    fn way_of(&mut self, found: Found, parcel: &Parcel, host: Option<PortId>) -> Option<Way> {
        let session = self.sessions.get(found);
        if !session.is_translated() {
            return Some(Way::plain(session.client));
        }
        let translation = match (Flow::of(parcel.ip), host) {
            (Some(_), Some(host)) if ends(parcel) => return Some(Way::plain(host)),
            (Some(_), _) => Translation::Packet(session.original.reversed()),
            (None, _) => Translation::Error(session.original),
        };
        let next_hop = match session.next_hop {
            None => None,
            last => match self.next_hops.find(session.original.src, parcel.now) {
                NextHop::Known(mac) => Some(mac),
                NextHop::Unresolved => last,
                NextHop::Elsewhere => {
                    self.sessions.remove(found);
                    return None;
                }
            },
        };
        Some(Way {
            port: session.client,
            translation: Some(translation),
            next_hop,
        })
    }

    /// The session whose answer a packet is, or an ICMP error about it.
    fn answer(&mut self, parcel: &Parcel) -> Option<Found> {
        let Parcel { head, ip, now, .. } = *parcel;
        let Some(flow) = Flow::of(ip) else {
            // An error changes no session (RFC 5927 section 4).
            let question = quote::flow(head, ip)?;
            return self.answered_by(&question.reversed(), parcel);
        };
        let found = self.answered_by(&flow, parcel)?;
        let signal = Signal::of(head, ip);
        if signal == Signal::Open {
            self.sessions.remove(found);
            return None;
        }
        self.sessions.follow(found, signal, now);
        Some(found)
    }

    /// A pod's packet goes to the pod directly: what answers it does, too.
    #[inline(never)]
    pub(crate) fn arrive_directly(&mut self, parcel: &Parcel) {
        if let Some(flow) = Flow::of(parcel.ip)
            && begins(parcel)
            && let Some(found) = self.answered_by(&flow.reversed(), parcel)
        {
            self.sessions.remove(found);
        }
    }

    /// A packet from `host`, sent by a pod of this node, goes to the pod: what
    /// answers it goes back to `host`.
    ///
    /// # Errors
    /// There is no room for a session that would say so.
    #[inline(never)]
    pub(crate) fn arrive_from_host(
        &mut self,
        parcel: &Parcel,
        host: PortId,
    ) -> Result<(), DropReason> {
        let Parcel {
            head,
            ip,
            port: pod,
            now,
        } = *parcel;
        let Some(flow) = Flow::of(ip) else {
            return Ok(());
        };
        let signal = Signal::of(head, ip);
        if let Some(found) = self.sessions.find(&flow, now)
            && found.direction == Direction::Request
            && self.sessions.get(found).pod == pod
        {
            self.sessions.follow(found, signal, now);
            return Ok(());
        }
        if signal == Signal::Reset {
            // Nothing answers it.
            return Ok(());
        }
        let session = Session {
            original: flow,
            translated: flow,
            pod,
            client: host,
            next_hop: None,
        };
        loop {
            return match self.sessions.open(session, now) {
                // Each of its two flows may be another's.
                Err(Refused::Taken(other)) if begins(parcel) => {
                    self.sessions.remove(other);
                    continue;
                }
                Ok(_) | Err(Refused::Taken(_) | Refused::Mirror) => Ok(()),
                Err(Refused::Share) => Err(DropReason::SessionShare),
                Err(Refused::Full) => Err(DropReason::SessionTableFull),
            };
        }
    }

    /// The session of the pod that has `answer` as its answer.
    fn answered_by(&self, answer: &Flow, parcel: &Parcel) -> Option<Found> {
        let found = self.sessions.find(answer, parcel.now)?;
        let is_answer = found.direction == Direction::Answer;
        (is_answer && self.sessions.get(found).pod == parcel.port).then_some(found)
    }
}

/// Whether a packet ends its sender's side of a connection.
fn ends(parcel: &Parcel) -> bool {
    matches!(
        Signal::of(parcel.head, parcel.ip),
        Signal::Finish | Signal::Reset
    )
}

/// Whether a packet may be the first of its conversation.
fn begins(parcel: &Parcel) -> bool {
    parcel.ip.protocol != protocol::TCP || Signal::of(parcel.head, parcel.ip) == Signal::Open
}
