//! TCP segments that become one: what generic receive offload does in a kernel.
//!
//! The rules are Linux's (`tcp_gro_receive`, `inet_gro_flush`, `ipv6_gro_receive`),
//! but that a segment with FIN joins no other: in order, from one sender to one
//! receiver, and with headers that differ in nothing but what the length, the
//! place in the stream and the flag PSH make of them. What the receiver gets is
//! the stream that it would have got.
//!
//! And one that becomes several again ([`Cut`]): what a stack left merged for a
//! device to cut, or for nobody to.

use std::num::NonZeroU16;
use std::ops::Range;

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::checksum::{self, Sum};
use super::offload::{self, Partial};
use super::rewrite::header_at;
use super::transport::Tcp;
use super::transport::flag::{ACK, CWR, FIN, PSH, RST, SYN, URG};
use super::{Fragment, Ip, ipv4, ipv6, protocol};

/// Where in TCP's header the checksum lies.
const CHECKSUM_AT: u16 = 16;

/// The least data in each of several segments (Linux's `TCP_MIN_SND_MSS`).
const LEAST_DATA: u16 = 48;

/// A TCP segment that others may join, or that may join others: with data, of
/// an open connection, without options of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    ip: Ip,
    /// Offset of the data in its frame.
    data: u16,
    data_len: u32,
    sequence: u32,
    /// Of the datagram in IPv4, else 0.
    identification: u16,
    pushes: bool,
}

impl Segment {
    /// The segment of a frame of `frame_len` bytes, if it is one. `ip` are its
    /// headers as they lie in `head`.
    #[must_use]
    pub fn of(head: &[u8], frame_len: u32, ip: &Ip) -> Option<Self> {
        let (header_len, identification) = if ip.src.is_ipv4() {
            let header = header::<ipv4::Header>(head, ip.l3)?;
            (ipv4::HEADER_LEN, header.identification.get())
        } else {
            (ipv6::HEADER_LEN, 0)
        };
        let is_padded = frame_len as usize != ip.end();
        let is_whole = ip.protocol == protocol::TCP && ip.fragment == Fragment::Whole;
        if !is_whole || is_padded || usize::from(ip.l3) + header_len != usize::from(ip.l4) {
            return None;
        }
        let tcp = header::<Tcp>(head, ip.l4)?;
        let offset_flags = tcp.offset_flags.get();
        let tcp_len = (offset_flags >> 12) * 4;
        let data = ip.l4.checked_add(tcp_len)?;
        let data_len = u32::try_from(ip.end()).ok()?.checked_sub(data.into())?;
        // Some of the data lies beside the headers: a chunk is never left empty.
        let has_data = usize::from(data) < head.len().min(ip.end());
        let is_open = offset_flags & (FIN | SYN | RST | ACK | URG | CWR) == ACK;
        if usize::from(tcp_len) < size_of::<Tcp>() || !has_data || !is_open {
            return None;
        }
        Some(Self {
            ip: *ip,
            data,
            data_len,
            sequence: tcp.sequence.get(),
            identification,
            pushes: offset_flags & PSH != 0,
        })
    }

    /// Whether its complete checksum is right. `slices` are its frame's bytes.
    #[must_use]
    pub fn is_intact<'a>(&self, slices: impl IntoIterator<Item = &'a [u8]>) -> bool {
        let ip = &self.ip;
        let sum = Sum::pseudo_header(ip.src, ip.dst, ip.protocol, ip.l4_len());
        // What completes a checksum that is there already is the pseudo
        // header's sum, if it is right. Neither is ever 0.
        offload::complete(slices, self.checksum(), ip.end()) == sum.fold()
    }

    /// How many bytes its headers take.
    #[must_use]
    pub fn headers_len(&self) -> u16 {
        self.data
    }

    /// Whether the sender wants it delivered: nothing joins it.
    #[must_use]
    pub fn pushes(&self) -> bool {
        self.pushes
    }

    /// The options of TCP.
    fn options<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        head.get(usize::from(self.ip.l4) + size_of::<Tcp>()..self.data.into())
    }

    fn checksum(&self) -> Partial {
        Partial {
            start: self.ip.l4,
            offset: CHECKSUM_AT,
        }
    }
}

