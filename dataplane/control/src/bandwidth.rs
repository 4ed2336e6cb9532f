//! Bandwidth as it is asked for: by the four keys of runtimes (the capability
//! `bandwidth`), of our configuration and of the reference plugin `bandwidth`,
//! and by an operator for a pod that runs.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::shaping::lowered_mtu;
use crate::{Attachment, BURSTS, InvalidAttachment, Limit, RATES};

/// Bursts that runtimes send where they mean "not set". Nobody's limit is
/// to begin with half a gigabyte.
const NOT_SET: [u64; 4] = [
    // kubelet, before there was a CRI
    i32::MAX as u64,
    // containerd
    u32::MAX as u64,
    // CRI-O, until and since the reference plugin refused the former
    u32::MAX as u64 * 8,
    u32::MAX as u64 * 8 - 1,
];

/// One direction's limit, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedLimit {
    /// Bits a second.
    pub rate: u64,
    /// Bits; `None`: what suits the rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

impl AskedLimit {
    fn settle(self, mtu: u32) -> Limit {
        let rate = self.rate;
        match self.burst {
            Some(burst) => Limit { rate, burst },
            None => Limit::with_chosen_burst(rate, mtu),
        }
    }
}

/// The same limit again.
impl From<Limit> for AskedLimit {
    fn from(Limit { rate, burst }: Limit) -> Self {
        let burst = Some(burst);
        Self { rate, burst }
    }
}

/// Limits, as they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Of what comes to the pod; `None`: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<AskedLimit>,
    /// Of what it sends; `None`: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<AskedLimit>,
}

/// A key whose value is no limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}: it {rule}")]
pub struct InvalidBandwidth {
    /// The key, as it is written in configurations.
    pub key: &'static str,
    /// What it holds.
    pub value: String,
    /// What it must hold.
    pub rule: &'static str,
}

/// The keys as they come. containerd 1.6 writes them with capitals; plugins in
/// Go do not notice.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Keys {
    #[serde(alias = "IngressRate")]
    ingress_rate: Value,
    #[serde(alias = "IngressBurst")]
    ingress_burst: Value,
    #[serde(alias = "EgressRate")]
    egress_rate: Value,
    #[serde(alias = "EgressBurst")]
    egress_burst: Value,
}

impl Bandwidth {
    /// The four keys.
    pub const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

    /// Reads the four keys of an object, beside any others; `None` if none of
    /// them is there.
    ///
    /// # Errors
    /// A rate or burst out of range, or a burst without a rate.
    pub fn read(object: &Map<String, Value>) -> Result<Option<Self>, InvalidBandwidth> {
        let unreadable = |error: serde_json::Error| InvalidBandwidth {
            key: "bandwidth",
            value: error.to_string(),
            rule: "must have each key once",
        };
        let keys = Keys::deserialize(object).map_err(unreadable)?;
        let all = [
            &keys.ingress_rate,
            &keys.ingress_burst,
            &keys.egress_rate,
            &keys.egress_burst,
        ];
        if all.into_iter().all(Value::is_null) {
            return Ok(None);
        }
        let [ingress_rate, ingress_burst, egress_rate, egress_burst] = Self::KEYS;
        Ok(Some(Self {
            ingress: read_limit(
                (ingress_rate, &keys.ingress_rate),
                (ingress_burst, &keys.ingress_burst),
            )?,
            egress: read_limit(
                (egress_rate, &keys.egress_rate),
                (egress_burst, &keys.egress_burst),
            )?,
        }))
    }

    /// Whether it asks for a limit.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }

    /// The limits of a pod whose way out of the node has the MTU `least`, and
    /// whose interface has `most`, bytes; with no burst above `max_burst`, bits,
    /// but for a chosen one that a packet needs.
    #[must_use]
    pub fn settle(&self, least: u32, most: u32, max_burst: Option<u64>) -> [Option<Limit>; 2] {
        let directions = [self.ingress, self.egress];
        let rates = directions.into_iter().flatten().map(|asked| asked.rate);
        let mtu = lowered_mtu(rates, least, most);
        directions.map(|asked| {
            let asked = asked?;
            let limit = asked.settle(mtu);
            let floor = asked.burst.map_or(u64::from(mtu) * 8, |_| 0);
            let burst = limit.burst.min(max_burst.unwrap_or(u64::MAX).max(floor));
            Some(Limit { burst, ..limit })
        })
    }
}

