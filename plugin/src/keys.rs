//! Which keys our object in the network configuration may have.
//!
//! A key that means nothing to us is an error at ADD: a misspelt limit must
//! not become a pod without one. But `"type": "bridge"` changed to `"type":
//! "sluice"` must work where the rest asks for nothing that we lack.

use serde_json::{Map, Value};
use sluice_control::Bandwidth;

/// The keys that are read, here or elsewhere, beside those of `limits.rs`.
const OURS: [&str; 16] = [
    "mtu",
    "localMtu",
    "ipMasq",
    "isDefaultGateway",
    "dataplane",
    "dns",
    "prevResult",
    "logFile",
    "logLevel",
    "snat",
    "masqAll",
    "gro",
    "markMasqBit",
    "externalSetMarkChain",
    "conditionsV4",
    "conditionsV6",
];

/// What `limits.rs` reads, beside the four keys of [`Bandwidth`].
pub(crate) const SHAPING: &str = "shaping";

/// The specification's own keys that need no reading by ADD. Runtimes and
/// libcni add some that the network's author did not write.
const SPECIFIED: [&str; 11] = [
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "ipam",
    "capabilities",
    "runtimeConfig",
    "args",
    "disableCheck",
    "disableGC",
    "loadOnlyInlinedPlugins",
];

/// Keys of other plugins that change nothing here, and why.
const MOOT: [(&str, &str); 14] = [
    ("bridge", "there is no bridge"),
    (
        "isGateway",
        "the dataplane is the gateway of every pod anyway",
    ),
    (
        "forceAddress",
        "there is no bridge whose address could differ",
    ),
    (
        "hairpinMode",
        "a pod reaches itself through its hostPorts and Services without it",
    ),
    (
        "macspoofchk",
        "frames with another source address than the pod's are always dropped",
    ),
    ("ipMasqBackend", "masquerading is always by nftables"),
    ("backend", "hostPorts are never by iptables"),
    ("preserveDefaultVlan", "there are no VLANs"),
    (
        "enabledad",
        "addresses are IPAM's to keep apart, and used at once",
    ),
    ("log_level", "logLevel says what this plugin logs"),
    ("datastore_type", "there is no datastore"),
    ("nodename", "the node needs no name"),
    ("kubernetes", "the Kubernetes API is not used"),
    (
        "policy",
        "network policies are not enforced between pods of a node",
    ),
];

/// Keys of other plugins that ask for what Sluice does not do, and why not.
const REFUSED: [(&str, &str); 5] = [
    ("vlan", "frames with VLAN tags are not forwarded"),
    ("vlanTrunk", "frames with VLAN tags are not forwarded"),
    (
        "promiscMode",
        "a pod gets the frames for its own addresses and no others",
    ),
    ("portIsolation", "pods of a node reach each other"),
    (
        "disableContainerInterface",
        "an interface that stays down cannot be attached",
    ),
];

/// What becomes of a configuration's keys.
#[derive(Debug, PartialEq, Default)]
pub(crate) struct Sorted {
    /// The keys that are to be read.
    pub(crate) ours: Map<String, Value>,
    /// A line for each key that is accepted and has no effect.
    pub(crate) moot: Vec<String>,
}

/// Sorts the keys.
///
/// # Errors
/// A key that nobody knows, or one that asks for what Sluice does not do, in
/// words.
pub(crate) fn sort(object: &Map<String, Value>) -> Result<Sorted, String> {
    let mut sorted = Sorted::default();
    for (key, value) in object {
        let key = key.as_str();
        if OURS.contains(&key) {
            sorted.ours.insert(key.to_owned(), value.clone());
        } else if let Some((_, why)) = REFUSED.iter().find(|(known, _)| *known == key) {
            if is_effective(value) {
                return Err(format!("{key} is {value}: {why}; remove it"));
            }
        } else if let Some((_, why)) = MOOT.iter().find(|(known, _)| *known == key) {
            if key == "policy" && asks_for_policy(value) {
                return Err(format!("{key} is {value}: {why}; remove it"));
            }
            sorted.moot.push(format!("{key} has no effect: {why}"));
        } else if !is_foreign(key) && !is_limit(key) {
            return Err(unknown(key));
        }
    }
    if object.get("ipam").and_then(|ipam| ipam.get("subnet")) == Some(&"usePodCidr".into()) {
        return Err(
            "ipam.subnet is \"usePodCidr\": the Kubernetes API is not used; write the node's \
             range of pod addresses there"
                .into(),
        );
    }
    Ok(sorted)
}

