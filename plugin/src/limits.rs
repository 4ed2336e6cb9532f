//! What a pod's traffic is to be held to: `runtimeConfig.bandwidth`, the same
//! four keys in our object of the configuration, and the key `shaping`.

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_control::{AskedLimit, Bandwidth, NodeFacts, Shaping, parse_subnets};

use crate::config::Mtus;
use crate::keys;
use crate::requests::part;

/// The key `shaping`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Keys {
    queue_millis: Option<u32>,
    max_burst: Option<u64>,
    unshaped_subnets: Vec<String>,
    shaped_subnets: Vec<String>,
    ecn: Option<bool>,
}

/// The part of `runtimeConfig` that is read here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    bandwidth: Option<Map<String, Value>>,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Limits {
    /// By the network's author; all of it goes before all that the runtime says.
    inline: Option<Bandwidth>,
    /// By the runtime.
    runtime: Option<Bandwidth>,
    /// Everything but the limits themselves.
    shaping: Shaping,
}

impl Limits {
    /// Reads them from our object in the network configuration.
    ///
    /// # Errors
    /// A value of the wrong type or out of range, in words.
    pub(crate) fn read(object: &Map<String, Value>) -> Result<Self, String> {
        let inline = Bandwidth::read(object).map_err(|error| error.to_string())?;
        let runtime: RuntimeConfig = part(object, "runtimeConfig")?;
        let runtime = runtime.bandwidth.unwrap_or_default();
        let runtime = Bandwidth::read(&runtime)
            .map_err(|error| format!("runtimeConfig.bandwidth: {error}"))?;
        let keys: Keys = part(object, keys::SHAPING)?;
        let shaping = keys.shaping().and_then(|shaping| {
            shaping.validate().map_err(|error| error.to_string())?;
            Ok(shaping)
        });
        Ok(Self {
            inline,
            runtime,
            shaping: shaping.map_err(|error| format!("shaping: {error}"))?,
        })
    }

    /// With those that the daemon has for the network, of a plugin `bandwidth`
    /// behind ours, where our object has none. They are as much the author's:
    /// what a pod asks for must not lift them.
    pub(crate) fn with_chained(mut self, facts: &NodeFacts, network: &str) -> Self {
        let chained = facts.bandwidth.as_ref();
        let chained = chained.filter(|chained| chained.network == network);
        if let Some(chained) = chained.filter(|_| self.inline.is_none()) {
            tracing::info!("the limits are those of the plugin bandwidth behind this one");
            self.inline = Some(chained.bandwidth);
            if self.shaping.unshaped_subnets.is_empty() && self.shaping.shaped_subnets.is_empty() {
                self.shaping
                    .unshaped_subnets
                    .clone_from(&chained.unshaped_subnets);
                self.shaping
                    .shaped_subnets
                    .clone_from(&chained.shaped_subnets);
            }
        }
        self
    }

    /// These, or, if there are none, those that a pod has: not every runtime
    /// asks again what it asked at ADD, and the daemon may have given them.
    /// Their bursts are as `maxBurst` left them.
    pub(crate) fn or_as_served(&self, served: &Shaping) -> Self {
        if self.bandwidth().is_limited() {
            return self.clone();
        }
        Self {
            inline: Some(Bandwidth {
                ingress: served.ingress.map(AskedLimit::from),
                egress: served.egress.map(AskedLimit::from),
            }),
            shaping: Shaping {
                max_burst: None,
                ..self.shaping.clone()
            },
            ..self.clone()
        }
    }

    fn bandwidth(&self) -> Bandwidth {
        self.inline.or(self.runtime).unwrap_or_default()
    }

    /// What a pod with these MTUs gets.
    pub(crate) fn settle(&self, mtus: Mtus) -> Shaping {
        let [ingress, egress] =
            self.bandwidth()
                .settle(mtus.uplink, mtus.local, self.shaping.max_burst);
        Shaping {
            ingress,
            egress,
            ..self.shaping.clone()
        }
    }
}

