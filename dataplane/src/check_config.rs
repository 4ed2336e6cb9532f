//! `sluiced check-config`: will this node work, and if not, what to do.

mod netfilter;

use std::fmt;
use std::fs;
use std::io;
use std::process::ExitCode;
use std::thread;

use nix::unistd::Uid;
use serde_json::Value;
use sluice_control::{Client, ClientError, DataplaneSettings, ErrorCode, Request};
use sluice_dataplane::cpus;
use sluice_dataplane::forwarding::has_ipv6;
use sluice_dataplane::host_port::{DATAPLANE_INTERFACE, HOST_INTERFACE, HostPort};
use sluice_dataplane::node::{kernel_bytes_a_port, memory_bytes};
use sluice_dataplane::probe::{self, Report, State};
use sluice_link::{Netlink, sysctl};

use crate::cli::CheckConfigArgs;
use crate::conflist::{self, Conflist};

/// One line of the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    level: Level,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// Good to know.
    Note,
    /// Will not work.
    Problem,
}

impl Finding {
    fn ok(text: impl Into<String>) -> Self {
        Self::new(Level::Ok, text)
    }

    fn note(text: impl Into<String>) -> Self {
        Self::new(Level::Note, text)
    }

    fn problem(text: impl Into<String>) -> Self {
        Self::new(Level::Problem, text)
    }

    fn new(level: Level, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { level, text }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Problem => "problem",
        };
        write!(f, "{level:<8} {}", self.text)
    }
}

/// Prints a line for each check; fails if one is a problem.
pub(crate) fn check(arguments: &CheckConfigArgs) -> ExitCode {
    let mut findings = Vec::new();
    let conflist = check_settings(arguments, &mut findings);
    if let Some(conflist) = &conflist {
        check_daemon(&conflist.settings, &mut findings);
    }
    findings.extend(check_sysctls());
    let has_firewall = conflist.is_some_and(|conflist| conflist.chains("firewall"));
    findings.extend(netfilter::check(has_firewall));
    findings.extend(check_service_addresses());
    let mut problems = 0;
    for finding in &findings {
        println!("{finding}");
        problems += usize::from(finding.level == Level::Problem);
    }
    if problems == 0 {
        return ExitCode::SUCCESS;
    }
    println!("\n{problems} of {} checks found a problem.", findings.len());
    ExitCode::FAILURE
}

fn check_settings(arguments: &CheckConfigArgs, findings: &mut Vec<Finding>) -> Option<Conflist> {
    let conflist = match conflist::read(&arguments.settings) {
        Ok(conflist) => conflist,
        Err(error) => {
            findings.push(Finding::problem(error.to_string()));
            return None;
        }
    };
    let origin = match &arguments.settings.conflist {
        Some(path) => format!("the settings in {} are valid", path.display()),
        None => "no --conflist: these are the default settings".to_owned(),
    };
    findings.push(Finding::ok(origin));
    let settings = &conflist.settings;
    findings.extend(conflist.notes().into_iter().map(Finding::note));
    findings.extend(check_limits(&conflist));
    findings.extend(check_cpus(settings.cpus.clone()));
    findings.extend(cpus::shortage(settings.workers, &settings.cpus).map(Finding::note));
    Some(conflist)
}

fn check_limits(conflist: &Conflist) -> Option<Finding> {
    match conflist.bandwidth() {
        Ok(taken_over) => taken_over.map(|_| {
            Finding::note(
                "the limits of the plugin bandwidth are taken over, whatever pods ask for, unless \
                 the object of sluice has limits; better write them there",
            )
        }),
        Err(error) => Some(Finding::problem(format!(
            "the limits of the plugin bandwidth are not taken over, and pods attached without \
             them: {error}"
        ))),
    }
}

/// `free`: how many MiB are, if that is known; a daemon that runs has its memory
/// already.
fn check_memory(max_ports: u16, is_running: bool, free: Option<u64>) -> Finding {
    let now = memory_bytes(max_ports) >> 20;
    let later =
        (memory_bytes(max_ports) + u64::from(max_ports) * kernel_bytes_a_port(max_ports)) >> 20;
    let needed = format!(
        "maxPorts {max_ports} takes {now} MiB of memory, and {later} MiB with all of them attached"
    );
    let advice = "lower dataplane.maxPorts to what the node is to have";
    match free.filter(|_| !is_running) {
        Some(free) if free < now => {
            Finding::problem(format!("{needed}; {free} MiB are free: {advice}"))
        }
        Some(free) if free < later => {
            Finding::note(format!("{needed}; {free} MiB are free: {advice}"))
        }
        _ => Finding::ok(needed),
    }
}

