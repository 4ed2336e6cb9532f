//! How far a conversation has come, and how long its session outlives its last
//! packet:
//!
//! | class | at least | because |
//! |---|---|---|
//! | TCP, handshake | 4 min | RFC 5382 REQ-5, RFC 7857 section 2.1 |
//! | TCP, established | 2 h 4 min | RFC 5382 REQ-5: two hours are the keep-alive's interval |
//! | TCP, closing or reset | 4 min | RFC 5382 REQ-5, RFC 7857 section 2.1 |
//! | UDP and SCTP, unanswered | 30 s | what `nf_conntrack` gives: past it the host has forgotten as well |
//! | UDP, answered | 2 min | RFC 4787 REQ-5 |
//! | SCTP, answered | 4 min | seven times HB.interval: five heartbeats may be lost (RFC 9260 section 16) |

use crate::packet::{Signal, protocol};
use crate::time::Nanos;

/// Who sent a packet of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client: the packet is the session's `original`.
    Request,
    /// The pod: the packet is the reverse of the session's `translated`.
    Answer,
}

/// How far a conversation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The client has spoken; if answered, the pod has too. A TCP connection
    /// stays here until the client has shown that it got the answer: who
    /// spoofs addresses does not come further.
    Opening {
        /// The pod has spoken.
        answered: bool,
    },
    /// UDP, SCTP: a question and its answer, no more so far.
    Exchanged,
    /// Both have spoken and go on to.
    Open {
        /// TCP: who has sent FIN, if one of them has.
        finished: Option<Direction>,
    },
    /// TCP: the client has sent RST, which may be forged (RFC 5961 section 3):
    /// if they go on, the connection is open as before.
    Reset,
    /// TCP: both have sent FIN, or the pod has sent RST. Its packets still
    /// find their way.
    Closed,
}

/// What a session's pod may lose for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rank {
    /// Not confirmed by both ends. The pod's oldest gives way to a new one (RFC
    /// 4987 section 3.4).
    Opening,
    /// Never.
    Settled,
    /// As settled, but the client's next packet makes it anew: gives way before a
    /// new one is refused, if nothing else can. So nobody keeps others out of a pod
    /// by conversations of a packet a minute.
    Renewable,
    /// Said all that is to be said, as it seems: gives way before a new one is
    /// refused.
    Spent,
}

impl Rank {
    pub(super) const COUNT: usize = 4;
}

/// Sessions of equal timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Handshake,
    Established,
    Closing,
    Unanswered,
    Datagrams,
    Association,
}

impl Class {
    pub(super) const ALL: [Self; 6] = [
        Self::Handshake,
        Self::Established,
        Self::Closing,
        Self::Unanswered,
        Self::Datagrams,
        Self::Association,
    ];

    /// How long a session outlives its last packet.
    pub(super) const fn timeout(self) -> Nanos {
        const fn seconds(seconds: u64) -> Nanos {
            Nanos::from_millis(seconds * 1000)
        }
        match self {
            Self::Handshake | Self::Closing | Self::Association => seconds(240),
            Self::Established => seconds(2 * 3600 + 240),
            Self::Unanswered => seconds(30),
            Self::Datagrams => seconds(120),
        }
    }
}

impl State {
    /// Where every session begins.
    pub const NEW: Self = Self::Opening { answered: false };

