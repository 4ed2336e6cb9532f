//! Generic receive offload: TCP segments on their way to a pod or the host that
//! came in one turn become one frame, which crosses a stack once.
//!
//! The data is not copied: the chunks of later segments, without their headers,
//! are appended to the first's. The frame's checksum is partial; those of
//! segments that came with a complete one are verified first, since nobody does
//! it afterwards. What cannot join leaves as it came, and after what its flow
//! has waiting. Nothing waits for the next turn.

use arrayvec::ArrayVec;

use crate::packet::offload::Partial;
use crate::packet::segment::{Cut, Run, Segment};
use crate::packet::{Flow, Ip};
use crate::port::PortId;
use crate::xsk::{Chain, Frame, MAX_CHUNKS, Umem};

/// Flows that are merged at a time, as many as Linux has in a list of its own
/// (`MAX_GRO_SKBS`).
const FLOWS: usize = 8;

/// A TCP packet that is ready for its port.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// The port.
    pub(crate) to: PortId,
    /// The longest packet that the port takes, bytes.
    pub(crate) most: u32,
    /// The frame.
    pub(crate) frame: Frame,
    /// Its headers, as they are now.
    pub(crate) ip: Ip,
    /// Its checksum, if it is partial.
    pub(crate) partial: Option<Partial>,
    /// How to cut it, if it is segments that were merged before.
    pub(crate) cut: Option<Cut>,
}

/// A frame to be queued.
#[derive(Debug)]
pub(crate) struct Departure {
    /// To which port.
    pub(crate) to: PortId,
    /// The frame.
    pub(crate) frame: Frame,
    /// Its checksum, if it is partial.
    pub(crate) partial: Option<Partial>,
    /// How many frames have become this one, itself included.
    pub(crate) segments: u16,
    /// How to cut it into segments again, if it is several.
    pub(crate) cut: Option<Cut>,
}

/// Segments that wait for more of their flow.
#[derive(Debug)]
struct Held {
    to: PortId,
    flow: Flow,
    chain: Chain,
    run: Run,
    partial: Option<Partial>,
    /// The checksum is partial, or was found right.
    is_trusted: bool,
}

/// The segments of one turn that wait for more of their flows.
#[derive(Debug, Default)]
pub(crate) struct Gro {
    held: ArrayVec<Held, FLOWS>,
    /// Whose turn it is to give way to another flow.
    next: usize,
}

impl Gro {
    /// Takes a packet; gives what is to be queued before the next one comes.
    pub(crate) fn add(&mut self, umem: &Umem, arrival: Arrival) -> ArrayVec<Departure, 2> {
        let mut out = ArrayVec::new();
        let Some(flow) = Flow::of(&arrival.ip) else {
            out.push(arrival.pass());
            return out;
        };
        let segment = arrival.segment(umem);
        let is_same = |held: &Held| held.to == arrival.to && held.flow == flow;
        if let Some(place) = self.held.iter().position(is_same) {
            if let Some(segment) = segment
                && self.held[place].takes(umem, &arrival, &segment)
            {
                self.held[place].join(umem, arrival.frame, &segment);
                if self.held[place].run.is_over() {
                    out.push(self.held.swap_remove(place).finish(umem));
                }
                return out;
            }
            out.push(self.held.swap_remove(place).finish(umem));
        }
        match segment {
            Some(segment) if !segment.pushes() => {
                let new = Held {
                    to: arrival.to,
                    flow,
                    chain: Chain::new(umem, arrival.frame),
                    run: Run::new(segment),
                    partial: arrival.partial,
                    is_trusted: arrival.partial.is_some(),
                };
                if let Some(old) = self.hold(new) {
                    out.push(old.finish(umem));
                }
            }
            _ => out.push(arrival.pass()),
        }
        out
    }

    /// Gives one of those that wait; at the end of a turn, until there is none.
    pub(crate) fn pop(&mut self, umem: &Umem) -> Option<Departure> {
        Some(self.held.pop()?.finish(umem))
    }

    /// Holds a run, in the place of another's if there are as many as can be.
    fn hold(&mut self, new: Held) -> Option<Held> {
        match self.held.try_push(new) {
            Ok(()) => None,
            Err(full) => {
                self.next = (self.next + 1) % FLOWS;
                Some(std::mem::replace(&mut self.held[self.next], full.element()))
            }
        }
    }
}

impl Arrival {
    /// The segment that it is, if there may be room for another beside it.
    fn segment(&self, umem: &Umem) -> Option<Segment> {
        let has_room = self.frame.chunks() < MAX_CHUNKS && self.ip.packet_len < self.most;
        (has_room && self.cut.is_none())
            .then(|| Segment::of(umem.head(&self.frame), self.frame.len(), &self.ip))
            .flatten()
    }

    fn pass(self) -> Departure {
        Departure {
            to: self.to,
            frame: self.frame,
            partial: self.partial,
            segments: 1,
            cut: self.cut,
        }
    }
}

impl Held {
    /// Whether a packet may join, by its headers and by both checksums.
    fn takes(&mut self, umem: &Umem, arrival: &Arrival, segment: &Segment) -> bool {
        let (ours, next) = (self.chain.frame(), &arrival.frame);
        let has_room = ours.chunks() + next.chunks() <= MAX_CHUNKS;
        let (head, next_head) = (umem.head(ours), umem.head(next));
        if !has_room || !self.run.admits(head, segment, next_head, arrival.most) {
            return false;
        }
        if !self.is_trusted {
            self.is_trusted = self.run.first().is_intact(umem.slices(ours));
        }
        self.is_trusted && (arrival.partial.is_some() || segment.is_intact(umem.slices(next)))
    }

    fn join(&mut self, umem: &Umem, mut frame: Frame, segment: &Segment) {
        umem.skip(&mut frame, segment.headers_len());
        self.chain.append(umem, frame);
        self.run.join(segment);
    }

    fn finish(self, umem: &Umem) -> Departure {
        let mut frame = self.chain.into_frame();
        let segments = self.run.count();
        let cut = (segments > 1).then(|| self.run.finish(umem.head_mut(&mut frame)));
        Departure {
            to: self.to,
            frame,
            partial: cut.map_or(self.partial, |cut| Some(cut.checksum)),
            segments,
            cut,
        }
    }
}
