//! Where answers by the uplink go, as the kernel would send them: its routes
//! and neighbours, for a worker. To be replaced as a whole, never changed.
//!
//! The kernel keeps up what it knows of a neighbour only while it sends to it
//! itself. So it is told which ones are in use here.

use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};

use crossbeam::channel::Sender;
use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::packet::mapped;
use crate::time::Nanos;

/// An IPv4 address is that long a prefix of those that [`mapped`] makes.
const MAPPED_BITS: u8 = 96;

/// Next hops of which it is remembered when their use was told.
const REMEMBERED: usize = 64;

/// How often the use of a next hop is told.
const TELL_EVERY: Nanos = Nanos::from_millis(1000);

/// The uplink, as a worker knows it.
#[derive(Debug, Clone, Default)]
pub struct Uplink {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its MTU, bytes of IP packet.
    pub mtu: u32,
    /// What is beyond it.
    pub next_hops: NextHops,
}

/// How the kernel reaches a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// It is on the uplink's link.
    OnLink,
    /// By this router on the uplink's link.
    Via(IpAddr),
    /// Not by the uplink.
    Elsewhere,
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// By the uplink to this MAC address.
    Known([u8; 6]),
    /// By the uplink; the kernel knows no MAC address yet, or no more.
    Unresolved,
    /// Not by the uplink: the kernel's to send.
    Elsewhere,
}

/// Routes and neighbours. The default has none: nothing leaves by the uplink.
#[derive(Debug, Clone, Default)]
pub struct NextHops {
    /// The lengths of prefixes that there are, the longest first: IPv4's, IPv6's.
    lengths: [Vec<u8>; 2],
    paths: HashMap<(Ipv6Addr, u8), Path, RandomState>,
    neighbours: HashMap<Ipv6Addr, [u8; 6], RandomState>,
    usage: Option<Usage>,
}

impl NextHops {
    /// These routes, of which each has another destination (address and length of
    /// the prefix), and neighbours.
    #[must_use]
    pub fn new(
        routes: impl IntoIterator<Item = ((IpAddr, u8), Path)>,
        neighbours: impl IntoIterator<Item = (IpAddr, [u8; 6])>,
    ) -> Self {
        let mut lengths = [Vec::new(), Vec::new()];
        let mut paths = HashMap::default();
        for ((address, length), path) in routes {
            let (family, offset) = match address {
                IpAddr::V4(_) => (0, MAPPED_BITS),
                IpAddr::V6(_) => (1, 0),
            };
            let length = length + offset;
            lengths[family].push(length);
            paths.insert((prefix(mapped(address), length), length), path);
        }
        for lengths in &mut lengths {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
        }
        let neighbours = neighbours.into_iter();
        Self {
            lengths,
            paths,
            neighbours: neighbours.map(|(ip, mac)| (mapped(ip), mac)).collect(),
            usage: None,
        }
    }

    /// The same; which next hops are in use is told to `in_use`, as far as it
    /// has room.
    #[must_use]
    pub fn telling(mut self, in_use: Sender<IpAddr>) -> Self {
        self.usage = Some(Usage::new(in_use));
        self
    }

    /// Whether what is for `destination` leaves by the uplink.
    #[must_use]
    pub fn is_by_uplink(&self, destination: Ipv6Addr) -> bool {
        self.path(destination) != Path::Elsewhere
    }

    /// Where an answer to `destination` goes, which uses its next hop.
    #[inline]
    pub fn find(&mut self, destination: Ipv6Addr, now: Nanos) -> NextHop {
        let next_hop = match self.path(destination) {
            Path::OnLink => destination,
            Path::Via(router) => mapped(router),
            Path::Elsewhere => return NextHop::Elsewhere,
        };
        if let Some(usage) = &mut self.usage {
            usage.tell(next_hop, now);
        }
        match self.neighbours.get(&next_hop) {
            Some(mac) => NextHop::Known(*mac),
            None => NextHop::Unresolved,
        }
    }

    /// The longest prefix counts (RFC 1812 section 5.2.4.3).
    #[inline]
    fn path(&self, destination: Ipv6Addr) -> Path {
        let family = usize::from(destination.to_ipv4_mapped().is_none());
        let mut lengths = self.lengths[family].iter();
        lengths
            .find_map(|length| self.paths.get(&(prefix(destination, *length), *length)))
            .copied()
            .unwrap_or(Path::Elsewhere)
    }
}

/// The first `length` bits, and zeros.
#[inline]
fn prefix(address: Ipv6Addr, length: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(length));
    Ipv6Addr::from_bits(address.to_bits() & mask.unwrap_or_default())
}

/// Tells which next hops are in use.
#[derive(Debug, Clone)]
struct Usage {
    in_use: Sender<IpAddr>,
    told: Box<[Option<(Ipv6Addr, Nanos)>]>,
    seed: RandomState,
}

