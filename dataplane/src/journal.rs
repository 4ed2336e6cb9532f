//! The journal: what is attached, for the daemon that comes after this one.
//!
//! One file an attachment, named after the host's end of its veth: the kernel
//! sees to it that no two have one name. A file is written beside its place and
//! renamed, so that whoever reads it, whenever the writer died, finds all of it
//! or nothing. No fsync: the journal outlives the process, not the machine.
//! It lies on a tmpfs (`/run`), and after a reboot there are no pods.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use sluice_control::Attachment;

/// The number of this format. Another daemon's may be another.
const FORMAT: u64 = 1;

/// An attachment's file.
const SUFFIX: &str = ".json";
/// What a writer that died left.
const UNFINISHED: &str = ".new";
/// A file that could not be read.
const SET_ASIDE: &str = ".bad";

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
    /// The file system's reason.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|cause| JournalError::new("create the folder", folder, cause))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// What is attached, by file name. A file that cannot be understood is set
    /// aside under another name, and the log says why.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn load(&self) -> Result<Vec<Attachment>, JournalError> {
        let mut attachments = Vec::new();
        for name in list(&self.folder)? {
            let path = self.folder.join(&name);
            if name.ends_with(UNFINISHED) {
                remove(&path)?;
            } else if let Some(interface) = name.strip_suffix(SUFFIX) {
                match read(&path, interface) {
                    Ok(attachment) => attachments.push(attachment),
                    Err(why) => self.set_aside(&name, &why)?,
                }
            }
        }
        Ok(attachments)
    }

    /// Writes down an attachment, in place of an older one of its interface.
    ///
    /// # Errors
    /// The file system's reason; then nothing is left of it.
    pub fn write(&self, attachment: &Attachment) -> Result<(), JournalError> {
        let path = self.path(&attachment.host_ifname);
        let new = self
            .folder
            .join(format!("{}{UNFINISHED}", attachment.host_ifname));
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

    /// Forgets the attachment of an interface; a success also if there is none.
    ///
    /// # Errors
    /// The file system's reason.
    pub fn remove(&self, host_ifname: &str) -> Result<(), JournalError> {
        remove(&self.path(host_ifname))
    }

    /// Removes the journal in `folder` with all that was set aside. A success
    /// also if there is none.
    ///
    /// # Errors
    /// The file system's reason; files that are not the journal's stay.
    pub fn clear(folder: &Path) -> Result<(), JournalError> {
        if !folder.exists() {
            return Ok(());
        }
        for name in list(folder)? {
            if [SUFFIX, UNFINISHED, SET_ASIDE]
                .iter()
                .any(|end| name.ends_with(end))
            {
                remove(&folder.join(name))?;
            }
        }
        fs::remove_dir(folder).map_err(|cause| JournalError::new("remove", folder, cause))
    }

    /// Attachments keep to the kernel's rule for interface names: no path.
    fn path(&self, host_ifname: &str) -> PathBuf {
        self.folder.join(format!("{host_ifname}{SUFFIX}"))
    }

    /// Whether a file of this interface's was set aside: then it is a pod's,
    /// if not one that this daemon understands.
    #[must_use]
    pub fn was_set_aside(&self, host_ifname: &str) -> bool {
        let name = format!("{host_ifname}{SUFFIX}{SET_ASIDE}");
        self.folder.join(name).exists()
    }

    fn set_aside(&self, name: &str, why: &str) -> Result<(), JournalError> {
        let path = self.folder.join(name);
        let aside = self.folder.join(format!("{name}{SET_ASIDE}"));
        tracing::warn!(
            file = %path.display(),
            "{why}: set aside as {}; recreate this pod",
            aside.display()
        );
        fs::rename(&path, aside).map_err(|cause| JournalError::new("set aside", &path, cause))
    }
}

fn list(folder: &Path) -> Result<Vec<String>, JournalError> {
    let names = || -> io::Result<Vec<String>> {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let mut names = names().map_err(|cause| JournalError::new("list", folder, cause))?;
    names.sort_unstable();
    Ok(names)
}

fn write(path: &Path, attachment: &Attachment) -> io::Result<()> {
    let record = Record {
        format: FORMAT,
        attachment,
    };
    let text = serde_json::to_vec(&record)?;
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&text)
}

/// The attachment of this interface, or why the file does not hold it.
fn read(path: &Path, interface: &str) -> Result<Attachment, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
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
    use sluice_control::{AttachmentId, PodAddress};

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
        }
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(&folder.path().join("attachments")).unwrap();
        (folder, journal)
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
        assert_eq!(journal.load().unwrap(), [attachment(11), changed]);
        for _ in 0..2 {
            journal.remove("slv11").unwrap();
        }
        assert_eq!(journal.load().unwrap().len(), 1);
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
        assert_eq!(journal.load().unwrap(), [attachment(11)]);
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
        fs::write(journal.folder.join("slv27.new"), &good).unwrap();
        assert_eq!(journal.load().unwrap(), [attachment(11)]);
        let left = list(&journal.folder).unwrap();
        let bad = (13..=26).filter(|n| *n == 13 || *n > 20);
        let mut expected = vec!["slv11.json".to_owned()];
        expected.extend(bad.map(|number| format!("slv{number}.json.bad")));
        assert_eq!(left, expected);
        assert_eq!(journal.load().unwrap(), [attachment(11)]);
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
