//! What becomes of a frame: `depart` on its source port's worker, then
//! `arrive` on its destination's, with a [`Handoff`] between them.
//!
//! Both only decide and rewrite. Rings, counters and answers are the engine's.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::mappings::Mappings;
use crate::next_hops::NextHops;
use crate::ownership::Ownership;
use crate::packet::ndisc::Ndisc;
use crate::packet::offload::{self, Partial};
use crate::packet::segment::{self, Cut};
use crate::packet::translate::Translation;
use crate::packet::{self, Arp, Ip, Malformed, Packet, Parsed, arp, icmp, ndisc, rewrite};
use crate::pods::PodTable;
use crate::port::{Endpoint, PortId, PortKind};
use crate::promotion::{Asked, Promotion};
use crate::return_path::{Parcel, ReturnPath, Way};
use crate::sessions::Sessions;
use crate::shaper::{self, Direction};
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::{Frame, Umem};

/// Bytes before the IP packet.
const ETHERNET_LEN: u32 = 14;

/// A frame on its way from its source's worker to its destination's, with the
/// headers that were parsed on departure.
#[derive(Debug)]
pub struct Handoff {
    /// The frame.
    pub frame: Frame,
    /// What the destination must know of it.
    pub meta: Meta,
}

/// What the destination must know of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Meta {
    /// Where it came from, and where an ICMP error goes.
    pub from: PortId,
    /// Its headers, as it came; once it has arrived, as it leaves.
    pub ip: Ip,
    /// What becomes of it.
    translation: Option<Translation>,
    /// To which MAC address it goes, if there may be several behind the port; of
    /// what asks, from which it came.
    next_hop: Option<[u8; 6]>,
    /// The frame is TCP segments that its sender's stack left merged, and each a
    /// packet of so many bytes, the last perhaps fewer.
    segment_len: Option<NonZeroU16>,
    asks: bool,
}

impl Meta {
    /// How the frame is cut into the segments that its sender's stack left merged.
    #[must_use]
    pub fn cut(&self, head: &[u8]) -> Option<Cut> {
        Cut::into_packets(head, &self.ip, self.segment_len?)
    }

    /// Whether the frame is such segments.
    #[inline]
    #[must_use]
    pub fn is_merged(&self) -> bool {
        self.segment_len.is_some()
    }

    /// The flow that the frame is of, as the pod sees it whose limit this is: what it
    /// gets is what arrives, as by way of the host. ICMP errors are as they came.
    #[inline]
    pub(crate) fn flow(&self, direction: Direction) -> shaper::Flow {
        let flow = shaper::Flow::of(&self.ip);
        match (direction, &self.translation) {
            (Direction::Ingress, Some(Translation::Packet(to))) => flow.translated(to),
            _ => flow,
        }
    }

    /// The same of one of them, whose headers these are.
    #[must_use]
    pub fn piece(self, ip: Ip) -> Self {
        Self {
            ip,
            segment_len: None,
            ..self
        }
    }
}

impl Handoff {
    /// Whether it asks for a mapped port of the node, and the sessions of the pod
    /// behind that are to say where it goes: [`Pipeline::ask`], where they are.
    #[inline]
    #[must_use]
    pub fn asks(&self) -> bool {
        self.meta.asks
    }
}

#[cfg(test)]
impl Handoff {
    /// A frame that goes the plain way.
    pub(crate) fn plain(frame: Frame, from: PortId, ip: Ip) -> Self {
        let meta = Meta {
            from,
            ip,
            translation: None,
            next_hop: None,
            segment_len: None,
            asks: false,
        };
        Self { frame, meta }
    }
}

/// Where a frame goes from its source port.
#[derive(Debug)]
pub enum Destination {
    /// To another port, or to where the sessions of that pod say, which are another
    /// worker's ([`Handoff::asks`]).
    Port(PortId, Handoff),
    /// Back to its source: it holds the answer to its own question now.
    Source(Frame),
    /// Nowhere.
    Dropped(Frame, Rejection),
}

