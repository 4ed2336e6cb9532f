//! Bandwidth limits: what a pod's traffic is held to, each direction apart.

use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::InvalidAttachment;
use crate::quantity::in_words;

/// Rates that a limit may have, bits a second: what containerd lets through.
pub const RATES: RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Bursts that a limit may have, bits: up to a second of the highest rate.
pub const BURSTS: RangeInclusive<u64> = 1..=*RATES.end();

/// Times that a frame may be let wait, milliseconds.
pub const QUEUE_MILLIS: RangeInclusive<u32> = 1..=1_000;

/// Most subnets that a pod's limits may except, or count for.
pub const MAX_SUBNETS: usize = 64;

/// So many of them are shown to people: there may be 64.
const SHOWN_SUBNETS: usize = 3;

/// How long one frame may take at a shaped pod's rate. A frame's own length is
/// delay for all that wait behind it: 65000 bytes take 52 ms at 10 Mbit/s.
const FRAME_MILLIS: u64 = 2;

/// How much of its rate a pod may send at once if nobody says.
const BURST_MILLIS: u64 = 10;

/// One direction's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bits of IP packet a second.
    pub rate: u64,
    /// Bits of IP packet that may pass at once.
    pub burst: u64,
}

impl Limit {
    /// A limit whose burst nobody gave: 10 ms of the rate, but never less than
    /// the largest packet, of `mtu` bytes.
    #[must_use]
    pub fn with_chosen_burst(rate: u64, mtu: u32) -> Self {
        Self {
            rate,
            burst: (rate / 1000 * BURST_MILLIS).max(u64::from(mtu) * 8),
        }
    }

    fn validate(self, [rate, burst]: [&'static str; 2]) -> Result<(), InvalidAttachment> {
        for (field, value, range, rule) in [
            (rate, self.rate, RATES, "must be from 1 kbit/s to 1 Pbit/s"),
            (burst, self.burst, BURSTS, "must be from 1 bit to 1 Pbit"),
        ] {
            if !range.contains(&value) {
                return Err(InvalidAttachment::field(field, &value.to_string(), rule));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}bit/s, burst {}B",
            in_words(self.rate),
            in_words(self.burst.div_ceil(8))
        )
    }
}

/// What a pod's traffic is held to, and how what does not conform is queued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shaping {
    /// Of what comes to the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Limit>,
    /// Of what it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Limit>,
    /// The longest time that a frame should wait, milliseconds (`queueMillis`).
    pub queue_millis: u32,
    /// No burst is larger, bits, but for one that nobody gave and that a packet
    /// needs (`maxBurst`). An older plugin does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_burst: Option<u64>,
    /// Mark, instead of drop, packets of flows that understand it (RFC 3168).
    pub ecn: bool,
    /// Traffic with these is not limited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unshaped_subnets: Vec<IpNet>,
    /// If not empty, only traffic with these is limited.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shaped_subnets: Vec<IpNet>,
}

impl Default for Shaping {
    fn default() -> Self {
        Self {
            ingress: None,
            egress: None,
            queue_millis: 25,
            max_burst: None,
            ecn: true,
            unshaped_subnets: Vec::new(),
            shaped_subnets: Vec::new(),
        }
    }
}

impl Shaping {
    /// Whether there is a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }

    /// Whether traffic is held to the same. Subnets count in any order, and the
    /// largest burst of the network by what it left of theirs.
    #[must_use]
    pub fn does_as(&self, other: &Self) -> bool {
        let sorted = |subnets: &[IpNet]| {
            let mut subnets = subnets.to_vec();
            subnets.sort_unstable();
            subnets.dedup();
            subnets
        };
        let plain = |shaping: &Self| Self {
            max_burst: None,
            unshaped_subnets: sorted(&shaping.unshaped_subnets),
            shaped_subnets: sorted(&shaping.shaped_subnets),
            ..shaping.clone()
        };
        plain(self) == plain(other)
    }

    /// The largest packet that a pod so limited is to send or get, bytes: one
    /// takes about 2 ms at the lower of its rates. Not less than `least`, the
    /// MTU of the way out of the node, nor more than `most`, its interface's.
    #[must_use]
    pub fn mtu(&self, least: u32, most: u32) -> u32 {
        let rates = [self.ingress, self.egress].into_iter().flatten();
        lowered_mtu(rates.map(|limit| limit.rate), least, most)
    }

