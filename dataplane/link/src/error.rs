//! Why an interface could not be read or changed.

use std::io;
use std::path::PathBuf;

/// A failure, with what was tried on what.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The file opened as a network namespace is something else.
    #[error(
        "open the network namespace {}: the file is not a network namespace; \
         give the path of one, such as /run/netns/NAME or /proc/PID/ns/net",
        path.display()
    )]
    NotANetns {
        /// The file.
        path: PathBuf,
    },
    /// The kernel refused a request.
    #[error("{operation} {object}: {cause}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// What the kernel said, in its own words where it has any.
        cause: io::Error,
    },
    /// The kernel accepted to switch a feature off, but it is still on.
    #[error("switch off {feature} of {interface}: the driver does not allow it")]
    FeatureFixed {
        /// The kernel's name of the feature.
        feature: String,
        /// The interface.
        interface: String,
    },
}

impl LinkError {
    /// The kernel's error number, if a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { cause, .. } => errno_of(cause),
            Self::NotANetns { .. } | Self::FeatureFixed { .. } => None,
        }
    }

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

/// A netlink error number with the kernel's own explanation
/// (`NLMSGERR_ATTR_MSG`): "Nexthop has invalid gateway" says more than EINVAL.
#[derive(Debug, thiserror::Error)]
#[error("{errno} ({explanation})")]
pub(crate) struct Explained {
    pub(crate) errno: io::Error,
    pub(crate) explanation: String,
}

fn errno_of(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        let explained = error.get_ref()?.downcast_ref::<Explained>()?;
        explained.errno.raw_os_error()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errno_survives_an_explanation() {
        let plain = io::Error::from_raw_os_error(libc::ENODEV);
        let explained = io::Error::other(Explained {
            errno: io::Error::from_raw_os_error(libc::ERANGE),
            explanation: "mtu greater than device maximum".into(),
        });
        for (cause, errno, text) in [
            (plain, libc::ENODEV, "read the link x: No such device"),
            (explained, libc::ERANGE, "(mtu greater than device maximum)"),
        ] {
            let error = LinkError::refused("read the link", "x", cause);
            assert_eq!(error.errno(), Some(errno));
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
