//! Mappings: ports of the node that lead to a pod (Kubernetes' `hostPort`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::InvalidAttachment;

const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A transport protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Its number in IP headers (IANA, "Assigned Internet Protocol Numbers").
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port of the node that leads to a port of a pod, as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The node's port, 1 to 65535.
    pub host_port: u16,
    /// The pod's port, 1 to 65535.
    pub container_port: u16,
    /// Of both ports.
    pub protocol: Protocol,
    /// The node's address. `None`: all addresses of the pod's families;
    /// 0.0.0.0 or `::`: all of that family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Where it takes in, each family apart, whether the pod has that or not.
    pub(crate) fn ends(&self) -> impl Iterator<Item = HostEnd> {
        let addresses = match self.host_ip {
            None => [Some(ANY4), Some(ANY6)],
            Some(address) => [Some(address), None],
        };
        let (protocol, port) = (self.protocol, self.host_port);
        addresses.into_iter().flatten().map(move |address| HostEnd {
            address,
            protocol,
            port,
        })
    }

    fn validate(&self) -> Result<(), InvalidAttachment> {
        for (name, port) in [
            ("hostPort", self.host_port),
            ("containerPort", self.container_port),
        ] {
            if port == 0 {
                return Err(InvalidAttachment::field(
                    name,
                    "0",
                    "must be from 1 to 65535",
                ));
            }
        }
        match self.host_ip.filter(|address| !can_be_nodes(*address)) {
            Some(address) => Err(InvalidAttachment::field(
                "hostIP",
                &address.to_string(),
                "must be an address that a node can have",
            )),
            None => Ok(()),
        }
    }
}

/// Checks mappings of one attachment, each and all together.
///
/// # Errors
/// The first rule broken, with the field and its value.
pub fn check_mappings(mappings: &[PortMapping]) -> Result<(), InvalidAttachment> {
    mappings.iter().try_for_each(PortMapping::validate)?;
    let mut ends: Vec<HostEnd> = mappings.iter().flat_map(PortMapping::ends).collect();
    ends.sort_unstable();
    match ends.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(InvalidAttachment::field(
            "hostPort",
            &pair[0].to_string(),
            "must be there once",
        )),
        None => Ok(()),
    }
}

/// Whether a node can have the address, and mappings on it.
fn can_be_nodes(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !(address.is_multicast() || address.is_broadcast()),
        IpAddr::V6(address) => !(address.is_multicast() || address.to_ipv4_mapped().is_some()),
    }
}

/// The node's end of a mapping, of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostEnd {
    /// The node's address; unspecified for every one of its family.
    pub address: IpAddr,
    /// Of the port.
    pub protocol: Protocol,
    /// The node's port.
    pub port: u16,
}

impl HostEnd {
    /// Whether it takes what comes to any address of its family.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.address.is_unspecified()
    }

    /// Whether it takes what comes to `address`, if that is the node's.
    #[must_use]
    pub fn covers(&self, address: IpAddr) -> bool {
        self.address == address || self.is_any() && self.address.is_ipv4() == address.is_ipv4()
    }

    /// Whether something can come to both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        (self.protocol, self.port) == (other.protocol, other.port)
            && (self.covers(other.address) || other.covers(self.address))
    }
}

impl fmt::Display for HostEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            protocol,
            port,
        } = self;
        match address {
            IpAddr::V4(any) if any.is_unspecified() => {
                write!(f, "{protocol} port {port} of every IPv4 address")
            }
            IpAddr::V6(any) if any.is_unspecified() => {
                write!(f, "{protocol} port {port} of every IPv6 address")
            }
            address => write!(f, "{protocol} port {port} of {address}"),
        }
    }
}

/// What a mapping does in one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Redirect {
    /// Where it comes to.
    pub from: HostEnd,
    /// The pod's address and port.
    pub to: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: &str, protocol: Protocol, port: u16) -> HostEnd {
        HostEnd {
            address: address.parse().unwrap(),
            protocol,
            port,
        }
    }

    #[test]
    fn ends_overlap_where_something_can_come_to_both() {
        use Protocol::{Tcp, Udp};
        let held = end("0.0.0.0", Tcp, 80);
        for (wanted, overlaps) in [
            (end("0.0.0.0", Tcp, 80), true),
            (end("192.0.2.1", Tcp, 80), true),
            (end("192.0.2.1", Udp, 80), false),
            (end("192.0.2.1", Tcp, 81), false),
            (end("::", Tcp, 80), false),
            (end("2001:db8::1", Tcp, 80), false),
        ] {
            assert_eq!(held.overlaps(&wanted), overlaps, "{wanted}");
            assert_eq!(wanted.overlaps(&held), overlaps, "{wanted}");
        }
        let exact = end("192.0.2.1", Tcp, 80);
        assert!(exact.overlaps(&exact));
        assert!(!exact.overlaps(&end("192.0.2.2", Tcp, 80)));
    }

    #[test]
    fn ends_read_well() {
        for (end, text) in [
            (
                end("::", Protocol::Sctp, 9),
                "SCTP port 9 of every IPv6 address",
            ),
            (
                end("192.0.2.1", Protocol::Udp, 53),
                "UDP port 53 of 192.0.2.1",
            ),
        ] {
            assert_eq!(end.to_string(), text);
        }
    }

    fn mapping(host_port: u16, container_port: u16, host_ip: &str) -> PortMapping {
        PortMapping {
            host_port,
            container_port,
            protocol: Protocol::Tcp,
            host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        }
    }

    #[test]
    fn mappings_are_bounded() {
        for (bad, field) in [
            (mapping(0, 80, ""), "hostPort"),
            (mapping(80, 0, ""), "containerPort"),
            (mapping(80, 80, "224.0.0.1"), "hostIP"),
            (mapping(80, 80, "ff02::1"), "hostIP"),
            (mapping(80, 80, "::ffff:192.0.2.1"), "hostIP"),
        ] {
            let error = check_mappings(&[bad]).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }

    #[test]
    fn a_host_end_leads_to_one_port() {
        let fine = [
            mapping(80, 8080, ""),
            mapping(80, 8081, "192.0.2.1"),
            mapping(81, 8080, "0.0.0.0"),
            mapping(81, 8081, "::"),
        ];
        assert_eq!(check_mappings(&fine), Ok(()));
        for twice in [mapping(80, 1, ""), mapping(80, 1, "::")] {
            let error = check_mappings(&[fine[0], twice]).unwrap_err();
            assert!(
                error.to_string().contains("TCP port 80 of every"),
                "{error}"
            );
        }
    }
}
