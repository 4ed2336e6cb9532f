//! Ports wired into the kernel and the worker, step by step, and undone in
//! reverse.

mod connections;

use std::collections::HashSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use sluice_control::{Attachment, DataplaneSettings, HostEnd, PodAddress, Redirect};
use sluice_link::{Link, Netlink, Route, XdpMode};

use super::book::HOST_SLOT;
use super::host_processes::HostProcesses;
use super::merged::{self, Mark};
use super::{NodeError, alone, gateways, uplink};
use crate::counters::PortCounters;
use crate::fleet::{self, Fleet, FleetOptions};
use crate::host_port::{
    self, DATAPLANE_INTERFACE, GATEWAY_MAC, HOST_INTERFACE, HOST_MAC, HostPort,
};
use crate::host_sockets;
use crate::mappings::Mappings;
use crate::netfilter::{self, Netfilter, Nft, PodRules, Stale};
use crate::next_hops::Uplink;
use crate::port::{PortId, PortKind, PortSpec};
use crate::probe;
use crate::program::{PortProgram, ProgramOptions, UplinkOptions, UplinkProgram};
use crate::sessions::Listed;
use crate::shaper::Shapers;
use crate::xsk::{Device, Doorbell, FILL_DEPTH, Features, GsoSender, Socket, Umem, Xsk};

/// Chunks beside those in the ports' FILL rings, 64 MiB: a frame on its way
/// out stays with the kernel until the receiving stack has taken it.
const IN_FLIGHT_CHUNKS: u32 = 16_384;

/// One thing done to wire a port.
#[derive(Debug)]
pub(super) enum Step {
    /// The worker has the port.
    Worker(PortId),
    /// The program finds the port by this interface index.
    Interface(u32),
    /// The port's frames go to its socket.
    Socket(u16),
    /// The program is on the interface of this name.
    Program(String),
    /// The host reaches this address.
    Route(PodAddress),
    /// The kernel may track connections that came by these.
    Connections(Vec<Redirect>),
    /// The host's netfilter has these rules.
    Rules(PodRules),
    /// Processes of the host are led by these.
    HostProcesses(Vec<Redirect>),
    /// The interface of this index is up.
    Up(u32),
}

/// A wired port.
#[derive(Debug)]
pub(super) struct Wired {
    pub(super) id: PortId,
    /// Index of its interface: a name may come back on another.
    pub(super) index: u32,
    pub(super) counters: Arc<PortCounters>,
    pub(super) socket: Socket,
    pub(super) steps: Vec<Step>,
}

/// What ports are wired into. Fields are dropped in this order: sockets close
/// before a failed start's interfaces and bpf file system go.
pub(super) struct Wiring {
    fleet: Fleet,
    host: Option<Wired>,
    /// Its queues, by number.
    uplink: Vec<Wired>,
    /// The slot of its first queue.
    uplink_slot: u16,
    host_port: HostPort,
    netfilter: Netfilter,
    /// `None` where the kernel does not have it.
    host_processes: Option<HostProcesses>,
    program: PortProgram,
    umem: &'static Umem,
    pub(super) features: Features,
    /// By what all ports' merged segments go; `None` where the kernel cannot.
    gso: Option<Arc<GsoSender>>,
    /// Where merged segments come.
    pub(super) mark: Option<Mark>,
    netlink: Rc<Netlink>,
}

