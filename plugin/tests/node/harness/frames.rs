//! Frames made by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpFragOffset, IpHeaders,
    IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep, UdpHeader,
};

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// Who sends and who gets a frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) src_mac: [u8; 6],
    pub(crate) dst_mac: [u8; 6],
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
}

impl Ends {
    fn ethernet(&self) -> PacketBuilderStep<Ethernet2Header> {
        PacketBuilder::ethernet2(self.src_mac, self.dst_mac)
    }

    fn ip(&self) -> PacketBuilderStep<IpHeaders> {
        self.ethernet().ip(self.ip_headers())
    }

    fn ip_headers(&self) -> IpHeaders {
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Ipv4Header::new(0, 64, IpNumber::UDP, src.octets(), dst.octets());
                IpHeaders::Ipv4(header.unwrap(), Ipv4Extensions::default())
            }
            (src, dst) => {
                let header = Ipv6Header {
                    hop_limit: 64,
                    source: v6(src).octets(),
                    destination: v6(dst).octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, Ipv6Extensions::default())
            }
        }
    }

    /// UDP to port 9 (discard).
    pub(crate) fn udp(&self, payload: &[u8]) -> Vec<u8> {
        self.udp_between([4000, 9], payload)
    }

    /// UDP between these ports.
    pub(crate) fn udp_between(&self, [src, dst]: [u16; 2], payload: &[u8]) -> Vec<u8> {
        written(self.ip().udp(src, dst), payload)
    }

    /// A TCP segment that opens a connection between these ports.
    pub(crate) fn syn_between(&self, [src, dst]: [u16; 2]) -> Vec<u8> {
        let mut frame = Vec::new();
        let tcp = self.ip().tcp(src, dst, 1, 1000).syn();
        tcp.write(&mut frame, &[]).unwrap();
        frame
    }

    /// A TCP segment in the middle of nothing.
    pub(crate) fn tcp(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let tcp = self.ip().tcp(4000, 9, 1, 1000).ack(1);
        tcp.write(&mut frame, payload).unwrap();
        frame
    }

    /// An SCTP packet, made by [`sctp`].
    pub(crate) fn sctp(&self, packet: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let headers = self.ethernet().ip(self.ip_headers());
        headers.write(&mut frame, IpNumber::SCTP, packet).unwrap();
        frame
    }

    /// A fragment of a UDP packet, not its last, at a multiple of 8 bytes.
    pub(crate) fn fragment(&self, offset: u16, length: usize) -> Vec<u8> {
        let offset = IpFragOffset::try_new(offset).unwrap();
        let mut headers = self.ip_headers();
        match &mut headers {
            IpHeaders::Ipv4(header, _) => {
                header.fragment_offset = offset;
                header.more_fragments = true;
            }
            IpHeaders::Ipv6(_, extensions) => {
                extensions.fragment =
                    Some(Ipv6FragmentHeader::new(IpNumber::UDP, offset, true, 77));
            }
        }
        written(self.ethernet().ip(headers).udp(4000, 9), &vec![5; length])
    }

    /// IPv6 UDP behind a hop-by-hop header of padding.
    pub(crate) fn hop_by_hop(&self) -> Vec<u8> {
        let mut headers = self.ip_headers();
        let IpHeaders::Ipv6(_, extensions) = &mut headers else {
            panic!("{} is not IPv6", self.dst);
        };
        let padding = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &[1, 4, 0, 0, 0, 0]);
        extensions.hop_by_hop_options = Some(padding.unwrap());
        written(self.ethernet().ip(headers).udp(4000, 9), &[6; 40])
    }

    /// ICMPv6 of a type, with hop limit 255 as neighbour discovery wants it.
    pub(crate) fn icmpv6(&self, kind: u8, word: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ethernet()
            .ipv6(v6(self.src).octets(), v6(self.dst).octets(), 255)
            .icmpv6_raw(kind, 0, word)
            .write(&mut frame, body)
            .unwrap();
        frame
    }

    /// A neighbour solicitation for `target` with a source link-layer address.
    pub(crate) fn solicitation(&self, target: IpAddr, mac: [u8; 6]) -> Vec<u8> {
        let body = [&v6(target).octets()[..], &[1, 1], &mac].concat();
        self.icmpv6(135, [0; 4], &body)
    }

    /// A neighbour advertisement that says `target` is at `mac`.
    pub(crate) fn advertisement(&self, target: IpAddr, mac: [u8; 6]) -> Vec<u8> {
        let body = [&v6(target).octets()[..], &[2, 1], &mac].concat();
        self.icmpv6(136, [0x20, 0, 0, 0], &body)
    }

    /// A router advertisement: a default route for half an hour.
    pub(crate) fn router_advertisement(&self) -> Vec<u8> {
        self.icmpv6(134, [64, 0, 7, 8], &[0; 8])
    }

    /// A redirect of `target` to itself.
    pub(crate) fn redirect(&self, target: IpAddr) -> Vec<u8> {
        let address = v6(target).octets();
        self.icmpv6(137, [0; 4], &[address, address].concat())
    }

    /// Any payload under an EtherType.
    pub(crate) fn other(&self, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [
            &self.dst_mac[..],
            &self.src_mac,
            &ethertype.to_be_bytes(),
            payload,
        ]
        .concat()
    }
}

fn written(packet: PacketBuilderStep<UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    packet.write(&mut frame, payload).unwrap();
    frame
}

/// An SCTP packet with one chunk (RFC 9260 section 3).
pub(crate) fn sctp([src, dst]: [u16; 2], tag: u32, chunk: u8, value: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    for port in [src, dst] {
        packet.extend(port.to_be_bytes());
    }
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    let length = u16::try_from(4 + value.len()).unwrap();
    packet.extend([chunk, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend(value);
    packet.resize(packet.len().next_multiple_of(4), 0);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// RFC 9260 appendix A, a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    });
    !crc
}

/// ARP by `sender` about itself or for `target`.
pub(crate) fn arp(
    ethernet_src: [u8; 6],
    operation: ArpOperation,
    sender: ([u8; 6], IpAddr),
    target: IpAddr,
) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &sender.0,
        &v4(sender.1).octets(),
        &[0; 6],
        &v4(target).octets(),
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(ethernet_src, BROADCAST)
        .arp(packet.unwrap())
        .write(&mut frame)
        .unwrap();
    frame
}

/// RFC 1071.
pub(crate) fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is not IPv4"),
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V6(address) => address,
        IpAddr::V4(_) => panic!("{address} is not IPv6"),
    }
}
