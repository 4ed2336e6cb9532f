//! Firewalls that stand between pods and the world: a FORWARD policy of drop,
//! as docker and ufw set it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::process::Command;

use serde_json::Value;
use sluice_dataplane::host_port::HOST_INTERFACE;
use sluice_dataplane::netfilter;

use super::Finding;

/// `has_firewall`: the plugin `firewall` is chained behind ours.
pub(super) fn check(has_firewall: bool) -> Vec<Finding> {
    let mut findings = match ruleset() {
        Ok(ruleset) => {
            let mut findings = vec![table()];
            findings.extend(forward_chains(&ruleset, has_firewall));
            findings
        }
        Err(why) => vec![Finding::problem(why)],
    };
    findings.extend(legacy_iptables(has_firewall));
    findings
}

fn table() -> Finding {
    match netfilter::try_out() {
        Ok(()) => Finding::ok("nft and the kernel can do hostPorts and ipMasq"),
        Err(error) => Finding::problem(format!(
            "hostPorts and ipMasq: {error}; are the kernel's modules nft_chain_nat, nft_masq and \
             nft_fib_inet there?"
        )),
    }
}

fn ruleset() -> Result<Value, String> {
    let output = Command::new("nft")
        .args(["-j", "list", "ruleset"])
        .output()
        .map_err(|error| {
            format!("run nft: {error}; hostPorts and ipMasq need it: install nftables (Debian: apt-get install nftables)")
        })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "list the nftables rules: nft said: {}",
            stderr.trim()
        ));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("list the nftables rules: nft's answer: {error}"))
}

/// A rule, as far as it concerns the host port.
struct Rule<'a> {
    /// It names the host port, and accepts, or has another chain decide.
    passes: bool,
    /// The chains that it may go on with.
    targets: Vec<&'a str>,
}

/// The chains of one table.
type Chains<'a> = HashMap<&'a str, Vec<Rule<'a>>>;

/// Whether a rule for the host port is in this chain or in one that it leads to.
fn has_rule<'a>(chains: &Chains<'a>, first: &'a str) -> bool {
    let mut seen = HashSet::new();
    let mut next = vec![first];
    while let Some(chain) = next.pop() {
        if !seen.insert(chain) {
            continue;
        }
        for rule in chains.get(chain).into_iter().flatten() {
            if rule.passes {
                return true;
            }
            next.extend(&rule.targets);
        }
    }
    false
}

/// Whether an interface's name, or the beginning of several, is the host port's.
fn is_host_port(name: &str, wildcard: char) -> bool {
    match name.strip_suffix(wildcard) {
        Some(prefix) => HOST_INTERFACE.starts_with(prefix),
        None => name == HOST_INTERFACE,
    }
}

/// A chain on the forward hook that drops by policy stops what pods exchange
/// with the world, unless a rule in it accepts the host port's traffic. An
/// accept in another table's chain does not help.
fn forward_chains(ruleset: &Value, has_firewall: bool) -> Vec<Finding> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    objects()
        .map(|object| &object["chain"])
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .map(|chain| {
            let mut chains = Chains::new();
            for rule in objects().map(|object| &object["rule"]) {
                if rule["family"] == chain["family"] && rule["table"] == chain["table"] {
                    let of = chains.entry(word(rule, "chain")).or_default();
                    of.push(nft_rule(rule));
                }
            }
            let path = ["family", "table", "name"].map(|key| word(chain, key));
            let is_iptables = matches!(path, ["ip" | "ip6", "filter", "FORWARD"]);
            let path = path.join(" ");
            if has_rule(&chains, word(chain, "name")) {
                Finding::ok(format!(
                    "the nftables chain {path} drops by policy, but has a rule for {HOST_INTERFACE}"
                ))
            } else if has_firewall && is_iptables {
                Finding::note(format!(
                    "the nftables chain {path} drops by policy; the plugin firewall lets pass what \
                     pods ask the world for; should the world ask for their hostPorts: \
                     nft insert rule {path} oifname {HOST_INTERFACE} accept"
                ))
            } else {
                Finding::problem(format!(
                    "the nftables chain {path} drops what pods exchange with the world; let it \
                     pass: nft insert rule {path} iifname {HOST_INTERFACE} accept; \
                     nft insert rule {path} oifname {HOST_INTERFACE} accept"
                ))
            }
        })
        .collect()
}

fn word<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

