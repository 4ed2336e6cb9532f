//! The journal's disk is full, or cannot be written to.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::harness::flows::{Echo, Flow, ping};
use crate::harness::{Node, Options, Snapshot};

/// A small file system in the place of the journal's folder.
struct Disk {
    folder: PathBuf,
}

impl Disk {
    fn mount(node: &Node) -> Self {
        let folder = node.run_dir().join("attachments");
        let disk = Self { folder };
        disk.set(MsFlags::empty());
        disk
    }

    fn set(&self, flags: MsFlags) {
        let (kind, data) = (Some("tmpfs"), Some("size=64k,mode=0700"));
        mount(kind, &self.folder, kind, flags, data).unwrap();
    }

    fn filling(&self) -> PathBuf {
        self.folder.join("filling")
    }

    fn fill(&self) {
        let mut file = File::create(self.filling()).unwrap();
        let full = (0..).find_map(|_| file.write_all(&[1; 512]).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::StorageFull);
    }

    fn make_room(&self) {
        fs::remove_file(self.filling()).unwrap();
    }

    fn files(&self) -> usize {
        fs::read_dir(&self.folder).unwrap().count()
    }

    fn forbid_writing(&self) {
        self.set(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    }

    fn allow_writing(&self) {
        self.set(MsFlags::MS_REMOUNT);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.folder, MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.folder.display());
        }
    }
}

/// ADD is refused with these words, and nothing is left of it.
#[track_caller]
fn assert_refused(node: &Node, needles: &[&str]) {
    let before = Snapshot::take(node);
    let ports = node.ports().len();
    let space = node.site.space("refused");
    let answer = node.try_add(&node.pods(), &space, "refused");
    answer.fails(101, &["journal", "dataplane.runDir"]);
    answer.fails(101, needles);
    assert_eq!(space.links(), ["lo"]);
    assert_eq!(node.ports().len(), ports);
    before.assert_unchanged(node);
}

#[test]
fn a_pod_that_cannot_be_written_down_is_not_attached() {
    let mut node = Node::start(&Options::default());
    let disk = Disk::mount(&node);
    let [a, b, c] = ["a", "b", "c"].map(|name| node.add(name));
    let echo = Echo::tcp(&b, b.v4());
    let flow = Flow::tcp(&a, echo.address);

    disk.fill();
    assert_refused(&node, &["No space left", "make room"]);
    c.del();
    disk.fill();
    // Who comes back finds the same disk.
    node.kill();
    node.restart();
    flow.goes_on();
    assert_eq!(node.ports().len(), 3, "a, b and the host port");
    assert_refused(&node, &["No space left", "make room"]);

    disk.make_room();
    let late = node.add("late");
    node.kill();
    node.restart();
    ping(&late, a.v4());
    flow.goes_on();
    flow.stop();
    drop(disk);
    node.finish();
}

/// DEL says so, but takes all other steps; the next daemon takes the last.
#[test]
fn a_pod_that_cannot_be_struck_off_is_detached_nevertheless() {
    let mut node = Node::start(&Options::default());
    let disk = Disk::mount(&node);
    let before = Snapshot::take(&node);
    let [a, b] = ["a", "b"].map(|name| node.add(name));

    disk.forbid_writing();
    assert_refused(&node, &["Read-only file system", "may write to"]);
    node.try_del(&node.pods(), &b, "b")
        .fails(101, &["journal", "Read-only file system"]);
    assert_eq!(b.links(), ["lo"]);
    assert_eq!(node.ports().len(), 2, "a and the host port");
    b.detach();
    ping(node.space(), a.v4());

    disk.allow_writing();
    assert_eq!(disk.files(), 2, "b's file is still there");
    assert!(node.stop().success());
    node.restart();
    assert_eq!(disk.files(), 1);
    ping(node.space(), a.v4());
    a.del();
    before.assert_unchanged(&node);
    drop(disk);
    node.finish();
}
