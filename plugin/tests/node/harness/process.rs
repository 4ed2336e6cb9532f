//! What a process holds.

use std::fs;

/// Files and memory of a process at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holdings {
    pub(crate) open_files: usize,
    /// All its memory that is resident, and what of it no file backs.
    pub(crate) resident_kib: u64,
    pub(crate) anonymous_kib: u64,
}

impl Holdings {
    #[track_caller]
    pub(crate) fn of(pid: u32) -> Self {
        let folder = format!("/proc/{pid}");
        let status = fs::read_to_string(format!("{folder}/status")).unwrap();
        let kib = |key: &str| {
            let mut lines = status.lines();
            let value = lines.find_map(|line| line.strip_prefix(key)?.strip_suffix(" kB"));
            value.expect(key).trim().parse().unwrap()
        };
        Self {
            open_files: fs::read_dir(format!("{folder}/fd")).unwrap().count(),
            resident_kib: kib("VmRSS:"),
            anonymous_kib: kib("RssAnon:"),
        }
    }
}
