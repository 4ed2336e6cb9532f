//! The nftables table: its text, as a function of what the pods need.
//!
//! One map lookup decides whatever the number of mappings: one for mappings of
//! a single address, and one for those of every address. They hold only for
//! addresses that the kernel delivers locally (`fib`), so that a packet that is
//! only passing by is never taken (CVE-2025-67499), and not for loopback ones:
//! from outside nobody may reach those (CVE-2020-8558), and for the host's own
//! processes translating them here would need `route_localnet`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_control::{Attachment, Redirect};

use crate::host_port::HOST_INTERFACE;

/// The table's name; its family is `inet`.
pub const TABLE: &str = "sluice";

/// What a pod needs of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRules {
    /// Its addresses, with their subnets, if what it sends is masqueraded.
    masqueraded: Vec<IpNet>,
    /// Elements of sets and maps.
    elements: BTreeSet<Element>,
}

impl PodRules {
    /// What a pod needs.
    #[must_use]
    pub fn of(attachment: &Attachment) -> Self {
        let addresses = attachment.addresses.iter().map(|pod| pod.address);
        let mut elements = BTreeSet::new();
        for redirect in attachment.redirects() {
            elements.insert(Element::mapping(&redirect));
            if attachment.snat {
                elements.insert(Element::hairpin(redirect.to.ip()));
            }
            if attachment.snat && attachment.masq_all {
                elements.insert(Element::masquerade_all(&redirect));
            }
        }
        Self {
            masqueraded: addresses.filter(|_| attachment.ip_masq).collect(),
            elements,
        }
    }

    /// Whether it needs nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.masqueraded.is_empty() && self.elements.is_empty()
    }

    /// Its elements added, as a transaction. One that is there with another
    /// value is an error.
    #[must_use]
    pub fn addition(&self) -> String {
        change("add", &self.elements)
    }

    /// Its elements removed, as a transaction. One that is not there is an
    /// error.
    #[must_use]
    pub fn removal(&self) -> String {
        change("delete", &self.elements)
    }
}

/// An element of a set or map, as nft reads it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Element {
    set: &'static str,
    text: String,
}

impl Element {
    fn mapping(Redirect { from, to }: &Redirect) -> Self {
        let (set, address) = match (from.is_any(), from.address) {
            (true, IpAddr::V4(_)) => ("hostports4", String::new()),
            (true, IpAddr::V6(_)) => ("hostports6", String::new()),
            (false, IpAddr::V4(address)) => ("hostips4", format!("{address} . ")),
            (false, IpAddr::V6(address)) => ("hostips6", format!("{address} . ")),
        };
        let protocol = from.protocol.number();
        let (port, pod, pod_port) = (from.port, to.ip(), to.port());
        Self {
            set,
            text: format!("{address}{protocol} . {port} : {pod} . {pod_port}"),
        }
    }

    fn hairpin(pod: IpAddr) -> Self {
        Self {
            set: of_family(pod, ["hairpins4", "hairpins6"]),
            text: format!("{pod} . {pod}"),
        }
    }

    fn masquerade_all(Redirect { from, to }: &Redirect) -> Self {
        let (pod, protocol, port) = (to.ip(), from.protocol.number(), to.port());
        Self {
            set: of_family(pod, ["masqall4", "masqall6"]),
            text: format!("{pod} . {protocol} . {port}"),
        }
    }
}

