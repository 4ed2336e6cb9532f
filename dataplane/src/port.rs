//! A port: a pod's veth or the host port, with its socket and counters.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::counters::PortCounters;
use crate::packet::offload::Partial;
use crate::packet::segment::Cut;
use crate::rate_limit::IcmpLimit;
use crate::shaper::Shapers;
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::watch::Watch;
use crate::xsk::{Flush, Frame, FramePool, Unsent, Xsk};

/// How long a port whose device is down gets nothing, before it is tried
/// again: chunks that wait for it are lost to others.
const DOWN_PAUSE: Nanos = Nanos::from_millis(10);

/// How long segments go one by one to a port whose device refused merged ones: it
/// may never take any, and each try loses some.
const REFUSED_PAUSE: Nanos = Nanos::from_millis(10_000);

/// The same after the send buffer was full: all ports share it, and a receiver that
/// takes nothing may hold it. Each port's rings are its own.
const FULL_PAUSE: Nanos = Nanos::from_millis(1_000);

/// Chunks that a port may always hold towards its receiver: a batch of small
/// frames. 250 ports at this floor stay within the chunks in flight.
pub(crate) const SHARE_AT_LEAST: usize = 64;

/// Names a port for as long as it exists. Slots are reused: what still holds
/// the name of a former port misses instead of hitting the slot's next owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId {
    /// Index into tables, XSKMAP and doorbell.
    pub slot: u16,
    /// Counts the slot's owners.
    pub generation: u16,
}

/// What is at a port's far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortKind {
    /// The host's stack, behind `sluice0`.
    Host,
    /// A pod.
    Pod,
    /// A queue of the uplink: what comes by it is for a mapped port of the node.
    Uplink,
}

/// What a new port is made of.
#[derive(Debug)]
pub struct PortSpec {
    /// Its name.
    pub id: PortId,
    /// What is at its far end.
    pub kind: PortKind,
    /// Its socket, bound.
    pub xsk: Xsk,
    /// The MAC address at the far end. At the uplink's there are several: its own.
    pub mac: [u8; 6],
    /// The far end's MTU, bytes of IP packet.
    pub mtu: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The far end's next hops, which ARP and neighbour discovery ask for;
    /// ICMP errors come from the first of the right family.
    pub gateways: Vec<IpAddr>,
    /// What its traffic is held to.
    pub shapers: Shapers,
    /// Whether TCP segments to it may be merged, where the kernel offers what
    /// that takes.
    pub gro: bool,
}

/// Who is at a port's far end: what the pipeline asks of a port.
#[derive(Debug)]
pub struct Endpoint {
    /// The port's name.
    pub id: PortId,
    /// What it is.
    pub kind: PortKind,
    /// Its MAC address; of the uplink the node's own.
    pub mac: [u8; 6],
    /// Its MTU, bytes of IP packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its next hops.
    pub gateways: Vec<IpAddr>,
    /// Its IPv6 link-local address, by the MAC address (RFC 4291 appendix A);
    /// the plugin has the pod's kernel make it that way.
    pub link_local: Ipv6Addr,
}

impl Endpoint {
    /// Whether `address` is one of its own, the link-local one included.
    #[inline]
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || address == IpAddr::V6(self.link_local)
    }

    /// The gateway that speaks to this far end in `family_of`'s family.
    #[must_use]
    pub fn gateway(&self, family_of: IpAddr) -> Option<IpAddr> {
        self.gateways
            .iter()
            .copied()
            .find(|gateway| gateway.is_ipv4() == family_of.is_ipv4())
    }
}

/// The link-local address that a kernel derives from a MAC address (modified
/// EUI-64, RFC 4291 appendix A).
#[must_use]
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(id))
}

/// A port as its worker has it.
#[derive(Debug)]
pub struct Port {
    pub(crate) endpoint: Endpoint,
    pub(crate) xsk: Xsk,
    pub(crate) counters: Arc<PortCounters>,
    pub(crate) icmp_limit: IcmpLimit,
    pub(crate) shapers: Shapers,
    /// When it last gave a frame.
    pub(crate) last_frame: Nanos,
    pub(crate) watch: Watch,
    /// Its device was down or gone when last tried; not tried again, and
    /// nothing queued, before the time.
    pub(crate) down_until: Option<Nanos>,
    /// The kernel did not take all of it at the last flush.
    pub(crate) stuck: bool,
    /// Is in the engine's list of ports to flush.
    pub(crate) dirty: bool,
    /// Is in the engine's list of ports that the pool could not fill.
    pub(crate) hungry: bool,
    /// TCP segments to it are merged, unless its device refused some before this
    /// time.
    merges: Option<Nanos>,
}

