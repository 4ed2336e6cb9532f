//! Packets of a stream, ready to be sent.

use std::net::IpAddr;

use clap::ValueEnum;
use crc32c::crc32c;
use serde::Serialize;
use sluice_dataplane::packet::checksum::{self, Sum};

use super::size::{FCS, Sizes};
use super::stamp::{self, Stamp};
use crate::error::BenchError;

const ETHERNET: usize = 14;
const UDP: u8 = 17;
const TCP: u8 = 6;
/// What Linux sends by default.
const TTL: u8 = 64;

/// What a packet looks like to who forwards it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    /// UDP.
    Udp,
    /// Segments of an established connection that does not exist. Each has PSH
    /// set: nobody may merge it with the next.
    Tcp,
}

/// Where a stream goes from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path {
    /// The sender's MAC address, then the next hop's.
    pub(crate) macs: ([u8; 6], [u8; 6]),
    /// Addresses of one family, the sender's first.
    pub(crate) addresses: (IpAddr, IpAddr),
    /// The first flow's source port; each further flow has the next one.
    pub(crate) src_port: u16,
    /// The destination port of all.
    pub(crate) dst_port: u16,
}

/// What a stream consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Frame sizes.
    pub(crate) sizes: Sizes,
    /// UDP or TCP.
    pub(crate) protocol: Protocol,
    /// How many flows, at least 1.
    pub(crate) flows: u16,
    /// How many packets of one flow follow each other, at least 1.
    pub(crate) run: u64,
}

impl Shape {
    /// The smallest frame that has room for a stamp, in bytes with FCS.
    pub(crate) fn floor(&self, destination: IpAddr) -> usize {
        headers(destination, self.protocol) + stamp::LEN + FCS
    }

    /// The sizes of the frames in their order, in bytes with FCS.
    ///
    /// # Errors
    /// A size leaves no room for a stamp.
    pub(crate) fn cycle(&self, destination: IpAddr) -> Result<Vec<usize>, BenchError> {
        let floor = self.floor(destination);
        match self.sizes {
            Sizes::Fixed(size) if size < floor => Err(BenchError::Refused(format!(
                "frames of {size} bytes have no room for a sequence number and a time behind \
                 these headers: the smallest are of {floor} bytes; choose a size from there on"
            ))),
            sizes => Ok(sizes.cycle(floor)),
        }
    }
}

/// The packets of a stream, one after the other.
#[derive(Debug)]
pub(crate) struct Stream {
    /// One for each size of the cycle.
    frames: Vec<Frame>,
    shape: Shape,
    src_port: u16,
    /// The next number of each flow.
    next: Vec<u64>,
    /// Packets so far.
    count: u64,
}

impl Stream {
    /// # Errors
    /// A size leaves no room for a stamp, or there are more flows than ports.
    pub(crate) fn new(path: &Path, shape: Shape) -> Result<Self, BenchError> {
        if path.src_port.checked_add(shape.flows - 1).is_none() {
            return Err(BenchError::Refused(format!(
                "{} flows from source port {} on: ports end at 65535",
                shape.flows, path.src_port
            )));
        }
        let cycle = shape.cycle(path.addresses.1)?;
        Ok(Self {
            frames: cycle
                .into_iter()
                .map(|size| Frame::new(path, shape.protocol, size - FCS))
                .collect(),
            shape,
            src_port: path.src_port,
            next: vec![0; shape.flows.into()],
            count: 0,
        })
    }

    /// The next packet: its flow and the frame, without FCS. `now` is the time
    /// that is stamped on it.
    pub(crate) fn next(&mut self, now: u64) -> (u16, &[u8]) {
        let flows = u64::from(self.shape.flows);
        // Below `flows`, so a u16.
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of a u16")]
        let flow = (self.count / self.shape.run % flows) as u16;
        let sequence = self.next[usize::from(flow)];
        let turn = self.count % self.frames.len() as u64;
        self.next[usize::from(flow)] += 1;
        self.count += 1;
        let stamp = Stamp {
            flow,
            sequence,
            time: now,
        };
        // The remainder of a length: it fits.
        #[expect(clippy::cast_possible_truncation, reason = "an index of a Vec")]
        let frame = &mut self.frames[turn as usize];
        (flow, frame.fill(self.src_port + flow, stamp))
    }

    /// The last packet back: it could not be sent, the next one is the same.
    pub(crate) fn take_back(&mut self, flow: u16) {
        self.next[usize::from(flow)] -= 1;
        self.count -= 1;
    }

    /// Bytes of the headers in front of the payload.
    pub(crate) fn headers(&self) -> usize {
        self.frames[0].payload
    }
}

