//! Binding a thread to the CPUs of `dataplane.cpus`.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZero;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// Why a thread does not run on the CPUs that it was to run on.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// Some of them are not there, or not for this process.
    #[error(
        "dataplane.cpus: CPU {} is not there, or sluiced may not use it; it may use {}",
        list(.unusable), list(.usable)
    )]
    Unusable {
        /// Those that cannot be used.
        unusable: Vec<u16>,
        /// Those that can.
        usable: Vec<u16>,
    },
    /// The kernel refused.
    #[error("dataplane.cpus: ask the kernel for CPUs: {0}")]
    System(#[from] io::Error),
}

/// Lets the calling thread run on these CPUs only.
///
/// # Errors
/// One of them cannot be used, whether others can or not: the kernel itself
/// would quietly leave it out.
pub fn pin(cpus: &[u16]) -> Result<(), CpuError> {
    let usable = usable()?;
    let unusable: Vec<u16> = cpus
        .iter()
        .copied()
        .filter(|cpu| !usable.contains(cpu))
        .collect();
    if !unusable.is_empty() {
        return Err(CpuError::Unusable { unusable, usable });
    }
    set(cpus.iter().copied()).map_err(io::Error::from)?;
    Ok(())
}

/// What is wrong with so many workers on these CPUs, or on any if there are none
/// named: more of the one than of the other.
#[must_use]
pub fn shortage(workers: u16, cpus: &[u16]) -> Option<String> {
    let there = if cpus.is_empty() {
        thread::available_parallelism().map_or(usize::MAX, NonZero::get)
    } else {
        cpus.iter().collect::<BTreeSet<_>>().len()
    };
    (usize::from(workers) > there).then(|| {
        format!(
            "dataplane.workers is {workers}, and there are {there} CPUs for them: they spin in \
             each other's time; lower it, or name more in dataplane.cpus"
        )
    })
}

/// Those that the kernel gives a thread that asks for all: what the affinity of
/// the process leaves out may be asked for, what its cpuset leaves out may not.
fn usable() -> io::Result<Vec<u16>> {
    set(0..count())?;
    let granted = sched_getaffinity(SELF)?;
    Ok((0..count())
        .filter(|cpu| granted.is_set((*cpu).into()) == Ok(true))
        .collect())
}

/// CPUs that a set can hold.
fn count() -> u16 {
    u16::try_from(CpuSet::count()).unwrap_or(u16::MAX)
}

fn set(cpus: impl Iterator<Item = u16>) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu.into())?;
    }
    sched_setaffinity(SELF, &set)
}

/// As the kernel writes it: `0-3,8`.
fn list(cpus: &[u16]) -> String {
    let runs = cpus.chunk_by(|a, b| a + 1 == *b);
    let texts: Vec<String> = runs
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            _ => run.iter().map(u16::to_string).collect(),
        })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_bound_to_a_cpu_that_is_there() {
        let usable = usable().unwrap();
        pin(&usable[..1]).unwrap();
        let bound = sched_getaffinity(SELF).unwrap();
        let bound: Vec<u16> = (0..count())
            .filter(|cpu| bound.is_set((*cpu).into()).unwrap())
            .collect();
        assert_eq!(bound, usable[..1]);
    }

    #[test]
    fn one_that_is_not_there_is_named_and_so_are_the_others() {
        let usable = usable().unwrap();
        let error = pin(&[usable[0], 1023]).unwrap_err().to_string();
        assert!(
            error.contains("CPU 1023 ") && error.ends_with(&list(&usable)),
            "{error}"
        );
    }

    #[test]
    fn more_workers_than_cpus_are_too_many() {
        assert_eq!(shortage(2, &[4, 5]), None);
        assert_eq!(shortage(1, &[]), None);
        let text = shortage(3, &[4, 5, 4]).unwrap();
        assert!(
            text.contains("workers is 3") && text.contains("2 CPUs"),
            "{text}"
        );
        assert!(shortage(u16::MAX, &[]).is_some());
    }

    #[test]
    fn lists_are_the_kernels() {
        assert_eq!(list(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(list(&[1, 3, 4]), "1,3-4");
        assert_eq!(list(&[]), "");
    }
}
