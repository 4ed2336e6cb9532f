//! Each verb in each version with each failure: the specification's code, a
//! message that names what is wrong, and nothing changed.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_control::ErrorCode;

use crate::node::{Node, VERSIONS};
use crate::space::Space;

/// The verbs, and the version that each came with.
const VERBS: [(&str, &str); 5] = [
    ("ADD", "0.3.0"),
    ("DEL", "0.3.0"),
    ("CHECK", "0.4.0"),
    ("GC", "1.1.0"),
    ("STATUS", "1.1.0"),
];

/// One failure and what each verb makes of it.
struct Row {
    /// As plugin/README.md calls it.
    name: &'static str,
    spoil: fn(&mut Call),
    needle: &'static str,
    /// For each of [`VERBS`]; 0 is a success.
    codes: [u32; 5],
    /// Whether it is noticed before a verb too new for the version is.
    early: bool,
}

const fn row(
    name: &'static str,
    spoil: fn(&mut Call),
    needle: &'static str,
    codes: [u32; 5],
) -> Row {
    Row {
        name,
        spoil,
        needle,
        codes,
        early: false,
    }
}

const fn early(
    name: &'static str,
    spoil: fn(&mut Call),
    needle: &'static str,
    codes: [u32; 5],
) -> Row {
    Row {
        early: true,
        ..row(name, spoil, needle, codes)
    }
}