impl Wiring {
    /// Everything up to the host port's socket, which gets no frames yet.
    pub(super) fn build(
        settings: &DataplaneSettings,
        features: Features,
        netlink: &Rc<Netlink>,
        uplink_queues: u16,
    ) -> Result<Self, NodeError> {
        let uplink_slot = settings.max_ports + 1;
        let slots = uplink_slot + uplink_queues;
        let program = PortProgram::load(&ProgramOptions {
            multi_buffer: features.multi_buffer,
            slots,
            bpffs: settings.bpffs(),
        })?;
        let chunks = chunks(settings.max_ports + uplink_queues);
        let (umem, mut pool) =
            Umem::create(chunks).map_err(|cause| NodeError::Memory { chunks, cause })?;
        alone::check(netlink, features, umem, &mut pool)?;
        // Before anything is changed: what is there may be pods of a daemon with
        // another folder.
        if let Some((_, dataplane)) = HostPort::find(netlink)? {
            program.check_own(&dataplane)?;
        }
        let fleet = fleet::start(FleetOptions {
            workers: settings.workers,
            pool,
            doorbell: Doorbell::map(program.doorbell(), slots).map_err(NodeError::Doorbell)?,
            busy_poll: settings.busy_poll,
            cpus: settings.cpus.clone(),
            slots,
            gateway_mac: GATEWAY_MAC,
            tx_metadata: features.tx_metadata,
        })?;
        let gso = features
            .gso
            .then(GsoSender::open)
            .transpose()?
            .map(Arc::new);
        let mtu = probe::max_mtu(features);
        let mode = merged::mode(features.takes_merged());
        let host_port = HostPort::take_or_make(Rc::clone(netlink), mtu, mode)?;
        let mark = features
            .takes_merged()
            .then(|| Mark::on(HOST_INTERFACE))
            .transpose()?;
        let mut wiring = Self {
            fleet,
            host: None,
            uplink: Vec::new(),
            uplink_slot,
            host_port,
            netfilter: Netfilter::new()?,
            host_processes: host_processes(&settings.bpffs(), netlink),
            program,
            umem,
            features,
            gso,
            mark,
            netlink: Rc::clone(netlink),
        };
        wiring.open_host()?;
        Ok(wiring)
    }

    /// What was made outlives the daemon from now on.
    pub(super) fn keep(&mut self) {
        self.host_port.keep();
    }

    pub(super) fn is_alive(&self) -> bool {
        self.fleet.is_alive()
    }

    /// Whether the program on an interface, if there is one, is an earlier
    /// daemon's with our folder.
    pub(super) fn has_own_program(&self, link: &Link) -> Result<bool, NodeError> {
        Ok(self.program.is_own(link)?)
    }

    /// Whether the host port is still there; sockets of new ports share its.
    pub(super) fn has_host_port(&self) -> Result<bool, NodeError> {
        let link = self.netlink.link(DATAPLANE_INTERFACE)?;
        Ok(link.is_some_and(|link| self.host_port.has(&link)))
    }

    /// The pods' sessions.
    pub(super) fn sessions(&self) -> Result<Vec<Listed>, NodeError> {
        Ok(self.fleet.sessions()?)
    }

    /// The workers, to count what they have.
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Sets the mapped ports of the node.
    ///
    /// # Errors
    /// The worker is gone.
    pub(super) fn set_mappings(&self, mappings: Mappings) -> Result<(), NodeError> {
        Ok(self.fleet.set_mappings(mappings)?)
    }

    /// Changes what a pod's traffic is held to, by its attachment.
    ///
    /// # Errors
    /// The worker is gone.
    pub(super) fn set_shaping(
        &self,
        port: PortId,
        attachment: &Attachment,
    ) -> Result<(), NodeError> {
        let mtu = attachment.frame_mtu();
        Ok(self.fleet.set_shaping(port, &attachment.shaping, mtu)?)
    }

    /// The wired host port.
    pub(super) fn host(&self) -> Option<&Wired> {
        self.host.as_ref()
    }

