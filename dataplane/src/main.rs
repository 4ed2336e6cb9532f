//! `sluiced`: the node's dataplane, and the commands that look at it and change it.

mod chained;
mod check_config;
mod cli;
mod conflist;
mod descriptors;
mod readiness;
mod reset;
mod run;
mod set;
mod show;
mod signals;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, SetArgs, SetWhat};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(arguments) => run::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Reset(arguments) => reset::reset(&arguments),
        Command::Show(arguments) => show::show(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Set(SetArgs {
            what: SetWhat::Bandwidth(arguments),
        }) => set::bandwidth(&arguments).map(|()| ExitCode::SUCCESS),
        Command::CheckConfig(arguments) => Ok(check_config::check(&arguments)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("sluiced: {error}");
        ExitCode::FAILURE
    })
}
