//! UDP sockets of the host's processes that a hostPort led to a pod that is
//! gone: connected, they would send to its address for ever, and to another pod
//! once that has it.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;

use sluice_control::Protocol;

use crate::mapping_tables::MappingTables;
use crate::sock_diag::{CONNECTED, SockDiag};

/// Ends the conversations of sockets in the calling thread's namespace that are
/// connected to one of `pods` because the tables led them there: their processes
/// see ECONNABORTED, and may connect anew. Answers how many. Whoever connected
/// to a pod's own address is left alone.
///
/// # Errors
/// The kernel does not list its sockets, or cannot end them
/// (`CONFIG_INET_DIAG_DESTROY`).
pub fn end(tables: &MappingTables, pods: &HashSet<SocketAddr>) -> io::Result<usize> {
    if pods.is_empty() {
        return Ok(0);
    }
    let mut sockets = SockDiag::open()?;
    let mut led = Vec::new();
    sockets.list(Protocol::Udp, CONNECTED, |socket| {
        let pod = SocketAddr::new(socket.remote.ip().to_canonical(), socket.remote.port());
        if pods.contains(&pod) && tables.has_led(socket.cookie(), pod) {
            led.push(socket);
        }
    })?;
    let mut ended = 0;
    for socket in &led {
        ended += usize::from(sockets.destroy(Protocol::Udp, socket)?);
    }
    Ok(ended)
}