fn check_cpus(cpus: Vec<u16>) -> Option<Finding> {
    if cpus.is_empty() {
        return None;
    }
    // In a thread of its own: trying binds it.
    let tried = thread::spawn(move || cpus::pin(&cpus)).join().ok()?;
    Some(match tried {
        Ok(()) => Finding::ok("the CPUs of dataplane.cpus can be used"),
        Err(error) => Finding::problem(error.to_string()),
    })
}

fn available_mebibytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes >> 10)
}

/// Of a running daemon, whether it runs with these settings and what it found
/// out about the kernel; else the same by trying, and what is in its way.
fn check_daemon(settings: &DataplaneSettings, findings: &mut Vec<Finding>) {
    let client = Client::new(&settings.socket());
    let facts = client.describe();
    let is_running = !matches!(facts, Err(ClientError::Down { .. }));
    findings.push(check_memory(
        settings.max_ports,
        is_running,
        available_mebibytes(),
    ));
    match facts {
        Ok(facts) => {
            findings.push(Finding::ok(format!(
                "sluiced runs with the folder {}",
                settings.run_dir.display()
            )));
            if facts.settings != *settings {
                findings.push(Finding::note(
                    "the running sluiced has other settings than these: restart it to use them",
                ));
            }
            match client.ask(Request::ShowKernel) {
                Ok(report) => findings.extend(kernel_from(report)),
                Err(error) => findings.push(unanswered(&error)),
            }
        }
        Err(error @ ClientError::Down { .. }) => {
            findings.push(Finding::note(error.to_string()));
            try_out(findings);
        }
        Err(error) => findings.push(unanswered(&error)),
    }
}

/// What a daemon of another release says, and this one does not understand, stops
/// no way back to this one.
fn unanswered(error: &ClientError) -> Finding {
    let is_of_another_release = match error {
        ClientError::Broken { cause, .. } => cause.kind() == io::ErrorKind::InvalidData,
        ClientError::Refused(refusal) => refusal.code == ErrorCode::Unsupported,
        ClientError::Down { .. } => false,
    };
    if is_of_another_release {
        another_release(error)
    } else {
        Finding::problem(error.to_string())
    }
}

fn another_release(why: impl fmt::Display) -> Finding {
    Finding::note(format!("the running sluiced is of another release: {why}"))
}

fn kernel_from(report: Value) -> Vec<Finding> {
    match serde_json::from_value::<Report>(report) {
        Ok(report) => kernel(&report),
        Err(error) => vec![another_release(error)],
    }
}

fn try_out(findings: &mut Vec<Finding>) {
    if !Uid::effective().is_root() {
        findings.push(Finding::problem(
            "not root: the kernel's features cannot be tried; run this, and sluiced, as root",
        ));
        return;
    }
    let netlink = match Netlink::new() {
        Ok(netlink) => netlink,
        Err(error) => {
            findings.push(Finding::problem(error.to_string()));
            return;
        }
    };
    match probe::run(&netlink, &[]) {
        Ok(report) => findings.extend(kernel(&report)),
        Err(error) => findings.push(Finding::problem(error.to_string())),
    }
    findings.push(match HostPort::find(&netlink) {
        Ok(_) => Finding::ok(format!(
            "the interface names {HOST_INTERFACE} and {DATAPLANE_INTERFACE} are free, or Sluice's"
        )),
        Err(error) => Finding::problem(error.to_string()),
    });
    findings.extend(foreign_program(&netlink));
}

/// Another's XDP program on the dataplane's end, where ours must go.
fn foreign_program(netlink: &Netlink) -> Option<Finding> {
    let program = netlink.link(DATAPLANE_INTERFACE).ok()??.xdp_program?;
    Some(Finding::note(format!(
        "the XDP program {program} is on {DATAPLANE_INTERFACE}: a dead sluiced's, which the \
         next one replaces, or another's, which stops it (`bpftool prog show id {program}`)"
    )))
}

