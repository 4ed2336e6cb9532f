//! The packet that an ICMP error quotes: its headers, as far as they are there.
//! Only the first eight bytes of its transport header are (RFC 792).

use zerocopy::FromBytes;
use zerocopy::byteorder::network_endian::U16;

use super::transport::Icmp;
use super::{Flow, Ip, ipv4, ipv6, protocol};

/// What of the quoted transport header must be there: all that is promised.
const AT_LEAST: usize = 8;

/// The flow of the packet that an ICMP error is about: what the error's
/// destination had sent. `None` if it is no error, or quotes nothing of TCP,
/// UDP or SCTP, or something that its destination did not send.
#[inline]
#[must_use]
pub fn flow(head: &[u8], ip: &Ip) -> Option<Flow> {
    Flow::of(&packet(head, ip)?)
}

/// The quoted packet, with ports: at its place in the frame, of the length that
/// it had.
pub(super) fn packet(head: &[u8], ip: &Ip) -> Option<Ip> {
    let at = usize::from(ip.l4) + size_of::<Icmp>();
    let head = head.get(..ip.end()).unwrap_or(head);
    let quote = match (ip.protocol, ip.icmp?) {
        // Unreachable, time exceeded, parameter problem.
        (protocol::ICMP, (3 | 11 | 12, _)) => ipv4::quoted(head, at)?,
        // All errors of RFC 4443.
        (protocol::ICMPV6, (1..=4, _)) => ipv6::quoted(head, at)?,
        _ => return None,
    };
    let transport = head.get(usize::from(quote.l4)..)?;
    let has_ports = matches!(
        quote.protocol,
        protocol::TCP | protocol::UDP | protocol::SCTP
    );
    if !has_ports || transport.len() < AT_LEAST || quote.src != ip.dst {
        return None;
    }
    let ([src_port, dst_port], _) = <[U16; 2]>::read_from_prefix(transport).ok()?;
    Some(Ip {
        ports: Some((src_port.get(), dst_port.get())),
        ..quote
    })
}

#[cfg(test)]
mod tests {
    use super::super::build::{self, Datagram};
    use super::super::fixture::{A4, A6, B4, B6, LINK, ip};
    use super::*;

    fn quoted(error: &Datagram) -> Option<Flow> {
        let frame = error.frame(LINK);
        flow(&frame, &ip(&frame))
    }

    /// An error from B to A about what A sent to B, cut to `len` bytes.
    fn about(sent: &Datagram, len: usize) -> Datagram {
        let packet = sent.packet();
        let error = match packet[0] >> 4 {
            4 => build::icmp(B4, A4, (3, 3), 0),
            _ => build::icmp(B6, A6, (1, 4), 0),
        };
        error.payload(&packet[..len])
    }

    #[test]
    fn eight_bytes_of_the_transport_header_are_enough() {
        let v4 = build::tcp((A4, 1000), (B4, 80));
        let v6 = build::tcp((A6, 1000), (B6, 80)).extension(60, &[1, 4]);
        for (sent, headers) in [(v4, 20), (v6, 48)] {
            let frame = sent.frame(LINK);
            let expected = Flow::of(&ip(&frame));
            assert!(expected.is_some());
            assert_eq!(quoted(&about(&sent, headers + 8)), expected);
            assert_eq!(quoted(&about(&sent, headers + 20)), expected);
            assert_eq!(quoted(&about(&sent, headers + 7)), None);
            assert_eq!(quoted(&about(&sent, headers - 1)), None);
            assert_eq!(quoted(&about(&sent, 0)), None);
            // What the frame is padded with is not quoted.
            let mut padded = about(&sent, headers + 7).frame(LINK);
            padded.push(0);
            assert_eq!(flow(&padded, &ip(&padded)), None);
        }
    }

    #[test]
    fn only_errors_about_what_their_destination_sent_quote_a_flow() {
        let sent = build::udp((A4, 1000), (B4, 53));
        assert!(quoted(&about(&sent, 28)).is_some());
        let echo = build::icmp(B4, A4, (8, 0), 0).payload(sent.packet());
        assert_eq!(quoted(&echo), None);
        let redirect = build::icmp(B4, A4, (5, 0), 0).payload(sent.packet());
        assert_eq!(quoted(&redirect), None);
        let others = build::udp((B4, 1000), (A4, 53));
        assert_eq!(quoted(&about(&others, 28)), None);
        assert_eq!(quoted(&about(&build::ping(A4, B4), 28)), None);
        assert_eq!(quoted(&sent), None);
        // A first fragment shows its ports, a later one does not.
        let [first, later] =
            [0, 1].map(|i| sent.clone().payload([0; 32]).fragments(LINK, 24)[i][14..].to_vec());
        let error = |packet: Vec<u8>| build::icmp(B4, A4, (11, 1), 0).payload(packet);
        assert!(quoted(&error(first)).is_some());
        assert_eq!(quoted(&error(later)), None);
    }
}
