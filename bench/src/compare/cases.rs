//! What is measured, of whom.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::measure::Measure;
use crate::topology::{BedSpec, Design, Feature};

/// Where sender and receiver run. What forwards by itself does so on the
/// second CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Placement {
    /// The sender on the first CPU, the receiver on the second.
    Apart,
    /// Both on the first.
    Together,
}

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    PodToPod,
    PodToHostPort,
    OutsideToHostPort,
    OutsideToPod,
    PodToOutside,
    HostToPod,
    PodToService,
}

/// What is done in a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// 64-byte frames into an application.
    Flood(Path),
    /// 64-byte frames into an XDP program in the pod.
    Sink,
    /// This many TCP streams.
    Streams(Path, u16),
    UdpEcho(Path),
    TcpEcho(Path),
    /// First packets of connections from outside to a hostPort.
    FirstPacket,
    /// This many ADDs at once, then as many DELs; one: ten, one after the other.
    AddDel(u16),
    /// Nothing: what the daemon takes.
    Rest,
}

/// One way to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arm {
    pub(crate) spec: BedSpec,
    pub(crate) placement: Placement,
}

/// A row group of the table.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) work: Work,
    /// By importance: in a round, the first runs in the middle of the others,
    /// beside the second and third.
    pub(crate) arms: Vec<Arm>,
    /// Pairs of arms: whose ratio to whom.
    pub(crate) comparisons: Vec<[usize; 2]>,
    /// Whether `--quick` has it.
    pub(crate) is_quick: bool,
}

impl Arm {
    fn new(design: Design, feature: Feature) -> Self {
        Self {
            spec: BedSpec { design, feature },
            placement: Placement::Apart,
        }
    }

    /// What it is called in tables, without the placement.
    pub(crate) fn label(&self) -> String {
        let BedSpec { design, feature } = self.spec;
        let name = match design {
            Design::Sluice => "sluice",
            Design::Bridge => "bridge",
            Design::BridgeWithoutNetfilter => "bridge without br_netfilter",
            Design::JumboBridge => "bridge, MTU 65000",
            Design::Ptp => "ptp",
            Design::Ovs => "OVS with AF_XDP",
            Design::Floor => "bare XSK loop",
        };
        let is_chain = design != Design::Sluice;
        match feature {
            Feature::HostPort if is_chain => format!("{name} + portmap"),
            Feature::Shaped if is_chain => format!("{name} + bandwidth"),
            Feature::Whole if is_chain => format!("{name} + portmap + bandwidth"),
            Feature::HostPorts(count) if is_chain => {
                format!("{name} + portmap, {count} hostPorts")
            }
            Feature::HostPorts(count) => format!("{name}, {count} hostPorts"),
            Feature::Crowd(count) => format!("{name}, {count} idle pods"),
            Feature::Limited(_) | Feature::LimitedCrowd(..) if is_chain => {
                format!("{name} + bandwidth")
            }
            Feature::Plain
            | Feature::Limited(_)
            | Feature::LimitedCrowd(..)
            | Feature::HostPort
            | Feature::Shaped
            | Feature::Whole
            | Feature::Ethernet
            | Feature::Service => name.to_owned(),
        }
    }
}

impl Case {
    fn new(id: &'static str, title: &'static str, work: Work) -> Self {
        Self {
            id,
            title,
            work,
            arms: vec![],
            comparisons: vec![],
            is_quick: false,
        }
    }

    /// Sluice beside other designs, with the same feature and placement.
    fn beside(mut self, feature: Feature, others: &[Design]) -> Self {
        let designs = std::iter::once(&Design::Sluice).chain(others);
        self.arms = designs.map(|design| Arm::new(*design, feature)).collect();
        self.comparisons = (1..self.arms.len()).map(|other| [0, other]).collect();
        self
    }

    /// These designs in the other placement, too.
    fn also_together(mut self, designs: &[Design]) -> Self {
        let feature = self.arms[0].spec.feature;
        for design in designs {
            self.comparisons.push([0, self.arms.len()]);
            self.arms.push(Arm {
                placement: Placement::Together,
                ..Arm::new(*design, feature)
            });
        }
        self
    }

