//! The pod's side: its namespace, and what is configured inside it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice_control::LONGEST_MERGED;
use sluice_link::features::{self, Feature};
use sluice_link::{AddressOptions, LinkError, Netlink, Netns, sysctl};
use tracing::Span;

use crate::args::Args;
use crate::error::Error;
use crate::plan::Plan;

/// How long the kernel may take to complete an IPv6 address. It takes
/// milliseconds, and more where many pods come at once.
const SETTLE: Duration = Duration::from_secs(10);

/// The pod's namespace, checked to be one an interface may be made in.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) path: PathBuf,
    pub(crate) ifname: String,
}

/// What to configure inside a pod.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) plan: &'a Plan,
    /// The MAC address of every gateway.
    pub(crate) gateway_mac: [u8; 6],
    /// Whether the pod may leave checksums partial.
    pub(crate) checksum_offload: bool,
    /// Whether it may leave TCP segments merged.
    pub(crate) segmentation_offload: bool,
}

impl Pod {
    /// Opens the namespace at `CNI_NETNS`. It must not be our own, and must
    /// not have an interface of the name to be made.
    pub(crate) fn open(args: &Args) -> Result<Self, Error> {
        let path = args.netns.clone().unwrap_or_default();
        let netns = open_namespace(&path)?;
        let netlink = Netlink::in_netns(&netns).map_err(|error| bad_netns(&error))?;
        if netlink.link(&args.ifname)?.is_some() {
            return Err(Error::conflict(format!(
                "make interface {} in {}: there is one of that name already, which was left \
                 alone; remove it or attach under another name",
                args.ifname,
                path.display()
            )));
        }
        Ok(Self {
            netns,
            path,
            ifname: args.ifname.clone(),
        })
    }

    /// Configures the interface, which must exist, and brings it up.
    pub(crate) fn configure(&self, setup: &Setup) -> Result<(), Error> {
        // Another thread's work: it would log about nothing in particular.
        let span = Span::current();
        self.netns
            .run(|| span.in_scope(|| setup.apply(&self.ifname)))??;
        Ok(())
    }
}

/// Opens the namespace at `CNI_NETNS`, which must not be our own.
pub(crate) fn open_namespace(path: &Path) -> Result<Netns, Error> {
    let netns = Netns::open(path).map_err(|error| bad_netns(&error))?;
    if netns.is_same(&Netns::current()?) {
        return Err(Error::environment(format!(
            "CNI_NETNS is {}, the host's own network namespace: a pod that shares it needs \
             no network",
            path.display()
        )));
    }
    Ok(netns)
}

fn bad_netns(error: &LinkError) -> Error {
    Error::environment(format!("CNI_NETNS: {error}"))
}

impl Setup<'_> {
    /// Runs inside the pod's namespace.
    fn apply(&self, ifname: &str) -> Result<(), LinkError> {
        // Before the link comes up, when the kernel would start to look for
        // duplicates and routers.
        self.set_sysctls(ifname)?;
        let netlink = Netlink::new()?;
        self.set_features(&netlink, ifname)?;
        bring_up(&netlink, "lo")?;
        let index = bring_up(&netlink, ifname)?;
        for pod in &self.plan.addresses {
            let options = AddressOptions {
                no_prefix_route: true,
                link_scope: false,
                no_dad: matches!(pod.address, IpNet::V6(_)),
            };
            netlink.add_address(index, pod.address, options)?;
        }
        for gateway in self.plan.gateways() {
            netlink.replace_neighbour(index, gateway, self.gateway_mac)?;
        }
        let before = netlink.routes_of_all_tables()?;
        for planned in &self.plan.routes {
            let route = planned.by(index);
            // The kernel refuses an IPv6 next hop that it finds behind
            // another interface (`ip6_route_check_nh_onlink`) before it says
            // that there is a route: two interfaces in one subnet.
            let is_taken = route.destination.addr().is_ipv6()
                && before.iter().any(|other| other.has_place_of(&route));
            let added = !is_taken && netlink.add_route(&route)?;
            if !added {
                // Another interface's: with its loss at our DEL the pod would
                // have none.
                tracing::warn!(
                    "{ifname}: the container has a route to {} already, which stays",
                    route.destination
                );
            }
        }
        for pod in &self.plan.addresses {
            wait_until_delivered(&netlink, pod.address.addr())?;
        }
        Ok(())
    }

    fn set_sysctls(&self, ifname: &str) -> Result<(), LinkError> {
        let set =
            |key: &str, value: &str| sysctl::write(&format!("net/ipv6/conf/{ifname}/{key}"), value);
        if self.plan.has_ipv6() {
            // Runtimes like to switch IPv6 off in new namespaces.
            set("disable_ipv6", "0")?;
            // The addresses are IPAM's to keep apart, and nobody else can
            // answer on a link with one neighbour.
            set("accept_dad", "0")?;
            set("dad_transmits", "0")?;
            set("addr_gen_mode", "0")?;
        }
        // Nobody but us says where the pod's default route goes
        // (CVE-2020-10749), with or without an IPv6 address of ours.
        match set("accept_ra", "0") {
            // A kernel without IPv6 needs no protection from it.
            Err(error) if error.errno() == Some(libc::ENOENT) && !self.plan.has_ipv6() => Ok(()),
            other => other,
        }
    }

    fn set_features(&self, netlink: &Netlink, ifname: &str) -> Result<(), LinkError> {
        if self.segmentation_offload {
            features::disable(ifname, Feature::SegmentationButTcp)?;
            netlink.set_longest_merged(netlink.index(ifname)?, LONGEST_MERGED)?;
        }
        if self.checksum_offload {
            features::disable(ifname, Feature::TxChecksumSctp)
        } else {
            features::disable(ifname, Feature::TxChecksum)
        }
    }
}

/// The container starts as soon as ADD has answered, and must not lose the
/// answer to its first packet. IPv4 addresses work at once.
fn wait_until_delivered(netlink: &Netlink, address: IpAddr) -> Result<(), LinkError> {
    let give_up = Instant::now() + SETTLE;
    while !netlink.delivers(address)? {
        if Instant::now() > give_up {
            return Err(LinkError::Refused {
                operation: "wait until the kernel delivers to",
                object: address.to_string(),
                cause: io::ErrorKind::TimedOut.into(),
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn bring_up(netlink: &Netlink, name: &str) -> Result<u32, LinkError> {
    let index = netlink.index(name)?;
    netlink.set_up(index)?;
    Ok(index)
}
