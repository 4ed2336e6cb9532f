//! A packet's flow becomes another, in place.
//!
//! Checksums are updated, never computed anew: one that is wrong stays wrong,
//! and nothing but headers is read. One that is partial stays so, over the new
//! addresses. A UDP checksum of 0, none, stays 0, as does SCTP's (RFC 9653).
//!
//! Later fragments have no ports: only their addresses are changed. Who
//! translates a first fragment has to see to it that they follow.

use std::net::IpAddr;

use zerocopy::IntoBytes;
use zerocopy::byteorder::network_endian::U16;

use super::checksum::{Change, Sum};
use super::rewrite::header_at;
use super::transport::{Icmp, Sctp, Tcp};
use super::{Flow, Fragment, Ip, crc32c, ipv4, ipv6, offload, protocol, quote};

/// As much of a quoted transport header can change: up to TCP's checksum.
const TRANSPORT_LEN: usize = size_of::<Tcp>();

/// What becomes of a packet on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// It becomes one of this flow: [`packet`].
    Packet(Flow),
    /// It is an ICMP error, and becomes one about a packet of this flow:
    /// [`error`].
    Error(Flow),
}

impl Translation {
    /// Does it, and returns the packet's headers as they are then; `None`, and
    /// nothing has changed, where it cannot be done.
    pub fn apply(&self, head: &mut [u8], ip: &Ip) -> Option<Ip> {
        match self {
            Self::Packet(to) => packet(head, ip, to),
            Self::Error(to) => error(head, ip, to),
        }
    }
}

/// The new source and destination.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    src: IpAddr,
    dst: IpAddr,
}

/// Gives a packet the addresses and ports of `to`, and returns its headers as
/// they are then.
///
/// `None`, and nothing has changed, where that cannot be: `to` is of another IP
/// version or protocol; the packet has no ports, or has them in an SCTP
/// fragment, whose CRC goes over bytes that are not there; or a routing header
/// leads it from its destination to others.
pub fn packet(head: &mut [u8], ip: &Ip, to: &Flow) -> Option<Ip> {
    let addresses = addresses(head, ip, to)?;
    if to.protocol != ip.protocol {
        return None;
    }
    match ip.fragment {
        Fragment::Later => {
            set_addresses(head, ip, addresses);
        }
        Fragment::First if ip.protocol == protocol::SCTP => return None,
        Fragment::First | Fragment::Whole => {
            ip.ports?;
            set_flow(head, ip, addresses, to);
        }
    }
    Some(Ip {
        src: addresses.src,
        dst: addresses.dst,
        ports: ip.ports.map(|_| (to.src_port, to.dst_port)),
        ..*ip
    })
}

/// Makes the packet that an ICMP error quotes ([`quote::flow`]) one of flow
/// `to`, and the error one about that: it goes to where that came from. One
/// from the quoted packet's destination comes from the new one; one from a
/// router on the way keeps its source. Returns the error's headers then.
///
/// `None`, and nothing has changed, where that cannot be: as for [`packet`].
pub fn error(head: &mut [u8], ip: &Ip, to: &Flow) -> Option<Ip> {
    let quote = quote::packet(head, ip)?;
    let quoted = addresses(head, &quote, to)?;
    if to.protocol != quote.protocol {
        return None;
    }
    let outer = Addresses {
        src: if ip.src == quote.dst {
            quoted.dst
        } else {
            ip.src
        },
        dst: quoted.src,
    };
    let end = ip.end().min(usize::from(quote.l4) + TRANSPORT_LEN);
    let changing = usize::from(quote.l3)..end.min(head.len());
    let sum = |head: &[u8]| {
        let mut sum = Sum::new();
        sum.add(head.get(changing.clone()).unwrap_or_default());
        sum.fold().to_be_bytes()
    };
    let before = sum(head);
    // The quote may end before its checksum; what follows is not its own.
    let (quoting, _padding) = head.split_at_mut_checked(changing.end)?;
    set_flow(quoting, &quote, quoted, to);
    let mut change = set_addresses(head, ip, outer);
    if ip.src.is_ipv4() {
        // ICMP's checksum goes over no pseudo header.
        change = Change::default();
    }
    change.replace(&before, &sum(head));
    if let Some(icmp) = header_at::<Icmp>(head, ip.l4) {
        icmp.checksum = change.apply(icmp.checksum.get()).into();
    }
    Some(Ip {
        src: outer.src,
        dst: outer.dst,
        ..*ip
    })
}

/// The addresses of `to`, if a packet can get them.
fn addresses(head: &[u8], ip: &Ip, to: &Flow) -> Option<Addresses> {
    let (src, dst) = to.addresses()?;
    let is_routed = ip.dst.is_ipv6() && ipv6::route(head, ip).is_some();
    (src.is_ipv4() == ip.src.is_ipv4() && !is_routed).then_some(Addresses { src, dst })
}

/// Sets addresses and ports, and the transport checksum as far as it is there.
fn set_flow(head: &mut [u8], ip: &Ip, addresses: Addresses, to: &Flow) {
    // An inner packet's partial checksum is none of this one.
    let is_partial = offload::partial(head, ip).is_some_and(|partial| partial.start == ip.l4);
    let mut change = set_addresses(head, ip, addresses);
    let Some(ports) = header_at::<[U16; 2]>(head, ip.l4) else {
        return;
    };
    let old = std::mem::replace(ports, [to.src_port.into(), to.dst_port.into()]);
    change.replace(old.as_bytes(), ports.as_bytes());
    if ip.protocol == protocol::SCTP {
        let difference = std::array::from_fn(|i| old.as_bytes()[i] ^ ports.as_bytes()[i]);
        update_crc(head, ip, difference);
        return;
    }
    let Some((place, checksum)) = offload::own(head, ip) else {
        return;
    };
    let checksum = if is_partial {
        let Addresses { src, dst } = addresses;
        Sum::pseudo_header(src, dst, ip.protocol, ip.l4_len()).fold()
    } else if ip.protocol == protocol::UDP && checksum == 0 {
        0
    } else {
        match change.apply(checksum) {
            0 => 0xffff,
            checksum => checksum,
        }
    };
    offload::store(head, place, checksum);
}

fn update_crc(head: &mut [u8], ip: &Ip, difference: [u8; 4]) {
    if ip.fragment == Fragment::Whole
        && let Some(header) = header_at::<Sctp>(head, ip.l4)
        && header.checksum.get() != 0
    {
        let change = crc32c::change(difference, ip.l4_len());
        // It lies lowest byte first (RFC 9260 appendix A).
        header.checksum ^= change.swap_bytes();
    }
}

/// Sets the addresses, and says what has changed under a transport checksum.
fn set_addresses(head: &mut [u8], ip: &Ip, addresses: Addresses) -> Change {
    let mut change = Change::default();
    match (addresses.src, addresses.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            if let Some(header) = header_at::<ipv4::Header>(head, ip.l3) {
                change.replace(&header.src, &src.octets());
                change.replace(&header.dst, &dst.octets());
                header.checksum = change.apply(header.checksum.get()).into();
                (header.src, header.dst) = (src.octets(), dst.octets());
            }
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            if let Some(header) = header_at::<ipv6::Header>(head, ip.l3) {
                change.replace(&header.src, &src.octets());
                change.replace(&header.dst, &dst.octets());
                (header.src, header.dst) = (src.octets(), dst.octets());
            }
        }
        _ => debug_assert!(false, "checked by `addresses`"),
    }
    change
}

#[cfg(test)]
mod tests;
