//! A node with pods, ready to be measured.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sluice_control::{AttachmentId, LimitChange};

use super::chain::list;
use super::daemon;
use super::floor::Floor;
use super::ovs::Ovs;
use super::process::Process;
use super::runtime::{Container, Limits, List};
use super::site::Site;
use super::{Pod, Space, Tools, TopologyError, interrupt};

/// Where pods serve.
pub(crate) const POD_PORT: u16 = 5201;
/// The server's hostPort; the pods of [`Feature::HostPorts`] have those after it.
pub(crate) const HOST_PORT: u16 = 8000;
/// A Service whose endpoint is the server.
pub(crate) const SERVICE: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
/// Pods of a node of [`Feature::HostPorts`] beside the client: as many
/// whatever the number of mappings, for each is a port.
const MAPPED_PODS: u16 = 100;
/// As many of its hostPorts as a pod has.
const MAPPINGS_OF_A_POD: u16 = 100;

/// How pods are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Design {
    /// The plugin and the daemon of this project.
    Sluice,
    /// The reference plugin `bridge`, on a node set up for Kubernetes.
    Bridge,
    /// The same without `bridge-nf-call-iptables`: Services do not work
    /// between pods of one node then.
    BridgeWithoutNetfilter,
    /// `bridge` with the MTU that our pods have among themselves.
    JumboBridge,
    /// The reference plugin `ptp`.
    Ptp,
    /// Open vSwitch, userspace datapath, ports of type `afxdp`.
    Ovs,
    /// A bare loop over two AF_XDP sockets.
    Floor,
}

/// What pods have beyond an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Feature {
    Plain,
    /// The server has a hostPort.
    HostPort,
    /// All pods have limits that nothing reaches.
    Shaped,
    /// hostPorts and limits: pods of the whole chain.
    Whole,
    /// Pods whose interfaces have an MTU of 1500.
    Ethernet,
    /// The server is the endpoint of a Service.
    Service,
    /// The dataplane has this many workers.
    Workers(u16),
    /// This many other pods, idle.
    Crowd(u16),
    /// This many hostPorts on the node.
    HostPorts(u16),
    /// The server has limits, for which a runtime asks.
    Limited(Limits),
    /// This many other pods have them.
    LimitedCrowd(u16, Limits),
}

impl Feature {
    pub(super) fn has_host_ports(self) -> bool {
        matches!(self, Self::HostPort | Self::HostPorts(_) | Self::Whole)
    }

    pub(super) fn is_shaped(self) -> bool {
        matches!(self, Self::Shaped | Self::Whole)
    }

    /// Whether a runtime asks for limits.
    pub(super) fn is_asked_for_limits(self) -> bool {
        matches!(self, Self::Limited(_) | Self::LimitedCrowd(..))
    }

    pub(super) fn max_ports(self) -> u16 {
        match self {
            Self::Plain
            | Self::HostPort
            | Self::Shaped
            | Self::Ethernet
            | Self::Service
            | Self::Workers(_)
            | Self::Limited(_) => 8,
            Self::Whole => 64,
            Self::Crowd(_) | Self::HostPorts(_) | Self::LimitedCrowd(..) => 256,
        }
    }
}

/// Which node to set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BedSpec {
    pub(crate) design: Design,
    pub(crate) feature: Feature,
}

/// A node with a pod `client`, a pod `server`, and a host outside. Everything
/// that was made for it goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Bed {
    // In this order: what forwards ends before its interfaces go.
    engine: Engine,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) others: Vec<Pod>,
    /// How to attach more pods, if plugins do that.
    list: Option<List>,
    site: Site,
}

/// What forwards.
#[derive(Debug)]
enum Engine {
    Kernel,
    Daemon(Process),
    Ovs(Ovs),
    Floor(Floor),
}

