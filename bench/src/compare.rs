//! `sluice-bench compare`.

use std::error::Error;

/// The command line of `sluice-bench compare`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the subcommand.
pub(crate) fn run(_args: &Args) -> Result<(), Box<dyn Error>> {
    Err("compare is not built yet".into())
}
