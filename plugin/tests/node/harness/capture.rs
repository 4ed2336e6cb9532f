//! The TCP segments that pass a pod's interface.

use std::thread;

use etherparse::{LaxPacketHeaders, TransportHeader};

use super::frames::Ends;
use super::wire::{Injector, Sniffer, holds};
use super::{NODE4, Pod};

/// A capture of what passes a pod's eth0.
pub(crate) struct Capture<'a> {
    pod: &'a Pod,
    thread: thread::JoinHandle<Seen>,
}

/// TCP segments that passed.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) data: usize,
    pub(crate) resets: usize,
}

impl Seen {
    fn count(&mut self, frame: &[u8]) {
        let parsed = LaxPacketHeaders::from_ethernet(frame).unwrap();
        if let Some(TransportHeader::Tcp(tcp)) = &parsed.transport {
            self.resets += usize::from(tcp.rst);
            self.data += usize::from(!parsed.payload.slice().is_empty());
        }
    }
}

impl<'a> Capture<'a> {
    /// What the pod sends last while it is captured.
    const END: &'static [u8] = b"the capture ends";

    pub(crate) fn start(pod: &'a Pod) -> Self {
        let sniffer = Sniffer::new(pod);
        let count = move || {
            let mut seen = Seen::default();
            let frames = sniffer.until(|frame| holds(frame, Self::END));
            frames.for_each(|frame| seen.count(&frame));
            seen
        };
        Self {
            pod,
            thread: thread::spawn(count),
        }
    }

    /// What was captured; nothing may have passed unseen.
    #[track_caller]
    pub(crate) fn stop(self) -> Seen {
        let buffer = self.pod.exec("ss -H0m");
        assert!(buffer.contains(",d0)"), "frames were lost: {buffer}");
        let (gateway, mac) = self.pod.macs();
        let last = Ends {
            src_mac: mac,
            dst_mac: gateway,
            src: self.pod.v4(),
            dst: NODE4,
        };
        Injector::new(self.pod, "eth0").send(&last.udp(Self::END));
        self.thread.join().unwrap()
    }
}
