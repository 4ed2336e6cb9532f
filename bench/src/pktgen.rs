//! `sluice-bench pktgen`.

use std::error::Error;

/// The command line of `sluice-bench pktgen`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the subcommand.
pub(crate) fn run(_args: &Args) -> Result<(), Box<dyn Error>> {
    Err("pktgen is not built yet".into())
}
