//! Which port has which pod address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::port::PortId;

/// Pod address -> port. A map a family: an IPv4 key is four bytes then.
#[derive(Debug, Default)]
pub struct PodTable {
    v4: HashMap<Ipv4Addr, PortId, RandomState>,
    v6: HashMap<Ipv6Addr, PortId, RandomState>,
}

impl PodTable {
    /// The port that has `address`.
    #[inline]
    #[must_use]
    pub fn get(&self, address: IpAddr) -> Option<PortId> {
        match address {
            IpAddr::V4(address) => self.v4.get(&address).copied(),
            IpAddr::V6(address) => self.v6.get(&address).copied(),
        }
    }

    /// Gives `address` to `port`.
    pub fn insert(&mut self, address: IpAddr, port: PortId) {
        match address {
            IpAddr::V4(address) => self.v4.insert(address, port),
            IpAddr::V6(address) => self.v6.insert(address, port),
        };
    }

    /// Takes all addresses of `port` away.
    pub fn remove(&mut self, port: PortId) {
        self.v4.retain(|_, holder| *holder != port);
        self.v6.retain(|_, holder| *holder != port);
    }
}
