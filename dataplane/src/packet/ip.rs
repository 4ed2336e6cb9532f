//! What both versions of IP come down to.

use std::net::IpAddr;

use super::ipv6;

/// Numbers of upper-layer protocols (IANA "Protocol Numbers").
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPV4: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    /// Generic routing encapsulation.
    pub const GRE: u8 = 47;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// What part of a datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// All of it. An IPv6 atomic fragment (RFC 6946) is whole.
    Whole,
    /// Its beginning, with the transport header.
    First,
    /// What follows the first fragment: no transport header.
    Later,
}

/// An IPv4 or IPv6 packet whose headers are well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub src: IpAddr,
    /// Destination address; the next segment's where a routing header says so.
    pub dst: IpAddr,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of what follows the IP header, its options and extensions.
    pub l4: u16,
    /// Length of the packet, IP header included. The frame may be longer by
    /// Ethernet padding.
    pub packet_len: u32,
    /// What stands at `l4`: the upper-layer protocol. In [`Fragment::Later`]
    /// over IPv6 it may name an extension header of the datagram's beginning.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// What part of a datagram this is.
    pub fragment: Fragment,
    /// Must not be fragmented on its way; always so in IPv6.
    pub dont_fragment: bool,
    /// Source and destination port of TCP, UDP or SCTP, except in
    /// [`Fragment::Later`].
    pub ports: Option<(u16, u16)>,
    /// Type and code of ICMP over IPv4 or ICMPv6 over IPv6, except in
    /// [`Fragment::Later`].
    pub icmp: Option<(u8, u8)>,
}

impl Ip {
    /// Where the packet ends in its frame, and padding may begin.
    #[inline]
    #[must_use]
    pub fn end(&self) -> usize {
        usize::from(self.l3) + self.packet_len as usize
    }

    /// Whether it has extension headers of IPv6.
    #[inline]
    #[must_use]
    pub fn is_extended(&self) -> bool {
        self.src.is_ipv6() && usize::from(self.l4) != usize::from(self.l3) + ipv6::HEADER_LEN
    }

    /// Length of what begins at `l4`.
    #[inline]
    #[must_use]
    pub fn l4_len(&self) -> u32 {
        self.packet_len
            .saturating_sub(u32::from(self.l4.saturating_sub(self.l3)))
    }
}
