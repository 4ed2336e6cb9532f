//! Masquerading of what pods send beyond the node (`ipMasq`): one nftables
//! table of our own, replaced as a whole in one transaction.
//!
//! Only when the set of masqueraded subnets changes: a pod more in a subnet
//! costs nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use crate::host_port::HOST_INTERFACE;

/// The table's name; its family is `inet`.
pub const TABLE: &str = "sluice";

/// How long nft may take; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the rules are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    /// There is no nft program.
    #[error(
        "run nft to masquerade what pods send: {0}; install nftables (Debian: apt-get install nftables)"
    )]
    Missing(io::Error),
    /// The nft program could not be run, or did not end.
    #[error("run nft to masquerade what pods send: {0}")]
    Run(io::Error),
    /// The nft program, or the kernel behind it, refused.
    #[error("replace the nftables table inet {TABLE}: nft answered {status}: {stderr}")]
    Refused {
        /// nft's exit status.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
}

/// The masqueraded subnets, each with the number of pod addresses in it. The
/// table stays in the kernel whatever becomes of this: an earlier daemon's
/// until [`Masquerade::apply`], ours for the next one.
#[derive(Debug, Default)]
pub struct Masquerade {
    subnets: BTreeMap<IpNet, usize>,
}

impl Masquerade {
    /// Counts the address of a pod that an earlier daemon served; its rules
    /// come with [`Masquerade::apply`].
    pub fn expect(&mut self, address: IpNet) {
        *self.subnets.entry(address.trunc()).or_default() += 1;
    }

    /// Makes the table what it should be, in one transaction and in place of
    /// the one that is there; without subnets there is none.
    ///
    /// # Errors
    /// nft failed; then nothing has changed.
    pub fn apply(&self) -> Result<(), MasqueradeError> {
        nft(&ruleset(self.subnets.keys()))
    }

    /// Counts a pod's address, and installs its subnet's rules with the first.
    ///
    /// # Errors
    /// nft failed; then nothing has changed.
    pub fn add(&mut self, address: IpNet) -> Result<(), MasqueradeError> {
        let subnet = address.trunc();
        if let Some(users) = self.subnets.get_mut(&subnet) {
            *users += 1;
            return Ok(());
        }
        self.subnets.insert(subnet, 1);
        self.apply().inspect_err(|_| {
            self.subnets.remove(&subnet);
        })
    }

    /// Removes a pod's address, and its subnet's rules with the last.
    ///
    /// # Errors
    /// nft failed; the subnet is forgotten and goes with the next change.
    pub fn remove(&mut self, address: IpNet) -> Result<(), MasqueradeError> {
        let subnet = address.trunc();
        match self.subnets.get_mut(&subnet) {
            None => Ok(()),
            Some(users) if *users > 1 => {
                *users -= 1;
                Ok(())
            }
            Some(_) => {
                self.subnets.remove(&subnet);
                self.apply()
            }
        }
    }
}

/// The transaction that leaves exactly the table for these subnets, or none.
fn ruleset<'a>(subnets: impl Iterator<Item = &'a IpNet>) -> Value {
    let subnets: Vec<IpNet> = subnets.copied().collect();
    let table = json!({"table": {"family": "inet", "name": TABLE}});
    // `delete` fails on a table that is not there; `add` never does.
    let mut commands = vec![json!({"add": table}), json!({"delete": table})];
    if !subnets.is_empty() {
        commands.push(json!({"add": table}));
        commands.push(json!({"add": {"chain": {
            "family": "inet", "table": TABLE, "name": CHAIN,
            "type": "nat", "hook": "postrouting", "prio": SRCNAT, "policy": "accept",
        }}}));
        for family in Family::of(&subnets) {
            commands.push(json!({"add": {"set": family.set()}}));
            commands.push(json!({"add": {"rule": family.rule()}}));
        }
    }
    json!({"nftables": commands})
}

const CHAIN: &str = "postrouting";
/// `priority srcnat` (NF_IP_PRI_NAT_SRC): JSON takes only the number.
const SRCNAT: i32 = 100;

/// What one address family adds: a set of its subnets, and the rule on it.
struct Family {
    /// The family's name in a `payload` expression.
    protocol: &'static str,
    set_name: &'static str,
    set_type: &'static str,
    subnets: Vec<IpNet>,
}

impl Family {
    fn of(subnets: &[IpNet]) -> impl Iterator<Item = Self> {
        let v4: Vec<Ipv4Net> = subnets
            .iter()
            .filter_map(|net| match net {
                IpNet::V4(net) => Some(*net),
                IpNet::V6(_) => None,
            })
            .collect();
        let v6: Vec<Ipv6Net> = subnets
            .iter()
            .filter_map(|net| match net {
                IpNet::V4(_) => None,
                IpNet::V6(net) => Some(*net),
            })
            .collect();
        // Sets of intervals refuse overlapping elements, hence the aggregates.
        [
            Self {
                protocol: "ip",
                set_name: "masq4",
                set_type: "ipv4_addr",
                subnets: Ipv4Net::aggregate(&v4).into_iter().map(IpNet::V4).collect(),
            },
            Self {
                protocol: "ip6",
                set_name: "masq6",
                set_type: "ipv6_addr",
                subnets: Ipv6Net::aggregate(&v6).into_iter().map(IpNet::V6).collect(),
            },
        ]
        .into_iter()
        .filter(|family| !family.subnets.is_empty())
    }

