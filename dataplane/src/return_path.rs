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
use crate::packet::{DatagramId, Flow, Fragment, Ip, Signal, protocol, quote};
use crate::port::PortId;
use crate::sessions::{Direction, Found, Refused, Session, Sessions};
use crate::time::Nanos;
use crate::verdict::DropReason;

/// A packet that a pod with sessions sends, or that a pod is to get.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parcel<'a> {
    /// The frame's first chunk.
    pub(crate) head: &'a [u8],
    pub(crate) ip: &'a Ip,
    pub(crate) pod: PortId,
    pub(crate) now: Nanos,
}

/// Sessions, and what follows their first fragments.
#[derive(Debug)]
pub(crate) struct ReturnPath {
    pub(crate) sessions: Sessions,
    fragments: Fragments,
}

impl ReturnPath {
    pub(crate) fn new(sessions: Sessions) -> Self {
        Self {
            sessions,
            fragments: Fragments::new(),
        }
    }

    /// By which port a packet of the pod leaves, if it answers what came from
    /// there, or is an ICMP error about it.
    #[inline(never)]
    pub(crate) fn leave(&mut self, parcel: &Parcel) -> Option<PortId> {
        let datagram = DatagramId::of(parcel.head, parcel.ip);
        if parcel.ip.fragment == Fragment::Later {
            return self.fragments.get(&datagram?, parcel.now);
        }
        let port = self
            .answer(parcel)
            .map(|found| self.sessions.get(found).client);
        if let Some(datagram) = datagram {
            self.fragments.set(datagram, port, parcel.now);
        }
        port
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
        let Parcel { head, ip, pod, now } = *parcel;
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
        (is_answer && self.sessions.get(found).pod == parcel.pod).then_some(found)
    }
}

/// Whether a packet may be the first of its conversation.
fn begins(parcel: &Parcel) -> bool {
    parcel.ip.protocol != protocol::TCP || Signal::of(parcel.head, parcel.ip) == Signal::Open
}
