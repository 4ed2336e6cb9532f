//! The uplink: how large a packet beyond the node may be, and whether its frames
//! for mapped ports of the node can come past the kernel.

use serde::Serialize;
use sluice_control::Uplink;
use sluice_link::{Link, Route, features};

use super::NodeError;

/// The MTU of a node that has no default route.
const DEFAULT_MTU: u32 = 1500;

/// The MTU of the default route, IPv4's before IPv6's: its interface's, or its
/// own if that is smaller. In bytes of IP packet.
pub(super) fn mtu(routes: &[Route], links: &[Link]) -> u32 {
    let Some(route) = default_route(routes) else {
        return DEFAULT_MTU;
    };
    let link = links.iter().find(|link| link.index == route.interface);
    let interface = link.map_or(DEFAULT_MTU, |link| link.mtu);
    route.mtu.map_or(interface, |mtu| mtu.min(interface))
}

/// IPv4's before IPv6's.
fn default_route(routes: &[Route]) -> Option<&Route> {
    routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .min_by_key(|route| route.destination.addr().is_ipv6())
}

/// A worker asks that many queues in every turn; what comes by others passes the
/// kernel.
const MOST_QUEUES: u16 = 32;

/// An uplink whose frames may come past the kernel.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub(super) link: Link,
    pub(super) queues: u16,
}

/// What becomes of frames for mapped ports of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum State {
    /// They come past the kernel.
    Served {
        /// By this interface.
        interface: String,
        /// By so many of its queues.
        queues: u16,
    },
    /// They pass the kernel, as its rules have it.
    Kernel {
        /// Why.
        reason: String,
    },
}

impl State {
    /// The interface's name; empty if the kernel serves.
    pub(super) fn interface(&self) -> &str {
        match self {
            Self::Served { interface, .. } => interface,
            Self::Kernel { .. } => "",
        }
    }

    pub(super) fn kernel(reason: impl ToString) -> Self {
        Self::Kernel {
            reason: reason.to_string(),
        }
    }
}

/// The uplink that is asked for, or why there is none. `rule` is the priority of
/// one that may route answers by more than their destination.
///
/// # Errors
/// It is asked for by name, and is not there.
pub(super) fn find(
    asked: &Uplink,
    routes: &[Route],
    links: &[Link],
    rule: Option<u32>,
) -> Result<Result<Device, State>, NodeError> {
    let link = match asked {
        Uplink::None => return Ok(Err(State::kernel("dataplane.uplink is none"))),
        Uplink::Interface(name) => links
            .iter()
            .find(|link| link.name == *name)
            .ok_or_else(|| NodeError::NoUplink(name.clone()))?,
        Uplink::Auto => {
            let found = default_route(routes).map(|route| route.interface);
            match links.iter().find(|link| Some(link.index) == found) {
                Some(link) => link,
                None => return Ok(Err(State::kernel("there is no default route"))),
            }
        }
    };
    Ok(device(link, links, rule, MOST_QUEUES))
}

/// The uplink that was found before, as it is now, with no more queues.
pub(super) fn again(before: &Device, links: &[Link], rule: Option<u32>) -> Result<Device, State> {
    let name = &before.link.name;
    let link = links.iter().find(|link| link.name == *name);
    let link = link.ok_or_else(|| State::kernel(format!("{name} is gone")))?;
    device(link, links, rule, before.queues)
}

fn device(
    link: &Link,
    links: &[Link],
    rule: Option<u32>,
    most_queues: u16,
) -> Result<Device, State> {
    if let Some(obstacle) = obstacle(link, links) {
        return Err(State::kernel(format!("{}: {obstacle}", link.name)));
    }
    if let Some(rule) = rule {
        return Err(State::kernel(format!(
            "{}: rule {rule} (`ip rule`) may route answers by more than their destination",
            link.name
        )));
    }
    let queues = features::rx_queues(&link.name).map_err(State::kernel)?;
    Ok(Device {
        link: link.clone(),
        queues: u16::try_from(queues).map_or(most_queues, |queues| queues.min(most_queues)),
    })
}