/// As libnftables-json(5) has it.
fn nft_rule(rule: &Value) -> Rule<'_> {
    let names = items(&rule["expr"]).any(|statement| {
        let test = &statement["match"];
        test["op"] != "!=" && holds_host_port(&test["right"])
    });
    let mut passes = false;
    let mut targets = Vec::new();
    for statement in items(&rule["expr"]) {
        let of_maps = items(&statement["vmap"]["data"]["set"]);
        let of_maps = of_maps.map(|entry| (holds_host_port(&entry[0]), &entry[1]));
        for (names, verdict) in of_maps.chain([(names, statement)]) {
            let target = ["jump", "goto"].map(|kind| verdict[kind]["target"].as_str());
            let target = target.into_iter().flatten().next();
            passes |= names && (target.is_some() || verdict.get("accept").is_some());
            targets.extend(target);
        }
    }
    Rule { passes, targets }
}

/// Of a name, or of a set of them.
fn holds_host_port(names: &Value) -> bool {
    let is_it = |name: &Value| name.as_str().is_some_and(|name| is_host_port(name, '*'));
    is_it(names) || items(&names["set"]).any(is_it)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Rules of the old iptables are not in nft's list.
fn legacy_iptables(has_firewall: bool) -> Option<Finding> {
    let tables = fs::read_to_string("/proc/thread-self/net/ip_tables_names").ok()?;
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let Ok(rules) = Command::new("iptables-legacy").arg("-S").output() else {
        return Some(Finding::note(
            "legacy iptables has a filter table and iptables-legacy is not installed: \
             see to it that its FORWARD chain does not drop",
        ));
    };
    legacy_forward(&String::from_utf8_lossy(&rules.stdout), has_firewall)
}

fn legacy_forward(rules: &str, has_firewall: bool) -> Option<Finding> {
    let rules: Vec<Vec<&str>> = rules
        .lines()
        .map(|rule| rule.split_whitespace().collect())
        .collect();
    if !rules
        .iter()
        .any(|rule| rule[..] == ["-P", "FORWARD", "DROP"])
    {
        return None;
    }
    let made: HashSet<&str> = rules
        .iter()
        .filter_map(|rule| match rule[..] {
            ["-N", chain] => Some(chain),
            _ => None,
        })
        .collect();
    let mut chains = Chains::new();
    for rule in &rules {
        if let ["-A", chain, ..] = rule[..] {
            let of = chains.entry(chain).or_default();
            of.push(legacy_rule(rule, &made));
        }
    }
    if has_rule(&chains, "FORWARD") {
        return None;
    }
    Some(if has_firewall {
        Finding::note(format!(
            "legacy iptables drops by policy in FORWARD; the plugin firewall, if it uses these, \
             lets pass what pods ask the world for; should the world ask for their hostPorts: \
             iptables-legacy -I FORWARD -o {HOST_INTERFACE} -j ACCEPT"
        ))
    } else {
        Finding::problem(format!(
            "legacy iptables drops what pods exchange with the world; let it pass: \
             iptables-legacy -I FORWARD -i {HOST_INTERFACE} -j ACCEPT; \
             iptables-legacy -I FORWARD -o {HOST_INTERFACE} -j ACCEPT"
        ))
    })
}

/// As `iptables -S` prints it; `made` are the chains that are not built in.
fn legacy_rule<'a>(rule: &[&'a str], made: &HashSet<&str>) -> Rule<'a> {
    let names = rule.windows(3).any(|words| match words {
        ["!", ..] => false,
        [_, "-i" | "-o", name] => is_host_port(name, '+'),
        _ => false,
    });
    let target = rule.windows(2).find_map(|words| match words {
        ["-j" | "-g", target] => Some(*target),
        _ => None,
    });
    let accepts = target.is_some_and(|target| target == "ACCEPT" || made.contains(target));
    Rule {
        passes: names && accepts,
        targets: target.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_config::Level;
    use serde_json::json;

    fn docker(policy: &str, rules: &[Value]) -> Value {
        let mut objects = vec![
            json!({"metainfo": {"version": "1.0.6"}}),
            json!({"chain": {"family": "ip", "table": "filter", "name": "INPUT",
                             "hook": "input", "policy": "drop"}}),
            json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
                             "hook": "forward", "policy": policy}}),
        ];
        objects.extend_from_slice(rules);
        json!({"nftables": objects})
    }

    fn accept(interface: &str, table: &str) -> Value {
        json!({"rule": {"family": "ip", "table": table, "chain": "FORWARD", "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": interface}},
            {"accept": null}]}})
    }

    const DOCKER: &str = include_str!("netfilter/docker.json");
    const UFW: &str = include_str!("netfilter/ufw.json");
    const SETS: &str = include_str!("netfilter/sets.json");

    /// What nft said, without the rules whose text holds one of these.
    fn without(listing: &str, words: &[&str]) -> Value {
        let mut listing: Value = serde_json::from_str(listing).unwrap();
        let objects = listing["nftables"].as_array_mut().unwrap();
        objects.retain(|object| {
            let text = object["rule"]["expr"].to_string();
            !words.iter().any(|word| text.contains(word))
        });
        listing
    }

    fn level(ruleset: &Value, has_firewall: bool) -> Level {
        let findings = forward_chains(ruleset, has_firewall);
        assert_eq!(findings.len(), 1, "{findings:?}");
        findings[0].level
    }

    #[test]
    fn rules_of_chains_that_are_led_to_count() {
        for (listing, own) in [(DOCKER, "sluice0"), (UFW, "slui*")] {
            assert_eq!(level(&without(listing, &[]), false), Level::Ok);
            assert_eq!(level(&without(listing, &[own]), false), Level::Problem);
        }
        let led_nowhere = without(DOCKER, &["\"DOCKER-USER\""]);
        assert_eq!(level(&led_nowhere, false), Level::Problem);
    }

    #[test]
    fn sets_and_maps_of_names_count_and_what_excludes_or_rejects_does_not() {
        let set = r#"["lo","sluice0"]"#;
        let wildcard = r#""sl*""#;
        for others in [
            [wildcard, "vmap"], // leave the set
            [set, "vmap"],
            [set, wildcard],
        ] {
            assert_eq!(level(&without(SETS, &others), false), Level::Ok);
        }
        let rest = without(SETS, &[set, wildcard, "vmap"]);
        assert!(rest.to_string().contains("sluice0"), "{rest}");
        assert_eq!(level(&rest, false), Level::Problem);
    }

    #[test]
    fn chains_that_lead_to_each_other_end() {
        let jump = |chain, target| {
            json!({"rule": {"family": "ip", "table": "filter", "chain": chain,
                            "expr": [{"jump": {"target": target}}]}})
        };
        let ruleset = docker(
            "drop",
            &[jump("FORWARD", "a"), jump("a", "b"), jump("b", "a")],
        );
        assert_eq!(level(&ruleset, false), Level::Problem);
    }

    #[test]
    fn the_plugin_firewall_opens_iptables_chain() {
        assert_eq!(level(&docker("drop", &[]), true), Level::Note);
        let another = without(SETS, &["sl"]);
        assert_eq!(level(&another, true), Level::Problem);
    }

    #[test]
    fn a_policy_of_drop_is_a_problem_with_its_cure() {
        let findings = forward_chains(&docker("drop", &[accept("docker0", "filter")]), false);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Problem);
        assert!(
            findings[0]
                .text
                .contains("nft insert rule ip filter FORWARD iifname sluice0 accept"),
            "{findings:?}"
        );
    }

    #[test]
    fn an_accept_counts_only_in_the_chain_that_drops() {
        let of = |rules: &[Value]| level(&docker("drop", rules), false);
        assert_eq!(of(&[accept("sluice0", "filter")]), Level::Ok);
        assert_eq!(of(&[accept("sluice0", "other")]), Level::Problem);
    }

    #[test]
    fn a_policy_of_accept_is_not_worth_a_line() {
        assert_eq!(forward_chains(&docker("accept", &[]), false), []);
        assert_eq!(forward_chains(&json!({"nftables": []}), false), []);
    }

    #[test]
    fn legacy_rules_are_read_too() {
        for (rules, expected) in [
            ("-P FORWARD ACCEPT", None),
            ("-P FORWARD DROP", Some(Level::Problem)),
            (
                "-P FORWARD DROP\n-A FORWARD -i docker0 -j ACCEPT",
                Some(Level::Problem),
            ),
            ("-P FORWARD DROP\n-A FORWARD -i sluice0 -j ACCEPT", None),
            ("-P FORWARD DROP\n-A FORWARD -o slui+ -j ACCEPT", None),
            (
                "-P FORWARD DROP\n-A FORWARD ! -i sluice0 -j ACCEPT",
                Some(Level::Problem),
            ),
            (
                "-P FORWARD DROP\n-A FORWARD -i sluice0 -j DROP",
                Some(Level::Problem),
            ),
            (
                "-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n\
                 -A DOCKER-USER -i sluice0 -j ACCEPT",
                None,
            ),
        ] {
            let found = legacy_forward(rules, false).map(|finding| finding.level);
            assert_eq!(found, expected, "{rules}");
        }
        let found = legacy_forward("-P FORWARD DROP", true).unwrap();
        assert_eq!(found.level, Level::Note);
    }
}