/// The specification's, or somebody's who marked it as theirs
/// (`cni.dev/valid-attachments`).
fn is_foreign(key: &str) -> bool {
    SPECIFIED.contains(&key) || key.contains(['.', '/'])
}

fn is_limit(key: &str) -> bool {
    key == SHAPING || Bandwidth::KEYS.contains(&key)
}

/// Whether a value switches its key on.
fn is_effective(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    }
}

/// `{"type": "k8s"}` is in every copy of Calico's example; it alone says
/// where policies would be kept.
fn asks_for_policy(value: &Value) -> bool {
    is_effective(value) && *value != serde_json::json!({"type": "k8s"})
}

fn unknown(key: &str) -> String {
    let others = MOOT.iter().chain(&REFUSED).map(|(known, _)| *known);
    let limits = Bandwidth::KEYS.into_iter().chain([SHAPING]);
    let known = OURS
        .into_iter()
        .chain(limits)
        .chain(SPECIFIED)
        .chain(others);
    let distance =
        |known: &str| strsim::damerau_levenshtein(&known.to_lowercase(), &key.to_lowercase());
    let nearest = known.min_by_key(|known| distance(known));
    // Farther ones have nothing to do with each other.
    match nearest.filter(|known| distance(known) <= key.len().min(known.len()) / 3) {
        Some(nearest) => format!("{key} is no key of this plugin; did you mean {nearest}?"),
        None => format!("{key} is no key of this plugin; remove it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sorted(value: Value) -> Result<Sorted, String> {
        sort(value.as_object().unwrap())
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        for (key, nearest) in [
            ("localMTU", "localMtu"),
            ("mut", "mtu"),
            ("ipmasq", "ipMasq"),
            ("isDefaultGatway", "isDefaultGateway"),
            ("dataPlane", "dataplane"),
            ("promiscmode", "promiscMode"),
            ("IngressRate", "ingressRate"),
            ("shapping", "shaping"),
        ] {
            let error = sorted(json!({key: 1})).unwrap_err();
            assert!(
                error.contains(&format!("did you mean {nearest}?")),
                "{error}"
            );
        }
        for key in ["bandwidth", "", "x"] {
            let error = sorted(json!({key: 1})).unwrap_err();
            assert!(error.contains("remove it"), "{error}");
        }
    }

    #[test]
    fn a_bridge_configuration_is_accepted() {
        let sorted = sorted(json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "sluice", "bridge": "cni0",
            "isGateway": true, "isDefaultGateway": true, "forceAddress": false,
            "ipMasq": true, "mtu": 1500, "hairpinMode": true, "promiscMode": false,
            "vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": true, "macspoofchk": true,
            "ipam": {"type": "host-local", "subnet": "10.77.0.0/24"},
        }))
        .unwrap();
        let ours: Vec<&String> = sorted.ours.keys().collect();
        assert_eq!(ours, ["ipMasq", "isDefaultGateway", "mtu"]);
        assert_eq!(sorted.moot.len(), 6, "{:?}", sorted.moot);
    }

    #[test]
    fn calicos_example_is_accepted_but_for_the_range() {
        let mut example = json!({
            "type": "sluice", "log_level": "info", "datastore_type": "kubernetes",
            "nodename": "127.0.0.1", "policy": {"type": "k8s"},
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
            "ipam": {"type": "host-local", "subnet": "usePodCidr"},
        });
        assert!(sorted(example.clone()).unwrap_err().contains("usePodCidr"));
        example["ipam"]["subnet"] = "10.77.0.0/24".into();
        assert_eq!(sorted(example.clone()).unwrap().moot.len(), 5);
        example["policy"]["default"] = "deny".into();
        assert!(sorted(example).unwrap_err().starts_with("policy is"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_the_reason() {
        for (key, value) in [
            ("vlan", json!(100)),
            ("vlan", json!("100")),
            ("vlanTrunk", json!([{"id": 5}])),
            ("promiscMode", json!(true)),
            ("portIsolation", json!(true)),
        ] {
            let error = sorted(json!({key: value})).unwrap_err();
            assert!(error.starts_with(&format!("{key} is")), "{error}");
        }
    }

    #[test]
    fn limits_are_read_elsewhere() {
        let object = json!({"ingressRate": 1, "egressBurst": 1, "shaping": {}});
        assert_eq!(sorted(object), Ok(Sorted::default()));
    }

    #[test]
    fn marked_keys_are_others_business() {
        let object = json!({"cni.dev/valid-attachments": [], "example.com": 1, "a/b": 2});
        assert_eq!(sorted(object), Ok(Sorted::default()));
    }
}
