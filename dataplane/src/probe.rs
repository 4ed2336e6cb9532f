//! What the kernel offers: tried out at start on a veth pair of our own, never
//! guessed from a version number.

use clap::ValueEnum;
use nix::sys::utsname::uname;
use serde::{Deserialize, Deserializer, Serialize};
use sluice_link::{Link, LinkError, Netlink, VethPair, VethPeer, XdpMode};

use crate::program::{self, MergedMark};
use crate::xsk::{Device, Features, FramePool, GsoSender, Umem, Xsk, XskError};

/// The pair that is tried on; neither end is ever up.
const INTERFACE: &str = "slprobe0";
const PEER: &str = "slprobe1";

/// Chunks of the UMEM that is tried with.
const CHUNKS: u32 = 16;

/// The largest MTU of pods and of the host port, in bytes of IP packet. The
/// longest frame has 17 chunks of 3840 bytes, less what tunnels put around it.
const MAX_MTU: u32 = 65_000;
/// The same where a frame is one buffer: `veth_xdp_set` allows 3506 with
/// 4-KiB pages; other page sizes and architectures differ by a few bytes.
const MAX_MTU_SINGLE: u32 = 3_498;

/// A kernel feature that Sluice uses and can do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Frames of several buffers.
    MultiBuffer,
    /// Checksum requests with transmitted frames.
    TxMetadata,
    /// More than 32 frames a wakeup.
    TxBudget,
    /// Merged TCP segments sent as such.
    Gso,
    /// Merged TCP segments taken as such.
    Tso,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MultiBuffer,
        Self::TxMetadata,
        Self::TxBudget,
        Self::Gso,
        Self::Tso,
    ];

    /// Its name, as `--without` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiBuffer => "multi-buffer",
            Self::TxMetadata => "tx-metadata",
            Self::TxBudget => "tx-budget",
            Self::Gso => "gso",
            Self::Tso => "tso",
        }
    }

    /// The first kernel that has it.
    #[must_use]
    pub fn since(self) -> &'static str {
        match self {
            Self::MultiBuffer => "6.6",
            Self::TxMetadata => "6.8",
            Self::TxBudget => "6.17",
            Self::Gso => "2.6.27, with CONFIG_PACKET",
            Self::Tso => "6.6",
        }
    }

    /// What it is for, and what its absence costs.
    #[must_use]
    pub fn cost(self) -> &'static str {
        match self {
            Self::MultiBuffer => {
                "jumbo frames between local pods, and GRO; without: pod MTU at most 3498, \
                 TCP between local pods at about a third"
            }
            Self::TxMetadata => {
                "checksums between local pods are never computed, and GRO; without: pods' \
                 checksum offload is switched off, TCP at about two thirds"
            }
            Self::TxBudget => "one system call a batch; without: one for each 32 frames",
            Self::Gso => {
                "merged TCP segments to the host, out of the node and to pods, whatever their MTU; \
                 without: one by one, TCP out of the node at a third"
            }
            Self::Tso => {
                "merged TCP segments from the host, with all the others; without: its kernel cuts \
                 them, TCP from outside at a quarter"
            }
        }
    }

    fn only(self) -> Features {
        let mut features = NONE;
        *self.field(&mut features) = true;
        features
    }

    fn field(self, features: &mut Features) -> &mut bool {
        match self {
            Self::MultiBuffer => &mut features.multi_buffer,
            Self::TxMetadata => &mut features.tx_metadata,
            Self::TxBudget => &mut features.tx_budget,
            Self::Gso => &mut features.gso,
            Self::Tso => &mut features.tso,
        }
    }
}

const NONE: Features = Features {
    multi_buffer: false,
    tx_metadata: false,
    tx_budget: false,
    gso: false,
    tso: false,
};

/// How a feature was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
pub enum State {
    /// There, and used.
    Present,
    /// Not there; what the kernel said.
    Missing(String),
    /// Switched off by `--without`.
    Without,
}

