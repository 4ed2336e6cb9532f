//! The command line.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use sluice_control::parse_quantity;
use sluice_dataplane::probe::Feature;
use tracing::Level;

use crate::set::{self, Rate};

/// The node's userspace dataplane: forwards what pods send, over AF_XDP.
///
/// One `sluiced` runs on each node. The CNI plugin `sluice` tells it about
/// every pod through a Unix socket; it redirects the pod's frames into an
/// AF_XDP socket and forwards them to other pods, to the host and beyond.
#[derive(Debug, Parser)]
#[command(
    name = "sluiced",
    version,
    after_help = "\
Examples:
  sluiced check-config --conflist /etc/cni/net.d/10-sluice.conflist
  sluiced run --conflist /etc/cni/net.d/10-sluice.conflist
  sluiced show ports
  sluiced show stats --json
  sluiced set bandwidth default/web --egress 20M"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve this node until SIGTERM or SIGINT.
    Run(RunArgs),
    /// Remove what Sluice made on this node.
    Reset(ResetArgs),
    /// Look at the running daemon: its ports, counters, sessions, kernel features.
    Show(ShowArgs),
    /// Change pods while they run.
    Set(SetArgs),
    /// Check the configuration and this node, and say what to do.
    CheckConfig(CheckConfigArgs),
}

/// Serve this node until SIGTERM or SIGINT.
///
/// Makes the host port (the interfaces sluice0 and sluice-dp), switches IP
/// forwarding on, and waits for the plugin. Logs to stderr; "ready" means that
/// pods can be added. Pods of an earlier daemon are taken back, whether it was
/// stopped or killed: both leave all they made to the next one. While no daemon
/// runs, what pods send is dropped; `sluiced reset` removes everything. Under
/// systemd, Type=notify waits for "ready".
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluiced run                                    every setting at its default
  sluiced run --conflist /etc/cni/net.d/10-sluice.conflist
  sluiced run --without multi-buffer,tx-metadata  as on an older kernel")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
    /// Pretend that the kernel lacks these features.
    #[arg(long, value_name = "FEATURES", value_delimiter = ',')]
    pub(crate) without: Vec<Feature>,
    /// The least important messages to log.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: LogLevel,
}

/// Remove what Sluice made on this node.
///
/// Removes the pods' interfaces, the host port (sluice0 and sluice-dp) with its
/// routes, the nftables table, the pinned XDP programs, the journal and the
/// control socket. Refuses while a daemon runs. Sysctls of the node stay, since
/// others may rely on them: IP forwarding on, accept_ra 2 where it was 1, and,
/// once a pod had a hostPort, net.netfilter.nf_conntrack_tcp_be_liberal 1. The
/// addresses that IPAM gave out are for the runtime's DEL to give back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluiced reset
  sluiced reset --conflist /etc/cni/net.d/10-sluice.conflist")]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

/// Where the settings come from.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Read the settings from the "dataplane" object of this CNI
    /// configuration (a conflist, or a single plugin's object). Without it
    /// every setting has its default.
    #[arg(long, value_name = "PATH")]
    pub(crate) conflist: Option<PathBuf>,
    /// The folder of the control socket, pins and journal, in place of the
    /// configured one.
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
}

/// Look at the running daemon.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluiced show ports           who is attached, and how much traffic each has
  sluiced show stats           what was dropped and why; where the frames' memory is
  sluiced show hostports       which ports of the node lead to which pod
  sluiced show kernel          which kernel features are used, and what is missing
  sluiced show sessions        which conversations' answers do not go the plain way
  sluiced show ports --json | jq '.[] | select(.kind == \"pod\") | .addresses'")]
pub(crate) struct ShowArgs {
    /// What to show.
    pub(crate) what: What,
    /// For programs: everything there is, as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Of sessions show at most so many.
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    pub(crate) limit: usize,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// The host port and each pod's port, with traffic and drops.
    Ports,
    /// Ports of the node and the pods that they lead to.
    #[value(name = "hostports")]
    HostPorts,
    /// Drops by reason, memory for frames, the worker's turns.
    Stats,
    /// Kernel features: present, missing, or switched off, and the cost.
    Kernel,
    /// Conversations of pods whose answers leave another way than the plain one.
    Sessions,
}

/// Change pods while they run.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(subcommand)]
    pub(crate) what: SetWhat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetWhat {
    /// The limits of a pod's traffic.
    Bandwidth(BandwidthArgs),
}

/// Change the limits of a pod's traffic.
///
/// No frame is lost by it. A direction that is not given stays as it is. What
/// is set stays so until the pod is deleted, also over restarts of sluiced, and
/// CHECK takes it for right.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("direction").required(true).multiple(true).args(["ingress", "egress"])),
    after_help = "\
Rates are bits of IP packet a second, bursts bits; k, M, G, T and P are decimal.

Examples:
  sluiced set bandwidth default/web --ingress 20M --egress unlimited
  sluiced set bandwidth 0f5e11 --interface net1 --egress 1.5G --egress-burst 8M"
)]
pub(crate) struct BandwidthArgs {
    /// The pod: `namespace/name`, or the container's ID or the beginning of it.
    pub(crate) container: String,
    /// Which interface of the container, if it has several.
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Of what comes to the pod: a rate, or `unlimited`.
    #[arg(long, value_name = "RATE", value_parser = set::rate)]
    pub(crate) ingress: Option<Rate>,
    /// How much may come at once; without it what suits the rate.
    #[arg(long, value_name = "BITS", value_parser = parse_quantity, requires = "ingress")]
    pub(crate) ingress_burst: Option<u64>,
    /// Of what the pod sends: a rate, or `unlimited`.
    #[arg(long, value_name = "RATE", value_parser = set::rate)]
    pub(crate) egress: Option<Rate>,
    /// How much it may send at once; without it what suits the rate.
    #[arg(long, value_name = "BITS", value_parser = parse_quantity, requires = "egress")]
    pub(crate) egress_burst: Option<u64>,
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

/// Check the configuration and this node.
///
/// Looks and tries, and changes nothing. Each line is "ok", "note" (good to
/// know) or "problem" (will not work), with what to do. Exits with 1 if there
/// is a problem.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  sluiced check-config --conflist /etc/cni/net.d/10-sluice.conflist")]
pub(crate) struct CheckConfigArgs {
    #[command(flatten)]
    pub(crate) settings: SettingsArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn limits_are_for_one_direction_or_both() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for good in [
            "sluiced set bandwidth c1 --ingress 20M",
            "sluiced set bandwidth c1 --egress unlimited --ingress 1k --ingress-burst 8M",
            "sluiced set bandwidth default/web --interface net1 --egress 1.5G",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for (bad, needle) in [
            ("sluiced set bandwidth c1", "--ingress"),
            ("sluiced set bandwidth --egress 20M", "<CONTAINER>"),
            ("sluiced set bandwidth c1 --egress 20m", "must be a number"),
            ("sluiced set bandwidth c1 --egress 10", "from 1k to 1P"),
            (
                "sluiced set bandwidth c1 --egress 1k --ingress-burst 8M",
                "--ingress",
            ),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn features_are_a_list() {
        let cli = Cli::parse_from(["sluiced", "run", "--without", "multi-buffer,tx-metadata"]);
        let Command::Run(arguments) = cli.command else {
            panic!("run");
        };
        assert_eq!(
            arguments.without,
            [Feature::MultiBuffer, Feature::TxMetadata]
        );
    }
}