/// A frame with all that does not change from packet to packet.
#[derive(Debug)]
struct Frame {
    bytes: Vec<u8>,
    /// Where the transport header is.
    transport: usize,
    /// Where its checksum is.
    checksum: usize,
    /// Where the payload is.
    payload: usize,
    /// Bytes of the payload.
    length: u64,
    protocol: Protocol,
    /// Of pseudo header, transport header and payload, without what changes.
    sum: Sum,
    /// Of the payload behind the stamp.
    filler_crc: u32,
}

impl Frame {
    /// `len` is the frame's, without FCS, and has room for a stamp.
    fn new(path: &Path, protocol: Protocol, len: usize) -> Self {
        let (source, destination) = path.addresses;
        let transport = ETHERNET + ip_header(destination);
        let payload = headers(destination, protocol);
        let mut bytes = Vec::with_capacity(len);
        bytes.extend(path.macs.1);
        bytes.extend(path.macs.0);
        put_ip(&mut bytes, path.addresses, protocol, len);
        bytes.extend([0, 0]); // the source port, filled in
        bytes.extend(path.dst_port.to_be_bytes());
        let checksum = match protocol {
            Protocol::Udp => {
                bytes.extend(short(len - transport));
                transport + 6
            }
            Protocol::Tcp => {
                // A sequence number, filled in, then an acknowledged one, 5
                // words of header, PSH and ACK, the window.
                bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff]);
                transport + 16
            }
        };
        bytes.resize(payload + stamp::LEN, 0);
        bytes.extend((bytes.len()..len).map(|at| at.to_le_bytes()[0]));
        let mut sum = Sum::pseudo_header(
            source,
            destination,
            number(protocol),
            u32::from(u16::from_be_bytes(short(len - transport))),
        );
        sum.add(&bytes[transport..]);
        if len % 2 == 1 {
            // What is added later begins at even offsets again.
            sum.add(&[0]);
        }
        Self {
            filler_crc: crc32c(&bytes[payload + stamp::LEN..]),
            bytes,
            transport,
            checksum,
            payload,
            length: (len - payload) as u64,
            protocol,
            sum,
        }
    }

    fn fill(&mut self, src_port: u16, stamp: Stamp) -> &[u8] {
        let bytes = &mut self.bytes;
        let mut sum = self.sum;
        // Every part is at an even offset, as the sum wants it.
        let mut put = |at: usize, part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            sum.add(part);
        };
        put(self.transport, &src_port.to_be_bytes());
        if self.protocol == Protocol::Tcp {
            let position = stamp.sequence.wrapping_mul(self.length);
            put(self.transport + 4, &position.to_be_bytes()[4..]);
        }
        put(self.payload, &stamp.bytes(self.filler_crc));
        let checksum = match (self.protocol, sum.finish()) {
            // RFC 768: zero says that there is none.
            (Protocol::Udp, 0) => u16::MAX,
            (_, checksum) => checksum,
        };
        self.bytes[self.checksum..][..2].copy_from_slice(&checksum.to_be_bytes());
        &self.bytes
    }
}

/// The Ethernet type and the IP header behind the MAC addresses.
fn put_ip(bytes: &mut Vec<u8>, addresses: (IpAddr, IpAddr), protocol: Protocol, len: usize) {
    match addresses {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0x08, 0x00, 0x45, 0]);
            bytes.extend(short(len - ETHERNET));
            // No fragments: RFC 6864 asks for no identification then.
            bytes.extend([0, 0, 0x40, 0, TTL, number(protocol), 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            let checksum = checksum::of(&bytes[ETHERNET..]).to_be_bytes();
            bytes[ETHERNET + 10..][..2].copy_from_slice(&checksum);
        }
        (source, destination) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(short(len - ETHERNET - ip_header(destination)));
            bytes.extend([number(protocol), TTL]);
            bytes.extend(v6(source));
            bytes.extend(v6(destination));
        }
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A length in a header. Sizes are at most those of an IP packet.
fn short(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}

const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Udp => UDP,
        Protocol::Tcp => TCP,
    }
}

