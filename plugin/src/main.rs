//! `sluice`: the CNI plugin that attaches pods to the Sluice dataplane.
//!
//! One short-lived process an operation, with no state of its own: it makes
//! and removes veth pairs, asks an IPAM plugin for addresses, and tells the
//! daemon `sluiced` about the result. The specification:
//! <https://www.cni.dev/docs/spec/>.

#![forbid(unsafe_code)]

mod add;
mod args;
mod check;
mod child;
mod cni_args;
mod config;
mod del;
mod error;
mod gc;
mod ipam;
mod keys;
mod limits;
mod log;
mod mac;
mod mappings;
mod names;
mod plan;
mod pod;
mod requests;
mod result;
mod status;
mod undo;
mod version;

use std::env;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::Instant;

use serde_json::Value;

use crate::args::Args;
use crate::config::Network;
use crate::error::Error;

fn main() -> ExitCode {
    let Some(command) = env::var_os("CNI_COMMAND") else {
        eprintln!(
            "sluice {}: a CNI plugin, run by a container runtime with CNI_COMMAND set and a \
             network configuration on stdin (https://www.cni.dev); the node's daemon is sluiced",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::SUCCESS;
    };
    let command = command.to_string_lossy();
    let start = Instant::now();
    let mut stdin = Vec::new();
    let read = io::stdin().read_to_end(&mut stdin);
    log::start(&stdin);
    let answer = log::operation(&command).in_scope(|| {
        read.map_err(|cause| Error::io("read the network configuration from stdin", &cause))
            .and_then(|_| answer(&command, &stdin))
            .inspect(|_| tracing::info!(took = ?start.elapsed(), "done"))
            .inspect_err(|error| error.log(start.elapsed()))
    });
    let (answer, code) = match answer {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json(&stdin)), ExitCode::FAILURE),
    };
    // Most operations answer nothing. If stdout is gone nobody is left to be told.
    if let Some(answer) = answer {
        let _ = writeln!(io::stdout(), "{answer:#}");
    }
    code
}

/// Carries out one operation; what it prints on success.
fn answer(command: &str, stdin: &[u8]) -> Result<Option<Value>, Error> {
    match command {
        "ADD" => {
            let args = Args::for_add()?;
            add::add(&args, &Network::parse(stdin)?).map(Some)
        }
        "DEL" => {
            let args = Args::for_del()?;
            del::del(&args, &Network::parse(stdin)?).map(|()| None)
        }
        "CHECK" => {
            let args = Args::for_check()?;
            check::check(&args, &Network::parse(stdin)?).map(|()| None)
        }
        "GC" => gc::gc(&args::path(), &Network::parse(stdin)?).map(|()| None),
        "STATUS" => status::status(&args::path(), &Network::parse(stdin)?).map(|()| None),
        "VERSION" => version::version(stdin).map(Some),
        other => Err(Error::environment(format!(
            "CNI_COMMAND is {other:?}: this plugin knows ADD, DEL, CHECK, GC, STATUS and VERSION"
        ))),
    }
}
