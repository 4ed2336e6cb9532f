//! Network namespaces.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::LinkError;

/// An open network namespace. It stays alive while this is held, also when
/// its file is unmounted and its last process is gone.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
    /// Device and inode of the nsfs file: the namespace's identity.
    identity: (u64, u64),
}

impl Netns {
    /// Opens the namespace at `path`: a bind mount such as `/run/netns/NAME`,
    /// or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a network namespace.
    pub fn open(path: &Path) -> Result<Self, LinkError> {
        let refused = |cause| {
            LinkError::refused(
                "open the network namespace",
                path.display().to_string(),
                cause,
            )
        };
        // Without O_NONBLOCK a FIFO at this path would hang the caller.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(refused)?;
        let metadata = file.metadata().map_err(refused)?;
        let netns = Self {
            file,
            path: path.to_owned(),
            identity: (metadata.dev(), metadata.ino()),
        };
        // The kernel tells what the file is before it asks for privileges
        // (setns in kernel/nsproxy.c); those are for `run` to report.
        match netns.run(|| ()) {
            Err(error) if error.errno() == Some(libc::EINVAL) => {
                Err(LinkError::NotANetns { path: netns.path })
            }
            _ => Ok(netns),
        }
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted, or not readable.
    pub fn current() -> Result<Self, LinkError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether both are the same namespace, whatever paths led there.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Runs `job` inside the namespace, on a thread of its own that ends with
    /// the job: the calling thread stays where it is. A panic of the job goes
    /// on in the caller.
    ///
    /// # Errors
    /// The thread could not be started or could not enter the namespace; the
    /// job has then not run.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, LinkError> {
        let refused = |cause| {
            LinkError::refused(
                "enter the network namespace",
                self.path.display().to_string(),
                cause,
            )
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)
                        .map_err(|errno| refused(errno.into()))?;
                    Ok(job())
                })
                .map_err(refused)?;
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_is_itself() {
        let (a, b) = (Netns::current().unwrap(), Netns::current().unwrap());
        assert!(a.is_same(&b));
    }

    #[test]
    fn other_files_are_refused_by_name() {
        for path in ["/proc/self/ns/mnt", "/etc/passwd", "/dev/null", "/tmp"] {
            let error = Netns::open(Path::new(path)).unwrap_err();
            assert!(matches!(&error, LinkError::NotANetns { .. }), "{error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_missing_file_says_so() {
        let error = Netns::open(Path::new("/nonexistent/netns")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }
}