    /// The state as a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening { .. } => "opening",
            Self::Exchanged => "exchanged",
            Self::Open { .. } => "open",
            Self::Reset => "reset",
            Self::Closed => "closed",
        }
    }

    /// The state after a packet.
    #[inline]
    pub(super) fn after(self, protocol: u8, from: Direction, signal: Signal) -> Self {
        if protocol == protocol::TCP {
            self.after_segment(from, signal)
        } else {
            self.after_datagram(from)
        }
    }

    fn after_segment(self, from: Direction, signal: Signal) -> Self {
        use Direction::{Answer, Request};
        match (self, from, signal) {
            (Self::Opening { .. } | Self::Reset | Self::Closed, Request, Signal::Open) => Self::NEW,
            // An established connection answers a SYN by a challenge, and goes
            // on (RFC 5961 section 4).
            (_, _, Signal::Open) | (Self::Closed, ..) => self,
            (_, Answer, Signal::Reset) => Self::Closed,
            (Self::Opening { .. }, Request, Signal::Reset) => self,
            (_, Request, Signal::Reset) => Self::Reset,

            (Self::Opening { .. }, Answer, _) => Self::Opening { answered: true },
            (Self::Opening { answered: false }, Request, _) => self,
            (Self::Opening { answered: true }, Request, Signal::Finish) => Self::Open {
                finished: Some(Request),
            },
            (Self::Open { finished: None }, _, Signal::Finish) => Self::Open {
                finished: Some(from),
            },
            (
                Self::Open {
                    finished: Some(first),
                },
                _,
                Signal::Finish,
            ) if first != from => Self::Closed,
            (Self::Open { .. }, ..) => self,
            (Self::Opening { .. } | Self::Reset | Self::Exchanged, ..) => {
                Self::Open { finished: None }
            }
        }
    }

    fn after_datagram(self, from: Direction) -> Self {
        match (self, from) {
            (Self::Opening { .. }, Direction::Answer) => Self::Exchanged,
            (Self::Exchanged, Direction::Request) => Self::Open { finished: None },
            _ => self,
        }
    }

    #[inline]
    pub(super) fn class(self, protocol: u8) -> Class {
        match (protocol, self) {
            (protocol::TCP, Self::Opening { .. }) => Class::Handshake,
            (protocol::TCP, Self::Exchanged | Self::Open { .. }) => Class::Established,
            (_, Self::Reset | Self::Closed) => Class::Closing,
            (_, Self::Opening { .. }) => Class::Unanswered,
            (protocol::SCTP, _) => Class::Association,
            (_, _) => Class::Datagrams,
        }
    }

    /// The rank of a session in this state, `is_renewable` if its client's next
    /// packet would make it anew.
    #[inline]
    pub(super) fn rank(self, is_renewable: bool) -> Rank {
        match self {
            Self::Opening { .. } => Rank::Opening,
            // The pod has ended it: its client may never.
            Self::Open {
                finished: Some(Direction::Answer),
            }
            | Self::Exchanged
            | Self::Closed => Rank::Spent,
            Self::Open { .. } | Self::Reset if is_renewable => Rank::Renewable,
            Self::Open { .. } | Self::Reset => Rank::Settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Answer, Request};
    use super::*;

    const OPEN: State = State::Open { finished: None };
    const ANSWERED: State = State::Opening { answered: true };

    fn after(protocol: u8, packets: &[(Direction, Signal)]) -> State {
        packets.iter().fold(State::NEW, |state, (from, signal)| {
            state.after(protocol, *from, *signal)
        })
    }

    fn tcp(packets: &[(Direction, Signal)]) -> State {
        after(protocol::TCP, packets)
    }

    /// SYN, SYN and ACK, ACK, then what comes.
    fn established(packets: &[(Direction, Signal)]) -> State {
        let handshake = [
            (Request, Signal::Open),
            (Answer, Signal::Data),
            (Request, Signal::Data),
        ];
        tcp(&[&handshake, packets].concat())
    }

    #[test]
    fn a_tcp_connection_is_open_once_the_client_has_seen_the_answer() {
        assert_eq!(tcp(&[(Request, Signal::Open)]), State::NEW);
        assert_eq!(tcp(&[(Request, Signal::Data); 9]), State::NEW);
        let answered = [(Request, Signal::Open), (Answer, Signal::Data)];
        assert_eq!(tcp(&answered), ANSWERED);
        assert_eq!(established(&[]), OPEN);
        let again = [
            (Request, Signal::Open),
            (Answer, Signal::Data),
            (Request, Signal::Open),
        ];
        assert_eq!(tcp(&again), State::NEW);
    }

    #[test]
    fn a_tcp_connection_is_closed_once_both_have_finished() {
        let half = |from| State::Open {
            finished: Some(from),
        };
        let fin = Signal::Finish;
        assert_eq!(established(&[(Request, fin)]), half(Request));
        assert_eq!(
            established(&[(Request, fin), (Request, fin)]),
            half(Request)
        );
        // The other side may send for hours after that.
        let long = [
            (Answer, fin),
            (Request, Signal::Data),
            (Request, Signal::Data),
        ];
        assert_eq!(established(&long), half(Answer));
        assert_eq!(half(Answer).class(protocol::TCP), Class::Established);
        assert_eq!(half(Answer).rank(false), Rank::Spent);
        assert_eq!(half(Request).rank(false), Rank::Settled);
        assert_eq!(established(&[(Request, fin), (Answer, fin)]), State::Closed);
        let late = [(Request, fin), (Answer, fin), (Request, Signal::Data)];
        assert_eq!(established(&late), State::Closed);
        let reused = [(Request, fin), (Answer, fin), (Request, Signal::Open)];
        assert_eq!(established(&reused), State::NEW);
    }

    #[test]
    fn a_reset_that_may_be_forged_is_taken_back_by_the_next_segment() {
        let reset = (Request, Signal::Reset);
        assert_eq!(established(&[reset]), State::Reset);
        assert_eq!(established(&[reset, reset]), State::Reset);
        assert_eq!(established(&[reset, (Answer, Signal::Data)]), OPEN);
        assert_eq!(established(&[reset, (Request, Signal::Data)]), OPEN);
        assert_eq!(established(&[reset, (Request, Signal::Open)]), State::NEW);
        assert_eq!(State::Reset.rank(false), Rank::Settled);
        // The pod knows.
        assert_eq!(established(&[(Answer, Signal::Reset)]), State::Closed);
        let refused = [(Request, Signal::Open), (Answer, Signal::Reset)];
        assert_eq!(tcp(&refused), State::Closed);
    }

    #[test]
    fn a_syn_in_an_open_connection_changes_nothing() {
        assert_eq!(established(&[(Request, Signal::Open)]), OPEN);
        assert_eq!(established(&[(Answer, Signal::Open)]), OPEN);
    }

    #[test]
    fn datagrams_are_a_conversation_once_the_client_goes_on_after_an_answer() {
        let (question, answer) = ((Request, Signal::Data), (Answer, Signal::Data));
        for protocol in [protocol::UDP, protocol::SCTP] {
            let state = |packets: &[_]| after(protocol, packets);
            assert_eq!(state(&[question, question]), State::NEW);
            assert_eq!(state(&[question, answer, answer]), State::Exchanged);
            assert_eq!(state(&[question, answer, question]), OPEN);
            assert_eq!(state(&[question, answer, question, answer]), OPEN);
        }
    }

    #[test]
    fn timeouts_are_those_of_the_table() {
        let seconds = |protocol, state: State| state.class(protocol).timeout().0 / 1_000_000_000;
        let states = [
            State::NEW,
            ANSWERED,
            State::Exchanged,
            OPEN,
            State::Reset,
            State::Closed,
        ];
        let tcp = states.map(|state| seconds(protocol::TCP, state));
        assert_eq!(tcp, [240, 240, 7440, 7440, 240, 240]);
        let udp = states.map(|state| seconds(protocol::UDP, state));
        assert_eq!(udp[..4], [30, 30, 120, 120]);
        let sctp = states.map(|state| seconds(protocol::SCTP, state));
        assert_eq!(sctp[..4], [30, 30, 240, 240]);
    }
}
