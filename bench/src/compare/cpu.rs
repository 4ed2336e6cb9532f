//! CPU time: of the machine and of a process.

use std::fs;
use std::io;

use nix::sys::time::TimeValLike;
use nix::time::ClockId;
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::topology::TopologyError;

/// CPU time that all of the machine has spent on anything, seconds: user,
/// nice, system, irq and softirq of `/proc/stat`. Softirqs are where a veth's
/// packets are handled, in the name of whoever runs. The kernel counts ticks of
/// 10 ms.
///
/// # Errors
/// `/proc` is not as expected.
pub(crate) fn busy_seconds() -> Result<f64, TopologyError> {
    let file = "/proc/stat";
    let failed = |error| TopologyError::refused("read", file, error);
    let text = fs::read_to_string(file).map_err(failed)?;
    let ticks = busy_ticks(&text).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    #[expect(clippy::cast_precision_loss, reason = "ticks are below 2^53")]
    Ok(ticks as f64 / rate as f64)
}

/// The first line is `cpu user nice system idle iowait irq softirq ...`.
fn busy_ticks(text: &str) -> Option<u64> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = fields
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

/// CPU time of a process, nanoseconds, by the scheduler's own clock: ticks are
/// too coarse for a process at rest.
///
/// # Errors
/// The process is gone.
pub(crate) fn process_nanoseconds(pid: Pid) -> Result<u64, TopologyError> {
    let time = ClockId::pid_cpu_clock_id(pid)
        .and_then(ClockId::now)
        .map_err(|errno| TopologyError::refused("read the CPU clock of", pid.to_string(), errno))?;
    #[expect(clippy::cast_sign_loss, reason = "CPU time is never negative")]
    Ok(time.num_nanoseconds() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let text = "cpu  1 2 4 1000 2000 8 16 4000 0 0\ncpu0 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(text), Some(31));
        assert_eq!(busy_ticks("cpu  1 2 3\n"), None);
        assert_eq!(busy_ticks(""), None);
    }

    #[test]
    fn work_shows() {
        let own = Pid::this();
        let before = process_nanoseconds(own).unwrap();
        let mut sum = 0_u64;
        while process_nanoseconds(own).unwrap() < before + 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
    }

    #[test]
    fn nobody_has_no_clock() {
        // Above the largest pid_max.
        let refused = process_nanoseconds(Pid::from_raw(1 << 22)).unwrap_err();
        assert!(refused.to_string().contains("4194304"), "{refused}");
    }
}
