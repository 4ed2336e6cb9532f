//! Errors as the specification wants them: code, message, details.
//!
//! The only place where codes are written. 1 to 99 are the specification's
//! (section 5, "Error"), from 100 on they are this plugin's own.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_control::{ClientError, ErrorCode};
use sluice_link::LinkError;

use crate::config;

/// The configuration's `cniVersion` is not supported.
const INCOMPATIBLE_VERSION: u32 = 1;
/// The container is not known; some plugins' answer to an unknown operation.
const UNKNOWN_CONTAINER: u32 = 3;
/// An environment variable is missing or wrong; the message names it.
const ENVIRONMENT: u32 = 4;
/// The network configuration could not be read.
const IO: u32 = 5;
/// The network configuration is not JSON.
const DECODE: u32 = 6;
/// The network configuration cannot be used; the message names the key.
const CONFIGURATION: u32 = 7;
/// A passing condition: the daemon is down or has no free port, or the IPAM
/// plugin does not answer.
const TRY_AGAIN: u32 = 11;
/// The plugin could not serve an ADD now (STATUS).
const UNAVAILABLE: u32 = 50;
/// Nor do the pods that are there reach all that they should (STATUS).
const LIMITED: u32 = 51;
/// The kernel refused to make or change an interface.
const KERNEL: u32 = 100;
/// The daemon could not do it, or is too old or too new for this plugin.
const DAEMON: u32 = 101;
/// The IPAM plugin could not be run, or its answer cannot be used.
const IPAM: u32 = 102;
/// Something else holds the name or the address.
const CONFLICT: u32 = 103;
/// The attachment is not as ADD made it (CHECK).
const DIFFERENT: u32 = 104;

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Error {
    code: u32,
    msg: String,
    /// What else went wrong, such as steps that could not be undone.
    details: Vec<String>,
}

