//! What the kernel knows of the uplink and of what is beyond it, followed for
//! the worker; and what the worker uses of it, told to the kernel.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender};
use nix::sys::socket::SockProtocol;
use sluice_link::{Forwarding, Link, Neighbour, Netlink};

use super::NodeError;
use super::wiring::Wiring;
use crate::netlink::{Message, Socket, attribute};
use crate::next_hops::{NextHops, Path, Uplink};

/// `RTNLGRP_LINK`, `NEIGH`, `IPV4_ROUTE`, `IPV4_RULE`, `IPV6_ROUTE`, `IPV6_RULE`.
const GROUPS: [u32; 6] = [1, 3, 7, 8, 11, 19];

/// So long at least between two looks: neighbours and routes may come and go
/// by the thousand.
const PACE: Duration = Duration::from_millis(50);

/// Next hops in use that wait to be told; what has no room is told later.
const IN_USE: usize = 256;

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    Neighbours,
    /// Routes, rules, the uplink itself.
    Network,
}

/// What the worker was told last.
#[derive(Debug, PartialEq)]
struct Told {
    index: u32,
    mac: [u8; 6],
    mtu: u32,
    paths: BTreeMap<(IpAddr, u8), Path>,
    neighbours: BTreeMap<IpAddr, [u8; 6]>,
}

/// Follows the kernel.
pub(super) struct Routing {
    changes: Socket,
    netlink: Rc<Netlink>,
    routes: Vec<Forwarding>,
    neighbours: BTreeMap<IpAddr, Neighbour>,
    told: Option<Told>,
    in_use: (Sender<IpAddr>, Receiver<IpAddr>),
    due: Option<Change>,
    looked: Instant,
}

impl Routing {
    /// Follows changes from now on, in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub(super) fn follow(netlink: Rc<Netlink>) -> Result<Self, NodeError> {
        let changes =
            Socket::listen(SockProtocol::NetlinkRoute, &GROUPS).map_err(NodeError::Follow)?;
        Ok(Self {
            changes,
            netlink,
            routes: Vec::new(),
            neighbours: BTreeMap::new(),
            told: None,
            in_use: channel::bounded(IN_USE),
            due: None,
            looked: Instant::now(),
        })
    }

    /// What has changed about `uplink` since the last call that said so.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(super) fn look(&mut self, uplink: &Link) -> Result<Option<Change>, NodeError> {
        let due = &mut self.due;
        let drained = self.changes.drain(|message| {
            *due = (*due).max(change(message, uplink));
        });
        if drained.map_err(NodeError::Follow)? {
            self.due = Some(Change::Network);
        }
        if self.looked.elapsed() < PACE {
            return Ok(None);
        }
        Ok(self.due.take().inspect(|_| self.looked = Instant::now()))
    }

    /// Has another look be due for a change that could not be followed.
    pub(super) fn postpone(&mut self, change: Change) {
        self.due = self.due.max(Some(change));
    }

    /// How long may pass until the next look.
    pub(super) fn patience(&self) -> Duration {
        self.due.map_or(Duration::MAX, |_| PACE)
    }

    /// Tells the worker what has changed about the uplink, if anything.
    ///
    /// # Errors
    /// The kernel does not answer, or the worker is gone.
    pub(super) fn tell(
        &mut self,
        change: Change,
        link: &Link,
        wiring: &Wiring,
    ) -> Result<(), NodeError> {
        if change == Change::Network {
            self.routes = self.netlink.forwarding()?;
        }
        self.neighbours = self.netlink.neighbours(link.index)?;
        let neighbours = self.neighbours.iter();
        let told = Told {
            index: link.index,
            mac: link.mac.unwrap_or_default(),
            mtu: link.mtu,
            paths: paths(&self.routes, link.index),
            neighbours: neighbours.map(|(ip, known)| (*ip, known.mac)).collect(),
        };
        if self.told.as_ref() != Some(&told) {
            let next_hops = NextHops::new(told.paths.clone(), told.neighbours.clone());
            wiring.set_uplink(&Uplink {
                mac: told.mac,
                mtu: told.mtu,
                next_hops: next_hops.telling(self.in_use.0.clone()),
            })?;
            self.told = Some(told);
        }
        Ok(())
    }

    /// What was told counts no more.
    pub(super) fn forget(&mut self) {
        self.told = None;
    }

    /// Has the kernel ask for the next hops in use that it does not know, or
    /// has not heard of for a while, as if it had sent to them itself.
    pub(super) fn keep_in_use(&self) {
        let Some(told) = &self.told else {
            return;
        };
        for address in self.in_use.1.try_iter().take(IN_USE) {
            let known = self.neighbours.get(&address);
            if known.is_some_and(|neighbour| !neighbour.is_stale) {
                continue;
            }
            if let Err(error) = self.netlink.use_neighbour(told.index, address) {
                tracing::debug!(%error, "answers go where questions came from");
            }
        }
    }
}

/// Readable when something changes.
impl AsFd for Routing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}

