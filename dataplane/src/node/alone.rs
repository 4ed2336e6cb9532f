//! A network namespace has one daemon.

use sluice_link::Netlink;

use super::NodeError;
use crate::host_port::HostPort;
use crate::xsk::{Device, FILL_DEPTH, Features, FramePool, Umem, Xsk};

/// A live daemon of this namespace, whatever its folder, has a socket on its
/// host port: nothing may be changed under its feet.
pub(super) fn check(
    netlink: &Netlink,
    features: Features,
    umem: &'static Umem,
    pool: &mut FramePool,
) -> Result<(), NodeError> {
    let Some((_, link)) = HostPort::find(netlink)? else {
        return Ok(());
    };
    let device = Device {
        name: &link.name,
        index: link.index,
        queue: 0,
    };
    match Xsk::open(umem, &device, features, None) {
        Ok(socket) => {
            pool.reclaim(socket.close());
            Ok(())
        }
        Err(error) if error.cause().raw_os_error() == Some(libc::EBUSY) => Err(NodeError::Running),
        Err(error) => Err(error.into()),
    }
}

/// The same for who has no memory for frames yet.
///
/// # Errors
/// A daemon runs in this namespace, or the kernel does not say.
pub fn check_alone(netlink: &Netlink) -> Result<(), NodeError> {
    let plain = Features {
        multi_buffer: false,
        tx_metadata: false,
        tx_budget: false,
        gso: false,
        tso: false,
    };
    let chunks = FILL_DEPTH;
    let (umem, mut pool) =
        Umem::create(chunks).map_err(|cause| NodeError::Memory { chunks, cause })?;
    check(netlink, plain, umem, &mut pool)
}