/// Why a frame goes nowhere, and what its sender is told.
#[derive(Debug, Clone, Copy)]
pub struct Rejection {
    /// The counted reason.
    pub reason: DropReason,
    /// The ICMP error that its sender should get, and the headers it quotes.
    pub error: Option<(icmp::Error, Ip)>,
}

impl Rejection {
    fn with(reason: DropReason, error: icmp::Error, ip: Ip) -> Self {
        Self {
            reason,
            error: Some((error, ip)),
        }
    }
}

impl<R: Into<DropReason>> From<R> for Rejection {
    fn from(reason: R) -> Self {
        Self {
            reason: reason.into(),
            error: None,
        }
    }
}

/// What a pipeline is made of.
#[derive(Debug, Clone, Copy)]
pub struct PipelineOptions {
    /// The MAC address of every port's near end.
    pub gateway_mac: [u8; 6],
    /// Whether checksums may leave partial, with a request to complete them.
    pub tx_metadata: bool,
    /// All ports' slots are below it.
    pub slots: u16,
    /// How many sessions there is room for.
    pub sessions: u32,
}

/// The tables that decide where a frame goes.
#[derive(Debug)]
pub struct Pipeline {
    umem: &'static Umem,
    gateway_mac: [u8; 6],
    tx_metadata: bool,
    /// Which port has which pod address.
    pub pods: PodTable,
    /// Where everything goes that is for no pod.
    pub host: Option<PortId>,
    /// Which ports have their sessions here.
    pub ownership: Ownership,
    return_path: ReturnPath,
    promotion: Promotion,
}