    /// A design beside itself: each with the first of these features.
    fn scaling(mut self, design: Design, features: &[Feature]) -> Self {
        let first = self.arms.len();
        self.arms
            .extend(features.iter().map(|feature| Arm::new(design, *feature)));
        self.comparisons
            .extend((first + 1..self.arms.len()).map(|more| [more, first]));
        self
    }

    fn quick(mut self) -> Self {
        self.is_quick = true;
        self
    }

    /// What its samples are plotted by.
    pub(crate) fn plotted(&self) -> Measure {
        match self.work {
            Work::Flood(_) | Work::Sink => Measure::Received,
            Work::Streams(..) => Measure::Throughput,
            Work::UdpEcho(_) | Work::TcpEcho(_) | Work::FirstPacket => Measure::P50,
            Work::AddDel(_) => Measure::AddP50,
            Work::Rest => Measure::IdleCpu,
        }
    }
}

/// Every case, in the order of the report.
pub(crate) fn all() -> Vec<Case> {
    use Design::{Bridge, BridgeWithoutNetfilter, Floor, JumboBridge, Ovs, Ptp, Sluice};
    use Feature::{Crowd, Ethernet, HostPort, HostPorts, Plain, Service, Shaped, Whole};
    use Path::{
        HostToPod, OutsideToHostPort, OutsideToPod, PodToHostPort, PodToOutside, PodToPod,
        PodToService,
    };
    vec![
        Case::new("udp", "64-byte UDP, pod to pod", Work::Flood(PodToPod))
            .beside(Plain, &[Bridge, Ovs, BridgeWithoutNetfilter, Ptp])
            .also_together(&[Bridge, Ovs])
            .quick(),
        Case::new(
            "udp-hostport",
            "64-byte UDP, pod to another's hostPort",
            Work::Flood(PodToHostPort),
        )
        .beside(HostPort, &[Bridge])
        .also_together(&[Bridge])
        .quick(),
        Case::new(
            "udp-hostport-outside",
            "64-byte UDP, outside to a hostPort",
            Work::Flood(OutsideToHostPort),
        )
        .beside(HostPort, &[Bridge])
        .also_together(&[Bridge]),
        Case::new(
            "udp-shaped",
            "64-byte UDP, pod to pod, limits above the load",
            Work::Flood(PodToPod),
        )
        .beside(Shaped, &[Bridge])
        .also_together(&[Bridge])
        .quick(),
        Case::new(
            "udp-sink",
            "64-byte UDP, pod to an XDP sink in a pod",
            Work::Sink,
        )
        .beside(Plain, &[Floor]),
        Case::new(
            "udp-service",
            "64-byte UDP, pod to a Service to a pod",
            Work::Flood(PodToService),
        )
        .beside(Service, &[Bridge]),
        Case::new(
            "udp-out",
            "64-byte UDP, pod to outside, masqueraded",
            Work::Flood(PodToOutside),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "udp-host",
            "64-byte UDP, host to pod",
            Work::Flood(HostToPod),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "udp-idle-pods",
            "64-byte UDP, pod to pod, beside idle pods",
            Work::Flood(PodToPod),
        )
        .scaling(Sluice, &[Crowd(0), Crowd(1), Crowd(100), Crowd(250)])
        .scaling(Bridge, &[Crowd(0), Crowd(250)]),
        Case::new(
            "tcp",
            "TCP, one stream, pod to pod, local MTU",
            Work::Streams(PodToPod, 1),
        )
        .beside(Plain, &[Bridge, Ovs, JumboBridge, Ptp])
        .also_together(&[Bridge, Ovs])
        .quick(),
        Case::new(
            "tcp-shaped",
            "TCP, one stream, pod to pod, limits above the load",
            Work::Streams(PodToPod, 1),
        )
        .beside(Shaped, &[Bridge])
        .also_together(&[Bridge]),
        Case::new(
            "tcp-8",
            "TCP, eight streams, pod to pod, local MTU",
            Work::Streams(PodToPod, 8),
        )
        .beside(Plain, &[Bridge, Ovs, JumboBridge]),
        Case::new(
            "tcp-1500",
            "TCP, one stream, pod to pod, MTU 1500",
            Work::Streams(PodToPod, 1),
        )
        .beside(Ethernet, &[Bridge]),
        Case::new(
            "tcp-8-1500",
            "TCP, eight streams, pod to pod, MTU 1500",
            Work::Streams(PodToPod, 8),
        )
        .beside(Ethernet, &[Bridge]),
        Case::new(
            "tcp-in",
            "TCP, one stream, outside to pod, MTU 1500",
            Work::Streams(OutsideToPod, 1),
        )
        .beside(Plain, &[Bridge])
        .quick(),
        Case::new(
            "tcp-out",
            "TCP, one stream, pod to outside, MTU 1500",
            Work::Streams(PodToOutside, 1),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "tcp-host",
            "TCP, one stream, host to pod",
            Work::Streams(HostToPod, 1),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "udp-rr",
            "UDP request and response, pod to pod",
            Work::UdpEcho(PodToPod),
        )
        .beside(Plain, &[Bridge, Ovs, BridgeWithoutNetfilter, Ptp])
        .also_together(&[Bridge, Ovs])
        .quick(),
        Case::new(
            "tcp-rr",
            "TCP request and response, pod to pod",
            Work::TcpEcho(PodToPod),
        )
        .beside(Plain, &[Bridge, Ovs])
        .also_together(&[Bridge]),
        Case::new(
            "udp-rr-service",
            "UDP request and response, pod to a Service to a pod",
            Work::UdpEcho(PodToService),
        )
        .beside(Service, &[Bridge]),
        Case::new(
            "first-packet",
            "first packet of a connection, outside to a hostPort",
            Work::FirstPacket,
        )
        .scaling(Sluice, &[HostPorts(1), HostPorts(100), HostPorts(10_000)])
        .scaling(Bridge, &[HostPorts(1), HostPorts(100)]),
        Case::new(
            "add",
            "ADD and DEL with hostPort and limits, one at a time",
            Work::AddDel(1),
        )
        .beside(Whole, &[Bridge])
        .quick(),
        Case::new(
            "add-50",
            "ADD and DEL with hostPort and limits, 50 at once",
            Work::AddDel(50),
        )
        .beside(Whole, &[Bridge]),
        Case::new("rest", "the daemon at rest", Work::Rest).scaling(Sluice, &[Crowd(250)]),
    ]
}

