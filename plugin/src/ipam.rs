//! Delegating to the IPAM plugin (specification, section 4).

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use serde::Deserialize;

use crate::args::Args;
use crate::config::Network;
use crate::error::Error;
use crate::result::IpamResult;

/// The network's IPAM plugin, found on `CNI_PATH`.
#[derive(Debug)]
pub(crate) struct Ipam {
    name: String,
    executable: PathBuf,
    /// The network configuration, as the runtime gave it to us.
    network: Vec<u8>,
}

impl Ipam {
    /// Finds the plugin that `ipam.type` names.
    pub(crate) fn find(network: &Network, args: &Args) -> Result<Self, Error> {
        let name = network.ipam_type.clone().ok_or_else(|| {
            Error::configuration(format!(
                "network {} has no ipam.type: name an IPAM plugin, such as host-local",
                network.name
            ))
        })?;
        // A path here would run any file of the host as root (CVE-2021-20206).
        if name.is_empty() || name.contains('/') || matches!(name.as_str(), "." | "..") {
            return Err(Error::configuration(format!(
                "ipam.type is {name:?}: it must be the plain name of a plugin on CNI_PATH"
            )));
        }
        if args.path.is_empty() {
            return Err(Error::environment(format!(
                "CNI_PATH not set: it must list the directories to find the IPAM plugin {name} in"
            )));
        }
        let executable = args
            .path
            .iter()
            .map(|directory| directory.join(&name))
            .find(|path| path.is_file())
            .ok_or_else(|| Error::ipam(not_found(&name, &args.path)))?;
        Ok(Self {
            name,
            executable,
            network: network.to_json(),
        })
    }

    /// Asks for addresses.
    pub(crate) fn add(&self) -> Result<IpamResult, Error> {
        let answer = self.delegate("ADD")?;
        let result: IpamResult = serde_json::from_slice(&answer).map_err(|error| {
            Error::ipam(format!(
                "decode the result of IPAM plugin {}: {error}",
                self.name
            ))
        })?;
        if result.ips.is_empty() {
            return Err(Error::ipam(format!(
                "IPAM plugin {} gave no address: configure a range for it, a pod needs one",
                self.name
            )));
        }
        Ok(result)
    }

    /// Gives the attachment's addresses back, if it has any.
    pub(crate) fn del(&self) -> Result<(), Error> {
        self.delegate("DEL").map(|_| ())
    }

    /// Runs the plugin with our environment and configuration.
    fn delegate(&self, verb: &str) -> Result<Vec<u8>, Error> {
        let output = self.run(verb).map_err(|cause| {
            let path = self.executable.display();
            Error::ipam(format!("run IPAM plugin {path} for {verb}: {cause}"))
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self.failure(verb, &output))
    }

    fn run(&self, verb: &str) -> io::Result<Output> {
        let mut child = Command::new(&self.executable)
            .env("CNI_COMMAND", verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let stdin = child.stdin.take();
        thread::scope(|scope| {
            // On a thread of its own: a plugin that answers before it has read
            // all of a long configuration must not wait for us, nor we for it.
            scope.spawn(move || {
                // A plugin may end without reading: its answer says why.
                let _ = stdin.map(|mut stdin| stdin.write_all(&self.network));
            });
            child.wait_with_output()
        })
    }

    fn failure(&self, verb: &str, output: &Output) -> Error {
        #[derive(Deserialize)]
        struct Answer {
            code: u32,
            msg: String,
            details: Option<String>,
        }
        let context = format!("{verb} by IPAM plugin {}", self.name);
        match serde_json::from_slice::<Answer>(&output.stdout) {
            Ok(answer) => Error::of_ipam_plugin(
                answer.code,
                format!("{context}: {}", answer.msg),
                answer.details.filter(|details| !details.is_empty()),
            ),
            Err(_) => Error::ipam(format!(
                "{context}: it ended with {} and said {:?}",
                output.status,
                String::from_utf8_lossy(&output.stdout)
            )),
        }
    }
}

fn not_found(name: &str, path: &[PathBuf]) -> String {
    let directories: Vec<_> = path.iter().map(|p| Path::display(p).to_string()).collect();
    format!(
        "find IPAM plugin {name}: it is not in {} (CNI_PATH); install it there",
        directories.join(", ")
    )
}
