//! Why a frame is dropped: a counted reason, not an error.

use crate::packet::Malformed;

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Not what it claims to be.
    Malformed(Malformed),
    /// The source MAC address is not the port's.
    SpoofedMac,
    /// The source address is not the pod's.
    SpoofedAddress,
    /// ARP that speaks for another's address.
    SpoofedArp,
    /// Neighbour discovery that speaks for another's address.
    SpoofedNeighbour,
    /// A pod is no router (CVE-2020-10749).
    RouterAdvertisement,
    /// A pod is no router, so it redirects nobody.
    Redirect,
    /// A unicast frame for another MAC address than the gateway's.
    WrongMac,
    /// For all stations; not forwarded.
    Broadcast,
    /// For a group of stations; not forwarded.
    Multicast,
    /// Neither IP nor ARP.
    UnknownEthertype,
    /// ARP that asks for other than the gateway, or answers.
    ArpUnanswered,
    /// Neighbour discovery that asks for other than the gateway, or answers.
    NeighbourUnanswered,
    /// A link-local address of IPv6 does not leave its link (RFC 4291 section 2.5.6).
    LinkLocal,
    /// An address that no packet on the wire may have as its destination, or none
    /// from outside as its source.
    Martian,
    /// TTL or hop limit used up.
    TtlExceeded,
    /// From the host, for an address that no pod has.
    NoPod,
    /// Larger than the destination's MTU.
    TooBig,
    /// The destination's interface is down.
    PortDown,
    /// The destination takes less than is sent to it.
    TxRingFull,
    /// From the host: the pod has as many sessions as are free for others.
    SessionShare,
    /// From the host: no session is free.
    SessionTableFull,
    /// Of a translated conversation, and cannot be translated.
    Untranslatable,
    /// More than the pod's limit lets wait.
    QueueFull,
    /// Waited too long for the pod's limit (CoDel).
    QueueDelay,
    /// The pod's limit lets it wait, but there is no memory for that.
    QueueMemory,
    /// The worker that has the destination takes less than is handed to it.
    HandoffFull,
    /// The destination's device takes no merged TCP segments.
    MergedRefused,
    /// Merged TCP segments, more than are cut at once.
    CutLimit,
}