/// What the kernel would not refuse, and yet does not work.
fn obstacle(link: &Link, links: &[Link]) -> Option<&'static str> {
    let carries = |kind| {
        links
            .iter()
            .any(|other| other.kind.as_deref() == Some(kind) && other.over == Some(link.index))
    };
    match link.kind.as_deref() {
        // Frames come by its ports, whose queues are others'.
        Some("bond" | "team") => Some("a bond's frames come by no queue of its own"),
        _ if link.mac.is_none() => Some("it has no Ethernet address"),
        // The hardware takes their tags off before the program sees them.
        _ if carries("vlan") => {
            Some("it carries VLANs, whose frames its program cannot tell from its own")
        }
        // They have MAC addresses of their own, and hostPorts answer by those, too:
        // keepalived's virtual router, say.
        _ if carries("macvlan") => {
            Some("it carries a macvlan interface, whose frames are for another MAC address")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, interface: u32, mtu: Option<u32>) -> Route {
        Route {
            mtu,
            ..Route::new(destination.parse().unwrap(), interface)
        }
    }

    fn links() -> [Link; 2] {
        [(2, 9000), (3, 1280)].map(|(index, mtu)| Link {
            index,
            name: format!("up{index}"),
            mac: None,
            mtu,
            up: true,
            xdp_program: None,
            xdp_mode: None,
            kind: None,
            over: None,
        })
    }

    #[test]
    fn it_is_the_interfaces_of_the_default_route() {
        let routes = [
            route("::/0", 3, None),
            route("10.0.0.0/8", 3, None),
            route("0.0.0.0/0", 2, None),
        ];
        assert_eq!(mtu(&routes, &links()), 9000);
        assert_eq!(mtu(&routes[..2], &links()), 1280);
    }

    #[test]
    fn the_routes_own_counts_if_it_is_smaller() {
        let mtu_with = |mtu_of_route| {
            let routes = [route("0.0.0.0/0", 2, Some(mtu_of_route))];
            mtu(&routes, &links())
        };
        assert_eq!(mtu_with(1450), 1450);
        assert_eq!(mtu_with(65000), 9000);
    }

    #[test]
    fn without_a_default_route_it_is_ethernets() {
        let routes = [route("10.0.0.0/8", 2, Some(1300))];
        assert_eq!(mtu(&routes, &links()), 1500);
    }

    fn reason(asked: &Uplink, routes: &[Route], links: &[Link]) -> String {
        match find(asked, routes, links, None).unwrap() {
            Err(State::Kernel { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_serve_says_why() {
        let routes = [route("0.0.0.0/0", 2, None)];
        let [plain, other] = links().map(|link| Link {
            mac: Some([2, 0, 0, 0, 0, 1]),
            ..link
        });
        let bond = Link {
            kind: Some("bond".into()),
            ..plain.clone()
        };
        let vlan = Link {
            kind: Some("vlan".into()),
            over: Some(2),
            ..other
        };
        let macvlan = Link {
            kind: Some("macvlan".into()),
            ..vlan.clone()
        };
        let elsewhere = Link {
            over: Some(9),
            ..macvlan.clone()
        };
        let auto = &Uplink::Auto;
        assert!(reason(&Uplink::None, &routes, &[]).contains("dataplane.uplink is none"));
        assert!(reason(auto, &[], &links()).contains("default route"));
        assert!(reason(auto, &routes, &[bond]).contains("up2: a bond's"));
        assert!(reason(auto, &routes, &[plain.clone(), vlan]).contains("up2: it carries VLANs"));
        assert!(reason(auto, &routes, &[plain.clone(), macvlan]).contains("it carries a macvlan"));
        assert_eq!(obstacle(&plain, &[plain.clone(), elsewhere]), None);
        assert!(reason(auto, &routes, &links()).contains("up2: it has no Ethernet"));
        let named = Uplink::Interface("up9".into());
        let error = find(&named, &routes, &links(), None).unwrap_err();
        assert!(
            error.to_string().contains("dataplane.uplink is up9"),
            "{error}"
        );
    }
}
