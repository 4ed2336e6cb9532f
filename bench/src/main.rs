//! `sluice-bench`: packet generator and sink, RFC 2544 tests, and a
//! side-by-side comparison with what users would take instead of Sluice.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod clock;
mod compare;
mod cores;
mod error;
mod node;
mod pktgen;
mod report;
mod rfc2544;
mod shaping;
mod stats;
mod topology;
mod xdp;

/// Measures pod networks: of Sluice, and of others beside it.
#[derive(Parser)]
#[command(name = "sluice-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate packets and count what arrives.
    Pktgen(pktgen::Args),
    /// Measure throughput, latency, loss and back-to-back frames (RFC 2544).
    Rfc2544(rfc2544::Args),
    /// Set up a node with pods, and run a command on it.
    Node(node::Args),
    /// Measure Sluice beside other pod networks, interleaved, in one run.
    Compare(compare::Args),
    /// Measure limits on bandwidth beside the reference plugin's.
    Shaping(shaping::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Pktgen(args) => pktgen::run(&args),
        Command::Rfc2544(args) => rfc2544::run(&args),
        Command::Node(args) => node::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Shaping(args) => shaping::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
