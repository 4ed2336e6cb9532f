//! One direction of a conversation, and what a packet says about its course.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use zerocopy::FromBytes;

use super::transport::Tcp;
use super::transport::flag::{ACK, FIN, RST, SYN};
use super::{Ip, protocol};

/// One direction of a conversation between two ports.
///
/// IPv4 addresses are kept as ::ffff:a.b.c.d. No packet has such an address in
/// IPv6: the pipeline drops it as a martian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// From where.
    pub src: Ipv6Addr,
    /// To where.
    pub dst: Ipv6Addr,
    /// From which port.
    pub src_port: u16,
    /// To which port.
    pub dst_port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: u8,
}

impl Flow {
    /// The flow that a packet belongs to; `None` if it shows no ports.
    #[inline]
    #[must_use]
    pub fn of(ip: &Ip) -> Option<Self> {
        let (src_port, dst_port) = ip.ports?;
        Some(Self {
            src: mapped(ip.src),
            dst: mapped(ip.dst),
            src_port,
            dst_port,
            protocol: ip.protocol,
        })
    }

    /// The other direction: what answers this one.
    #[inline]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            src_port: self.dst_port,
            dst_port: self.src_port,
            protocol: self.protocol,
        }
    }

    /// Source and destination as the packet has them, or `None` if they are of
    /// two IP versions.
    #[inline]
    #[must_use]
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        let (src, dst) = (self.src.to_canonical(), self.dst.to_canonical());
        (src.is_ipv4() == dst.is_ipv4()).then_some((src, dst))
    }
}

/// In three words: derived, each address would be led by its length.
impl Hash for Flow {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.src.octets()));
        state.write_u128(u128::from_ne_bytes(self.dst.octets()));
        let ports = u64::from(self.src_port) << 16 | u64::from(self.dst_port);
        state.write_u64(ports << 8 | u64::from(self.protocol));
    }
}

/// The address as [`Flow`] keeps it.
#[inline]
#[must_use]
pub fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// What a packet says about the course of its conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// It begins: a TCP segment with SYN and without ACK.
    Open,
    /// Its sender has no more to say: FIN.
    Finish,
    /// It ends at once: RST.
    Reset,
    /// It goes on. All that a packet of another protocol says.
    Data,
}

impl Signal {
    /// What the packet of `ip` says, the beginning of which is in `head`.
    #[inline]
    #[must_use]
    pub fn of(head: &[u8], ip: &Ip) -> Self {
        if ip.protocol != protocol::TCP || ip.ports.is_none() {
            return Self::Data;
        }
        let bytes = head.get(usize::from(ip.l4)..).unwrap_or_default();
        let Ok((header, _)) = Tcp::ref_from_prefix(bytes) else {
            return Self::Data;
        };
        let flags = header.offset_flags.get();
        if flags & RST != 0 {
            Self::Reset
        } else if flags & (SYN | ACK) == SYN {
            Self::Open
        } else if flags & FIN != 0 {
            Self::Finish
        } else {
            Self::Data
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    #[test]
    fn a_flow_has_both_ends_of_tcp_udp_and_sctp_in_both_versions() {
        let flow = Flow::of(&ip(&build::tcp((A4, 1), (B4, 2)).frame(LINK))).unwrap();
        let expected = Flow {
            src: A4.to_ipv6_mapped(),
            dst: B4.to_ipv6_mapped(),
            src_port: 1,
            dst_port: 2,
            protocol: 6,
        };
        assert_eq!(flow, expected);
        assert_eq!(flow.addresses(), Some((A4.into(), B4.into())));
        let answer = Flow::of(&ip(&build::tcp((B4, 2), (A4, 1)).frame(LINK))).unwrap();
        assert_eq!((flow.reversed(), answer.reversed()), (answer, flow));

        let udp = Flow::of(&ip(&build::udp((A6, 1), (B6, 2)).frame(LINK))).unwrap();
        assert_eq!((udp.src, udp.dst, udp.protocol), (A6, B6, 17));
        let sctp = Flow::of(&ip(&build::sctp((A6, 1), (B6, 2)).frame(LINK))).unwrap();
        assert_eq!(sctp.protocol, 132);
        assert_eq!(Flow::of(&ip(&build::ping(A4, B4).frame(LINK))), None);
        let two_versions = Flow { dst: B6, ..flow };
        assert_eq!(two_versions.addresses(), None);
    }

    #[test]
    fn a_segment_says_what_its_flags_say() {
        let said = |flags: u8| {
            let frame = build::tcp((A4, 1), (B4, 2)).flags(flags).frame(LINK);
            Signal::of(&frame, &ip(&frame))
        };
        assert_eq!(said(0x02), Signal::Open);
        assert_eq!(said(0x12), Signal::Data, "SYN and ACK answer");
        assert_eq!(said(0x10), Signal::Data);
        assert_eq!(said(0x11), Signal::Finish);
        assert_eq!(said(0x14), Signal::Reset);
        assert_eq!(said(0x07), Signal::Reset);
        let udp = build::udp((A4, 1), (B4, 2)).payload([0x02; 20]).frame(LINK);
        assert_eq!(Signal::of(&udp, &ip(&udp)), Signal::Data);
    }
}