/// The cases with these IDs, in the order of the report.
///
/// # Errors
/// The first ID that is none.
pub(crate) fn named(ids: &[String]) -> Result<Vec<Case>, String> {
    let all = all();
    let known: BTreeSet<_> = all.iter().map(|case| case.id).collect();
    if let Some(unknown) = ids.iter().find(|id| !known.contains(id.as_str())) {
        return Err(unknown.clone());
    }
    let is_named = |case: &Case| ids.iter().any(|id| id == case.id);
    Ok(all.into_iter().filter(is_named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_comparisons_lead_to_arms() {
        let all = all();
        let ids: BTreeSet<_> = all.iter().map(|case| case.id).collect();
        assert_eq!(ids.len(), all.len());
        for case in &all {
            let labels: BTreeSet<_> = case
                .arms
                .iter()
                .map(|arm| (arm.label(), arm.placement))
                .collect();
            assert_eq!(labels.len(), case.arms.len(), "{case:?}");
            for [ours, theirs] in &case.comparisons {
                assert!(ours != theirs && *ours.max(theirs) < case.arms.len());
            }
        }
    }

    #[test]
    fn an_unknown_case_is_named() {
        let ids = ["udp", "upd"].map(str::to_owned);
        assert_eq!(named(&ids).unwrap_err(), "upd");
        assert_eq!(named(&ids[..1]).unwrap().len(), 1);
    }

    #[test]
    fn a_design_is_scaled_against_its_own_first_size() {
        let case = named(&["first-packet".to_owned()]).unwrap().remove(0);
        assert_eq!(case.comparisons, [[1, 0], [2, 0], [4, 3]]);
        assert_eq!(case.arms[2].label(), "sluice, 10000 hostPorts");
        assert_eq!(case.arms[4].label(), "bridge + portmap, 100 hostPorts");
    }
}
