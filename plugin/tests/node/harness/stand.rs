//! The same pods by our plugin, and by the reference plugins `bridge` and `portmap`.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::runtime::Runtime;
use super::{List, Node, Options, Site};

/// A node on which one of the two gives pods their hostPorts.
#[derive(Debug)]
pub(crate) enum Stand {
    Sluice(Box<Node>),
    /// Without our daemon, and with a folder for IPAM.
    Portmap(Box<Site>, TempDir),
}

impl Stand {
    pub(crate) fn sluice() -> Self {
        Self::Sluice(Box::new(Node::start(&Options::default())))
    }

    pub(crate) fn portmap() -> Self {
        Self::Portmap(Box::new(Site::new()), tempfile::tempdir().unwrap())
    }

    pub(crate) fn site(&self) -> &Site {
        match self {
            Self::Sluice(node) => &node.site,
            Self::Portmap(site, _) => site,
        }
    }

    /// A network in which pods may have hostPorts, as users write it; `keys` are
    /// for the plugin that makes hostPorts.
    pub(crate) fn list(&self, name: &str, subnets: &[&str], keys: &[(&str, bool)]) -> List {
        let ranges = subnets.iter().map(|subnet| json!([{"subnet": subnet}]));
        let ranges: Vec<_> = ranges.collect();
        let (mut conflist, runtime) = match self {
            Self::Sluice(node) => (node.network(name, subnets).conflist(), node.runtime()),
            Self::Portmap(site, dir) => {
                let bridge = json!({
                    "type": "bridge", "bridge": format!("br-{name}"), "isGateway": true,
                    "ipMasq": true, "hairpinMode": true,
                    "ipam": {"type": "host-local", "ranges": ranges, "dataDir": dir.path()},
                });
                let conflist = json!({
                    "cniVersion": "1.0.0", "name": name, "plugins": [bridge, {"type": "portmap"}],
                });
                let own_plugins = dir.path().join("plugins");
                (conflist, Runtime::new(&site.node, own_plugins))
            }
        };
        // `bridge` makes no default routes by itself.
        let families = subnets.iter().map(|subnet| match subnet.contains(':') {
            true => json!({"dst": "::/0"}),
            false => json!({"dst": "0.0.0.0/0"}),
        });
        conflist["plugins"][0]["ipam"]["routes"] = families.collect();
        let plugins = conflist["plugins"].as_array_mut().unwrap();
        let mapper = plugins.last_mut().unwrap();
        mapper["capabilities"] = json!({"portMappings": true});
        for (key, value) in keys {
            mapper[*key] = Value::from(*value);
        }
        List::new(conflist, runtime)
    }

    /// Asserts what there is to assert about a node of ours.
    #[track_caller]
    pub(crate) fn finish(self) {
        if let Self::Sluice(node) = self {
            node.finish();
        }
    }
}

/// Where what was found out about the two is written to, if anywhere.
pub(crate) fn report(file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("SLUICE_TEST_REPORT")?;
    Some(PathBuf::from(folder).join(file))
}