fn read_limit(
    (rate_key, rate): (&'static str, &Value),
    (burst_key, burst): (&'static str, &Value),
) -> Result<Option<AskedLimit>, InvalidBandwidth> {
    let asked_rate = read_number(rate_key, rate, "must be a whole number of bits a second")?;
    let asked_burst = read_number(burst_key, burst, "must be a whole number of bits")?
        .filter(|burst| !NOT_SET.contains(burst));
    let invalid = |key, value: &Value, rule| {
        Err(InvalidBandwidth {
            key,
            value: value.to_string(),
            rule,
        })
    };
    match (asked_rate, asked_burst) {
        (None, None) => Ok(None),
        (None, Some(_)) => invalid(
            burst_key,
            burst,
            "needs the rate of its direction beside it",
        ),
        (Some(number), _) if !RATES.contains(&number) => invalid(
            rate_key,
            rate,
            "must be from 1000 to 1000000000000000 bits a second (1 kbit/s to 1 Pbit/s), or 0 \
             for no limit",
        ),
        (_, Some(number)) if !BURSTS.contains(&number) => {
            invalid(burst_key, burst, "must be at most 1000000000000000 bits")
        }
        (Some(rate), burst) => Ok(Some(AskedLimit { rate, burst })),
    }
}

/// Zero is as good as nothing, as for the reference plugin.
fn read_number(
    key: &'static str,
    value: &Value,
    rule: &'static str,
) -> Result<Option<u64>, InvalidBandwidth> {
    match value.as_u64() {
        _ if value.is_null() => Ok(None),
        Some(0) => Ok(None),
        Some(number) => Ok(Some(number)),
        None => Err(InvalidBandwidth {
            key,
            value: value.to_string(),
            rule,
        }),
    }
}

/// What becomes of one direction's limit while the pod runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitChange {
    /// There is none any more.
    Unlimited,
    /// There is this one.
    Limit(AskedLimit),
}

impl Attachment {
    /// The attachment with other limits, where they are given, with no burst
    /// above the network's `max_burst`; a direction without a change keeps its
    /// own.
    ///
    /// # Errors
    /// A rate or burst out of range.
    pub fn reshape(
        &self,
        ingress: Option<LimitChange>,
        egress: Option<LimitChange>,
    ) -> Result<Self, InvalidAttachment> {
        let asked = |change: Option<LimitChange>, now: Option<Limit>| match change {
            None => now.map(AskedLimit::from),
            Some(LimitChange::Unlimited) => None,
            Some(LimitChange::Limit(asked)) => Some(asked),
        };
        let bandwidth = Bandwidth {
            ingress: asked(ingress, self.shaping.ingress),
            egress: asked(egress, self.shaping.egress),
        };
        let max_burst = self.shaping.max_burst;
        let settled = bandwidth.settle(self.least_mtu(), self.mtu, max_burst);
        let mut shaping = self.shaping.clone();
        // What stays is not settled again: a burst that nobody gave looks given.
        if ingress.is_some() {
            shaping.ingress = settled[0];
        }
        if egress.is_some() {
            shaping.egress = settled[1];
        }
        shaping.validate()?;
        Ok(Self {
            shaping,
            reshaped: true,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shaping;
    use crate::fixture::attachment;
    use serde_json::json;

    fn read(object: Value) -> Result<Option<Bandwidth>, String> {
        Bandwidth::read(object.as_object().unwrap()).map_err(|error| error.to_string())
    }

    fn asked(rate: u64, burst: Option<u64>) -> Option<AskedLimit> {
        Some(AskedLimit { rate, burst })
    }

    #[test]
    fn rates_and_bursts_are_read_as_the_reference_reads_them() {
        let max = 1_000_000_000_000_000_u64;
        for (object, ingress, egress) in [
            (
                json!({"ingressRate": 1000, "ingressBurst": 8}),
                asked(1000, Some(8)),
                None,
            ),
            (
                json!({"IngressRate": max, "IngressBurst": max, "EgressRate": 0, "EgressBurst": 0}),
                asked(max, Some(max)),
                None,
            ),
            (json!({"egressRate": 5000}), None, asked(5000, None)),
            (
                json!({"egressRate": 5000, "egressBurst": 0}),
                None,
                asked(5000, None),
            ),
            (
                json!({"ingressRate": 0, "egressRate": 5000, "egressBurst": null}),
                None,
                asked(5000, None),
            ),
            (json!({"ingressRate": 0, "ingressBurst": 0}), None, None),
            // A runtime that has no limit, and yet its burst.
            (json!({"ingressBurst": u32::MAX}), None, None),
        ] {
            let expected = Bandwidth { ingress, egress };
            assert_eq!(read(object.clone()), Ok(Some(expected)), "{object}");
        }
        let nothing = json!({"type": "bandwidth", "ingressRate": null});
        assert_eq!(read(nothing), Ok(None));
    }

    #[test]
    fn the_bursts_of_runtimes_mean_not_set() {
        for burst in [
            2_147_483_647_u64,
            4_294_967_295,
            34_359_738_359,
            34_359_738_360,
        ] {
            let object = json!({"ingressRate": 10_000_000, "ingressBurst": burst});
            let bandwidth = read(object).unwrap().unwrap();
            assert_eq!(bandwidth.ingress, asked(10_000_000, None), "{burst}");
        }
    }

    #[test]
    fn what_is_no_limit_is_named_with_its_rule() {
        for (object, start, rule) in [
            (
                json!({"ingressRate": 999}),
                "ingressRate is 999:",
                "from 1000",
            ),
            (
                json!({"egressRate": 1_000_000_000_000_001_u64}),
                "egressRate is 1000000000000001:",
                "1 Pbit/s",
            ),
            (
                json!({"egressRate": -1}),
                "egressRate is -1:",
                "whole number",
            ),
            (
                json!({"egressRate": 1e7}),
                "egressRate is 10000000.0:",
                "whole number",
            ),
            (
                json!({"ingressRate": "10M"}),
                "ingressRate is \"10M\":",
                "whole number",
            ),
            (
                json!({"ingressRate": true}),
                "ingressRate is true:",
                "whole number",
            ),
            (
                serde_json::from_str(r#"{"ingressRate": 18446744073709551616}"#).unwrap(),
                "ingressRate is 1.8446744",
                "whole number",
            ),
            (
                json!({"ingressBurst": 8000}),
                "ingressBurst is 8000:",
                "needs the rate",
            ),
            (
                json!({"egressRate": 0, "egressBurst": 8000}),
                "egressBurst is 8000:",
                "needs the rate",
            ),
            (
                json!({"egressRate": 1000, "egressBurst": -8}),
                "egressBurst is -8:",
                "whole number of bits",
            ),
            (
                json!({"egressRate": 1000, "egressBurst": u64::MAX}),
                "egressBurst is 18446744073709551615:",
                "at most",
            ),
            (
                json!({"ingressRate": 1000, "IngressRate": 2000}),
                "bandwidth is duplicate field `ingressRate`",
                "each key once",
            ),
        ] {
            let error = read(object).unwrap_err();
            assert!(error.starts_with(start) && error.contains(rule), "{error}");
        }
    }

    #[test]
    fn bursts_are_chosen_and_capped() {
        let settle = |ingress, egress, max_burst| {
            let limits = Bandwidth { ingress, egress }.settle(1500, 65_000, max_burst);
            limits.map(|limit| limit.map(|limit| limit.burst))
        };
        let chosen = asked(10_000_000, None);
        assert_eq!(settle(chosen, None, None), [Some(100_000), None]);
        let fast = asked(100_000_000, None);
        assert_eq!(settle(fast, None, None), [Some(1_000_000), None]);
        assert_eq!(
            settle(fast, chosen, Some(50_000)),
            [Some(50_000), Some(50_000)]
        );
        // A packet must pass, unless somebody wants it so.
        assert_eq!(settle(chosen, None, Some(8)), [Some(20_000), None]);
        let given = asked(10_000_000, Some(1_000_000));
        assert_eq!(settle(given, given, Some(8000)), [Some(8000), Some(8000)]);
        assert_eq!(settle(asked(1000, Some(8)), None, None), [Some(8), None]);
    }

    #[test]
    fn one_direction_changes_and_the_other_stays() {
        let mut before = attachment();
        before.shaping.ingress = Some(Limit {
            rate: 1_000_000,
            burst: 16_000,
        });
        let limit = |rate, burst| Some(LimitChange::Limit(AskedLimit { rate, burst }));
        let after = before.reshape(None, limit(20_000_000, None)).unwrap();
        assert!(after.reshaped);
        assert_eq!(after.shaping.ingress, before.shaping.ingress);
        let expected = Limit {
            rate: 20_000_000,
            burst: 200_000,
        };
        assert_eq!(after.shaping.egress, Some(expected));
        assert_eq!(after.frame_mtu(), 1500);
        let after = after.reshape(Some(LimitChange::Unlimited), None).unwrap();
        assert_eq!(after.shaping.ingress, None);
        assert_eq!(after.frame_mtu(), 5000);
        for bad in [limit(999, None), limit(1000, Some(0))] {
            assert!(before.reshape(bad, None).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_change_keeps_to_the_largest_burst_of_the_network() {
        let mut before = attachment();
        before.shaping.max_burst = Some(8_000);
        // Nobody gave it, and a packet needs it.
        before.shaping.ingress = Some(Limit {
            rate: 1_000_000,
            burst: 12_000,
        });
        let bursts = |burst| {
            let asked = AskedLimit {
                rate: 100_000_000,
                burst,
            };
            let after = before
                .reshape(None, Some(LimitChange::Limit(asked)))
                .unwrap();
            let Shaping {
                ingress, egress, ..
            } = after.shaping;
            [ingress, egress].map(|limit| limit.map(|limit| limit.burst))
        };
        assert_eq!(bursts(Some(1_000_000)), [Some(12_000), Some(8_000)]);
        assert_eq!(bursts(Some(800)), [Some(12_000), Some(800)]);
        // The lower rate makes the largest packet one of 1500 bytes.
        assert_eq!(bursts(None), [Some(12_000), Some(12_000)]);
    }
}