impl Error {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: Vec::new(),
        }
    }

    pub(crate) fn incompatible_version(version: &str) -> Self {
        let supported = config::SUPPORTED_VERSIONS.join(", ");
        Self::new(
            INCOMPATIBLE_VERSION,
            format!("cniVersion {version:?} is not supported; supported are {supported}"),
        )
    }

    /// An operation that the configuration's version of the specification
    /// does not have.
    pub(crate) fn operation_is_newer(verb: &str, since: &str, version: &str) -> Self {
        Self::new(
            INCOMPATIBLE_VERSION,
            format!("{verb} exists since cniVersion {since}, and the configuration's is {version}"),
        )
    }

    pub(crate) fn environment(msg: impl Into<String>) -> Self {
        Self::new(ENVIRONMENT, msg)
    }

    pub(crate) fn io(operation: &str, cause: &io::Error) -> Self {
        Self::new(IO, format!("{operation}: {cause}"))
    }

    pub(crate) fn decode(msg: impl Into<String>) -> Self {
        Self::new(DECODE, msg)
    }

    pub(crate) fn configuration(msg: impl Into<String>) -> Self {
        Self::new(CONFIGURATION, msg)
    }

    pub(crate) fn ipam(msg: impl Into<String>) -> Self {
        Self::new(IPAM, msg)
    }

    /// What an IPAM plugin answered, under the code it chose.
    pub(crate) fn of_ipam_plugin(code: u32, msg: String, details: Option<String>) -> Self {
        Self {
            code,
            msg,
            details: details.into_iter().collect(),
        }
    }

    pub(crate) fn conflict(msg: impl Into<String>) -> Self {
        Self::new(CONFLICT, msg)
    }

    pub(crate) fn try_again(msg: impl Into<String>) -> Self {
        Self::new(TRY_AGAIN, msg)
    }

    pub(crate) fn differs(msg: impl Into<String>) -> Self {
        Self::new(DIFFERENT, msg)
    }

    pub(crate) fn unavailable(msg: impl Into<String>) -> Self {
        Self::new(UNAVAILABLE, msg)
    }

    /// A failure as STATUS reports it: our own reasons, and passing conditions,
    /// mean that an ADD would fail now.
    pub(crate) fn into_unavailable(mut self) -> Self {
        if self.code == TRY_AGAIN || self.code >= KERNEL {
            self.code = UNAVAILABLE;
        }
        self
    }

    /// Whether a plugin answered that it does not know the configuration's
    /// version.
    pub(crate) fn is_of_version(&self) -> bool {
        self.code == INCOMPATIBLE_VERSION
    }

    /// Whether a plugin answered that it does not know the operation. Plugins
    /// older than the operation say so in different ways.
    pub(crate) fn is_of_operation(&self) -> bool {
        match self.code {
            INCOMPATIBLE_VERSION | UNKNOWN_CONTAINER => true,
            ENVIRONMENT => self.msg.contains("unknown CNI_COMMAND"),
            _ => false,
        }
    }

    /// The first failure of several steps, with the others as details.
    pub(crate) fn all(steps: impl IntoIterator<Item = Result<(), Self>>) -> Result<(), Self> {
        let failures = steps.into_iter().filter_map(Result::err);
        failures.reduce(Self::and).map_or(Ok(()), Err)
    }

    pub(crate) fn kernel(error: &LinkError) -> Self {
        Self::new(KERNEL, error.to_string())
    }

    /// A request that the daemon did not serve.
    pub(crate) fn daemon(error: &ClientError) -> Self {
        let code = match error {
            ClientError::Down { .. } | ClientError::Broken { .. } => TRY_AGAIN,
            ClientError::Refused(refusal) => match refusal.code {
                ErrorCode::Busy | ErrorCode::Exhausted => TRY_AGAIN,
                ErrorCode::Invalid => CONFIGURATION,
                ErrorCode::Conflict => CONFLICT,
                ErrorCode::Unsupported | ErrorCode::Failed => DAEMON,
            },
        };
        Self::new(code, error.to_string())
    }

    /// The same for STATUS: without a daemon that works nothing is forwarded.
    pub(crate) fn daemon_unavailable(error: &ClientError) -> Self {
        let code = match error {
            ClientError::Down { .. } | ClientError::Broken { .. } => LIMITED,
            ClientError::Refused(refusal) if refusal.code == ErrorCode::Failed => LIMITED,
            ClientError::Refused(_) => UNAVAILABLE,
        };
        Self::new(code, error.to_string())
    }

    /// Adds what else went wrong. The first error stays the message.
    pub(crate) fn and(mut self, other: impl Display) -> Self {
        self.details.push(other.to_string());
        self
    }

    /// Says in the log what an operation ended with, and after how long.
    pub(crate) fn log(&self, took: Duration) {
        tracing::error!(code = self.code, ?took, error = self.to_string(), "failed");
    }

    /// The error as the specification prints it, in the version of the
    /// configuration on `stdin` if that is one of ours.
    pub(crate) fn to_json(&self, stdin: &[u8]) -> Value {
        let mut json = json!({
            "cniVersion": config::answer_version(stdin),
            "code": self.code,
            "msg": self.msg,
        });
        if !self.details.is_empty() {
            json["details"] = self.details.join("; ").into();
        }
        json
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.msg)?;
        for detail in &self.details {
            write!(f, "; {detail}")?;
        }
        Ok(())
    }
}

impl From<LinkError> for Error {
    fn from(error: LinkError) -> Self {
        Self::kernel(&error)
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        Self::daemon(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_control::Refusal;

    #[test]
    fn refusals_map_to_codes() {
        for (refusal, code) in [
            (ErrorCode::Busy, 11),
            (ErrorCode::Exhausted, 11),
            (ErrorCode::Invalid, 7),
            (ErrorCode::Conflict, 103),
            (ErrorCode::Unsupported, 101),
            (ErrorCode::Failed, 101),
        ] {
            let error = Error::from(ClientError::from(Refusal::new(refusal, "no")));
            assert_eq!((error.code, error.msg.as_str()), (code, "no"));
        }
    }

    #[test]
    fn status_tells_a_node_that_serves_its_pods_from_one_that_does_not() {
        for (refusal, code) in [(ErrorCode::Failed, 51), (ErrorCode::Unsupported, 50)] {
            let error = ClientError::from(Refusal::new(refusal, "no"));
            assert_eq!(Error::daemon_unavailable(&error).code, code);
        }
    }

    #[test]
    fn the_answer_has_the_configurations_version() {
        let error = Error::conflict("taken").and("a").and("b");
        assert_eq!(
            error.to_json(br#"{"cniVersion": "0.4.0"}"#),
            serde_json::json!({
                "cniVersion": "0.4.0", "code": 103, "msg": "taken", "details": "a; b"
            })
        );
        for stdin in [&b""[..], b"{", br#"{"cniVersion": "9.9.9"}"#] {
            assert_eq!(error.to_json(stdin)["cniVersion"], "1.1.0");
        }
    }
}
