//! Everything that can be done with a frame, done to any bytes: what the
//! property tests and the fuzz target call. It panics where a promise of this
//! module does not hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use super::arp::Operation;
use super::checksum::{self, Sum};
use super::icmp::{Error, Reply};
use super::ndisc::{Advertisement, Ndisc};
use super::{
    Arp, Ethernet, Flow, Fragment, Ip, Packet, arp, build, ethernet, icmp, ndisc, offload, parse,
    protocol, quote, rewrite, translate,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const LINK: Ethernet = Ethernet {
    dst: MAC,
    src: POD_MAC,
};

/// Valid frames of every kind that the module tells apart.
pub static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(samples);

fn samples() -> Vec<Vec<u8>> {
    let a4 = Ipv4Addr::new(10, 1, 0, 2);
    let b4 = Ipv4Addr::new(10, 1, 0, 3);
    let a6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
    let b6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
    let udp4 = build::udp((a4, 5000), (b4, 53)).payload(b"udp over IPv4");
    let udp6 = build::udp((a6, 5000), (b6, 53)).payload(b"udp over IPv6");
    let tcp4 = build::tcp((a4, 5000), (b4, 80))
        .payload(b"tcp over IPv4")
        .partial();
    let tcp6 = build::tcp((a6, 5000), (b6, 80))
        .payload(b"tcp over IPv6")
        .partial();
    let vxlan = build::vxlan(&tcp4.frame(LINK));
    let nested = build::udp((a4, 9), (b4, 8472)).payload(&vxlan).frame(LINK);
    let geneve = build::geneve(&[0; 8], &tcp6.frame(LINK));
    let gre = build::gre(0xb000, 0x6558, &tcp4.frame(LINK));
    let headers = tcp6
        .clone()
        .extension(0, &[5, 2, 0, 0])
        .extension(43, &[[4, 1, 0, 0, 0, 0].as_slice(), &b6.octets()].concat())
        .extension(60, &[1, 4])
        .extension(51, &[0; 22]);
    let mut all = vec![
        udp4.frame(LINK),
        udp6.frame(LINK),
        tcp4.clone().options(&[7, 3, 4]).frame(LINK),
        tcp6.frame(LINK),
        build::sctp((a4, 1), (b4, 2)).frame(LINK),
        build::ping(a4, b4).payload([7; 56]).frame(LINK),
        build::ping(a6, b6).payload([7; 56]).frame(LINK),
        headers.frame(LINK),
        build::udp((a4, 9), (b4, 4789)).payload(&vxlan).frame(LINK),
        build::udp((a6, 9), (b6, 4789))
            .payload(build::vxlan(&nested))
            .frame(LINK),
        build::udp((a6, 9), (b6, 6081))
            .payload(&geneve)
            .partial()
            .frame(LINK),
        build::raw(a4, b4, protocol::GRE).payload(&gre).frame(LINK),
        build::raw(a6, b6, protocol::IPV4)
            .payload(tcp4.packet())
            .frame(LINK),
        build::raw(a4, b4, protocol::IPV6)
            .payload(tcp6.packet())
            .frame(LINK),
        build::arp_request(POD_MAC, a4, b4),
        build::neighbour_solicitation(a6, b6, Some(POD_MAC)).frame(LINK),
        build::neighbour_solicitation(Ipv6Addr::UNSPECIFIED, b6, None).frame(LINK),
        build::icmp(a6, b6, (136, 0), 1 << 30)
            .ttl(255)
            .payload(b6.octets())
            .frame(LINK),
        build::icmp(a4, b4, (3, 1), 0)
            .payload(udp4.packet())
            .frame(LINK),
        build::icmp(b4, a4, (3, 4), 1280)
            .payload(&tcp4.packet()[..28])
            .frame(LINK),
        build::icmp(b6, a6, (1, 4), 0)
            .payload(udp6.packet())
            .frame(LINK),
    ];
    all.extend(udp4.payload([1; 64]).fragments(LINK, 40));
    all.extend(udp6.payload([1; 64]).fragments(LINK, 40));
    all
}

/// The frame that a fuzzer's input stands for, made of [`SAMPLES`].
#[must_use]
pub fn frame_of(input: &[u8]) -> Vec<u8> {
    mutated(&SAMPLES, input)
}

/// One of `samples`, changed as `input` says. The first byte picks it, and
/// three bytes each then name an offset and the byte that goes there; an offset
/// beyond the end cuts the frame. From the number of samples on, the first byte
/// is followed by the frame itself.
#[must_use]
pub fn mutated(samples: &[Vec<u8>], input: &[u8]) -> Vec<u8> {
    let Some((&first, rest)) = input.split_first() else {
        return Vec::new();
    };
    let Some(sample) = samples.get(usize::from(first)) else {
        return rest.to_vec();
    };
    let mut frame = sample.clone();
    let (changes, _) = rest.as_chunks();
    for &[high, low, value] in changes {
        let offset = usize::from(u16::from_be_bytes([high, low]));
        match frame.get_mut(offset) {
            Some(byte) => *byte = value,
            None => frame.truncate(offset % (sample.len() + 1)),
        }
    }
    frame
}

/// Does everything to `frame`: as it is, as one of which only half lies in the
/// first chunk, and with the checksum made right that keeps most mutations
/// from getting anywhere.
pub fn frame(frame: &[u8]) {
    chunk(frame, frame.len());
    chunk(&frame[..frame.len() / 2], frame.len());
    let mut repaired = frame.to_vec();
    repair(&mut repaired);
    chunk(&repaired, repaired.len());
}

/// Makes the checksum right of an IPv4 header without options, or else of an
/// ICMPv6 message.
fn repair(frame: &mut [u8]) {
    let is_ipv4 = frame.len() >= 34 && frame[12..15] == [8, 0, 0x45];
    if is_ipv4 {
        frame[24..26].fill(0);
        let checksum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    } else if let Ok(Packet::Ip(ip)) = parse(frame, frame.len()).map(|parsed| parsed.packet)
        && ip.protocol == protocol::ICMPV6
        && ip.icmp.is_some()
    {
        let message = &mut frame[usize::from(ip.l4)..ip.end()];
        message[2..4].fill(0);
        let mut sum = Sum::pseudo_header(ip.src, ip.dst, ip.protocol, ip.l4_len());
        sum.add(message);
        message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    }
}

/// Does everything to a frame of `frame_len` bytes that begins with `head`.
pub fn chunk(head: &[u8], frame_len: usize) {
    let Ok(parsed) = parse(head, frame_len) else {
        return;
    };
    match parsed.packet {
        Packet::Ip(ip) => {
            assert!(ip.l3 < ip.l4 && usize::from(ip.l4) <= head.len(), "{ip:?}");
            assert!(ip.end() <= frame_len, "{ip:?}");
            assert!(ip.fragment != Fragment::Later || (ip.ports, ip.icmp) == (None, None));
            partial_checksum(head, &ip);
            icmp_errors(head, &ip);
            neighbour_discovery(head, &ip);
            forwarding(head, frame_len, &ip);
            translation(head, frame_len, &ip);
            error_translation(head, frame_len, &ip);
        }
        Packet::Arp(arp) => arp_reply(head, &arp),
        Packet::Other { .. } => {}
    }
}

/// A completed checksum covers its packet: what follows the pseudo header
/// then sums up to the complement of it.
fn partial_checksum(head: &[u8], ip: &Ip) {
    let Some(partial) = offload::partial(head, ip) else {
        return;
    };
    let end = ip.end().min(head.len());
    let field = partial.field();
    assert!(field + 2 <= head.len(), "{partial:?}");
    let pseudo_header = u16::from_be_bytes([head[field], head[field + 1]]);

    let (first, second) = head.split_at(field / 2);
    let complete = offload::complete([first, second], partial, end);
    let mut completed = head.to_vec();
    offload::store(&mut completed, partial, complete);
    let sum = checksum::of(&completed[usize::from(partial.start)..end]);
    // In ones' complement 0xffff is 0.
    assert_eq!(
        sum % 0xffff,
        pseudo_header % 0xffff,
        "{partial:?} of {ip:?}"
    );
}

fn icmp_errors(head: &[u8], ip: &Ip) {
    let gateway: IpAddr = match ip.src {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    };
    let is_later = ip.fragment == Fragment::Later;
    assert!(!is_later || !icmp::may_answer(head, ip), "{ip:?}");
    for error in [
        Error::TimeExceeded,
        Error::HostUnreachable,
        Error::TooBig { mtu: 1500 },
    ] {
        let reply = Reply {
            error,
            src: gateway,
            src_mac: MAC,
            dst_mac: POD_MAC,
        };
        let mut out = [0; icmp::MAX_FRAME_LEN];
        let len = icmp::build(&mut out, head, ip, &reply).expect("out is long enough");
        let answer = parsed_ip(&out[..len]);
        assert_eq!((answer.src, answer.dst), (gateway, ip.src));
        assert!(
            !icmp::may_answer(&out[..len], &answer),
            "an error for an error"
        );
        assert_eq!(message_checksum(&out, &answer), 0, "{answer:?}");
    }
}

fn neighbour_discovery(head: &[u8], ip: &Ip) {
    let Ok(Some(Ndisc::NeighbourSolicitation { target, .. })) = ndisc::parse(head, ip) else {
        return;
    };
    let IpAddr::V6(solicitor) = ip.src else {
        panic!("neighbour discovery over IPv4");
    };
    let answer = Advertisement {
        target,
        mac: MAC,
        solicitor,
        solicitor_mac: POD_MAC,
    };
    let mut out = [0; 128];
    let len = ndisc::advertisement(&mut out, &answer).expect("out is long enough");
    let advertised = Ndisc::NeighbourAdvertisement {
        target,
        target_link_address: Some(MAC),
    };
    let out = &out[..len];
    assert_eq!(ndisc::parse(out, &parsed_ip(out)), Ok(Some(advertised)));
}

/// Forwarding changes the link addresses and the hop limit, nothing else.
fn forwarding(head: &[u8], frame_len: usize, ip: &Ip) {
    let mut forwarded = head.to_vec();
    rewrite::macs(&mut forwarded, POD_MAC, MAC);
    rewrite::decrement_ttl(&mut forwarded, ip);
    let after = parse(&forwarded, frame_len).expect("still well formed");
    let expected = Ip {
        ttl: ip.ttl.saturating_sub(1),
        ..*ip
    };
    assert_eq!(after.packet, Packet::Ip(expected));
    let link = Ethernet {
        dst: POD_MAC,
        src: MAC,
    };
    assert_eq!(after.ethernet, link);
}

/// Where translation leads.
fn elsewhere(ip: &Ip, protocol: u8) -> Flow {
    let (src, dst) = match ip.src {
        IpAddr::V4(_) => (
            Ipv4Addr::new(10, 9, 0, 1).to_ipv6_mapped(),
            Ipv4Addr::new(10, 9, 0, 2).to_ipv6_mapped(),
        ),
        IpAddr::V6(_) => (
            Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2),
        ),
    };
    Flow {
        src,
        dst,
        src_port: 40_000,
        dst_port: 443,
        protocol,
    }
}

