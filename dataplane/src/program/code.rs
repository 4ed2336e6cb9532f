//! One XDP program of a loaded object, and its attachments.

use std::error::Error;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps;
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{self, Xdp};
use aya::{Ebpf, EbpfLoader};
use sluice_link::{Link, XdpMode};

use super::ProgramError;
use super::pins::{Links, is_on};
use crate::bpf_error::into_io;

/// A link whose pin was just removed goes away a little later, on a kernel
/// worker (`bpf_link_put` in kernel/bpf/syscall.c). Until then its interface
/// is busy.
const LINK_GOES_AWAY: Duration = Duration::from_millis(200);

/// One program of the loaded object.
pub(super) struct Code {
    object: Ebpf,
    program: &'static str,
}

impl Code {
    /// Loads `program` of `object`, with maps as `loader` makes them.
    pub(super) fn load(
        program: &'static str,
        object: &[u8],
        loader: &mut EbpfLoader<'_>,
    ) -> Result<Self, ProgramError> {
        load_object(program, object, loader)
            .map(|object| Self { object, program })
            .map_err(|cause| ProgramError::Load { program, cause })
    }

    pub(super) fn error(&self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> ProgramError {
        ProgramError::Load {
            program: self.program,
            cause: cause.into(),
        }
    }

    pub(super) fn take(&mut self, map: &str) -> Result<maps::Map, ProgramError> {
        self.object
            .take_map(map)
            .ok_or_else(|| self.error(format!("the object has no map {map}")))
    }

    /// Attaches the program to an interface and pins the attachment. Where a
    /// dead daemon's program is still attached in this mode, ours takes its place
    /// at once: not a frame passes between the two.
    pub(super) fn attach(
        &mut self,
        links: &Links,
        link: &Link,
        mode: XdpMode,
    ) -> Result<(), ProgramError> {
        let interface = &link.name;
        if let Some(pin) = links.get(interface)? {
            if is_on(&pin, link) && link.xdp_mode == Some(mode) {
                return match self.take_over(pin) {
                    Ok(_) => Ok(()),
                    // The dead daemon's program stays.
                    Err(cause) => Err(refused(interface, cause)),
                };
            }
            links.remove(interface)?;
        }
        let pin = self.attach_unpinned(interface, link.index, mode)?;
        links.add(interface, pin)
    }

    /// Attaches the program for as long as the link is held.
    pub(super) fn attach_unpinned(
        &mut self,
        interface: &str,
        index: u32,
        mode: XdpMode,
    ) -> Result<FdLink, ProgramError> {
        let give_up = Instant::now() + LINK_GOES_AWAY;
        loop {
            let cause = match self.try_attach(index, mode) {
                Ok(link) => return Ok(link),
                Err(cause) => cause,
            };
            if !is_taken(&cause) {
                return Err(refused(interface, cause));
            }
            if Instant::now() > give_up {
                let interface = interface.to_owned();
                return Err(ProgramError::Foreign { interface });
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn try_attach(&mut self, index: u32, mode: XdpMode) -> io::Result<FdLink> {
        let program = self.xdp()?;
        // No fallback from one to the other: other frames come.
        let mode = match mode {
            XdpMode::Driver => programs::XdpMode::Driver,
            XdpMode::Stack => programs::XdpMode::Skb,
        };
        let id = program.attach_to_if_index(index, mode).map_err(into_io)?;
        let link = program.take_link(id).map_err(into_io)?;
        link.try_into().map_err(io::Error::other)
    }

    /// Replaces the program of an attached link by this one.
    fn take_over(&mut self, link: FdLink) -> io::Result<FdLink> {
        let link = XdpLink::try_from(link).map_err(io::Error::other)?;
        let program = self.xdp()?;
        let id = program.attach_to_link(link).map_err(into_io)?;
        let link = program.take_link(id).map_err(into_io)?;
        link.try_into().map_err(io::Error::other)
    }

    fn xdp(&mut self) -> io::Result<&mut Xdp> {
        self.object
            .program_mut(self.program)
            .ok_or_else(|| io::Error::other("the object lost its program"))?
            .try_into()
            .map_err(into_io)
    }
}

fn load_object(
    program: &str,
    object: &[u8],
    loader: &mut EbpfLoader<'_>,
) -> Result<Ebpf, Box<dyn Error + Send + Sync>> {
    let mut object = loader.load(object)?;
    let xdp: &mut Xdp = object
        .program_mut(program)
        .ok_or("the object has no such program")?
        .try_into()?;
    xdp.load()?;
    Ok(object)
}

/// EBUSY: a link or a netlink attachment is there. EEXIST: one in another mode
/// (`dev_xdp_attach` in net/core/dev.c).
fn is_taken(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

fn refused(interface: &str, cause: io::Error) -> ProgramError {
    ProgramError::Attach {
        interface: interface.to_owned(),
        hint: attach_hint(&cause),
        cause,
    }
}

/// `veth_xdp_set` in drivers/net/veth.c.
fn attach_hint(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::ENOSPC) => {
            "; the veth's other end has more TX queues than this one has RX queues: \
             create both with one"
        }
        Some(libc::ERANGE) => {
            "; the MTU of the veth's other end is too large for a program without multi-buffer"
        }
        Some(libc::EOPNOTSUPP) => "; the interface's driver has no native XDP: is it a veth?",
        _ => "",
    }
}
