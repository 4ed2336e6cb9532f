//! The host port: a veth pair that joins the host's stack and the dataplane.
//!
//! `sluice0` is an interface of the host; what the host sends to a pod is
//! routed to it. Its other end `sluice-dp` carries the XDP program and the
//! host port's socket. Each address of a pod gets a host route: IPAM gives no
//! prefix to rely on.
//!
//! Every piece here was shown to be needed by leaving it out.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use ipnet::IpNet;
use sluice_control::{LONGEST_MERGED, PodAddress};
use sluice_link::features::{self, Feature};
use sluice_link::{
    AddressOptions, Link, LinkError, Netlink, Route, VethPair, VethPeer, XdpMode, sysctl,
};

use crate::forwarding::has_ipv6;

/// The host's end.
pub const HOST_INTERFACE: &str = "sluice0";
/// The dataplane's end.
pub const DATAPLANE_INTERFACE: &str = "sluice-dp";

/// The MAC address of every end that faces a pod or the host from the
/// dataplane's side: one for all, so that a frame keeps its meaning whichever
/// way it takes. Locally administered; spells "SLUIC".
pub const GATEWAY_MAC: [u8; 6] = *b"\x02SLUIC";
/// The MAC address of [`HOST_INTERFACE`]. The same after every start: pods and
/// their sessions need not learn a new one.
pub const HOST_MAC: [u8; 6] = *b"\x02SLUI0";

/// A pod's gateway where IPAM names none.
const DEFAULT_GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const DEFAULT_GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The next hop of every pod's route. A host's own address cannot be one
/// ("Nexthop has invalid gateway"), hence not [`DEFAULT_GATEWAY4`].
const NEXT_HOP4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
const NEXT_HOP6: Ipv6Addr = DEFAULT_GATEWAY6;

/// Our number in a route's `proto`: `ip route show proto 83` lists exactly the
/// daemon's.
const ROUTE_PROTOCOL: u8 = 83;

/// Why the host and the pods are not joined.
#[derive(Debug, thiserror::Error)]
pub enum HostPortError {
    /// An interface of that name exists and was not made by us.
    #[error(
        "make the host port: the interface {0} exists and is not Sluice's; \
         rename it, or delete it with `ip link delete {0}`"
    )]
    Foreign(&'static str),
    /// The interface just made is not there.
    #[error(
        "make the host port: {0} vanished as soon as it was made; who else manages interfaces here?"
    )]
    Vanished(&'static str),
    /// The kernel refused a step.
    #[error("host port: {0}")]
    Link(#[from] LinkError),
    /// The host has a route to the pod's address that is not ours.
    #[error(
        "route to the pod {0}: the host has another route to this very address \
         (`ip route show {0}`); remove it, or take the address out of the IPAM range"
    )]
    Routed(IpAddr),
    /// An IPv6 pod on a node without IPv6.
    #[error("route to the pod {0}: this node's kernel has IPv6 switched off")]
    NoIpv6(IpAddr),
}

/// The host port, and the gateway addresses that the host holds for pods.
/// Dropping a pair that was made anew and not yet kept removes it, and with it
/// every route, address and neighbour.
#[derive(Debug)]
pub struct HostPort {
    netlink: Rc<Netlink>,
    host: Link,
    dataplane: Link,
    /// Gateways on [`HOST_INTERFACE`], each with the number of pod addresses
    /// that use it.
    gateways: HashMap<IpAddr, usize>,
    /// Whether the pair outlives this.
    is_kept: bool,
    /// Where the program on [`DATAPLANE_INTERFACE`] runs.
    mode: XdpMode,
}