/// Translation changes the flow, keeps a checksum as right or wrong as it was
/// and a partial one partial, and does nothing where it says so.
fn translation(head: &[u8], frame_len: usize, ip: &Ip) {
    let mut translated = head.to_vec();
    let to = elsewhere(ip, ip.protocol);
    let Some(after) = translate::packet(&mut translated, ip, &to) else {
        assert_eq!(translated, head);
        return;
    };
    let parsed = parse(&translated, frame_len).expect("still well formed");
    assert_eq!(parsed.packet, Packet::Ip(after));
    assert_eq!(Some((after.src, after.dst)), to.addresses());
    if ip.ports.is_some() {
        assert_eq!(Flow::of(&after), Some(to));
    }
    let own =
        |head: &[u8], ip: &Ip| offload::partial(head, ip).filter(|partial| partial.start == ip.l4);
    if let Some(partial) = own(head, ip) {
        assert_eq!(own(&translated, &after), Some(partial), "{ip:?}");
    } else if ip.protocol == protocol::TCP && ip.fragment == Fragment::Whole {
        let rest = |head: &[u8], ip: &Ip| {
            let end = ip.end().min(head.len());
            let mut sum = Sum::pseudo_header(ip.src, ip.dst, ip.protocol, ip.l4_len());
            sum.add(&head[usize::from(ip.l4)..end]);
            sum.finish() % 0xffff
        };
        assert_eq!(rest(&translated, &after), rest(head, ip), "{ip:?}");
    }
}

