//! Pods: namespaces that are attached to the node.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::runtime::{Container, List};
use super::{Space, TopologyError};

/// An attached pod.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) space: Space,
    /// Its address.
    pub(crate) address: Ipv4Addr,
}

impl Pod {
    /// Attaches a pod without hostPorts, as [`Pod::add`].
    pub(super) fn add_plain(space: Space, list: &List) -> Result<Self, TopologyError> {
        let container = Container::new(&space);
        Self::add(space, &container, list)
    }

    /// Attaches a pod by a list of plugins. What it leaves on the node goes
    /// with the node's namespace: there is no DEL.
    ///
    /// # Errors
    /// A plugin failed, or gave no IPv4 address.
    pub(super) fn add(
        space: Space,
        container: &Container,
        list: &List,
    ) -> Result<Self, TopologyError> {
        let result = list.add(container)?;
        let address = address(&result).ok_or_else(|| TopologyError::Plugin {
            verb: "ADD",
            plugin: list.name.to_owned(),
            said: format!("no IPv4 address in {result}"),
        })?;
        Ok(Self { space, address })
    }
}

/// The first IPv4 address of a result.
fn address(result: &Value) -> Option<Ipv4Addr> {
    let ips = result["ips"].as_array()?;
    let texts = ips.iter().filter_map(|ip| ip["address"].as_str());
    texts
        .filter_map(|text| text.split_once('/')?.0.parse().ok())
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_ipv4_address_counts() {
        let result = json!({"ips": [{"address": "fd00::2/64"}, {"address": "10.77.0.2/24"}]});
        assert_eq!(address(&result), Some(Ipv4Addr::new(10, 77, 0, 2)));
        assert_eq!(address(&json!({})), None);
    }
}
