//! Network configurations of the designs that are CNI plugins.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use serde_json::{Value, json};

use super::runtime::List;
use super::site::{SUBNET, Site};
use super::{Design, Feature, TopologyError};

/// A limit that nothing here reaches, bit/s each way.
const RATE: u64 = 100_000_000_000;
/// What may pass at once, in bits: 64 MB.
const BURST: u64 = 512_000_000;
/// The largest MTU that pods of Sluice have by default.
const JUMBO_MTU: u32 = 65_000;

/// Where the programs to measure are.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// Where `sluice` and `sluiced` are.
    pub(crate) binaries: PathBuf,
    /// Where the reference plugins are.
    pub(crate) cni_path: PathBuf,
    /// The CPU that forwards, where a design has one that does.
    pub(crate) worker_cpu: usize,
}

impl Tools {
    /// Our binaries in `binaries`, or else beside this program.
    ///
    /// # Errors
    /// The kernel does not tell where this program is.
    pub(crate) fn find(
        binaries: Option<&Path>,
        cni_path: &Path,
        worker_cpu: usize,
    ) -> Result<Self, TopologyError> {
        let refused = |error| TopologyError::refused("find", "the folder of this program", error);
        let binaries = match binaries {
            Some(folder) => folder.to_owned(),
            None => {
                let own = std::env::current_exe().map_err(refused)?;
                own.parent().map(Path::to_owned).unwrap_or_default()
            }
        };
        Ok(Self {
            binaries,
            cni_path: cni_path.to_owned(),
            worker_cpu,
        })
    }

    /// # Errors
    /// A program is missing.
    pub(crate) fn check(&self) -> Result<(), TopologyError> {
        let ours = ["sluice", "sluiced"].map(|name| (self.binaries.join(name), BUILD));
        let theirs = ["bridge", "ptp", "portmap", "bandwidth", "host-local"];
        let theirs = theirs.map(|name| (self.cni_path.join(name), INSTALL));
        let mut all = ours.into_iter().chain(theirs);
        match all.find(|(file, _)| !file.is_file()) {
            None => Ok(()),
            Some((file, advice)) => Err(TopologyError::Missing(format!(
                "{} is missing: {advice}",
                file.display()
            ))),
        }
    }

    pub(super) fn sluiced(&self) -> PathBuf {
        self.binaries.join("sluiced")
    }
}

const BUILD: &str = "cargo build --release, or say where it is by --binaries";
const INSTALL: &str =
    "apt-get install containernetworking-plugins, or say where it is by --cni-path";

/// The list of plugins that gives a node's pods what a case needs. `None` for
/// a design that is none.
pub(super) fn list(site: &Site, tools: &Tools, design: Design, feature: Feature) -> Option<List> {
    let folder = site.folder.path();
    let mut plugins = match design {
        Design::Sluice => vec![sluice(site, tools, feature)],
        Design::Bridge | Design::BridgeWithoutNetfilter => vec![bridge(folder)],
        Design::JumboBridge => {
            let mut bridge = bridge(folder);
            bridge["mtu"] = JUMBO_MTU.into();
            vec![bridge]
        }
        Design::Ptp => vec![json!({"type": "ptp", "ipMasq": true, "ipam": ipam(folder)})],
        Design::Ovs | Design::Floor => return None,
    };
    if design != Design::Sluice {
        if feature.has_host_ports() {
            plugins.push(json!({"type": "portmap", "capabilities": {"portMappings": true}}));
        }
        if feature.is_shaped() {
            let mut bandwidth = json!({"type": "bandwidth"});
            limit(&mut bandwidth);
            plugins.push(bandwidth);
        }
        if feature.is_asked_for_limits() {
            plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
        }
    }
    Some(List {
        name: "pods",
        plugins,
        folders: vec![tools.binaries.clone(), tools.cni_path.clone()],
        node: site.node.path(),
    })
}

/// Our object in the list.
fn sluice(site: &Site, tools: &Tools, feature: Feature) -> Value {
    let workers = match feature {
        Feature::Workers(count) => count.into(),
        _ => 1,
    };
    let cpus = available_parallelism().map_or(1, NonZero::get);
    let mut plugin = json!({
        "type": "sluice",
        "ipMasq": true,
        "ipam": ipam(site.folder.path()),
        "dataplane": {
            "runDir": site.folder.run_dir(),
            "maxPorts": feature.max_ports(),
            "workers": workers,
            "cpus": (0..workers).map(|worker| (tools.worker_cpu + worker) % cpus).collect::<Vec<_>>(),
        },
    });
    if feature.has_host_ports() {
        plugin["capabilities"] = json!({"portMappings": true});
    }
    if feature.is_asked_for_limits() {
        plugin["capabilities"] = json!({"bandwidth": true});
    }
    if feature.is_shaped() {
        limit(&mut plugin);
    }
    if feature == Feature::Ethernet {
        plugin["mtu"] = 1500.into();
        plugin["localMtu"] = 1500.into();
    }
    plugin
}

/// As in containerd's example, but for `promiscMode`: with it the bridge
/// would hand each frame to the host, too.
fn bridge(folder: &Path) -> Value {
    json!({
        "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
        "ipam": ipam(folder),
    })
}

fn ipam(folder: &Path) -> Value {
    json!({
        "type": "host-local",
        "ranges": [[{"subnet": SUBNET}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": folder.join("ipam"),
    })
}

/// Both plugins have the same keys, in bits.
fn limit(plugin: &mut Value) {
    for way in ["ingress", "egress"] {
        plugin[format!("{way}Rate")] = RATE.into();
        plugin[format!("{way}Burst")] = BURST.into();
    }
}
