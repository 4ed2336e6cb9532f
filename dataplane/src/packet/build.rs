//! Valid frames, made for tests, fuzzing and tools; never on the packet path.
//!
//! ```
//! use sluice_dataplane::packet::{Ethernet, build};
//!
//! let link = Ethernet { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2] };
//! let frame = build::udp(([10, 1, 0, 2], 5000), ([10, 1, 0, 3], 53))
//!     .payload(b"question")
//!     .partial()
//!     .frame(link);
//! assert_eq!(frame.len(), 14 + 20 + 8 + 8);
//! ```
//!
//! A tunnel is a datagram whose payload is another one: see [`vxlan`],
//! [`geneve`] and [`gre`], or [`raw`] around [`Datagram::packet`].
//!
//! What cannot be a packet (addresses of two IP versions, more than 65,535
//! bytes) panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::arp::{self, Arp, Operation};
use super::checksum::{self, Sum};
use super::ethernet::{self, Ethernet};
use super::transport::{Icmp, Sctp, Tcp, Udp};
use super::{crc32c, ipv4, ipv6, protocol};

/// An IP datagram in the making. Unless told otherwise: a hop limit of 64, no
/// options, no payload, no class, a complete transport checksum, and in IPv4
/// neither an identification nor the flag "don't fragment".
#[derive(Debug, Clone)]
#[must_use]
pub struct Datagram {
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    traffic_class: u8,
    dont_fragment: bool,
    identification: Option<u16>,
    flow_label: u32,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    protocol: u8,
    /// The transport header with a checksum of 0, then the payload.
    upper: Vec<u8>,
    /// Where in `upper` the checksum lies, if there is one.
    checksum_at: Option<usize>,
    checksum: Checksum,
}

#[derive(Debug, Clone, Copy)]
enum Checksum {
    Complete,
    Partial,
    Zero,
    Wrong,
}

/// A datagram of any upper-layer protocol; the payload is all of it.
pub fn raw(src: impl Into<IpAddr>, dst: impl Into<IpAddr>, protocol: u8) -> Datagram {
    Datagram {
        src: src.into(),
        dst: dst.into(),
        ttl: 64,
        traffic_class: 0,
        dont_fragment: false,
        identification: None,
        flow_label: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        protocol,
        upper: Vec::new(),
        checksum_at: None,
        checksum: Checksum::Complete,
    }
}

