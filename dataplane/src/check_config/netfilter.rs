//! Firewalls that stand between pods and the world: a FORWARD policy of drop,
//! as docker and ufw set it.

use std::fs;
use std::process::Command;

use serde_json::Value;
use sluice_dataplane::host_port::HOST_INTERFACE;
use sluice_dataplane::netfilter;

use super::Finding;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = match ruleset() {
        Ok(ruleset) => {
            let mut findings = vec![table()];
            findings.extend(forward_chains(&ruleset));
            findings
        }
        Err(why) => vec![Finding::problem(why)],
    };
    findings.extend(legacy_iptables());
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

/// A chain on the forward hook that drops by policy stops what pods exchange
/// with the world, unless a rule in it accepts the host port's traffic. An
/// accept in another table's chain does not help.
fn forward_chains(ruleset: &Value) -> Vec<Finding> {
    let objects: Vec<&Value> = ruleset["nftables"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    objects
        .iter()
        .map(|object| &object["chain"])
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .map(|chain| {
            let rules = objects.iter().map(|object| &object["rule"]);
            if rules.filter(|rule| is_in(rule, chain)).any(names_host_port) {
                Finding::ok(format!(
                    "the nftables chain {} drops by policy, but has a rule for {HOST_INTERFACE}",
                    path(chain)
                ))
            } else {
                Finding::problem(format!(
                    "the nftables chain {0} drops what pods exchange with the world; let it pass: \
                     nft insert rule {0} iifname {HOST_INTERFACE} accept; \
                     nft insert rule {0} oifname {HOST_INTERFACE} accept",
                    path(chain)
                ))
            }
        })
        .collect()
}

fn path(chain: &Value) -> String {
    let word = |key: &str| chain[key].as_str().unwrap_or_default();
    format!("{} {} {}", word("family"), word("table"), word("name"))
}

fn is_in(rule: &Value, chain: &Value) -> bool {
    rule["family"] == chain["family"]
        && rule["table"] == chain["table"]
        && rule["chain"] == chain["name"]
}

fn names_host_port(rule: &Value) -> bool {
    rule["expr"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|expression| expression["match"]["right"] == HOST_INTERFACE)
}

/// Rules of the old iptables are not in nft's list.
fn legacy_iptables() -> Option<Finding> {
    let tables = fs::read_to_string("/proc/thread-self/net/ip_tables_names").ok()?;
    if !tables.lines().any(|table| table == "filter") {
        return None;
    }
    let rules = Command::new("iptables-legacy")
        .args(["-S", "FORWARD"])
        .output();
    let Ok(rules) = rules else {
        return Some(Finding::note(
            "legacy iptables has a filter table and iptables-legacy is not installed: \
             see to it that its FORWARD chain does not drop",
        ));
    };
    legacy_forward(&String::from_utf8_lossy(&rules.stdout))
}

fn legacy_forward(rules: &str) -> Option<Finding> {
    let drops = rules.lines().any(|rule| rule == "-P FORWARD DROP");
    if !drops || rules.contains(HOST_INTERFACE) {
        return None;
    }
    Some(Finding::problem(format!(
        "legacy iptables drops what pods exchange with the world; let it pass: \
         iptables-legacy -I FORWARD -i {HOST_INTERFACE} -j ACCEPT; \
         iptables-legacy -I FORWARD -o {HOST_INTERFACE} -j ACCEPT"
    )))
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

    #[test]
    fn a_policy_of_drop_is_a_problem_with_its_cure() {
        let findings = forward_chains(&docker("drop", &[accept("docker0", "filter")]));
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
        let level = |rules: &[Value]| forward_chains(&docker("drop", rules))[0].level;
        assert_eq!(level(&[accept("sluice0", "filter")]), Level::Ok);
        assert_eq!(level(&[accept("sluice0", "other")]), Level::Problem);
    }

    #[test]
    fn a_policy_of_accept_is_not_worth_a_line() {
        assert_eq!(forward_chains(&docker("accept", &[])), []);
        assert_eq!(forward_chains(&json!({"nftables": []})), []);
    }

    #[test]
    fn legacy_rules_are_read_too() {
        assert!(legacy_forward("-P FORWARD DROP\n-A FORWARD -i docker0 -j ACCEPT").is_some());
        assert!(legacy_forward("-P FORWARD DROP\n-A FORWARD -i sluice0 -j ACCEPT").is_none());
        assert!(legacy_forward("-P FORWARD ACCEPT").is_none());
    }
}