    /// How much may wait for one of its limits, bytes of IP packet: what comes
    /// through in `queue_millis`, but always two of the largest packets, of `mtu`
    /// bytes each.
    #[must_use]
    pub fn queue_bytes(&self, limit: Limit, mtu: u32) -> u64 {
        let bytes = u128::from(limit.rate) * u128::from(self.queue_millis) / 8000;
        u64::try_from(bytes)
            .unwrap_or(u64::MAX)
            .max(2 * u64::from(mtu))
    }

    /// How long that takes, milliseconds.
    fn queue_time(&self, limit: Limit, mtu: u32) -> u128 {
        let rate = u128::from(limit.rate.max(1));
        let bytes = u128::from(self.queue_bytes(limit, mtu));
        // To the nearest: the bytes were rounded.
        (bytes * 8000 + rate / 2) / rate
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first rule broken, with the field and its value.
    pub fn validate(&self) -> Result<(), InvalidAttachment> {
        for (limit, fields) in [
            (self.ingress, ["ingress rate", "ingress burst"]),
            (self.egress, ["egress rate", "egress burst"]),
        ] {
            limit.map_or(Ok(()), |limit| limit.validate(fields))?;
        }
        if !QUEUE_MILLIS.contains(&self.queue_millis) {
            return Err(InvalidAttachment::field(
                "queueMillis",
                &self.queue_millis.to_string(),
                "must be from 1 to 1000",
            ));
        }
        if let Some(burst) = self.max_burst.filter(|burst| !BURSTS.contains(burst)) {
            return Err(InvalidAttachment::field(
                "maxBurst",
                &burst.to_string(),
                "must be from 1 to 1000000000000000 bits",
            ));
        }
        let lists = [
            ("unshapedSubnets", &self.unshaped_subnets),
            ("shapedSubnets", &self.shaped_subnets),
        ];
        if lists.iter().all(|(_, subnets)| !subnets.is_empty()) {
            return Err(InvalidAttachment::field(
                "shapedSubnets",
                &list(&self.shaped_subnets, SHOWN_SUBNETS),
                "must be empty where there are unshapedSubnets: one of the two",
            ));
        }
        let long = lists
            .into_iter()
            .find(|(_, subnets)| subnets.len() > MAX_SUBNETS);
        match long {
            Some((field, subnets)) => Err(InvalidAttachment::field(
                field,
                &format!("{} subnets", subnets.len()),
                "must be at most 64 subnets",
            )),
            None => Ok(()),
        }
    }

    /// The limits in words, a line for each direction and some for what both
    /// have; none where there is no limit. The largest packet of the pod, of
    /// `mtu` bytes, has its part in how long frames wait.
    #[must_use]
    pub fn lines(&self, mtu: u32) -> Vec<String> {
        let limits = self.limits();
        let mut lines: Vec<String> = limits
            .map(|(direction, limit)| format!("{direction} {limit}"))
            .collect();
        if lines.is_empty() {
            return lines;
        }
        lines.push(self.queue_line(mtu));
        lines.extend(self.traits(SHOWN_SUBNETS));
        lines
    }

    /// The same in one: `ingress 10 Mbit/s, burst 12.5 kB, queue 25 ms`.
    #[must_use]
    pub fn in_words(&self, mtu: u32) -> String {
        match self.lines(mtu).as_slice() {
            [] => "no limits".to_owned(),
            lines => lines.join(", "),
        }
    }

    /// `queue 25 ms`, or `queue 240 ms ingress, 25 ms egress`.
    fn queue_line(&self, mtu: u32) -> String {
        let times: Vec<(&str, u128)> = self
            .limits()
            .map(|(direction, limit)| (direction, self.queue_time(limit, mtu)))
            .collect();
        match times.as_slice() {
            [(_, ingress), (_, egress)] if ingress != egress => {
                format!("queue {ingress} ms ingress, {egress} ms egress")
            }
            _ => format!("queue {} ms", times[0].1),
        }
    }

    /// The limits to the bit and with all subnets, for who compares them.
    #[must_use]
    pub fn exactly(&self) -> String {
        let limits = self.limits().map(|(direction, Limit { rate, burst })| {
            format!("{direction} {rate} bit/s, burst {burst} bits")
        });
        let queue = format!("queueMillis {}", self.queue_millis);
        let lines: Vec<String> = limits
            .chain([queue])
            .chain(self.traits(MAX_SUBNETS))
            .collect();
        lines.join(", ")
    }

    /// Those that there are.
    fn limits(&self) -> impl Iterator<Item = (&'static str, Limit)> {
        let limits = [("ingress", self.ingress), ("egress", self.egress)];
        limits
            .into_iter()
            .filter_map(|(direction, limit)| Some((direction, limit?)))
    }

    /// What is not as usual, with so many subnets at most.
    fn traits(&self, subnets: usize) -> impl Iterator<Item = String> {
        let ecn = (!self.ecn).then(|| "no ECN".to_owned());
        let lists = [
            ("not with", &self.unshaped_subnets),
            ("only with", &self.shaped_subnets),
        ];
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        ecn.into_iter()
            .chain(lists.map(move |(words, nets)| format!("{words} {}", list(nets, subnets))))
    }
}

/// The largest packet for a pod with these rates, bits a second; see
/// [`Shaping::mtu`].
pub(crate) fn lowered_mtu(rates: impl Iterator<Item = u64>, least: u32, most: u32) -> u32 {
    let frame = rates.min().map(|rate| rate / 8 * FRAME_MILLIS / 1000);
    let frame = frame.and_then(|bytes| u32::try_from(bytes).ok());
    frame.map_or(most, |bytes| bytes.max(least).min(most))
}

/// Reads the subnets of a key, without the bits that a prefix leaves to hosts.
///
/// # Errors
/// The first that is none, in words.
pub fn parse_subnets(key: &str, texts: &[String]) -> Result<Vec<IpNet>, String> {
    let subnet = |text: &String| match text.parse::<IpNet>() {
        Ok(subnet) => Ok(subnet.trunc()),
        Err(_) => Err(format!(
            "{key} has {text:?}: it must be a subnet, as 10.0.0.0/8"
        )),
    };
    texts.iter().map(subnet).collect()
}

/// The first ones.
fn list(subnets: &[IpNet], most: usize) -> String {
    let shown: Vec<String> = subnets.iter().take(most).map(IpNet::to_string).collect();
    match subnets.len().checked_sub(most) {
        None | Some(0) => shown.join(" "),
        Some(more) => format!("{} and {more} more", shown.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(rate: u64, burst: u64) -> Option<Limit> {
        Some(Limit { rate, burst })
    }

    #[test]
    fn limits_read_well() {
        let mut shaping = Shaping::default();
        assert_eq!(shaping.in_words(1500), "no limits");
        shaping.ingress = limit(10_000_000, 100_000);
        assert_eq!(
            shaping.in_words(2500),
            "ingress 10 Mbit/s, burst 12.5 kB, queue 25 ms"
        );
        shaping.egress = limit(1_500_000, 12_000);
        shaping.ecn = false;
        shaping.unshaped_subnets = ["10.0.0.0/8", "fd00::/8", "192.0.2.0/24", "198.51.100.0/24"]
            .map(|net| net.parse().unwrap())
            .into();
        assert_eq!(
            shaping.lines(1280),
            [
                "ingress 10 Mbit/s, burst 12.5 kB",
                "egress 1.5 Mbit/s, burst 1.5 kB",
                "queue 25 ms",
                "no ECN",
                "not with 10.0.0.0/8 fd00::/8 192.0.2.0/24 and 1 more",
            ]
        );
    }

    #[test]
    fn exact_words_tell_apart_what_does_not_do_the_same() {
        let nets: Vec<IpNet> = (0..5_u8)
            .map(|n| format!("10.{n}.0.0/16").parse().unwrap())
            .collect();
        let shaping = Shaping {
            ingress: limit(10_000_000, 100_000),
            unshaped_subnets: nets.clone(),
            ..Shaping::default()
        };
        assert_eq!(
            shaping.exactly(),
            "ingress 10000000 bit/s, burst 100000 bits, queueMillis 25, not with 10.0.0.0/16 \
             10.1.0.0/16 10.2.0.0/16 10.3.0.0/16 10.4.0.0/16"
        );
        type Change = fn(&mut Shaping);
        let changes: [Change; 3] = [
            |s| s.ingress = limit(10_010_000, 100_000),
            |s| s.ingress = limit(10_000_000, 100_001),
            |s| s.unshaped_subnets[4] = "10.9.0.0/16".parse().unwrap(),
        ];
        for change in changes {
            let mut other = shaping.clone();
            change(&mut other);
            assert!(!shaping.does_as(&other), "{other:?}");
            assert_ne!(shaping.exactly(), other.exactly());
        }
        let mut same = shaping.clone();
        same.unshaped_subnets.reverse();
        same.unshaped_subnets.push(nets[0]);
        same.max_burst = Some(100_000);
        assert!(shaping.does_as(&same));
    }

    /// Two packets always fit, however slow they go.
    #[test]
    fn the_time_in_the_queue_is_what_frames_may_wait() {
        for (ingress, egress, queue) in [
            (Some(10_000_000), None, "queue 25 ms"),
            (Some(10_000_001), Some(999_999_937), "queue 25 ms"),
            (Some(RATES.start() * 960), None, "queue 25 ms"),
            (Some(100_000), None, "queue 240 ms"),
            (None, Some(1_000), "queue 24000 ms"),
            (
                Some(100_000),
                Some(10_000_000),
                "queue 240 ms ingress, 25 ms egress",
            ),
            (Some(*RATES.end()), None, "queue 25 ms"),
        ] {
            let shaping = Shaping {
                ingress: ingress.and_then(|rate| limit(rate, 8)),
                egress: egress.and_then(|rate| limit(rate, 8)),
                ..Shaping::default()
            };
            let lines = shaping.lines(1500);
            assert_eq!(lines.last().unwrap(), queue, "{lines:?}");
        }
        let shaping = Shaping::default();
        let limit = limit(10_000_000, 8).unwrap();
        assert_eq!(shaping.queue_bytes(limit, 1500), 31_250);
        assert_eq!(shaping.queue_bytes(limit, 65_000), 130_000);
    }

    /// What older peers send and older journals hold.
    #[test]
    fn every_field_has_a_default() {
        let shaping: Shaping = serde_json::from_str("{}").unwrap();
        assert_eq!(shaping, Shaping::default());
        assert_eq!(
            serde_json::to_value(&shaping).unwrap(),
            serde_json::json!({"queue_millis": 25, "ecn": true})
        );
        assert!(!shaping.is_limited());
        assert_eq!(shaping.validate(), Ok(()));
    }

    #[test]
    fn each_bound_names_its_field() {
        type Spoil = fn(&mut Shaping);
        let spoils: [(Spoil, &str); 9] = [
            (|s| s.ingress = limit(999, 8), "ingress rate"),
            (
                |s| s.egress = limit(1_000_000_000_000_001, 8),
                "egress rate",
            ),
            (|s| s.ingress = limit(1_000, 0), "ingress burst"),
            (|s| s.egress = limit(1_000, u64::MAX), "egress burst"),
            (|s| s.queue_millis = 0, "queueMillis"),
            (|s| s.queue_millis = 1001, "queueMillis"),
            (|s| s.max_burst = Some(0), "maxBurst"),
            (|s| s.max_burst = Some(u64::MAX), "maxBurst"),
            (
                |s| s.shaped_subnets = vec!["10.0.0.0/8".parse().unwrap(); 65],
                "shapedSubnets",
            ),
        ];
        for (spoil, field) in spoils {
            let mut shaping = Shaping::default();
            spoil(&mut shaping);
            let error = shaping.validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
        let both = Shaping {
            shaped_subnets: vec!["10.0.0.0/8".parse().unwrap()],
            unshaped_subnets: vec!["10.1.0.0/16".parse().unwrap()],
            ..Shaping::default()
        };
        let error = both.validate().unwrap_err().to_string();
        assert!(error.contains("one of the two"), "{error}");
    }

    #[test]
    fn a_frame_takes_two_milliseconds_within_the_mtus() {
        let shaping = |ingress: Option<u64>, egress: Option<u64>| Shaping {
            ingress: ingress.and_then(|rate| limit(rate, 8)),
            egress: egress.and_then(|rate| limit(rate, 8)),
            ..Shaping::default()
        };
        for (ingress, egress, mtu) in [
            (None, None, 65_000),
            (Some(10_000_000), None, 2500),
            (None, Some(10_000_000), 2500),
            (Some(10_000_000), Some(100_000_000), 2500),
            // Never below the way out's, nor above the interface's.
            (Some(1_000), None, 1500),
            (Some(6_000_000), None, 1500),
            (Some(260_000_000), None, 65_000),
            (Some(*RATES.end()), Some(*RATES.end()), 65_000),
        ] {
            let shaping = shaping(ingress, egress);
            assert_eq!(shaping.mtu(1500, 65_000), mtu, "{shaping:?}");
        }
    }

    #[test]
    fn a_chosen_burst_is_ten_milliseconds_and_never_less_than_a_packet() {
        for (rate, mtu, bytes) in [
            (10_000_000, 2500, 12_500),
            (1_000_000, 1500, 1500),
            (1_000, 1280, 1280),
            (1_000_000_000, 65_000, 1_250_000),
        ] {
            let limit = Limit::with_chosen_burst(rate, mtu);
            assert_eq!(limit.burst, bytes * 8, "{rate}");
        }
        let highest = Limit::with_chosen_burst(*RATES.end(), 65_535);
        assert!(BURSTS.contains(&highest.burst));
    }
}
