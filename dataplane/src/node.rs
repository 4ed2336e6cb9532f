//! The node: what the daemon holds, and what the control socket asks of it.

mod admission;
mod alone;
mod beyond;
mod book;
mod cut_off;
mod host_processes;
mod mapped;
mod merged;
mod restore;
mod routing;
mod rows;
mod shaping;
mod uplink;
mod wiring;

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use serde::Serialize;
use serde_json::Value;
use sluice_control::{
    Attachment, AttachmentId, DataplaneSettings, ErrorCode, NetworkBandwidth, NodeFacts,
    NodeStatus, Refusal, Request, Response,
};
use sluice_link::{LinkError, Netlink};

use crate::forwarding::{self, ForwardingError};
use crate::host_port::{GATEWAY_MAC, HOST_INTERFACE, HostPortError};
use crate::journal::{Journal, JournalError};
use crate::netfilter::NetfilterError;
use crate::port::PortId;
use crate::probe::{self, Feature, ProbeError, Report};
use crate::program::ProgramError;
use crate::run_dir::FolderError;
use crate::worker::WorkerError;
use crate::xsk::{CHUNK_SIZE, GsoError, XskError};

use book::{Book, Entry};
use cut_off::CutOff;
use mapped::Mapped;
use routing::Routing;
use rows::PastDrops;
use wiring::Wiring;

pub use alone::check_alone;
pub use host_processes::HostProcessesError;
pub(crate) use restore::is_pods;

/// Why the node does not serve, or not this pod.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Links, addresses, routes.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The kernel's features.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The XDP program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The host port.
    #[error(transparent)]
    HostPort(#[from] HostPortError),
    /// An AF_XDP socket.
    #[error(transparent)]
    Xsk(#[from] XskError),
    /// The packet socket.
    #[error(transparent)]
    Gso(#[from] GsoError),
    /// The worker.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// hostPorts for processes of the host.
    #[error(transparent)]
    HostProcesses(#[from] HostProcessesError),
    /// The host's netfilter.
    #[error(transparent)]
    Netfilter(#[from] NetfilterError),
    /// The journal of attachments.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal's folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Forwarding.
    #[error(transparent)]
    Forwarding(#[from] ForwardingError),
    /// The UMEM.
    #[error("map {chunks} chunks of 4 KiB: {cause}; lower dataplane.maxPorts")]
    Memory {
        /// Chunks asked for.
        chunks: u32,
        /// What the kernel said.
        cause: std::io::Error,
    },
    /// The doorbell.
    #[error("map the doorbell of the XDP program: {0}")]
    Doorbell(std::io::Error),
    /// Changes to routes, neighbours and links.
    #[error("follow the node's routes and neighbours: {0}")]
    Follow(std::io::Error),
    /// Another daemon serves this namespace.
    #[error(
        "start: another sluiced runs in this network namespace (it has a socket on {}); \
         a node has one; stop it first",
        crate::host_port::DATAPLANE_INTERFACE
    )]
    Running,
    /// The uplink that is asked for.
    #[error(
        "find the uplink: dataplane.uplink is {0}, and there is no such interface; \
         name one that is there, or \"auto\""
    )]
    NoUplink(String),
    /// Somebody deleted the host port: the sockets that share its are dead.
    #[error(
        "the host port {HOST_INTERFACE} is gone: somebody deleted it; restart sluiced, which \
         makes it anew and takes its pods back"
    )]
    NoHostPort,
    /// The worker closed a socket that it was just given.
    #[error("the socket of {0} is closed already")]
    SocketGone(String),
}

/// The running node. Dropping it is the clean exit: all that is in the kernel
/// and in the journal stays for the next daemon. Until then the XDP program
/// drops what pods send: the host's stack must not get it unfiltered.
pub struct Node {
    settings: DataplaneSettings,
    report: Report,
    netlink: Rc<Netlink>,
    wiring: Wiring,
    book: Book,
    mapped: Mapped,
    routing: Routing,
    /// What becomes of the uplink's frames.
    uplink: uplink::State,
    /// The uplink, or why it cannot serve, as last seen.
    found_uplink: Result<uplink::Device, uplink::State>,
    /// The uplink, if it could serve at the start.
    followed_uplink: Option<uplink::Device>,
    journal: Journal,
    cut_off: Vec<CutOff>,
    past_drops: PastDrops,
    bandwidth: Option<NetworkBandwidth>,
}