#[rustfmt::skip]
const ROWS: [Row; 61] = [
    //                                                                     ADD DEL CHECK GC STATUS
    row("none", |_| {}, "",                                               [0, 0, 0, 0, 0]),
    // What is on stdin.
    early("nothing on stdin", |c| c.stdin = Some(""), "stdin",            [6, 6, 6, 6, 6]),
    early("half an object on stdin", |c| c.stdin = Some("{"), "stdin",    [6, 6, 6, 6, 6]),
    early("a list on stdin", |c| c.stdin = Some("[]"), "not a JSON object",
                                                                          [6, 6, 6, 6, 6]),
    early("`cniVersion` unknown", |c| c.set("cniVersion", "9.0.0"), "supported are 0.3.0",
                                                                          [1, 1, 1, 1, 1]),
    early("`cniVersion` a path", |c| c.set("cniVersion", "../1.0.0"), "supported are 0.3.0",
                                                                          [1, 1, 1, 1, 1]),
    early("`cniVersion` a number", |c| c.set("cniVersion", 1), "supported are 0.3.0",
                                                                          [1, 1, 1, 1, 1]),
    early("`name` a path", |c| c.set("name", "../etc"), "../etc",         [7, 7, 7, 7, 7]),
    early("`name` a number", |c| c.set("name", 7), "name",                [7, 7, 7, 7, 7]),
    row("`mtu` a text", |c| c.set("mtu", "1500"), "invalid type",         [7, 0, 0, 0, 0]),
    row("`mtu` too small", |c| c.set("mtu", 1279), "from 1280",           [7, 0, 0, 0, 0]),
    row("`localMtu` too large", |c| c.set("localMtu", 65_001), "at most 65000",
                                                                          [7, 0, 0, 0, 0]),
    row("a key misspelt", |c| c.set("localMTU", 9000), "did you mean localMtu?",
                                                                          [7, 0, 0, 0, 0]),
    row("`dns` with wrong types", |c| c.set("dns", json!({"search": "a"})), "invalid type",
                                                                          [7, 0, 0, 0, 0]),
    row("`logFile` a relative path", |c| c.set("logFile", "../sluice.log"), "logFile",
                                                                          [7, 0, 0, 0, 0]),
    row("`logLevel` unknown", |c| c.set("logLevel", "loud"), "unknown variant",
                                                                          [7, 0, 0, 0, 0]),
    row("`vlan`", |c| c.set("vlan", 100), "VLAN",                         [7, 0, 0, 0, 0]),
    row("`promiscMode`", |c| c.set("promiscMode", true), "promiscMode",   [7, 0, 0, 0, 0]),
    row("`runtimeConfig.mac` a number", |c| c.runtime("mac", json!(7)), "runtimeConfig",
                                                                          [7, 0, 0, 0, 0]),
    row("`runtimeConfig.mac` multicast", |c| c.runtime("mac", json!("01:00:00:00:00:01")),
        "runtimeConfig.mac",                                              [7, 0, 0, 0, 0]),
    row("`runtimeConfig.ips` out of range", |c| c.runtime("ips", json!(["10.99.0.9"])), "10.99.0.9",
                                                                          [999, 0, 0, 0, 0]),
    row("`args.cni.mac` not one", |c| c.args("mac", json!("02:SLUIC")), "args.cni.mac",
                                                                          [7, 0, 0, 0, 0]),
    row("`args.cni.labels` a number", |c| c.args("labels", json!(7)), "args",
                                                                          [7, 0, 0, 0, 0]),
    // Limits.
    row("`ingressRate` below 1 kbit/s", |c| c.set("ingressRate", 999), "ingressRate is 999",
                                                                          [7, 0, 0, 0, 0]),
    row("`egressRate` above 1 Pbit/s", |c| c.set("egressRate", 1_000_000_000_000_001_u64),
        "egressRate is 1000000000000001",                                 [7, 0, 0, 0, 0]),
    row("`ingressRate` negative", |c| c.set("ingressRate", -1), "whole number",
                                                                          [7, 0, 0, 0, 0]),
    row("`egressRate` a text", |c| c.set("egressRate", "10M"), "egressRate is \"10M\"",
                                                                          [7, 0, 0, 0, 0]),
    row("`ingressBurst` without a rate", |c| c.set("ingressBurst", 8000), "needs the rate",
                                                                          [7, 0, 0, 0, 0]),
    row("`runtimeConfig.bandwidth` a number", |c| c.runtime("bandwidth", json!(7)), "runtimeConfig",
                                                                          [7, 0, 0, 0, 0]),
    row("`runtimeConfig.bandwidth` out of range",
        |c| c.runtime("bandwidth", json!({"EgressRate": 10})), "egressRate is 10:",
                                                                          [7, 0, 0, 0, 0]),
    row("`shaping` with an unknown key", |c| c.set("shaping", json!({"queue": 5})), "unknown field",
                                                                          [7, 0, 0, 0, 0]),
    row("`shaping.queueMillis` out of range", |c| c.set("shaping", json!({"queueMillis": 1001})),
        "from 1 to 1000",                                                 [7, 0, 0, 0, 0]),
    row("`shaping.shapedSubnets` no subnet",
        |c| c.set("shaping", json!({"shapedSubnets": ["10.0.0"]})), "\"10.0.0\"",
                                                                          [7, 0, 0, 0, 0]),
    row("`shapedSubnets` and `unshapedSubnets`",
        |c| c.set("shaping", json!({"shapedSubnets": ["::/0"], "unshapedSubnets": ["::/0"]})),
        "one of the two",                                                 [7, 0, 0, 0, 0]),
    row("a key with a slash", |c| c.set("cni.dev/anything", 1), "",       [0, 0, 0, 0, 0]),
    // Variables.
    early("`CNI_CONTAINERID` not set", |c| c.unset("CNI_CONTAINERID"), "CNI_CONTAINERID not set",
                                                                          [4, 4, 4, 0, 0]),
    early("`CNI_CONTAINERID` a path", |c| c.env("CNI_CONTAINERID", "../c2"), "CNI_CONTAINERID",
                                                                          [4, 4, 4, 0, 0]),
    early("`CNI_IFNAME` not set", |c| c.unset("CNI_IFNAME"), "CNI_IFNAME not set",
                                                                          [4, 4, 4, 0, 0]),
    early("`CNI_IFNAME` a path", |c| c.env("CNI_IFNAME", "../eth0"), "CNI_IFNAME",
                                                                          [4, 4, 4, 0, 0]),
    early("`CNI_IFNAME` too long", |c| c.env("CNI_IFNAME", "sixteen-letters-"), "CNI_IFNAME",
                                                                          [4, 4, 4, 0, 0]),
    early("`CNI_NETNS` not set", |c| c.unset("CNI_NETNS"), "CNI_NETNS not set",
                                                                          [4, 0, 4, 0, 0]),
    row("`CNI_NETNS` vanished", |c| c.env("CNI_NETNS", "/run/netns/sluice-none"), "",
                                                                          [4, 0, 4, 0, 0]),
    row("`CNI_NETNS` no namespace", |c| c.env("CNI_NETNS", "/etc/hostname"), "",
                                                                          [4, 0, 4, 0, 0]),
    row("`CNI_NETNS` the host's", |c| { let host = c.host.clone(); c.env("CNI_NETNS", &host) }, "",
                                                                          [4, 0, 4, 0, 0]),
    row("`CNI_PATH` not set", |c| c.unset("CNI_PATH"), "CNI_PATH",        [4, 4, 4, 4, 4]),
    early("`CNI_ARGS` no pairs", |c| c.env("CNI_ARGS", "IgnoreUnknown"), "CNI_ARGS",
                                                                          [4, 0, 4, 0, 0]),
    row("`MAC` in `CNI_ARGS` the gateway's", |c| c.env("CNI_ARGS", "MAC=02:53:4c:55:49:43"),
        "MAC in CNI_ARGS",                                                [4, 0, 0, 0, 0]),
    row("`K8S_POD_NAME` with a line break", |c| c.env("CNI_ARGS", "K8S_POD_NAME=a\nb"),
        "K8S_POD_NAME",                                                   [4, 0, 0, 0, 0]),
    // The pod.
    row("the interface exists", |c| { let pod = c.there.clone(); c.env("CNI_NETNS", &pod) },
        "left alone",                                                     [103, 0, 0, 0, 0]),
    // IPAM.
    row("no `ipam.type`", |c| c.set("ipam", json!({})), "ipam.type",      [7, 0, 7, 0, 7]),
    row("`ipam.type` a path", |c| c.ipam("../../bin/sh"), "plain name",   [7, 7, 7, 7, 7]),
    row("IPAM plugin missing", |c| c.ipam("nosuch"), "install it",        [102, 102, 102, 102, 50]),
    row("IPAM exhausted: its code 999", |c| c.ipam("full"), "no room",    [999, 999, 999, 999, 50]),
    row("IPAM fails: its code 5", |c| c.ipam("broken"), "disk full",      [5, 5, 5, 5, 5]),
    row("IPAM answers nonsense", |c| c.ipam("nonsense"), "ended with",    [102, 102, 102, 102, 50]),
    row("IPAM crashes", |c| c.ipam("crash"), "signal",                    [102, 102, 102, 102, 50]),
    row("IPAM slow", |c| c.ipam("slow"), "",                              [0, 0, 0, 0, 0]),
    // The daemon.
    row("the daemon down", |c| c.set("dataplane", json!({"runDir": "/nonexistent"})),
        "is sluiced running?",                                            [11, 0, 11, 11, 51]),
    row("all ports taken", |c| c.full = true, "",                         [11, 0, 0, 0, 50]),
    row("the daemon busy", |c| c.refusal = Some(ErrorCode::Busy), "",     [11, 0, 0, 0, 0]),
    row("the daemon fails, as by a full disk", |c| c.refusal = Some(ErrorCode::Failed), "",
                                                                          [101, 0, 0, 0, 0]),
];

