//! Connections that the kernel tracks: those to forget, and those that go on with
//! another daemon.

use std::net::IpAddr;

use sluice_control::{Protocol, Redirect};

use super::Wiring;
use crate::netfilter::{self, Stale, Translated};
use crate::packet::{Flow, mapped};
use crate::port::PortId;
use crate::sessions::Session;

impl Wiring {
    /// Makes the kernel forget what clients of these mappings sent by UDP before
    /// the rules were there: it would go on to the host itself, or to a pod that
    /// is gone. A new TCP connection is one also where the old one was; and what
    /// the host itself has open on that port is none of ours.
    pub(in crate::node) fn forget_untranslated(&self, redirects: impl Iterator<Item = Redirect>) {
        let datagrams: Vec<Redirect> = redirects
            .filter(|redirect| redirect.from.protocol == Protocol::Udp)
            .collect();
        self.forget_connections(&datagrams, Stale::Elsewhere);
    }

    /// Makes the kernel forget connections of these mappings. A kernel that
    /// cannot makes no worse a node than one that is slow to.
    pub(in crate::node) fn forget_connections(&self, redirects: &[Redirect], stale: Stale) {
        let is_nodes = |address| self.netlink.delivers(address).unwrap_or(false);
        match netfilter::forget(redirects, stale, is_nodes) {
            Ok(0) => {}
            Ok(connections) => tracing::debug!(connections, "forgotten"),
            Err(error) => tracing::warn!(
                %error,
                "could not forget tracked connections of hostPorts: some may go astray until they time out"
            ),
        }
    }

    /// Has answers between pods go back to the host where it translates what
    /// they answer: connections that it tracks from before this daemon. `pod`
    /// says whose an address is.
    pub(in crate::node) fn resume_sessions(&self, pod: impl Fn(IpAddr) -> Option<PortId>) {
        let Some(host) = self.host.as_ref().map(|host| host.id) else {
            return;
        };
        let connections = match netfilter::translated() {
            Ok(connections) => connections,
            Err(error) => {
                tracing::warn!(
                    %error,
                    "could not list tracked connections: those between pods by Services or \
                     hostPorts may end"
                );
                return;
            }
        };
        let session = |connection: Translated| {
            pod(connection.client.ip())?;
            let flow = Flow {
                src: mapped(connection.client.ip()),
                dst: mapped(connection.server.ip()),
                src_port: connection.client.port(),
                dst_port: connection.server.port(),
                protocol: connection.protocol,
            };
            Some(Session {
                original: flow,
                translated: flow,
                pod: pod(connection.server.ip())?,
                client: host,
                next_hop: None,
            })
        };
        let sessions = connections.into_iter().filter_map(session).collect();
        match self.fleet.resume(sessions) {
            Ok(0) => {}
            Ok(resumed) => tracing::info!(resumed, "conversations go on by way of the host"),
            Err(error) => tracing::warn!(%error, "could not take up conversations"),
        }
    }
}
