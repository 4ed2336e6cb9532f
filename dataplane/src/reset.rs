//! `sluiced reset`: what Sluice made on the node is removed.

use std::error::Error;
use std::process::ExitCode;

use nix::unistd::Uid;
use sluice_dataplane::remains;

use crate::cli::ResetArgs;
use crate::conflist;

/// Removes everything, and says what could not be removed.
pub(crate) fn reset(arguments: &ResetArgs) -> Result<ExitCode, Box<dyn Error>> {
    if !Uid::effective().is_root() {
        return Err("run it as root: it removes interfaces, rules and mounts".into());
    }
    let failures = remains::remove(&conflist::read(&arguments.settings)?.settings)?;
    for failure in &failures {
        eprintln!("sluiced: {failure}");
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::FAILURE)
}
