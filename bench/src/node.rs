//! A node to measure on, as command lines ask for it; and `sluice-bench node`,
//! which lends one to a command.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use clap::{ValueEnum, value_parser};
use nix::unistd::geteuid;

use crate::error::BenchError;
use crate::topology::{
    Bed, BedSpec, Design, Feature, HOST_PORT, NODE, POD_PORT, Tools, interrupt, remove_leftovers,
};

/// Which node.
#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// How the pods are connected.
    #[arg(long, value_enum, default_value = "sluice")]
    pub(crate) design: DesignName,
    /// What the receiving pod has.
    #[arg(long, value_enum, default_value = "plain")]
    pub(crate) case: CaseName,
    /// Where sluice and sluiced are, if not beside this program.
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Where the reference plugins are.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cni")]
    cni_path: PathBuf,
}

/// How pods are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DesignName {
    /// The plugin and the daemon of this project.
    Sluice,
    /// The reference plugin bridge.
    Bridge,
    /// The reference plugin ptp.
    Ptp,
    /// Open vSwitch, userspace datapath, ports of type afxdp.
    Ovs,
    /// A bare loop over two AF_XDP sockets.
    Floor,
}

/// What the receiving pod has beyond an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaseName {
    /// Nothing.
    Plain,
    /// A hostPort, by which it is reached.
    #[value(name = "hostport")]
    HostPort,
    /// Limits that nothing reaches.
    Shaped,
}

impl NodeArgs {
    /// What it takes; `worker_cpu` is the CPU of what forwards.
    ///
    /// # Errors
    /// Not root, or something is missing.
    pub(crate) fn tools(&self, worker_cpu: u16) -> Result<Tools, BenchError> {
        if !geteuid().is_root() {
            return Err(BenchError::Refused(
                "this makes network namespaces: run it as root".into(),
            ));
        }
        let binaries = self.binaries.as_deref();
        let tools = Tools::find(binaries, &self.cni_path, worker_cpu.into())?;
        tools.check()?;
        Ok(tools)
    }

    /// Sets the node up, with `others` idle pods where the case is plain.
    ///
    /// # Errors
    /// As [`Bed::build`].
    pub(crate) fn build(&self, tools: &Tools, others: u16) -> Result<Bed, BenchError> {
        remove_leftovers();
        let design = match self.design {
            DesignName::Sluice => Design::Sluice,
            DesignName::Bridge => Design::Bridge,
            DesignName::Ptp => Design::Ptp,
            DesignName::Ovs => Design::Ovs,
            DesignName::Floor => Design::Floor,
        };
        let feature = match (self.case, others) {
            (CaseName::Plain, 0) => Feature::Plain,
            (CaseName::Plain, others) => Feature::Crowd(others),
            (_, 1..) => {
                return Err(BenchError::Refused(
                    "other pods are for the case plain: leave --pods or --case out".into(),
                ));
            }
            (CaseName::HostPort, _) => Feature::HostPort,
            (CaseName::Shaped, _) => Feature::Shaped,
        };
        let bed = Bed::build(BedSpec { design, feature }, tools)?;
        bed.set_running(true);
        Ok(bed)
    }

    /// Where the client reaches the server of such a node.
    pub(crate) fn target(&self, bed: &Bed) -> SocketAddr {
        match self.case {
            CaseName::HostPort => (NODE, HOST_PORT).into(),
            CaseName::Plain | CaseName::Shaped => (bed.server.address, POD_PORT).into(),
        }
    }

    /// What it is, for people.
    pub(crate) fn title(&self) -> String {
        let name = |value: Option<clap::builder::PossibleValue>| {
            value.map_or_else(String::new, |value| value.get_name().to_owned())
        };
        let design = name(self.design.to_possible_value());
        let case = name(self.case.to_possible_value());
        format!("{design}, pod to pod, {case}")
    }
}

/// Set up a node and run a command on it. The command learns by its environment
/// what there is: PKTGEN_FROM and PKTGEN_INTO, the namespaces of two pods;
/// PKTGEN_OTHERS, those of further ones; PKTGEN_ADDRESS and PKTGEN_PORT, where
/// the first reaches the second; PKTGEN_SINK_PORT, the port that arrives.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// How many further pods.
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u16).range(..=250))]
    pods: u16,
    /// The CPU of what forwards.
    #[arg(long, default_value_t = 1)]
    worker_cpu: u16,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the subcommand.
///
/// # Errors
/// The node could not be set up, or the command failed.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    interrupt::watch()?;
    let tools = args.node.tools(args.worker_cpu)?;
    let bed = args.node.build(&tools, args.pods)?;
    let target = args.node.target(&bed);
    let others: Vec<&str> = bed.others().map(|pod| pod.space.name()).collect();
    let (program, arguments) = args.command.split_first().ok_or("no command")?;
    let failed = BenchError::system("run", program);
    let mut command = interrupt::command(program);
    command
        .args(arguments)
        .env("PKTGEN_FROM", bed.client.space.name())
        .env("PKTGEN_INTO", bed.server.space.name())
        .env("PKTGEN_OTHERS", others.join(" "))
        .env("PKTGEN_ADDRESS", target.ip().to_string())
        .env("PKTGEN_PORT", target.port().to_string())
        .env("PKTGEN_SINK_PORT", POD_PORT.to_string())
        .stdin(Stdio::null());
    let status = command
        .spawn()
        .and_then(|mut child| interrupt::wait(&mut child));
    let status = status.map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {status}").into())
    }
}