/// One feature and how it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which feature.
    pub feature: Feature,
    /// How it was found.
    #[serde(flatten)]
    pub state: State,
    /// The first kernel that has it.
    pub since: String,
    /// What it is for, and what its absence costs.
    pub cost: String,
}

/// What the kernel offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The kernel's release, as `uname -r` says.
    pub kernel: String,
    /// A line for each feature.
    #[serde(deserialize_with = "known")]
    pub features: Vec<Finding>,
}

/// Without what only a newer release knows: it can be asked before it is replaced.
fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Finding>, D::Error> {
    let told = Vec::<serde_json::Value>::deserialize(deserializer)?;
    Ok(told
        .into_iter()
        .filter_map(|finding| serde_json::from_value(finding).ok())
        .collect())
}

/// Why Sluice cannot run on this kernel at all, or could not find out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The veth pair to try on.
    #[error("probe the kernel: {0}")]
    Link(#[from] LinkError),
    /// The pair vanished.
    #[error(
        "probe the kernel: {INTERFACE} vanished as soon as it was made; who else manages interfaces here?"
    )]
    Vanished,
    /// The plain program, which every kernel must take.
    #[error("probe the kernel: {0}")]
    Program(#[from] program::ProgramError),
    /// A plain socket, which every kernel must give.
    #[error("probe the kernel: {0}")]
    Socket(#[from] XskError),
    /// Memory for the sockets.
    #[error("probe the kernel: map {CHUNKS} chunks: {0}")]
    Memory(std::io::Error),
}

impl Report {
    /// What is there and not switched off.
    #[must_use]
    pub fn features(&self) -> Features {
        let mut features = NONE;
        for finding in &self.features {
            *finding.feature.field(&mut features) = finding.state == State::Present;
        }
        features
    }

    /// Says what is not used and what that costs.
    pub fn log(&self) {
        for Finding {
            feature,
            state,
            since,
            cost,
        } in &self.features
        {
            match state {
                State::Present => tracing::debug!(feature = feature.name(), "the kernel has it"),
                State::Missing(reason) => {
                    tracing::warn!(
                        feature = feature.name(),
                        since,
                        reason,
                        cost,
                        "the kernel lacks it"
                    );
                }
                State::Without => {
                    tracing::warn!(feature = feature.name(), cost, "switched off by --without")
                }
            }
        }
    }
}

/// The largest MTU of a pod's interface, in bytes of IP packet.
#[must_use]
pub fn max_mtu(features: Features) -> u32 {
    if features.multi_buffer {
        MAX_MTU
    } else {
        MAX_MTU_SINGLE
    }
}

/// Tries every feature that is not in `without`, in the calling thread's
/// namespace.
///
/// # Errors
/// What every kernel must have is not there, or the trial could not be made.
pub fn run(netlink: &Netlink, without: &[Feature]) -> Result<Report, ProbeError> {
    netlink.delete_link(INTERFACE)?; // a dead daemon's
    netlink.create_veth(&VethPair {
        name: INTERFACE.to_owned(),
        mac: None,
        mtu: MAX_MTU_SINGLE,
        peer: VethPeer {
            name: PEER.to_owned(),
            mac: None,
            mtu: MAX_MTU_SINGLE,
            netns: None,
        },
    })?;
    let report = Trial::on(netlink).and_then(|trial| trial.report(without));
    netlink.delete_link(INTERFACE)?;
    report
}

struct Trial {
    link: Link,
    umem: &'static Umem,
    pool: FramePool,
}

impl Trial {
    fn on(netlink: &Netlink) -> Result<Self, ProbeError> {
        let (umem, pool) = Umem::create(CHUNKS).map_err(ProbeError::Memory)?;
        Ok(Self {
            link: netlink.link(INTERFACE)?.ok_or(ProbeError::Vanished)?,
            umem,
            pool,
        })
    }

    fn report(mut self, without: &[Feature]) -> Result<Report, ProbeError> {
        self.attach(false, XdpMode::Driver)?;
        self.open(NONE)?;
        let features = Feature::ALL
            .into_iter()
            .map(|feature| Finding {
                feature,
                state: if without.contains(&feature) {
                    State::Without
                } else {
                    self.attempt(feature)
                },
                since: feature.since().to_owned(),
                cost: feature.cost().to_owned(),
            })
            .collect();
        Ok(Report {
            kernel: uname().map_or_else(
                |_| "unknown".to_owned(),
                |name| name.release().to_string_lossy().into_owned(),
            ),
            features,
        })
    }

    fn attempt(&mut self, feature: Feature) -> State {
        let tried = match feature {
            Feature::MultiBuffer => self
                .attach(true, XdpMode::Driver)
                .map_err(|error| error.to_string())
                .and_then(|()| self.open_with(feature)),
            Feature::TxMetadata | Feature::TxBudget => self.open_with(feature),
            Feature::Gso => GsoSender::open()
                .map(drop)
                .map_err(|error| error.to_string()),
            Feature::Tso => self
                .attach(true, XdpMode::Stack)
                .and_then(|()| {
                    let mut mark = MergedMark::load()?;
                    mark.attach(&self.link.name)?;
                    mark.attach_for_good(&self.link.name)
                })
                .map_err(|error| error.to_string()),
        };
        tried.map_or_else(State::Missing, |()| State::Present)
    }

    fn attach(&self, multi_buffer: bool, mode: XdpMode) -> Result<(), program::ProgramError> {
        program::try_attach(multi_buffer, mode, &self.link.name, self.link.index)
    }

    fn open_with(&mut self, feature: Feature) -> Result<(), String> {
        self.open(feature.only()).map_err(|error| error.to_string())
    }

    fn open(&mut self, features: Features) -> Result<(), XskError> {
        let device = Device {
            name: &self.link.name,
            index: self.link.index,
            queue: 0,
        };
        let socket = Xsk::open(self.umem, &device, features, None)?;
        self.pool.reclaim(socket.close());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: [State; 5]) -> Report {
        let features = Feature::ALL.into_iter().zip(states);
        Report {
            kernel: "6.1.0".into(),
            features: features
                .map(|(feature, state)| Finding {
                    feature,
                    state,
                    since: feature.since().into(),
                    cost: feature.cost().into(),
                })
                .collect(),
        }
    }

    #[test]
    fn a_feature_has_one_name() {
        for feature in Feature::ALL {
            assert_eq!(serde_json::to_value(feature).unwrap(), feature.name());
            let value = feature.to_possible_value().unwrap();
            assert_eq!(value.get_name(), feature.name());
        }
    }

    #[test]
    fn features_of_a_newer_release_are_skipped() {
        let report: Report = serde_json::from_value(serde_json::json!({
            "kernel": "7.9.0",
            "features": [
                {"feature": "zero-copy", "state": "present", "since": "7.9", "cost": "copies"},
                {"feature": "tso", "state": "present", "since": "6.6", "cost": "", "new": 1},
            ],
        }))
        .unwrap();
        assert_eq!(report.features.len(), 1);
        assert_eq!(report.features[0].feature, Feature::Tso);
    }

    #[test]
    fn only_what_is_present_is_used() {
        let report = report([
            State::Present,
            State::Missing("bind: Invalid argument".into()),
            State::Without,
            State::Present,
            State::Missing("attach: Invalid argument".into()),
        ]);
        let expected = Features {
            multi_buffer: true,
            gso: true,
            ..NONE
        };
        assert_eq!(report.features(), expected);
        assert_eq!(max_mtu(report.features()), 65_000);
        assert_eq!(max_mtu(NONE), 3498);
    }

    #[test]
    fn a_report_survives_the_socket() {
        let report = report([
            State::Present,
            State::Missing("no".into()),
            State::Without,
            State::Present,
            State::Present,
        ]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["features"][1]["feature"], "tx-metadata");
        assert_eq!(json["features"][1]["state"], "missing");
        assert_eq!(json["features"][1]["reason"], "no");
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report);
    }
}
