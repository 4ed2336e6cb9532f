//! A blocking facade over rtnetlink.
//!
//! [`link`], [`address`], [`route`] and [`forwarding`] hold the requests, one kind
//! each.

mod address;
mod forwarding;
mod link;
mod route;

use std::io;

use futures_util::{Stream, TryStreamExt};
use rtnetlink::packet_core::{NlaBuffer, NlasIterator};
use rtnetlink::sys::AsyncSocket;
use rtnetlink::{Error, Handle};
use tokio::runtime::{Builder, Runtime};

use crate::error::Explained;
use crate::{LinkError, Netns};

pub use address::AddressOptions;
pub use forwarding::{Forwarding, Hop, Neighbour};
pub use link::{Link, VethPair, VethPeer, XdpMode};
pub use route::Route;

/// A routing-netlink socket. It stays in the namespace it was opened in,
/// whatever the thread that uses it does.
#[derive(Debug)]
pub struct Netlink {
    /// Runs the socket's I/O, and only while a request is under way.
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel gives no socket or no epoll instance.
    pub fn new() -> Result<Self, LinkError> {
        Self::open().map_err(|cause| LinkError::refused("open", "a netlink socket", cause))
    }

    /// Opens a socket in `ns`, without the calling thread entering it.
    ///
    /// # Errors
    /// As [`Netlink::new`], or the namespace cannot be entered.
    pub fn in_netns(ns: &Netns) -> Result<Self, LinkError> {
        ns.run(Self::new)?
    }

    fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let handle = {
            let _context = runtime.enter();
            let (mut connection, handle, _) = rtnetlink::new_connection()?;
            let socket = connection.socket_mut().socket_mut();
            // Errors come with an explanation, and without a copy of the
            // request that caused them.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    /// Sends a request and waits for its acknowledgement.
    fn ask(
        &self,
        request: impl Future<Output = Result<(), Error>>,
        operation: &'static str,
        object: impl FnOnce() -> String,
    ) -> Result<(), LinkError> {
        self.runtime
            .block_on(request)
            .map_err(|error| LinkError::refused(operation, object(), cause(error)))
    }

    /// Sends a request and collects its answers.
    fn collect<T>(
        &self,
        answers: impl Stream<Item = Result<T, Error>>,
        operation: &'static str,
        object: &str,
    ) -> Result<Vec<T>, LinkError> {
        self.runtime
            .block_on(answers.try_collect())
            .map_err(|error| LinkError::refused(operation, object, cause(error)))
    }
}

/// `Ok(false)` for an error that says that the object was not there.
fn existed(result: Result<(), LinkError>, absent: i32) -> Result<bool, LinkError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(absent) => Ok(false),
        Err(error) => Err(error),
    }
}

fn cause(error: Error) -> io::Error {
    let Error::NetlinkError(message) = error else {
        return io::Error::other(error);
    };
    let errno = message.to_io();
    match explanation(&message.header) {
        Some(explanation) => io::Error::other(Explained { errno, explanation }),
        None => errno,
    }
}

/// The kernel's explanation in what follows the error number: the request's
/// header of 16 bytes (NETLINK_CAP_ACK), then attributes (NETLINK_EXT_ACK).
fn explanation(payload: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attributes = payload.get(16..)?;
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = text.value().split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}