impl Bed {
    /// Sets up a node.
    ///
    /// # Errors
    /// Something is missing ([`TopologyError::Missing`]), or was refused.
    pub(crate) fn build(spec: BedSpec, tools: &Tools) -> Result<Self, TopologyError> {
        let site = Site::new()?;
        let [client, server] = [site.space("client")?, site.space("server")?];
        let bed = match (spec.design, list(&site, tools, spec.design, spec.feature)) {
            (Design::Ovs, _) => {
                let ovs = Ovs::start(&site, tools.worker_cpu)?;
                let client = ovs.add(&site, client, Ipv4Addr::new(10, 77, 0, 2))?;
                let server = ovs.add(&site, server, Ipv4Addr::new(10, 77, 0, 3))?;
                Self::of_two(Engine::Ovs(ovs), site, [client, server])
            }
            (_, None) => {
                let (floor, pods) = Floor::start(&site, [client, server], tools.worker_cpu)?;
                Self::of_two(Engine::Floor(floor), site, pods)
            }
            (design, Some(list)) => {
                let engine = match design {
                    Design::Sluice => {
                        Engine::Daemon(daemon::start(&site, tools, &list.plugins[0])?)
                    }
                    _ => Engine::Kernel,
                };
                site.set_bridge_netfilter(design != Design::BridgeWithoutNetfilter)?;
                Self::attach(site, engine, list, spec.feature, [client, server])?
            }
        };
        if spec.feature == Feature::Service {
            bed.make_service()?;
        }
        bed.set_running(false);
        Ok(bed)
    }

    fn of_two(engine: Engine, site: Site, [client, server]: [Pod; 2]) -> Self {
        Self {
            engine,
            client,
            server,
            others: vec![],
            list: None,
            site,
        }
    }

    /// Attaches the pods of a case by plugins.
    fn attach(
        // Dropped last if a plugin fails.
        site: Site,
        engine: Engine,
        list: List,
        feature: Feature,
        [client, server]: [Space; 2],
    ) -> Result<Self, TopologyError> {
        let client = Pod::add_plain(client, &list)?;
        let mut container = Container::new(&server);
        let mut others = vec![];
        match feature {
            Feature::HostPort | Feature::Whole => {
                container = container.mapped(HOST_PORT, POD_PORT, &["tcp", "udp"]);
            }
            Feature::HostPorts(count) => {
                let mut ports = HOST_PORT..HOST_PORT + count;
                container = map(container, &mut ports);
                for number in 1..MAPPED_PODS {
                    interrupt::check()?;
                    let space = site.space(&format!("m{number}"))?;
                    let container = map(Container::new(&space), &mut ports);
                    others.push(Pod::add(space, &container, &list)?);
                }
            }
            Feature::Crowd(count) => {
                for number in 0..count {
                    interrupt::check()?;
                    let space = site.space(&format!("i{number}"))?;
                    others.push(Pod::add_plain(space, &list)?);
                }
            }
            Feature::Limited(limits) => container = container.limited(limits),
            Feature::LimitedCrowd(count, limits) => {
                for number in 0..count {
                    interrupt::check()?;
                    let space = site.space(&format!("s{number}"))?;
                    let container = Container::new(&space).limited(limits);
                    others.push(Pod::add(space, &container, &list)?);
                }
            }
            Feature::Plain
            | Feature::Shaped
            | Feature::Ethernet
            | Feature::Service
            | Feature::Workers(_) => {}
        }
        let server = Pod::add(server, &container, &list)?;
        Ok(Self {
            engine,
            client,
            server,
            others,
            list: Some(list),
            site,
        })
    }

    /// Lets what forwards run for a measurement, or stand still, where it
    /// would not sleep by itself.
    pub(crate) fn set_running(&self, runs: bool) {
        match &self.engine {
            Engine::Kernel | Engine::Daemon(_) => {}
            Engine::Ovs(ovs) => ovs.set_running(runs),
            Engine::Floor(floor) => floor.set_running(runs),
        }
    }

    pub(crate) fn node(&self) -> &Space {
        &self.site.node
    }

    pub(crate) fn outside(&self) -> &Space {
        &self.site.outside
    }