/// A TCP segment with the flag ACK.
pub fn tcp(src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Datagram {
    let (src, dst) = (src.into(), dst.into());
    let header = Tcp {
        src_port: src.port().into(),
        dst_port: dst.port().into(),
        sequence: 1.into(),
        acknowledgment: 1.into(),
        offset_flags: 0x5010.into(),
        window: 0xffff.into(),
        checksum: 0.into(),
        urgent: 0.into(),
    };
    raw(src.ip(), dst.ip(), protocol::TCP).transport(header.as_bytes(), Some(16))
}

/// A UDP datagram.
pub fn udp(src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Datagram {
    let (src, dst) = (src.into(), dst.into());
    let header = Udp {
        src_port: src.port().into(),
        dst_port: dst.port().into(),
        length: 8.into(),
        checksum: 0.into(),
    };
    raw(src.ip(), dst.ip(), protocol::UDP).transport(header.as_bytes(), Some(6))
}

/// An SCTP packet: its common header.
pub fn sctp(src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Datagram {
    let (src, dst) = (src.into(), dst.into());
    let header = Sctp {
        src_port: src.port().into(),
        dst_port: dst.port().into(),
        verification_tag: 1.into(),
        checksum: 0.into(),
    };
    raw(src.ip(), dst.ip(), protocol::SCTP).transport(header.as_bytes(), Some(8))
}

/// An ICMP or ICMPv6 message, as the addresses are; `rest` is the word after
/// the checksum.
pub fn icmp(
    src: impl Into<IpAddr>,
    dst: impl Into<IpAddr>,
    (kind, code): (u8, u8),
    rest: u32,
) -> Datagram {
    let (src, dst) = (src.into(), dst.into());
    let protocol = match src {
        IpAddr::V4(_) => protocol::ICMP,
        IpAddr::V6(_) => protocol::ICMPV6,
    };
    raw(src, dst, protocol).transport(Icmp::new(kind, code, rest).as_bytes(), Some(2))
}

/// An echo request.
pub fn ping(src: impl Into<IpAddr>, dst: impl Into<IpAddr>) -> Datagram {
    let src = src.into();
    let kind = if src.is_ipv4() { 8 } else { 128 };
    icmp(src, dst, (kind, 0), 0x0001_0001)
}

/// A neighbour solicitation to the target's group.
pub fn neighbour_solicitation(
    src: Ipv6Addr,
    target: Ipv6Addr,
    source_link_address: Option<[u8; 6]>,
) -> Datagram {
    let [.., a, b, c] = target.octets();
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
    let mut body = target.octets().to_vec();
    if let Some(mac) = source_link_address {
        body.extend([1, 1]);
        body.extend(mac);
    }
    icmp(src, group, (135, 0), 0).ttl(255).payload(body)
}

/// A frame with an ARP request, to all stations.
#[must_use]
pub fn arp_request(sender_mac: [u8; 6], sender_ip: Ipv4Addr, target_ip: Ipv4Addr) -> Vec<u8> {
    let link = Ethernet {
        dst: ethernet::BROADCAST,
        src: sender_mac,
    };
    let request = Arp {
        operation: Operation::Request,
        sender_mac,
        sender_ip,
        target_mac: [0; 6],
        target_ip,
    };
    arp_frame(link, &request)
}

/// A frame with any ARP packet.
#[must_use]
pub fn arp_frame(link: Ethernet, arp: &Arp) -> Vec<u8> {
    let mut frame = vec![0; 42];
    arp::write(&mut frame, link, arp);
    frame
}

/// The payload of a UDP datagram to port 4789 that carries `frame`.
#[must_use]
pub fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 42, 0], frame].concat()
}

/// The payload of a UDP datagram to port 6081 that carries `frame` after
/// `options`, whose length is a multiple of four.
#[must_use]
pub fn geneve(options: &[u8], frame: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).unwrap_or(u8::MAX);
    [&[words, 0, 0x65, 0x58, 0, 0, 42, 0], options, frame].concat()
}

/// The payload of a datagram of protocol 47: a header with `ethertype` and as
/// many words of zeros as `flags` announce, then `inner`.
#[must_use]
pub fn gre(flags: u16, ethertype: u16, inner: &[u8]) -> Vec<u8> {
    let words = (flags & 0xb000).count_ones() as usize;
    let header = [flags.to_be_bytes(), ethertype.to_be_bytes()].concat();
    [&header, &vec![0; words * 4][..], inner].concat()
}

impl Datagram {
    /// Appends to the payload.
    pub fn payload(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.upper.extend(bytes.as_ref());
        self
    }

    /// Sets the flags of a TCP segment, the eight from CWR to FIN.
    pub fn flags(self, flags: u8) -> Self {
        self.with_tcp(|header| {
            let offset = header.offset_flags.get() & 0xf000;
            header.offset_flags = (offset | u16::from(flags)).into();
        })
    }

    /// Sets the sequence number of a TCP segment.
    pub fn sequence(self, sequence: u32) -> Self {
        self.with_tcp(|header| header.sequence = sequence.into())
    }

    /// Sets the acknowledgment number of a TCP segment.
    pub fn acknowledgment(self, acknowledgment: u32) -> Self {
        self.with_tcp(|header| header.acknowledgment = acknowledgment.into())
    }

    /// Sets the window of a TCP segment, as it stands in the header.
    pub fn window(self, window: u16) -> Self {
        self.with_tcp(|header| header.window = window.into())
    }

