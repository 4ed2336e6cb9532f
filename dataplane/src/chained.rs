//! What plugins chained behind ours do for pods, and what not.
//!
//! They work on interfaces, queueing disciplines and netfilter, which most of
//! the pods' packets pass by.

use serde_json::Value;
use sluice_control::{Bandwidth, InvalidBandwidth};

/// Plugin, when it is so, and what then falls short.
type Shortcoming = (&'static str, fn(&Value) -> bool, &'static str);

const SHORTCOMINGS: [Shortcoming; 5] = [
    (
        "bandwidth",
        |_| true,
        "the plugin bandwidth has no effect: no queueing discipline sees the packets that \
         sluiced forwards; sluice limits pods itself (\"capabilities\", \"ingressRate\", ...), \
         so remove it",
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

/// The limits that a plugin `bandwidth` has for every pod of the network.
///
/// # Errors
/// It has a value that is no limit: it fails at every ADD.
pub(crate) fn bandwidth(chained: &[Value]) -> Result<Option<Bandwidth>, InvalidBandwidth> {
    let plugins = chained
        .iter()
        .filter(|plugin| plugin["type"] == "bandwidth");
    let mut objects = plugins.filter_map(Value::as_object);
    let bandwidth = objects.find_map(|object| Bandwidth::read(object).transpose());
    Ok(bandwidth.transpose()?.filter(Bandwidth::is_limited))
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
        let found = |plugins: Value| bandwidth(plugins.as_array().unwrap());
        let limits = found(json!([
            {"type": "portmap", "ingressRate": 1},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
            {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 16000},
        ]));
        let ingress = limits.unwrap().unwrap().ingress.unwrap();
        assert_eq!((ingress.rate, ingress.burst), (8000, Some(16_000)));
        for nothing in [
            json!([]),
            json!([{"type": "bandwidth", "egressRate": 0}, {}, 7]),
        ] {
            assert_eq!(found(nothing), Ok(None));
        }
        assert!(found(json!([{"type": "bandwidth", "egressRate": 1}])).is_err());
    }
}
