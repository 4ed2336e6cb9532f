//! hostPorts: what a runtime asks for (`runtimeConfig.portMappings`), and the
//! keys of the reference plugin `portmap`.

use std::net::IpAddr;

use serde::Deserialize;
use sluice_control::{PortMapping, Protocol, check_mappings};

/// An entry of `portMappings` (CNI conventions). Numbers as they come: what is
/// out of range is named. containerd 1.6 writes the keys with capitals; plugins
/// in Go do not notice.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Entry {
    #[serde(alias = "HostPort")]
    host_port: i64,
    #[serde(alias = "ContainerPort")]
    container_port: i64,
    #[serde(alias = "Protocol")]
    protocol: String,
    #[serde(rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

/// The mappings that these entries ask for.
///
/// # Errors
/// The first entry with a value that cannot be used, in words.
pub(crate) fn read(entries: &[Entry]) -> Result<Vec<PortMapping>, String> {
    let mappings: Vec<PortMapping> = entries.iter().map(Entry::read).collect::<Result<_, _>>()?;
    check_mappings(&mappings).map_err(|error| error.to_string())?;
    Ok(mappings)
}

impl Entry {
    fn read(&self) -> Result<PortMapping, String> {
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => {
                let protocol = &self.protocol;
                return Err(format!(
                    "protocol is {protocol:?}: it must be tcp, udp or sctp"
                ));
            }
        };
        Ok(PortMapping {
            host_port: port("hostPort", self.host_port)?,
            container_port: port("containerPort", self.container_port)?,
            protocol,
            host_ip: address(&self.host_ip)?,
        })
    }
}

fn port(key: &str, number: i64) -> Result<u16, String> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{key} is {number}: it must be from 1 to 65535"))
}

/// An IPv4 address in IPv6's clothes is the IPv4 address, as for `portmap`.
fn address(text: &str) -> Result<Option<IpAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Some(address.to_canonical())),
        Err(_) => Err(format!(
            "hostIP is {text:?}: it must be an IP address or empty"
        )),
    }
}

/// Keys of `portmap` that are about how its rules look.
#[derive(Debug, Default)]
pub(crate) struct PortmapKeys<'a> {
    pub(crate) mark_masq_bit: Option<i64>,
    pub(crate) external_set_mark_chain: Option<&'a str>,
    pub(crate) conditions: [(&'static str, Option<&'a [String]>); 2],
}