impl Node {
    /// Probes the kernel, builds everything up to the host port, and takes back
    /// the pods of an earlier daemon, in the calling thread's namespace.
    ///
    /// # Errors
    /// The step that failed; what was made is gone again, and what an earlier
    /// daemon left is still there.
    pub fn start(settings: DataplaneSettings, without: &[Feature]) -> Result<Self, NodeError> {
        let netlink = Rc::new(Netlink::new()?);
        let report = probe::run(&netlink, without)?;
        report.log();
        forwarding::enable()?;
        // Before it is looked at.
        let routing = Routing::follow(Rc::clone(&netlink))?;
        let found_uplink = uplink::find(
            &settings.uplink,
            &netlink.routes()?,
            &netlink.links()?,
            netlink.policy_rule(HOST_INTERFACE)?,
        )?;
        let followed_uplink = found_uplink.as_ref().ok().cloned();
        let queues = followed_uplink.as_ref().map_or(0, |device| device.queues);
        let wiring = Wiring::build(&settings, report.features(), &netlink, queues)?;
        let mut node = Self {
            book: Book::new(settings.max_ports),
            journal: Journal::open(&settings.journal())?,
            cut_off: Vec::new(),
            mapped: Mapped::default(),
            routing,
            uplink: uplink::State::kernel("not yet started"),
            found_uplink,
            followed_uplink,
            past_drops: PastDrops::none(),
            bandwidth: None,
            settings,
            report,
            netlink,
            wiring,
        };
        node.take_back()?;
        node.tell_mapped();
        node.start_uplink();
        node.wiring.keep();
        Ok(node)
    }

