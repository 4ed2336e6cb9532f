//! `sluiced show`: what the daemon says, as tables for people.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::io::{self, Write as _};
use std::net::SocketAddr;

use comfy_table::{CellAlignment, Table, presets};
use serde::Deserialize;
use serde_json::Value;
use sluice_control::{Client, PodAddress, PodName, Request, Shaping, rounded};
use sluice_dataplane::probe::{Report, State};

use crate::cli::{ShowArgs, What};
use crate::conflist;

/// As much of a container ID as tells containers apart, as `crictl ps` shows.
const SHORT_ID: usize = 13;

pub(crate) fn show(arguments: &ShowArgs) -> Result<(), Box<dyn Error>> {
    let settings = conflist::read(&arguments.settings)?.settings;
    let answer = Client::new(&settings.socket()).ask(match arguments.what {
        What::Ports => Request::ShowPorts,
        What::Stats => Request::ShowStats,
        What::HostPorts => Request::ShowHostPorts,
        What::Kernel => Request::ShowKernel,
        What::Sessions => Request::ShowSessions {
            limit: arguments.limit,
        },
    })?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&answer)?
    } else {
        render(arguments.what, answer)?
    };
    match writeln!(io::stdout().lock(), "{}", text.trim_end()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn render(what: What, answer: Value) -> Result<String, serde_json::Error> {
    Ok(match what {
        What::Ports => ports(&serde_json::from_value::<Vec<PortRow>>(answer)?),
        What::Stats => stats(&serde_json::from_value(answer)?),
        What::HostPorts => host_ports(&serde_json::from_value::<Vec<HostPortRow>>(answer)?),
        What::Kernel => kernel(&serde_json::from_value(answer)?),
        What::Sessions => sessions(&serde_json::from_value(answer)?),
    })
}

/// As much of a port's row as the table has.
#[derive(Debug, Deserialize)]
struct PortRow {
    interface: String,
    #[serde(default)]
    addresses: Vec<PodAddress>,
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    pod: Option<PodName>,
    counters: PortCounters,
    #[serde(default)]
    shaping: Shaping,
    #[serde(default)]
    mtu: u32,
    /// The largest packet that suits the limits, bytes.
    #[serde(default)]
    frame_mtu: u32,
}

/// The pod's name, or as much of its container's ID as people compare.
fn owner(pod: Option<&PodName>, container_id: &str) -> String {
    match pod {
        Some(pod) => pod.to_string(),
        None => container_id.chars().take(SHORT_ID).collect(),
    }
}

#[derive(Debug, Deserialize)]
struct PortCounters {
    rx_frames: u64,
    rx_bytes: u64,
    tx_frames: u64,
    tx_bytes: u64,
    drops: BTreeMap<String, u64>,
}

/// Fits 80 columns with one address of each family a pod; what has no usual
/// width is last.
fn ports(rows: &[PortRow]) -> String {
    let mut table = table(&[
        "INTERFACE",
        "ADDRESSES",
        "FRAMES\nFROM",
        "BYTES\nFROM",
        "FRAMES\nTO",
        "BYTES\nTO",
        "DROPS",
        "POD",
    ]);
    for row in rows {
        let addresses: Vec<String> = row
            .addresses
            .iter()
            .map(|pod| pod.address.addr().to_string())
            .collect();
        let counters = &row.counters;
        table.add_row([
            row.interface.clone(),
            or_dash(addresses.join("\n")),
            short(counters.rx_frames),
            short(counters.rx_bytes),
            short(counters.tx_frames),
            short(counters.tx_bytes),
            short(counters.drops.values().sum()),
            or_dash(owner(row.pod.as_ref(), &row.container_id)),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    for column in 2..7 {
        align_right(&mut table, column);
    }
    match limits(rows) {
        None => table.to_string(),
        Some(limits) => format!("{table}\n\n{limits}"),
    }
}

/// What pods are held to, if any is.
fn limits(rows: &[PortRow]) -> Option<Table> {
    let limited = rows.iter().filter(|row| row.shaping.is_limited());
    let mut table = table(&["INTERFACE", "LIMITS"]);
    for row in limited {
        let mut lines = row.shaping.lines(row.frame_mtu);
        if row.frame_mtu < row.mtu {
            lines.push(format!("packets of up to {} bytes", row.frame_mtu));
        }
        table.add_row([row.interface.clone(), lines.join("\n")]);
    }
    (table.row_count() > 0).then_some(table)
}

/// Three digits and a decimal prefix: `4.64G`. Exact counts are in the JSON.
fn short(count: u64) -> String {
    let (digits, prefix) = rounded(count);
    format!("{digits}{prefix}")
}

/// As much of a mapping's row as the table has.
#[derive(Debug, Deserialize)]
struct HostPortRow {
    protocol: String,
    host: String,
    to: String,
    pod: Option<PodName>,
    container_id: String,
}

fn host_ports(rows: &[HostPortRow]) -> String {
    let mut table = table(&["PROTOCOL", "HOST", "TO", "POD"]);
    for row in rows {
        table.add_row([
            row.protocol.clone(),
            row.host.clone(),
            row.to.clone(),
            owner(row.pod.as_ref(), &row.container_id),
        ]);
    }
    table.to_string()
}

#[derive(Debug, Deserialize)]
struct Stats {
    ports: u64,
    worker: WorkerStats,
    /// Of an older daemon: none.
    #[serde(default)]
    workers: Vec<WorkerStats>,
    #[serde(default)]
    merged_frames: u64,
    drops: Vec<DropRow>,
    xdp_statistics: BTreeMap<String, u64>,
    chunks: Chunks,
}

#[derive(Debug, Deserialize)]
struct WorkerStats {
    turns: u64,
    busy_turns: u64,
    sleeps: u64,
    #[serde(default)]
    sessions: u64,
    #[serde(default)]
    session_capacity: u64,
    #[serde(default)]
    recycled_sessions: u64,
    #[serde(default)]
    handed_frames: u64,
}

#[derive(Debug, Deserialize)]
struct DropRow {
    reason: String,
    frames: u64,
    help: String,
}

#[derive(Debug, Deserialize)]
struct Chunks {
    total: u64,
    free: u64,
    fill: u64,
    tx: u64,
    /// Of an older daemon: none; neither between workers.
    #[serde(default)]
    held: u64,
    #[serde(default)]
    handoff: u64,
    unaccounted: i64,
}

fn stats(stats: &Stats) -> String {
    let WorkerStats {
        sessions,
        session_capacity,
        recycled_sessions,
        ..
    } = stats.worker;
    let workers = match stats.workers.as_slice() {
        [] | [_] => worker("worker", &stats.worker),
        several => (0..)
            .zip(several)
            .map(|(number, stats)| {
                let handed = stats.handed_frames;
                let line = worker(&format!("worker {number}"), stats);
                format!("{line}, {handed} frames handed to others")
            })
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let Chunks {
        total,
        free,
        fill,
        tx,
        held,
        handoff,
        unaccounted,
    } = stats.chunks;
    let others: String = [(held, "waiting for limits"), (handoff, "between workers")]
        .into_iter()
        .filter(|(chunks, _)| *chunks > 0)
        .map(|(chunks, place)| format!(" + {chunks} {place}"))
        .collect();
    let sum = match unaccounted {
        0 => "they add up".to_owned(),
        off => format!("{off} on their way (zero when there is no traffic, else a leak)"),
    };
    let mut text = format!(
        "ports     {} with the host port\n\
         {workers}\n\
         sessions  {sessions} of {session_capacity}, {recycled_sessions} given up for new ones of their pods\n\
         gro       {} TCP segments became the end of another frame\n\
         chunks    {total} = {free} free + {fill} to be filled + {tx} being sent{others}: {sum}\n\n",
        stats.ports, stats.merged_frames
    );
    let mut drops = table(&["DROPPED BECAUSE", "FRAMES", "WHY"]);
    for row in stats.drops.iter().filter(|row| row.frames > 0) {
        drops.add_row([row.reason.clone(), row.frames.to_string(), row.help.clone()]);
    }
    for (name, help) in KERNEL_DROPS {
        let frames = stats.xdp_statistics.get(*name).copied().unwrap_or(0);
        if frames > 0 {
            drops.add_row([(*name).to_owned(), frames.to_string(), (*help).to_owned()]);
        }
    }
    align_right(&mut drops, 1);
    if drops.row_count() == 0 {
        text.push_str("No attached port has dropped a frame.");
    } else {
        let _ = write!(text, "{drops}");
    }
    text
}

fn worker(name: &str, stats: &WorkerStats) -> String {
    let WorkerStats {
        turns,
        busy_turns,
        sleeps,
        ..
    } = stats;
    format!("{name:<9} {turns} turns, {busy_turns} with frames, {sleeps} sleeps")
}

/// What the kernel drops before the dataplane sees it (`XDP_STATISTICS`).
const KERNEL_DROPS: &[(&str, &str)] = &[
    (
        "rx_dropped",
        "by the kernel: no free chunk in the FILL ring, or a frame too large",
    ),
    (
        "rx_ring_full",
        "by the kernel: the worker did not keep up; give it a CPU (dataplane.cpus)",
    ),
    (
        "tx_invalid_descs",
        "by the kernel: a descriptor it refused; please report it",
    ),
];

/// What the kernel offers, and what it is enough for.
#[derive(Debug, Deserialize)]
struct Kernel {
    #[serde(flatten)]
    report: Report,
    /// Of an older daemon: none.
    gro: Option<bool>,
    /// Of an older daemon: none.
    uplink: Option<Uplink>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Uplink {
    Served { interface: String, queues: u16 },
    Kernel { reason: String },
}

fn kernel(answer: &Kernel) -> String {
    let Kernel {
        report,
        gro,
        uplink,
    } = answer;
    let gro = match gro {
        None => "",
        Some(true) => "TCP segments: merged, but to pods whose network has \"gro\": false\n",
        Some(false) => {
            "TCP segments: not merged, for want of gso, and of multi-buffer or tx-metadata\n"
        }
    };
    let uplink = match uplink {
        None => String::new(),
        Some(Uplink::Served { interface, queues }) => {
            format!("hostPorts from outside: by XDP on {interface}, queues: {queues}\n")
        }
        Some(Uplink::Kernel { reason }) => {
            format!("hostPorts from outside: by the kernel's rules ({reason})\n")
        }
    };
    let mut table = table(&["FEATURE", "STATE", "SINCE LINUX", "WHAT FOR"]);
    let mut reasons = String::new();
    for finding in &report.features {
        let name = finding.feature.name();
        let state = match &finding.state {
            State::Present => "present",
            State::Missing(reason) => {
                let _ = writeln!(reasons, "{name}: {reason}");
                "missing"
            }
            State::Without => "off (--without)",
        };
        table.add_row([name, state, &finding.since, &finding.cost]);
    }
    format!("Linux {}\n{uplink}{gro}\n{table}\n{reasons}", report.kernel)
}

#[derive(Debug, Deserialize)]
struct Sessions {
    total: usize,
    sessions: Vec<SessionRow>,
}

#[derive(Debug, Deserialize)]
struct SessionRow {
    /// `None`: the pod has gone meanwhile.
    pod: Option<String>,
    answers_leave_by: Option<String>,
    protocol: String,
    original: FlowRow,
    translated: FlowRow,
    state: String,
    idle_ms: u64,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct FlowRow {
    src: SocketAddr,
    dst: SocketAddr,
}

fn sessions(answer: &Sessions) -> String {
    let mut table = table(&[
        "POD",
        "PROTOCOL",
        "FROM",
        "TO",
        "TRANSLATED",
        "ANSWERS BY",
        "STATE",
        "IDLE",
    ]);
    for row in &answer.sessions {
        let translated = if row.translated == row.original {
            String::new()
        } else {
            format!("{} to {}", row.translated.src, row.translated.dst)
        };
        table.add_row([
            or_dash(row.pod.clone().unwrap_or_default()),
            row.protocol.clone(),
            row.original.src.to_string(),
            row.original.dst.to_string(),
            or_dash(translated),
            or_dash(row.answers_leave_by.clone().unwrap_or_default()),
            row.state.clone(),
            format!("{} s", row.idle_ms / 1000),
        ]);
    }
    align_right(&mut table, 7);
    let (shown, total) = (answer.sessions.len(), answer.total);
    match (total, shown) {
        (0, _) => "No pod has a session.".to_owned(),
        _ if shown < total => format!("{table}\n{shown} of {total}; see --limit"),
        _ => table.to_string(),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

fn align_right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn counters() -> Value {
        json!({"rx_frames": 11, "rx_bytes": 1100, "tx_frames": 22, "tx_bytes": 2200,
               "drops": {"martian": 3, "no-pod": 4}, "answered": 0})
    }

    #[test]
    fn a_port_is_a_line() {
        let rows = json!([
            {"kind": "host", "interface": "sluice-dp", "counters": counters()},
            {"kind": "pod", "interface": "slv1", "network": "pods",
             "container_id": "0123456789abcdef0123", "counters": counters(),
             "addresses": [{"address": "10.77.0.11/24", "gateway": "10.77.0.1"},
                           {"address": "fd00::11/64", "gateway": "fe80::1"}]},
            {"kind": "pod", "interface": "slv2", "network": "pods", "container_id": "c2",
             "pod": {"namespace": "default", "name": "web"}, "counters": counters()},
        ]);
        let text = render(What::Ports, rows).unwrap();
        let words = |line: usize| -> Vec<&str> {
            text.lines().nth(line).unwrap().split_whitespace().collect()
        };
        assert_eq!(
            words(2),
            ["sluice-dp", "-", "11", "1.10k", "22", "2.20k", "7", "-"]
        );
        assert_eq!(
            words(3),
            [
                "slv1",
                "10.77.0.11",
                "11",
                "1.10k",
                "22",
                "2.20k",
                "7",
                "0123456789abc"
            ]
        );
        assert_eq!(words(4), ["fd00::11"]);
        assert_eq!(words(5).last(), Some(&"default/web"));
    }

    #[test]
    fn ports_fit_a_terminal() {
        let busy = json!({"rx_frames": 999_400_000_u64, "rx_bytes": 123_456_789_012_u64,
            "tx_frames": 45_600_000, "tx_bytes": 98_765_432_100_u64, "drops": {"martian": 12_345}});
        let rows = json!([
            {"kind": "pod", "interface": "slv1e33c7d628ad", "container_id": "0123456789abcdef",
             "counters": busy,
             "addresses": [{"address": "10.244.101.205/24", "gateway": "10.244.101.1"},
                           {"address": "fd53:4c55:4943::2/64", "gateway": "fe80::1"}]},
        ]);
        let text = render(What::Ports, rows).unwrap();
        for line in text.lines() {
            assert!(line.trim_end().len() <= 80, "{line}");
        }
    }

    #[test]
    fn limits_are_said_in_words_below() {
        let row = |interface: &str, shaping: Value| {
            json!({"interface": interface, "counters": counters(), "shaping": shaping,
                   "mtu": 9000, "frame_mtu": 2500})
        };
        let limit = json!({"rate": 10_000_000, "burst": 100_000});
        let rows = json!([
            row(
                "slv1",
                json!({"egress": limit, "ingress": {"rate": 1_000_000, "burst": 100_000}})
            ),
            row("slv2", json!({})),
            row("slv3", json!({"egress": limit})),
        ]);
        let text = render(What::Ports, rows).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let empty = lines.iter().position(|line| line.is_empty()).unwrap();
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let below: Vec<String> = lines[empty + 1..].iter().map(|line| words(line)).collect();
        assert_eq!(
            below,
            [
                "INTERFACE LIMITS",
                "slv1 ingress 1 Mbit/s, burst 12.5 kB",
                "egress 10 Mbit/s, burst 12.5 kB",
                "queue 40 ms ingress, 25 ms egress",
                "packets of up to 2500 bytes",
                "slv3 egress 10 Mbit/s, burst 12.5 kB",
                "queue 25 ms",
                "packets of up to 2500 bytes",
            ]
        );
        let plain = render(What::Ports, json!([row("slv2", json!({}))])).unwrap();
        assert!(!plain.contains("LIMITS"), "{plain}");
    }

    #[test]
    fn a_host_port_is_a_line() {
        let rows = json!([{
            "protocol": "tcp", "host": "[::]:8080", "to": "[fd00::11]:80", "pod": null,
            "network": "pods", "container_id": "0123456789abcdef0123", "ifname": "eth0",
            "snat": true, "masq_all": false,
        }]);
        let text = render(What::HostPorts, rows).unwrap();
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            words,
            ["tcp", "[::]:8080", "[fd00::11]:80", "0123456789abc"]
        );
    }

    fn stats_with(unaccounted: i64, dropped: u64) -> String {
        let answer = json!({
            "ports": 2,
            "worker": {"turns": 9, "busy_turns": 4, "sleeps": 3, "chunks": 0,
                       "sessions": 5, "session_capacity": 60, "recycled_sessions": 2},
            "merged_frames": 77,
            "drops": [{"reason": "martian", "frames": dropped, "help": "loopback"},
                      {"reason": "no-pod", "frames": 0, "help": "nobody"}],
            "xdp_statistics": {"rx_ring_full": dropped, "rx_dropped": 0},
            "chunks": {"total": 100, "free": 55, "fill": 30, "tx": 10, "held": 5,
                       "unaccounted": unaccounted},
        });
        render(What::Stats, answer).unwrap()
    }

    #[test]
    fn chunks_that_add_up_say_so() {
        assert!(stats_with(0, 0).contains("10 being sent + 5 waiting for limits: they add up"));
        assert!(stats_with(0, 0).contains("5 of 60, 2 given up"));
        assert!(stats_with(0, 0).contains("77 TCP segments"));
        assert!(stats_with(5, 0).contains("5 on their way"));
    }

    #[test]
    fn several_workers_have_a_line_each() {
        let worker = json!({"turns": 9, "busy_turns": 4, "sleeps": 3, "handed_frames": 7});
        let answer = json!({
            "ports": 2, "worker": worker, "workers": [worker, worker],
            "drops": [], "xdp_statistics": {},
            "chunks": {"total": 9, "free": 1, "fill": 1, "tx": 1, "held": 2, "handoff": 4,
                       "unaccounted": 0},
        });
        let text = render(What::Stats, answer).unwrap();
        for needle in [
            "worker 0  9 turns, 4 with frames, 3 sleeps, 7 frames handed to others",
            "worker 1  9 turns",
            "1 being sent + 2 waiting for limits + 4 between workers: they add up",
        ] {
            assert!(text.contains(needle), "{text}");
        }
    }

    #[test]
    fn only_drops_that_happened_are_listed() {
        let text = stats_with(0, 7);
        assert!(
            text.contains("martian") && text.contains("loopback"),
            "{text}"
        );
        assert!(text.contains("rx_ring_full"), "{text}");
        assert!(
            !text.contains("no-pod") && !text.contains("rx_dropped"),
            "{text}"
        );
        assert!(stats_with(0, 0).contains("No attached port has dropped"));
    }

    #[test]
    fn a_session_is_a_line() {
        let flow = |src: &str, dst: &str| json!({"src": src, "dst": dst});
        let direct = flow("10.77.0.2:4000", "10.77.0.3:53");
        let mapped = flow("[fd77::2]:4000", "[2001:db8::1]:8080");
        let row = |protocol: &str, original: &Value, translated: &Value| {
            json!({"pod": "slv1", "answers_leave_by": "sluice-dp", "protocol": protocol,
                   "original": original, "translated": translated, "state": "open",
                   "idle_ms": 5999, "left_ms": 1})
        };
        let translated = flow("[fd77::2]:4000", "[fd77::3]:80");
        let rows = [
            row("udp", &direct, &direct),
            row("tcp", &mapped, &translated),
        ];
        let answer = json!({"total": 9, "sessions": rows});
        let text = render(What::Sessions, answer).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "slv1",
                "udp",
                "10.77.0.2:4000",
                "10.77.0.3:53",
                "-",
                "sluice-dp",
                "open",
                "5",
                "s"
            ]
        );
        assert_eq!(lines[2][4..7], ["[fd77::2]:4000", "to", "[fd77::3]:80"]);
        assert_eq!(lines[3].join(" "), "2 of 9; see --limit");
        let none = json!({"total": 0, "sessions": []});
        assert_eq!(
            render(What::Sessions, none).unwrap(),
            "No pod has a session."
        );
    }

    #[test]
    fn a_missing_feature_says_why() {
        let answer = json!({"kernel": "6.1.0", "features": [
            {"feature": "multi-buffer", "state": "missing", "reason": "bind: EINVAL",
             "since": "6.6", "cost": "jumbo frames"},
            {"feature": "tx-metadata", "state": "without", "since": "6.8", "cost": "checksums"},
        ], "gro": false});
        let text = render(What::Kernel, answer).unwrap();
        assert!(text.contains("not merged"), "{text}");
        assert!(text.contains("multi-buffer: bind: EINVAL"), "{text}");
        assert!(text.contains("off (--without)"), "{text}");
    }
}
