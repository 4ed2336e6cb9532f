//! `sluice-bench rfc2544`.

use std::error::Error;

/// The command line of `sluice-bench rfc2544`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the subcommand.
pub(crate) fn run(_args: &Args) -> Result<(), Box<dyn Error>> {
    Err("rfc2544 is not built yet".into())
}