    /// The daemon's process ID, where there is one.
    pub(crate) fn daemon(&self) -> Option<Pid> {
        match &self.engine {
            Engine::Daemon(daemon) => i32::try_from(daemon.id()).ok().map(Pid::from_raw),
            Engine::Kernel | Engine::Ovs(_) | Engine::Floor(_) => None,
        }
    }

    /// The pods beside the client and the server.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Pod> {
        self.others.iter()
    }

    /// Ends the daemon by a signal, and starts it again: until it answers.
    ///
    /// # Errors
    /// There is no daemon of ours, or it does not start.
    pub(crate) fn restart(&mut self, tools: &Tools, signal: Signal) -> Result<(), TopologyError> {
        let (Engine::Daemon(daemon), Some(list)) = (&self.engine, &self.list) else {
            return Err(no_daemon());
        };
        daemon.signal(signal);
        // Dropping it waits for its end.
        self.engine = Engine::Kernel;
        self.engine = Engine::Daemon(daemon::start(&self.site, tools, &list.plugins[0])?);
        Ok(())
    }

    /// Changes the server's limits in both directions.
    ///
    /// # Errors
    /// There is no daemon of ours, or it refuses.
    pub(crate) fn set_limits(&self, change: LimitChange) -> Result<(), TopologyError> {
        let (Engine::Daemon(_), Some(list)) = (&self.engine, &self.list) else {
            return Err(no_daemon());
        };
        let server = AttachmentId {
            network: list.name.to_owned(),
            container_id: self.server.space.name().to_owned(),
            ifname: "eth0".to_owned(),
        };
        daemon::client(&self.site).set_shaping(server, Some(change), Some(change))?;
        Ok(())
    }

    /// A namespace for one more pod.
    ///
    /// # Errors
    /// As [`Space::new`].
    pub(crate) fn space(&self, role: &str) -> Result<Space, TopologyError> {
        self.site.space(role)
    }

    /// How more pods are attached.
    pub(crate) fn list(&self) -> Option<&List> {
        self.list.as_ref()
    }

    /// What kube-proxy's iptables mode writes for a Service with one endpoint.
    fn make_service(&self) -> Result<(), TopologyError> {
        let (ip, port) = (SERVICE.ip(), SERVICE.port());
        let server = self.server.address;
        let iptables = |rule: &str| self.node().exec(&format!("iptables -w -t nat {rule}"));
        for chain in [
            "KUBE-SERVICES",
            "KUBE-SVC-BENCH",
            "KUBE-SEP-BENCH",
            "KUBE-MARK-MASQ",
        ] {
            iptables(&format!("-N {chain}"))?;
        }
        iptables("-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000")?;
        for hook in ["PREROUTING", "OUTPUT"] {
            iptables(&format!("-I {hook} -j KUBE-SERVICES"))?;
        }
        iptables("-I POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE")?;
        iptables(&format!("-A KUBE-SEP-BENCH -s {server} -j KUBE-MARK-MASQ"))?;
        for protocol in ["tcp", "udp"] {
            iptables(&format!(
                "-A KUBE-SERVICES -d {ip} -p {protocol} --dport {port} -j KUBE-SVC-BENCH"
            ))?;
            iptables(&format!(
                "-A KUBE-SEP-BENCH -p {protocol} -j DNAT --to-destination {server}:{POD_PORT}"
            ))?;
        }
        iptables("-A KUBE-SVC-BENCH -j KUBE-SEP-BENCH")?;
        Ok(())
    }
}

fn no_daemon() -> TopologyError {
    TopologyError::Missing("this design has no sluiced that could be changed".into())
}

/// Gives a container the next hundred hostPorts, if so many are left.
fn map(container: Container, host_ports: &mut Range<u16>) -> Container {
    let own = host_ports.by_ref().take(MAPPINGS_OF_A_POD.into());
    own.zip(POD_PORT..)
        .fold(container, |container, (host_port, port)| {
            container.mapped(host_port, port, &["udp"])
        })
}
