//! Results: what IPAM plugins and earlier plugins hand us, and what ADD prints.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sluice_link::Route;

/// What an IPAM plugin's ADD answers (specification, section 5, "Delegated
/// plugins (IPAM)").
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct IpamResult {
    /// The addresses to give to the interface.
    pub(crate) ips: Vec<IpamAddress>,
    /// Routes to make.
    pub(crate) routes: Vec<RouteEntry>,
    /// DNS settings, passed on.
    pub(crate) dns: Dns,
}

/// DNS settings: nobody's here, for the runtime and for those who come after
/// us in the list.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

impl Dns {
    /// These, or `others` if these say nothing.
    pub(crate) fn or<'a>(&'a self, others: &'a Self) -> &'a Self {
        if self.is_empty() { others } else { self }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One address from IPAM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct IpamAddress {
    /// With the prefix length of its subnet.
    pub(crate) address: IpNet,
    /// The subnet's gateway.
    pub(crate) gateway: Option<IpAddr>,
}

/// A route, in IPAM's answer and in ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RouteEntry {
    /// Where to.
    pub(crate) dst: IpNet,
    /// Next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    /// In bytes of IP packet; results before 1.1.0 have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    #[serde(flatten)]
    pub(crate) options: RouteOptions,
}

/// What IPAM may say about a route since 1.1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct RouteOptions {
    /// Maximum segment size that TCP announces, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advmss: Option<u32>,
    /// The smaller goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    /// The routing table it goes to, if not the main one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
    /// `rtm_scope`: how far away the destination is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<u8>,
}

impl RouteOptions {
    /// The table; 0 is a way to say none in particular.
    pub(crate) fn table(&self) -> u32 {
        let table = self.table.filter(|table| *table != 0);
        table.unwrap_or(Route::TABLE_MAIN)
    }
}

/// What ADD prints (specification, section 5, "ADD Success").
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AddResult {
    #[serde(rename = "cniVersion")]
    pub(crate) version: &'static str,
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) ips: Vec<Ip>,
    pub(crate) routes: Vec<RouteEntry>,
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub(crate) dns: Dns,
}

/// An interface that ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    /// In bytes of IP packet; results before 1.1.0 have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    /// The namespace's path; absent for an interface of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
}

/// An address that ADD assigned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Ip {
    /// "4" or "6", which results before 1.0.0 say.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    address: IpNet,
    gateway: IpAddr,
    /// Index into the result's interfaces.
    interface: usize,
}

impl Ip {
    /// An address in the shape of the specification's `version`.
    pub(crate) fn new(version: &str, address: IpNet, gateway: IpAddr, interface: usize) -> Self {
        let family = match address {
            IpNet::V4(_) => "4",
            IpNet::V6(_) => "6",
        };
        Self {
            version: version.starts_with("0.").then_some(family),
            address,
            gateway,
            interface,
        }
    }
}

/// What the plugins before us in the list made. It is not ours to understand,
/// only to pass on.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PrevResult {
    interfaces: Vec<Value>,
    ips: Vec<Value>,
    routes: Vec<Value>,
    dns: Option<Value>,
}

impl AddResult {
    /// The result as JSON, appended to that of the plugins before us.
    pub(crate) fn after(mut self, prev: Option<PrevResult>) -> Result<Value, serde_json::Error> {
        let prev = prev.unwrap_or_default();
        for ip in &mut self.ips {
            ip.interface += prev.interfaces.len();
        }
        let mut result = serde_json::to_value(self)?;
        if let (None, Some(dns)) = (result.get("dns"), prev.dns) {
            result["dns"] = dns;
        }
        for (key, mut before) in [
            ("interfaces", prev.interfaces),
            ("ips", prev.ips),
            ("routes", prev.routes),
        ] {
            if let Some(ours) = result[key].as_array_mut() {
                before.append(ours);
                *ours = before;
            }
        }
        Ok(result)
    }
}