    fn set(&self) -> Value {
        let elements: Vec<Value> = self
            .subnets
            .iter()
            .map(|net| json!({"prefix": {"addr": net.network(), "len": net.prefix_len()}}))
            .collect();
        json!({
            "family": "inet", "table": TABLE, "name": self.set_name,
            "type": self.set_type, "flags": ["interval"], "elem": elements,
        })
    }

    /// `iifname "sluice0" oifname != "sluice0" ip saddr @masq4 ip daddr != @masq4 masquerade`:
    /// what came from a pod, leaves the node, and is not for a pod elsewhere.
    fn rule(&self) -> Value {
        let set = format!("@{}", self.set_name);
        let meta = |key| json!({"meta": {"key": key}});
        let field = |name| json!({"payload": {"protocol": self.protocol, "field": name}});
        let matches = |op: &str, left: Value, right: &str| json!({"match": {"op": op, "left": left, "right": right}});
        json!({
            "family": "inet", "table": TABLE, "chain": CHAIN,
            "expr": [
                matches("==", meta("iifname"), HOST_INTERFACE),
                matches("!=", meta("oifname"), HOST_INTERFACE),
                matches("==", field("saddr"), &set),
                matches("!=", field("daddr"), &set),
                {"masquerade": null},
            ],
        })
    }
}

/// Runs nft in the calling thread's namespace.
fn nft(ruleset: &Value) -> Result<(), MasqueradeError> {
    let mut child = Command::new("nft")
        .args(["-j", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => MasqueradeError::Missing(cause),
            _ => MasqueradeError::Run(cause),
        })?;
    // Dropped at once, which closes the pipe: nft reads to the end of file. If
    // nft died before, its status and stderr say more than our EPIPE.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(ruleset.to_string().as_bytes());
    }
    wait(&mut child).map_err(MasqueradeError::Run)?;
    let output = child.wait_with_output().map_err(MasqueradeError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(MasqueradeError::Refused {
        status: output.status,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Waits for nft's end, but not for good: the control thread waits with it.
/// What nft says fits into a pipe.
fn wait(child: &mut Child) -> io::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > give_up {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(subnets: &[&str]) -> Vec<Value> {
        let subnets: Vec<IpNet> = subnets.iter().map(|net| net.parse().unwrap()).collect();
        let Value::Array(commands) = ruleset(subnets.iter())["nftables"].take() else {
            panic!("a list of commands");
        };
        commands
    }

    fn elements(commands: &[Value], set: &str) -> Vec<String> {
        commands
            .iter()
            .map(|command| &command["add"]["set"])
            .filter(|found| found["name"] == set)
            .flat_map(|found| found["elem"].as_array().unwrap())
            .map(|element| {
                let prefix = &element["prefix"];
                format!("{}/{}", prefix["addr"].as_str().unwrap(), prefix["len"])
            })
            .collect()
    }

    #[test]
    fn no_subnets_leave_no_table() {
        let table = json!({"table": {"family": "inet", "name": "sluice"}});
        assert_eq!(
            rules(&[]),
            [json!({"add": table}), json!({"delete": table})]
        );
    }

    #[test]
    fn one_family_gets_no_rules_of_the_other() {
        let commands = rules(&["10.77.0.0/24"]);
        assert_eq!(elements(&commands, "masq4"), ["10.77.0.0/24"]);
        assert!(!json!(commands).to_string().contains("ip6"));
    }

    #[test]
    fn the_rule_reads_as_documented() {
        let commands = rules(&["fd00:77::/64"]);
        assert_eq!(
            commands.last().unwrap()["add"]["rule"]["expr"],
            json!([
                {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "sluice0"}},
                {"match": {"op": "!=", "left": {"meta": {"key": "oifname"}}, "right": "sluice0"}},
                {"match": {"op": "==", "left": {"payload": {"protocol": "ip6", "field": "saddr"}}, "right": "@masq6"}},
                {"match": {"op": "!=", "left": {"payload": {"protocol": "ip6", "field": "daddr"}}, "right": "@masq6"}},
                {"masquerade": null},
            ])
        );
    }

    #[test]
    fn overlapping_subnets_become_one_element() {
        let commands = rules(&["10.77.0.0/16", "10.77.3.0/24", "10.78.0.0/24", "fd00::/64"]);
        assert_eq!(
            elements(&commands, "masq4"),
            ["10.77.0.0/16", "10.78.0.0/24"]
        );
        assert_eq!(elements(&commands, "masq6"), ["fd00::/64"]);
    }
}