/// How each destination is reached, by an uplink of this index or not.
fn paths(routes: &[Forwarding], uplink: u32) -> BTreeMap<(IpAddr, u8), Path> {
    let path = |route: &Forwarding| {
        // Of several next hops any will do.
        let hop = route.hops.iter().find(|hop| hop.interface == uplink);
        hop.map_or(Path::Elsewhere, |hop| {
            hop.gateway.map_or(Path::OnLink, Path::Via)
        })
    };
    let mut all: Vec<(u32, bool, &Forwarding)> = routes
        .iter()
        .map(|route| (route.priority, path(route) == Path::Elsewhere, route))
        .collect();
    // IPv6 has routes that are as good as each other.
    all.sort_by_key(|(priority, is_elsewhere, _)| (*priority, *is_elsewhere));
    let mut paths = BTreeMap::new();
    for (.., route) in all {
        let destination = route.destination;
        let key = (destination.addr(), destination.prefix_len());
        paths.entry(key).or_insert_with(|| path(route));
    }
    paths
}

/// What a notification may change for this uplink (linux/rtnetlink.h).
fn change(message: &Message<'_>, uplink: &Link) -> Option<Change> {
    const LINKS: [u16; 2] = [16, 17];
    const ROUTES: [u16; 2] = [24, 25];
    const NEIGHBOURS: [u16; 2] = [28, 29];
    /// `RT_TABLE_MAIN`, at 4 in `struct rtmsg`.
    const MAIN: u8 = 254;
    const IFINFOMSG_BYTES: usize = 16;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    let payload = message.payload;
    // At the same place in `struct ifinfomsg` and `struct ndmsg`.
    let is_uplink = payload.get(4..8) == Some(&uplink.index.to_ne_bytes());
    let is_changed = match message.kind {
        kind if NEIGHBOURS.contains(&kind) => {
            let family = payload.first().copied().map(i32::from);
            let is_ip = matches!(family, Some(libc::AF_INET | libc::AF_INET6));
            return (is_ip && is_uplink).then_some(Change::Neighbours);
        }
        kind if ROUTES.contains(&kind) => payload.get(4) == Some(&MAIN),
        kind if LINKS.contains(&kind) => {
            let attributes = payload.get(IFINFOMSG_BYTES..).unwrap_or_default();
            let name = attribute(attributes, IFLA_IFNAME);
            is_uplink
                || name.and_then(|name| name.strip_suffix(&[0])) == Some(uplink.name.as_bytes())
                || attribute(attributes, IFLA_LINK) == Some(&uplink.index.to_ne_bytes())
        }
        // A rule.
        _ => true,
    };
    is_changed.then_some(Change::Network)
}

#[cfg(test)]
mod tests {
    use super::*;

    use sluice_link::Hop;

    const UPLINK: u32 = 2;
    const OTHER: u32 = 3;

    fn route(destination: &str, priority: u32, hops: &[(u32, &str)]) -> Forwarding {
        let hops = hops.iter().map(|(interface, gateway)| Hop {
            interface: *interface,
            gateway: gateway.parse().ok(),
        });
        Forwarding {
            destination: destination.parse().unwrap(),
            priority,
            hops: hops.collect(),
        }
    }

    #[test]
    fn the_best_route_of_each_destination_counts() {
        let via = |gateway: &str| Path::Via(gateway.parse().unwrap());
        let on_link = "on the link";
        for (routes, expected) in [
            (
                vec![route("0.0.0.0/0", 0, &[(UPLINK, "192.0.2.254")])],
                via("192.0.2.254"),
            ),
            (
                vec![route("0.0.0.0/0", 0, &[(UPLINK, on_link)])],
                Path::OnLink,
            ),
            (
                vec![route("0.0.0.0/0", 0, &[(OTHER, "192.0.2.254")])],
                Path::Elsewhere,
            ),
            (vec![route("0.0.0.0/0", 0, &[])], Path::Elsewhere),
            (
                vec![
                    route("0.0.0.0/0", 200, &[(UPLINK, "192.0.2.1")]),
                    route("0.0.0.0/0", 100, &[(OTHER, "192.0.2.2")]),
                ],
                Path::Elsewhere,
            ),
            (
                vec![
                    route("0.0.0.0/0", 200, &[(OTHER, "192.0.2.1")]),
                    route(
                        "0.0.0.0/0",
                        100,
                        &[(OTHER, "192.0.2.2"), (UPLINK, "fe80::1")],
                    ),
                ],
                via("fe80::1"),
            ),
        ] {
            let found = paths(&routes, UPLINK);
            let default = ("0.0.0.0".parse().unwrap(), 0);
            assert_eq!(found, BTreeMap::from([(default, expected)]), "{routes:?}");
        }
        let equal = [
            route("fe80::/64", 256, &[(OTHER, on_link)]),
            route("fe80::/64", 256, &[(UPLINK, on_link)]),
        ];
        let found = paths(&equal, UPLINK);
        assert_eq!(found.into_values().collect::<Vec<_>>(), [Path::OnLink]);
    }
}
