//! The node: a [`Site`] with the daemon running on it.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_control::{Client, NodeFacts, Request};
use tempfile::TempDir;

use super::daemon::{self, Daemon};
use super::runtime::{Answer, Runtime};
use super::{Container, Holdings, List, Network, Pod, Site, Space, wait_until};

/// The largest MTU of a node without multi-buffer.
const MAX_MTU_SINGLE: u32 = 3498;

/// How a node is set up.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) max_ports: u16,
    pub(crate) uplink: &'static str,
}

/// How many workers the daemon has: as `SLUICE_TEST_WORKERS` says, or one.
fn workers() -> u16 {
    std::env::var("SLUICE_TEST_WORKERS").map_or(1, |workers| workers.parse().unwrap())
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_ports: 8,
            uplink: "auto",
        }
    }
}

/// A row of `sluiced show ports --json`.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Row {
    pub(crate) kind: String,
    pub(crate) slot: u16,
    pub(crate) generation: u16,
    pub(crate) interface: String,
    pub(crate) container_id: Option<String>,
    pub(crate) counters: Counters,
    pub(crate) xdp_statistics: Option<BTreeMap<String, u64>>,
}

/// A port's counters.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Counters {
    pub(crate) rx_frames: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_frames: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) merged_frames: u64,
    pub(crate) cut_frames: u64,
    pub(crate) answered: u64,
    pub(crate) icmp_errors: u64,
    pub(crate) marked: u64,
    pub(crate) drops: BTreeMap<String, u64>,
}

impl Counters {
    /// Frames dropped for one reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or_default()
    }
}

/// A running node. Everything it made goes when it is dropped;
/// [`Node::finish`] asserts that all went well.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) facts: NodeFacts,
    daemon: Option<Daemon>,
    pub(crate) client: Client,
    dir: TempDir,
    /// The network's `dataplane`.
    dataplane: Value,
    pub(crate) site: Site,
}

impl Node {
    /// A node with the daemon on it.
    pub(crate) fn start(options: &Options) -> Self {
        Self::start_on(Site::new(), options)
    }

    /// The same on a site that was prepared by the test.
    pub(crate) fn start_on(site: Site, options: &Options) -> Self {
        let prefix = format!("{}-", site.node.name());
        let dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in("/run")
            .unwrap();
        let client = Client::new(&run_dir(&dir).join("sluiced.sock"));
        let dataplane = json!({
            "runDir": run_dir(&dir),
            "maxPorts": options.max_ports,
            "workers": workers(),
            "uplink": options.uplink,
        });
        let conflist = dir.path().join("sluice.conflist");
        let network = pod_network(&dir, &dataplane, "pods", &["10.77.0.0/24", "fd77::/64"]);
        fs::write(&conflist, network.conflist().to_string()).unwrap();
        let (daemon, facts) = Daemon::start(&site.node, &conflist, &client, &[]);
        let node = Self {
            facts,
            daemon: Some(daemon),
            client,
            dir,
            dataplane,
            site,
        };
        node.check_features();
        node
    }

    /// The daemon does without what it was told to do without.
    fn check_features(&self) {
        let without = std::env::var("SLUICE_TEST_WITHOUT").unwrap_or_default();
        if without.contains("multi-buffer") {
            assert!(!self.has_multi_buffer(), "{:?}", self.facts);
        }
        if without.contains("tso") {
            assert!(!self.has_tso(), "{:?}", self.facts);
        }
        if without.contains("tx-metadata") {
            assert!(!self.has_tx_metadata(), "{:?}", self.facts);
        }
    }

    /// Whether frames of several buffers are carried: jumbo frames.
    pub(crate) fn has_multi_buffer(&self) -> bool {
        self.facts.max_mtu > MAX_MTU_SINGLE
    }

    /// Whether merged TCP segments are sent as such.
    pub(crate) fn has_gso(&self) -> bool {
        !std::env::var("SLUICE_TEST_WITHOUT").is_ok_and(|without| without.contains("gso"))
    }

    /// Whether merged TCP segments are taken as such.
    pub(crate) fn has_tso(&self) -> bool {
        self.facts.tcp_segmentation_offload
    }

    /// Whether pods leave checksums to be completed.
    pub(crate) fn has_tx_metadata(&self) -> bool {
        self.facts.checksum_offload
    }

    pub(crate) fn space(&self) -> &Space {
        &self.site.node
    }

    pub(crate) fn outside(&self) -> &Space {
        &self.site.outside
    }

    /// A folder for files of the test.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The daemon's folder.
    pub(crate) fn run_dir(&self) -> PathBuf {
        run_dir(&self.dir)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("sluiced.sock")
    }

    pub(crate) fn conflist(&self) -> PathBuf {
        self.dir().join("sluice.conflist")
    }

    /// The dual-stack network of the conflist.
    pub(crate) fn pods(&self) -> Network {
        self.network("pods", &["10.77.0.0/24", "fd77::/64"])
    }

    /// A network with these ranges.
    pub(crate) fn network(&self, name: &str, subnets: &[&str]) -> Network {
        pod_network(&self.dir, &self.dataplane, name, subnets)
    }

    /// Where tests put plugins of their own.
    pub(crate) fn plugins(&self) -> PathBuf {
        self.dir().join("plugins")
    }