/// How a merged packet is cut into its segments again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The packet's checksum, which is partial.
    pub checksum: Partial,
    /// Bytes of headers before the data, Ethernet's included.
    pub headers_len: u16,
    /// Bytes of data in each segment; the last may have fewer.
    pub data_len: u16,
    /// IPv4, else IPv6.
    pub is_ipv4: bool,
}

impl Cut {
    /// Of a packet whose segments have so many bytes of data: as a stack leaves it
    /// to a device to cut, so with a partial checksum. `None` if it is none.
    #[must_use]
    pub fn of(head: &[u8], ip: &Ip, data_len: u16) -> Option<Self> {
        if data_len < LEAST_DATA || ip.protocol != protocol::TCP {
            return None;
        }
        let headers_len = headers_len(head, ip)?;
        headers_len.checked_add(data_len)?;
        Some(Self {
            checksum: offload::partial(head, ip)?,
            headers_len,
            data_len,
            is_ipv4: ip.src.is_ipv4(),
        })
    }

    /// Of a packet whose segments are packets of so many bytes.
    #[must_use]
    pub fn into_packets(head: &[u8], ip: &Ip, len: NonZeroU16) -> Option<Self> {
        let headers = headers_len(head, ip)? - ip.l3;
        Self::of(head, ip, len.get().checked_sub(headers)?)
    }

    /// Where the data of each segment begins and ends in the frame.
    pub fn pieces(&self, ip: &Ip) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let (first, end) = (usize::from(self.headers_len), ip.end());
        let (step, data) = (usize::from(self.data_len), end.saturating_sub(first));
        (0..data.div_ceil(step)).map(move |n| {
            let begin = first + n * step;
            begin..(begin + step).min(end)
        })
    }

    /// Makes the headers of all segments, which are at the beginning of `head`, and
    /// described by `ip`, those of the one with this piece of the data: as the
    /// kernel's `tcp_gso_segment` does. The checksum is partial.
    pub fn head_piece(&self, head: &mut [u8], ip: &mut Ip, piece: &Range<usize>) {
        let before = piece.start - usize::from(self.headers_len);
        let (is_first, is_last) = (before == 0, piece.end == ip.end());
        let whole_len = ip.l4_len();
        let packet_len = usize::from(self.headers_len - ip.l3) + piece.len();
        ip.packet_len = len_u16(packet_len).into();
        set_len(head, ip);
        if let Some(header) = header_at::<ipv4::Header>(head, ip.l3)
            && self.is_ipv4
        {
            let nth = len_u16(before / usize::from(self.data_len));
            let (old, checksum) = (header.identification.get(), header.checksum.get());
            let id = old.wrapping_add(nth);
            header.identification = id.into();
            header.checksum = checksum::update(checksum, old, id).into();
        }
        if let Some(header) = header_at::<Tcp>(head, ip.l4) {
            let sequence = header.sequence.get();
            let before = u32::try_from(before).unwrap_or_default();
            header.sequence = sequence.wrapping_add(before).into();
            let not_last = if is_last { 0 } else { FIN | PSH };
            let not_first = if is_first { 0 } else { CWR };
            let offset_flags = header.offset_flags.get() & !not_last & !not_first;
            header.offset_flags = offset_flags.into();
        }
        // Of the pseudo header only the length has changed.
        if let Some((place, sum)) = offload::own(head, ip) {
            let sum = !checksum::update(!sum, len_u16(whole_len), len_u16(ip.l4_len()));
            offload::store(head, place, sum);
        }
    }
}

/// How many bytes of packet a TCP segment with so many bytes of data is that has the
/// headers of this one.
#[must_use]
pub fn packet_len(head: &[u8], ip: &Ip, data_len: u16) -> Option<NonZeroU16> {
    if ip.protocol != protocol::TCP || ip.fragment != Fragment::Whole {
        return None;
    }
    let headers = headers_len(head, ip)? - ip.l3;
    NonZeroU16::new(headers.checked_add(data_len)?)
}

