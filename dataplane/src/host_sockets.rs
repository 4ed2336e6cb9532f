//! hostPorts for processes of the host: BPF programs on the root of cgroup v2
//! change the address that a socket of the host's network namespace connects or
//! sends to. For these processes it is the only way to 127.0.0.1 and ::1.
//!
//! The programs are pinned like the tables that they look into: they go on
//! without a daemon, and the next one puts its own in their place. Which socket
//! talks to which pod is in those tables, too.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use nix::sys::socket::sockopt::GetStruct;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use sluice_bpf::connect;

use crate::bpf_error::into_io;
use crate::mapping_tables;

/// Names a socket's network namespace, for as long as the machine runs.
#[derive(Clone, Copy)]
struct NetnsCookie;

nix::getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    GetStruct<u64>
);

/// Why processes of the host reach no hostPort by way of their sockets.
#[derive(Debug, thiserror::Error)]
pub enum HostSocketsError {
    /// The programs have nothing to be attached to.
    #[error(
        "find the root of cgroup v2 in /proc/self/mountinfo: {0}; mount it \
         (`mount -t cgroup2 none /sys/fs/cgroup/unified`)"
    )]
    NoCgroup(io::Error),
    /// The kernel does not tell the namespace's cookie.
    #[error("ask for the network namespace's cookie (SO_NETNS_COOKIE, Linux 5.14): {0}")]
    Cookie(Errno),
    /// A pin.
    #[error("{operation} {}: {cause}", path.display())]
    Pin {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The kernel refused the object's maps or a program.
    #[error("load the BPF programs for the host's sockets: {0}")]
    Load(Box<dyn Error + Send + Sync>),
    /// The kernel refused an attachment.
    #[error("attach the BPF program {program} to the cgroup {}: {cause}{hint}", cgroup.display())]
    Attach {
        /// Which one.
        program: &'static str,
        /// To what.
        cgroup: PathBuf,
        /// What aya or the kernel said.
        cause: io::Error,
        /// What to do, if known.
        hint: &'static str,
    },
}

/// Attaches the programs for sockets of the calling thread's network namespace,
/// beside the tables ([`MappingTables`]) in the bpf file system mounted at
/// `bpffs`, and pins them. They go on when the daemon ends.
///
/// # Errors
/// The step that failed. Programs of an earlier daemon are still attached then.
///
/// [`MappingTables`]: crate::mapping_tables::MappingTables
pub fn attach(bpffs: &Path) -> Result<(), HostSocketsError> {
    let cgroup = cgroup_root()?;
    let folder = mapping_tables::folder(bpffs);
    let mut object = EbpfLoader::new()
        .default_map_pin_directory(&folder)
        .override_global(connect::NETNS_COOKIE, &netns_cookie()?, true)
        .load(connect::OBJECT)
        .map_err(|error| HostSocketsError::Load(error.into()))?;
    for program in connect::PROGRAMS {
        let link = attach_program(&mut object, program, &cgroup)?;
        replace_pin(&folder.join(program), link)?;
    }
    Ok(())
}

/// Takes off what [`attach`] attached, by this daemon or an earlier one. A
/// success also if there is nothing.
///
/// # Errors
/// The first pin that could not be removed, after all were tried.
pub fn detach(bpffs: &Path) -> Result<(), HostSocketsError> {
    let folder = mapping_tables::folder(bpffs);
    let pins = connect::PROGRAMS.map(|program| folder.join(program));
    pins.iter()
        .map(|pin| remove_pin(pin))
        .fold(Ok(()), Result::and)
}

/// Where the root of cgroup v2 is mounted (`/proc/self/mountinfo`, proc(5)).
fn cgroup_root() -> Result<PathBuf, HostSocketsError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(HostSocketsError::NoCgroup)?;
    find_cgroup_root(&mounts).ok_or_else(|| {
        HostSocketsError::NoCgroup(io::Error::new(
            io::ErrorKind::NotFound,
            "none is mounted there",
        ))
    })
}

fn find_cgroup_root(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        // A mount of a part of it would not see the sockets of the rest.
        let is_whole = fields.next()? == "/";
        let mount_point = fields.next()?;
        let is_v2 = file_system.split(' ').next()? == "cgroup2";
        (is_whole && is_v2).then(|| PathBuf::from(unescape(mount_point)))
    })
}

/// White space and backslashes are octal there.
fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(field.to_owned(), |text, (code, character)| {
        text.replace(code, character)
    })
}

fn netns_cookie() -> Result<u64, HostSocketsError> {
    let any = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    any.and_then(|any| getsockopt(&any, NetnsCookie))
        .map_err(HostSocketsError::Cookie)
}

fn attach_program(
    object: &mut Ebpf,
    name: &'static str,
    cgroup: &Path,
) -> Result<FdLink, HostSocketsError> {
    let program = object.program_mut(name).ok_or_else(|| {
        HostSocketsError::Load(format!("the object has no program {name}").into())
    })?;
    let program: &mut CgroupSockAddr = program
        .try_into()
        .map_err(|error: aya::programs::ProgramError| HostSocketsError::Load(error.into()))?;
    program
        .load()
        .map_err(|error| HostSocketsError::Load(error.into()))?;
    let refused = |cause: io::Error| HostSocketsError::Attach {
        program: name,
        cgroup: cgroup.to_owned(),
        hint: match cause.raw_os_error() {
            Some(libc::EPERM) => {
                "; somebody holds this cgroup's programs exclusively (`bpftool cgroup tree`)"
            }
            _ => "",
        },
        cause,
    };
    let root = File::open(cgroup).map_err(refused)?;
    // Without a flag, which links do not take: they always join the programs of
    // others (cgroup_bpf_link_attach in kernel/bpf/cgroup.c).
    let id = program
        .attach(root, CgroupAttachMode::Single)
        .map_err(|error| refused(into_io(error)))?;
    let link = program
        .take_link(id)
        .map_err(|error| refused(into_io(error)))?;
    link.try_into()
        .map_err(|error| refused(io::Error::other(error)))
}

/// The earlier daemon's program, which knows the same tables, goes only now: no
/// socket meets none, and one that meets both is changed once.
fn replace_pin(path: &Path, link: FdLink) -> Result<(), HostSocketsError> {
    remove_pin(path)?;
    link.pin(path)
        .map(drop)
        .map_err(|cause| pin_error("pin an attachment at", path, io::Error::other(cause)))
}

/// A success also if there is none.
fn remove_pin(path: &Path) -> Result<(), HostSocketsError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(pin_error("remove the pin", path, cause))
        }
        _ => Ok(()),
    }
}

fn pin_error(operation: &'static str, path: &Path, cause: io::Error) -> HostSocketsError {
    HostSocketsError::Pin {
        operation,
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_cgroup2_is_found_among_other_mounts() {
        let mounts = "\
            22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            30 22 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            31 22 0:27 /kubepods /part rw - cgroup2 cgroup2 rw\n\
            32 22 0:27 / /sys/fs/my\\040cgroup rw,nosuid shared:9 master:1 - cgroup2 none rw\n";
        let found = find_cgroup_root(mounts);
        assert_eq!(found, Some("/sys/fs/my cgroup".into()));
        assert_eq!(
            find_cgroup_root("22 27 0:20 / /sys rw - sysfs sysfs rw\n"),
            None
        );
    }
}