/// What a frame comes to on departure, before it is moved.
enum Step<'p> {
    Forward(Way, &'p Ip),
    Ask(Asked, Option<[u8; 6]>, &'p Ip),
    Answer,
}

impl Pipeline {
    /// A pipeline without ports.
    #[must_use]
    pub fn new(umem: &'static Umem, options: PipelineOptions) -> Self {
        Self {
            umem,
            gateway_mac: options.gateway_mac,
            tx_metadata: options.tx_metadata,
            pods: PodTable::default(),
            host: None,
            ownership: Ownership::ALONE,
            return_path: ReturnPath::new(Sessions::new(options.sessions, options.slots)),
            promotion: Promotion::new(),
        }
    }

    /// The MAC address of every port's near end.
    #[must_use]
    pub fn gateway_mac(&self) -> [u8; 6] {
        self.gateway_mac
    }

    /// The pods' sessions.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        &self.return_path.sessions
    }

    /// The pods' sessions, to change some.
    pub fn sessions_mut(&mut self) -> &mut Sessions {
        &mut self.return_path.sessions
    }

    /// Puts other mappings in place of these, which are returned: to be dropped
    /// where there is time for it.
    pub fn set_mappings(&mut self, mappings: Arc<Mappings>) -> Arc<Mappings> {
        self.promotion.set_mappings(mappings)
    }

    /// Puts other next hops beyond the uplink in place of these, which are
    /// returned: to be dropped where there is time for it.
    pub fn set_next_hops(&mut self, next_hops: NextHops) -> NextHops {
        std::mem::replace(&mut self.return_path.next_hops, next_hops)
    }

    /// Decides where a frame from `source` goes; questions to the gateway are
    /// answered in place.
    #[inline(never)]
    pub fn depart(&mut self, mut frame: Frame, source: &Endpoint, now: Nanos) -> Destination {
        let parsed = packet::parse(self.umem.head(&frame), frame.len() as usize);
        // The headers stay where they are until they go with the frame: a copy
        // costs as much as looking an address up.
        let parsed = match &parsed {
            Ok(parsed) => parsed,
            Err(rule) => return Destination::Dropped(frame, (*rule).into()),
        };
        let segment_len = match self.check_link(&frame, source, parsed) {
            Ok(segment_len) => segment_len,
            Err(reason) => return Destination::Dropped(frame, reason.into()),
        };
        match self.step(&mut frame, source, parsed, now) {
            Ok(Step::Forward(way, ip)) => {
                let handoff = handoff_by(way, frame, source.id, *ip, segment_len);
                Destination::Port(way.port, handoff)
            }
            Ok(Step::Ask(asked, next_hop, ip)) => {
                let meta = Meta {
                    from: source.id,
                    ip: *ip,
                    translation: None,
                    next_hop,
                    segment_len,
                    asks: true,
                };
                Destination::Port(asked.pod, Handoff { frame, meta })
            }
            Ok(Step::Answer) => Destination::Source(frame),
            Err(rejection) => Destination::Dropped(frame, rejection),
        }
    }

    /// Decides where a frame goes that asks, and has departed on another worker.
    ///
    /// # Errors
    /// The frame, and why it goes nowhere.
    pub fn ask(
        &mut self,
        handoff: Handoff,
        now: Nanos,
    ) -> Result<(PortId, Handoff), (Frame, Rejection)> {
        let Handoff { mut frame, meta } = handoff;
        let Meta {
            from,
            ip,
            next_hop,
            segment_len,
            ..
        } = meta;
        let parcel = Parcel {
            head: self.umem.head(&frame),
            ip: &ip,
            port: from,
            now,
        };
        // Not to a third worker: while mappings change each may know others.
        let asked = self.promotion.asked(&parcel);
        let asked = asked.filter(|asked| self.ownership.has(asked.pod));
        let way = asked.and_then(|asked| self.look_up(&asked, &parcel, next_hop));
        match self.lead(&mut frame, way, &ip) {
            Ok(way) => Ok((way.port, handoff_by(way, frame, from, ip, segment_len))),
            Err(rejection) => Err((frame, rejection)),
        }
    }

    #[inline]
    fn step<'p>(
        &mut self,
        frame: &mut Frame,
        source: &Endpoint,
        parsed: &'p Parsed,
        now: Nanos,
    ) -> Result<Step<'p>, Rejection> {
        match &parsed.packet {
            Packet::Ip(ip) => match ndisc::parse(self.umem.head(frame), ip)? {
                Some(question) => self.answer_ndisc(frame, source, parsed, ip, question),
                None => {
                    self.check(source, parsed, ip)?;
                    self.route(frame, source, parsed.ethernet.src, ip, now)
                }
            },
            Packet::Arp(arp) => self.answer_arp(frame, source, arp),
            Packet::Other { .. } => Err(DropReason::UnknownEthertype.into()),
        }
    }

    /// Whether a frame comes from its port's far end; if that left segments merged,
    /// how long a packet each is.
    #[inline]
    fn check_link(
        &self,
        frame: &Frame,
        source: &Endpoint,
        parsed: &Parsed,
    ) -> Result<Option<NonZeroU16>, DropReason> {
        if parsed.ethernet.src == source.mac {
            return Ok(None);
        }
        let Packet::Ip(ip) = &parsed.packet else {
            return match source.kind {
                PortKind::Uplink => Ok(None),
                PortKind::Host | PortKind::Pod => Err(DropReason::SpoofedMac),
            };
        };
        let head = self.umem.head(frame);
        let longest = match source.kind {
            PortKind::Host | PortKind::Pod => {
                let data_len = parsed.ethernet.merged().ok_or(DropReason::SpoofedMac)?;
                segment::packet_len(head, ip, data_len)
            }
            // Nothing says how long they were, but none was longer than the MTU.
            PortKind::Uplink => u16::try_from(source.mtu).ok().and_then(NonZeroU16::new),
        };
        match longest {
            Some(len) if ip.packet_len > len.get().into() => Cut::into_packets(head, ip, len)
                .filter(|_| frame.len() as usize == ip.end())
                .map(|_| Some(len))
                .ok_or(match source.kind {
                    PortKind::Host | PortKind::Pod => DropReason::SpoofedMac,
                    PortKind::Uplink => DropReason::TooBig,
                }),
            // What the kernel has cut itself bears the mark as well.
            _ => Ok(None),
        }
    }

    /// Whether a packet may be forwarded at all, and is its sender's own.
    #[inline]
    fn check(&self, source: &Endpoint, parsed: &Parsed, ip: &Ip) -> Result<(), DropReason> {
        check_destination(parsed, ip.dst)?;
        if parsed.ethernet.dst != self.near_mac(source) {
            return Err(DropReason::WrongMac);
        }
        if source.kind == PortKind::Uplink {
            return self.check_source(ip.src);
        }
        // The host's stack may send for others.
        if source.kind == PortKind::Host || source.addresses.contains(&ip.src) {
            Ok(())
        } else if ip.src == IpAddr::V6(source.link_local) {
            Err(DropReason::LinkLocal)
        } else {
            Err(DropReason::SpoofedAddress)
        }
    }

    /// What nobody outside may be: nobody's address, or a pod's of this node.
    #[inline]
    fn check_source(&self, src: IpAddr) -> Result<(), DropReason> {
        let is_nobodys = match src {
            IpAddr::V4(src) => matches!(src.octets(), [0 | 127 | 224.., ..]),
            IpAddr::V6(src) => {
                src.is_loopback()
                    || src.is_unspecified()
                    || src.is_multicast()
                    || src.to_ipv4_mapped().is_some()
            }
        };
        if is_nobodys || self.pods.get(src).is_some() {
            return Err(DropReason::Martian);
        }
        Ok(())
    }

    /// The MAC address of the port's near end.
    #[inline]
    fn near_mac(&self, port: &Endpoint) -> [u8; 6] {
        match port.kind {
            PortKind::Uplink => port.mac,
            PortKind::Host | PortKind::Pod => self.gateway_mac,
        }
    }

    #[inline]
    fn route<'p>(
        &mut self,
        frame: &mut Frame,
        source: &Endpoint,
        from: [u8; 6],
        ip: &'p Ip,
        now: Nanos,
    ) -> Result<Step<'p>, Rejection> {
        if source.kind == PortKind::Host {
            // The host's stack has routed it. What no pod has does not go
            // back: that would be a loop.
            let to = self.pods.get(ip.dst).ok_or_else(|| {
                Rejection::with(DropReason::NoPod, icmp::Error::HostUnreachable, *ip)
            })?;
            return Ok(Step::Forward(Way::plain(to), ip));
        }
        let parcel = Parcel {
            head: self.umem.head(frame),
            ip,
            port: source.id,
            now,
        };
        // Pods that no Service and no hostPort leads to have no sessions: for
        // them this is all.
        let answers = if self.return_path.sessions.has_any(source.id) {
            self.return_path.leave(&parcel, self.host)
        } else {
            None
        };
        let way = match (answers, self.pods.get(ip.dst)) {
            (Some(way), _) => Some(way),
            (None, Some(pod)) if source.kind != PortKind::Uplink => Some(Way::plain(pod)),
            (None, _) => {
                let next_hop = (source.kind == PortKind::Uplink).then_some(from);
                match self.promotion.asked(&parcel) {
                    Some(asked) if !self.ownership.has(asked.pod) => {
                        return Ok(Step::Ask(asked, next_hop, ip));
                    }
                    Some(asked) => self.look_up(&asked, &parcel, next_hop),
                    None => None,
                }
            }
        };
        let way = self.lead(frame, way, ip)?;
        Ok(Step::Forward(way, ip))
    }

    #[inline]
    fn look_up(
        &mut self,
        asked: &Asked,
        parcel: &Parcel,
        next_hop: Option<[u8; 6]>,
    ) -> Option<Way> {
        let sessions = &mut self.return_path.sessions;
        self.promotion.ask(sessions, asked, parcel, next_hop)
    }

    /// Takes a packet on its way; without one it goes to the host. Past the host
    /// port the host's stack is the router, and counts the hop itself; else this
    /// is the only one.
    #[inline(always)] // Else the way is copied on its way in and out.
    fn lead(&self, frame: &mut Frame, way: Option<Way>, ip: &Ip) -> Result<Way, Rejection> {
        let way = match way {
            None => return Ok(Way::plain(self.host.ok_or(DropReason::PortDown)?)),
            Some(way) if Some(way.port) == self.host => return Ok(way),
            Some(way) => way,
        };
        if ip.ttl <= 1 {
            let error = icmp::Error::TimeExceeded;
            return Err(Rejection::with(DropReason::TtlExceeded, error, *ip));
        }
        rewrite::decrement_ttl(self.umem.head_mut(frame), ip);
        Ok(way)
    }

    /// Answers for the gateway (RFC 826); a pod may ask in its own name only.
    fn answer_arp(
        &self,
        frame: &mut Frame,
        source: &Endpoint,
        request: &Arp,
    ) -> Result<Step<'static>, Rejection> {
        let sender = IpAddr::V4(request.sender_ip);
        // A probe asks in nobody's name (RFC 5227 section 1.1).
        let is_own = source.kind == PortKind::Host
            || request.sender_ip.is_unspecified()
            || source.addresses.contains(&sender);
        if request.sender_mac != source.mac || !is_own {
            return Err(DropReason::SpoofedArp.into());
        }
        if request.operation != arp::Operation::Request
            || !source.gateways.contains(&request.target_ip.into())
        {
            return Err(DropReason::ArpUnanswered.into());
        }
        arp::reply_in_place(self.umem.head_mut(frame), request, self.gateway_mac)
            .map(|_| Step::Answer)
            .ok_or(DropReason::ArpUnanswered.into())
    }

    /// Answers for the gateway (RFC 4861 section 7.2.4), and lets no pod speak
    /// as a router or for another.
    fn answer_ndisc(
        &self,
        frame: &mut Frame,
        source: &Endpoint,
        parsed: &Parsed,
        ip: &Ip,
        message: Ndisc,
    ) -> Result<Step<'static>, Rejection> {
        let is_own = |address: IpAddr| {
            source.kind == PortKind::Host || address.is_unspecified() || source.has(address)
        };
        let is_own_mac = |mac: Option<[u8; 6]>| mac.is_none_or(|mac| mac == source.mac);
        match message {
            Ndisc::RouterAdvertisement => Err(DropReason::RouterAdvertisement.into()),
            Ndisc::Redirect => Err(DropReason::Redirect.into()),
            // Sent to all routers; addresses and routes come by CNI instead.
            Ndisc::RouterSolicitation => Err(DropReason::Multicast.into()),
            Ndisc::NeighbourAdvertisement {
                target,
                target_link_address,
            } => {
                if is_own(ip.src) && is_own(target.into()) && is_own_mac(target_link_address) {
                    Err(DropReason::NeighbourUnanswered.into())
                } else {
                    Err(DropReason::SpoofedNeighbour.into())
                }
            }
            Ndisc::NeighbourSolicitation {
                target,
                source_link_address,
            } => {
                let IpAddr::V6(solicitor) = ip.src else {
                    return Err(DropReason::SpoofedNeighbour.into());
                };
                if !is_own(ip.src) || !is_own_mac(source_link_address) {
                    return Err(DropReason::SpoofedNeighbour.into());
                }
                // Its answer is written into one chunk; padding needs no more.
                if frame.chunks() > 1 {
                    return Err(Malformed::NeighbourDiscovery.into());
                }
                if !source.gateways.contains(&target.into()) {
                    return Err(DropReason::NeighbourUnanswered.into());
                }
                let advertisement = ndisc::Advertisement {
                    target,
                    mac: self.gateway_mac,
                    solicitor,
                    solicitor_mac: parsed.ethernet.src,
                };
                let mut answer = [0; 128];
                let len = ndisc::advertisement(&mut answer, &advertisement)
                    .ok_or(DropReason::NeighbourUnanswered)?;
                self.umem.set_content(frame, &answer[..len]);
                Ok(Step::Answer)
            }
        }
    }

    /// Whether a frame is not too large for `port`.
    ///
    /// # Errors
    /// It is.
    #[inline]
    pub fn fits(&self, handoff: &Handoff, port: &Endpoint) -> Result<(), Rejection> {
        let Handoff { frame, meta } = handoff;
        let len = match meta.segment_len {
            Some(segment_len) => segment_len.get().into(),
            // Padding counts as well: the receiving veth drops by the frame's length.
            None => frame
                .len()
                .saturating_sub(ETHERNET_LEN)
                .max(meta.ip.packet_len),
        };
        if len <= port.mtu {
            return Ok(());
        }
        let error = icmp::Error::TooBig { mtu: port.mtu };
        Err(Rejection::with(DropReason::TooBig, error, meta.ip))
    }

    /// Makes a frame that fits ready for `target`: the way back, the MAC addresses,
    /// the checksum. Gives the checksum that the kernel must complete, if
    /// any; that of merged segments it completes in each.
    ///
    /// # Errors
    /// Why the frame cannot go there; it is still in the handoff.
    #[inline]
    pub fn arrive(
        &mut self,
        handoff: &mut Handoff,
        target: &Endpoint,
        now: Nanos,
    ) -> Result<Option<Partial>, Rejection> {
        let Handoff { frame, meta } = handoff;
        match meta.translation {
            None => self.follow(frame, meta, target, now)?,
            Some(translation) => {
                meta.ip = translation
                    .apply(self.umem.head_mut(frame), &meta.ip)
                    .ok_or(DropReason::Untranslatable)?;
            }
        }
        let near_mac = self.near_mac(target);
        let head = self.umem.head_mut(frame);
        rewrite::macs(head, meta.next_hop.unwrap_or(target.mac), near_mac);
        let partial = offload::partial(head, &meta.ip);
        match partial {
            Some(partial) if !self.tx_metadata && !meta.is_merged() => {
                let checksum = offload::complete(self.umem.slices(frame), partial, meta.ip.end());
                offload::store(self.umem.head_mut(frame), partial, checksum);
                Ok(None)
            }
            partial => Ok(partial),
        }
    }

    /// Has the sessions follow what comes to a pod as it is.
    #[inline]
    fn follow(
        &mut self,
        frame: &Frame,
        meta: &Meta,
        target: &Endpoint,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let is_from_host = self.host == Some(meta.from);
        if !is_from_host && !self.sessions().has_any(target.id) {
            return Ok(());
        }
        let parcel = Parcel {
            head: self.umem.head(frame),
            ip: &meta.ip,
            port: target.id,
            now,
        };
        if !is_from_host {
            self.return_path.arrive_directly(&parcel);
            return Ok(());
        }
        let return_path = &mut self.return_path;
        if !self.promotion.promote(return_path, &parcel) && self.pods.get(meta.ip.src).is_some() {
            return_path.arrive_from_host(&parcel, meta.from)?;
        }
        Ok(())
    }
}

