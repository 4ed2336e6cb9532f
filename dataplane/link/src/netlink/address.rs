//! Addresses of an interface, and its neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};

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
        let request = self.handle.address().get().set_link_index_filter(index);
        let object = format!("of the link with index {index}");
        let messages = self.collect(request.execute(), "list the addresses", &object)?;
        let parse = |message: &AddressMessage| {
            // IPv4's `Local` is the address; `Address` is a peer's, if there is one.
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
            let address = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                });
            IpNet::new(local.or(address)?, message.header.prefix_len).ok()
        };
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
}
