//! The journal: what is attached, for the daemon that comes after this one.
//!
//! One file an attachment, named after the host's end of its veth: the kernel
//! sees to it that no two have one name. A file is written beside its place and
//! renamed, so that whoever reads it, whenever the writer died, finds all of it
//! or nothing. No fsync: the journal outlives the process, not the machine.
//! It lies on a tmpfs (`/run`), and after a reboot there are no pods.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use sluice_control::Attachment;

use crate::run_dir::{FolderError, make_private};
use crate::server::MAX_REQUEST_BYTES;

/// The number of this format. Another daemon's may be another.
const FORMAT: u64 = 1;

/// An attachment's file.
const SUFFIX: &str = ".json";
/// What a writer that died left.
const UNFINISHED: &str = ".new";
/// A file that could not be understood.
const SET_ASIDE: &str = ".json.bad";

/// No attachment takes so much: it came in a request of half of it at most.
const MAX_BYTES: u64 = 2 * MAX_REQUEST_BYTES as u64;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("journal: {operation} {}: {cause}{advice}", path.display())]
pub struct JournalError {
    operation: &'static str,
    path: PathBuf,
    cause: io::Error,
    advice: &'static str,
}

impl JournalError {
    fn new(operation: &'static str, path: &Path, cause: io::Error) -> Self {
        let advice = match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                "; make room in the file system of dataplane.runDir"
            }
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                "; dataplane.runDir must be a folder that sluiced may write to"
            }
            _ => "",
        };
        Self {
            operation,
            path: path.to_owned(),
            cause,
            advice,
        }
    }
}

/// The folder of journal files.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
}

/// What the journal says.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What is attached, by interface.
    pub attachments: Vec<Attachment>,
    /// Interfaces of whose pods it says nothing that this daemon understands.
    pub set_aside: BTreeSet<String>,
}

/// What a file holds.
#[derive(Serialize)]
struct Record<'a> {
    format: u64,
    attachment: &'a Attachment,
}

impl Journal {
    /// The journal in `folder`, which is made if it is not there.
    ///
    /// # Errors
    /// Others may write to the folder, or the file system refuses.
    pub fn open(folder: &Path) -> Result<Self, FolderError> {
        make_private(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// What is attached. A file that cannot be understood is set aside under
    /// another name, and the log says why. One that was set aside is tried
    /// again: a newer daemon may have written it, and this one be as new.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn load(&self) -> Result<Loaded, JournalError> {
        for interface in self.interfaces(SET_ASIDE)? {
            self.try_again(&interface);
        }
        let mut set_aside: BTreeSet<String> = self.interfaces(SET_ASIDE)?.into_iter().collect();
        let mut attachments = Vec::new();
        for interface in self.interfaces(SUFFIX)? {
            match read(&self.path(&interface), &interface) {
                Ok(attachment) => {
                    set_aside.remove(&interface);
                    attachments.push(attachment);
                }
                Err(why) => {
                    self.set_aside(&interface, &why);
                    set_aside.insert(interface);
                }
            }
        }
        for interface in self.interfaces(UNFINISHED)? {
            warn(remove(&self.named(&interface, UNFINISHED)));
        }
        Ok(Loaded {
            attachments,
            set_aside,
        })
    }

    /// Removes what was set aside for interfaces that are gone.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn prune(&self, exists: impl Fn(&str) -> bool) -> Result<(), JournalError> {
        for interface in self.interfaces(SET_ASIDE)? {
            if !exists(&interface) {
                warn(remove(&self.named(&interface, SET_ASIDE)));
            }
        }
        Ok(())
    }

    /// Writes down an attachment, in place of an older one of its interface.
    ///
    /// # Errors
    /// The file system's reason; then nothing is left of it.
    pub fn write(&self, attachment: &Attachment) -> Result<(), JournalError> {
        let path = self.path(&attachment.host_ifname);
        let new = self.named(&attachment.host_ifname, UNFINISHED);
        remove(&new)?;
        write(&new, attachment)
            .map_err(|cause| JournalError::new("write", &new, cause))
            .and_then(|()| {
                fs::rename(&new, &path).map_err(|cause| JournalError::new("make", &path, cause))
            })
            .inspect_err(|_| {
                // If it was made at all. The error says more than this one's.
                let _ = remove(&new);
            })
    }

