//! Which ports' sockets epoll has to watch: [`crate::watch`].

use std::io;

use super::Engine;
use crate::xsk::Socket;

impl Engine {
    /// Has sockets watched that are to be, and others not, for as long as
    /// `set` can.
    pub(crate) fn change_watches(
        &mut self,
        mut set: impl FnMut(u16, Socket, bool) -> io::Result<()>,
    ) {
        while let Some(slot) = self.to_change.pop() {
            // Before nobody watches it any more.
            self.activate(slot);
            let Some(port) = self.ports[usize::from(slot)].as_deref_mut() else {
                continue;
            };
            let is_on = !port.watch.is_on;
            // Else it is tried again after another window.
            if set(slot, port.xsk.socket(), is_on).is_ok() {
                port.watch.is_on = is_on;
            }
        }
    }

    /// Has all sockets watched, before a sleep. Whether all are.
    pub(crate) fn watch_all(
        &mut self,
        mut set: impl FnMut(u16, Socket, bool) -> io::Result<()>,
    ) -> bool {
        let mut all = true;
        // Only ports that are looked at are not watched.
        for slot in &self.active {
            let Some(port) = self.ports[usize::from(*slot)].as_deref_mut() else {
                continue;
            };
            if !port.watch.is_on {
                port.watch.is_on = set(*slot, port.xsk.socket(), true).is_ok();
                all &= port.watch.is_on;
            }
        }
        all
    }
}