/// IPAM plugins that fail, each in its way, and one that takes its time.
const IPAM: [(&str, &str); 5] = [
    (
        "slow",
        "sleep 1; echo '{\"ips\": [{\"address\": \"10.77.0.99/24\"}]}'",
    ),
    (
        "full",
        "echo '{\"code\": 999, \"msg\": \"no room\"}'; exit 1",
    ),
    (
        "broken",
        "echo '{\"code\": 5, \"msg\": \"disk full\"}'; exit 1",
    ),
    ("nonsense", "echo nonsense; exit 1"),
    ("crash", "kill -9 $$"),
];

/// One call of the plugin, to be spoilt.
struct Call {
    env: BTreeMap<&'static str, String>,
    network: Value,
    stdin: Option<&'static str>,
    /// Whether the node has no free port.
    full: bool,
    /// How the daemon refuses every Attach.
    refusal: Option<ErrorCode>,
    host: String,
    /// A pod that has its interface already.
    there: String,
}

impl Call {
    fn env(&mut self, name: &'static str, value: &str) {
        self.env.insert(name, value.into());
    }

    fn unset(&mut self, name: &str) {
        self.env.remove(name);
    }

    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.network[key] = value.into();
    }

    fn runtime(&mut self, capability: &str, value: Value) {
        self.network["runtimeConfig"][capability] = value;
    }

    fn args(&mut self, key: &str, value: Value) {
        self.network["args"]["cni"][key] = value;
    }

    fn ipam(&mut self, name: &str) {
        self.network["ipam"] = json!({"type": name});
    }
}

/// A node with one pod attached. ADD and DEL are tried with another pod, the
/// other verbs with the one that is there.
struct Bench {
    node: Node,
    network: Value,
    there: Space,
    result: Value,
    other: Space,
}