    /// Forgets the attachment of an interface, and what was set aside for it;
    /// a success also if there is none.
    ///
    /// # Errors
    /// The file system's reason.
    pub fn remove(&self, host_ifname: &str) -> Result<(), JournalError> {
        let removed = remove(&self.path(host_ifname));
        remove(&self.named(host_ifname, SET_ASIDE))?;
        removed
    }

    /// Removes the journal in `folder` with all that was set aside. A success
    /// also if there is none.
    ///
    /// # Errors
    /// The first of the file system's reasons, after all was tried; files that
    /// are not the journal's stay.
    pub fn clear(folder: &Path) -> Result<(), JournalError> {
        if !folder.exists() {
            return Ok(());
        }
        let journal = Self {
            folder: folder.to_owned(),
        };
        let mut outcome = Ok(());
        for suffix in [SUFFIX, UNFINISHED, SET_ASIDE] {
            for interface in journal.interfaces(suffix)? {
                outcome = outcome.and(remove(&journal.named(&interface, suffix)));
            }
        }
        outcome?;
        fs::remove_dir(folder).map_err(|cause| JournalError::new("remove", folder, cause))
    }

    /// The interfaces that have a file with this suffix, sorted.
    fn interfaces(&self, suffix: &str) -> Result<Vec<String>, JournalError> {
        let names =
            list(&self.folder).map_err(|cause| JournalError::new("list", &self.folder, cause))?;
        let interfaces = names.iter().filter_map(|name| name.strip_suffix(suffix));
        Ok(interfaces.map(str::to_owned).collect())
    }

    /// Attachments keep to the kernel's rule for interface names: no path.
    fn named(&self, interface: &str, suffix: &str) -> PathBuf {
        self.folder.join(format!("{interface}{suffix}"))
    }

    fn path(&self, interface: &str) -> PathBuf {
        self.named(interface, SUFFIX)
    }

    /// What cannot be renamed is left: the next start tries again.
    fn set_aside(&self, interface: &str, why: &str) {
        let (path, aside) = (self.path(interface), self.named(interface, SET_ASIDE));
        tracing::warn!(
            file = %path.display(),
            "{why}: set aside as {}; recreate this pod",
            aside.display()
        );
        let renamed = fs::rename(&path, aside);
        warn(renamed.map_err(|cause| JournalError::new("set aside", &path, cause)));
    }

    fn try_again(&self, interface: &str) {
        let (path, aside) = (self.path(interface), self.named(interface, SET_ASIDE));
        if fs::symlink_metadata(&path).is_err() && read(&aside, interface).is_ok() {
            tracing::info!(file = %aside.display(), "was set aside, and is understood now");
            let renamed = fs::rename(&aside, path);
            warn(renamed.map_err(|cause| JournalError::new("take back", &aside, cause)));
        }
    }
}

/// The names in a folder, sorted; ours are all UTF-8.
fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn write(path: &Path, attachment: &Attachment) -> io::Result<()> {
    let record = Record {
        format: FORMAT,
        attachment,
    };
    let text = serde_json::to_vec(&record)?;
    // Made anew: what lies there may be a link to somewhere else.
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&text)
}

/// The attachment of this interface, or why the file does not hold it.
fn read(path: &Path, interface: &str) -> Result<Attachment, String> {
    let text = read_bytes(path).map_err(|error| error.to_string())?;
    let mut record: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if record["format"] != FORMAT {
        let format = &record["format"];
        return Err(format!(
            "its format is {format}, and this sluiced knows {FORMAT}"
        ));
    }
    let attachment: Attachment =
        serde_json::from_value(record["attachment"].take()).map_err(|error| error.to_string())?;
    attachment.validate().map_err(|error| error.to_string())?;
    if attachment.host_ifname == interface {
        return Ok(attachment);
    }
    Err(format!("it is about {}", attachment.host_ifname))
}