const fn ip_header(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

/// Bytes of all headers.
const fn headers(address: IpAddr, protocol: Protocol) -> usize {
    let transport = match protocol {
        Protocol::Udp => 8,
        Protocol::Tcp => 20,
    };
    ETHERNET + ip_header(address) + transport
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    fn path(v6: bool) -> Path {
        let addresses = match v6 {
            false => ["10.77.0.2", "10.77.0.3"],
            true => ["fd77::2", "fd77::3"],
        };
        let [source, destination] = addresses.map(|address| address.parse().unwrap());
        Path {
            macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
            addresses: (source, destination),
            src_port: 10_000,
            dst_port: 9_000,
        }
    }

    /// Takes a frame apart by a crate that built nothing of it, which checks
    /// lengths, and checks each checksum. Returns source port and payload.
    fn apart(frame: &[u8]) -> (u16, Vec<u8>) {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let (source, destination) = match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert!(header.dont_fragment);
                (header.source.to_vec(), header.destination.to_vec())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header().to_header();
                (header.source.to_vec(), header.destination.to_vec())
            }
            NetSlice::Arp(_) => panic!("no ARP was built"),
        };
        let four = |bytes: &[u8]| <[u8; 4]>::try_from(bytes);
        let sixteen = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).unwrap();
        match sliced.transport.unwrap() {
            TransportSlice::Udp(udp) => {
                let header = udp.to_header();
                let right = match (four(&source), four(&destination)) {
                    (Ok(source), Ok(destination)) => {
                        header.calc_checksum_ipv4_raw(source, destination, udp.payload())
                    }
                    _ => header.calc_checksum_ipv6_raw(
                        sixteen(&source),
                        sixteen(&destination),
                        udp.payload(),
                    ),
                };
                assert_eq!(header.checksum, right.unwrap());
                assert_eq!(header.destination_port, 9_000);
                (header.source_port, udp.payload().to_vec())
            }
            TransportSlice::Tcp(tcp) => {
                let header = tcp.to_header();
                let right = match (four(&source), four(&destination)) {
                    (Ok(source), Ok(destination)) => {
                        header.calc_checksum_ipv4_raw(source, destination, tcp.payload())
                    }
                    _ => header.calc_checksum_ipv6_raw(
                        sixteen(&source),
                        sixteen(&destination),
                        tcp.payload(),
                    ),
                };
                assert_eq!(header.checksum, right.unwrap());
                assert!(header.psh && header.ack && !header.syn && !header.rst);
                assert_eq!(header.destination_port, 9_000);
                (header.source_port, tcp.payload().to_vec())
            }
            other => panic!("not built: {other:?}"),
        }
    }

    proptest! {
        #[test]
        fn packets_are_whole_and_right(
            v6: bool, tcp: bool, size in 96..65_000_usize, now: u64, flows in 1..5_u16, run in 1..4_u64,
        ) {
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let shape = Shape { sizes: Sizes::Fixed(size), protocol, flows, run };
            let mut stream = Stream::new(&path(v6), shape).unwrap();
            let mut next = vec![0; flows.into()];
            for count in 0..u64::from(flows) * run * 2 {
                let flow = u16::try_from(count / run % u64::from(flows)).unwrap();
                let (told, frame) = stream.next(now);
                prop_assert_eq!(told, flow);
                prop_assert_eq!(frame.len(), size - FCS);
                let (src_port, payload) = apart(frame);
                prop_assert_eq!(src_port, 10_000 + flow);
                let sequence = next[usize::from(flow)];
                next[usize::from(flow)] += 1;
                let expected = Stamp { flow, sequence, time: now & ((1 << 48) - 1) };
                prop_assert_eq!(Stamp::read(&payload), Some(expected));
            }
        }
    }

    #[test]
    fn sixty_four_is_sixty_and_fcs() {
        let shape = Shape {
            sizes: Sizes::Fixed(64),
            protocol: Protocol::Udp,
            flows: 1,
            run: 1,
        };
        let mut stream = Stream::new(&path(false), shape).unwrap();
        assert_eq!(stream.next(0).1.len(), 60);
        let error = Stream::new(&path(true), shape).unwrap_err().to_string();
        assert!(error.contains("the smallest are of 84 bytes"), "{error}");
        let shape = Shape {
            protocol: Protocol::Tcp,
            ..shape
        };
        let error = Stream::new(&path(false), shape).unwrap_err().to_string();
        assert!(error.contains("the smallest are of 76 bytes"), "{error}");
    }

    #[test]
    fn imix_follows_its_cycle_from_the_smallest_that_fits() {
        let shape = Shape {
            sizes: Sizes::Imix,
            protocol: Protocol::Udp,
            flows: 1,
            run: 1,
        };
        let mut stream = Stream::new(&path(true), shape).unwrap();
        let sizes: Vec<usize> = (0..12).map(|_| stream.next(0).1.len() + FCS).collect();
        assert_eq!(sizes, Sizes::Imix.cycle(84));
    }

    #[test]
    fn what_is_taken_back_comes_again() {
        let shape = Shape {
            sizes: Sizes::Imix,
            protocol: Protocol::Udp,
            flows: 2,
            run: 1,
        };
        let mut stream = Stream::new(&path(false), shape).unwrap();
        stream.next(1);
        let (flow, frame) = stream.next(2);
        let frame = frame.to_vec();
        stream.take_back(flow);
        assert_eq!(stream.next(2), (flow, frame.as_slice()));
    }

    #[test]
    fn more_flows_than_ports_are_refused() {
        let shape = Shape {
            sizes: Sizes::Fixed(64),
            protocol: Protocol::Udp,
            flows: 60_000,
            run: 1,
        };
        assert!(Stream::new(&path(false), shape).is_err());
    }
}