impl Port {
    /// A port of `spec`, without a frame so far.
    #[must_use]
    pub fn new(spec: PortSpec, now: Nanos) -> Self {
        let can_merge = spec.xsk.has_gso()
            || spec.kind == PortKind::Pod && spec.xsk.features().rings_take_merged();
        Self {
            endpoint: Endpoint {
                id: spec.id,
                kind: spec.kind,
                mac: spec.mac,
                mtu: spec.mtu,
                addresses: spec.addresses,
                gateways: spec.gateways,
                link_local: link_local(spec.mac),
            },
            xsk: spec.xsk,
            counters: Arc::default(),
            icmp_limit: IcmpLimit::new(now),
            shapers: spec.shapers,
            last_frame: now,
            watch: Watch::new(now),
            down_until: None,
            stuck: false,
            dirty: false,
            hungry: false,
            merges: (spec.gro && can_merge).then_some(now),
        }
    }

    /// Sends what is queued, and frees what was sent. Returns whether
    /// something is left that can go at once. What is left for a device that
    /// is down stays in the TX ring and goes with what is queued later.
    pub(crate) fn flush(&mut self, pool: &mut FramePool, now: Nanos) -> bool {
        let flushed = self.xsk.flush();
        self.down_until = matches!(flushed, Flush::Down | Flush::Gone).then(|| now + DOWN_PAUSE);
        self.stuck = flushed != Flush::Done;
        self.xsk.reap(pool);
        flushed == Flush::Pending
    }

    /// Whether its device is down. What is left in the TX ring is tried first,
    /// and nothing joins it before it has gone: a port that stays down holds
    /// what one turn queued, not a full ring.
    pub(crate) fn is_down(&mut self, pool: &mut FramePool, now: Nanos) -> bool {
        match self.down_until {
            None => false,
            Some(until) if now < until => true,
            Some(_) => {
                self.flush(pool, now);
                self.down_until.is_some()
            }
        }
    }

    /// Whether the port may hold `chunks` more: no more than are free for all
    /// others then (dynamic thresholds, Choudhury and Hahne 1998). So receivers
    /// that complete nothing never exhaust the pool, however many they are.
    #[inline]
    pub(crate) fn has_share(&mut self, chunks: u16, pool: &mut FramePool) -> bool {
        let fits = |xsk: &Xsk, pool: &FramePool| {
            let held = xsk.sent() as usize + usize::from(chunks);
            held <= SHARE_AT_LEAST || pool.has(held)
        };
        fits(&self.xsk, pool) || {
            self.xsk.reap(pool);
            fits(&self.xsk, pool)
        }
    }

    /// Queues a frame. A full TX ring is handed over first, unless the kernel
    /// did not take it the last time: many may send to this port in one turn.
    #[inline]
    pub(crate) fn send(
        &mut self,
        frame: Frame,
        partial: Option<Partial>,
        pool: &mut FramePool,
        now: Nanos,
    ) -> Result<(), Frame> {
        self.xsk.send(frame, partial).or_else(|frame| {
            if self.stuck {
                return Err(frame);
            }
            self.flush(pool, now);
            self.xsk.send(frame, partial)
        })
    }

    /// Whether TCP segments to it are merged.
    #[inline]
    pub(crate) fn merges(&self, now: Nanos) -> bool {
        self.merges.is_some_and(|from| now >= from)
    }

    /// Sends merged segments, which the kernel copies, after what was queued before.
    ///
    /// # Errors
    /// Why they are lost.
    pub(crate) fn send_merged(
        &mut self,
        frame: &Frame,
        cut: &Cut,
        pool: &mut FramePool,
        now: Nanos,
    ) -> Result<(), DropReason> {
        if self.is_down(pool, now) {
            return Err(DropReason::PortDown);
        }
        if self.dirty {
            self.flush(pool, now);
        }
        self.xsk
            .send_merged(frame, cut)
            .map_err(|unsent| match unsent {
                Unsent::Full => {
                    self.merges = Some(now + FULL_PAUSE);
                    DropReason::TxRingFull
                }
                Unsent::Refused => {
                    self.merges = Some(now + REFUSED_PAUSE);
                    DropReason::MergedRefused
                }
                Unsent::Down => {
                    self.down_until = Some(now + DOWN_PAUSE);
                    DropReason::PortDown
                }
            })
    }

    /// The longest packet that segments may become on their way to it, bytes. With
    /// word of how to cut it, it may be longer than the MTU.
    #[inline]
    pub(crate) fn longest_packet(&self) -> u32 {
        if self.xsk.has_gso() {
            u16::MAX.into()
        } else {
            self.endpoint.mtu
        }
    }

    /// Takes note of a frame that was queued, or sent beside the rings.
    #[inline]
    pub(crate) fn count_sent(&mut self, len: u32) {
        self.watch.count(1);
        self.counters.tx_frames.add(1);
        self.counters.tx_bytes.add(len.into());
    }

    /// Shows how many chunks the rings hold.
    pub(crate) fn publish_gauges(&self) {
        self.counters.filled_chunks.set(self.xsk.filled().into());
        self.counters.sent_chunks.set(self.xsk.sent().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_one_of_rfc_4291() {
        assert_eq!(
            link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]),
            "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap()
        );
    }
}