impl Usage {
    fn new(in_use: Sender<IpAddr>) -> Self {
        Self {
            in_use,
            told: vec![None; REMEMBERED].into_boxed_slice(),
            seed: RandomState::default(),
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "any bits will do")]
    fn tell(&mut self, next_hop: Ipv6Addr, now: Nanos) {
        let place = self.seed.hash_one(next_hop) as usize % REMEMBERED;
        let last = &mut self.told[place];
        if last.is_some_and(|(told, since)| told == next_hop && now - since < TELL_EVERY) {
            return;
        }
        *last = Some((next_hop, now));
        // Without room it is told another time.
        let _ = self.in_use.try_send(next_hop.to_canonical());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crossbeam::channel::{self, Receiver};

    const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn next_hops(room: usize) -> (NextHops, Receiver<IpAddr>) {
        let (in_use, told) = channel::bounded(room);
        let routes = [
            (("0.0.0.0", 0), Path::Via(ip("192.0.2.254"))),
            (("192.0.2.0", 24), Path::OnLink),
            (("192.0.2.128", 25), Path::Elsewhere),
            (("192.0.2.200", 32), Path::Via(ip("fe80::1"))),
            (("2001:db8::", 32), Path::OnLink),
            (("2001:db8::7", 128), Path::Via(ip("fe80::2"))),
        ];
        let routes = routes.map(|((net, length), path)| ((ip(net), length), path));
        let neighbours = [
            (ip("192.0.2.254"), ROUTER),
            (ip("fe80::1"), ROUTER),
            (ip("192.0.2.9"), CLIENT),
            (ip("2001:db8::9"), CLIENT),
        ];
        let next_hops = NextHops::new(routes, neighbours).telling(in_use);
        (next_hops, told)
    }

    #[test]
    fn the_longest_prefix_counts_and_families_stay_apart() {
        let (mut next_hops, _told) = next_hops(16);
        for (to, expected) in [
            ("203.0.113.1", NextHop::Known(ROUTER)),
            ("192.0.2.9", NextHop::Known(CLIENT)),
            ("192.0.2.10", NextHop::Unresolved),
            ("192.0.2.129", NextHop::Elsewhere),
            ("192.0.2.200", NextHop::Known(ROUTER)),
            ("2001:db8::9", NextHop::Known(CLIENT)),
            ("2001:db8::7", NextHop::Unresolved),
            ("2001:db9::9", NextHop::Elsewhere),
        ] {
            let to = mapped(ip(to));
            assert_eq!(next_hops.find(to, Nanos(0)), expected, "{to}");
            let is_by_uplink = expected != NextHop::Elsewhere;
            assert_eq!(next_hops.is_by_uplink(to), is_by_uplink, "{to}");
        }
        let mut none = NextHops::default();
        assert_eq!(
            none.find(mapped(ip("192.0.2.9")), Nanos(0)),
            NextHop::Elsewhere
        );
    }

    #[test]
    fn an_oracle_that_looks_at_every_route_agrees() {
        // Few enough addresses that prefixes meet.
        let address = || Ipv6Addr::from_bits(fastrand::u128(..) & (7 | 1 << 127));
        for _ in 0..200 {
            let routes = (0..8_u16).map(|router| {
                let length = [0, 1, 126, 127, 128][fastrand::usize(0..5)];
                let path = Path::Via(Ipv6Addr::from([router; 8]).into());
                ((prefix(address(), length), length), path)
            });
            let routes: HashMap<_, _> = routes.collect();
            let given = routes.iter();
            let given = given.map(|((net, length), path)| ((IpAddr::V6(*net), *length), *path));
            let next_hops = NextHops::new(given, []);
            for _ in 0..50 {
                let to = address();
                let covering = routes
                    .iter()
                    .filter(|((net, length), _)| prefix(to, *length) == *net);
                let longest = covering.max_by_key(|((_, length), _)| *length);
                let expected = longest.map_or(Path::Elsewhere, |(_, path)| *path);
                assert_eq!(next_hops.path(to), expected, "{to} by {routes:?}");
            }
        }
    }

    #[test]
    fn what_is_in_use_is_told_now_and_then() {
        let (mut next_hops, told) = next_hops(2);
        let [client, beyond] = ["192.0.2.10", "203.0.113.1"].map(|to| mapped(ip(to)));
        for _ in 0..3 {
            next_hops.find(client, Nanos(0));
        }
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [ip("192.0.2.10")]);
        next_hops.find(client, TELL_EVERY);
        next_hops.find(beyond, TELL_EVERY);
        next_hops.find(mapped(ip("192.0.2.11")), TELL_EVERY);
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(told, [ip("192.0.2.10"), ip("192.0.2.254")], "no more room");
    }
}
