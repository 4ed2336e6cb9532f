//! Delegation to an IPAM plugin that does not know the network's version.

use serde_json::{Value, json};

use crate::node::Node;
use crate::space::Space;

/// A plugin that knows two old versions, and notes what it is asked.
const OLD: &str = r#"
    config=$(cat)
    version=$(echo "$config" | sed 's/.*"cniVersion":"\([^"]*\)".*/\1/')
    echo "$CNI_COMMAND $version" >> LOG
    echo "$config" > CONFIG.$CNI_COMMAND
    case $CNI_COMMAND,$version in
        VERSION,*) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "9.0.0"]}';;
        *,0.4.0) [ $CNI_COMMAND != ADD ] ||
            echo '{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.77.0.11/24"}]}';;
        *) echo '{"code": 1, "msg": "incompatible CNI versions"}'; exit 1;;
    esac"#;

#[test]
fn an_older_plugin_is_asked_in_its_highest_version() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let log = node.file("log");
    let config = node.file("config");
    let script = OLD
        .replace("LOG", log.to_str().unwrap())
        .replace("CONFIG", config.to_str().unwrap());
    let mut network = node.stub_ipam(&script);
    for version in ["1.0.0", "1.1.0"] {
        network["cniVersion"] = version.into();
        // Unquoted by the stub's sed: only the first version in the object.
        let result = node.add(&pod, &network).ok();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0].get("version"), None);
        assert_eq!(result["ips"][0]["address"], "10.77.0.11/24");
        node.check(&pod, &network, &result).ok();
        node.del(&network).ok();
        node.assert_clean(Some(&pod));
        let calls = std::fs::read_to_string(&log).unwrap();
        let expected: String = ["ADD", "CHECK", "DEL"]
            .map(|verb| format!("{verb} {version}\nVERSION {version}\n{verb} 0.4.0\n"))
            .concat();
        assert_eq!(calls, expected);
        std::fs::remove_file(&log).unwrap();
    }
    let checked = std::fs::read(config.with_extension("CHECK")).unwrap();
    let checked: Value = serde_json::from_slice(&checked).unwrap();
    assert_eq!(checked["prevResult"]["cniVersion"], "0.4.0");
    assert_eq!(checked["prevResult"]["ips"][0]["version"], "4");
}

#[test]
fn a_plugin_with_no_version_in_common_is_an_error() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let network = node.stub_ipam(
        "if [ $CNI_COMMAND = VERSION ]; then
            echo '{\"supportedVersions\": [\"9.0.0\"]}'
        else
            echo '{\"code\": 1, \"msg\": \"incompatible CNI versions\"}'; exit 1
        fi",
    );
    node.add(&pod, &network)
        .fails(1, "ADD by IPAM plugin stub: incompatible");
    node.assert_clean(Some(&pod));
}

#[test]
fn debians_host_local_serves_the_latest_version() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let mut network = node.network();
    network["cniVersion"] = "1.1.0".into();
    let result = node.add(&pod, &network).ok();
    assert_eq!(result["cniVersion"], "1.1.0");
    assert_eq!(result["ips"][1]["address"], json!("fd77::2/64"));
    node.check(&pod, &network, &result).ok();
    node.sluice("STATUS", &[], &network).ok();
    node.gc(&network, &["c1"]).ok();
    node.del(&network).ok();
    node.assert_clean(Some(&pod));
}
