//! What a sample says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A quantity that samples have, each with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Measure {
    /// Packets that the application, or the sink, received.
    Received,
    /// Packets that the sender got rid of.
    Sent,
    /// Packets received for each core that was busy, with whatever.
    ReceivedPerCore,
    /// Payload of TCP that the application received.
    Throughput,
    /// CPU time of the whole machine for each gigabyte of payload.
    CpuPerGigabyte,
    /// Cores that were busy.
    BusyCores,
    /// Half of all round trips, or first packets, took no longer.
    P50,
    /// 99 of 100 took no longer.
    P99,
    /// Half of the ADDs took no longer.
    AddP50,
    /// 99 of 100 ADDs of all rounds took no longer.
    AddP99,
    /// Half of the DELs took no longer.
    DelP50,
    /// 99 of 100 DELs of all rounds took no longer.
    DelP99,
    /// The daemon's CPU time while nothing happens.
    IdleCpu,
}

/// One number a quantity.
pub(crate) type Values = BTreeMap<Measure, f64>;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    Higher,
    Lower,
}

impl Measure {
    /// What it is called in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Sent => "sent",
            Self::ReceivedPerCore => "received per busy core",
            Self::Throughput => "throughput",
            Self::CpuPerGigabyte => "CPU time per GB",
            Self::BusyCores => "busy",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::AddP50 => "ADD p50",
            Self::AddP99 => "ADD p99",
            Self::DelP50 => "DEL p50",
            Self::DelP99 => "DEL p99",
            Self::IdleCpu => "CPU of the idle daemon",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Received | Self::Sent | Self::ReceivedPerCore => "Mpps",
            Self::Throughput => "Gbit/s",
            Self::CpuPerGigabyte => "CPU-s/GB",
            Self::BusyCores => "cores",
            Self::P50 | Self::P99 => "µs",
            Self::AddP50 | Self::AddP99 | Self::DelP50 | Self::DelP99 => "ms",
            Self::IdleCpu => "% of a core",
        }
    }

    pub(crate) fn better(self) -> Better {
        match self {
            Self::Received | Self::Sent | Self::ReceivedPerCore | Self::Throughput => {
                Better::Higher
            }
            Self::CpuPerGigabyte
            | Self::BusyCores
            | Self::P50
            | Self::P99
            | Self::AddP50
            | Self::AddP99
            | Self::DelP50
            | Self::DelP99
            | Self::IdleCpu => Better::Lower,
        }
    }

    /// Whether designs are compared by it; the others explain.
    pub(crate) fn is_compared(self) -> bool {
        match self {
            Self::Received
            | Self::Throughput
            | Self::P50
            | Self::P99
            | Self::AddP50
            | Self::AddP99
            | Self::DelP50
            | Self::DelP99 => true,
            Self::Sent
            | Self::ReceivedPerCore
            | Self::CpuPerGigabyte
            | Self::BusyCores
            | Self::IdleCpu => false,
        }
    }

    /// The percentile that is taken of all rounds' values together, where one
    /// round has too few for it.
    pub(crate) fn pooled_percentile(self) -> Option<u8> {
        matches!(self, Self::AddP99 | Self::DelP99).then_some(99)
    }
}