/// A translated error quotes the other flow, is for who sent that, and keeps
/// its checksum as right or wrong as it was.
fn error_translation(head: &[u8], frame_len: usize, ip: &Ip) {
    let mut translated = head.to_vec();
    let Some(quoted) = quote::flow(head, ip) else {
        let to = elsewhere(ip, protocol::UDP);
        assert_eq!(translate::error(&mut translated, ip, &to), None);
        assert_eq!(translated, head);
        return;
    };
    let to = elsewhere(ip, quoted.protocol);
    let Some(after) = translate::error(&mut translated, ip, &to) else {
        assert_eq!(translated, head);
        return;
    };
    let parsed = parse(&translated, frame_len).expect("still well formed");
    assert_eq!(parsed.packet, Packet::Ip(after));
    assert_eq!(quote::flow(&translated, &after), Some(to));
    if ip.end() <= head.len() {
        assert_eq!(
            message_checksum(&translated, &after) % 0xffff,
            message_checksum(head, ip) % 0xffff,
            "{ip:?}"
        );
    }
}

fn arp_reply(head: &[u8], request: &Arp) {
    let mut frame = head.to_vec();
    arp::reply_in_place(&mut frame, request, MAC).expect("the request was in it");
    let reply = Arp {
        operation: Operation::Reply,
        sender_mac: MAC,
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    let parsed = parse(&frame, frame.len()).expect("a reply");
    assert_eq!(parsed.packet, Packet::Arp(reply));
    assert_eq!(parsed.ethernet.dst, request.sender_mac);
    assert_eq!(
        &frame[ethernet::HEADER_LEN + 28..],
        &head[ethernet::HEADER_LEN + 28..]
    );
}

fn parsed_ip(frame: &[u8]) -> Ip {
    match parse(frame, frame.len()).map(|parsed| parsed.packet) {
        Ok(Packet::Ip(ip)) => ip,
        other => panic!("made {other:?}"),
    }
}

/// Zero if the checksum of the ICMP message is right.
fn message_checksum(frame: &[u8], ip: &Ip) -> u16 {
    let mut sum = match ip.src {
        IpAddr::V4(_) => Sum::new(),
        IpAddr::V6(_) => Sum::pseudo_header(ip.src, ip.dst, ip.protocol, ip.l4_len()),
    };
    sum.add(&frame[usize::from(ip.l4)..ip.end()]);
    sum.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            frame(&bytes);
        }

        #[test]
        fn mutated_frames_do_no_harm(
            sample in any::<prop::sample::Index>(),
            changes in prop::collection::vec((0..256_u16, any::<u8>()), 0..6),
        ) {
            let sample = u8::try_from(sample.index(SAMPLES.len())).unwrap();
            let changes = changes.iter().flat_map(|(offset, value)| {
                let [high, low] = offset.to_be_bytes();
                [high, low, *value]
            });
            frame(&frame_of(&[sample].into_iter().chain(changes).collect::<Vec<_>>()));
        }
    }

    /// Inputs of the fuzz target that once made it fail.
    const CRASHERS: [(&str, &[u8]); 1] = [(
        "a solicitation from a group had a solicited answer to that group",
        &[0x0f, 0x00, 0x16, 0xff],
    )];

    #[test]
    fn what_once_failed_does_no_more() {
        for (what, input) in CRASHERS {
            println!("{what}");
            frame(&frame_of(input));
        }
    }

    #[test]
    fn every_sample_is_well_formed() {
        for sample in SAMPLES.iter() {
            assert!(parse(sample, sample.len()).is_ok(), "{sample:02x?}");
            frame(sample);
        }
    }

    #[test]
    fn every_cut_of_a_sample_does_no_harm() {
        for sample in SAMPLES.iter() {
            for len in 0..sample.len() {
                chunk(&sample[..len], sample.len());
                frame(&sample[..len]);
            }
        }
    }
}
