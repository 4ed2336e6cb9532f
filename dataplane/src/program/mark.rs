//! The program that says how merged TCP segments are cut, on interfaces that send
//! them to the dataplane: the far ends of its veths.

use std::error::Error;
use std::io;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use sluice_bpf::merged;
use sluice_link::{Link, Netlink, Netns};

use super::ProgramError;
use crate::bpf_error::into_io;

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
    /// sends (tcx egress, Linux 6.6), after other programs, for as long as the link
    /// is held.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn attach(&mut self, interface: &str) -> Result<FdLink, ProgramError> {
        self.try_attach(interface)
            .map_err(|cause| ProgramError::Mark {
                interface: interface.to_owned(),
                cause,
            })
    }

    /// Attaches the program to the far end of `near`, a pod's.
    ///
    /// # Errors
    /// It is not there, or the kernel's reason.
    pub fn attach_beyond(&mut self, near: &Link, far: &FarEnd) -> Result<FdLink, ProgramError> {
        let netns = Netns::open(far.netns)?;
        netns.run(|| {
            // A client is not believed: this one's frames get another address.
            let link = Netlink::new()?.link(far.ifname)?;
            let is_far_end =
                |link: &Link| link.mac == Some(far.mac) && link.over == Some(near.index);
            if !link.as_ref().is_some_and(is_far_end) {
                return Err(ProgramError::Mark {
                    interface: format!("{} in {}", far.ifname, far.netns.display()),
                    cause: io::Error::other("it is not the other end of the pod's veth"),
                });
            }
            self.attach(far.ifname)
        })?
    }

    fn try_attach(&mut self, interface: &str) -> io::Result<FdLink> {
        let program: &mut SchedClassifier = self
            .0
            .program_mut(merged::PROGRAM)
            .ok_or_else(|| io::Error::other("the object lost its program"))?
            .try_into()
            .map_err(into_io)?;
        let last = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(interface, TcAttachType::Egress, last)
            .map_err(into_io)?;
        let link = program.take_link(id).map_err(into_io)?;
        link.try_into().map_err(io::Error::other)
    }
}

fn load(object: &mut Ebpf) -> Result<(), Box<dyn Error + Send + Sync>> {
    let program: &mut SchedClassifier = object
        .program_mut(merged::PROGRAM)
        .ok_or("the object has no such program")?
        .try_into()?;
    Ok(program.load()?)
}
