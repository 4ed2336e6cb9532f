//! The XDP programs in the kernel: loading, maps, attachments and their pins.
//! The ports' is here, the uplink's in [`uplink`].
//!
//! Every attachment is a `bpf_link` pinned in a bpf file system of our own, so
//! that the program stays on its interface when the daemon dies: a pod's
//! frames never reach the host's stack unfiltered. What our pin says is ours;
//! any other program is foreign and left alone.

mod code;
mod mark;
mod pins;
mod uplink;

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use aya::EbpfLoader;
use aya::maps::{self, Array, MapData, MapError, XskMap};

use sluice_bpf::merged;
use sluice_link::{Link, LinkError, XdpMode};

use crate::bpf_error::absent_is_fine;
use crate::run_dir::FolderError;
use code::Code;
use pins::Pins;

pub use mark::{FarEnd, MergedMark};
pub use uplink::{UplinkOptions, UplinkProgram};

/// The action for frames of a port without a socket (`enum xdp_action`).
const XDP_DROP: u32 = 1;

/// How the program is loaded.
#[derive(Debug, Clone)]
pub struct ProgramOptions {
    /// Take frames of several buffers (needs Linux 6.6).
    pub multi_buffer: bool,
    /// Slots of the maps, the host port's included.
    pub slots: u16,
    /// Where our bpf file system is, or is to be mounted.
    pub bpffs: PathBuf,
}

/// Why the program could not be loaded, attached or taken off.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The folder of the bpf file system: who could put pins there could have
    /// us believe that they are ours.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The bpf file system or a pin in it.
    #[error("{operation} {}: {cause}", path.display())]
    Pins {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The kernel refused the object's maps or the program.
    #[error(
        "load the BPF program {program}: {cause}; it needs Linux 5.12, CAP_BPF and CAP_NET_ADMIN"
    )]
    Load {
        /// Which program.
        program: &'static str,
        /// What aya or the verifier said.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// Somebody else's program is on the interface. It stays.
    #[error(
        "attach the XDP program to {interface}: another XDP program is attached there \
         and is left alone; find its id and owner (`ip -details link show {interface}`, \
         `bpftool net`) and let that remove it"
    )]
    Foreign {
        /// The interface.
        interface: String,
    },
    /// The program on the host port is pinned elsewhere.
    #[error(
        "start on this node: the XDP program on {interface} is none of those pinned in {}. \
         Was dataplane.runDir changed? Set it to what it was, and its pods are taken back; or \
         remove them and all else by `sluiced reset --run-dir` with that folder. Nothing was \
         changed",
        bpffs.display()
    )]
    Elsewhere {
        /// The interface.
        interface: String,
        /// Our bpf file system.
        bpffs: PathBuf,
    },
    /// The kernel refused the attachment.
    #[error("attach the XDP program to {interface}: {cause}{hint}")]
    Attach {
        /// The interface.
        interface: String,
        /// What the kernel said.
        cause: io::Error,
        /// What to do, if known.
        hint: &'static str,
    },
    /// The kernel refused the program that marks merged segments.
    #[error(
        "attach the program {} to what {interface} sends: {cause}",
        merged::PROGRAM
    )]
    Mark {
        /// The interface.
        interface: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// The pod's end of a veth, or its namespace.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An entry of a map.
    #[error("{operation} {key} in the BPF map {map}: {cause}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// The entry.
        key: u32,
        /// The map.
        map: &'static str,
        /// What the kernel said.
        cause: MapError,
    },
}

/// The loaded program with its maps and attachments. Dropping it unloads the
/// program, except where a pin holds it, and unmounts a file system without pins.
pub struct PortProgram {
    code: Code,
    ports: maps::HashMap<MapData, u32, u32>,
    sockets: XskMap<MapData>,
    doorbell: MapData,
    pins: Rc<Pins>,
}

impl PortProgram {
    /// Mounts the bpf file system and loads the program.
    ///
    /// # Errors
    /// The mount or the load, with the kernel's reason.
    pub fn load(options: &ProgramOptions) -> Result<Self, ProgramError> {
        let pins = Rc::new(Pins::open(&options.bpffs)?);
        let mut code = load_code(options.multi_buffer, options.slots)?;
        let ports = code.take(sluice_bpf::PORTS)?;
        let sockets = code.take(sluice_bpf::SOCKETS)?;
        let maps::Map::Array(doorbell) = code.take(sluice_bpf::DOORBELL)? else {
            return Err(code.error("the map doorbell is not an array"));
        };
        Ok(Self {
            ports: ports
                .try_into()
                .map_err(|error: MapError| code.error(error))?,
            sockets: sockets
                .try_into()
                .map_err(|error: MapError| code.error(error))?,
            doorbell,
            pins,
            code,
        })
    }

