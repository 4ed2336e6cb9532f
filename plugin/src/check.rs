//! CHECK: whether the attachment is still as ADD made it.
//!
//! Three accounts must agree: the result of ADD (`prevResult`), the kernel's
//! and the daemon's. The IPAM plugin checks its own.

use std::path::Path;

use ipnet::IpNet;
use sluice_control::{
    Attachment, AttachmentId, Client, ClientError, ErrorCode, PortMapping, Request, Shaping,
};
use sluice_link::{Link, Netlink, Netns, Route};

use crate::args::Args;
use crate::config::{Mtus, Network};
use crate::error::Error;
use crate::ipam::Ipam;
use crate::limits::Limits;
use crate::mac;
use crate::names;
use crate::pod;
use crate::result::{Made, RouteEntry};

/// Checks the attachment. All is compared; what differs is reported together.
pub(crate) fn check(args: &Args, network: &Network) -> Result<(), Error> {
    network.needs_version_of("CHECK")?;
    let made = network.made()?;
    let id = network.attachment_id(args);
    // What ADD would refuse cannot be what it made.
    let requests = network.requests().unwrap_or_default();
    let asked = requests.mac(&args.cni_args).ok().flatten();
    // Not every runtime asks again what it asked at ADD.
    let pod = made.interface(&id.ifname, args.netns.as_deref());
    let given = || pod.and_then(|pod| mac::parse(&pod.mac).ok());
    let check = Check {
        host_ifname: names::host_ifname(&id),
        pod_mac: asked.or_else(given).unwrap_or_else(|| names::pod_mac(&id)),
        addresses: made.addresses_of(&id.ifname, args.netns.as_deref()),
        mappings: requests.mappings,
        limits: network.limits().ok(),
        made,
        id,
    };
    let path = args.netns.as_deref().unwrap_or(Path::new(""));
    let netns = pod::open_namespace(path)?;
    let steps = [
        check.result(path),
        check.pod(&netns, path),
        check.host(),
        check.daemon(&Client::new(&network.socket()), &netns),
        Ipam::find_for(args, network).and_then(|ipam| ipam.check()),
    ];
    Error::all(steps)
}

/// What ADD made, by its result and by our own rules.
struct Check {
    id: AttachmentId,
    host_ifname: String,
    pod_mac: [u8; 6],
    made: Made,
    addresses: Vec<IpNet>,
    /// `None` if the runtime does not say.
    mappings: Option<Vec<PortMapping>>,
    /// `None` if they cannot be read: ADD would have refused them.
    limits: Option<Limits>,
}

impl Check {
    /// The result must name both interfaces, and what is in the pod.
    fn result(&self, netns: &Path) -> Result<(), Error> {
        let Some(pod) = self.made.interface(&self.id.ifname, Some(netns)) else {
            return self.differs(format!(
                "prevResult has no interface {} in {}",
                self.id.ifname,
                netns.display()
            ));
        };
        let pod_mac = mac::text(self.pod_mac);
        if pod.mac != pod_mac {
            let is = format!("the MAC address {:?} in prevResult", pod.mac);
            return self.differs(format!("{} has {is}, not {pod_mac}", pod.name));
        }
        if self.made.interface(&self.host_ifname, None).is_none() {
            let name = &self.host_ifname;
            return self.differs(format!("prevResult has no interface {name} of the host"));
        }
        if self.addresses.is_empty() {
            let name = &self.id.ifname;
            return self.differs(format!("prevResult has no address of {name}"));
        }
        Ok(())
    }

    /// The interface in the pod with its MAC address, addresses and routes.
    fn pod(&self, netns: &Netns, path: &Path) -> Result<(), Error> {
        let netlink = Netlink::in_netns(netns)?;
        let ifname = &self.id.ifname;
        let Some(link) = netlink.link(ifname)? else {
            let path = path.display();
            return self.differs(format!("there is no interface {ifname} in {path}"));
        };
        self.link(&link, &mac::text(self.pod_mac))?;
        let addresses = netlink.addresses(link.index)?;
        if let Some(lost) = self.addresses.iter().find(|a| !addresses.contains(a)) {
            return self.differs(format!("{ifname} has lost the address {lost}"));
        }
        let routes = netlink.routes_of_all_tables()?;
        let is_lost = |made: &&RouteEntry| !routes.iter().any(|r| is_made(r, made, link.index));
        let lost = self.made.routes.iter().find(is_lost);
        match lost {
            Some(lost) => self.differs(format!("the pod has lost its route to {}", lost.dst)),
            None => Ok(()),
        }
    }

    /// The host's end.
    fn host(&self) -> Result<(), Error> {
        let name = &self.host_ifname;
        let Some(link) = Netlink::new()?.link(name)? else {
            return self.differs(format!("the host's interface {name} is gone"));
        };
        match self.made.interface(name, None) {
            Some(made) => self.link(&link, &made.mac),
            None => Ok(()),
        }
    }

    fn link(&self, link: &Link, mac: &str) -> Result<(), Error> {
        let name = &link.name;
        let found = link.mac.map(mac::text).unwrap_or_default();
        if found != mac {
            return self.differs(format!("{name} has the MAC address {found}, not {mac}"));
        }
        if !link.up {
            return self.differs(format!("{name} is down"));
        }
        Ok(())
    }