    /// Appends options of TCP, at most 40 bytes in whole words: before the
    /// payload.
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.upper.extend(options);
        let words = len_u16(options.len() / 4);
        self.with_tcp(|header| {
            header.offset_flags = (header.offset_flags.get() + (words << 12)).into();
        })
    }

    fn with_tcp(mut self, change: impl FnOnce(&mut Tcp)) -> Self {
        if self.protocol == protocol::TCP
            && let Ok((header, _)) = Tcp::mut_from_prefix(&mut self.upper)
        {
            change(header);
        }
        self
    }

    /// Sets IPv4's type of service, or IPv6's traffic class.
    pub fn traffic_class(mut self, class: u8) -> Self {
        self.traffic_class = class;
        self
    }

    /// Sets IPv6's flow label.
    pub fn flow_label(mut self, label: u32) -> Self {
        self.flow_label = label;
        self
    }

    /// Sets time to live or hop limit.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the flag of IPv4.
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Sets what tells this datagram, or its fragments, from others.
    pub fn identification(mut self, identification: u16) -> Self {
        self.identification = Some(identification);
        self
    }

    /// Appends IPv4 options, padded to whole words.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options.extend(options);
        self.options
            .resize(self.options.len().next_multiple_of(4), 0);
        self
    }

    /// Appends an IPv6 extension header. `body` follows its length byte; it
    /// is padded to the header's unit.
    pub fn extension(mut self, kind: u8, body: &[u8]) -> Self {
        self.extensions.push((kind, body.to_vec()));
        self
    }

    /// Leaves the transport checksum partial, as a pod with offload does.
    pub fn partial(mut self) -> Self {
        self.checksum = Checksum::Partial;
        self
    }

    /// Leaves the transport checksum 0: none, in UDP and SCTP (RFC 9653).
    pub fn no_checksum(mut self) -> Self {
        self.checksum = Checksum::Zero;
        self
    }

    /// Makes the transport checksum wrong.
    pub fn wrong_checksum(mut self) -> Self {
        self.checksum = Checksum::Wrong;
        self
    }

    /// The frame.
    #[must_use]
    pub fn frame(&self, link: Ethernet) -> Vec<u8> {
        self.in_ethernet(link, &self.packet())
    }

    /// The IP packet.
    #[must_use]
    pub fn packet(&self) -> Vec<u8> {
        self.in_ip(&self.upper_layer(), None)
    }

    /// The frames of the datagram's fragments, each with at most `size` bytes
    /// of what follows the IP header; `size` is a multiple of eight.
    #[must_use]
    pub fn fragments(&self, link: Ethernet, size: usize) -> Vec<Vec<u8>> {
        let upper = self.upper_layer();
        let parts = upper.chunks(size).enumerate();
        let frames = parts.map(|(index, part)| {
            let offset = index * size;
            let place = Place {
                offset: len_u16(offset),
                more: offset + part.len() < upper.len(),
            };
            self.in_ethernet(link, &self.in_ip(part, Some(place)))
        });
        frames.collect()
    }

    fn transport(mut self, header: &[u8], checksum_at: Option<usize>) -> Self {
        self.upper = header.to_vec();
        self.checksum_at = checksum_at;
        self
    }

    /// Header and payload with their length and checksum.
    fn upper_layer(&self) -> Vec<u8> {
        let mut upper = self.upper.clone();
        let length = len_u16(upper.len());
        if self.protocol == protocol::UDP
            && let Ok((header, _)) = Udp::mut_from_prefix(&mut upper)
        {
            header.length = length.into();
        }
        if self.protocol == protocol::SCTP {
            self.store_crc(&mut upper);
            return upper;
        }
        let mut sum = match self.protocol {
            protocol::ICMP => Sum::new(),
            _ => Sum::pseudo_header(self.src, self.dst, self.protocol, length.into()),
        };
        let pseudo_header = sum.fold();
        sum.add(&upper);
        let complete = match sum.finish() {
            0 => 0xffff,
            checksum => checksum,
        };
        let checksum = match self.checksum {
            Checksum::Complete => complete,
            Checksum::Partial => pseudo_header,
            Checksum::Zero => 0,
            Checksum::Wrong => complete ^ 0x5555,
        };
        let field = self.checksum_at.and_then(|at| upper.get_mut(at..));
        if let Ok((field, _)) = U16::mut_from_prefix(field.unwrap_or_default()) {
            field.set(checksum);
        }
        upper
    }

    /// Lowest byte first (RFC 9260 appendix A).
    fn store_crc(&self, upper: &mut [u8]) {
        let checksum = match self.checksum {
            Checksum::Complete | Checksum::Partial => crc32c::of(upper),
            Checksum::Zero => 0,
            Checksum::Wrong => crc32c::of(upper) ^ 0x5555,
        };
        let field = self.checksum_at.and_then(|at| upper.get_mut(at..at + 4));
        if let Some(field) = field {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
    }

    fn in_ethernet(&self, link: Ethernet, packet: &[u8]) -> Vec<u8> {
        let ethertype = match self.src {
            IpAddr::V4(_) => ethernet::IPV4,
            IpAddr::V6(_) => ethernet::IPV6,
        };
        [ethernet::Header::new(link, ethertype).as_bytes(), packet].concat()
    }

    /// The IP packet around `payload`, which is all of the datagram's or a
    /// fragment with its place in it.
    fn in_ip(&self, payload: &[u8], place: Option<Place>) -> Vec<u8> {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.in_ipv4(src, dst, payload, place),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.in_ipv6(src, dst, payload, place),
            (src, dst) => panic!("no packet goes from {src} to {dst}"),
        }
    }

    /// The identification; unless it was set, 1 in fragments, else 0.
    fn id_of(&self, place: Option<Place>) -> u16 {
        let unset = u16::from(place.is_some());
        self.identification.unwrap_or(unset)
    }

    fn in_ipv4(
        &self,
        src: Ipv4Addr,
        dst: Ipv4Addr,
        payload: &[u8],
        place: Option<Place>,
    ) -> Vec<u8> {
        let mut flags_fragment = if self.dont_fragment {
            ipv4::DONT_FRAGMENT
        } else {
            0
        };
        if let Some(place) = place {
            flags_fragment |= place.offset / 8;
            flags_fragment |= if place.more { ipv4::MORE_FRAGMENTS } else { 0 };
        }
        let header_len = ipv4::HEADER_LEN + self.options.len();
        let header = ipv4::Header {
            version_ihl: 4 << 4
                | u8::try_from(header_len / 4).expect("at most 40 bytes of options"),
            tos: self.traffic_class,
            total_length: len_u16(header_len + payload.len()).into(),
            identification: self.id_of(place).into(),
            flags_fragment: flags_fragment.into(),
            ttl: self.ttl,
            protocol: self.protocol,
            checksum: 0.into(),
            src: src.octets(),
            dst: dst.octets(),
        };
        let mut packet = [header.as_bytes(), &self.options].concat();
        let checksum = checksum::of(&packet);
        packet.splice(10..12, checksum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn in_ipv6(
        &self,
        src: Ipv6Addr,
        dst: Ipv6Addr,
        payload: &[u8],
        place: Option<Place>,
    ) -> Vec<u8> {
        let mut headers = self.extensions.clone();
        if let Some(place) = place {
            let [high, low] = (place.offset | u16::from(place.more)).to_be_bytes();
            let [id_high, id_low] = self.id_of(Some(place)).to_be_bytes();
            headers.push((ipv6::FRAGMENT, vec![high, low, 0, 0, id_high, id_low]));
        }
        let mut kinds = headers.iter().map(|(kind, _)| *kind).chain([self.protocol]);
        let next_header = kinds.next().unwrap_or(self.protocol);
        let mut chain = Vec::new();
        for ((kind, body), next) in headers.iter().zip(kinds) {
            let unit = if *kind == ipv6::AUTHENTICATION { 4 } else { 8 };
            let len = (2 + body.len()).next_multiple_of(unit).max(8);
            let units = u8::try_from((len - 8) / unit).expect("at most 2048 bytes");
            let start = chain.len();
            chain.extend([next, units]);
            chain.extend(body);
            chain.resize(start + len, 0);
        }
        let header = ipv6::Header {
            version_class_flow: (ipv6::VERSION
                | u32::from(self.traffic_class) << 20
                | self.flow_label)
                .into(),
            payload_length: len_u16(chain.len() + payload.len()).into(),
            next_header,
            hop_limit: self.ttl,
            src: src.octets(),
            dst: dst.octets(),
        };
        [header.as_bytes(), &chain, payload].concat()
    }
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy)]
struct Place {
    /// In bytes.
    offset: u16,
    more: bool,
}

fn len_u16(len: usize) -> u16 {
    u16::try_from(len).expect("a datagram has at most 65,535 bytes")
}