    /// The doorbell map, for the worker to map into its memory.
    #[must_use]
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.fd().as_fd()
    }

    /// Attaches the program to an interface and pins the attachment. Where a
    /// dead daemon's program is still attached in this mode, ours takes its place
    /// at once: not a frame passes between the two.
    ///
    /// `link` is the interface as the kernel has it now: a pin of its name may
    /// hold the attachment to another, which was renamed.
    ///
    /// # Errors
    /// A foreign program is there, the kernel refuses, or the pin fails; then
    /// nothing is attached but what was.
    pub fn attach(&mut self, link: &Link, mode: XdpMode) -> Result<(), ProgramError> {
        self.code.attach(&self.pins.ports, link, mode)
    }

    /// Whether the program on an interface, if there is one, is pinned here: an
    /// earlier daemon's with this folder, and not one's with another.
    ///
    /// # Errors
    /// The pin cannot be opened.
    pub fn is_own(&self, link: &Link) -> Result<bool, ProgramError> {
        Ok(link.xdp_program.is_none() || self.pins.ports.is_on(link)?)
    }

    /// Refuses an interface with a program that is pinned elsewhere, or nowhere.
    ///
    /// # Errors
    /// It has one, or the pin cannot be opened.
    pub fn check_own(&self, link: &Link) -> Result<(), ProgramError> {
        if self.is_own(link)? {
            return Ok(());
        }
        Err(ProgramError::Elsewhere {
            interface: link.name.clone(),
            bpffs: self.pins.root().to_owned(),
        })
    }

    /// Takes the program off an interface; does nothing where it is not on.
    ///
    /// # Errors
    /// The pin could not be removed: the program stays attached.
    pub fn detach(&mut self, interface: &str) -> Result<(), ProgramError> {
        self.pins.ports.remove(interface)
    }

    /// Lets the program find the slot of an interface's port.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn set_port(&mut self, index: u32, slot: u16) -> Result<(), ProgramError> {
        self.ports
            .insert(index, u32::from(slot), 0)
            .map_err(|cause| ProgramError::Map {
                operation: "set the port of interface",
                key: index,
                map: sluice_bpf::PORTS,
                cause,
            })
    }

    /// Forgets an interface; a success also if it is not known.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn clear_port(&mut self, index: u32) -> Result<(), ProgramError> {
        absent_is_fine(self.ports.remove(&index)).map_err(|cause| ProgramError::Map {
            operation: "clear the port of interface",
            key: index,
            map: sluice_bpf::PORTS,
            cause,
        })
    }

    /// Gives the frames of a slot to a socket.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn set_socket(&mut self, slot: u16, socket: RawFd) -> Result<(), ProgramError> {
        let key = u32::from(slot);
        self.sockets
            .set(key, socket, 0)
            .map_err(|cause| ProgramError::Map {
                operation: "set the socket of slot",
                key,
                map: sluice_bpf::SOCKETS,
                cause,
            })
    }

    /// Takes the socket of a slot out; a success also if there is none.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn clear_socket(&mut self, slot: u16) -> Result<(), ProgramError> {
        let key = u32::from(slot);
        absent_is_fine(self.sockets.unset(key)).map_err(|cause| ProgramError::Map {
            operation: "clear the socket of slot",
            key,
            map: sluice_bpf::SOCKETS,
            cause,
        })
    }

    /// Removes the pins of interfaces that do not exist any more: dead files.
    ///
    /// # Errors
    /// The file system's reason.
    pub fn prune(&self, exists: impl Fn(&str) -> bool) -> Result<(), ProgramError> {
        self.pins.ports.prune(exists)
    }
}

/// Removes every pin below `bpffs`, and the file system with them. A success
/// also if there is none.
///
/// # Errors
/// The file system's reason.
pub fn remove_pins(bpffs: &Path) -> Result<(), ProgramError> {
    Pins::clear(bpffs)
}

/// Whether the kernel takes the program on this interface in this mode: loads it
/// with tiny maps, attaches it, and takes both away again.
///
/// # Errors
/// Why not.
pub fn try_attach(
    multi_buffer: bool,
    mode: XdpMode,
    interface: &str,
    index: u32,
) -> Result<(), ProgramError> {
    load_code(multi_buffer, 1)?.attach_unpinned(interface, index, mode)?;
    Ok(())
}

fn load_code(multi_buffer: bool, slots: u16) -> Result<Code, ProgramError> {
    let program = if multi_buffer {
        sluice_bpf::PROGRAM_FRAGS
    } else {
        sluice_bpf::PROGRAM_SINGLE
    };
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(sluice_bpf::PORTS, slots.into())
        .map_max_entries(sluice_bpf::SOCKETS, slots.into())
        .map_max_entries(sluice_bpf::DOORBELL, sluice_bpf::doorbell_words(slots));
    let mut code = Code::load(program, sluice_bpf::OBJECT, &mut loader)?;
    let action = code.take(sluice_bpf::NO_SOCKET_ACTION)?;
    Array::<_, u32>::try_from(action)
        .and_then(|mut action| action.set(0, XDP_DROP, 0))
        .map_err(|error| code.error(error))?;
    Ok(code)
}