impl HostPort {
    /// Takes the pair that an earlier daemon left, with its routes, addresses
    /// and neighbours, or makes it, both ends down and silent: the program must
    /// be on [`DATAPLANE_INTERFACE`] before [`HostPort::bring_up`]. In
    /// [`XdpMode::Stack`] merged TCP segments come by it.
    ///
    /// # Errors
    /// A foreign interface has one of the names, or the kernel refuses.
    pub fn take_or_make(
        netlink: Rc<Netlink>,
        mtu: u32,
        mode: XdpMode,
    ) -> Result<Self, HostPortError> {
        let found = Self::find(&netlink)?;
        // Others come with another kernel, or other `--without`.
        let fits = |(host, dataplane): &(Link, Link)| {
            let is_in_mode = dataplane.xdp_mode.is_none_or(|old| old == mode);
            host.mtu == mtu && dataplane.mtu == mtu && is_in_mode
        };
        let (ends, is_kept) = match found {
            Some(ends) if fits(&ends) => (ends, true),
            _ => (Self::make(&netlink, mtu)?, false),
        };
        let port = Self {
            host: ends.0,
            dataplane: ends.1,
            gateways: HashMap::new(),
            is_kept,
            mode,
            netlink,
        };
        port.configure()?;
        Ok(port)
    }