/// How many bytes of headers come before the data, Ethernet's included.
fn headers_len(head: &[u8], ip: &Ip) -> Option<u16> {
    let tcp_len = (header::<Tcp>(head, ip.l4)?.offset_flags.get() >> 12) * 4;
    let len = ip.l4.checked_add(tcp_len)?;
    let is_there = usize::from(len) <= head.len().min(ip.end());
    (is_there && usize::from(tcp_len) >= size_of::<Tcp>()).then_some(len)
}

/// A length that is known to fit: whoever makes a packet longer has seen to it.
fn len_u16(len: impl TryInto<u16>) -> u16 {
    len.try_into().unwrap_or(u16::MAX)
}

/// Sets the length of a packet in its IP header.
fn set_len(head: &mut [u8], ip: &Ip) {
    if ip.src.is_ipv4() {
        if let Some(header) = header_at::<ipv4::Header>(head, ip.l3) {
            let (old, len) = (header.total_length.get(), len_u16(ip.packet_len));
            header.total_length = len.into();
            header.checksum = checksum::update(header.checksum.get(), old, len).into();
        }
    } else if let Some(header) = header_at::<ipv6::Header>(head, ip.l3) {
        let payload = (ip.packet_len as usize).saturating_sub(ipv6::HEADER_LEN);
        header.payload_length = len_u16(payload).into();
    }
}

/// Segments that become one: the first, and the data of those after it.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    first: Segment,
    count: u16,
    data_len: u32,
    /// By how much each datagram's identification is above the last one's: 1,
    /// or 0 where it means nothing (RFC 6864). The second segment says which.
    step: u16,
    pushes: bool,
    /// Its last segment was shorter than the others: nothing follows.
    is_over: bool,
}

impl Run {
    /// A run of one segment.
    #[must_use]
    pub fn new(first: Segment) -> Self {
        Self {
            first,
            count: 1,
            data_len: first.data_len,
            step: 0,
            pushes: first.pushes,
            is_over: first.pushes,
        }
    }

    /// The first segment.
    #[must_use]
    pub fn first(&self) -> &Segment {
        &self.first
    }

    /// How many segments it has.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Whether nothing more can join it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether `next` may join, by their headers: `head` and `next_head` are the
    /// beginnings of the first segment's frame and of its own. The packet must
    /// not get longer than `most` bytes.
    #[must_use]
    pub fn admits(&self, head: &[u8], next: &Segment, next_head: &[u8], most: u32) -> bool {
        let first = &self.first;
        let len = self.packet_len().saturating_add(next.data_len);
        !self.is_over
            && next.sequence == first.sequence.wrapping_add(self.data_len)
            && next.data_len <= first.data_len
            && len <= most.min(u16::MAX.into())
            && self.is_numbered(next)
            && is_alike(head, first, next_head, next).unwrap_or(false)
    }

    /// Lets `next` join, which the run admits.
    pub fn join(&mut self, next: &Segment) {
        if self.count == 1 {
            self.step = next.identification.wrapping_sub(self.first.identification);
        }
        self.count += 1;
        self.data_len += next.data_len;
        self.pushes |= next.pushes;
        self.is_over = next.pushes || next.data_len < self.first.data_len;
    }

    /// Makes the first segment's headers those of all of them; the checksum is
    /// partial then. Gives how to undo it.
    pub fn finish(&self, head: &mut [u8]) -> Cut {
        let ip = Ip {
            packet_len: self.packet_len(),
            ..self.first.ip
        };
        set_len(head, &ip);
        if let Some(header) = header_at::<Tcp>(head, ip.l4)
            && self.pushes
        {
            header.offset_flags = (header.offset_flags.get() | PSH).into();
        }
        let checksum = self.first.checksum();
        let sum = Sum::pseudo_header(ip.src, ip.dst, ip.protocol, ip.l4_len());
        offload::store(head, checksum, sum.fold());
        Cut {
            checksum,
            headers_len: self.first.data,
            data_len: len_u16(self.first.data_len),
            is_ipv4: ip.src.is_ipv4(),
        }
    }

    /// Length of the packet that it becomes.
    fn packet_len(&self) -> u32 {
        self.first.ip.packet_len + (self.data_len - self.first.data_len)
    }

    /// Whether the datagram's identification is the one that follows.
    fn is_numbered(&self, next: &Segment) -> bool {
        let distance = next.identification.wrapping_sub(self.first.identification);
        match self.count {
            1 => distance == 1 || (distance == 0 && self.first.ip.dont_fragment),
            count => distance == self.step.wrapping_mul(count),
        }
    }
}

