//! What plugins chained behind ours do for pods, and what not.
//!
//! They work on interfaces, queueing disciplines and netfilter, which most of
//! the pods' packets pass by.

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_control::{Bandwidth, NetworkBandwidth, Shaping, parse_subnets};

/// Plugin, when it is so, and what then falls short.
type Shortcoming = (&'static str, fn(&Value) -> bool, &'static str);

const SHORTCOMINGS: [Shortcoming; 6] = [
    (
        "bandwidth",
        |_| true,
        "the plugin bandwidth has no effect: no queueing discipline sees the packets that \
         sluiced forwards; sluice limits pods itself (\"capabilities\", \"ingressRate\", ...), \
         so remove it",
    ),
    (
        "bandwidth",
        lacks_burst,
        "the plugin bandwidth fails at ADD: it has a rate without a burst, which only sluice \
         chooses itself; remove it",
    ),
    (
        "firewall",
        |plugin| !matches!(plugin["ingressPolicy"].as_str(), None | Some("open")),
        "the key \"ingressPolicy\" of the plugin firewall has no effect: packets between the \
         node's pods pass no FORWARD chain",
    ),
    (
        "tuning",
        |plugin| sets(plugin, "mac"),
        "the plugin tuning sets pods' MAC addresses: what such a pod sends is dropped as \
         spoofed; remove its key \"mac\"",
    ),
    (
        "tuning",
        |plugin| sets(plugin, "mtu"),
        "the plugin tuning sets the MTU of pods' interfaces: larger packets to such a pod are \
         lost; remove its key \"mtu\" and set \"localMtu\" of sluice",
    ),
    (
        "sbr",
        |_| true,
        "the plugin sbr fails at ADD: it makes routes via gateways that must be in a connected \
         subnet, and a pod's only neighbour is the gateway; remove it",
    ),
];

const TWICE: &str = "sluice and the plugin portmap are both given pods' hostPorts and make them \
     twice; remove \"portMappings\" from the \"capabilities\" of one";

const LOST: &str = "the limits that pods ask for go to the plugin bandwidth only, where they have \
     no effect; set \"bandwidth\" in the \"capabilities\" of sluice";

/// Whether the runtime is to hand a plugin what a capability stands for.
fn takes(plugin: &Value, capability: &str) -> bool {
    plugin["capabilities"][capability] == true
}

/// A line for everything that a plugin behind `ours` does less than it
/// promises, or that does harm.
pub(crate) fn notes(ours: &Value, chained: &[Value]) -> Vec<&'static str> {
    let mut notes = Vec::new();
    for plugin in chained {
        let is = |name: &str, capability| plugin["type"] == name && takes(plugin, capability);
        if is("portmap", "portMappings") && takes(ours, "portMappings") {
            notes.push(TWICE);
        }
        let falls_short =
            |(name, is_so, _): &&Shortcoming| plugin["type"] == *name && is_so(plugin);
        let found = SHORTCOMINGS.iter().filter(falls_short);
        notes.extend(found.map(|(_, _, note)| *note));
        if is("bandwidth", "bandwidth") && !takes(ours, "bandwidth") {
            notes.push(LOST);
        }
    }
    notes
}

/// The limits that a plugin `bandwidth` has for every pod of the network, also
/// if they say that no pod is to have any.
///
/// # Errors
/// It has a value that is no limit, in words.
pub(crate) fn limits(network: &str, chained: &[Value]) -> Result<Option<NetworkBandwidth>, String> {
    let plugins = chained
        .iter()
        .filter(|plugin| plugin["type"] == "bandwidth");
    let mut objects = plugins.filter_map(Value::as_object);
    let found = objects.find_map(|object| limits_of(network, object).transpose());
    found.transpose()
}

fn limits_of(
    network: &str,
    plugin: &Map<String, Value>,
) -> Result<Option<NetworkBandwidth>, String> {
    let bandwidth = Bandwidth::read(plugin).map_err(|error| error.to_string())?;
    let Some(bandwidth) = bandwidth else {
        return Ok(None);
    };
    let Shaping {
        unshaped_subnets,
        shaped_subnets,
        ..
    } = scope(plugin)?;
    Ok(Some(NetworkBandwidth {
        network: network.to_owned(),
        bandwidth,
        unshaped_subnets,
        shaped_subnets,
    }))
}

/// With whom traffic is limited.
fn scope(plugin: &Map<String, Value>) -> Result<Shaping, String> {
    let scope = Shaping {
        unshaped_subnets: subnets(plugin, "unshapedSubnets")?,
        shaped_subnets: subnets(plugin, "shapedSubnets")?,
        ..Shaping::default()
    };
    scope.validate().map_err(|error| error.to_string())?;
    Ok(scope)
}

fn subnets(plugin: &Map<String, Value>, key: &str) -> Result<Vec<IpNet>, String> {
    let value = plugin.get(key).unwrap_or(&Value::Null);
    let texts: Option<Vec<String>> = Option::deserialize(value)
        .map_err(|_| format!("{key} is {value}: it must be a list of subnets"))?;
    parse_subnets(key, &texts.unwrap_or_default())
}