fn kernel(report: &Report) -> Vec<Finding> {
    let mut findings = vec![Finding::ok(format!(
        "Linux {} has AF_XDP sockets on veth",
        report.kernel
    ))];
    findings.extend(report.features.iter().map(|feature| {
        let name = feature.feature.name();
        match &feature.state {
            State::Present => Finding::ok(format!("the kernel has {name}: {}", feature.cost)),
            State::Missing(reason) => Finding::note(format!(
                "the kernel lacks {name} (since Linux {}), Sluice works without it: {} ({reason})",
                feature.since, feature.cost
            )),
            State::Without => Finding::note(format!(
                "{name} is switched off by --without: {}",
                feature.cost
            )),
        }
    }));
    findings
}

fn check_sysctls() -> Vec<Finding> {
    let mut findings = vec![forwarding("IPv4", "net/ipv4/ip_forward")];
    findings.push(if has_ipv6() {
        forwarding("IPv6", "net/ipv6/conf/all/forwarding")
    } else {
        Finding::note("the kernel has IPv6 switched off: pods with IPv6 addresses are refused")
    });
    findings
}

fn forwarding(family: &str, key: &str) -> Finding {
    match sysctl::read(key).as_deref() {
        Ok("0") => Finding::note(format!(
            "{family} forwarding is off: sluiced switches it on"
        )),
        Ok(_) => Finding::ok(format!("{family} forwarding is on")),
        Err(error) => Finding::problem(error.to_string()),
    }
}

/// Where kube-proxy in IPVS mode has the addresses of all Services.
const IPVS_INTERFACE: &str = "kube-ipvs0";

fn check_service_addresses() -> Option<Finding> {
    let found = Netlink::new().and_then(|netlink| netlink.link(IPVS_INTERFACE));
    match found {
        Ok(None) => None,
        Ok(Some(_)) => Some(ipvs()),
        Err(error) => Some(Finding::problem(error.to_string())),
    }
}

fn ipvs() -> Finding {
    Finding::note(format!(
        "kube-proxy runs in IPVS mode: with the addresses of Services on {IPVS_INTERFACE}, a \
         hostPort without hostIP takes what is for its port of every Service; give such \
         hostPorts a hostIP, or run kube-proxy in the mode nftables or iptables"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_control::Refusal;

    #[test]
    fn a_line_starts_with_its_level() {
        assert_eq!(Finding::ok("a").to_string(), "ok       a");
        assert_eq!(Finding::problem("b").to_string(), "problem  b");
    }

    #[test]
    fn memory_is_what_ports_take_now_and_when_all_are_attached() {
        let level = |free| check_memory(256, false, free).level;
        for (free, expected) in [
            (None, Level::Ok),
            (Some(320), Level::Problem),
            (Some(321), Level::Note),
            (Some(2889), Level::Ok),
        ] {
            assert_eq!(level(free), expected, "{free:?} MiB are free");
        }
        assert_eq!(check_memory(256, true, Some(0)).level, Level::Ok);
    }

    #[test]
    fn a_missing_feature_is_no_problem() {
        let report = serde_json::json!({"kernel": "6.1.0", "features": [
            {"feature": "multi-buffer", "state": "missing", "reason": "bind: EINVAL",
             "since": "6.6", "cost": "jumbo frames"}]});
        let findings = kernel_from(report);
        assert!(
            findings
                .iter()
                .all(|finding| finding.level != Level::Problem)
        );
        assert!(findings[1].text.contains("multi-buffer"), "{findings:?}");
    }

    #[test]
    fn a_daemon_of_another_release_is_no_problem() {
        let broken = |cause: io::Error| {
            unanswered(&ClientError::Broken {
                socket: "/run/sluice/sluiced.sock".into(),
                op: "describe",
                cause,
            })
        };
        let refused = |code| unanswered(&Refusal::new(code, "protocol 2").into());
        let garbled = serde_json::from_str::<u8>("{}").unwrap_err();
        for (finding, expected) in [
            (kernel_from(Value::Null).remove(0), Level::Note),
            (broken(garbled.into()), Level::Note),
            (broken(io::ErrorKind::TimedOut.into()), Level::Problem),
            (refused(ErrorCode::Unsupported), Level::Note),
            (refused(ErrorCode::Failed), Level::Problem),
        ] {
            assert_eq!(finding.level, expected, "{finding}");
        }
    }
}