/// Whether two segments differ in nothing but length, checksums, identification,
/// sequence number and PSH; `None` where a header is not there.
fn is_alike(head: &[u8], first: &Segment, next_head: &[u8], next: &Segment) -> Option<bool> {
    let is_alike = match (first.ip.src.is_ipv4(), next.ip.src.is_ipv4()) {
        (true, true) => {
            let ours = header::<ipv4::Header>(head, first.ip.l3)?;
            let next = header::<ipv4::Header>(next_head, next.ip.l3)?;
            ours.tos == next.tos
                && ours.ttl == next.ttl
                && ours.flags_fragment == next.flags_fragment
                && (ours.src, ours.dst) == (next.src, next.dst)
        }
        (false, false) => {
            let ours = header::<ipv6::Header>(head, first.ip.l3)?;
            let next = header::<ipv6::Header>(next_head, next.ip.l3)?;
            ours.version_class_flow == next.version_class_flow
                && ours.hop_limit == next.hop_limit
                && (ours.src, ours.dst) == (next.src, next.dst)
        }
        _ => false,
    };
    let ours = header::<Tcp>(head, first.ip.l4)?;
    let theirs = header::<Tcp>(next_head, next.ip.l4)?;
    let flags = |tcp: &Tcp| tcp.offset_flags.get() & !PSH;
    Some(
        is_alike
            && (ours.src_port, ours.dst_port) == (theirs.src_port, theirs.dst_port)
            && ours.acknowledgment == theirs.acknowledgment
            && flags(ours) == flags(theirs)
            && ours.window == theirs.window
            && ours.urgent == theirs.urgent
            && first.options(head)? == next.options(next_head)?,
    )
}

