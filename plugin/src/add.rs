//! ADD: attach a pod.
//!
//! First everything is checked, then done, and what was done is undone in
//! reverse if a later step fails.

use serde_json::Value;
use sluice_control::{
    Attachment, AttachmentId, Client, DataplaneSettings, NodeFacts, PodName, Request, Shaping,
};
use sluice_link::{Netlink, VethPair, VethPeer};

use crate::args::Args;
use crate::config::{Mtus, Network, Settings, is_at_least};
use crate::del;
use crate::error::Error;
use crate::ipam::Ipam;
use crate::log;
use crate::mac;
use crate::names;
use crate::plan::Plan;
use crate::pod::{Pod, Setup};
use crate::requests::Requests;
use crate::result::{AddResult, Interface, Ip, IpamResult};
use crate::undo::Undo;

/// The interface that a default route belongs to. Secondary networks, which
/// come under other names, must not take it over unasked.
const MAIN_IFNAME: &str = "eth0";

/// Attaches the pod, and returns the result to print.
pub(crate) fn add(args: &Args, network: &Network) -> Result<Value, Error> {
    let add = Add::check(args, network)?;
    let mut undo = Undo::default();
    let outcome = add.carry_out(&mut undo);
    let result = undo.settle(outcome)?;
    result
        .after(add.settings.prev_result)
        .map_err(|error| Error::decode(format!("encode the result: {error}")))
}

/// An ADD that passed all checks.
struct Add<'a> {
    network: &'a Network,
    settings: Settings,
    requests: Requests,
    shaping: Shaping,
    id: AttachmentId,
    /// Whose attachment it is, if the runtime says.
    owner: Option<PodName>,
    host_ifname: String,
    pod_mac: [u8; 6],
    pod: Pod,
    ipam: Ipam<'a>,
    client: Client,
    facts: NodeFacts,
    mtus: Mtus,
    /// The host's namespace.
    netlink: Netlink,
}

impl<'a> Add<'a> {
    /// Checks all that can be checked without changing anything.
    fn check(args: &Args, network: &'a Network) -> Result<Self, Error> {
        let settings = network.settings()?;
        let requests = network.requests()?;
        let limits = network.limits()?;
        let asked_mac = requests.mac(&args.cni_args)?;
        let owner = args.cni_args.pod()?;
        let ipam = Ipam::find_for(args, network)?;
        let pod = Pod::open(args)?;
        let client = Client::new(&settings.dataplane.socket());
        let facts = log::timed("ask the daemon for facts", || client.describe())?;
        let mtus = settings.mtus(&facts)?;
        let shaping = limits.with_chained(&facts, &network.name).settle(mtus);
        warn_of_differences(&settings.dataplane, &facts.settings);

        let id = network.attachment_id(args);
        let host_ifname = names::host_ifname(&id);
        let netlink = Netlink::new()?;
        if netlink.link(&host_ifname)?.is_some() {
            return Err(Error::conflict(format!(
                "attach {id}: its host interface {host_ifname} exists, so it is attached \
                 already; run DEL for it first"
            )));
        }
        Ok(Self {
            network,
            settings,
            requests,
            shaping,
            owner,
            pod_mac: asked_mac.unwrap_or_else(|| names::pod_mac(&id)),
            id,
            host_ifname,
            pod,
            ipam,
            client,
            facts,
            mtus,
            netlink,
        })
    }

    /// Makes everything; each step's reversal is on `undo` before the step.
    fn carry_out<'b>(&'b self, undo: &mut Undo<'b>) -> Result<AddResult, Error> {
        self.claim()?;
        undo.push(|| del::delete_link(&self.netlink, &self.host_ifname));
        undo.push(|| self.ipam.del());
        let ipam = self.ipam.add()?;
        self.requests.check_addresses(&ipam)?;
        let mtus = self.mtus.under(&self.shaping);
        let plan = Plan::new(&ipam, self.makes_default_routes(), mtus)?;
        let attachment = Attachment {
            id: self.id.clone(),
            host_ifname: self.host_ifname.clone(),
            pod_mac: self.pod_mac,
            addresses: plan.addresses.clone(),
            mtu: self.mtus.local,
            ip_masq: self.settings.ip_masq,
            pod: self.owner.clone(),
            mappings: self.requests.mappings.clone().unwrap_or_default(),
            snat: self.settings.snat(),
            masq_all: self.settings.masq_all,
            uplink_mtu: Some(self.mtus.uplink),
            shaping: self.shaping.clone(),
            reshaped: false,
            gro: self.settings.gro(),
        };
        attachment.validate().map_err(|error| {
            Error::ipam(format!(
                "use the addresses that IPAM gave {}: {error}",
                self.id
            ))
        })?;
        undo.push(|| del::detach(&self.client, &self.id));
        let netns = Some(self.pod.path.clone());
        log::timed("attach", || {
            self.client.ask(Request::Attach { attachment, netns })
        })?;

