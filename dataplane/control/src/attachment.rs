//! An attachment: one interface of one container in one network.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    PortMapping, Redirect, Shaping, check_ifname, check_label, check_mappings, check_name,
    check_pod_mac,
};

/// What names an attachment: network, container ID and interface name.
///
/// A runtime may attach one container twice to one network, under two
/// interface names, so all three are needed (CNI specification, section 2).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `name` of the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`: the interface's name inside the container.
    pub ifname: String,
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of container {} in network {}",
            self.ifname, self.container_id, self.network
        )
    }
}

/// One address of a pod with the gateway that the pod uses for its family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAddress {
    /// The address and the prefix length of its network, as IPAM gave them.
    pub address: IpNet,
    /// The pod's next hop: IPAM's gateway, else 169.254.1.1 or fe80::1.
    pub gateway: IpAddr,
}

/// What an orchestrator calls a pod, for people to recognise it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// `K8S_POD_NAMESPACE`
    pub namespace: String,
    /// `K8S_POD_NAME`
    pub name: String,
    /// `K8S_POD_UID`, if the runtime says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the daemon needs to serve one pod interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Network, container and interface.
    pub id: AttachmentId,
    /// The veth's end in the host's namespace.
    pub host_ifname: String,
    /// The MAC address of the pod's end, as six bytes.
    pub pod_mac: [u8; 6],
    /// The pod's addresses, at least one.
    pub addresses: Vec<PodAddress>,
    /// MTU of the pod's interface in bytes of IP packet (`localMtu`).
    pub mtu: u32,
    /// Masquerade what the pod sends beyond the node (`ipMasq`).
    #[serde(default)]
    pub ip_masq: bool,
    /// Whose it is, if the runtime says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
    /// Ports of the node that lead to the pod.
    #[serde(default)]
    pub mappings: Vec<PortMapping>,
    /// Whether the pod may reach itself through its mappings: it then sees an
    /// address of the host as the client's (`snat`).
    #[serde(default = "yes")]
    pub snat: bool,
    /// Whether it sees every client of its mappings so (`masqAll`); nothing
    /// without `snat`.
    #[serde(default)]
    pub masq_all: bool,
    /// The MTU of the pod's way out of the node (`mtu`), bytes: its limits make
    /// its frames no smaller. `None` if the plugin, an older one, does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink_mtu: Option<u32>,
    /// What its traffic is held to.
    #[serde(default)]
    pub shaping: Shaping,
    /// Whether an operator changed the limits since ADD: they need not be those
    /// of the network's configuration any more.
    #[serde(default)]
    pub reshaped: bool,
    /// Whether TCP segments to the pod may be merged (`gro`). A merged one says
    /// not what it was made of, so a pod that forwards could not.
    #[serde(default = "yes")]
    pub gro: bool,
}

/// With the pod's name where it is known.
impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "{} (pod {pod})", self.id),
            None => self.id.fmt(f),
        }
    }
}

fn yes() -> bool {
    true
}

/// Why an [`Attachment`] cannot be served, whatever the state of the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAttachment {
    /// A field that the kernel or the file system would misread.
    #[error("{field} is {value:?}: {rule}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it must hold.
        rule: &'static str,
    },
    /// A pod without an address has no traffic to forward.
    #[error("the pod has no address")]
    NoAddress,
}

impl Attachment {
    /// Checks what does not depend on the node: names that are safe in paths
    /// and interface names, unicast addresses, gateways of the same family.
    ///
    /// # Errors
    /// The first rule broken, with the field and its value.
    pub fn validate(&self) -> Result<(), InvalidAttachment> {
        for (name, value, check) in [
            ("network", &self.id.network, check_name as fn(&str) -> _),
            ("container_id", &self.id.container_id, check_name),
            ("ifname", &self.id.ifname, check_ifname),
            ("host_ifname", &self.host_ifname, check_ifname),
        ] {
            check(value).map_err(|rule| InvalidAttachment::field(name, value, rule))?;
        }
        if let Some(PodName {
            namespace,
            name,
            uid,
        }) = &self.pod
        {
            for label in [namespace, name].into_iter().chain(uid) {
                check_label(label).map_err(|rule| InvalidAttachment::field("pod", label, rule))?;
            }
        }
        check_pod_mac(self.pod_mac).map_err(|rule| {
            InvalidAttachment::field("pod_mac", &format!("{:02x?}", self.pod_mac), rule)
        })?;
        if self.addresses.is_empty() {
            return Err(InvalidAttachment::NoAddress);
        }
        for PodAddress { address, gateway } in &self.addresses {
            let pod = address.addr();
            if !is_usable(pod) {
                return Err(InvalidAttachment::field(
                    "address",
                    &pod.to_string(),
                    "must be a unicast address that is neither loopback, link-local nor reserved",
                ));
            }
            if pod.is_ipv4() != gateway.is_ipv4() {
                return Err(InvalidAttachment::field(
                    "gateway",
                    &gateway.to_string(),
                    "must be of the address's family",
                ));
            }
            let is_next_hop = is_usable(*gateway) || is_link_local_v6(*gateway);
            if pod == *gateway || !is_next_hop {
                return Err(InvalidAttachment::field(
                    "gateway",
                    &gateway.to_string(),
                    "must be a unicast address other than the pod's",
                ));
            }
        }
        if !(1280..=65_535).contains(&self.mtu) {
            return Err(InvalidAttachment::field(
                "mtu",
                &self.mtu.to_string(),
                "must be from 1280 (IPv6's minimum, RFC 8200 section 5) to 65535",
            ));
        }
        if let Some(mtu) = self.uplink_mtu
            && !(1280..=self.mtu).contains(&mtu)
        {
            return Err(InvalidAttachment::field(
                "uplink_mtu",
                &mtu.to_string(),
                "must be from 1280 to the interface's MTU",
            ));
        }
        self.shaping.validate()?;
        check_mappings(&self.mappings)
    }