fn header<T>(head: &[u8], offset: u16) -> Option<&T>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let bytes = head.get(usize::from(offset)..)?;
    T::ref_from_prefix(bytes).ok().map(|(header, _)| header)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::build::{self, Datagram};
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    const MTU: u32 = 65_000;
    const ACK_PSH: u8 = 0x18;
    /// No operation twice, then a timestamp (RFC 7323).
    const TIMESTAMP: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

    fn ends() -> [(SocketAddr, SocketAddr); 2] {
        [
            ((A4, 80).into(), (B4, 4000).into()),
            ((A6, 80).into(), (B6, 4000).into()),
        ]
    }

    /// Without an identification, like most of Linux's.
    fn tcp(src: impl Into<SocketAddr>, dst: impl Into<SocketAddr>) -> Datagram {
        build::tcp(src, dst).dont_fragment()
    }

    fn segment(frame: &[u8]) -> Option<Segment> {
        Segment::of(frame, u32::try_from(frame.len()).unwrap(), &ip(frame))
    }

    /// All frames as one, if each may join those before it.
    fn merged(frames: &[Vec<u8>], most: u32) -> Option<Vec<u8>> {
        let (first, rest) = frames.split_first()?;
        let mut run = Run::new(segment(first)?);
        let mut all = first.clone();
        for frame in rest {
            let next = segment(frame)?;
            if !run.admits(first, &next, frame, most) {
                return None;
            }
            run.join(&next);
            all.extend(&frame[usize::from(next.headers_len())..]);
        }
        let cut = run.finish(&mut all);
        assert_eq!(offload::partial(&all, &ip(&all)), Some(cut.checksum));
        assert_eq!(cut.headers_len, run.first().headers_len());
        Some(all)
    }

    fn frames(datagrams: &[Datagram]) -> Vec<Vec<u8>> {
        datagrams.iter().map(|one| one.frame(LINK)).collect()
    }

    #[test]
    fn segments_in_order_become_the_one_that_they_were_cut_from() {
        for (src, dst) in ends() {
            let whole = |sequence| tcp(src, dst).sequence(sequence).tcp_options(&TIMESTAMP);
            // Over the end of the sequence numbers, too.
            for start in [1, u32::MAX - 1500] {
                let at = |part: u32| whole(start.wrapping_add(part * 1000));
                let parts = [
                    at(0).payload([0; 1000]),
                    at(1).payload([1; 1000]),
                    at(2).payload([2; 999]).flags(ACK_PSH),
                ];
                let expected = whole(start)
                    .payload([[0; 1000], [1; 1000]].concat())
                    .payload([2; 999])
                    .flags(ACK_PSH)
                    .partial();
                assert!(merged(&frames(&parts), MTU).unwrap() == expected.frame(LINK));
                let partial = parts.map(Datagram::partial);
                assert!(merged(&frames(&partial), MTU).unwrap() == expected.frame(LINK));
            }
        }
    }

    /// A frame of merged segments with so much data each, cut.
    fn pieces(frame: &[u8], data_len: u16) -> Vec<Vec<u8>> {
        let whole = ip(frame);
        let cut = Cut::of(frame, &whole, data_len).unwrap();
        let len = packet_len(frame, &whole, data_len).unwrap();
        assert_eq!(Cut::into_packets(frame, &whole, len), Some(cut));
        let pieces = cut.pieces(&whole).map(|piece| {
            let headers = &frame[..cut.headers_len.into()];
            let mut bytes = [headers, &frame[piece.clone()]].concat();
            let mut described = whole;
            cut.head_piece(&mut bytes, &mut described, &piece);
            assert_eq!(described, ip(&bytes));
            assert_eq!(offload::partial(&bytes, &described), Some(cut.checksum));
            bytes
        });
        pieces.collect()
    }

    #[test]
    fn merged_segments_are_cut_into_what_they_were() {
        for (src, dst) in ends() {
            for start in [1, u32::MAX - 1500] {
                // Odd lengths, which swap the halves of a sum.
                let at = |part: u16, len| {
                    let sequence = start.wrapping_add(u32::from(part) * 251);
                    let base = tcp(src, dst).identification(0xffff_u16.wrapping_add(part));
                    let part = base.sequence(sequence).tcp_options(&TIMESTAMP);
                    part.traffic_class(1).payload(vec![0x5a; len]).partial()
                };
                for last in [251, 3] {
                    let parts = [at(0, 251), at(1, 251), at(2, last).flags(ACK_PSH)];
                    let parts = frames(&parts);
                    assert!(pieces(&merged(&parts, MTU).unwrap(), 251) == parts);
                }
            }
        }
    }

    #[test]
    fn flags_of_all_segments_are_those_of_the_right_one() {
        const ACK_ECE: u8 = 0x50;
        const FIN_PSH: u8 = 0x09;
        const CWR: u8 = 0x80;
        for (src, dst) in ends() {
            let part = |start: usize, len: usize, flags: u8| {
                let sequence = u32::try_from(start).unwrap();
                let id = u16::try_from(start / 100).unwrap();
                let part = tcp(src, dst).sequence(sequence).identification(id);
                part.payload(vec![7; len]).flags(flags).partial()
            };
            let whole = part(0, 250, ACK_ECE | FIN_PSH | CWR).frame(LINK);
            let expected = [
                part(0, 100, ACK_ECE | CWR),
                part(100, 100, ACK_ECE),
                part(200, 50, ACK_ECE | FIN_PSH),
            ];
            assert!(pieces(&whole, 100) == frames(&expected));
            assert!(pieces(&whole, 250) == [whole]);
        }
    }

    #[test]
    fn only_tcp_with_a_partial_checksum_is_cut() {
        let base = || tcp((A4, 80), (B4, 4000)).payload([7; 200]);
        let cut = |datagram: Datagram, data_len| {
            let frame = datagram.frame(LINK);
            Cut::of(&frame, &ip(&frame), data_len)
        };
        assert!(cut(base().partial(), 100).is_some());
        assert_eq!(cut(base(), 100), None);
        assert_eq!(cut(base().partial(), LEAST_DATA - 1), None);
        assert_eq!(cut(base().partial(), u16::MAX), None);
        let udp = build::udp((A4, 80), (B4, 4000)).payload([7; 200]);
        assert_eq!(cut(udp.partial(), 100), None);
        // Headers that end beyond the first chunk, or before they begin.
        let frame = base().partial().frame(LINK);
        assert_eq!(Cut::of(&frame[..53], &ip(&frame), 100), None);
        for offset in [0x40, 0xf0] {
            let mut frame = tcp((A4, 80), (B4, 4000)).payload([7; 30]).frame(LINK);
            frame[46] = offset;
            assert_eq!(headers_len(&frame, &ip(&frame)), None);
        }
    }

    #[test]
    fn a_packet_gets_no_longer_than_it_may() {
        for (src, dst) in ends() {
            let part = |n: u32| tcp(src, dst).sequence(n * 1000).payload([0; 1000]);
            let parts = frames(&[part(0), part(1), part(2)]);
            let len = ip(&parts[0]).packet_len + 2000;
            assert!(merged(&parts, len).is_some());
            assert!(merged(&parts, len - 1).is_none());
            let many: Vec<_> = (0..66).map(part).collect();
            assert!(merged(&frames(&many), u32::MAX).is_none(), "beyond 16 bits");
        }
    }

    #[test]
    fn nothing_joins_but_what_follows() {
        for (src, dst) in ends() {
            let base = || tcp(src, dst).sequence(1).traffic_class(2);
            let first = base().payload([1; 100]);
            let next = || base().sequence(101);
            let joins = |first: &Datagram, next: Datagram| {
                merged(&frames(&[first.clone(), next]), MTU).is_some()
            };
            assert!(joins(&first, next().payload([2; 100])));
            assert!(joins(&first, next().payload([2; 1])));
            let other_port = tcp(src, (dst.ip(), 4001)).sequence(101).traffic_class(2);
            for other in [
                next().payload([2; 101]),
                next(),
                base().payload([1; 100]),
                next().sequence(100).payload([2; 100]),
                next().sequence(102).payload([2; 100]),
                next().acknowledgment(2).payload([2; 100]),
                next().window(1).payload([2; 100]),
                next().tcp_options(&TIMESTAMP).payload([2; 100]),
                next().ttl(63).payload([2; 100]),
                next().traffic_class(3).payload([2; 100]),
                next().identification(2).flow_label(1).payload([2; 100]),
                other_port.payload([2; 100]),
            ] {
                assert!(!joins(&first, other.clone()), "{other:?}");
            }
            let stamped = |value: u8| {
                let mut options = TIMESTAMP;
                options[7] = value;
                base().tcp_options(&options)
            };
            let first = stamped(1).payload([1; 100]);
            assert!(joins(&first, stamped(1).sequence(101).payload([2; 100])));
            assert!(!joins(&first, stamped(2).sequence(101).payload([2; 100])));
        }
    }

    #[test]
    fn nothing_follows_a_short_segment_or_one_that_pushes() {
        let part = |start: u32, len: usize| {
            let datagram = tcp((A4, 80), (B4, 4000)).sequence(start);
            datagram.payload(vec![7; len])
        };
        let short = [part(0, 100), part(100, 50), part(150, 50)];
        assert!(merged(&frames(&short[..2]), MTU).is_some());
        assert!(merged(&frames(&short), MTU).is_none());
        let pushed = [part(0, 100), part(100, 100).flags(ACK_PSH), part(200, 100)];
        assert!(merged(&frames(&pushed[..2]), MTU).is_some());
        assert!(merged(&frames(&pushed), MTU).is_none());
        let at_once = [part(0, 100).flags(ACK_PSH), part(100, 100)];
        assert!(merged(&frames(&at_once), MTU).is_none());
    }

    #[test]
    fn flags_other_than_ack_psh_and_ece_keep_a_segment_alone() {
        let with = |flags: u8| {
            let datagram = tcp((A6, 80), (B6, 4000)).flags(flags);
            segment(&datagram.payload([7; 100]).frame(LINK))
        };
        assert!(with(0x10).is_some() && with(ACK_PSH).is_some() && with(0x50).is_some());
        for flags in [0x00, 0x08, 0x11, 0x12, 0x14, 0x30, 0x90, 0xd0] {
            assert_eq!(with(flags), None, "{flags:#x}");
        }
        let echo = |start, flags| {
            let datagram = tcp((A6, 80), (B6, 4000)).sequence(start).flags(flags);
            datagram.payload([7; 100])
        };
        let both = frames(&[echo(0, 0x50), echo(100, 0x50)]);
        assert!(merged(&both, MTU).is_some());
        let one = frames(&[echo(0, 0x50), echo(100, 0x10)]);
        assert!(merged(&one, MTU).is_none());
    }

    #[test]
    fn what_is_not_plain_tcp_with_data_is_no_segment() {
        let data = tcp((A4, 80), (B4, 4000)).payload([7; 100]);
        assert!(segment(&data.frame(LINK)).is_some());
        let mut padded = data.frame(LINK);
        padded.push(0);
        for frame in [
            padded,
            data.clone().options(&[1; 4]).frame(LINK),
            data.fragments(LINK, 64).remove(0),
            build::udp((A4, 80), (B4, 4000))
                .payload([7; 100])
                .frame(LINK),
            tcp((A6, 80), (B6, 4000))
                .extension(60, &[0; 6])
                .payload([7; 9])
                .frame(LINK),
            tcp((A4, 80), (B4, 4000)).frame(LINK),
        ] {
            assert_eq!(segment(&frame), None, "{frame:?}");
        }
        // A header that is longer than the segment, or shorter than itself.
        for offset in [0x40, 0xf0] {
            let mut frame = tcp((A4, 80), (B4, 4000)).payload([7; 30]).frame(LINK);
            frame[46] = offset;
            assert_eq!(segment(&frame), None);
        }
        // All its data lies in the next chunk.
        let (frame, len) = (data.frame(LINK), 154);
        assert!(Segment::of(&frame[..55], len, &ip(&frame)).is_some());
        assert_eq!(Segment::of(&frame[..54], len, &ip(&frame)), None);
    }

    #[test]
    fn identifications_count_or_are_all_the_same_and_mean_nothing() {
        let takes = |ids: [u16; 3], dont_fragment: bool| {
            let parts = [0, 1, 2].map(|n: u32| {
                let part = build::tcp((A4, 80), (B4, 4000)).sequence(n * 100);
                let part = part.identification(ids[n as usize]).payload([7; 100]);
                if dont_fragment {
                    part.dont_fragment()
                } else {
                    part
                }
            });
            merged(&frames(&parts), MTU).is_some()
        };
        for dont_fragment in [false, true] {
            assert!(takes([5, 6, 7], dont_fragment));
            assert!(takes([0xffff, 0, 1], dont_fragment));
            assert!(!takes([5, 6, 8], dont_fragment));
            assert!(!takes([5, 6, 6], dont_fragment));
            assert!(!takes([5, 4, 3], dont_fragment));
            assert!(!takes([5, 5, 6], dont_fragment));
        }
        assert!(takes([5, 5, 5], true));
        assert!(!takes([5, 5, 5], false));
        let flagged = build::tcp((A4, 80), (B4, 4000)).sequence(0).dont_fragment();
        let plain = build::tcp((A4, 80), (B4, 4000))
            .sequence(100)
            .identification(1);
        let mixed = [flagged.payload([7; 100]), plain.payload([7; 100])];
        assert!(merged(&frames(&mixed), MTU).is_none());
    }

    #[test]
    fn a_checksum_is_judged_as_an_independent_crate_does() {
        for (src, dst) in ends() {
            for word in 0..=u16::MAX {
                let datagram = tcp(src, dst).payload(word.to_be_bytes()).payload(b"odd");
                if word % 251 == 0 {
                    let frame = datagram.frame(LINK);
                    let packet = ip(&frame);
                    let tcp = etherparse::TcpSlice::from_slice(&frame[packet.l4.into()..]).unwrap();
                    let sum = match (packet.src, packet.dst) {
                        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => {
                            tcp.calc_checksum_ipv4(src.octets(), dst.octets())
                        }
                        (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => {
                            tcp.calc_checksum_ipv6(src.octets(), dst.octets())
                        }
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(tcp.checksum(), sum.unwrap());
                }
                let intact = |datagram: &Datagram| {
                    let frame = datagram.frame(LINK);
                    let (begin, end) = frame.split_at(frame.len() - 3);
                    segment(&frame).unwrap().is_intact([begin, end])
                };
                assert!(intact(&datagram), "{word}");
                assert!(!intact(&datagram.wrong_checksum()), "{word}");
            }
        }
    }
}
