//! The floor: the least that any forwarder on AF_XDP sockets must do. A loop
//! reads the first cache line of each frame and moves it to the other port. It
//! takes what is for the pods' port only: both know each other's MAC address.

#![allow(
    unsafe_code,
    reason = "xsk-rs leaves it to its caller that frames are the UMEM's own"
)]

use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::{hint, io, iter, ptr};

use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::umem::frame::FrameDesc;
use xsk_rs::{CompQueue, FillQueue, RxQueue, Socket, TxQueue, Umem};

use super::ovs::wire;
use super::site::Site;
use super::{POD_PORT, Pod, Space, TopologyError};
use crate::cores;
use crate::xdp::SinkProgram;

/// Frames a turn and port, as sluiced takes.
const BATCH: usize = 64;
/// Entries of each ring.
const RING: u32 = 2048;
/// Frames that each port's fill ring begins with.
const FILL: usize = 1024;
/// In <linux/if_xdp.h> since Linux 6.17: frames that one system call sends.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// A running loop between two pods.
#[derive(Debug)]
pub(super) struct Floor {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    runs: AtomicBool,
    ends: AtomicBool,
}

impl Floor {
    /// Wires two pods, which know each other's MAC address, and starts the
    /// loop on `cpu`. It stands still.
    ///
    /// # Errors
    /// The kernel refuses interfaces, sockets or the CPU.
    pub(super) fn start(
        site: &Site,
        spaces: [Space; 2],
        cpu: usize,
    ) -> Result<(Self, [Pod; 2]), TopologyError> {
        let addresses = [2, 3].map(|host| Ipv4Addr::new(10, 77, 0, host));
        let ports = ["floor2", "floor3"];
        for ((space, port), address) in spaces.iter().zip(ports).zip(addresses) {
            wire(&site.node, space, port, address)?;
        }
        let macs = [mac(&spaces[0])?, mac(&spaces[1])?];
        for (own, other) in [(0, 1), (1, 0)] {
            let (address, mac) = (addresses[other], &macs[other]);
            spaces[own].exec(&format!(
                "ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"
            ))?;
        }
        let wires = site.node.run(|| Wires::open(ports))??;
        let floor = Self::run(wires, cpu)?;
        let [a, b] = spaces;
        let pod = |space, address| Pod { space, address };
        Ok((floor, [pod(a, addresses[0]), pod(b, addresses[1])]))
    }

    fn run(mut wires: Wires, cpu: usize) -> Result<Self, TopologyError> {
        let refused = |cause| TopologyError::refused("start", "the bare XSK loop", cause);
        let state = Arc::new(State::default());
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new().name("floor".into()).spawn({
            let state = Arc::clone(&state);
            move || {
                let pinned = cores::pin(cpu);
                let is_pinned = pinned.is_ok();
                // The receiver waits for it.
                let _ = tell.send(pinned);
                if is_pinned {
                    wires.serve(&state);
                }
            }
        });
        let floor = Self {
            state,
            thread: Some(thread.map_err(refused)?),
        };
        match told.recv() {
            Ok(Ok(())) => Ok(floor),
            Ok(Err(error)) => Err(refused(error)),
            Err(error) => Err(refused(io::Error::other(error))),
        }
    }

