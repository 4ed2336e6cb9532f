//! Addresses of an interface, and its neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute};

use super::existed;
use crate::{LinkError, Netlink};

/// How an address is added. By default as `ip address add` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressOptions {
    /// Add no route to the address's prefix.
    pub no_prefix_route: bool,
    /// Use the address for traffic on the link only.
    pub link_scope: bool,
    /// Use the address at once, without asking whether another has it (IPv6).
    pub no_dad: bool,
}

impl Netlink {
    /// Adds an address to an interface. One that is there already stays.
    ///
    /// # Errors
    /// There is no such interface, IPv6 is disabled there, no privilege.
    pub fn add_address(
        &self,
        index: u32,
        address: IpNet,
        options: AddressOptions,
    ) -> Result<(), LinkError> {
        let mut flags = AddressFlags::empty();
        flags.set(AddressFlags::Noprefixroute, options.no_prefix_route);
        flags.set(AddressFlags::Nodad, options.no_dad);
        let mut request = self
            .handle
            .address()
            .add(index, address.addr(), address.prefix_len())
            .replace();
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Flags(flags));
        if options.link_scope {
            message.header.scope = AddressScope::Link;
        }
        self.ask(request.execute(), "add the address", || {
            format!("{address} to the link with index {index}")
        })
    }

    /// The addresses of an interface, each with its prefix length.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNet>, LinkError> {
        let request = self.handle.address().get();
        let answers = request.set_link_index_filter(index).execute();
        let messages = self.collect(answers, "list", "the addresses")?;
        Ok(messages.iter().filter_map(parse).collect())
    }

    /// The addresses of all interfaces, each with its prefix length.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn all_addresses(&self) -> Result<Vec<IpNet>, LinkError> {
        let answers = self.handle.address().get().execute();
        let messages = self.collect(answers, "list", "the addresses")?;
        Ok(messages.iter().filter_map(parse).collect())
    }

    /// Takes an address from an interface; `false` if it was not there.
    ///
    /// # Errors
    /// There is no such interface, or no privilege.
    pub fn delete_address(&self, index: u32, address: IpNet) -> Result<bool, LinkError> {
        let message = match address {
            IpNet::V4(net) => AddressMessageBuilder::<Ipv4Addr>::new()
                .index(index)
                .address(net.addr(), net.prefix_len())
                .build(),
            IpNet::V6(net) => AddressMessageBuilder::<Ipv6Addr>::new()
                .index(index)
                .address(net.addr(), net.prefix_len())
                .build(),
        };
        let request = self.handle.address().del(message).execute();
        let result = self.ask(request, "delete the address", || {
            format!("{address} from the link with index {index}")
        });
        existed(result, libc::EADDRNOTAVAIL)
    }

    /// Makes `mac` the permanent neighbour entry of `address`: it is never
    /// asked for nor aged out.
    ///
    /// # Errors
    /// There is no such interface, it is down, or no privilege.
    pub fn replace_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), LinkError> {
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add(index, address)
            .link_layer_address(&mac)
            .replace();
        self.ask(request.execute(), "set the neighbour", || {
            format!("{address} on the link with index {index}")
        })
    }

    /// The MAC address of a neighbour, if the kernel knows one by now.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn neighbour(&self, index: u32, address: IpAddr) -> Result<Option<[u8; 6]>, LinkError> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let neighbours = self.handle.neighbours().get().set_address_family(family);
        let messages = self.collect(neighbours.execute(), "list", "the neighbours")?;
        let of_address = messages.iter().find(|message| {
            let known = message.attributes.iter().any(|attribute| {
                matches!(attribute, NeighbourAttribute::Destination(found)
                    if ip(found) == Some(address))
            });
            known && message.header.ifindex == index
        });
        Ok(of_address.and_then(|message| {
            message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
                    _ => None,
                })
        }))
    }
}

fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        NeighbourAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The interface's own address: IFA_LOCAL where there is one, since
/// IFA_ADDRESS is the other end's on a point-to-point link (rtnetlink(7)).
fn parse(message: &AddressMessage) -> Option<IpNet> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
    };
    let address = find(true).or_else(|| find(false))?;
    IpNet::new(address, message.header.prefix_len).ok()
}