    /// The largest packet that the pod is to send or get, bytes: `mtu`, or less
    /// where one would take too long at its limits.
    #[must_use]
    pub fn frame_mtu(&self) -> u32 {
        self.shaping.mtu(self.least_mtu(), self.mtu)
    }

    /// Its limits in words.
    #[must_use]
    pub fn limits_in_words(&self) -> String {
        self.shaping.in_words(self.frame_mtu())
    }

    /// What no limit makes [`frame_mtu`](Self::frame_mtu) less than.
    pub(crate) fn least_mtu(&self) -> u32 {
        self.uplink_mtu.unwrap_or(self.mtu)
    }

    /// What the mappings do, in each family that the pod has, to its first
    /// address of that family.
    pub fn redirects(&self) -> impl Iterator<Item = Redirect> {
        let addresses = self.addresses.iter().map(|pod| pod.address.addr());
        let of_family = move |is_ipv4| addresses.clone().find(|pod| pod.is_ipv4() == is_ipv4);
        let ends = self
            .mappings
            .iter()
            .flat_map(|mapping| mapping.ends().map(|end| (end, mapping.container_port)));
        ends.filter_map(move |(from, port)| {
            let pod = of_family(from.address.is_ipv4())?;
            let to = SocketAddr::new(pod, port);
            Some(Redirect { from, to })
        })
    }
}

/// Whether a packet on the wire may have the address as its source and its
/// destination (RFC 6890), routed. 169.254/16 may: clouds and Kubernetes use it.
fn is_usable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some())
        }
    }
}

/// fe80::1 is what a pod without a gateway of IPAM's has for one.
fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

