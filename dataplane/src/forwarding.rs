//! IP forwarding on the node, without costing it its own routes.

use std::fs;
use std::io;
use std::path::Path;

use sluice_link::{LinkError, sysctl};

/// The folder of IPv6's interface settings; absent where the kernel has no IPv6.
const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";

/// Why the node does not forward.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// A setting could not be read or written.
    #[error(transparent)]
    Sysctl(#[from] LinkError),
    /// The interfaces could not be listed.
    #[error("list {IPV6_CONF}: {0}")]
    List(io::Error),
}

/// Whether the kernel has IPv6.
#[must_use]
pub fn has_ipv6() -> bool {
    Path::new(IPV6_CONF).exists()
}

/// Switches forwarding on in the calling thread's namespace, IPv4 and IPv6.
///
/// A node that forwards IPv6 ignores router advertisements where `accept_ra`
/// is 1, and loses the default route that it has from them; 2 means "also when
/// forwarding" (Documentation/networking/ip-sysctl.rst). So every 1 becomes a
/// 2 first, in `default` too: for interfaces that come later.
///
/// What was changed stays when the daemon ends: others may rely on it by then.
///
/// # Errors
/// The first setting that could not be written.
pub fn enable() -> Result<(), ForwardingError> {
    sysctl::write("net/ipv4/ip_forward", "1")?;
    if !has_ipv6() {
        return Ok(());
    }
    for entry in fs::read_dir(IPV6_CONF).map_err(ForwardingError::List)? {
        let entry = entry.map_err(ForwardingError::List)?;
        let interface = entry.file_name();
        let key = format!("net/ipv6/conf/{}/accept_ra", interface.to_string_lossy());
        match keep_accepting(&key) {
            // The interface is gone since it was listed.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
    Ok(())
}

fn keep_accepting(key: &str) -> Result<(), LinkError> {
    if sysctl::read(key)? == "1" {
        sysctl::write(key, "2")?;
    }
    Ok(())
}