impl PortmapKeys<'_> {
    /// A line for each key that is accepted and has no effect.
    ///
    /// # Errors
    /// A key that cannot be honoured, or that `portmap` would refuse, in words.
    pub(crate) fn judge(&self) -> Result<Vec<String>, String> {
        for (key, conditions) in self.conditions {
            if let Some(conditions) = conditions.filter(|conditions| !conditions.is_empty()) {
                return Err(format!(
                    "{key} is {conditions:?}: these are matches of iptables rules, and hostPorts \
                     are looked up in one map without such rules; give the ports a hostIP, or \
                     filter in a chain of your own, and remove {key}"
                ));
            }
        }
        let mut moot = Vec::new();
        if let Some(bit) = self.mark_masq_bit {
            if self.external_set_mark_chain.is_some() {
                return Err("markMasqBit and externalSetMarkChain exclude each other".into());
            }
            if !(0..=31).contains(&bit) {
                return Err(format!("markMasqBit is {bit}: it must be from 0 to 31"));
            }
            moot.push("markMasqBit has no effect: no packet is marked".into());
        }
        if let Some(chain) = self.external_set_mark_chain {
            moot.push(format!(
                "externalSetMarkChain {chain} is not used: what must be masqueraded (a pod that \
                 reaches itself; all clients with masqAll) is so without a mark"
            ));
        }
        Ok(moot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read_one(entry: Value) -> Result<PortMapping, String> {
        let entry = serde_json::from_value(entry).unwrap();
        Ok(read(&[entry])?.remove(0))
    }

    #[test]
    fn keys_may_be_written_as_containerd_writes_them() {
        let entry =
            json!({"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "::1"});
        let expected = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Udp,
            host_ip: Some("::1".parse().unwrap()),
        };
        assert_eq!(read_one(entry), Ok(expected));
    }

    #[test]
    fn entries_are_read_as_portmap_reads_them() {
        let plain = PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        };
        let ip = |text: &str| Some(text.parse().unwrap());
        for (protocol, host_ip, expected) in [
            (json!("tcp"), json!(""), plain),
            (
                json!(""),
                json!("0.0.0.0"),
                PortMapping {
                    host_ip: ip("0.0.0.0"),
                    ..plain
                },
            ),
            (
                json!("TCP"),
                json!("::"),
                PortMapping {
                    host_ip: ip("::"),
                    ..plain
                },
            ),
            (
                json!("Udp"),
                json!("::ffff:192.0.2.1"),
                PortMapping {
                    protocol: Protocol::Udp,
                    host_ip: ip("192.0.2.1"),
                    ..plain
                },
            ),
            (
                json!("sctp"),
                json!("2001:db8::1"),
                PortMapping {
                    protocol: Protocol::Sctp,
                    host_ip: ip("2001:db8::1"),
                    ..plain
                },
            ),
        ] {
            let entry = json!({
                "hostPort": 8080, "containerPort": 80, "protocol": protocol, "hostIP": host_ip,
            });
            assert_eq!(read_one(entry.clone()), Ok(expected), "{entry}");
        }
        assert_eq!(
            read_one(json!({"hostPort": 8080, "containerPort": 80})),
            Ok(plain)
        );
    }

    #[test]
    fn what_cannot_be_mapped_is_named() {
        for (entry, needle) in [
            (json!({"containerPort": 80}), "hostPort is 0"),
            (json!({"hostPort": 80}), "containerPort is 0"),
            (
                json!({"hostPort": 65536, "containerPort": 80}),
                "hostPort is 65536",
            ),
            (
                json!({"hostPort": -1, "containerPort": 80}),
                "hostPort is -1",
            ),
            (
                json!({"hostPort": 1, "containerPort": 1, "protocol": "icmp"}),
                "\"icmp\"",
            ),
            (
                json!({"hostPort": 1, "containerPort": 1, "hostIP": "node"}),
                "\"node\"",
            ),
            (
                json!({"hostPort": 1, "containerPort": 1, "hostIP": "224.0.0.1"}),
                "224.0.0.1",
            ),
        ] {
            let error = read_one(entry).unwrap_err();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn portmaps_keys_are_accepted_where_that_is_honest() {
        let moot = |keys: PortmapKeys<'_>| keys.judge();
        assert_eq!(moot(PortmapKeys::default()), Ok(vec![]));
        let kubernetes = PortmapKeys {
            external_set_mark_chain: Some("KUBE-MARK-MASQ"),
            conditions: [("conditionsV4", Some(&[])), ("conditionsV6", None)],
            ..PortmapKeys::default()
        };
        assert!(moot(kubernetes).unwrap()[0].contains("KUBE-MARK-MASQ"));
        let bit = |bit, chain| PortmapKeys {
            mark_masq_bit: Some(bit),
            external_set_mark_chain: chain,
            ..PortmapKeys::default()
        };
        assert_eq!(moot(bit(13, None)).unwrap().len(), 1);
        assert!(moot(bit(32, None)).unwrap_err().contains("0 to 31"));
        assert!(moot(bit(13, Some("X"))).unwrap_err().contains("exclude"));
        let conditions = ["!".to_owned(), "-d".to_owned()];
        let refused = PortmapKeys {
            conditions: [("conditionsV4", Some(&conditions)), ("conditionsV6", None)],
            ..PortmapKeys::default()
        };
        assert!(moot(refused).unwrap_err().starts_with("conditionsV4 is"));
    }
}
