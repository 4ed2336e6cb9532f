//! A second link between the outside host and the node. What goes to the node
//! by it may be lost, come twice, or come late.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::flows::Pattern;
use super::wire::bound;
use super::{Site, Space};

/// The outside host's addresses on the link.
const FAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const FAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x52, 0, 0, 0, 0, 2));
/// The node's.
const NEAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NEAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x52, 0, 0, 0, 0, 1));

/// So many frames of a thousand are lost, come twice, or come late.
const SPOILT: usize = 15;
/// A late frame is overtaken by so many.
const LATE_BY: usize = 3;

/// The link, for as long as it is not dropped.
pub(crate) struct BadWire {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _space: Space,
}

impl BadWire {
    /// A link by which the outside host reaches these addresses.
    pub(crate) fn new(site: &Site, to: &[IpAddr]) -> Self {
        let (node, outside, space) = (&site.node, &site.outside, site.space("wire"));
        let wire = space.name();
        for (end, link, inner, v4, v6) in [
            (outside, "far0", "a0", FAR4, FAR6),
            (node, "near0", "b0", NEAR4, NEAR6),
        ] {
            end.exec(&format!(
                "ip link add {link} mtu 1500 type veth peer name {inner} netns {wire}"
            ));
            // What crosses the wire are frames as they would be on one: of 1500
            // bytes, with their checksums.
            end.exec(&format!("ethtool -K {link} tx off tso off gso off"));
            end.exec(&format!("ip address add {v4}/24 dev {link}"));
            end.exec(&format!("ip address add {v6}/64 dev {link} nodad"));
            end.exec(&format!("ip link set {link} up"));
            space.exec(&format!("ip link set {inner} up"));
        }
        for address in to {
            let via = if address.is_ipv4() { NEAR4 } else { NEAR6 };
            outside.exec(&format!("ip route add {address} via {via} dev far0"));
        }
        let ends = ["a0", "b0"].map(|link| space.in_netns(|| Arc::new(bound(link))));
        for end in &ends {
            setsockopt(&**end, RcvBufForce, &(64 << 20)).unwrap();
            setsockopt(&**end, ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
        }
        let stop = Arc::<AtomicBool>::default();
        let [a, b] = ends;
        let ways = [(a.clone(), b.clone(), SPOILT), (b, a, 0)];
        let threads = ways.map(|(from, to, spoilt)| {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut wire = Spoiler::new(spoilt);
                while !stop.load(Ordering::Relaxed) {
                    wire.carry(&from, &to);
                }
            })
        });
        Self {
            stop,
            threads: threads.into(),
            _space: space,
        }
    }
}

impl Drop for BadWire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            assert!(thread.join().is_ok() || thread::panicking(), "a wire broke");
        }
    }
}

struct Spoiler {
    random: Pattern,
    spoilt: usize,
    /// A frame that comes late, and how many more overtake it.
    late: Option<(Vec<u8>, usize)>,
}

impl Spoiler {
    fn new(spoilt: usize) -> Self {
        Self {
            random: Pattern(1),
            spoilt,
            late: None,
        }
    }

    /// The next frame, if one comes soon.
    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd) {
        let mut frame = [0; 2048];
        let Ok(length) = recv(from.as_raw_fd(), &mut frame, MsgFlags::empty()) else {
            self.release(to);
            return;
        };
        let frame = &frame[..length];
        if self.random.below(1000) >= self.spoilt {
            put(to, frame);
        } else {
            match self.random.below(3) {
                0 => {}
                1 => [frame; 2].iter().for_each(|frame| put(to, frame)),
                _ if self.late.is_none() => self.late = Some((frame.to_vec(), LATE_BY)),
                _ => put(to, frame),
            }
        }
        match &mut self.late {
            Some((_, 0)) => self.release(to),
            Some((_, more)) => *more -= 1,
            None => {}
        }
    }

    fn release(&mut self, to: &OwnedFd) {
        if let Some((frame, _)) = self.late.take() {
            put(to, &frame);
        }
    }
}

/// What does not fit into the queue is lost, as on any wire.
fn put(to: &OwnedFd, frame: &[u8]) {
    let _ = send(to.as_raw_fd(), frame, MsgFlags::empty());
}
