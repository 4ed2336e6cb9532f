//! Why a node could not be set up.

use std::io;

use sluice_control::ClientError;
use sluice_link::LinkError;

/// A failure, with what was tried on what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopologyError {
    /// A command ended badly.
    #[error("{words} (in {space}): {said}")]
    Command {
        words: String,
        space: String,
        /// What it printed.
        said: String,
    },
    /// A plugin answered an error, or nothing that makes sense.
    #[error("{verb} by the plugin {plugin}: {said}")]
    Plugin {
        verb: &'static str,
        plugin: String,
        said: String,
    },
    /// The daemon ended, or does not answer.
    #[error("start {what}: {cause}; its log says: {log}")]
    Start {
        what: &'static str,
        cause: String,
        log: String,
    },
    /// The operating system refused something.
    #[error("{operation} {object}: {cause}")]
    Refused {
        operation: &'static str,
        object: String,
        cause: io::Error,
    },
    /// The kernel refused something about an interface or a namespace.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The daemon refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something to measure that this machine does not have.
    #[error("{0}")]
    Missing(String),
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
}

impl TopologyError {
    pub(crate) fn refused(
        operation: &'static str,
        object: impl Into<String>,
        cause: impl Into<io::Error>,
    ) -> Self {
        Self::Refused {
            operation,
            object: object.into(),
            cause: cause.into(),
        }
    }
}
