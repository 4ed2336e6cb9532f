//! What is measured, of whom.

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
    /// Both on the second, with what forwards.
    OneCpu,
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
    pub(super) fn new(design: Design, feature: Feature) -> Self {
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
            Feature::HostPorts(count) => {
                let portmap = if is_chain { " + portmap" } else { "" };
                let plural = if count == 1 { "" } else { "s" };
                format!("{name}{portmap}, {count} hostPort{plural}")
            }
            Feature::Workers(1) => format!("{name}, 1 worker"),
            Feature::Workers(count) => format!("{name}, {count} workers"),
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
    pub(super) fn new(id: &'static str, title: &'static str, work: Work) -> Self {
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
    pub(super) fn beside(mut self, feature: Feature, others: &[Design]) -> Self {
        let designs = std::iter::once(&Design::Sluice).chain(others);
        self.arms = designs.map(|design| Arm::new(*design, feature)).collect();
        self.comparisons = (1..self.arms.len()).map(|other| [0, other]).collect();
        self
    }

    /// These designs in another placement, too.
    pub(super) fn also(mut self, placement: Placement, designs: &[Design]) -> Self {
        let feature = self.arms[0].spec.feature;
        for design in designs {
            self.arms.push(Arm {
                placement,
                ..Arm::new(*design, feature)
            });
        }
        self
    }

    /// A design beside itself: each with the first of these features.
    pub(super) fn scaling(mut self, design: Design, features: &[Feature]) -> Self {
        let first = self.arms.len();
        self.arms
            .extend(features.iter().map(|feature| Arm::new(design, *feature)));
        self.comparisons
            .extend((first + 1..self.arms.len()).map(|more| [more, first]));
        self
    }

    /// The last arm so far beside another design, in both placements.
    pub(super) fn last_beside(mut self, design: Design) -> Self {
        let other = self.arms.len();
        self.comparisons
            .extend(other.checked_sub(1).map(|last| [last, other]));
        self.arms.push(Arm::new(design, Feature::Plain));
        self.arms.push(Arm {
            placement: Placement::Together,
            ..Arm::new(design, Feature::Plain)
        });
        self
    }

    pub(super) fn quick(mut self) -> Self {
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
