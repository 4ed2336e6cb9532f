//! Our bpf file system: `links/<interface>` is the pin of a port's attachment,
//! `uplinks/<interface>` of the uplink's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use sluice_link::Link;

use super::ProgramError;
use crate::run_dir::make_private;

/// The bpf file system, mounted for as long as there are pins.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    pub(super) ports: Links,
    pub(super) uplinks: Links,
}

/// A folder of pins. An attachment lives as long as its file.
#[derive(Debug)]
pub(super) struct Links(PathBuf);

impl Pins {
    /// Mounts a bpf file system at `root`, unless there is one.
    pub(super) fn open(root: &Path) -> Result<Self, ProgramError> {
        make_private(root)?;
        let kind = statfs(root).map_err(|errno| failed("look at", root, errno.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("bpf"), root, Some("bpf"), flags, Some("mode=0700"))
                .map_err(|errno| failed("mount a bpf file system at", root, errno.into()))?;
        }
        Ok(Self {
            root: root.to_owned(),
            ports: Links::make(root.join("links"))?,
            uplinks: Links::make(root.join("uplinks"))?,
        })
    }

    /// Where the file system is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes all pins of a file system that may not be there.
    pub(super) fn clear(root: &Path) -> Result<(), ProgramError> {
        let kind = match statfs(root) {
            Err(Errno::ENOENT) => return Ok(()),
            kind => kind.map_err(|errno| failed("look at", root, errno.into()))?,
        };
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return fs::remove_dir(root).map_err(|cause| failed("remove", root, cause));
        }
        let pins = Self::open(root)?;
        // What cannot be removed is reported; dropping unmounts the rest.
        let ports = pins.ports.prune(|_| false);
        pins.uplinks.prune(|_| false).and(ports)
    }

    /// Unmounts the file system if no pin is left.
    fn close(&self) -> Result<(), ProgramError> {
        let Self {
            root,
            ports,
            uplinks,
        } = self;
        if !ports.close()? || !uplinks.close()? {
            return Ok(());
        }
        umount(root).map_err(|errno| failed("unmount", root, errno.into()))?;
        fs::remove_dir(root).map_err(|cause| failed("remove", root, cause))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "could not clean up");
        }
    }
}

impl Links {
    fn make(path: PathBuf) -> Result<Self, ProgramError> {
        make_private(&path)?;
        Ok(Self(path))
    }

    pub(super) fn get(&self, interface: &str) -> Result<Option<FdLink>, ProgramError> {
        let path = self.0.join(interface);
        match PinnedLink::from_pin(&path) {
            Ok(link) => Ok(Some(link.into())),
            Err(LinkError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            Err(cause) => Err(failed("open the pin", &path, io::Error::other(cause))),
        }
    }

    /// Whether what is pinned here put the program on the interface.
    pub(super) fn is_on(&self, link: &Link) -> Result<bool, ProgramError> {
        Ok(self.get(&link.name)?.is_some_and(|pin| is_on(&pin, link)))
    }

    pub(super) fn add(&self, interface: &str, link: FdLink) -> Result<(), ProgramError> {
        let path = self.0.join(interface);
        link.pin(&path)
            .map(drop)
            .map_err(|cause| failed("pin the XDP attachment at", &path, io::Error::other(cause)))
    }

    /// A success also if there is no such pin.
    pub(super) fn remove(&self, interface: &str) -> Result<(), ProgramError> {
        let path = self.0.join(interface);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove the pin", &path, cause))
            }
            _ => Ok(()),
        }
    }

    /// Goes on after a failure, and answers the first.
    pub(super) fn prune(&self, exists: impl Fn(&str) -> bool) -> Result<(), ProgramError> {
        let list = fs::read_dir(&self.0);
        let mut outcome = Ok(());
        for entry in list.map_err(|cause| failed("list", &self.0, cause))? {
            let name = entry
                .map_err(|cause| failed("list", &self.0, cause))?
                .file_name();
            let name = name.to_string_lossy();
            if !exists(&name) {
                outcome = outcome.and(self.remove(&name));
            }
        }
        outcome
    }

    /// Removes the folder; false if a pin is left.
    fn close(&self) -> Result<bool, ProgramError> {
        match fs::remove_dir(&self.0) {
            Err(cause) if cause.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            other => other
                .map(|()| true)
                .map_err(|cause| failed("remove", &self.0, cause)),
        }
    }
}

/// Whether it is this attachment that put the program on the interface: the
/// kernel tells both's program, and aya not the attachment's interface.
pub(super) fn is_on(pin: &FdLink, link: &Link) -> bool {
    let attached = pin.info().ok().map(|info| info.program_id());
    attached.is_some() && attached == link.xdp_program
}

fn failed(operation: &'static str, path: &Path, cause: io::Error) -> ProgramError {
    ProgramError::Pins {
        operation,
        path: path.to_owned(),
        cause,
    }
}
