//! The book of attachments: who holds which slot, address and interface. No
//! kernel, no worker: only what is known.

use std::collections::HashMap;
use std::net::IpAddr;

use sluice_control::{Attachment, AttachmentId, HostEnd, Redirect};

use super::wiring::Wired;
use crate::port::PortId;

/// The host port's slot, never a pod's.
pub(super) const HOST_SLOT: u16 = 0;

/// An attached pod interface.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) attachment: Attachment,
    pub(super) wired: Wired,
}

/// The attachments and the slots.
#[derive(Debug)]
pub(super) struct Book {
    entries: HashMap<AttachmentId, Entry>,
    slots: Slots,
}

impl Book {
    /// An empty book for slots 1 to `max_ports`.
    pub(super) fn new(max_ports: u16) -> Self {
        Self {
            entries: HashMap::new(),
            slots: Slots::new(max_ports),
        }
    }

    pub(super) fn get(&self, id: &AttachmentId) -> Option<&Entry> {
        self.entries.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &AttachmentId) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries by slot.
    pub(super) fn sorted(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_unstable_by_key(|entry| entry.wired.id);
        entries
    }

    /// Everybody's mappings.
    pub(super) fn redirects(&self) -> impl Iterator<Item = Redirect> {
        let attachments = self.entries.values().map(|entry| &entry.attachment);
        attachments.flat_map(Attachment::redirects)
    }

    /// Who holds something that `wanted` wants; its own entry among them.
    pub(super) fn holders(&self, wanted: &Attachment) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| {
            entry.attachment.id == wanted.id || claim(&entry.attachment, wanted).is_some()
        })
    }

    /// Another attachment that holds something that `wanted` wants.
    pub(super) fn rival(&self, wanted: &Attachment) -> Option<(&Entry, Claim)> {
        self.entries
            .values()
            .filter(|entry| entry.attachment.id != wanted.id)
            .find_map(|entry| Some((entry, claim(&entry.attachment, wanted)?)))
    }

    /// Who uses `address` as its own.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Entry> {
        self.entries
            .values()
            .find(|entry| has_address(&entry.attachment, address))
    }

    /// A name for a new port, or `None` if all slots are taken.
    pub(super) fn reserve(&mut self) -> Option<PortId> {
        self.slots.take()
    }

    /// Gives back a reserved name that did not become a port.
    pub(super) fn release(&mut self, id: PortId) {
        self.slots.give_back(id.slot);
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.attachment.id.clone(), entry);
    }

    pub(super) fn remove(&mut self, id: &AttachmentId) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.slots.give_back(entry.wired.id.slot);
        Some(entry)
    }
}

/// What two attachments cannot both have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Address(IpAddr),
    Interface(String),
    /// The node's end of a mapping, as the holder has it.
    HostEnd(HostEnd),
}

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "address {address}"),
            Self::Interface(name) => write!(f, "interface {name}"),
            Self::HostEnd(end) => write!(f, "hostPort, {end},"),
        }
    }
}

/// What `held` has that `wanted` wants.
pub(super) fn claim(held: &Attachment, wanted: &Attachment) -> Option<Claim> {
    if held.host_ifname == wanted.host_ifname {
        return Some(Claim::Interface(held.host_ifname.clone()));
    }
    let mut addresses = wanted.addresses.iter().map(|pod| pod.address.addr());
    if let Some(address) = addresses.find(|address| has_address(held, *address)) {
        return Some(Claim::Address(address));
    }
    let wanted: Vec<HostEnd> = wanted.redirects().map(|redirect| redirect.from).collect();
    held.redirects()
        .map(|redirect| redirect.from)
        .find(|end| wanted.iter().any(|wanted| wanted.overlaps(end)))
        .map(Claim::HostEnd)
}

fn has_address(attachment: &Attachment, address: IpAddr) -> bool {
    attachment
        .addresses
        .iter()
        .any(|pod| pod.address.addr() == address)
}

/// Free slots, and how many owners each slot had.
#[derive(Debug)]
struct Slots {
    generations: Vec<u16>,
    /// The next one to take is the last. What was freed last is taken first:
    /// the tables stay dense.
    free: Vec<u16>,
}

