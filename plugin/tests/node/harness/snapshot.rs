//! What a node has at one moment, to be compared with another.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::{Node, Space, wait_until};

/// Links, routes, rules, neighbours, nftables, pins, journal and leases, as lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeMap<&'static str, Vec<String>>);

impl Snapshot {
    pub(crate) fn take(node: &Node) -> Self {
        let space = node.space();
        wait_until("all links are as they will stay", || is_settled(space));
        let json = |words: &str| lines(space.json(words));
        let mut neighbours = space.json("ip -j neigh");
        neighbours.retain_mut(mask_neighbour);
        Self(BTreeMap::from([
            ("links", json("ip -j link")),
            ("addresses", json("ip -j address")),
            ("IPv4 routes", json("ip -j -4 route show table all")),
            ("IPv6 routes", json("ip -j -6 route show table all")),
            ("IPv4 rules", json("ip -j -4 rule")),
            ("IPv6 rules", json("ip -j -6 rule")),
            ("neighbours", lines(neighbours)),
            (
                "nftables",
                space
                    .exec("nft list ruleset")
                    .lines()
                    .map(mask_counters)
                    .collect(),
            ),
            ("pins", names(&node.run_dir().join("bpf/links"))),
            ("journal", names(&node.run_dir().join("attachments"))),
            ("leases", leases(&node.dir().join("ipam"))),
        ]))
    }

    /// Asserts that nothing has changed since; says what has.
    #[track_caller]
    pub(crate) fn assert_unchanged(&self, node: &Node) {
        let now = Self::take(node);
        let mut changes = Vec::new();
        for (what, before) in &self.0 {
            let after = &now.0[what];
            let gone = before.iter().filter(|line| !after.contains(line));
            changes.extend(gone.map(|line| format!("{what}: gone: {line}")));
            let new = after.iter().filter(|line| !before.contains(line));
            changes.extend(new.map(|line| format!("{what}: new: {line}")));
        }
        assert!(changes.is_empty(), "{changes:#?}");
    }
}

/// The kernel sets a link's operational state a little after it came up (link
/// watch), and looks for duplicates of its link-local address.
fn is_settled(space: &Space) -> Option<()> {
    let links = space.json("ip -j address");
    let is_up = |link: &&Value| link["flags"].as_array().unwrap().contains(&"UP".into());
    let is_settled = |link: &Value| {
        let mut addresses = link["addr_info"].as_array().unwrap().iter();
        let state = &link["operstate"];
        (state == "UP" || state == "UNKNOWN") && !addresses.any(|a| a["tentative"] == true)
    };
    let mut up = links.iter().filter(is_up);
    up.all(is_settled).then_some(())
}

/// Neighbours that the kernel learns itself come, age and go: only that a
/// permanent one is there counts.
fn mask_neighbour(neighbour: &mut Value) -> bool {
    let states = neighbour["state"].as_array().unwrap();
    states.iter().any(|state| state == "PERMANENT")
}

fn lines(rows: Vec<Value>) -> Vec<String> {
    let mut lines: Vec<_> = rows.into_iter().map(mask_passing).collect();
    lines.sort();
    lines
}

/// The lifetimes of addresses are counted down, and each daemon loads the
/// program anew.
fn mask_passing(mut row: Value) -> String {
    if let Some(addresses) = row["addr_info"].as_array_mut() {
        for address in addresses {
            let address = address.as_object_mut().unwrap();
            address.retain(|key, _| !key.ends_with("_life_time"));
        }
    }
    if let Some(xdp) = row.get_mut("xdp") {
        xdp["prog"]["id"].take();
        for attached in xdp["attached"].as_array_mut().unwrap() {
            attached["prog"]["id"].take();
        }
    }
    row.to_string()
}

/// Other plugins' rules count what passes.
fn mask_counters(rule: &str) -> String {
    let mut words: Vec<_> = rule.split(' ').collect();
    for number in 1..words.len() {
        if ["packets", "bytes"].contains(&words[number - 1]) {
            words[number] = "N";
        }
    }
    words.join(" ")
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return vec![];
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// Each reserved address with its owner. `last_reserved_ip.N`, where host-local
/// goes on searching, and its lock are no leases.
fn leases(ipam: &Path) -> Vec<String> {
    let mut leases = Vec::new();
    for network in names(ipam) {
        for file in names(&ipam.join(&network)) {
            if !file.starts_with("last_reserved_ip") && file != "lock" {
                let owner = fs::read_to_string(ipam.join(&network).join(&file)).unwrap();
                leases.push(format!("{network} {file}: {}", owner.replace("\r\n", " ")));
            }
        }
    }
    leases
}