impl Keys {
    fn shaping(&self) -> Result<Shaping, String> {
        let default = Shaping::default();
        Ok(Shaping {
            queue_millis: self.queue_millis.unwrap_or(default.queue_millis),
            max_burst: self.max_burst,
            ecn: self.ecn.unwrap_or(default.ecn),
            unshaped_subnets: parse_subnets("unshapedSubnets", &self.unshaped_subnets)?,
            shaped_subnets: parse_subnets("shapedSubnets", &self.shaped_subnets)?,
            ..default
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use sluice_control::{DataplaneSettings, NetworkBandwidth};

    const MTUS: Mtus = Mtus {
        uplink: 1500,
        local: 65_000,
    };

    fn limits(object: Value) -> Result<Limits, String> {
        Limits::read(object.as_object().unwrap())
    }

    fn words(object: Value) -> String {
        in_words(&limits(object).unwrap().settle(MTUS))
    }

    fn in_words(shaping: &Shaping) -> String {
        shaping.in_words(MTUS.under(shaping).local)
    }

    #[test]
    fn the_configuration_goes_before_the_runtime() {
        let runtime = json!({"bandwidth": {"ingressRate": 5_000_000, "ingressBurst": 80_000}});
        assert_eq!(
            words(json!({"runtimeConfig": runtime})),
            "ingress 5 Mbit/s, burst 10 kB, queue 25 ms"
        );
        // All of it: the two are not mixed.
        assert_eq!(
            words(json!({"runtimeConfig": runtime, "egressRate": 10_000_000})),
            "egress 10 Mbit/s, burst 12.5 kB, queue 25 ms"
        );
        for nothing in [
            json!({}),
            json!({"runtimeConfig": null}),
            json!({"runtimeConfig": {"bandwidth": null, "mac": 7}}),
            json!({"shaping": {"queueMillis": 5}}),
        ] {
            assert_eq!(words(nothing), "no limits");
        }
    }

    /// As containerd 1.6 asks for `kubernetes.io/egress-bandwidth: 10M`.
    #[test]
    fn containerds_burst_is_chosen_and_the_networks_is_a_bound() {
        let mut object = json!({"runtimeConfig": {"bandwidth": {
            "IngressRate": 0, "IngressBurst": 0,
            "EgressRate": 10_000_000, "EgressBurst": u32::MAX,
        }}});
        assert_eq!(
            words(object.clone()),
            "egress 10 Mbit/s, burst 12.5 kB, queue 25 ms"
        );
        object["shaping"] = json!({"queueMillis": 10, "maxBurst": 64_000, "ecn": false,
                                   "unshapedSubnets": ["10.1.2.3/8"]});
        assert_eq!(
            words(object),
            "egress 10 Mbit/s, burst 8 kB, queue 10 ms, no ECN, not with 10.0.0.0/8"
        );
    }

    #[test]
    fn what_cannot_be_kept_to_is_named() {
        let net = "10.0.0.0/8";
        for (object, needles) in [
            (
                json!({"ingressRate": 1}),
                ["ingressRate is 1:", "from 1000"],
            ),
            (
                json!({"runtimeConfig": {"bandwidth": {"egressBurst": 1}}}),
                [
                    "runtimeConfig.bandwidth: egressBurst is 1:",
                    "needs the rate",
                ],
            ),
            (
                json!({"runtimeConfig": {"bandwidth": 7}}),
                ["runtimeConfig: invalid type", "7"],
            ),
            (json!({"shaping": 7}), ["shaping is 7:", "object"]),
            (
                json!({"shaping": {"queueMilis": 7}}),
                ["shaping: unknown field", "queueMillis"],
            ),
            (
                json!({"shaping": {"queueMillis": 0}}),
                ["shaping: queueMillis is", "from 1 to 1000"],
            ),
            (
                json!({"shaping": {"maxBurst": 0}}),
                ["shaping: maxBurst is", "from 1 to 1000000000000000"],
            ),
            (
                json!({"shaping": {"maxBurst": -1}}),
                ["shaping: invalid value", "-1"],
            ),
            (
                json!({"shaping": {"shapedSubnets": ["10.0.0.0"]}}),
                ["shaping: shapedSubnets has \"10.0.0.0\"", "subnet"],
            ),
            (
                json!({"shaping": {"shapedSubnets": [net], "unshapedSubnets": [net]}}),
                ["shaping: shapedSubnets is", "one of the two"],
            ),
            (
                json!({"shaping": {"unshapedSubnets": vec![net; 65]}}),
                ["shaping: unshapedSubnets is", "at most 64"],
            ),
        ] {
            let error = limits(object).unwrap_err();
            for needle in needles {
                assert!(error.contains(needle), "{error}");
            }
        }
    }

    #[test]
    fn the_daemons_limits_are_for_pods_of_its_network() {
        let facts = NodeFacts {
            gateway_mac: [2, 0, 0, 0, 0, 1],
            max_mtu: 65_000,
            uplink_mtu: 1500,
            checksum_offload: true,
            tcp_segmentation_offload: true,
            settings: DataplaneSettings::default(),
            bandwidth: Some(NetworkBandwidth {
                network: "pods".into(),
                bandwidth: Bandwidth {
                    ingress: Some(AskedLimit {
                        rate: 1_000_000,
                        burst: None,
                    }),
                    egress: None,
                },
                unshaped_subnets: vec!["10.0.0.0/8".parse().unwrap()],
                shaped_subnets: Vec::new(),
            }),
        };
        let plain = limits(json!({"shaping": {"ecn": false}})).unwrap();
        let taken = plain.clone().with_chained(&facts, "pods").settle(MTUS);
        assert_eq!(
            in_words(&taken),
            "ingress 1 Mbit/s, burst 1.5 kB, queue 25 ms, no ECN, not with 10.0.0.0/8"
        );
        assert_eq!(plain.clone().with_chained(&facts, "others"), plain);
        // Our object's go before them, also if it says that there are none.
        for rate in [0, 1000] {
            let own = limits(json!({"egressRate": rate})).unwrap();
            assert_eq!(own.clone().with_chained(&facts, "pods"), own);
        }
        // What a pod asks for does not, and our subnets do not mix with theirs.
        let asked = json!({
            "runtimeConfig": {"bandwidth": {"ingressRate": 9_000_000}},
            "shaping": {"shapedSubnets": ["192.0.2.0/24"]},
        });
        let asked = limits(asked).unwrap().with_chained(&facts, "pods");
        assert_eq!(
            in_words(&asked.settle(MTUS)),
            "ingress 1 Mbit/s, burst 1.5 kB, queue 25 ms, only with 192.0.2.0/24"
        );
    }

    #[test]
    fn a_runtime_that_asks_for_nothing_means_no_other_limits() {
        let plain = limits(json!({"shaping": {"ecn": false}})).unwrap();
        let own = limits(json!({"egressRate": 1000, "shaping": {"ecn": false}})).unwrap();
        let served = own.settle(MTUS);
        assert_eq!(plain.or_as_served(&served).settle(MTUS), served);
        let other = limits(json!({"egressRate": 2000})).unwrap();
        assert_eq!(other.or_as_served(&served), other);
        // Nor does the largest burst cut what the daemon has.
        let bound = limits(json!({"shaping": {"ecn": false, "maxBurst": 8000}})).unwrap();
        assert!(bound.or_as_served(&served).settle(MTUS).does_as(&served));
    }
}
