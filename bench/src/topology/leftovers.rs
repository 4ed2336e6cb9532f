//! What a run that was killed left behind.

use std::fs;
use std::path::Path;

use super::site::remove_folder;
use super::space::{FOLDER, delete};

/// What everything we make is called, before the process's ID.
pub(super) const PREFIX: &str = "sluice-bench-";

/// Removes namespaces and folders of runs whose process is gone. Their
/// daemons went with them.
pub(crate) fn remove_leftovers() {
    for name in names_in(FOLDER).filter(|name| is_abandoned(name)) {
        delete(&name);
    }
    for name in names_in("/run").filter(|name| is_abandoned(name)) {
        remove_folder(&Path::new("/run").join(name));
    }
}

/// Nothing of a folder that is not there.
fn names_in(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

fn is_abandoned(name: &str) -> bool {
    process_of(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn process_of(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_dead_are_removed() {
        let own = std::process::id();
        // Beyond the largest process ID that a kernel gives.
        let dead = 1 << 23;
        assert!(is_abandoned(&format!("sluice-bench-{dead}-0-node")));
        assert!(!is_abandoned(&format!("sluice-bench-{own}-0-node")));
        for other in ["sluice-t99-0-node", "sluice-bench-", "sluice-bench-x-0"] {
            assert!(!is_abandoned(other), "{other}");
        }
    }
}