const OTHERS: [DropReason; 28] = [
    DropReason::SpoofedMac,
    DropReason::SpoofedAddress,
    DropReason::SpoofedArp,
    DropReason::SpoofedNeighbour,
    DropReason::RouterAdvertisement,
    DropReason::Redirect,
    DropReason::WrongMac,
    DropReason::Broadcast,
    DropReason::Multicast,
    DropReason::UnknownEthertype,
    DropReason::ArpUnanswered,
    DropReason::NeighbourUnanswered,
    DropReason::LinkLocal,
    DropReason::Martian,
    DropReason::TtlExceeded,
    DropReason::NoPod,
    DropReason::TooBig,
    DropReason::PortDown,
    DropReason::TxRingFull,
    DropReason::SessionShare,
    DropReason::SessionTableFull,
    DropReason::Untranslatable,
    DropReason::QueueFull,
    DropReason::QueueDelay,
    DropReason::QueueMemory,
    DropReason::HandoffFull,
    DropReason::MergedRefused,
    DropReason::CutLimit,
];

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Malformed::ALL.len() + OTHERS.len();

    /// Every reason, at the place that [`DropReason::index`] gives.
    pub const ALL: [Self; Self::COUNT] = {
        let mut all = [Self::TxRingFull; Self::COUNT];
        let mut i = 0;
        while i < Self::COUNT {
            all[i] = if i < Malformed::ALL.len() {
                Self::Malformed(Malformed::ALL[i])
            } else {
                OTHERS[i - Malformed::ALL.len()]
            };
            i += 1;
        }
        all
    };

    /// The reason's place in an array of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        let other = match self {
            Self::Malformed(rule) => return rule as usize,
            Self::SpoofedMac => 0,
            Self::SpoofedAddress => 1,
            Self::SpoofedArp => 2,
            Self::SpoofedNeighbour => 3,
            Self::RouterAdvertisement => 4,
            Self::Redirect => 5,
            Self::WrongMac => 6,
            Self::Broadcast => 7,
            Self::Multicast => 8,
            Self::UnknownEthertype => 9,
            Self::ArpUnanswered => 10,
            Self::NeighbourUnanswered => 11,
            Self::LinkLocal => 12,
            Self::Martian => 13,
            Self::TtlExceeded => 14,
            Self::NoPod => 15,
            Self::TooBig => 16,
            Self::PortDown => 17,
            Self::TxRingFull => 18,
            Self::SessionShare => 19,
            Self::SessionTableFull => 20,
            Self::Untranslatable => 21,
            Self::QueueFull => 22,
            Self::QueueDelay => 23,
            Self::QueueMemory => 24,
            Self::HandoffFull => 25,
            Self::MergedRefused => 26,
            Self::CutLimit => 27,
        };
        Malformed::ALL.len() + other
    }

    /// The reason as a word, as `sluiced show stats --json` has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed(rule) => rule.name(),
            Self::SpoofedMac => "spoofed-mac",
            Self::SpoofedAddress => "spoofed-address",
            Self::SpoofedArp => "spoofed-arp",
            Self::SpoofedNeighbour => "spoofed-neighbour",
            Self::RouterAdvertisement => "router-advertisement",
            Self::Redirect => "redirect",
            Self::WrongMac => "wrong-mac",
            Self::Broadcast => "broadcast",
            Self::Multicast => "multicast",
            Self::UnknownEthertype => "unknown-ethertype",
            Self::ArpUnanswered => "arp-unanswered",
            Self::NeighbourUnanswered => "neighbour-unanswered",
            Self::LinkLocal => "link-local",
            Self::Martian => "martian",
            Self::TtlExceeded => "ttl-exceeded",
            Self::NoPod => "no-pod",
            Self::TooBig => "too-big",
            Self::PortDown => "port-down",
            Self::TxRingFull => "tx-ring-full",
            Self::SessionShare => "session-share",
            Self::SessionTableFull => "session-table-full",
            Self::Untranslatable => "untranslatable",
            Self::QueueFull => "queue-full",
            Self::QueueDelay => "queue-delay",
            Self::QueueMemory => "queue-memory",
            Self::HandoffFull => "handoff-full",
            Self::MergedRefused => "merged-refused",
            Self::CutLimit => "cut-limit",
        }
    }

    /// One line for people who read the counters.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Malformed(rule) => rule.help(),
            Self::SpoofedMac => "source MAC address is not the pod's own",
            Self::SpoofedAddress => "source address is not the pod's own",
            Self::SpoofedArp => "ARP that speaks for another's address",
            Self::SpoofedNeighbour => "neighbour discovery that speaks for another's address",
            Self::RouterAdvertisement => "router advertisement from a pod",
            Self::Redirect => "redirect from a pod",
            Self::WrongMac => "for another MAC address than the gateway's",
            Self::Broadcast => "broadcast is not forwarded",
            Self::Multicast => "multicast is not forwarded (router and MLD noise is normal)",
            Self::UnknownEthertype => "neither IP nor ARP; VLAN tags are not forwarded",
            Self::ArpUnanswered => "ARP that asks for other than the gateway, or answers",
            Self::NeighbourUnanswered => "neighbour discovery for other than the gateway",
            Self::LinkLocal => "an IPv6 link-local address does not leave its link",
            Self::Martian => {
                "to a loopback, unspecified or reserved address; by the uplink, also from one, or from a local pod's"
            }
            Self::TtlExceeded => "TTL or hop limit used up (ICMP time exceeded sent)",
            Self::NoPod => "from the host for an address no pod has (ICMP unreachable sent)",
            Self::TooBig => {
                "larger than the destination's MTU (ICMP too big sent); by the uplink, merged and not to be cut"
            }
            Self::PortDown => "the destination's interface is down",
            Self::TxRingFull => "the destination takes less than is sent to it",
            Self::SessionShare => "more conversations by the host port than a pod may have",
            Self::SessionTableFull => "more conversations by the host port than there is room for",
            Self::Untranslatable => "a fragment of SCTP, or a routing header, by a hostPort",
            Self::QueueFull => "more than the pod's limit lets wait",
            Self::QueueDelay => "waited too long for the pod's limit",
            Self::QueueMemory => "no memory for what the pod's limit lets wait",
            Self::HandoffFull => "the destination's worker takes less than others hand to it",
            Self::MergedRefused => {
                "the destination's interface takes no merged TCP segments (tso off?): tried anew after 10 s"
            }
            Self::CutLimit => "very small TCP segments left merged, more than are cut at once",
        }
    }
}

impl From<Malformed> for DropReason {
    fn from(rule: Malformed) -> Self {
        Self::Malformed(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_reason_has_its_own_place_and_name() {
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), place, "{}", reason.name());
            assert!(!reason.help().is_empty());
        }
        let names: HashSet<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