    /// The wired queues of the uplink.
    pub(super) fn uplink(&self) -> &[Wired] {
        &self.uplink
    }

    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        self.host_port.is_gateway(address)
    }

    /// Whether the interface of this index is the host's end of the host port.
    pub(super) fn is_host_port(&self, index: u32) -> bool {
        self.host_port.host_end().index == index
    }

    /// Wires a pod's interface.
    ///
    /// # Errors
    /// The step that failed; those before it are undone.
    pub(super) fn add_pod(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        id: PortId,
        netns: Option<&Path>,
    ) -> Result<Wired, NodeError> {
        let rules = PodRules::of(attachment);
        // While it starts the rest is done.
        let nft = self.netfilter.prepare(&rules)?;
        let mut wired = self.open_pod(attachment, link, id)?;
        let mode = self.mark_far_end(attachment, link, netns);
        let joined = self
            .redirect(&mut wired, link, mode)
            .and_then(|()| self.join(attachment, link, (rules, nft), &mut wired.steps));
        match joined {
            Ok(()) => Ok(wired),
            Err(error) => {
                self.undo(wired.steps);
                Err(error)
            }
        }
    }

    /// The first half of taking a pod back from an earlier daemon: the worker
    /// knows it, and can send to it. Its frames still come to nobody.
    ///
    /// # Errors
    /// The step that failed; those before it are undone.
    pub(super) fn open_pod(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        id: PortId,
    ) -> Result<Wired, NodeError> {
        host_port::silence(&link.name)?;
        self.open(NewPort {
            id,
            kind: PortKind::Pod,
            link,
            queue: 0,
            mac: attachment.pod_mac,
            mtu: attachment.frame_mtu(),
            addresses: attachment
                .addresses
                .iter()
                .map(|pod| pod.address.addr())
                .collect(),
            gateways: gateways(attachment),
            shapers: Shapers::new(&attachment.shaping, attachment.frame_mtu()),
            gro: attachment.gro,
        })
    }

    /// Between the halves: netfilter has the rules of all pods that are open, in
    /// place of what an earlier daemon left.
    ///
    /// # Errors
    /// nft failed; then nothing has changed.
    pub(super) fn restore_rules<'a>(
        &mut self,
        pods: impl Iterator<Item = &'a Attachment>,
    ) -> Result<(), NodeError> {
        for attachment in pods {
            self.netfilter.expect(&PodRules::of(attachment));
        }
        Ok(self.netfilter.apply()?)
    }

    /// The second half, when all pods have the first behind them: its frames
    /// come to the worker. `found` are the host's routes.
    ///
    /// # Errors
    /// The step that failed; those before it are in `wired`.
    pub(super) fn resume_pod(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        wired: &mut Wired,
        found: &[Route],
    ) -> Result<(), NodeError> {
        let joined = self.rejoin(attachment, link, wired, found);
        // Whatever became of that, its rules are there.
        let rules = PodRules::of(attachment);
        wired.steps.extend(steps_of_rules(attachment, rules));
        joined?;
        self.lead_host_processes(attachment, &mut wired.steps)
    }

    fn rejoin(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        wired: &mut Wired,
        found: &[Route],
    ) -> Result<(), NodeError> {
        self.redirect(wired, link, self.mode_of(link))?;
        for pod in &attachment.addresses {
            self.host_port.restore_pod(pod, found)?;
            wired.steps.push(Step::Route(pod.clone()));
        }
        self.netlink.set_up(link.index)?;
        wired.steps.push(Step::Up(link.index));
        Ok(())
    }

    /// Undoes what was done to take a pod back, but leaves the program on its
    /// interface.
    pub(super) fn give_up(&mut self, mut wired: Wired) {
        wired.steps.retain(|step| !matches!(step, Step::Program(_)));
        self.undo(wired.steps);
    }

    /// Lets go of an interface that no port is wired to.
    pub(super) fn release(&mut self, link: Option<&Link>, interface: &str) -> Vec<NodeError> {
        let mut steps = vec![Step::Program(interface.to_owned())];
        steps.extend(link.map(|link| Step::Up(link.index)));
        self.undo(steps)
    }

    /// Makes the host agree with the pods that are wired, whose addresses and
    /// mapped ports these are: routes, gateways and pins of others go.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn settle(
        &mut self,
        pods: &HashSet<IpAddr>,
        mapped: &HashSet<HostEnd>,
    ) -> Result<(), NodeError> {
        if let Some(processes) = &mut self.host_processes {
            processes.retain(mapped)?;
        }
        self.host_port.sweep(pods)?;
        // A dead file is in nobody's way.
        if let Err(error) = self.prune() {
            tracing::warn!(%error, "could not clean up");
        }
        Ok(())
    }

    /// Undoes steps, the last first, and goes on after errors.
    pub(super) fn undo(&mut self, steps: Vec<Step>) -> Vec<NodeError> {
        let mut errors = Vec::new();
        let mut stays_up = false;
        for step in steps.into_iter().rev() {
            let is_up = matches!(step, Step::Up(_));
            // The host's stack must not get a frame of the pod unfiltered: the
            // program goes only from an interface that is down.
            if stays_up && matches!(step, Step::Program(_)) {
                continue;
            }
            if let Err(error) = self.undo_step(step) {
                tracing::warn!(%error, "could not undo a step");
                stays_up |= is_up;
                errors.push(error);
            }
        }
        errors
    }

    fn undo_step(&mut self, step: Step) -> Result<(), NodeError> {
        match step {
            Step::Worker(id) => self.fleet.remove(id)?,
            Step::Interface(index) => self.program.clear_port(index)?,
            Step::Socket(slot) => self.program.clear_socket(slot)?,
            Step::Program(interface) => self.program.detach(&interface)?,
            Step::Route(pod) => self.host_port.remove_pod(&pod)?,
            Step::Connections(redirects) => self.forget_connections(&redirects, Stale::There),
            Step::Rules(rules) => self.netfilter.remove(&rules)?,
            Step::HostProcesses(redirects) => {
                if let Some(processes) = &mut self.host_processes {
                    processes.unmap(&redirects)?;
                }
            }
            // The plugin may have deleted it by now.
            Step::Up(index) => match self.netlink.set_down(index) {
                Err(error) if error.errno() == Some(libc::ENODEV) => {}
                result => result?,
            },
        }
        Ok(())
    }

    fn open_host(&mut self) -> Result<(), NodeError> {
        let link = self.host_port.dataplane_end().clone();
        let host = self.open(NewPort {
            id: PortId {
                slot: HOST_SLOT,
                generation: 0,
            },
            kind: PortKind::Host,
            link: &link,
            queue: 0,
            mac: HOST_MAC,
            mtu: link.mtu,
            addresses: Vec::new(),
            gateways: HostPort::next_hops(),
            shapers: Shapers::default(),
            gro: true,
        })?;
        self.host = Some(host);
        Ok(())
    }

    /// Lets the host port's frames come, and brings it up.
    ///
    /// # Errors
    /// The step that failed.
    pub(super) fn start_host(&mut self) -> Result<(), NodeError> {
        let link = self.host_port.dataplane_end().clone();
        if let Some(mut host) = self.host.take() {
            let redirected = self.redirect(&mut host, &link, self.host_port.mode());
            // Down before the program goes: past it the host's stack would get
            // back what it sent to pods, and send it again until its TTL is spent.
            host.steps.push(Step::Up(link.index));
            self.host = Some(host);
            redirected?;
        }
        self.host_port.bring_up()?;
        Ok(())
    }

    /// Lets the uplink's frames for mapped ports come, and takes an earlier
    /// daemon's program off all other interfaces.
    ///
    /// # Errors
    /// The step that failed; those before it are undone.
    pub(super) fn start_uplink(&mut self, device: &uplink::Device) -> Result<(), NodeError> {
        if let Err(error) = self.open_uplink(device) {
            self.close_uplink();
            return Err(error);
        }
        self.leave_uplinks_but(Some(&device.link.name))
    }

    /// Leaves the uplink's frames and all answers by it to the kernel.
    pub(super) fn stop_uplink(&mut self) -> Vec<NodeError> {
        // First: what comes from now on is the kernel's.
        let left = self.leave_uplinks_but(None);
        // No answer finds its port gone.
        let set = self.set_uplink(&Uplink::default());
        let mut errors = self.close_uplink();
        errors.extend([left, set].into_iter().filter_map(Result::err));
        errors
    }

    fn close_uplink(&mut self) -> Vec<NodeError> {
        let queues = std::mem::take(&mut self.uplink).into_iter();
        queues.flat_map(|wired| self.undo(wired.steps)).collect()
    }

    /// Sets what is known of the uplink.
    ///
    /// # Errors
    /// The worker is gone.
    pub(super) fn set_uplink(&self, uplink: &Uplink) -> Result<(), NodeError> {
        Ok(self.fleet.set_uplink(uplink)?)
    }

    /// Takes an earlier daemon's program off uplinks other than this.
    ///
    /// # Errors
    /// It stays attached, and without sockets: it passes everything.
    pub(super) fn leave_uplinks_but(&self, interface: Option<&str>) -> Result<(), NodeError> {
        Ok(self.program.detach_uplinks_but(interface)?)
    }

    fn open_uplink(&mut self, device: &uplink::Device) -> Result<(), NodeError> {
        let link = &device.link;
        let options = UplinkOptions {
            multi_buffer: self.features.multi_buffer,
            queues: device.queues,
            mtu: link.mtu,
        };
        let mut program = UplinkProgram::load(&self.program, options)?;
        for queue in 0..device.queues {
            let wired = self.open(NewPort {
                id: PortId {
                    slot: self.uplink_slot + queue,
                    generation: 0,
                },
                kind: PortKind::Uplink,
                link,
                queue,
                mac: link.mac.unwrap_or_default(),
                mtu: link.mtu,
                addresses: Vec::new(),
                gateways: Vec::new(),
                shapers: Shapers::default(),
                // A device that cannot cut them refuses merged segments.
                gro: false,
            })?;
            let socket = wired.socket.clone();
            self.uplink.push(wired);
            socket
                .with_fd(|fd| program.set_socket(queue, fd))
                .ok_or_else(|| NodeError::SocketGone(link.name.clone()))??;
        }
        // Last: what an earlier daemon's program passes until then, ours takes.
        Ok(program.attach(link, self.uplink_mode(link))?)
    }

    /// Socket and worker, before [`Wiring::redirect`]: the socket's FILL ring
    /// is full before the first frame comes.
    fn open(&mut self, port: NewPort<'_>) -> Result<Wired, NodeError> {
        let device = Device {
            name: &port.link.name,
            index: port.link.index,
            queue: port.queue,
        };
        let share = self.host.as_ref().map(|host| &host.socket);
        let mut xsk = Xsk::open(self.umem, &device, self.features, share)?;
        if let Some(sender) = &self.gso {
            xsk.set_gso(Arc::clone(sender), device.index);
        }
        let socket = xsk.socket();
        let counters = self.fleet.add(PortSpec {
            id: port.id,
            kind: port.kind,
            xsk,
            mac: port.mac,
            mtu: port.mtu,
            addresses: port.addresses,
            gateways: port.gateways,
            shapers: port.shapers,
            gro: port.gro,
        })?;
        Ok(Wired {
            id: port.id,
            index: port.link.index,
            counters,
            socket,
            steps: vec![Step::Worker(port.id)],
        })
    }

    /// Maps, then program: the program knows the port before it sees a frame.
    fn redirect(&mut self, wired: &mut Wired, link: &Link, mode: XdpMode) -> Result<(), NodeError> {
        if link.xdp_mode.is_some_and(|old| old != mode) {
            // Between the two programs there is none.
            self.netlink.set_down(link.index)?;
        }
        let slot = wired.id.slot;
        self.program.set_port(link.index, slot)?;
        wired.steps.push(Step::Interface(link.index));
        let program = &mut self.program;
        wired
            .socket
            .with_fd(|fd| program.set_socket(slot, fd))
            .ok_or_else(|| NodeError::SocketGone(link.name.clone()))??;
        wired.steps.push(Step::Socket(slot));
        self.program.attach(link, mode)?;
        wired.steps.push(Step::Program(link.name.clone()));
        Ok(())
    }

    /// Joins a pod with the host. The program is there before the interface
    /// comes up; that is up before hostPorts lead there: the worker leaves a
    /// port alone for a while that it found down.
    fn join(
        &mut self,
        attachment: &Attachment,
        link: &Link,
        (rules, nft): (PodRules, Option<Nft>),
        steps: &mut Vec<Step>,
    ) -> Result<(), NodeError> {
        for pod in &attachment.addresses {
            self.host_port.add_pod(pod)?;
            steps.push(Step::Route(pod.clone()));
        }
        self.netlink.set_up(link.index)?;
        steps.push(Step::Up(link.index));
        self.netfilter.add(&rules, nft)?;
        steps.extend(steps_of_rules(attachment, rules));
        self.lead_host_processes(attachment, steps)?;
        self.forget_untranslated(attachment.redirects());
        Ok(())
    }

    fn lead_host_processes(
        &mut self,
        attachment: &Attachment,
        steps: &mut Vec<Step>,
    ) -> Result<(), NodeError> {
        let redirects: Vec<Redirect> = attachment.redirects().collect();
        if let Some(processes) = self
            .host_processes
            .as_mut()
            .filter(|_| !redirects.is_empty())
        {
            steps.push(Step::HostProcesses(redirects.clone()));
            processes.map(&redirects)?;
        }
        Ok(())
    }

    /// Whether the host's netfilter has what an attachment's mappings need.
    ///
    /// # Errors
    /// It has not, or does not say.
    pub(super) fn check_rules(&self, attachment: &Attachment) -> Result<(), NodeError> {
        Ok(self.netfilter.check(&PodRules::of(attachment))?)
    }

    /// Puts netfilter's rules back if somebody else touched them. Answers whether
    /// it did.
    ///
    /// # Errors
    /// It is not possible now.
    pub(super) fn mend_rules(&mut self) -> Result<bool, NodeError> {
        let is_mended = self.netfilter.mend()?;
        if is_mended {
            tracing::warn!(
                "somebody changed the nftables table inet {}: put back",
                netfilter::TABLE
            );
        }
        Ok(is_mended)
    }

    /// Follows the node's addresses.
    ///
    /// # Errors
    /// The kernel does not tell them.
    pub(super) fn follow_addresses(&mut self) -> Result<(), NodeError> {
        if let Some(processes) = &mut self.host_processes {
            processes.follow()?;
        }
        Ok(())
    }

    /// Readable when somebody changes the host's netfilter or its addresses.
    pub(super) fn watches(&self) -> Vec<BorrowedFd<'_>> {
        let addresses = self.host_processes.as_ref().map(HostProcesses::watch);
        std::iter::once(self.netfilter.as_fd())
            .chain(addresses)
            .collect()
    }

    /// Removes the pins of interfaces that are gone: dead files.
    fn prune(&self) -> Result<(), NodeError> {
        let links = self.netlink.links()?;
        self.program
            .prune(|name| links.iter().any(|link| link.name == name))?;
        Ok(())
    }
}