impl Slots {
    fn new(max_ports: u16) -> Self {
        Self {
            generations: vec![0; usize::from(max_ports) + 1],
            free: (HOST_SLOT + 1..=max_ports).rev().collect(),
        }
    }

    fn take(&mut self) -> Option<PortId> {
        let slot = self.free.pop()?;
        let generation = &mut self.generations[usize::from(slot)];
        *generation = generation.wrapping_add(1);
        Some(PortId {
            slot,
            generation: *generation,
        })
    }

    fn give_back(&mut self, slot: u16) {
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_control::{PodAddress, PortMapping, Protocol, Shaping};
    use std::sync::Arc;

    use crate::xsk::Socket;

    fn attachment(container: &str, interface: &str, address: &str) -> Attachment {
        Attachment {
            id: AttachmentId {
                network: "pods".into(),
                container_id: container.into(),
                ifname: "eth0".into(),
            },
            host_ifname: interface.into(),
            pod_mac: [2, 0, 0, 0, 0, 1],
            addresses: vec![PodAddress {
                address: address.parse().unwrap(),
                gateway: "10.77.0.1".parse().unwrap(),
            }],
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

    fn add(book: &mut Book, attachment: Attachment) -> PortId {
        let id = book.reserve().unwrap();
        book.insert(Entry {
            attachment,
            wired: Wired {
                id,
                index: 7,
                counters: Arc::default(),
                socket: Socket::default(),
                steps: Vec::new(),
            },
        });
        id
    }

    #[test]
    fn slots_are_reused_under_another_generation() {
        let mut book = Book::new(2);
        let first = add(&mut book, attachment("c1", "slv1", "10.77.0.11/24"));
        let second = add(&mut book, attachment("c2", "slv2", "10.77.0.12/24"));
        assert_eq!((first.slot, second.slot), (1, 2));
        assert_eq!(book.reserve(), None);
        let removed = attachment("c1", "slv1", "10.77.0.11/24").id;
        assert!(book.remove(&removed).is_some());
        assert!(book.remove(&removed).is_none());
        let again = book.reserve().unwrap();
        assert_eq!((again.slot, again.generation), (1, first.generation + 1));
        assert_eq!(book.reserve(), None);
        book.release(again);
        assert!(book.reserve().is_some());
    }

    #[test]
    fn an_address_or_interface_has_one_holder() {
        let mut book = Book::new(2);
        add(&mut book, attachment("c1", "slv1", "10.77.0.11/24"));
        let rival = |wanted: &Attachment| book.rival(wanted).map(|(_, claim)| claim);
        assert_eq!(
            rival(&attachment("c2", "slv2", "10.77.0.11/16")),
            Some(Claim::Address("10.77.0.11".parse().unwrap()))
        );
        assert_eq!(
            rival(&attachment("c2", "slv1", "10.77.0.12/24")),
            Some(Claim::Interface("slv1".into()))
        );
        assert_eq!(rival(&attachment("c2", "slv2", "10.77.0.12/24")), None);
        // It is no rival of itself.
        assert_eq!(rival(&attachment("c1", "slv1", "10.77.0.11/24")), None);
    }

    #[test]
    fn a_host_port_has_one_holder() {
        let mapped = |container: &str, host_ip: Option<&str>, protocol| {
            let mut attachment =
                attachment(container, container, &format!("10.77.0.1{container}/24"));
            attachment.mappings.push(PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol,
                host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            });
            attachment
        };
        let mut book = Book::new(2);
        add(&mut book, mapped("1", Some("192.0.2.1"), Protocol::Tcp));
        for (host_ip, protocol, is_rival) in [
            (None, Protocol::Tcp, true),
            (Some("0.0.0.0"), Protocol::Tcp, true),
            (Some("192.0.2.1"), Protocol::Tcp, true),
            (Some("192.0.2.2"), Protocol::Tcp, false),
            (Some("::"), Protocol::Tcp, false),
            (None, Protocol::Udp, false),
        ] {
            let rival = book.rival(&mapped("2", host_ip, protocol));
            let claim = rival.map(|(_, claim)| claim.to_string());
            let expected = is_rival.then(|| "hostPort, TCP port 8080 of 192.0.2.1,".to_owned());
            assert_eq!(claim, expected, "{host_ip:?} {protocol}");
        }
    }
}
