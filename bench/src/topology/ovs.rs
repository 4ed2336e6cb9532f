//! Open vSwitch with its userspace datapath on AF_XDP, private to a node:
//! with a database, sockets and processes of its own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::process::Process;
use super::site::Site;
use super::space::run;
use super::{Pod, Space, TopologyError};

/// Where Debian's package has the database's schema.
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
/// Not on the PATH of everybody.
const DAEMONS: [&str; 2] = ["/usr/sbin/ovsdb-server", "/usr/sbin/ovs-vswitchd"];

/// A running switch. Its forwarding thread never sleeps: it stands still while
/// others are measured.
#[derive(Debug)]
pub(super) struct Ovs {
    /// Ends before its database does.
    switch: Process,
    _database: Process,
    socket: PathBuf,
}

impl Ovs {
    /// Starts a switch on a node, which forwards on `cpu`.
    ///
    /// # Errors
    /// OVS is not installed, or does not start.
    pub(super) fn start(site: &Site, cpu: usize) -> Result<Self, TopologyError> {
        if !DAEMONS
            .iter()
            .chain(&[SCHEMA])
            .all(|file| Path::new(file).exists())
        {
            return Err(TopologyError::Missing(
                "Open vSwitch is not installed (Debian: apt-get install openvswitch-switch)".into(),
            ));
        }
        let folder = site.folder.path();
        let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
        site.node
            .exec(&format!("ovsdb-tool create {} {SCHEMA}", file("conf.db")))?;
        let socket = folder.join("db.sock");
        let [server, switch] = DAEMONS;
        let mut database = Process::start(
            "ovsdb-server",
            &site.node,
            &[
                server,
                &file("conf.db"),
                &format!("--remote=punix:{}", file("db.sock")),
                &format!("--unixctl={}", file("db.ctl")),
                "-vconsole:warn",
            ],
            &folder.join("ovsdb.log"),
        )?;
        database.wait_until(|| socket.exists())?;
        vsctl(&socket, "--no-wait init")?;
        vsctl(
            &socket,
            &format!(
                "--no-wait set Open_vSwitch . other_config:pmd-cpu-mask={:#x}",
                1_u128 << cpu
            ),
        )?;
        let control = folder.join("switch.ctl");
        let mut switch = Process::start(
            "ovs-vswitchd",
            &site.node,
            &[
                &format!("OVS_RUNDIR={}", folder.display()),
                switch,
                &format!("unix:{}", socket.display()),
                &format!("--unixctl={}", control.display()),
                "-vconsole:warn",
            ],
            &folder.join("switch.log"),
        )?;
        switch.wait_until(|| control.exists())?;
        let ovs = Self {
            switch,
            _database: database,
            socket,
        };
        ovs.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
        Ok(ovs)
    }

    /// Attaches a pod by a port of type `afxdp`.
    ///
    /// # Errors
    /// OVS refuses it: it may be built without AF_XDP.
    pub(super) fn add(
        &self,
        site: &Site,
        space: Space,
        address: Ipv4Addr,
    ) -> Result<Pod, TopologyError> {
        let [.., host] = address.octets();
        let port = format!("ovs{host}");
        wire(&site.node, &space, &port, address)?;
        // As OVS's own tests of AF_XDP over veth do: it completes no checksums.
        space.exec("ethtool -K eth0 tx off")?;
        self.vsctl(&format!(
            "add-port br0 {port} -- set interface {port} type=afxdp options:n_rxq=1"
        ))?;
        let error = self.vsctl(&format!("get interface {port} error"))?;
        match error.trim() {
            "[]" => Ok(Pod { space, address }),
            error => Err(TopologyError::Missing(format!(
                "Open vSwitch refuses a port of type afxdp: {error}"
            ))),
        }
    }

    /// Lets it run, or stand still.
    pub(super) fn set_running(&self, runs: bool) {
        self.switch.signal(match runs {
            true => Signal::SIGCONT,
            false => Signal::SIGSTOP,
        });
    }

    fn vsctl(&self, words: &str) -> Result<String, TopologyError> {
        vsctl(&self.socket, words)
    }
}

fn vsctl(socket: &Path, words: &str) -> Result<String, TopologyError> {
    run(
        std::process::Command::new("ovs-vsctl")
            .arg(format!("--db=unix:{}", socket.display()))
            .arg("--timeout=15")
            .args(words.split_whitespace()),
        "the host",
    )
}

/// Makes a veth pair between the node and a pod, with one queue each way, and
/// gives the pod its address.
pub(super) fn wire(
    node: &Space,
    pod: &Space,
    port: &str,
    address: Ipv4Addr,
) -> Result<(), TopologyError> {
    let peer = pod.name();
    node.exec(&format!(
        "ip link add {port} numtxqueues 1 numrxqueues 1 type veth \
         peer name eth0 numtxqueues 1 numrxqueues 1 netns {peer}"
    ))?;
    node.exec(&format!("ip link set {port} up"))?;
    pod.exec(&format!("ip address add {address}/16 dev eth0"))?;
    pod.exec("ip link set eth0 up")?;
    Ok(())
}
