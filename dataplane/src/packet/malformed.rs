//! Why a frame is not what it claims to be.

/// The rule that a frame breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Shorter than an Ethernet header.
    Ethernet,
    /// IPv4 version, or a header length outside the packet (RFC 791 section 3.1).
    Ipv4Header,
    /// IPv4 header checksum (RFC 1812 section 5.2.2).
    Ipv4Checksum,
    /// IPv4 total length below its header's or beyond the frame (RFC 1812 section 5.2.2).
    Ipv4Length,
    /// An IPv4 fragment that ends beyond the largest packet, 65,535 bytes (RFC 791 section 3.2).
    Ipv4Fragment,
    /// IPv6 version, or a header cut short (RFC 8200 section 3).
    Ipv6Header,
    /// IPv6 payload length beyond the frame, or a jumbogram (RFC 2675), which no link here carries.
    Ipv6Length,
    /// IPv6 extension headers cut short, out of place, or more than we walk (RFC 8200 section 4).
    Ipv6Extension,
    /// An IPv6 fragment that ends beyond the largest packet (RFC 8200 section 4.5).
    Ipv6Fragment,
    /// A transport header cut short (RFC 1858 and RFC 7112 for first fragments).
    Transport,
    /// ARP for other than IPv4 over Ethernet, cut short, or neither request nor reply (RFC 826).
    Arp,
    /// Neighbour discovery that fails its validity checks (RFC 4861 sections 6.1, 7.1 and 8.1).
    NeighbourDiscovery,
}

impl Malformed {
    /// Every variant.
    pub const ALL: [Self; 12] = [
        Self::Ethernet,
        Self::Ipv4Header,
        Self::Ipv4Checksum,
        Self::Ipv4Length,
        Self::Ipv4Fragment,
        Self::Ipv6Header,
        Self::Ipv6Length,
        Self::Ipv6Extension,
        Self::Ipv6Fragment,
        Self::Transport,
        Self::Arp,
        Self::NeighbourDiscovery,
    ];

    /// The variant as a word for counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ethernet => "malformed-ethernet",
            Self::Ipv4Header => "malformed-ipv4-header",
            Self::Ipv4Checksum => "malformed-ipv4-checksum",
            Self::Ipv4Length => "malformed-ipv4-length",
            Self::Ipv4Fragment => "malformed-ipv4-fragment",
            Self::Ipv6Header => "malformed-ipv6-header",
            Self::Ipv6Length => "malformed-ipv6-length",
            Self::Ipv6Extension => "malformed-ipv6-extension",
            Self::Ipv6Fragment => "malformed-ipv6-fragment",
            Self::Transport => "malformed-transport",
            Self::Arp => "malformed-arp",
            Self::NeighbourDiscovery => "malformed-neighbour-discovery",
        }
    }

    /// One line for people who read the counters.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::Ethernet => "shorter than an Ethernet header",
            Self::Ipv4Header => "IPv4 version or header length wrong",
            Self::Ipv4Checksum => "IPv4 header checksum wrong",
            Self::Ipv4Length => "IPv4 total length below the header's or beyond the frame",
            Self::Ipv4Fragment => "IPv4 fragment that ends beyond 65,535 bytes",
            Self::Ipv6Header => "IPv6 version wrong or header cut short",
            Self::Ipv6Length => "IPv6 payload length beyond the frame, or a jumbogram",
            Self::Ipv6Extension => "IPv6 extension headers cut short, out of place or too many",
            Self::Ipv6Fragment => "IPv6 fragment that ends beyond the largest packet",
            Self::Transport => "TCP, UDP, SCTP or ICMP header cut short",
            Self::Arp => "not an IPv4-over-Ethernet ARP request or reply",
            Self::NeighbourDiscovery => "neighbour discovery that fails the checks of RFC 4861",
        }
    }
}