/// A frame from `from` that goes this way.
#[inline]
fn handoff_by(
    way: Way,
    frame: Frame,
    from: PortId,
    ip: Ip,
    segment_len: Option<NonZeroU16>,
) -> Handoff {
    let meta = Meta {
        from,
        ip,
        translation: way.translation,
        next_hop: way.next_hop,
        segment_len,
        asks: false,
    };
    Handoff { frame, meta }
}

/// Destinations that a router does not forward to (RFC 1812 section 5.3.7,
/// RFC 4291 sections 2.5.3, 2.5.6 and 2.7).
#[inline]
fn check_destination(parsed: &Parsed, dst: IpAddr) -> Result<(), DropReason> {
    if parsed.ethernet.dst == packet::ethernet::BROADCAST {
        return Err(DropReason::Broadcast);
    }
    if parsed.ethernet.is_multicast() || dst.is_multicast() {
        return Err(DropReason::Multicast);
    }
    match dst {
        IpAddr::V4(dst) if dst.is_broadcast() => Err(DropReason::Broadcast),
        IpAddr::V4(dst) => {
            let [first, ..] = dst.octets();
            match first {
                0 | 127 | 240.. => Err(DropReason::Martian),
                _ => Ok(()),
            }
        }
        IpAddr::V6(dst) if dst.is_loopback() || dst.is_unspecified() => Err(DropReason::Martian),
        IpAddr::V6(dst) if dst.to_ipv4_mapped().is_some() => Err(DropReason::Martian),
        IpAddr::V6(dst) if dst.is_unicast_link_local() => Err(DropReason::LinkLocal),
        IpAddr::V6(_) => Ok(()),
    }
}
