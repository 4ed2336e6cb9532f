//! The tables of mapped ports that BPF programs look into: for processes of the
//! host (`host_sockets.rs`). Pinned, so that they serve on without a daemon; the
//! next one takes them over.

use std::collections::HashSet;
use std::error::Error;
use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{self, MapData, MapError};
use aya::{Ebpf, EbpfLoader};
use sluice_bpf::connect;
use sluice_control::{HostEnd, Redirect};
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

use crate::bpf_error::absent_is_fine;

/// The folder of pins, below the bpf file system. The number is that of the
/// tables' layout: a daemon with another one starts with tables of its own.
const FOLDER: &str = "mappings1";

/// Why the tables are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The folder of pins.
    #[error("create the folder {}: {cause}", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// The kernel refused the tables.
    #[error("make the BPF maps of mapped ports: {0}")]
    Load(Box<dyn Error + Send + Sync>),
    /// An entry.
    #[error("{operation} in the BPF map {map}: {cause}")]
    Entry {
        /// What was tried.
        operation: &'static str,
        /// Which table.
        map: &'static str,
        /// What the kernel said.
        cause: MapError,
    },
}

/// The tables, open for writing.
pub struct MappingTables {
    mappings: maps::HashMap<MapData, MappingKey, MappingValue>,
    addresses: maps::HashMap<MapData, [u8; 16], u32>,
    peers: maps::HashMap<MapData, PeerKey, MappingValue>,
}

impl MappingTables {
    /// Takes the tables of an earlier daemon, or makes empty ones, with pins in
    /// the bpf file system mounted at `bpffs`.
    ///
    /// # Errors
    /// The folder of pins, or the kernel's reason.
    pub fn open(bpffs: &Path) -> Result<Self, TableError> {
        let folder = folder(bpffs);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|cause| TableError::Folder {
                path: folder.clone(),
                cause,
            })?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&folder)
            .load(connect::OBJECT)
            .map_err(|error| TableError::Load(error.into()))?;
        Ok(Self {
            mappings: table(&mut object, connect::MAPPINGS)?,
            addresses: table(&mut object, connect::NODE_ADDRESSES)?,
            peers: table(&mut object, connect::PEERS)?,
        })
    }

    /// Maps a port of the node, or changes where it leads.
    ///
    /// # Errors
    /// The kernel's reason: the table is full, say.
    pub fn map(&mut self, redirect: &Redirect) -> Result<(), TableError> {
        self.mappings
            .insert(key(&redirect.from), value(redirect.to), 0)
            .map_err(|cause| entry_error("map a port", connect::MAPPINGS, cause))
    }

    /// Forgets a port; a success also if it is not mapped.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn unmap(&mut self, port: &HostEnd) -> Result<(), TableError> {
        absent_is_fine(self.mappings.remove(&key(port)))
            .map_err(|cause| entry_error("forget a port", connect::MAPPINGS, cause))
    }

    /// Forgets all ports but these: what an earlier daemon mapped.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn retain(&mut self, ports: &HashSet<HostEnd>) -> Result<(), TableError> {
        let failed = |cause| entry_error("forget ports", connect::MAPPINGS, cause);
        let wanted: HashSet<MappingKey> = ports.iter().map(key).collect();
        let found: Result<Vec<MappingKey>, MapError> = self.mappings.keys().collect();
        for key in found.map_err(failed)? {
            if !wanted.contains(&key) {
                absent_is_fine(self.mappings.remove(&key)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Sets the node's addresses: those where a mapping counts, besides the
    /// loopback ones.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn set_addresses(&mut self, node: &HashSet<IpAddr>) -> Result<(), TableError> {
        let failed =
            |cause| entry_error("set the node's addresses", connect::NODE_ADDRESSES, cause);
        let wanted: HashSet<[u8; 16]> = node.iter().copied().map(octets).collect();
        for address in &wanted {
            self.addresses.insert(address, 0, 0).map_err(failed)?;
        }
        let found: Result<Vec<[u8; 16]>, MapError> = self.addresses.keys().collect();
        for address in found.map_err(failed)? {
            if !wanted.contains(&address) {
                absent_is_fine(self.addresses.remove(&address)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Whether the socket of this cookie talks to `pod` because it was led there.
    #[must_use]
    pub fn has_led(&self, socket: u64, pod: SocketAddr) -> bool {
        let key = transmute!(PeerLayout {
            socket: socket.to_ne_bytes(),
            backend: endpoint(pod),
            zero: [0; 4],
        });
        self.peers.get(&key, 0).is_ok()
    }
}

/// Where the tables are pinned, and the programs that look into them.
pub(crate) fn folder(bpffs: &Path) -> PathBuf {
    bpffs.join(FOLDER)
}

type MappingKey = [u8; size_of::<KeyLayout>()];
type MappingValue = [u8; size_of::<ValueLayout>()];
type PeerKey = [u8; size_of::<PeerLayout>()];

/// `struct mapping_key` in mappings.h.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct KeyLayout {
    address: [u8; 16],
    port: U16,
    protocol: u8,
    zero: u8,
}

/// `struct endpoint` there.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ValueLayout {
    address: [u8; 16],
    port: U16,
    zero: [u8; 2],
}

/// `struct peer_key` in connect.bpf.c.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PeerLayout {
    socket: [u8; 8],
    backend: ValueLayout,
    zero: [u8; 4],
}

fn key(end: &HostEnd) -> MappingKey {
    transmute!(KeyLayout {
        address: octets(end.address),
        port: end.port.into(),
        protocol: end.protocol.number(),
        zero: 0,
    })
}

fn value(pod: SocketAddr) -> MappingValue {
    transmute!(endpoint(pod))
}

fn endpoint(pod: SocketAddr) -> ValueLayout {
    ValueLayout {
        address: octets(pod.ip()),
        port: pod.port().into(),
        zero: [0; 2],
    }
}

/// IPv4 as ::ffff:a.b.c.d.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn table<K: aya::Pod, V: aya::Pod>(
    object: &mut Ebpf,
    name: &'static str,
) -> Result<maps::HashMap<MapData, K, V>, TableError> {
    let map = object
        .take_map(name)
        .ok_or_else(|| TableError::Load(format!("the object has no map {name}").into()))?;
    map.try_into()
        .map_err(|cause| entry_error("find the table", name, cause))
}

fn entry_error(operation: &'static str, map: &'static str, cause: MapError) -> TableError {
    TableError::Entry {
        operation,
        map,
        cause,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use sluice_control::Protocol;

    use super::*;

    #[test]
    fn entries_are_laid_out_as_in_the_program() {
        let end = HostEnd {
            address: Ipv4Addr::LOCALHOST.into(),
            protocol: Protocol::Tcp,
            port: 0x1234,
        };
        let mut expected = [0; 20];
        expected[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1, 0x12, 0x34, 6, 0]);
        assert_eq!(key(&end), expected);
        let value = value(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0x5678));
        expected.fill(0);
        expected[15..18].copy_from_slice(&[1, 0x56, 0x78]);
        assert_eq!(value, expected);
    }
}