/// What ADD made, by the result that a runtime hands to CHECK. Of all plugins
/// in the list: what is not ours must not trip us.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Made {
    interfaces: Vec<MadeInterface>,
    ips: Vec<MadeIp>,
    pub(crate) routes: Vec<RouteEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MadeInterface {
    pub(crate) name: String,
    pub(crate) mac: String,
    sandbox: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct MadeIp {
    address: IpNet,
    interface: Option<usize>,
}

impl Made {
    /// The interface of this name in the namespace, or in the host's.
    pub(crate) fn interface(&self, name: &str, netns: Option<&Path>) -> Option<&MadeInterface> {
        self.interfaces.get(self.index(name, netns)?)
    }

    /// The addresses of an interface.
    pub(crate) fn addresses_of(&self, name: &str, netns: Option<&Path>) -> Vec<IpNet> {
        let index = self.index(name, netns);
        let ips = self.ips.iter();
        ips.filter(|ip| index.is_some() && ip.interface == index)
            .map(|ip| ip.address)
            .collect()
    }

    fn index(&self, name: &str, netns: Option<&Path>) -> Option<usize> {
        // Some runtimes write no sandbox as an empty one.
        self.interfaces.iter().position(|interface| {
            let sandbox = interface.sandbox.as_deref();
            interface.name == name && sandbox.filter(|s| !s.as_os_str().is_empty()) == netns
        })
    }
}

/// Rewrites a result for a reader of another version of the specification.
/// What a version does not know its readers overlook, but some things before
/// 1.0.0 must be there.
pub(crate) fn convert(result: &mut Map<String, Value>, version: &str) {
    result.insert("cniVersion".into(), version.into());
    let Some(Value::Array(ips)) = result.get_mut("ips") else {
        return;
    };
    for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
        let address = ip.get("address").and_then(Value::as_str);
        let family = match address {
            Some(address) if address.contains(':') => "6",
            _ => "4",
        };
        if version.starts_with("0.") {
            ip.insert("version".into(), family.into());
        } else {
            ip.remove("version");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ours(version: &'static str) -> AddResult {
        let address = "10.77.0.11/24".parse().unwrap();
        let gateway = "10.77.0.1".parse().unwrap();
        AddResult {
            version,
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:00:00:00:00:ab".into(),
                mtu: None,
                sandbox: Some("/run/netns/x".into()),
            }],
            ips: vec![Ip::new(version, address, gateway, 0)],
            routes: vec![RouteEntry {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: None,
                mtu: None,
                options: RouteOptions::default(),
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn dns_settings_that_say_nothing_give_way() {
        let read = |dns: Value| serde_json::from_value::<Dns>(dns).unwrap();
        let ours = read(json!({"domain": "example.com", "search": ["a", "b"]}));
        // host-local answers so where it has no resolvConf.
        let ipams = read(json!({}));
        assert_eq!(ipams.or(&ours), &ours);
        assert_eq!(ours.or(&ipams), &ours);
        let expected = json!({"domain": "example.com", "search": ["a", "b"]});
        assert_eq!(serde_json::to_value(&ours).unwrap(), expected);
    }

    #[test]
    fn each_version_has_its_shape() {
        for (version, family) in [("0.3.1", json!("4")), ("1.0.0", Value::Null)] {
            let result = ours(version).after(None).unwrap();
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["version"], family);
            assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:ab");
            assert_eq!(result["routes"], json!([{"dst": "0.0.0.0/0"}]));
            assert_eq!(result.get("dns"), None);
        }
    }

    #[test]
    fn earlier_results_come_first_and_keep_their_indexes() {
        let prev = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "a"}, {"name": "b", "odd": 1}],
            "ips": [{"address": "10.1.0.2/24", "interface": 1}],
            "routes": [{"dst": "10.1.0.0/16"}],
            "dns": {"nameservers": ["10.0.0.1"]},
        });
        let prev = serde_json::from_value(prev).unwrap();
        let result = ours("1.0.0").after(Some(prev)).unwrap();
        assert_eq!(result["interfaces"][1], json!({"name": "b", "odd": 1}));
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(result["ips"][0]["interface"], 1);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["routes"].as_array().unwrap().len(), 2);
        assert_eq!(result["dns"]["nameservers"][0], "10.0.0.1");
    }
}
