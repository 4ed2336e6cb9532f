//! The program that says how merged TCP segments are cut, on interfaces that send
//! them to the dataplane: the far ends of its veths.

use std::error::Error;
use std::io;
use std::mem;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use sluice_bpf::merged;
use sluice_link::{Link, Netlink, Netns};

use super::ProgramError;
use crate::bpf_error::into_io;
use crate::packet::ethernet;

const _: () = assert!(
    u32::from_be_bytes(merged::MARK) == u32::from_be_bytes(ethernet::MERGED),
    "the program's mark is the one that is read"
);

/// A pod's interface, in its namespace.
#[derive(Debug, Clone, Copy)]
pub struct FarEnd<'a> {
    /// Where the namespace is.
    pub netns: &'a Path,
    /// Its name.
    pub ifname: &'a str,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// The loaded program.
pub struct MergedMark(Ebpf);

impl MergedMark {
    /// Loads the program.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn load() -> Result<Self, ProgramError> {
        let failed = |cause| ProgramError::Load {
            program: merged::PROGRAM,
            cause,
        };
        let mut object = EbpfLoader::new()
            .load(merged::OBJECT)
            .map_err(|error| failed(error.into()))?;
        load(&mut object).map_err(failed)?;
        Ok(Self(object))
    }

    /// Attaches the program to what an interface of the calling thread's namespace
    /// sends (tcx egress, Linux 6.6), for as long as the link is held.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn attach(&mut self, interface: &str) -> Result<FdLink, ProgramError> {
        let last = TcAttachOptions::TcxOrder(LinkOrder::default());
        self.try_attach(interface, last)
            .and_then(|link| link.try_into().map_err(io::Error::other))
            .map_err(|cause| refused(interface.to_owned(), cause))
    }

    /// The same for as long as the interface is there: by a filter of the queueing
    /// discipline `clsact`. That takes no RCU grace period, which ADD would wait for
    /// (`tcx_entry_sync`), 15 ms.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn attach_for_good(&mut self, interface: &str) -> Result<(), ProgramError> {
        tc::qdisc_add_clsact(interface)
            .map_err(|error| io::Error::other(error.to_string()))
            .and_then(|()| {
                self.try_attach(interface, TcAttachOptions::Netlink(NlOptions::default()))
            })
            // Dropped, it would be taken off.
            .map(mem::forget)
            .map_err(|cause| refused(interface.to_owned(), cause))
    }

    /// Attaches the program for good to the far end of `near`, a pod's.
    ///
    /// # Errors
    /// It is not there, or the kernel's reason.
    pub fn attach_beyond(&mut self, near: &Link, far: &FarEnd) -> Result<(), ProgramError> {
        let netns = Netns::open(far.netns)?;
        netns.run(|| {
            // A client is not believed: this one's frames get another address.
            let link = Netlink::new()?.link(far.ifname)?;
            let is_far_end =
                |link: &Link| link.mac == Some(far.mac) && link.over == Some(near.index);
            if link.as_ref().is_some_and(is_far_end) {
                return self.attach_for_good(far.ifname);
            }
            let cause = io::Error::other("it is not the other end of the pod's veth");
            let interface = format!("{} in {}", far.ifname, far.netns.display());
            Err(refused(interface, cause))
        })?
    }

    fn try_attach(
        &mut self,
        interface: &str,
        options: TcAttachOptions,
    ) -> io::Result<SchedClassifierLink> {
        let program: &mut SchedClassifier = self
            .0
            .program_mut(merged::PROGRAM)
            .ok_or_else(|| io::Error::other("the object lost its program"))?
            .try_into()
            .map_err(into_io)?;
        let id = program
            .attach_with_options(interface, TcAttachType::Egress, options)
            .map_err(into_io)?;
        program.take_link(id).map_err(into_io)
    }
}

fn refused(interface: String, cause: io::Error) -> ProgramError {
    ProgramError::Mark { interface, cause }
}

fn load(object: &mut Ebpf) -> Result<(), Box<dyn Error + Send + Sync>> {
    let program: &mut SchedClassifier = object
        .program_mut(merged::PROGRAM)
        .ok_or("the object has no such program")?
        .try_into()?;
    Ok(program.load()?)
}
