//! What an attachment must fulfil before anything is done for it.

use sluice_control::{Attachment, ErrorCode, PodAddress};
use sluice_link::{Link, Route};

use super::{Node, is_pods};
use crate::{listeners, probe};

impl Node {
    pub(super) fn check_mtu(&self, attachment: &Attachment) -> Result<(), String> {
        let max_mtu = probe::max_mtu(self.report.features());
        if attachment.mtu > max_mtu {
            return Err(format!(
                "the MTU {} is above {max_mtu}, the most that this node can carry; \
                 lower localMtu and mtu (`sluiced show kernel` says what limits it)",
                attachment.mtu
            ));
        }
        Ok(())
    }

    /// An address or interface has one holder, and a gateway is no pod. `routes`
    /// are the host's.
    pub(super) fn check_rivals(&self, wanted: &Attachment, routes: &[Route]) -> Result<(), String> {
        if let Some((holder, claim)) = self.book.rival(wanted) {
            return Err(format!("the {claim} belongs to {}", holder.attachment));
        }
        if let Some((holder, claim)) = self
            .cut_off
            .iter()
            .find_map(|pod| Some((pod, pod.claim(wanted)?)))
        {
            return Err(format!(
                "the {claim} belongs to the pod of the interface {}, which an earlier daemon \
                 served and this one does not; delete that pod first",
                holder.interface
            ));
        }
        for pod in &wanted.addresses {
            let address = pod.address.addr();
            if self.wiring.is_gateway(address) {
                return Err(format!(
                    "the address {address} is a gateway of this node's pods"
                ));
            }
            self.check_is_no_ones_on_the_host(pod, routes)?;
            if let Some(holder) = self.book.owner(pod.gateway) {
                return Err(format!(
                    "the gateway {} is the address of {}",
                    pod.gateway, holder.attachment
                ));
            }
        }
        Ok(())
    }

    /// The node itself must not lose an address or its router to a pod.
    fn check_is_no_ones_on_the_host(
        &self,
        pod: &PodAddress,
        routes: &[Route],
    ) -> Result<(), String> {
        let (address, gateway) = (pod.address.addr(), pod.gateway);
        let is_own = self.netlink.delivers(address);
        if is_own.map_err(|error| error.to_string())? {
            return Err(format!(
                "the address {address} is this node's own; take it out of the IPAM range"
            ));
        }
        let mut routers = routes
            .iter()
            .filter(|r| !self.wiring.is_host_port(r.interface));
        let hit = routers.find_map(|r| r.gateway.filter(|g| [address, gateway].contains(g)));
        match hit {
            Some(router) => Err(format!(
                "the address {router} is a router of this node: pods need a subnet of their own"
            )),
            None => Ok(()),
        }
    }

    /// The host's end of the pod's veth. Name and MAC address show that the plugin
    /// made it: the program must not go onto the node's own interfaces.
    pub(super) fn host_end(&self, attachment: &Attachment) -> Result<Link, (ErrorCode, String)> {
        let name = &attachment.host_ifname;
        let link = self
            .netlink
            .link(name)
            .map_err(|error| (ErrorCode::Failed, error.to_string()))?;
        match link {
            // A start amid an ADD removes what no journal file names.
            None => Err((
                ErrorCode::Busy,
                format!(
                    "there is no interface {name} in the daemon's network namespace: if sluiced \
                     was started meanwhile, it removed it; try again"
                ),
            )),
            Some(link) if !is_pods(&link) => Err((
                ErrorCode::Invalid,
                format!("the interface {name} is not the host's end of a pod's veth"),
            )),
            Some(link) => Ok(link),
        }
    }
}

/// Connections to a process of the host must not go to a pod instead.
pub(super) fn check_host_ports_are_free(
    attachment: &Attachment,
) -> Result<(), (ErrorCode, String)> {
    let wanted: Vec<_> = attachment.redirects().map(|r| r.from).collect();
    match listeners::find(&wanted) {
        Ok(None) => Ok(()),
        Ok(Some((from, listener))) => {
            let message = format!("the hostPort, {from}, is taken: {listener}");
            Err((ErrorCode::Conflict, message))
        }
        Err(error) => {
            let message = format!("look who listens on the host's ports: {error}");
            Err((ErrorCode::Failed, message))
        }
    }
}