    /// Whether the worker still works. A node whose worker is gone can only
    /// be started anew.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.wiring.is_alive()
    }

    /// Whether the host port is still there. To be called now and then: a node
    /// without ([`NodeError::NoHostPort`]) can only be started anew.
    ///
    /// # Errors
    /// It is gone, or the kernel does not say.
    pub fn check_host_port(&self) -> Result<(), NodeError> {
        if self.wiring.has_host_port()? {
            return Ok(());
        }
        Err(NodeError::NoHostPort)
    }

    /// How many pod interfaces are attached.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.book.len()
    }

    /// Does what a client asks.
    pub fn handle(&mut self, request: Request) -> Response {
        let result = match request {
            Request::Describe => self.describe().and_then(|facts| value(&facts)),
            Request::Attach { attachment, netns } => self
                .attach(attachment, netns.as_deref())
                .map(|()| Value::Null),
            Request::Detach { id } => self.detach(&id).map(|()| Value::Null),
            Request::Check { id } => self.check_rules(&id).map(|()| Value::Null),
            Request::Status => self.status().and_then(|status| value(&status)),
            Request::Attachments { network } => value(&self.attachments(network.as_deref())),
            Request::ShowPorts => Ok(rows::ports(
                &self.wiring,
                &self.book,
                self.uplink.interface(),
            )),
            Request::ShowStats => Ok(rows::stats(&self.wiring, &self.book, &self.past_drops)),
            Request::ShowKernel => Ok(rows::kernel(&self.report, &self.uplink)),
            Request::ShowHostPorts => Ok(rows::host_ports(&self.book)),
            Request::ShowSessions { limit } => {
                rows::sessions(&self.wiring, &self.book, self.uplink.interface(), limit)
                    .map_err(|error| failed(&format!("list the sessions: {error}")))
            }
            Request::SetShaping {
                id,
                ingress,
                egress,
            } => self
                .set_shaping(&id, ingress, egress)
                .and_then(|shaping| value(&shaping)),
        };
        match result {
            Ok(value) => Response::Ok(value),
            Err(refusal) => {
                tracing::warn!(%refusal, "refused");
                Response::Error(refusal)
            }
        }
    }

    fn describe(&self) -> Result<NodeFacts, Refusal> {
        let features = self.report.features();
        let (routes, links) = self
            .netlink
            .routes()
            .and_then(|routes| Ok((routes, self.netlink.links()?)))
            .map_err(|error| failed(&format!("find the uplink's MTU: {error}")))?;
        Ok(NodeFacts {
            gateway_mac: GATEWAY_MAC,
            max_mtu: probe::max_mtu(features),
            uplink_mtu: uplink::mtu(&routes, &links),
            checksum_offload: features.tx_metadata,
            tcp_segmentation_offload: features.takes_merged(),
            settings: self.settings.clone(),
            bandwidth: self.bandwidth.clone(),
        })
    }

    /// How full the node is, not counting pods whose interface is gone: an
    /// Attach would take their ports.
    fn status(&mut self) -> Result<NodeStatus, Refusal> {
        self.check_host_port()
            .map_err(|error| failed(&format!("serve this node: {error}")))?;
        let max_ports = self.settings.max_ports;
        if self.book.len() >= usize::from(max_ports) {
            self.forget_all_gone()
                .map_err(|error| failed(&format!("count the free ports: {error}")))?;
        }
        Ok(NodeStatus {
            attached: self.book.len(),
            max_ports,
        })
    }

    /// What is attached to a network, or to any; also what is cut off: GC must
    /// find it.
    fn attachments(&self, network: Option<&str>) -> Vec<&Attachment> {
        let served = self.book.sorted().into_iter();
        let served = served.map(|entry| &entry.attachment);
        let cut_off = self
            .cut_off
            .iter()
            .filter_map(|pod| pod.attachment.as_ref());
        let all = served.chain(cut_off);
        all.filter(|attachment| network.is_none_or(|name| attachment.id.network == name))
            .collect()
    }

    fn attach(&mut self, attachment: Attachment, netns: Option<&Path>) -> Result<(), Refusal> {
        let id = attachment.id.clone();
        // First: from here on messages repeat names as they are.
        attachment.validate().map_err(|error| {
            let id = id.to_string();
            let message = format!("attach {}: {error}", id.escape_default());
            Refusal::new(ErrorCode::Invalid, message)
        })?;
        let name = attachment.to_string();
        let about = |code, message: &str| Refusal::new(code, format!("attach {name}: {message}"));
        self.check_mtu(&attachment)
            .map_err(|message| about(ErrorCode::Invalid, &message))?;
        self.forget_the_gone(&attachment)
            .map_err(|error| about(ErrorCode::Failed, &error.to_string()))?;
        if let Some(known) = self.book.get(&id) {
            return if known.attachment == attachment {
                Ok(())
            } else {
                let message = "it is attached already, with other parameters; detach it first";
                Err(about(ErrorCode::Conflict, message))
            };
        }
        for error in self.release_cut_off(|pod| pod.is(&id)) {
            tracing::warn!(%id, %error, "could not let go of what was cut off");
        }
        self.netlink
            .routes()
            .map_err(|error| error.to_string())
            .and_then(|routes| self.check_rivals(&attachment, &routes))
            .map_err(|message| about(ErrorCode::Conflict, &message))?;
        admission::check_host_ports_are_free(&attachment)
            .map_err(|(code, message)| about(code, &message))?;
        self.check_host_port()
            .map_err(|error| about(ErrorCode::Failed, &error.to_string()))?;
        let link = self
            .host_end(&attachment)
            .map_err(|(code, message)| about(code, &message))?;
        let mut port = self.book.reserve();
        if port.is_none() {
            self.forget_all_gone()
                .map_err(|error| about(ErrorCode::Failed, &error.to_string()))?;
            port = self.book.reserve();
        }
        let Some(port) = port else {
            return Err(about(ErrorCode::Exhausted, &self.is_full()));
        };
        // First the journal: a daemon that dies from here on is followed by one
        // that finds the pod, or its interface gone again.
        let journalled = self.journal.write(&attachment).map_err(NodeError::from);
        let wired = journalled.and_then(|()| self.wiring.add_pod(&attachment, &link, port, netns));
        match wired {
            Ok(wired) => {
                tracing::info!(
                    id = name,
                    slot = port.slot,
                    interface = link.name,
                    limits = attachment
                        .shaping
                        .is_limited()
                        .then(|| tracing::field::display(attachment.limits_in_words())),
                    "attached"
                );
                self.book.insert(Entry { attachment, wired });
                self.tell_mapped();
                Ok(())
            }
            Err(error) => {
                self.book.release(port);
                if let Err(error) = self.journal.remove(&attachment.host_ifname) {
                    tracing::warn!(%id, %error, "could not take back what the journal says");
                }
                Err(about(code(&error), &error.to_string()))
            }
        }
    }

    fn is_full(&self) -> String {
        format!(
            "all {} ports are taken; raise dataplane.maxPorts and restart sluiced",
            self.settings.max_ports
        )
    }

    /// A pod whose interface vanished without DEL holds nothing any more: its
    /// container may come back, and IPAM may have given its address away.
    fn forget_the_gone(&mut self, wanted: &Attachment) -> Result<(), LinkError> {
        while let Some(id) = self.gone_holder(wanted)? {
            tracing::info!(%id, "its interface is gone: detached");
            self.remove(&id);
        }
        if !self.cut_off.is_empty() {
            self.release_gone_cut_off(&self.netlink.links()?);
        }
        Ok(())
    }

    /// The same for every pod: each holds a port. To be called now and then: no
    /// runtime need send a DEL for a pod whose namespace is gone.
    ///
    /// # Errors
    /// The kernel does not list its links.
    pub fn forget_all_gone(&mut self) -> Result<(), LinkError> {
        let links = self.netlink.links()?;
        let is_gone = |entry: &&Entry| links.iter().all(|link| link.index != entry.wired.index);
        let entries = self.book.sorted().into_iter().filter(is_gone);
        let gone: Vec<AttachmentId> = entries.map(|entry| entry.attachment.id.clone()).collect();
        for id in gone {
            tracing::info!(%id, "its interface is gone: detached");
            self.remove(&id);
        }
        self.release_gone_cut_off(&links);
        Ok(())
    }

    fn gone_holder(&self, wanted: &Attachment) -> Result<Option<AttachmentId>, LinkError> {
        for entry in self.book.holders(wanted) {
            let link = self.netlink.link(&entry.attachment.host_ifname)?;
            if link.is_none_or(|link| link.index != entry.wired.index) {
                return Ok(Some(entry.attachment.id.clone()));
            }
        }
        Ok(None)
    }

    /// Whether the kernel still has what an attachment's mappings need.
    fn check_rules(&self, id: &AttachmentId) -> Result<(), Refusal> {
        let about = |message: &str| failed(&format!("check {id}: {message}"));
        let entry = self.book.get(id);
        let entry = entry.ok_or_else(|| about("it is not attached"))?;
        self.wiring.check_rules(&entry.attachment).map_err(|error| {
            about(&format!(
                "the kernel has not the rules of its hostPorts: {error}"
            ))
        })
    }

    /// Tells the worker which ports of the node lead to which pods. To be
    /// called now and then: the node's addresses come and go.
    pub fn tell_mapped(&mut self) {
        let told = self.mapped.tell(&self.book, &self.wiring, &self.netlink);
        if let Err(error) = told {
            tracing::warn!(%error, "hostPorts are served by the kernel only");
        }
    }

    /// Puts the host's netfilter rules back if somebody else touched them. To
    /// be called when one of [`Node::watches`] is readable, and now and then.
    ///
    /// # Errors
    /// It is not possible now; the next call tries again.
    pub fn mend_rules(&mut self) -> Result<(), NodeError> {
        if self.wiring.mend_rules()? {
            self.wiring.forget_untranslated(self.book.redirects());
        }
        Ok(())
    }

    /// Follows the node's addresses, where hostPorts count. To be called when
    /// one of [`Node::watches`] is readable.
    ///
    /// # Errors
    /// The kernel does not tell them; the next change tries again.
    pub fn follow_addresses(&mut self) -> Result<(), NodeError> {
        self.wiring.follow_addresses()
    }

    /// Readable, once for each time, when somebody changes the host's netfilter,
    /// the node's addresses or its network.
    #[must_use]
    pub fn watches(&self) -> Vec<BorrowedFd<'_>> {
        let mut watches = self.wiring.watches();
        watches.push(self.routing.as_fd());
        watches
    }

    fn detach(&mut self, id: &AttachmentId) -> Result<(), Refusal> {
        let errors = self.remove(id);
        if errors.is_empty() {
            return Ok(());
        }
        let errors: Vec<String> = errors.iter().map(NodeError::to_string).collect();
        Err(failed(&format!("detach {id}: {}", errors.join("; "))))
    }

    fn remove(&mut self, id: &AttachmentId) -> Vec<NodeError> {
        let mut errors = self.release_cut_off(|pod| pod.is(id));
        let Some(Entry { attachment, wired }) = self.book.remove(id) else {
            return errors;
        };
        let PortId { slot, .. } = wired.id;
        tracing::info!(id = %attachment, slot, "detached");
        errors.extend(self.wiring.undo(wired.steps));
        self.past_drops.add(&wired.counters);
        let forgotten = self.journal.remove(&attachment.host_ifname);
        errors.extend(forgotten.err().map(NodeError::from));
        self.tell_mapped();
        errors
    }
}

/// The memory that the frames of so many pod ports take, in bytes.
#[must_use]
pub fn memory_bytes(max_ports: u16) -> u64 {
    u64::from(wiring::chunks(max_ports)) * CHUNK_SIZE as u64
}

/// What the kernel takes beside that for each port that is attached, in bytes:
/// every socket has a descriptor of every chunk (`xp_create_and_assign_umem` in
/// net/xdp/xsk_buff_pool.c), of 128 bytes on a 64-bit machine.
#[must_use]
pub fn kernel_bytes_a_port(max_ports: u16) -> u64 {
    u64::from(wiring::chunks(max_ports)) * 128
}

/// Which kind of failure the client sees.
fn code(error: &NodeError) -> ErrorCode {
    match error {
        NodeError::Program(ProgramError::Foreign { .. }) => ErrorCode::Conflict,
        _ => ErrorCode::Failed,
    }
}

fn failed(message: &str) -> Refusal {
    Refusal::new(ErrorCode::Failed, message)
}

fn value(answer: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|error| failed(&format!("write the answer: {error}")))
}

/// The gateways of a pod, each once.
fn gateways(attachment: &Attachment) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = attachment.addresses.iter().map(|pod| pod.gateway).collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}