/// Whether a plugin `bandwidth` has a rate, and no burst with it.
fn lacks_burst(plugin: &Value) -> bool {
    let is_set = |key: &str| plugin[key].as_u64().is_some_and(|number| number > 0);
    [
        ("ingressRate", "ingressBurst"),
        ("egressRate", "egressBurst"),
    ]
    .into_iter()
    .any(|(rate, burst)| is_set(rate) && !is_set(burst))
}

/// Whether a key is set, or may be by the runtime.
fn sets(plugin: &Value, key: &str) -> bool {
    !plugin[key].is_null() || takes(plugin, key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_falls_short_is_named() {
        for (plugin, needle) in [
            (json!({"type": "bandwidth"}), "no effect"),
            (
                json!({"type": "tuning", "mac": "02:00:00:00:00:01"}),
                "spoofed",
            ),
            (
                json!({"type": "tuning", "capabilities": {"mac": true}}),
                "spoofed",
            ),
            (json!({"type": "tuning", "mtu": 1400}), "localMtu"),
            (json!({"type": "sbr"}), "fails at ADD"),
        ] {
            let notes = notes(&json!({}), std::slice::from_ref(&plugin));
            assert_eq!(notes.len(), 1, "{plugin}: {notes:?}");
            assert!(notes[0].contains(needle), "{plugin}: {notes:?}");
        }
    }

    /// The reference plugin refuses it, and so does every ADD.
    #[test]
    fn a_rate_of_a_chained_plugin_without_its_burst_is_worth_a_line() {
        for (plugin, expected) in [
            (json!({"type": "bandwidth", "egressRate": 8000}), 2),
            (
                json!({"type": "bandwidth", "egressRate": 8000, "egressBurst": 0}),
                2,
            ),
            (
                json!({"type": "bandwidth", "egressRate": 8000, "egressBurst": 8}),
                1,
            ),
            (json!({"type": "bandwidth", "ingressRate": 0}), 1),
        ] {
            let notes = notes(&json!({}), std::slice::from_ref(&plugin));
            assert_eq!(notes.len(), expected, "{plugin}: {notes:?}");
        }
    }

    #[test]
    fn what_works_is_not_worth_a_line() {
        let sysctl = json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}});
        let firewall = json!({"type": "firewall", "ingressPolicy": "open"});
        let portmap = json!({"type": "portmap", "snat": false});
        let all = [sysctl, firewall, portmap, json!({})];
        let ours = json!({"capabilities": {"portMappings": true, "bandwidth": true}});
        assert_eq!(notes(&ours, &all), Vec::<&str>::new());
    }

    #[test]
    fn what_a_runtime_hands_over_goes_to_the_right_one() {
        let with = |name: &str, capability: &str, takes: bool| json!({"type": name, "capabilities": {capability: takes}});
        for (name, capability, ours, note) in [
            ("portmap", "portMappings", true, Some(TWICE)),
            ("portmap", "portMappings", false, None),
            ("bandwidth", "bandwidth", false, Some(LOST)),
            ("bandwidth", "bandwidth", true, None),
        ] {
            let ours = with("sluice", capability, ours);
            let mut found = notes(&ours, &[with(name, capability, true)]);
            found.retain(|note| [TWICE, LOST].contains(note));
            assert_eq!(found, Vec::from_iter(note), "{name} behind {ours}");
        }
    }

    #[test]
    fn limits_of_a_chained_plugin_are_found() {
        let found = |plugins: Value| limits("pods", plugins.as_array().unwrap());
        let taken = found(json!([
            {"type": "portmap", "ingressRate": 1},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 16000,
             "unshapedSubnets": ["10.1.2.3/8"], "shapedSubnets": null},
            {"type": "bandwidth", "ingressRate": 9000, "ingressBurst": 16000},
        ]));
        let taken = taken.unwrap().unwrap();
        let ingress = taken.bandwidth.ingress.unwrap();
        assert_eq!((ingress.rate, ingress.burst), (8000, Some(16_000)));
        assert_eq!(taken.unshaped_subnets, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(
            found(json!([{"type": "bandwidth", "shapedSubnets": []}, {}, 7])),
            Ok(None)
        );
        // That no pod has a limit is said, too.
        let unlimited = found(json!([{"type": "bandwidth", "egressRate": 0}]));
        assert!(!unlimited.unwrap().unwrap().bandwidth.is_limited());
    }

    #[test]
    fn what_is_no_limit_of_a_chained_plugin_is_named() {
        let net = "10.0.0.0/8";
        for (key, value, needle) in [
            ("egressRate", json!(1), "egressRate is 1:"),
            ("shapedSubnets", json!(net), "list of subnets"),
            (
                "shapedSubnets",
                json!(["10.0.0.0"]),
                "shapedSubnets has \"10.0.0.0\"",
            ),
            ("unshapedSubnets", json!([net]), "one of the two"),
        ] {
            let mut plugin = json!({"type": "bandwidth", "egressRate": 1000, "egressBurst": 8000,
                                    "shapedSubnets": ["10.0.0.0/8"]});
            plugin[key] = value;
            let error = limits("pods", &[plugin]).unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
    }
}