        // After Attach, which brings the host's end up: an interface that
        // comes up with its carrier there can send at once, one that gets it
        // later only when the kernel's link watch has run (dev_activate).
        let setup = Setup {
            plan: &plan,
            gateway_mac: self.facts.gateway_mac,
            checksum_offload: self.facts.checksum_offload,
            segmentation_offload: self.facts.tcp_segmentation_offload,
        };
        log::timed("configure the pod", || self.pod.configure(&setup))?;
        Ok(self.result(&plan, &ipam))
    }

    /// Makes the veth pair. Its name follows from the attachment, and the
    /// kernel gives a name once: of ADDs of one attachment at the same time
    /// all but one end here, before they could touch the winner's addresses.
    /// It is made whole or not at all, so that a failure has nothing to undo.
    fn claim(&self) -> Result<(), Error> {
        let pair = VethPair {
            name: self.host_ifname.clone(),
            mac: Some(self.facts.gateway_mac),
            mtu: self.mtus.local,
            peer: VethPeer {
                name: self.pod.ifname.clone(),
                mac: Some(self.pod_mac),
                mtu: self.mtus.local,
                netns: Some(&self.pod.netns),
            },
        };
        let made = log::timed("make the veth pair", || self.netlink.create_veth(&pair));
        made.map_err(|error| match error.errno() {
            Some(libc::EEXIST) => Error::conflict(format!(
                "attach {}: {error}: another ADD was faster; run DEL for it first",
                self.id
            )),
            _ => error.into(),
        })
    }

    fn makes_default_routes(&self) -> bool {
        self.id.ifname == MAIN_IFNAME || self.settings.is_default_gateway
    }

    fn result(&self, plan: &Plan, ipam: &IpamResult) -> AddResult {
        let version = self.network.version;
        let mtu = |bytes: u32| is_at_least(version, "1.1.0").then_some(bytes);
        let interfaces = vec![
            Interface {
                name: self.host_ifname.clone(),
                mac: mac::text(self.facts.gateway_mac),
                mtu: mtu(self.mtus.local),
                sandbox: None,
            },
            Interface {
                name: self.pod.ifname.clone(),
                mac: mac::text(self.pod_mac),
                mtu: mtu(self.mtus.local),
                sandbox: Some(self.pod.path.display().to_string()),
            },
        ];
        let pod_end = interfaces.len() - 1;
        let ips = plan.addresses.iter();
        let routes = plan.routes.iter();
        AddResult {
            version,
            interfaces,
            ips: ips
                .map(|pod| Ip::new(version, pod.address, pod.gateway, pod_end))
                .collect(),
            routes: routes
                .filter_map(|route| route.in_result(version))
                .collect(),
            dns: self.settings.dns.or(&ipam.dns).clone(),
        }
    }
}

/// The daemon keeps the settings it was started with: say where the
/// configuration has moved on.
fn warn_of_differences(ours: &DataplaneSettings, daemons: &DataplaneSettings) {
    for line in differences(ours, daemons) {
        tracing::warn!("{line}");
    }
}

fn differences(ours: &DataplaneSettings, daemons: &DataplaneSettings) -> Vec<String> {
    let (Ok(Value::Object(ours)), Ok(daemons)) =
        (serde_json::to_value(ours), serde_json::to_value(daemons))
    else {
        return Vec::new();
    };
    ours.iter()
        .filter(|(key, value)| daemons[key.as_str()] != **value)
        .map(|(key, value)| {
            format!(
                "dataplane.{key} is {value} in the network configuration, but the daemon runs \
                 with {}; restart sluiced to change it",
                daemons[key.as_str()]
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_settings_are_named_with_both_values() {
        let daemons = DataplaneSettings::default();
        assert_eq!(differences(&daemons, &daemons), Vec::<String>::new());
        let ours = DataplaneSettings {
            max_ports: 3,
            ..DataplaneSettings::default()
        };
        let lines = differences(&ours, &daemons);
        assert_eq!(lines.len(), 1);
        for needle in ["dataplane.maxPorts", "is 3", "runs with 256"] {
            assert!(lines[0].contains(needle), "{lines:?}");
        }
    }
}
