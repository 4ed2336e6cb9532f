//! Why a socket could not be opened.

use std::io;

use super::socket::Device;

/// Why a socket could not be opened: the call, its object, the cause.
#[derive(Debug, thiserror::Error)]
#[error("AF_XDP socket on queue {queue} of {device}: {operation}: {cause}{advice}")]
pub struct XskError {
    device: String,
    queue: u16,
    operation: &'static str,
    /// What the kernel said.
    #[source]
    cause: io::Error,
    advice: &'static str,
}

impl XskError {
    pub(super) fn new(device: &Device<'_>, operation: &'static str, cause: io::Error) -> Self {
        let advice = match cause.raw_os_error() {
            Some(libc::EBUSY) => "; another process has an AF_XDP socket on this device",
            Some(libc::EPERM) => "; run as root, or with CAP_NET_RAW and CAP_NET_ADMIN",
            Some(libc::EAFNOSUPPORT) => "; the kernel needs CONFIG_XDP_SOCKETS",
            Some(libc::EBADF) => {
                "; the host port's socket is gone: was sluice0 deleted? Restart sluiced"
            }
            Some(libc::ENOBUFS | libc::ENOMEM) => {
                "; lower dataplane.maxPorts, or raise the memory limit"
            }
            _ => "",
        };
        Self {
            device: device.name.to_owned(),
            queue: device.queue,
            operation,
            cause,
            advice,
        }
    }

    /// What the kernel said.
    #[must_use]
    pub fn cause(&self) -> &io::Error {
        &self.cause
    }
}