/// Reads a plain file of reasonable size. Anything else that lies there, such
/// as a FIFO, must not hold up the start.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_BYTES} bytes"
        )));
    }
    Ok(text)
}

fn warn(result: Result<(), JournalError>) {
    if let Err(error) = result {
        tracing::warn!(%error);
    }
}

fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
            Err(JournalError::new("remove", path, cause))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::fs::Permissions;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use sluice_control::{AttachmentId, PodAddress, Shaping};

    fn attachment(number: u8) -> Attachment {
        Attachment {
            id: AttachmentId {
                network: "pods".into(),
                container_id: format!("c{number}"),
                ifname: "eth0".into(),
            },
            host_ifname: format!("slv{number}"),
            pod_mac: [2, 0, 0, 0, 0, number],
            addresses: vec![PodAddress {
                address: format!("10.77.0.{number}/24").parse().unwrap(),
                gateway: "10.77.0.1".parse().unwrap(),
            }],
            mtu: 1500,
            ip_masq: true,
            pod: None,
            mappings: Vec::new(),
            snat: true,
            masq_all: false,
            uplink_mtu: None,
            shaping: Shaping::default(),
            reshaped: false,
            gro: true,
        }
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("attachments")).unwrap();
        (folder, journal)
    }

    fn attachments(journal: &Journal) -> Vec<Attachment> {
        journal.load().unwrap().attachments
    }

    fn set_aside(journal: &Journal) -> Vec<String> {
        journal.load().unwrap().set_aside.into_iter().collect()
    }

    #[test]
    fn what_was_written_is_read_until_it_is_removed() {
        let (_folder, journal) = journal();
        for number in [11, 12] {
            journal.write(&attachment(number)).unwrap();
        }
        let mut changed = attachment(12);
        changed.mtu = 9000;
        journal.write(&changed).unwrap();
        assert_eq!(attachments(&journal), [attachment(11), changed]);
        for _ in 0..2 {
            journal.remove("slv11").unwrap();
        }
        assert_eq!(attachments(&journal).len(), 1);
        assert_eq!(list(&journal.folder).unwrap(), ["slv12.json"]);
    }

    /// The format of files that a running daemon's successor must read.
    #[test]
    fn the_format_never_changes_under_its_number() {
        let (_folder, journal) = journal();
        let text = r#"{"format": 1, "attachment": {
            "id": {"network": "pods", "container_id": "c11", "ifname": "eth0"},
            "host_ifname": "slv11", "pod_mac": [2, 0, 0, 0, 0, 11],
            "addresses": [{"address": "10.77.0.11/24", "gateway": "10.77.0.1"}],
            "mtu": 1500, "ip_masq": true}}"#;
        fs::write(journal.path("slv11"), text).unwrap();
        assert_eq!(attachments(&journal), [attachment(11)]);
    }

    #[test]
    fn what_cannot_be_understood_is_set_aside_and_the_rest_loads() {
        let (_folder, journal) = journal();
        journal.write(&attachment(11)).unwrap();
        journal.write(&attachment(12)).unwrap();
        fs::rename(journal.path("slv12"), journal.path("slv13")).unwrap();
        let good = fs::read_to_string(journal.path("slv11")).unwrap();
        for (name, text) in [
            ("slv21", ""),
            ("slv22", &good[..good.len() / 2]),
            ("slv23", &good.replace(r#""format":1"#, r#""format":2"#)),
            ("slv24", &good.replace("10.77.0.11", "224.0.0.1")),
            ("slv25", "[]"),
        ] {
            fs::write(journal.path(name), text).unwrap();
        }
        fs::create_dir(journal.path("slv26")).unwrap();
        mkfifo(&journal.path("slv27"), Mode::S_IRWXU).unwrap();
        symlink(journal.path("slv11"), journal.path("slv28")).unwrap();
        let sparse = File::create(journal.path("slv29")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        fs::write(journal.folder.join("slv30.new"), &good).unwrap();
        // A name in the way, and names that are not ours.
        fs::create_dir_all(journal.folder.join("slv21.json.bad/full")).unwrap();
        fs::create_dir(journal.folder.join("slv31.new")).unwrap();
        let foreign = journal.folder.join(OsStr::from_bytes(b"\xff\xfe.json"));
        fs::write(&foreign, "").unwrap();
        for _ in 0..2 {
            let Loaded {
                attachments,
                set_aside,
            } = journal.load().unwrap();
            assert_eq!(attachments, [attachment(11)]);
            let bad = (13..=29).filter(|n| *n == 13 || *n > 20);
            assert_eq!(set_aside, bad.map(|n| format!("slv{n}")).collect());
            assert!(!journal.folder.join("slv30.new").exists());
            assert!(foreign.exists());
        }
    }

    #[test]
    fn what_was_set_aside_comes_back_when_it_is_understood() {
        let (_folder, journal) = journal();
        journal.write(&attachment(11)).unwrap();
        let good = fs::read_to_string(journal.path("slv11")).unwrap();
        let newer = good.replace(r#""format":1"#, r#""format":2"#);
        fs::write(journal.path("slv11"), &newer).unwrap();
        let aside = journal.folder.join("slv11.json.bad");
        assert_eq!(set_aside(&journal), ["slv11"]);
        assert_eq!(fs::read_to_string(&aside).unwrap(), newer);
        fs::write(&aside, &good).unwrap();
        assert_eq!(attachments(&journal), [attachment(11)]);
        assert_eq!(list(&journal.folder).unwrap(), ["slv11.json"]);
        // What was attached since counts more.
        fs::write(&aside, good.replace("1500", "9000")).unwrap();
        assert_eq!(set_aside(&journal), [""; 0]);
        assert_eq!(attachments(&journal), [attachment(11)]);
        journal.remove("slv11").unwrap();
        assert_eq!(list(&journal.folder).unwrap(), [""; 0]);
    }

    #[test]
    fn what_was_set_aside_goes_with_its_interface() {
        let (_folder, journal) = journal();
        for name in ["slv11.json.bad", "slv12.json.bad", "slv13.json"] {
            fs::write(journal.folder.join(name), "").unwrap();
        }
        journal.prune(|interface| interface == "slv12").unwrap();
        let left = list(&journal.folder).unwrap();
        assert_eq!(left, ["slv12.json.bad", "slv13.json"]);
    }

    /// Whoever could put a link there must not have us write elsewhere.
    #[test]
    fn a_link_in_the_place_of_a_file_is_replaced() {
        let (folder, journal) = journal();
        let precious = folder.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        for name in ["slv11.json", "slv11.new"] {
            symlink(&precious, journal.folder.join(name)).unwrap();
        }
        journal.write(&attachment(11)).unwrap();
        assert_eq!(attachments(&journal), [attachment(11)]);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_no_journal() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o770)).unwrap();
        let error = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("nobody else may write"), "{error}");
    }

    #[test]
    fn clearing_leaves_what_is_not_the_journals() {
        let (_folder, journal) = journal();
        journal.write(&attachment(11)).unwrap();
        fs::write(journal.folder.join("slv12.json.bad"), "").unwrap();
        let note = journal.folder.join("note");
        fs::write(&note, "").unwrap();
        let error = Journal::clear(&journal.folder).unwrap_err().to_string();
        assert!(error.contains("attachments"), "{error}");
        assert_eq!(list(&journal.folder).unwrap(), ["note"]);
        fs::remove_file(note).unwrap();
        for _ in 0..2 {
            Journal::clear(&journal.folder).unwrap();
        }
        assert!(!journal.folder.exists());
    }
}
