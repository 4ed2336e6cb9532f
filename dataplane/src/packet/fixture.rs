//! What the tests of this module share.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Ethernet, Ip, Malformed, Packet, parse};

pub(super) const LINK: Ethernet = Ethernet {
    dst: [2, 0, 0, 0, 0, 1],
    src: [2, 0, 0, 0, 0, 2],
};
pub(super) const A4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(super) const B4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 3);
pub(super) const A6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
pub(super) const B6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3);

/// The IP packet of a frame that has one.
pub(super) fn ip(frame: &[u8]) -> Ip {
    match parse(frame, frame.len()).map(|parsed| parsed.packet) {
        Ok(Packet::Ip(ip)) => ip,
        other => panic!("{other:?}"),
    }
}

/// The rule that a frame breaks, if it does.
pub(super) fn broken_rule(frame: &[u8]) -> Option<Malformed> {
    parse(frame, frame.len()).err()
}
