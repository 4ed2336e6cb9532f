//! To which datagram a fragment belongs.

use std::net::IpAddr;

use zerocopy::FromBytes;

use super::{Fragment, Ip, ipv4, ipv6};

/// What all fragments of a datagram have in common, and no other datagram has
/// for some time (RFC 791 section 2.3, RFC 8200 section 4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramId {
    src: IpAddr,
    dst: IpAddr,
    identification: u32,
    /// IPv4: the protocol, which has identifications of its own.
    protocol: Option<u8>,
}

impl DatagramId {
    /// The datagram of the fragment of `ip`; `None` if that is no fragment.
    #[must_use]
    pub fn of(head: &[u8], ip: &Ip) -> Option<Self> {
        if ip.fragment == Fragment::Whole {
            return None;
        }
        let (identification, protocol) = match ip.src {
            IpAddr::V4(_) => {
                let header = head.get(usize::from(ip.l3)..)?;
                let (header, _) = ipv4::Header::ref_from_prefix(header).ok()?;
                (header.identification.get().into(), Some(ip.protocol))
            }
            IpAddr::V6(_) => (ipv6::identification(head, ip)?, None),
        };
        Some(Self {
            src: ip.src,
            dst: ip.dst,
            identification,
            protocol,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    #[test]
    fn fragments_of_one_datagram_have_one_id() {
        for datagram in [
            build::udp((A4, 1), (B4, 2)).options(&[7, 3, 4]),
            build::udp((A6, 1), (B6, 2)).extension(60, &[1, 4]),
        ] {
            let datagram = datagram.payload([0; 64]);
            let whole = datagram.frame(LINK);
            assert_eq!(DatagramId::of(&whole, &ip(&whole)), None);
            let ids = |identification| -> Vec<_> {
                let fragments = datagram.clone().identification(identification);
                let fragments = fragments.fragments(LINK, 24);
                let id = |frame: &Vec<u8>| DatagramId::of(frame, &ip(frame)).unwrap();
                fragments.iter().map(id).collect()
            };
            let [one, other] = [7, 8].map(ids);
            assert_eq!(one.len(), 3);
            assert!(one.iter().all(|id| *id == one[0]), "{one:?}");
            assert!(!other.contains(&one[0]));
        }
    }
}