    /// Puts a shell script there.
    pub(crate) fn script(&self, name: &str, script: &str) {
        fs::create_dir_all(self.plugins()).unwrap();
        let path = self.plugins().join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    /// The dual-stack network with other plugins chained behind ours.
    pub(crate) fn chain(&self, others: &[Value]) -> List {
        let mut conflist = self.pods().conflist();
        let plugins = conflist["plugins"].as_array_mut().unwrap();
        plugins.extend_from_slice(others);
        List::new(conflist, self.runtime())
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::new(self.space(), self.plugins())
    }

    /// Adds a dual-stack pod.
    #[track_caller]
    pub(crate) fn add(&self, name: &str) -> Pod {
        self.add_to(&self.pods(), name)
    }

    /// Adds a pod by a list, with something to say to plugins with a capability.
    #[track_caller]
    pub(crate) fn add_by(&self, list: &List, name: &str, arguments: &[(&str, Value)]) -> Pod {
        let space = self.site.space(name);
        let mut container = Container::new(&space, name, "eth0");
        for (capability, argument) in arguments {
            container = container.with(capability, argument.clone());
        }
        Pod::join(space, container, list.clone())
    }

    #[track_caller]
    pub(crate) fn add_to(&self, network: &Network, name: &str) -> Pod {
        Pod::add(self.site.space(name), name, network, &self.runtime())
    }

    /// ADD that may fail, into a namespace of the test's.
    pub(crate) fn try_add(&self, network: &Network, space: &Space, id: &str) -> Answer {
        self.runtime().run("ADD", id, &space.path(), network)
    }

    pub(crate) fn try_del(&self, network: &Network, space: &Space, id: &str) -> Answer {
        self.runtime().run("DEL", id, &space.path(), network)
    }

    /// Runs `sluiced` as an operator on the node.
    pub(crate) fn sluiced(&self, words: &str) -> Output {
        let mut command = self.space().command(daemon::executable().to_str().unwrap());
        command.args(words.split_whitespace()).output().unwrap()
    }

    #[track_caller]
    fn show(&self, what: &str) -> Vec<u8> {
        let output = self.sluiced(&format!(
            "show {what} --json --run-dir {}",
            self.run_dir().display()
        ));
        assert!(output.status.success(), "{output:?}");
        output.stdout
    }

    /// `sluiced show ports --json`, without the uplink's queues.
    #[track_caller]
    pub(crate) fn ports(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = serde_json::from_slice(&self.show("ports")).unwrap();
        rows.retain(|row| row.kind != "uplink");
        rows
    }

    /// The same by the control socket: quick enough for tight loops.
    #[track_caller]
    pub(crate) fn rows(&self) -> Vec<Row> {
        let rows = self.client.ask(Request::ShowPorts).unwrap();
        serde_json::from_value(rows).unwrap()
    }

    /// The row of one pod.
    #[track_caller]
    pub(crate) fn row(&self, pod: &Pod) -> Row {
        let mut rows = self.rows().into_iter();
        let row = rows.find(|row| row.container_id.as_deref() == Some(pod.id()));
        row.unwrap_or_else(|| panic!("{} has no port", pod.id()))
    }

    /// `sluiced show stats --json`
    #[track_caller]
    pub(crate) fn stats(&self) -> Value {
        serde_json::from_slice(&self.show("stats")).unwrap()
    }

    /// Asserts that every chunk is where a chunk may be.
    #[track_caller]
    pub(crate) fn assert_no_chunk_lost(&self) {
        wait_until("every chunk is accounted for", || {
            (self.stats()["chunks"]["unaccounted"] == 0).then_some(())
        });
    }

    /// What the daemon holds just now.
    pub(crate) fn holdings(&self) -> Holdings {
        self.daemon.as_ref().expect("a daemon").holdings()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.daemon.as_ref().expect("a daemon").signal(signal);
    }

    /// What the daemon has said.
    pub(crate) fn log(&self) -> String {
        self.daemon.as_ref().expect("a daemon").log()
    }

    /// Kills the daemon: SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.daemon.take().expect("a daemon").kill();
    }

    /// Starts a daemon where there was one.
    pub(crate) fn restart(&mut self) {
        self.restart_without(&[]);
    }

    /// The same, without features of the kernel.
    pub(crate) fn restart_without(&mut self, features: &[&str]) {
        let (conflist, client) = (self.conflist(), &self.client);
        let (daemon, _) = Daemon::start(&self.site.node, &conflist, client, features);
        self.daemon = Some(daemon);
    }

    /// Ends the daemon as a service manager does.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.daemon.take().expect("a daemon").stop()
    }

    /// Waits until the daemon has ended by itself.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        self.daemon.take().expect("a daemon").wait()
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").pid()
    }

    /// Asserts that all went well, in the daemon too, and that it ends well.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.assert_no_chunk_lost();
        for row in self.ports() {
            let statistics = row.xdp_statistics.expect("the socket is open");
            for counter in ["rx_invalid_descs", "tx_invalid_descs"] {
                assert_eq!(statistics[counter], 0, "{counter} of {}", row.interface);
            }
        }
        let mut daemon = self.daemon.take().expect("a daemon");
        assert!(daemon.is_alive(), "{}", daemon.log());
        daemon.assert_calm();
        assert!(daemon.stop().success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.daemon = None;
        // A killed daemon leaves its mount; one that ended well does not.
        let _ = umount2(&self.run_dir().join("bpf"), MntFlags::MNT_DETACH);
    }
}

fn run_dir(dir: &TempDir) -> PathBuf {
    dir.path().join("run")
}

fn pod_network(dir: &TempDir, dataplane: &Value, name: &str, subnets: &[&str]) -> Network {
    let ranges: Vec<_> = subnets
        .iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    Network(json!({
        "cniVersion": "1.0.0",
        "name": name,
        "type": "sluice",
        "ipMasq": true,
        "dataplane": dataplane,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "dataDir": dir.path().join("ipam"),
        },
    }))
}