    /// The daemon serves it, under the same addresses and hostPorts, and with
    /// the MTU that both ends have: what an end does not take is lost without a
    /// word. The kernel has the rules of the hostPorts.
    fn daemon(&self, client: &Client, netns: &Netns) -> Result<(), Error> {
        let attachments = client.attachments(Some(&self.id.network))?;
        let Some(served) = attachments.into_iter().find(|a| a.id == self.id) else {
            return self.differs("the daemon does not serve it".into());
        };
        if served.pod_mac != self.pod_mac {
            let [daemons, ours] = [served.pod_mac, self.pod_mac].map(mac::text);
            return self.differs(format!(
                "the daemon serves it with the MAC address {daemons}, not {ours}"
            ));
        }
        let sorted = |mut addresses: Vec<IpNet>| {
            addresses.sort_unstable();
            addresses
        };
        let ours = sorted(self.addresses.clone());
        let daemons = sorted(served.addresses.iter().map(|pod| pod.address).collect());
        if ours != daemons {
            return self.differs(format!(
                "the daemon serves it with {}, but prevResult says {}",
                list(&daemons),
                list(&ours)
            ));
        }
        let ends = [
            (Netlink::in_netns(netns)?, &self.id.ifname),
            (Netlink::new()?, &self.host_ifname),
        ];
        for (netlink, name) in ends {
            let link = netlink.link(name)?;
            if let Some(link) = link.filter(|link| link.mtu != served.mtu) {
                let (is, serves) = (link.mtu, served.mtu);
                return self.differs(format!(
                    "{name} has the MTU {is}, but the daemon serves it with {serves}; \
                     only the key localMtu may set it"
                ));
            }
        }
        self.limits(client, &served)?;
        self.host_ports(client, &served)
    }

    /// The daemon holds it to the limits of the configuration, unless an
    /// operator has changed them: that is no fault to delete a pod for.
    fn limits(&self, client: &Client, served: &Attachment) -> Result<(), Error> {
        let Some(limits) = self.limits.clone() else {
            return Ok(());
        };
        let limits = limits.with_chained(&client.describe()?, &self.id.network);
        let mtus = Mtus {
            uplink: served.uplink_mtu.unwrap_or(served.mtu),
            local: served.mtu,
        };
        let asked = limits.or_as_served(&served.shaping).settle(mtus);
        let is_limited = asked.is_limited() || served.shaping.is_limited();
        if !is_limited || asked.does_as(&served.shaping) {
            return Ok(());
        }
        let in_words = |shaping: &Shaping| shaping.in_words(mtus.under(shaping).local);
        let mut words = [&served.shaping, &asked].map(in_words);
        if words[0] == words[1] {
            words = [&served.shaping, &asked].map(Shaping::exactly);
        }
        let [daemons, ours] = words;
        let how = format!("the daemon holds it to: {daemons}; but the configuration says: {ours}");
        if served.reshaped {
            tracing::warn!("{how} (`sluiced set bandwidth` changed it)");
            return Ok(());
        }
        self.differs(how)
    }

    fn host_ports(&self, client: &Client, served: &Attachment) -> Result<(), Error> {
        let asked = self.mappings.as_ref().unwrap_or(&served.mappings);
        if *asked != served.mappings {
            return self
                .differs("the daemon serves it with other hostPorts than runtimeConfig's".into());
        }
        if asked.is_empty() {
            return Ok(());
        }
        let id = self.id.clone();
        match client.ask(Request::Check { id }) {
            // Others say nothing about the pod: an older daemon, say.
            Err(ClientError::Refused(refusal)) if refusal.code == ErrorCode::Failed => {
                Err(Error::differs(refusal.message))
            }
            other => Ok(other.map(drop)?),
        }
    }

    fn differs(&self, how: String) -> Result<(), Error> {
        let id = &self.id;
        Err(Error::differs(format!(
            "check {id}: {how}; delete the pod and create it anew"
        )))
    }
}

/// Whether a route of the pod is the one that the result names, which says
/// little before 1.1.0. One through another interface was there before ours.
fn is_made(found: &Route, made: &RouteEntry, interface: u32) -> bool {
    let options = made.options;
    let expected = Route {
        table: options.table(),
        priority: options.priority,
        ..Route::new(made.dst.trunc(), interface)
    };
    let is_there = match options.priority {
        Some(_) => found.has_place_of(&expected),
        None => (found.destination, found.table) == (expected.destination, expected.table),
    };
    let is_same = |made: Option<u32>, found| made.is_none() || made == found;
    let is_as_made = is_same(made.mtu, found.mtu)
        && is_same(options.advmss, found.advmss)
        && made.gw.is_none_or(|gateway| found.gateway == Some(gateway));
    is_there && (found.interface != interface || is_as_made)
}

fn list(addresses: &[IpNet]) -> String {
    let texts: Vec<String> = addresses.iter().map(IpNet::to_string).collect();
    match texts.as_slice() {
        [] => "no address".into(),
        _ => texts.join(" "),
    }
}
