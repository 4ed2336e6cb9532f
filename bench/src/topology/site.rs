//! Where a node stands: its namespace, a host outside, a folder for its files.

use std::fs::{self, DirBuilder};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, umount2};

use super::leftovers::PREFIX;
use super::{Space, TopologyError};

/// The node's address on its uplink.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The outside host's address on the same link.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The addresses that pods get theirs of: room for some hundred.
pub(super) const SUBNET: &str = "10.77.0.0/16";
/// Where kube-proxy's rules would be for bridges, too, if the kernel can.
const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// A node's namespace with its uplink `up0` of MTU 1500, and the host
/// `outside` at the other end, which has a route to the pods.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) node: Space,
    pub(crate) outside: Space,
    pub(super) folder: Folder,
    /// What every namespace of this site is called, up to its role.
    prefix: String,
}

impl Site {
    pub(super) fn new() -> Result<Self, TopologyError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{count}", std::process::id());
        let site = Self {
            folder: Folder::new(Path::new("/run").join(&prefix))?,
            node: Space::new(format!("{prefix}-node"))?,
            outside: Space::new(format!("{prefix}-out"))?,
            prefix,
        };
        site.configure()?;
        Ok(site)
    }

    /// A namespace for a pod.
    pub(super) fn space(&self, role: &str) -> Result<Space, TopologyError> {
        Space::new(format!("{}-{role}", self.prefix))
    }

    fn configure(&self) -> Result<(), TopologyError> {
        let Self { node, outside, .. } = self;
        node.exec(&format!(
            "ip link add up0 mtu 1500 type veth peer name out0 netns {}",
            outside.name()
        ))?;
        for (space, link, address) in [(node, "up0", NODE), (outside, "out0", OUTSIDE)] {
            space.exec(&format!("ip address add {address}/24 dev {link}"))?;
            space.exec(&format!("ip link set {link} up"))?;
        }
        node.exec(&format!("ip route add default via {OUTSIDE}"))?;
        outside.exec(&format!("ip route add {SUBNET} via {NODE}"))?;
        // As Kubernetes asks for: all designs forward alike.
        node.exec("sysctl -qw net.ipv4.ip_forward=1")?;
        self.set_bridge_netfilter(true)
    }

    /// Whether what a bridge forwards passes iptables: kubeadm asks for it, so
    /// that Services work between pods of a node. Nothing to do where the
    /// kernel cannot.
    pub(super) fn set_bridge_netfilter(&self, on: bool) -> Result<(), TopologyError> {
        if !Path::new(BRIDGE_NETFILTER).exists() {
            return Ok(());
        }
        let value = u8::from(on);
        let key = "net.bridge.bridge-nf-call-iptables";
        self.node.exec(&format!("sysctl -qw {key}={value}"))?;
        Ok(())
    }
}

/// A folder, removed when dropped, with what is mounted in it.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Self, TopologyError> {
        // sluiced refuses folders that others may write to.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| TopologyError::refused("make", path.display().to_string(), error))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The daemon's folder.
    pub(super) fn run_dir(&self) -> PathBuf {
        run_dir(&self.0)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove_folder(&self.0);
    }
}

fn run_dir(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// Removes a site's folder. The daemon leaves its file system of pins: with
/// it go its programs.
pub(super) fn remove_folder(folder: &Path) {
    // Nothing is mounted there if it was no node of Sluice.
    let _ = umount2(&run_dir(folder).join("bpf"), MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("could not remove {}: {error}", folder.display());
    }
}
