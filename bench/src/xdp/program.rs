//! The sink's XDP program: `bpf/src/sink.bpf.c`.

use std::os::fd::RawFd;

use aya::maps::{MapData, PerCpuArray, XskMap};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use sluice_bpf::sink;

use super::refused_by;
use crate::error::BenchError;

/// What the counting program has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Frames.
    pub(crate) frames: u64,
    /// Their bytes, from the Ethernet header on, without FCS.
    pub(crate) bytes: u64,
}

/// The program on an interface; dropping it takes it off.
pub(crate) struct SinkProgram {
    interface: String,
    object: Ebpf,
}

impl SinkProgram {
    /// Puts the program that counts and drops what is for `port` on an
    /// interface of the calling thread's namespace.
    ///
    /// # Errors
    /// What aya or the kernel said.
    pub(crate) fn count(interface: &str, port: u16) -> Result<Self, BenchError> {
        let mut program = Self::load(interface, port)?;
        program.attach(sink::PROGRAM_COUNT)?;
        Ok(program)
    }

    /// The same with the program that hands what is for `port` to sockets,
    /// one a queue.
    ///
    /// # Errors
    /// What aya or the kernel said, or there are too many queues.
    pub(crate) fn receive(
        interface: &str,
        port: u16,
        sockets: impl Iterator<Item = RawFd>,
    ) -> Result<Self, BenchError> {
        let mut program = Self::load(interface, port)?;
        let map = program.object.map_mut(sink::SOCKETS);
        let map = map.ok_or_else(|| absent(sink::SOCKETS))?;
        let mut map: XskMap<&mut MapData> = map
            .try_into()
            .map_err(|error| refused_by("open the map receivers for", interface, error))?;
        for (queue, socket) in (0..).zip(sockets) {
            map.set(queue, socket, 0)
                .map_err(|error| refused_by("give the program the socket of", interface, error))?;
        }
        program.attach(sink::PROGRAM_RECEIVE)?;
        Ok(program)
    }

    /// What was counted since the program is there.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn counted(&self) -> Result<Counted, BenchError> {
        let refused = |error| refused_by("read the counters of", &self.interface, error);
        let map = self.object.map(sink::COUNTERS);
        let map = map.ok_or_else(|| absent(sink::COUNTERS))?;
        let map: PerCpuArray<_, [u64; 2]> = map.try_into().map_err(refused)?;
        let values = map.get(&0, 0).map_err(refused)?;
        let sum = |field: usize| values.iter().map(|value| value[field]).sum();
        Ok(Counted {
            frames: sum(0),
            bytes: sum(1),
        })
    }

    fn load(interface: &str, port: u16) -> Result<Self, BenchError> {
        let object = EbpfLoader::new()
            .override_global(sink::PORT, &port, true)
            .load(sink::OBJECT)
            .map_err(|error| refused_by("load the program for", interface, error))?;
        Ok(Self {
            interface: interface.to_owned(),
            object,
        })
    }

    fn attach(&mut self, name: &str) -> Result<(), BenchError> {
        let program = self.object.program_mut(name).ok_or_else(|| absent(name))?;
        let mut attach = || {
            let program: &mut Xdp = program.try_into()?;
            program.load()?;
            // Generic XDP would copy each frame into one linear buffer first.
            program.attach(&self.interface, XdpMode::Driver)
        };
        attach()
            .map(|_| ())
            .map_err(|error| refused_by("attach the program to", &self.interface, whole(&error)))
    }
}

/// For a name that is not in the object.
fn absent(name: &str) -> BenchError {
    refused_by("find", name, "it is not in sink.bpf.o")
}

/// An error with its causes, which aya keeps apart.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
