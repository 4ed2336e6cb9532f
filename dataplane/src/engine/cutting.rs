//! Segments that their sender's stack left merged, for ports that take them one by
//! one: what a device does that segments for the kernel.

use super::{Engine, find};
use crate::pipeline::Handoff;
use crate::port::PortId;
use crate::shaper::Direction;
use crate::time::Nanos;
use crate::verdict::DropReason;
use crate::xsk::{CHUNK_ROOM, MAX_CHUNKS};

/// As many segments are cut of what one port gives in one turn. What its FILL ring
/// has room for is fewer at IPv4's least maximum segment size, 536 bytes.
pub(super) const CUT_AT_ONCE: usize = 2048;

impl Engine {
    /// Whether a port takes these merged segments as they are. One with a limit does
    /// not: each waits by itself. Nor does a kernel take more than it lets a stack
    /// leave merged, or cut what has some of IPv6's extension headers
    /// (`ipv6_gso_segment`): an attempt would tell nothing about the port.
    pub(super) fn takes_merged(&mut self, to: PortId, handoff: &Handoff, now: Nanos) -> bool {
        if handoff.meta.ip.is_extended() || handoff.frame.chunks() > MAX_CHUNKS {
            return false;
        }
        find(&mut self.ports, to).is_none_or(|port| {
            let is_shaped = port.shapers.get(Direction::Ingress).is_some();
            !is_shaped && port.merges(now) && port.xsk.has_gso()
        })
    }

    /// Whether so many segments, of at most so many chunks each, may be cut now; then
    /// they count.
    fn may_cut(&mut self, segments: usize, chunks: usize) -> Result<(), DropReason> {
        if segments > self.cuts_left {
            return Err(DropReason::CutLimit);
        }
        if !self.pool.has(segments * chunks) {
            return Err(DropReason::QueueMemory);
        }
        self.cuts_left -= segments;
        Ok(())
    }

    /// Cuts merged segments for this port, and has `forward` take one after the other.
    pub(super) fn cut(
        &mut self,
        port: PortId,
        handoff: Handoff,
        mut forward: impl FnMut(&mut Self, Handoff),
    ) {
        let Handoff { frame, meta } = handoff;
        let umem = self.pool.umem();
        let mut made = 0_u64;
        let mut lack = Some(DropReason::QueueMemory);
        // Departure has found that it can be cut.
        if let Some(cut) = meta.cut(umem.head(&frame)) {
            let headers = 0..usize::from(cut.headers_len);
            let pieces = cut.pieces(&meta.ip);
            let chunks = (headers.len() + usize::from(cut.data_len)).div_ceil(CHUNK_ROOM);
            lack = self.may_cut(pieces.len(), chunks).err();
            let some = if lack.is_some() { 0 } else { pieces.len() };
            for piece in pieces.take(some) {
                let ranges = [headers.clone(), piece.clone()];
                // Other workers may have taken what there was.
                let Some(mut copy) = self.pool.copy(&frame, ranges) else {
                    lack = Some(DropReason::QueueMemory);
                    break;
                };
                let mut ip = meta.ip;
                cut.head_piece(umem.head_mut(&mut copy), &mut ip, &piece);
                let meta = meta.piece(ip);
                forward(self, Handoff { frame: copy, meta });
                made += 1;
            }
        }
        self.pool.free(frame);
        let Some(port) = find(&mut self.ports, port) else {
            return;
        };
        if let Some(reason) = lack {
            port.counters.drops.count(reason);
            made += 1;
        }
        port.counters.cut_frames.add(made.saturating_sub(1));
    }
}
