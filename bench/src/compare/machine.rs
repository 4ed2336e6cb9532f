//! What a run is recorded with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::report::Setup;
use crate::topology::Tools;

/// The machine as it is now; `minutes` and the second load are still to come.
pub(crate) fn setup(tools: &Tools, cpus: [usize; 2]) -> Setup {
    Setup {
        quick: false,
        pairs: 0,
        seconds: 0.0,
        cpus,
        date: output("date", &["-u", "+%F %T UTC"]),
        commit: commit(&tools.binaries),
        kernel: read("/proc/sys/kernel/osrelease"),
        cpu: cpu_model(&read("/proc/cpuinfo")),
        cpu_count: std::thread::available_parallelism().map_or(0, usize::from),
        load: [load(), String::new()],
        minutes: 0.0,
        versions: versions(tools),
    }
}

/// The load averages of 1, 5 and 15 minutes.
pub(crate) fn load() -> String {
    let text = read("/proc/loadavg");
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The commit that the binaries lie in the build folder of.
fn commit(binaries: &Path) -> String {
    let folder = binaries.to_string_lossy();
    let words = ["-C", &folder, "describe", "--always", "--dirty"];
    let described = Command::new("git").args(words).output();
    let described = described.ok().filter(|output| output.status.success());
    described.map_or(UNKNOWN.into(), |output| {
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    })
}

fn cpu_model(cpuinfo: &str) -> String {
    let mut lines = cpuinfo.lines();
    let model = lines.find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches(['\t', ' ', ':']));
    model.unwrap_or(std::env::consts::ARCH).to_owned()
}

fn versions(tools: &Tools) -> BTreeMap<String, String> {
    let bridge = tools.cni_path.join("bridge").to_string_lossy().into_owned();
    let all = [
        (
            "sluiced",
            output(
                &tools.binaries.join("sluiced").to_string_lossy(),
                &["--version"],
            ),
        ),
        ("reference plugins", output(&bridge, &[])),
        (
            "their package",
            output("dpkg-query", &["-W", "containernetworking-plugins"]),
        ),
        ("iptables", output("iptables", &["--version"])),
        (
            "Open vSwitch",
            output("/usr/sbin/ovs-vswitchd", &["--version"]),
        ),
        (
            "bridge-nf-call-iptables",
            read("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        ),
    ];
    all.map(|(what, version)| (what.to_owned(), version)).into()
}

const UNKNOWN: &str = "not there";

fn read(file: &str) -> String {
    fs::read_to_string(file).map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

/// The first line that a program prints.
fn output(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    // The reference plugins say what they are on stderr.
    let said = output.map(|output| [output.stdout, output.stderr].concat());
    let said = said.map(|said| String::from_utf8_lossy(&said).into_owned());
    let first = said
        .ok()
        .and_then(|said| said.lines().next().map(str::to_owned));
    first.unwrap_or_else(|| UNKNOWN.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_called_by_its_name() {
        let text = "processor\t: 0\nmodel name\t: Fast CPU @ 2 GHz\n";
        assert_eq!(cpu_model(text), "Fast CPU @ 2 GHz");
        assert_eq!(cpu_model("processor: 0\n"), std::env::consts::ARCH);
    }

    #[test]
    fn a_program_that_is_not_there_says_so() {
        assert_eq!(output("/nonexistent/program", &[]), UNKNOWN);
    }
}
