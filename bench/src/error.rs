//! Why a measurement could not be made.

use std::io;

use sluice_link::LinkError;

use crate::topology::TopologyError;

/// Why a measurement could not be made. What was measured is never an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// A namespace, an interface, an address.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A node to measure on.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The kernel refused something else.
    #[error("{operation} {object}: {cause}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What the kernel said, and where known what to do.
        cause: io::Error,
    },
    /// An AF_XDP socket or a BPF program.
    #[error("{operation} {object}: {cause}; {hint}")]
    Xdp {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What xsk-rs or aya said.
        cause: String,
        /// What to do.
        hint: &'static str,
    },
    /// What was asked for cannot be done; the text says what can.
    #[error("{0}")]
    Refused(String),
}

impl BenchError {
    /// For `map_err`: an operation of the kernel's on an object.
    pub(crate) fn system<E: Into<io::Error>>(
        operation: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let object = object.into();
        move |cause| Self::System {
            operation,
            object,
            cause: cause.into(),
        }
    }
}
