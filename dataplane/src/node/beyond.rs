//! The uplink while the node runs: served as long as it can be, and its next
//! hops as the kernel has them.

use std::time::Duration;

use crate::host_port::HOST_INTERFACE;

use super::routing::Change;
use super::{Node, NodeError, uplink};

impl Node {
    /// Has frames for mapped ports come past the kernel, if the uplink can do
    /// that; else the kernel's rules serve, and the log says why.
    pub(super) fn start_uplink(&mut self) {
        let served = self.found_uplink.clone().and_then(|device| {
            self.wiring
                .start_uplink(&device)
                .map_err(uplink::State::kernel)?;
            if let Err(error) = self
                .routing
                .tell(Change::Network, &device.link, &self.wiring)
            {
                tracing::warn!(%error, "the kernel answers by the uplink for now");
                self.routing.postpone(Change::Network);
            }
            tracing::info!(
                interface = device.link.name,
                "hostPorts from outside go past the kernel"
            );
            Ok(uplink::State::Served {
                interface: device.link.name,
                queues: device.queues,
            })
        });
        if let Err(state) = &served {
            if let Err(error) = self.wiring.leave_uplinks_but(None) {
                tracing::warn!(%error, "an earlier daemon's program stays on an uplink");
            }
            if let uplink::State::Kernel { reason } = state {
                tracing::info!(reason, "hostPorts from outside go by the kernel");
            }
        }
        self.uplink = served.unwrap_or_else(|state| state);
    }

    /// Follows the uplink and the routes, rules and neighbours beyond it. To be
    /// called when one of [`Node::watches`] is readable, and now and then.
    ///
    /// # Errors
    /// The kernel does not tell; another look will be due.
    pub fn follow_uplink(&mut self) -> Result<(), NodeError> {
        let Some(followed) = self.followed_uplink.clone() else {
            return Ok(());
        };
        if let Some(change) = self.routing.look(&followed.link)? {
            let followed = self.follow_change(change, &followed);
            followed.inspect_err(|_| self.routing.postpone(change))?;
        }
        self.routing.keep_in_use();
        Ok(())
    }

    /// How long may pass until the next call of [`Node::follow_uplink`].
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.routing.patience()
    }

    fn follow_change(
        &mut self,
        change: Change,
        followed: &uplink::Device,
    ) -> Result<(), NodeError> {
        if change == Change::Network {
            let links = self.netlink.links()?;
            let rule = self.netlink.policy_rule(HOST_INTERFACE)?;
            let found = uplink::again(followed, &links, rule);
            let before = std::mem::replace(&mut self.found_uplink, found);
            // What could not be started before is not tried again: many drivers
            // restart the link when a program is attached.
            let is_same = match (&before, &self.found_uplink) {
                (Ok(before), Ok(now)) => before.link.index == now.link.index,
                (Err(before), Err(now)) => before == now,
                _ => false,
            };
            if let Ok(device) = &self.found_uplink {
                self.followed_uplink = Some(device.clone());
            }
            if !is_same {
                self.stop_uplink();
                self.start_uplink();
                return Ok(());
            }
        }
        match (&self.uplink, &self.found_uplink) {
            (uplink::State::Served { .. }, Ok(device)) => {
                self.routing.tell(change, &device.link, &self.wiring)
            }
            _ => Ok(()),
        }
    }

    /// Leaves frames for mapped ports to the kernel, and all conversations.
    fn stop_uplink(&mut self) {
        self.routing.forget();
        for error in self.wiring.stop_uplink() {
            tracing::warn!(%error, "could not let go of the uplink");
        }
    }
}