/// The rules go before the connections: one of those could come back.
fn steps_of_rules(attachment: &Attachment, rules: PodRules) -> [Step; 2] {
    let redirects = attachment.redirects().collect();
    [Step::Connections(redirects), Step::Rules(rules)]
}

/// Without them a process of the host still reaches pods by the node's addresses
/// (netfilter's output chain), but not by 127.0.0.1 and `::1`. An earlier daemon's
/// programs would lead it by tables that nobody keeps: to pods that are gone.
fn host_processes(bpffs: &Path, netlink: &Rc<Netlink>) -> Option<HostProcesses> {
    HostProcesses::start(bpffs, Rc::clone(netlink))
        .inspect_err(|error| {
            tracing::warn!(
                %error,
                "processes of the host reach hostPorts by the node's addresses only, \
                 not by 127.0.0.1 and ::1"
            );
            if let Err(error) = host_sockets::detach(bpffs) {
                tracing::warn!(
                    %error,
                    "an earlier daemon may lead processes of the host to pods that are gone"
                );
            }
        })
        .ok()
}

/// Chunks of the UMEM for so many pod ports and the host port.
pub(super) fn chunks(max_ports: u16) -> u32 {
    (u32::from(max_ports) + 1) * FILL_DEPTH + IN_FLIGHT_CHUNKS
}

/// A daemon that ends leaves all of it to the next one; only a host port made
/// for a start that failed goes.
impl Drop for Wiring {
    fn drop(&mut self) {
        if self.host_port.is_kept() {
            return;
        }
        if let Some(host) = self.host.take() {
            self.undo(host.steps);
        }
    }
}

/// A port to be wired.
struct NewPort<'a> {
    id: PortId,
    kind: PortKind,
    link: &'a Link,
    queue: u16,
    mac: [u8; 6],
    mtu: u32,
    addresses: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
    shapers: Shapers,
    gro: bool,
}