    /// Leaves the pair in place for the next daemon.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    /// Whether the pair outlives this.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    fn make(netlink: &Netlink, mtu: u32) -> Result<(Link, Link), HostPortError> {
        netlink.delete_link(HOST_INTERFACE)?;
        netlink.create_veth(&VethPair {
            name: HOST_INTERFACE.to_owned(),
            mac: Some(HOST_MAC),
            mtu,
            peer: VethPeer {
                name: DATAPLANE_INTERFACE.to_owned(),
                mac: Some(GATEWAY_MAC),
                mtu,
                netns: None,
            },
        })?;
        Self::find(netlink)?.ok_or(HostPortError::Vanished(HOST_INTERFACE))
    }

    /// The pair's two ends, the host's first, if it is there: both names with
    /// both MAC addresses are nobody else's.
    ///
    /// # Errors
    /// A foreign interface has one of the names.
    pub fn find(netlink: &Netlink) -> Result<Option<(Link, Link)>, HostPortError> {
        let host = netlink.link(HOST_INTERFACE)?;
        let dataplane = netlink.link(DATAPLANE_INTERFACE)?;
        match (host, dataplane) {
            (None, None) => Ok(None),
            (Some(host), Some(dataplane))
                if host.mac == Some(HOST_MAC) && dataplane.mac == Some(GATEWAY_MAC) =>
            {
                Ok(Some((host, dataplane)))
            }
            (Some(_), _) => Err(HostPortError::Foreign(HOST_INTERFACE)),
            (None, Some(_)) => Err(HostPortError::Foreign(DATAPLANE_INTERFACE)),
        }
    }

    /// The dataplane's end, for the socket and the program.
    #[must_use]
    pub fn dataplane_end(&self) -> &Link {
        &self.dataplane
    }

    /// Where the program on the dataplane's end runs.
    #[must_use]
    pub fn mode(&self) -> XdpMode {
        self.mode
    }

    /// The host's end.
    #[must_use]
    pub fn host_end(&self) -> &Link {
        &self.host
    }

    /// Whether `link` is one of the two ends.
    #[must_use]
    pub fn has(&self, link: &Link) -> bool {
        [self.host.index, self.dataplane.index].contains(&link.index)
    }

    /// The addresses that the dataplane answers for on this port: the next
    /// hops of [`HOST_INTERFACE`].
    #[must_use]
    pub fn next_hops() -> Vec<IpAddr> {
        vec![NEXT_HOP4.into(), NEXT_HOP6.into()]
    }

    /// Brings both ends up and gives them what the link must be up for.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn bring_up(&self) -> Result<(), HostPortError> {
        let (host, dataplane) = (self.host.index, self.dataplane.index);
        self.netlink.set_up(dataplane)?;
        self.netlink.set_up(host)?;
        // On sluice0 so that it always has an IPv4 address: with the last one
        // the kernel removes all IPv4 routes and permanent neighbours of an
        // interface (fib_disable_ip). On sluice-dp because rp_filter=2 drops
        // what comes in by an interface without one.
        let on_link = AddressOptions {
            link_scope: true,
            ..AddressOptions::default()
        };
        for index in [host, dataplane] {
            self.netlink
                .add_address(index, host_net(DEFAULT_GATEWAY4.into()), on_link)?;
        }
        self.netlink
            .replace_neighbour(host, NEXT_HOP4.into(), GATEWAY_MAC)?;
        if has_ipv6() {
            self.netlink
                .replace_neighbour(host, NEXT_HOP6.into(), GATEWAY_MAC)?;
        }
        self.netlink.replace_route(&Route {
            scope: Route::SCOPE_LINK,
            protocol: ROUTE_PROTOCOL,
            ..Route::new(host_net(NEXT_HOP4.into()), host)
        })?;
        Ok(())
    }

    /// Whether the host holds this address as pods' gateway.
    #[must_use]
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        is_default_gateway(address) || self.gateways.contains_key(&address)
    }

    /// Routes a pod's address to the dataplane and makes its gateway an
    /// address of the host: the pod can ping it, and what the host sends to
    /// the pod comes from it.
    ///
    /// # Errors
    /// The kernel's reason; then nothing has changed.
    pub fn add_pod(&mut self, pod: &PodAddress) -> Result<(), HostPortError> {
        if pod.address.addr().is_ipv6() && !has_ipv6() {
            return Err(HostPortError::NoIpv6(pod.address.addr()));
        }
        self.use_gateway(pod.gateway)?;
        let added = match self.netlink.add_route(&self.route(pod)) {
            Ok(true) => return Ok(()),
            Ok(false) => HostPortError::Routed(pod.address.addr()),
            Err(error) => error.into(),
        };
        self.release_gateway(pod.gateway)?;
        Err(added)
    }

    /// Removes what [`HostPort::add_pod`] made, the gateway with its last user.
    ///
    /// # Errors
    /// The kernel's reason; the gateway is released even if the route stays.
    pub fn remove_pod(&mut self, pod: &PodAddress) -> Result<(), HostPortError> {
        let route = gone_is_fine(self.netlink.delete_route(&self.route(pod)));
        let gateway = self.release_gateway(pod.gateway);
        route?;
        gateway
    }

    /// Does what [`HostPort::add_pod`] does where some or all of it is done
    /// already: `found` are the routes that are there.
    ///
    /// # Errors
    /// As [`HostPort::add_pod`].
    pub fn restore_pod(&mut self, pod: &PodAddress, found: &[Route]) -> Result<(), HostPortError> {
        let route = self.route(pod);
        if found.contains(&route) {
            return self.use_gateway(pod.gateway);
        }
        let is_old = |old: &&Route| self.is_ours(old) && old.destination == route.destination;
        if let Some(old) = found.iter().find(is_old) {
            self.netlink.delete_route(old)?;
        }
        self.add_pod(pod)
    }

    /// Removes the routes to pods other than these, and gateways of pods that
    /// are gone.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn sweep(&self, pods: &HashSet<IpAddr>) -> Result<(), HostPortError> {
        for route in self.netlink.routes()? {
            let to = route.destination.addr();
            if self.is_ours(&route) && !pods.contains(&to) && to != IpAddr::V4(NEXT_HOP4) {
                tracing::info!(%route, "removed: it is no pod's");
                self.netlink.delete_route(&route)?;
            }
        }
        for address in self.netlink.addresses(self.host.index)? {
            let gateway = address.addr();
            if address == host_net(gateway) && !self.is_gateway(gateway) {
                tracing::info!(%gateway, "removed: it is no pod's");
                self.netlink.delete_address(self.host.index, address)?;
            }
        }
        Ok(())
    }

    fn is_ours(&self, route: &Route) -> bool {
        route.interface == self.host.index && route.protocol == ROUTE_PROTOCOL
    }

    fn configure(&self) -> Result<(), LinkError> {
        for interface in [HOST_INTERFACE, DATAPLANE_INTERFACE] {
            silence(interface)?;
            // Loose, and so also where `all` is strict: the kernel takes the larger.
            sysctl::write(&format!("net/ipv4/conf/{interface}/rp_filter"), "2")?;
            // What comes in by sluice0 and leaves by it (a Service) is no detour.
            sysctl::write(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
        }
        // The host's own answers may come in by sluice-dp.
        sysctl::write(
            &format!("net/ipv4/conf/{DATAPLANE_INTERFACE}/accept_local"),
            "1",
        )?;
        if self.mode == XdpMode::Stack {
            features::disable(HOST_INTERFACE, Feature::SegmentationButTcp)?;
            self.netlink
                .set_longest_merged(self.host.index, LONGEST_MERGED)?;
        }
        if has_ipv6() {
            // The node may have IPv6 off for new interfaces; IPv6 pods need it here.
            sysctl::write(&format!("net/ipv6/conf/{HOST_INTERFACE}/disable_ipv6"), "0")?;
        }
        Ok(())
    }

    fn route(&self, pod: &PodAddress) -> Route {
        let address = pod.address.addr();
        let is_ipv4 = address.is_ipv4();
        Route {
            gateway: Some(if is_ipv4 {
                NEXT_HOP4.into()
            } else {
                NEXT_HOP6.into()
            }),
            onlink: is_ipv4,
            source: (!is_default_gateway(pod.gateway)).then_some(pod.gateway),
            protocol: ROUTE_PROTOCOL,
            ..Route::new(host_net(address), self.host.index)
        }
    }

    fn use_gateway(&mut self, gateway: IpAddr) -> Result<(), HostPortError> {
        if is_default_gateway(gateway) {
            return Ok(());
        }
        if !self.gateways.contains_key(&gateway) {
            let options = AddressOptions {
                no_prefix_route: true,
                no_dad: gateway.is_ipv6(),
                ..AddressOptions::default()
            };
            self.netlink
                .add_address(self.host.index, host_net(gateway), options)?;
        }
        *self.gateways.entry(gateway).or_default() += 1;
        Ok(())
    }

    fn release_gateway(&mut self, gateway: IpAddr) -> Result<(), HostPortError> {
        match self.gateways.get_mut(&gateway) {
            None => Ok(()),
            Some(users) if *users > 1 => {
                *users -= 1;
                Ok(())
            }
            Some(_) => {
                self.gateways.remove(&gateway);
                let address = host_net(gateway);
                gone_is_fine(self.netlink.delete_address(self.host.index, address))
            }
        }
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        if let Err(error) = self.netlink.delete_link(HOST_INTERFACE) {
            tracing::warn!(%error, "could not remove the host port");
        }
    }
}

/// Makes the host's end of a pod's veth silent and deaf to router
/// advertisements: no address of its own, hence no traffic of its own.
///
/// # Errors
/// The interface is gone, or `/proc/sys` cannot be written.
pub fn silence(interface: &str) -> Result<(), LinkError> {
    if !has_ipv6() {
        return Ok(());
    }
    // IN6_ADDR_GEN_MODE_NONE.
    sysctl::write(&format!("net/ipv6/conf/{interface}/addr_gen_mode"), "1")?;
    // A router joins the group of all routers and reports that, address or not
    // (MLD). Version 1 leaves it without a report. Whether the node forwards
    // is for `all` to say.
    sysctl::write(&format!("net/ipv6/conf/{interface}/force_mld_version"), "1")?;
    sysctl::write(&format!("net/ipv6/conf/{interface}/forwarding"), "0")?;
    sysctl::write(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")
}

fn is_default_gateway(gateway: IpAddr) -> bool {
    gateway == IpAddr::V4(DEFAULT_GATEWAY4) || gateway == IpAddr::V6(DEFAULT_GATEWAY6)
}

fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// When the interface was deleted its routes and addresses went with it.
fn gone_is_fine(result: Result<bool, LinkError>) -> Result<(), HostPortError> {
    match result {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}