impl Bench {
    fn new(version: &str) -> Self {
        let (node, there) = (Node::new(), Space::new("pod"));
        for (name, script) in IPAM {
            node.script(name, script);
        }
        let mut network = node.network();
        network["cniVersion"] = version.into();
        let result = node.add(&there, &network).ok();
        let other = Space::new("pod");
        Self {
            node,
            network,
            there,
            result,
            other,
        }
    }

    fn call(&self, verb: &str) -> Call {
        let (id, pod) = match verb {
            "ADD" | "DEL" => ("c2", &self.other),
            _ => ("c1", &self.there),
        };
        let mut network = self.network.clone();
        match verb {
            "CHECK" => network["prevResult"] = self.result.clone(),
            "GC" => {
                let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
                network["cni.dev/valid-attachments"] = valid;
            }
            _ => {}
        }
        let env = [
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", id.into()),
            ("CNI_NETNS", pod.path()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_PATH", self.node.cni_path()),
        ];
        Call {
            env: env.into(),
            network,
            stdin: None,
            full: false,
            refusal: None,
            host: self.node.host.path(),
            there: self.there.path(),
        }
    }

    /// Makes the call and returns code and message; 0 for a success.
    fn make(&self, call: &Call) -> (u64, String) {
        let max_ports = if call.full { 1 } else { 256 };
        let daemon = self.node.daemon();
        daemon.change_facts(|facts| facts.settings.max_ports = max_ports);
        daemon.refuse_attach(call.refusal);
        let env: Vec<_> = call.env.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let stdin = match call.stdin {
            Some(text) => text.to_owned(),
            None => call.network.to_string(),
        };
        let output = self.node.run(&env, stdin.as_bytes());
        if output.status.success() {
            return (0, String::new());
        }
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(answer["cniVersion"].is_string(), "{answer}");
        let message = answer["msg"].as_str().unwrap().to_owned();
        (answer["code"].as_u64().unwrap(), message)
    }

    /// Asserts that the one pod is attached and nothing else is there.
    fn assert_untouched(&self, about: &str) {
        assert_eq!(self.node.daemon().attached().len(), 1, "{about}");
        assert_eq!(self.node.host.links().len(), 2, "{about}");
        assert_eq!(self.there.links(), ["lo", "eth0"], "{about}");
        assert_eq!(self.other.links(), ["lo"], "{about}");
        assert_eq!(self.node.reserved(), ["10.77.0.2", "fd77::2"], "{about}");
    }
}

fn each_verb_with_each_failure(version: &str) {
    let bench = Bench::new(version);
    for row in &ROWS {
        for ((verb, since), code) in VERBS.into_iter().zip(row.codes) {
            let about = format!("{}: {verb} in {version}", row.name);
            let mut call = bench.call(verb);
            (row.spoil)(&mut call);
            let is_newer = since > version && !(row.early && code != 0);
            let (code, needle) = match is_newer {
                true => (1, "exists since"),
                false => (code, row.needle),
            };
            let (answer, message) = bench.make(&call);
            assert_eq!(answer, u64::from(code), "{about}: {message}");
            assert!(code == 0 || message.contains(needle), "{about}: {message}");
            if code == 0 && verb == "ADD" {
                let del = bench.call("DEL");
                assert_eq!(bench.make(&del), (0, String::new()), "{about}");
            }
            bench.assert_untouched(&about);
        }
    }
    bench.node.del(&bench.network).ok();
    bench.node.assert_clean(Some(&bench.there));
}

#[test]
fn the_table_in_0_3_0() {
    each_verb_with_each_failure(VERSIONS[0]);
}

#[test]
fn the_table_in_0_3_1() {
    each_verb_with_each_failure(VERSIONS[1]);
}

#[test]
fn the_table_in_0_4_0() {
    each_verb_with_each_failure(VERSIONS[2]);
}

#[test]
fn the_table_in_1_0_0() {
    each_verb_with_each_failure(VERSIONS[3]);
}

#[test]
fn the_table_in_1_1_0() {
    each_verb_with_each_failure(VERSIONS[4]);
}

#[test]
fn the_readme_has_this_table() {
    let readme = include_str!("../../README.md");
    for Row { name, codes, .. } in &ROWS {
        let codes = codes.map(|code| match code {
            0 => "–".to_owned(),
            code => code.to_string(),
        });
        let line = format!("| {name} | {} |", codes.join(" | "));
        assert!(readme.contains(&line), "plugin/README.md lacks:\n{line}");
    }
}
