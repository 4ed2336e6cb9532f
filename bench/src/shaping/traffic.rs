//! What is offered to a limit, and what comes of it.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::arrivals::Arrivals;
use super::envelope::Arrival;
use super::offer::{HEADERS, Offer};
use super::{Direction, Plan};
use crate::cores;
use crate::topology::{Bed, Design, POD_PORT, TopologyError};

/// Ethernet's header, which the kernel's token bucket counts.
const ETHERNET: u32 = 14;
/// So long a path's MTU takes to be known, and buckets to be full again.
const REST: Duration = Duration::from_millis(300);

/// Datagrams for a limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Datagrams {
    pub(super) direction: Direction,
    /// Of the IP packet, before it is fragmented, bytes.
    pub(super) size: u64,
    /// Bits a second.
    pub(super) rate: u64,
    pub(super) time: Duration,
}

/// What became of them.
#[derive(Debug)]
pub(super) struct Carried {
    /// Bytes of IP packets that the sender's kernel took.
    pub(super) offered: u64,
    /// In bytes as the design counts them: we IP packets, the kernel Ethernet frames.
    pub(super) arrivals: Vec<Arrival>,
    /// Packets that came, and were not noted.
    pub(super) missed: u32,
}

impl Datagrams {
    /// Offers them.
    ///
    /// # Errors
    /// Sockets are refused.
    pub(super) fn offer(
        &self,
        plan: &Plan,
        bed: &Bed,
        design: Design,
    ) -> Result<Carried, TopologyError> {
        let [from, to] = self.direction.ends(bed);
        let failed = |error| TopologyError::refused("send to", to.address.to_string(), error);
        // Nobody reads it: a full socket drops, without a word.
        let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, POD_PORT));
        let _sink = to.space.run(bind)?.map_err(failed)?;
        let offer = Offer {
            target: (to.address, POD_PORT).into(),
            size: usize::try_from(self.size - HEADERS).unwrap_or(usize::MAX),
            rate: self.rate,
            time: self.time,
        };
        // The sender learns the path's MTU by it, if it is to.
        let first = Offer {
            time: Duration::from_millis(20).max(2 * offer.interval()),
            ..offer
        };
        from.space.run(|| first.send())?.map_err(failed)?;
        thread::sleep(REST);
        let arrivals = to
            .space
            .run(|| Arrivals::watch(to.address))?
            .map_err(failed)?;
        let is_over = AtomicBool::new(false);
        let (offered, collected) = thread::scope(|scope| {
            let collecting = scope.spawn(|| arrivals.collect(&is_over));
            let offered = from.space.run(|| {
                cores::pin(plan.sender_cpu)?;
                offer.send()
            });
            thread::sleep(REST);
            is_over.store(true, Ordering::Relaxed);
            (offered, collecting.join())
        });
        let panicked = |_| Err(std::io::Error::other("a thread panicked"));
        let (mut arrivals, missed) = collected.unwrap_or_else(panicked).map_err(failed)?;
        if design != Design::Sluice {
            arrivals
                .iter_mut()
                .for_each(|arrival| arrival.bytes += ETHERNET);
        }
        Ok(Carried {
            offered: offered?.map_err(failed)?,
            arrivals,
            missed,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