    /// Lets it run, or stand still.
    pub(super) fn set_running(&self, runs: bool) {
        self.state.runs.store(runs, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        self.set_running(false);
        if let Some(thread) = self.thread.take() {
            // Its sockets are closed with it.
            let _ = thread.join();
        }
    }
}

/// Both ports, and the memory that they share.
struct Wires {
    umem: Umem,
    ports: [Port; 2],
    /// Frames that are being moved.
    batch: Vec<FrameDesc>,
}

struct Port {
    /// Hands the port's frames to the socket.
    _program: SinkProgram,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
}

impl Wires {
    /// Opens sockets on two interfaces of the calling thread's namespace.
    fn open(names: [&str; 2]) -> Result<Self, TopologyError> {
        let refused = |cause: io::Error| {
            TopologyError::refused("open AF_XDP sockets for", "the bare XSK loop", cause)
        };
        let count = NonZeroU32::new(2 * RING).unwrap_or(NonZeroU32::MIN);
        let (umem, frames) = Umem::new(UmemConfig::default(), count, false)
            .map_err(|error| refused(io::Error::other(error)))?;
        let mut halves = frames.chunks(frames.len() / 2);
        let mut open = |name: &str| {
            let mut port = Port::open(&umem, name)?;
            let own = halves.next().unwrap_or_default();
            // SAFETY: the frames are this UMEM's, and each is given away once.
            unsafe { port.fill.produce(&own[..FILL]) };
            Ok(port)
        };
        let ports = [
            open(names[0]).map_err(refused)?,
            open(names[1]).map_err(refused)?,
        ];
        let batch = frames[..BATCH].to_vec();
        Ok(Self { umem, ports, batch })
    }

    fn serve(&mut self, state: &State) {
        while !state.ends.load(Ordering::Relaxed) {
            if !state.runs.load(Ordering::Relaxed) {
                thread::park();
                continue;
            }
            let [a, b] = &mut self.ports;
            let moved = forward(&self.umem, a, b, &mut self.batch)
                + forward(&self.umem, b, a, &mut self.batch);
            if moved == 0 {
                hint::spin_loop();
            }
        }
    }
}

impl Port {
    fn open(umem: &Umem, name: &str) -> io::Result<Self> {
        let size = QueueSize::new(RING).map_err(io::Error::other)?;
        let config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let interface: Interface = name.parse().map_err(io::Error::other)?;
        // SAFETY: no other socket of this UMEM is bound to the interface.
        let queues = unsafe { Socket::new(config, umem, &interface, 0) };
        let (tx, rx, rings) = queues.map_err(io::Error::other)?;
        let (fill, completion) =
            rings.ok_or_else(|| io::Error::other("the interface is bound already"))?;
        raise_budget(tx.fd().as_raw_fd());
        let socket = iter::once(rx.fd().as_raw_fd());
        let program = SinkProgram::receive(name, POD_PORT, socket);
        Ok(Self {
            _program: program.map_err(io::Error::other)?,
            rx,
            tx,
            fill,
            completion,
        })
    }
}

/// As many frames a system call as sluiced sends, where the kernel can.
fn raise_budget(fd: RawFd) {
    let budget: libc::c_int = 512;
    let length = libc::socklen_t::try_from(size_of_val(&budget)).unwrap_or_default();
    // SAFETY: the option's value is a live integer of that length. An older
    // kernel refuses, and sends 32.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_XDP,
            XDP_MAX_TX_SKB_BUDGET,
            ptr::from_ref(&budget).cast(),
            length,
        )
    };
}

/// Moves one batch, and returns how many frames that were.
fn forward(umem: &Umem, from: &mut Port, to: &mut Port, batch: &mut [FrameDesc]) -> usize {
    // SAFETY: the ring hands out frames of this UMEM, which are ours from then
    // on until they are in the TX or FILL ring.
    let sent = unsafe {
        let done = to.completion.consume(batch);
        from.fill.produce(&batch[..done]);
        let got = from.rx.consume(batch);
        for frame in &batch[..got] {
            hint::black_box(umem.data(frame).contents().first_chunk::<64>());
        }
        let sent = to.tx.produce(&batch[..got]);
        // The other port cannot take them: dropped.
        from.fill.produce(&batch[sent..got]);
        sent
    };
    if sent > 0 && to.tx.needs_wakeup() {
        // A pod that is gone takes nothing.
        let _ = to.tx.wakeup();
    }
    sent
}

fn mac(space: &Space) -> Result<String, TopologyError> {
    let shown = space.exec("cat /sys/class/net/eth0/address")?;
    Ok(shown.trim().to_owned())
}
