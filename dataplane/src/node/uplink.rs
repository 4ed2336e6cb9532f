//! The uplink: how large a packet beyond the node may be.

use sluice_link::{Link, Route};

/// The MTU of a node that has no default route.
const DEFAULT_MTU: u32 = 1500;

/// The MTU of the default route, IPv4's before IPv6's: its interface's, or its
/// own if that is smaller. In bytes of IP packet.
pub(super) fn mtu(routes: &[Route], links: &[Link]) -> u32 {
    let default = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 0)
        .min_by_key(|route| route.destination.addr().is_ipv6());
    let Some(route) = default else {
        return DEFAULT_MTU;
    };
    let link = links.iter().find(|link| link.index == route.interface);
    let interface = link.map_or(DEFAULT_MTU, |link| link.mtu);
    route.mtu.map_or(interface, |mtu| mtu.min(interface))
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
}
