//! The uplink's XDP program: what comes for a mapped port of the node goes to
//! the socket of its RX queue, all else to the kernel. Without a socket, as
//! when the daemon has died, everything goes to the kernel.

use std::os::fd::RawFd;
use std::rc::Rc;

use aya::EbpfLoader;
use aya::maps::{MapData, MapError, XskMap};
use sluice_bpf::uplink;
use sluice_link::{Link, XdpMode};

use super::code::Code;
use super::pins::Pins;
use super::{PortProgram, ProgramError};
use crate::mapping_tables;

/// How the uplink's program is loaded.
#[derive(Debug, Clone, Copy)]
pub struct UplinkOptions {
    /// Take frames of several buffers (needs Linux 6.6).
    pub multi_buffer: bool,
    /// RX queues that may get a socket.
    pub queues: u16,
    /// The link's MTU, bytes of IP packet.
    pub mtu: u32,
}

/// Ethernet's header with a VLAN tag.
const LINK_HEADER: u32 = 18;

/// The uplink's program with its sockets and attachment.
pub struct UplinkProgram {
    code: Code,
    queues: XskMap<MapData>,
    pins: Rc<Pins>,
}

impl UplinkProgram {
    /// Loads the program, with pins where `ports` has its own. The tables of
    /// mapped ports ([`mapping_tables::MappingTables`]) must be there.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn load(ports: &PortProgram, options: UplinkOptions) -> Result<Self, ProgramError> {
        let program = if options.multi_buffer {
            uplink::PROGRAM_FRAGS
        } else {
            uplink::PROGRAM_SINGLE
        };
        let pins = Rc::clone(&ports.pins);
        let longest_frame = options.mtu.saturating_add(LINK_HEADER);
        let mut loader = EbpfLoader::new();
        loader
            .override_global(uplink::LONGEST_FRAME, &longest_frame, true)
            .default_map_pin_directory(mapping_tables::folder(pins.root()))
            .map_max_entries(uplink::QUEUES, options.queues.into());
        let mut code = Code::load(program, uplink::OBJECT, &mut loader)?;
        let queues = code
            .take(uplink::QUEUES)?
            .try_into()
            .map_err(|error: MapError| code.error(error))?;
        Ok(Self { code, queues, pins })
    }

    /// Attaches the program to an interface and pins the attachment, as
    /// [`PortProgram::attach`] does.
    ///
    /// # Errors
    /// A foreign program is there, the kernel refuses, or the pin fails; then
    /// nothing is attached but what was.
    pub fn attach(&mut self, link: &Link, mode: XdpMode) -> Result<(), ProgramError> {
        self.code.attach(&self.pins.uplinks, link, mode)
    }

    /// Gives what comes for mapped ports by an RX queue to a socket.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn set_socket(&mut self, queue: u16, socket: RawFd) -> Result<(), ProgramError> {
        let key = u32::from(queue);
        self.queues
            .set(key, socket, 0)
            .map_err(|cause| ProgramError::Map {
                operation: "set the socket of queue",
                key,
                map: uplink::QUEUES,
                cause,
            })
    }
}

impl PortProgram {
    /// Takes the uplink's program, an earlier daemon's too, off all interfaces
    /// but this one.
    ///
    /// # Errors
    /// A pin could not be removed: the program stays attached.
    pub fn detach_uplinks_but(&self, interface: Option<&str>) -> Result<(), ProgramError> {
        self.pins.uplinks.prune(|name| Some(name) == interface)
    }
}
