//! What plugins chained behind ours do for pods, and what not.
//!
//! They work on interfaces, queueing disciplines and netfilter, which most of
//! the pods' packets pass by.

use serde_json::Value;

/// Plugin, when it is so, and what then falls short.
type Shortcoming = (&'static str, fn(&Value) -> bool, &'static str);

const SHORTCOMINGS: [Shortcoming; 5] = [
    (
        "bandwidth",
        |_| true,
        "the plugin bandwidth has no effect: no queueing discipline sees the packets that \
         sluiced forwards",
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

/// Whether the runtime is to hand a plugin pods' hostPorts.
pub(crate) fn takes_host_ports(plugin: &Value) -> bool {
    plugin["capabilities"]["portMappings"] == true
}

/// A line for everything that a plugin does less than it promises, or that
/// does harm.
///
/// `takes_host_ports`: whether ours is given pods' hostPorts.
pub(crate) fn notes(chained: &[Value], takes_host_ports: bool) -> Vec<&'static str> {
    let mut notes = Vec::new();
    for plugin in chained {
        if takes_host_ports && plugin["type"] == "portmap" && self::takes_host_ports(plugin) {
            notes.push(TWICE);
        }
        let falls_short =
            |(name, is_so, _): &&Shortcoming| plugin["type"] == *name && is_so(plugin);
        let found = SHORTCOMINGS.iter().filter(falls_short);
        notes.extend(found.map(|(_, _, note)| *note));
    }
    notes
}

/// Whether a key is set, or may be by the runtime.
fn sets(plugin: &Value, key: &str) -> bool {
    !plugin[key].is_null() || plugin["capabilities"][key] == true
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
            let notes = notes(std::slice::from_ref(&plugin), true);
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
        assert_eq!(notes(&all, true), Vec::<&str>::new());
    }

    #[test]
    fn host_ports_are_one_plugins_business() {
        let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let twice = |takes_host_ports| notes(std::slice::from_ref(&portmap), takes_host_ports);
        assert!(twice(true).contains(&TWICE));
        assert!(!twice(false).contains(&TWICE));
    }
}
