//! What plugins chained behind ours do for pods, and what not.
//!
//! They work on interfaces, queueing disciplines and netfilter, which most of
//! the pods' packets pass by.

use serde_json::Value;

/// Plugin, when it is so, and what then falls short.
type Shortcoming = (&'static str, fn(&Value) -> bool, &'static str);

const SHORTCOMINGS: [Shortcoming; 4] = [
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
];

/// A line for everything that a plugin does less than it promises, or that
/// does harm.
pub(crate) fn notes(chained: &[Value]) -> Vec<&'static str> {
    let mut notes = Vec::new();
    for plugin in chained {
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
        ] {
            let notes = notes(std::slice::from_ref(&plugin));
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
        assert_eq!(notes(&all), Vec::<&str>::new());
    }
}
