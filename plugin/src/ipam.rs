//! Delegating to the IPAM plugin (specification, section 4).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde::Deserialize;
use sluice_control::AttachmentId;

use crate::args::Args;
use crate::child::{self, Outcome};
use crate::config::{Network, SUPPORTED_VERSIONS, is_at_least, since};
use crate::error::Error;
use crate::log;
use crate::result::IpamResult;

/// Variables that the plugin gets in place of ours.
type Env<'a> = &'a [(&'a str, &'a str)];

/// How long a plugin may take. Reference plugins need milliseconds, the `dhcp`
/// plugin's server seconds. Two of these, an ADD and the DEL that undoes it,
/// fit into the four minutes that the kubelet gives a runtime for a sandbox
/// (twice `runtimeRequestTimeout`); then it would kill us, and nobody undo.
const PATIENCE: Duration = Duration::from_secs(60);

/// GC and STATUS are about no container, whatever our environment holds.
const NO_CONTAINER: [(&str, &str); 3] = [
    ("CNI_CONTAINERID", ""),
    ("CNI_IFNAME", ""),
    ("CNI_NETNS", ""),
];

/// The network's IPAM plugin, found on `CNI_PATH`.
#[derive(Debug)]
pub(crate) struct Ipam<'a> {
    name: String,
    executable: PathBuf,
    network: &'a Network,
    /// `CNI_ARGS` for it.
    cni_args: String,
    patience: Duration,
}

impl<'a> Ipam<'a> {
    /// Finds the plugin that `ipam.type` names, to ask it about a container.
    pub(crate) fn find_for(args: &Args, network: &'a Network) -> Result<Self, Error> {
        Ok(Self {
            cni_args: args.cni_args.for_ipam(),
            ..Self::find(network, &args.path)?
        })
    }

    /// Finds the plugin that `ipam.type` names, to ask it about the network.
    pub(crate) fn find(network: &'a Network, path: &[PathBuf]) -> Result<Self, Error> {
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
        if path.is_empty() {
            return Err(Error::environment(format!(
                "CNI_PATH not set: it must list the directories to find the IPAM plugin {name} in"
            )));
        }
        let executable = path
            .iter()
            .map(|directory| directory.join(&name))
            .find(|path| path.is_file())
            .ok_or_else(|| Error::ipam(not_found(&name, path)))?;
        Ok(Self {
            name,
            executable,
            network,
            cni_args: String::new(),
            patience: PATIENCE,
        })
    }

    /// Asks for addresses.
    pub(crate) fn add(&self) -> Result<IpamResult, Error> {
        let answer = self.delegate("ADD", &[])?;
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
        self.delegate("DEL", &[]).map(|_| ())
    }

    /// The same for an attachment that is not the environment's.
    pub(crate) fn del_of(&self, id: &AttachmentId) -> Result<(), Error> {
        let env = [
            ("CNI_CONTAINERID", id.container_id.as_str()),
            ("CNI_IFNAME", id.ifname.as_str()),
            ("CNI_NETNS", ""),
        ];
        self.delegate("DEL", &env).map(|_| ())
    }

    /// Whether the attachment still has its addresses. A plugin older than
    /// CHECK has nothing to say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.forward("CHECK", &[], Error::is_of_version)
    }

    /// Whether the plugin could serve an ADD.
    pub(crate) fn status(&self) -> Result<(), Error> {
        self.forward("STATUS", &NO_CONTAINER, Error::is_of_operation)
    }

    /// Gives back the addresses of what the runtime does not list as valid.
    pub(crate) fn gc(&self) -> Result<(), Error> {
        self.forward("GC", &NO_CONTAINER, Error::is_of_operation)
    }

    /// Forwards an operation that older plugins lack, which is no failure.
    fn forward(&self, verb: &str, env: Env, is_lack: fn(&Error) -> bool) -> Result<(), Error> {
        match self.delegate(verb, env) {
            Err(error) if is_lack(&error) => {
                tracing::info!("{error}: taken for a plugin without {verb}");
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// Runs the plugin with our environment, but for `env`, and our
    /// configuration, in the plugin's version if it does not know ours.
    fn delegate(&self, verb: &str, env: Env) -> Result<Vec<u8>, Error> {
        let run = |version| {
            log::timed(
                format_args!("{verb} by IPAM plugin {} in version {version}", self.name),
                || self.run_as(verb, env, version),
            )
        };
        match run(self.network.version) {
            Err(error) if error.is_of_version() => match self.common_version() {
                Ok(Some(version)) if is_at_least(version, since(verb)) => run(version),
                Ok(_) => Err(error),
                Err(failure) => Err(error.and(failure)),
            },
            other => other,
        }
    }

    /// The highest version that the plugin and we know, other than the
    /// configuration's.
    fn common_version(&self) -> Result<Option<&'static str>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(rename = "supportedVersions")]
            versions: Vec<String>,
        }
        let answer = self.run_as("VERSION", &NO_CONTAINER, self.network.version)?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|error| {
            let name = &self.name;
            Error::ipam(format!(
                "decode the versions of IPAM plugin {name}: {error}"
            ))
        })?;
        let common = SUPPORTED_VERSIONS.into_iter().rev();
        let mut common = common.filter(|version| *version != self.network.version);
        Ok(common.find(|ours| answer.versions.iter().any(|theirs| theirs == ours)))
    }

    fn run_as(&self, verb: &str, env: Env, version: &str) -> Result<Vec<u8>, Error> {
        let mut command = Command::new(&self.executable);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_ARGS", &self.cni_args)
            .envs(env.iter().copied());
        let outcome = child::run(&mut command, self.network.to_json(version), self.patience);
        match outcome {
            Ok(Outcome::Ended(output)) if output.status.success() => Ok(output.stdout),
            Ok(Outcome::Ended(output)) => Err(self.failure(verb, &output)),
            Ok(Outcome::Killed) => Err(Error::try_again(format!(
                "{verb} by IPAM plugin {}: no answer within {} s, so it was killed; try again, \
                 and find out what it waits for",
                self.name,
                self.patience.as_secs()
            ))),
            Err(cause) => {
                let path = self.executable.display();
                Err(Error::ipam(format!(
                    "run IPAM plugin {path} for {verb}: {cause}"
                )))
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_plugin_that_never_answers_means_try_again() {
        let folder = tempfile::tempdir().unwrap();
        let executable = folder.path().join("stuck");
        fs::write(&executable, "#!/bin/sh\nsleep 1000\n").unwrap();
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
        let network =
            json!({"cniVersion": "1.0.0", "name": "pods", "ipam": {"type": "stuck"}}).to_string();
        let network = Network::parse(network.as_bytes()).unwrap();
        let mut ipam = Ipam::find(&network, &[folder.path().to_owned()]).unwrap();
        ipam.patience = Duration::from_secs(1);
        let error = ipam.add().unwrap_err();
        assert_eq!(error.to_json(b"")["code"], 11);
        let needle = "ADD by IPAM plugin stuck: no answer within 1 s";
        assert!(error.to_string().starts_with(needle), "{error}");
    }
}
