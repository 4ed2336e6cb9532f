//! The daemon's folder: nobody else may write to it, and one daemon has it.

use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// The file in the daemon's folder that is locked.
const LOCK: &str = "sluiced.lock";

/// Others than the owner may write.
const OTHERS_WRITE: u32 = 0o022;
/// In a sticky folder nobody may rename or delete what is another's.
const STICKY: u32 = 0o1000;

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A live daemon has it.
    #[error("use the folder {}: another sluiced runs with it; stop it first", .0.display())]
    Running(PathBuf),
    /// Others could write to it, and so forge what is in it.
    #[error(
        "use the folder {}: it must be a folder of the user that runs sluiced, no symbolic link, \
         and nobody else may write to it (chown, chmod go-w)", .0.display()
    )]
    Unsafe(PathBuf),
    /// Others could put another folder in its place.
    #[error(
        "use the folder {}: whoever may write to {}, on the way to it, may put another in its \
         place; name one in dataplane.runDir that only root can move, such as /run/sluice",
        folder.display(), on_the_way.display()
    )]
    Movable {
        /// The folder.
        folder: PathBuf,
        /// The one that others may write to.
        on_the_way: PathBuf,
    },
    /// A system call failed.
    #[error("{operation} {}: {cause}", path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
}

/// The daemon's folder, locked as long as this lives. The lock goes with the
/// process, whatever its end.
#[derive(Debug)]
pub struct RunDirLock {
    _file: File,
    folder: PathBuf,
}

impl RunDirLock {
    /// Locks a folder; makes it if it is not there.
    ///
    /// # Errors
    /// A live daemon has it, or others may write to it or replace it.
    pub fn take(folder: &Path) -> Result<Self, FolderError> {
        make_private(folder)?;
        check_way(folder)?;
        // Not the folder itself: whoever may open a file may lock it.
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(folder.join(LOCK))
            .map_err(failed("make the lock file in", folder))?;
        match file.try_lock() {
            Ok(()) => Ok(Self {
                _file: file,
                folder: folder.to_owned(),
            }),
            Err(TryLockError::WouldBlock) => Err(FolderError::Running(folder.to_owned())),
            Err(TryLockError::Error(cause)) => Err(failed("lock", folder)(cause)),
        }
    }

    /// Removes the lock's file, and the folder if nothing else is in it.
    /// Answers what went wrong.
    #[must_use]
    pub fn remove(self) -> Option<String> {
        let file = self.folder.join(LOCK);
        if let Err(error) = fs::remove_file(&file) {
            return Some(format!("remove {}: {error}", file.display()));
        }
        match fs::remove_dir(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Some(format!("remove {}: {error}", self.folder.display()))
            }
            _ => None,
        }
    }
}

/// Makes a folder that only its owner can look into, or takes the one that is
/// there if nobody else may write to it.
///
/// # Errors
/// Others may write to it, it is no folder, or the file system refuses.
pub fn make_private(folder: &Path) -> Result<(), FolderError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("create the folder", folder))?;
    let found = look_at(folder)?;
    if found.is_dir() && found.uid() == own_uid() && found.mode() & OTHERS_WRITE == 0 {
        return Ok(());
    }
    Err(FolderError::Unsafe(folder.to_owned()))
}

/// Nobody else may rename a folder that is on the way to this one, as it is
/// named and as symbolic links resolve it.
fn check_way(folder: &Path) -> Result<(), FolderError> {
    let real = folder.canonicalize().map_err(failed("resolve", folder))?;
    let ways = folder.ancestors().skip(1).chain(real.ancestors().skip(1));
    for on_the_way in ways {
        let found = look_at(on_the_way)?;
        let is_trusted = [0, own_uid()].contains(&found.uid());
        if !is_trusted || others_may_rename_in(&found) {
            return Err(FolderError::Movable {
                folder: folder.to_owned(),
                on_the_way: on_the_way.to_owned(),
            });
        }
    }
    Ok(())
}

/// The mode of a symbolic link says nothing.
fn others_may_rename_in(found: &Metadata) -> bool {
    found.is_dir() && found.mode() & OTHERS_WRITE != 0 && found.mode() & STICKY == 0
}

fn look_at(path: &Path) -> Result<Metadata, FolderError> {
    fs::symlink_metadata(path).map_err(failed("look at", path))
}

fn own_uid() -> u32 {
    Uid::effective().as_raw()
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |cause| FolderError::System {
        operation,
        path,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_is_made_private_and_has_one_holder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        let lock = RunDirLock::take(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        let error = RunDirLock::take(&folder).unwrap_err();
        assert!(matches!(error, FolderError::Running(_)), "{error}");
        drop(lock);
        assert_eq!(RunDirLock::take(&folder).unwrap().remove(), None);
        assert!(!folder.exists());
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("run");
        fs::create_dir(&folder).unwrap();
        for (mode, is_safe) in [
            (0o755, true),
            (0o775, false),
            (0o757, false),
            (0o1777, false),
        ] {
            set_mode(&folder, mode);
            match RunDirLock::take(&folder) {
                Ok(_) => assert!(is_safe, "{mode:o}"),
                Err(error) => {
                    assert!(
                        !is_safe && matches!(error, FolderError::Unsafe(_)),
                        "{mode:o}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_folder_that_others_may_replace_is_refused() {
        let outer = tempfile::tempdir().unwrap();
        let shared = outer.path().join("shared");
        let folder = shared.join("run");
        fs::create_dir(&shared).unwrap();
        for (mode, is_safe) in [
            (0o777, false),
            (0o1777, true),
            (0o775, false),
            (0o755, true),
        ] {
            set_mode(&shared, mode);
            match RunDirLock::take(&folder) {
                Ok(_) => assert!(is_safe, "{mode:o}"),
                Err(error) => {
                    let text = error.to_string();
                    assert!(
                        !is_safe && text.contains("dataplane.runDir"),
                        "{mode:o}: {text}"
                    );
                }
            }
        }
        // Nor by a way around it.
        set_mode(&shared, 0o777);
        let detour = outer.path().join("detour");
        symlink(&shared, &detour).unwrap();
        let error = RunDirLock::take(&detour.join("run")).unwrap_err();
        assert!(matches!(error, FolderError::Movable { .. }), "{error}");
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let (precious, folder) = (parent.path().join("precious"), parent.path().join("run"));
        fs::create_dir(&precious).unwrap();
        symlink(&precious, &folder).unwrap();
        let error = RunDirLock::take(&folder).unwrap_err();
        assert!(matches!(error, FolderError::Unsafe(_)), "{error}");
        fs::remove_file(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        symlink(precious.join("target"), folder.join(LOCK)).unwrap();
        assert!(RunDirLock::take(&folder).is_err());
        assert_eq!(fs::read_dir(&precious).unwrap().count(), 0);
        // And nobody is waited for.
        fs::remove_file(folder.join(LOCK)).unwrap();
        mkfifo(&folder.join(LOCK), Mode::S_IRWXU).unwrap();
        assert!(RunDirLock::take(&folder).is_err());
    }
}