fn of_family(address: IpAddr, [v4, v6]: [&'static str; 2]) -> &'static str {
    match address {
        IpAddr::V4(_) => v4,
        IpAddr::V6(_) => v6,
    }
}

/// Adds elements to their sets, or deletes them; one command a set. One line an
/// element: nft repeats the line that it does not like.
fn change<'a>(verb: &str, elements: impl IntoIterator<Item = &'a Element>) -> String {
    let mut sets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for element in elements {
        sets.entry(element.set).or_default().push(&element.text);
    }
    let mut text = String::new();
    for (set, elements) in sets {
        let elements = elements.join(",\n");
        let _ = writeln!(text, "{verb} element inet {TABLE} {set} {{ {elements} }}");
    }
    text
}

/// The transaction that leaves no table. `delete` fails on one that is not
/// there; `add` never does.
fn no_table() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// All that the table is to hold.
#[derive(Debug)]
pub struct Ruleset {
    /// The masqueraded subnets, each with the number of pod addresses in it.
    subnets: BTreeMap<IpNet, usize>,
    elements: BTreeSet<Element>,
    /// Whether mappings hold for what the host's own processes send.
    for_host_processes: bool,
}

impl Ruleset {
    /// Nothing; mappings hold for the host's own processes if so wished.
    #[must_use]
    pub fn new(for_host_processes: bool) -> Self {
        Self {
            subnets: BTreeMap::new(),
            elements: BTreeSet::new(),
            for_host_processes,
        }
    }

    /// Whether there need be no table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.subnets.is_empty() && self.elements.is_empty()
    }

    /// Whether a pod's rules are more than what is there.
    #[must_use]
    pub fn lacks(&self, pod: &PodRules) -> bool {
        let mut addresses = pod.masqueraded.iter();
        !pod.elements.is_empty()
            || addresses.any(|address| !self.subnets.contains_key(&address.trunc()))
    }

    /// Takes in a pod's rules. Answers the transaction that adds them to a
    /// table that has all others; it may be empty.
    pub fn add(&mut self, pod: &PodRules) -> String {
        let before = self.subnets.len();
        for address in &pod.masqueraded {
            *self.subnets.entry(address.trunc()).or_default() += 1;
        }
        self.elements.extend(pod.elements.iter().cloned());
        let subnets = self.changed_subnets(before);
        subnets + &pod.addition()
    }

    /// Forgets a pod's rules. Answers the transaction that removes them from a
    /// table that has them; it may be empty.
    pub fn remove(&mut self, pod: &PodRules) -> String {
        let before = self.subnets.len();
        for address in &pod.masqueraded {
            let subnet = address.trunc();
            match self.subnets.get_mut(&subnet) {
                Some(users) if *users > 1 => *users -= 1,
                _ => drop(self.subnets.remove(&subnet)),
            }
        }
        for element in &pod.elements {
            self.elements.remove(element);
        }
        let subnets = self.changed_subnets(before);
        subnets + &pod.removal()
    }

    /// The transaction that leaves exactly this table, or none if it would be
    /// empty, whatever is there.
    #[must_use]
    pub fn replacement(&self) -> String {
        let mut text = no_table();
        if !self.is_empty() {
            text.push_str(&self.skeleton());
            text.push_str(&change("add", &self.aggregates()));
            text.push_str(&change("add", &self.elements));
        }
        text
    }

    /// The transaction that leaves the table without its elements.
    #[must_use]
    pub fn trial(&self) -> String {
        no_table() + &self.skeleton()
    }

    /// A pod more in a subnet costs nothing. Subnets may overlap, so that one
    /// more or less changes the others' elements.
    fn changed_subnets(&self, before: usize) -> String {
        if self.subnets.len() == before {
            return String::new();
        }
        let flush = ["masq4", "masq6"].map(|set| format!("flush set inet {TABLE} {set}\n"));
        flush.concat() + &change("add", &self.aggregates())
    }

    /// Sets of intervals refuse overlapping elements.
    fn aggregates(&self) -> Vec<Element> {
        let mut v4: Vec<Ipv4Net> = Vec::new();
        let mut v6: Vec<Ipv6Net> = Vec::new();
        for subnet in self.subnets.keys() {
            match subnet {
                IpNet::V4(subnet) => v4.push(*subnet),
                IpNet::V6(subnet) => v6.push(*subnet),
            }
        }
        let v4 = Ipv4Net::aggregate(&v4).into_iter().map(|net| Element {
            set: "masq4",
            text: net.to_string(),
        });
        let v6 = Ipv6Net::aggregate(&v6).into_iter().map(|net| Element {
            set: "masq6",
            text: net.to_string(),
        });
        v4.chain(v6).collect()
    }

    /// The table without its elements.
    ///
    /// The last rules of `postrouting`: what came from a pod, leaves the node,
    /// and is not for a pod elsewhere. Those before them: what is for a pod
    /// only by translation and comes from that very pod, which would take the
    /// answer for its own; and what `masqAll` asks for. By then the port is the
    /// pod's. Priority -100 is `dstnat`, by a name that nft 1.0.6 does not know
    /// in the output hook.
    fn skeleton(&self) -> String {
        let output = if self.for_host_processes {
            "
    chain output {
        type nat hook output priority -100; policy accept;
        fib daddr type local jump mappings
    }"
        } else {
            ""
        };
        format!(
            r#"table inet {TABLE} {{
    map hostports4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
    map hostports6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
    map hostips4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
    map hostips6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
    set hairpins4 {{ type ipv4_addr . ipv4_addr; }}
    set hairpins6 {{ type ipv6_addr . ipv6_addr; }}
    set masqall4 {{ type ipv4_addr . inet_proto . inet_service; }}
    set masqall6 {{ type ipv6_addr . inet_proto . inet_service; }}
    set masq4 {{ type ipv4_addr; flags interval; }}
    set masq6 {{ type ipv6_addr; flags interval; }}
    chain raw {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{HOST_INTERFACE}" ip daddr 127.0.0.0/8 drop
    }}
    chain mappings {{
        ip daddr 127.0.0.0/8 return
        ip6 daddr ::1 return
        dnat ip to ip daddr . meta l4proto . th dport map @hostips4
        dnat ip to meta l4proto . th dport map @hostports4
        dnat ip6 to ip6 daddr . meta l4proto . th dport map @hostips6
        dnat ip6 to meta l4proto . th dport map @hostports6
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump mappings
    }}{output}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{HOST_INTERFACE}" ct status dnat ip saddr . ip daddr @hairpins4 masquerade
        oifname "{HOST_INTERFACE}" ct status dnat ip6 saddr . ip6 daddr @hairpins6 masquerade
        oifname "{HOST_INTERFACE}" ct status dnat ip daddr . meta l4proto . th dport @masqall4 masquerade
        oifname "{HOST_INTERFACE}" ct status dnat ip6 daddr . meta l4proto . th dport @masqall6 masquerade
        iifname "{HOST_INTERFACE}" oifname != "{HOST_INTERFACE}" ip saddr @masq4 ip daddr != @masq4 masquerade
        iifname "{HOST_INTERFACE}" oifname != "{HOST_INTERFACE}" ip6 saddr @masq6 ip6 daddr != @masq6 masquerade
    }}
}}
"#
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_control::{AttachmentId, PodAddress, PortMapping, Protocol, Shaping};

    fn pod(addresses: &[&str]) -> Attachment {
        let gateway = |address: &str| {
            if address.contains(':') {
                "fe80::1"
            } else {
                "10.0.0.1"
            }
        };
        let addresses = addresses.iter().map(|address| PodAddress {
            address: address.parse().unwrap(),
            gateway: gateway(address).parse().unwrap(),
        });
        Attachment {
            id: AttachmentId {
                network: "pods".into(),
                container_id: "c".into(),
                ifname: "eth0".into(),
            },
            host_ifname: "slv1".into(),
            pod_mac: [2, 0, 0, 0, 0, 1],
            addresses: addresses.collect(),
            mtu: 1500,
            ip_masq: false,
            pod: None,
            mappings: Vec::new(),
            snat: true,
            masq_all: false,
            uplink_mtu: None,
            shaping: Shaping::default(),
            reshaped: false,
            gro: true,
        }
    }

    fn masqueraded(address: &str) -> PodRules {
        let mut pod = pod(&[address]);
        pod.ip_masq = true;
        PodRules::of(&pod)
    }

    fn mapped(host_ip: Option<&str>) -> Attachment {
        let mut pod = pod(&["10.77.0.11/24", "fd77::11/64"]);
        pod.mappings.push(PortMapping {
            host_port: 8080,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        });
        pod
    }

    const NOTHING: &str = "add table inet sluice\ndelete table inet sluice\n";

    #[test]
    fn nothing_needs_no_table() {
        let mut ruleset = Ruleset::new(true);
        assert_eq!(ruleset.replacement(), NOTHING);
        let plain = PodRules::of(&pod(&["10.77.0.11/24"]));
        assert!(plain.is_empty());
        assert!(!ruleset.lacks(&plain));
        assert_eq!(ruleset.add(&plain), "");
        assert!(ruleset.is_empty());
    }

    #[test]
    fn a_pod_more_in_a_subnet_changes_nothing() {
        let mut ruleset = Ruleset::new(true);
        let [a, b] = ["10.77.0.11/24", "10.77.0.12/24"].map(masqueraded);
        assert!(ruleset.lacks(&a));
        let first = ruleset.add(&a);
        assert!(
            first.ends_with("add element inet sluice masq4 { 10.77.0.0/24 }\n"),
            "{first}"
        );
        let full = ruleset.replacement();
        assert!(!ruleset.lacks(&b), "its subnet is masqueraded");
        assert_eq!(ruleset.add(&b), "");
        assert_eq!(ruleset.remove(&a), "");
        assert_eq!(ruleset.replacement(), full);
        ruleset.remove(&b);
        assert_eq!(ruleset.replacement(), NOTHING);
    }

    #[test]
    fn overlapping_subnets_become_one_element() {
        let mut ruleset = Ruleset::new(true);
        for address in ["10.77.0.1/16", "10.77.3.1/24", "10.78.0.1/24", "fd00::1/64"] {
            ruleset.add(&masqueraded(address));
        }
        let text = ruleset.replacement();
        assert!(
            text.contains("masq4 { 10.77.0.0/16,\n10.78.0.0/24 }"),
            "{text}"
        );
        assert!(text.contains("masq6 { fd00::/64 }"), "{text}");
        let less = ruleset.remove(&masqueraded("10.77.0.1/16"));
        assert_eq!(
            less,
            "flush set inet sluice masq4\nflush set inet sluice masq6\n\
             add element inet sluice masq4 { 10.77.3.0/24,\n10.78.0.0/24 }\n\
             add element inet sluice masq6 { fd00::/64 }\n"
        );
    }

    #[test]
    fn a_mapping_is_an_element_a_family() {
        let any = PodRules::of(&mapped(None));
        assert_eq!(
            any.addition(),
            "add element inet sluice hairpins4 { 10.77.0.11 . 10.77.0.11 }\n\
             add element inet sluice hairpins6 { fd77::11 . fd77::11 }\n\
             add element inet sluice hostports4 { 6 . 8080 : 10.77.0.11 . 80 }\n\
             add element inet sluice hostports6 { 6 . 8080 : fd77::11 . 80 }\n"
        );
        assert_eq!(any.removal(), any.addition().replace("add ", "delete "));
        let one = PodRules::of(&mapped(Some("2001:db8::1")));
        assert_eq!(
            one.addition(),
            "add element inet sluice hairpins6 { fd77::11 . fd77::11 }\n\
             add element inet sluice hostips6 { 2001:db8::1 . 6 . 8080 : fd77::11 . 80 }\n"
        );
    }

    #[test]
    fn snat_and_masq_all_are_honoured() {
        let mut pod = mapped(Some("192.0.2.1"));
        pod.masq_all = true;
        let all = PodRules::of(&pod).addition();
        assert!(all.contains("masqall4 { 10.77.0.11 . 6 . 80 }"), "{all}");
        pod.snat = false;
        assert_eq!(
            PodRules::of(&pod).addition(),
            "add element inet sluice hostips4 { 192.0.2.1 . 6 . 8080 : 10.77.0.11 . 80 }\n"
        );
    }

    #[test]
    fn what_was_added_and_removed_leaves_what_was_there() {
        let mut ruleset = Ruleset::new(true);
        let (held, passing) = (
            PodRules::of(&mapped(Some("192.0.2.1"))),
            masqueraded("10.78.0.1/24"),
        );
        ruleset.add(&held);
        let before = ruleset.replacement();
        assert!(before.ends_with(&held.addition()), "{before}");
        ruleset.add(&passing);
        assert_ne!(ruleset.replacement(), before);
        ruleset.remove(&passing);
        assert_eq!(ruleset.replacement(), before);
    }

    #[test]
    fn the_output_hook_is_for_host_processes() {
        for for_host_processes in [true, false] {
            let mut ruleset = Ruleset::new(for_host_processes);
            ruleset.add(&PodRules::of(&mapped(None)));
            let text = ruleset.replacement();
            assert_eq!(text.contains("hook output"), for_host_processes, "{text}");
        }
    }
}