impl InvalidAttachment {
    pub(crate) fn field(field: &'static str, value: &str, rule: &'static str) -> Self {
        Self::Field {
            field,
            value: value.chars().take(80).collect(),
            rule,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::attachment;
    use crate::{Limit, Protocol};

    fn mapping(host_port: u16, container_port: u16, host_ip: &str) -> PortMapping {
        PortMapping {
            host_port,
            container_port,
            protocol: Protocol::Tcp,
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        }
    }

    fn mapped(mappings: &[PortMapping]) -> Attachment {
        let mut attachment = attachment();
        attachment.mappings = mappings.into();
        attachment
    }

    #[test]
    fn it_is_called_by_its_pod_where_that_is_known() {
        let mut a = attachment();
        let id = "eth0 of container c1 in network pods";
        assert_eq!(a.to_string(), format!("{id} (pod default/web)"));
        a.pod = None;
        assert_eq!(a.to_string(), id);
    }

    /// What older plugins send, and older journals hold.
    #[test]
    fn one_without_a_pod_is_read_and_written_as_ever() {
        let mut a = attachment();
        a.pod = None;
        let json = serde_json::to_value(&a).unwrap();
        assert_eq!(json.get("pod"), None);
        assert_eq!(serde_json::from_value::<Attachment>(json).unwrap(), a);
    }

    #[test]
    fn a_plain_attachment_is_valid() {
        assert_eq!(attachment().validate(), Ok(()));
    }

    #[test]
    fn each_name_is_checked() {
        let spoils: [fn(&mut Attachment); 7] = [
            |a| a.id.network = "a/b".into(),
            |a| a.id.container_id = "../x".into(),
            |a| a.id.ifname = "eth 0".into(),
            |a| a.host_ifname = "sixteen-letters-".into(),
            |a| a.pod.as_mut().unwrap().namespace = String::new(),
            |a| a.pod.as_mut().unwrap().name = "a\nb".into(),
            |a| a.pod.as_mut().unwrap().uid = Some("a/b".into()),
        ];
        for spoil in spoils {
            let mut a = attachment();
            spoil(&mut a);
            assert!(a.validate().is_err(), "{a:?}");
        }
    }

    #[test]
    fn addresses_must_be_usable() {
        for (address, gateway) in [
            ("224.0.0.1/24", "10.77.0.1"),
            ("127.0.0.1/8", "127.0.0.2"),
            ("10.77.0.11/24", "fe80::1"),
            ("10.77.0.11/24", "10.77.0.11"),
            ("fd00::1/64", "ff02::1"),
            ("0.1.2.3/8", "10.77.0.1"),
            ("240.0.0.1/8", "10.77.0.1"),
            ("10.77.0.11/24", "127.0.0.1"),
            ("fe80::2/64", "fe80::1"),
            ("::ffff:10.1.1.1/96", "fe80::1"),
        ] {
            let mut a = attachment();
            a.addresses[0] = PodAddress {
                address: address.parse().unwrap(),
                gateway: gateway.parse().unwrap(),
            };
            assert!(a.validate().is_err(), "{address} via {gateway}");
        }
        let mut a = attachment();
        a.addresses.clear();
        assert_eq!(a.validate(), Err(InvalidAttachment::NoAddress));
    }

    #[test]
    fn mac_and_mtu_are_bounded() {
        let mut a = attachment();
        a.pod_mac = [1, 0, 0, 0, 0, 1];
        assert!(a.validate().is_err());
        for mtu in [0, 1279, 65_536] {
            let mut a = attachment();
            a.mtu = mtu;
            assert!(a.validate().is_err(), "mtu {mtu}");
        }
    }

    #[test]
    fn limits_are_checked_and_make_frames_smaller() {
        let mut a = attachment();
        assert_eq!(a.frame_mtu(), 65_000);
        a.shaping.egress = Some(Limit::with_chosen_burst(10_000_000, 2500));
        assert_eq!((a.validate(), a.frame_mtu()), (Ok(()), 2500));
        // An older plugin's pod: its routes carry we do not know what.
        a.uplink_mtu = None;
        assert_eq!((a.validate(), a.frame_mtu()), (Ok(()), 65_000));
        a.uplink_mtu = Some(65_001);
        assert!(a.validate().is_err());
        let mut a = attachment();
        a.shaping.queue_millis = 0;
        assert!(a.validate().is_err());
    }

    /// What older plugins send, and older journals hold.
    #[test]
    fn one_without_limits_is_read() {
        let a = attachment();
        let mut json = serde_json::to_value(&a).unwrap();
        let fields = json.as_object_mut().unwrap();
        for field in ["uplink_mtu", "shaping", "reshaped"] {
            assert!(fields.remove(field).is_some(), "{field}");
        }
        let old: Attachment = serde_json::from_value(json).unwrap();
        let expected = Attachment {
            uplink_mtu: None,
            ..a
        };
        assert_eq!(old, expected);
    }

    #[test]
    fn mappings_are_checked() {
        let bad = mapped(&[mapping(0, 80, "")]);
        assert!(bad.validate().is_err());
    }

    #[test]
    fn each_family_of_the_pod_has_its_redirects() {
        let mut dual = mapped(&[
            mapping(80, 8080, ""),
            mapping(81, 8081, "0.0.0.0"),
            mapping(82, 8082, "2001:db8::1"),
        ]);
        let texts = |attachment: &Attachment| -> Vec<String> {
            let redirects = attachment.redirects();
            redirects
                .map(|redirect| format!("{} to {}", redirect.from, redirect.to))
                .collect()
        };
        let [first, second] = [
            "TCP port 80 of every IPv4 address to 10.77.0.11:8080",
            "TCP port 81 of every IPv4 address to 10.77.0.11:8081",
        ];
        assert_eq!(texts(&dual), [first, second]);
        for address in ["fd00::11/64", "fd00::12/64"] {
            dual.addresses.push(PodAddress {
                address: address.parse().unwrap(),
                gateway: "fe80::1".parse().unwrap(),
            });
        }
        let [sixth, exact] = [
            "TCP port 80 of every IPv6 address to [fd00::11]:8080",
            "TCP port 82 of 2001:db8::1 to [fd00::11]:8082",
        ];
        assert_eq!(texts(&dual), [first, sixth, second, exact]);
    }
}
