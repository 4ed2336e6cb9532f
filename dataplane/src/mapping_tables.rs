//! The tables of mapped ports that BPF programs look into: for processes of the
//! host (`host_sockets.rs`). Pinned, so that they serve on without a daemon; the
//! next one takes them over.

use std::collections::HashSet;
use std::error::Error;
use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{self, MapData, MapError};
use aya::{Ebpf, EbpfLoader};
use sluice_bpf::connect;
use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, transmute};

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

/// A port of the node that leads to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodePort {
    /// An address of the node; the unspecified one stands for all of its family.
    pub address: IpAddr,
    /// The node's port.
    pub port: u16,
    /// TCP or UDP, by its number (IANA "Protocol Numbers"). The kernel asks
    /// programs about no other.
    pub protocol: u8,
}

/// Where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// The pod's IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// The pod's port.
    pub port: u16,
}

/// The tables, open for writing.
pub struct MappingTables {
    mappings: maps::HashMap<MapData, MappingKey, MappingValue>,
    addresses: maps::HashMap<MapData, [u8; 16], u32>,
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
        })
    }

    /// Maps a port of the node, or changes where it leads.
    ///
    /// # Errors
    /// The kernel's reason: the table is full, say.
    pub fn map(&mut self, port: &NodePort, backend: &Backend) -> Result<(), TableError> {
        self.mappings
            .insert(port.key(), backend.value(), 0)
            .map_err(|cause| entry_error("map a port", connect::MAPPINGS, cause))
    }

    /// Forgets a port; a success also if it is not mapped.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn unmap(&mut self, port: &NodePort) -> Result<(), TableError> {
        absent_is_fine(self.mappings.remove(&port.key()))
            .map_err(|cause| entry_error("forget a port", connect::MAPPINGS, cause))
    }

    /// Forgets all ports but these: what an earlier daemon mapped.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn retain(&mut self, ports: &HashSet<NodePort>) -> Result<(), TableError> {
        let failed = |cause| entry_error("forget ports", connect::MAPPINGS, cause);
        let wanted: HashSet<MappingKey> = ports.iter().map(NodePort::key).collect();
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
}

/// Where the tables are pinned, and the programs that look into them.
pub(crate) fn folder(bpffs: &Path) -> PathBuf {
    bpffs.join(FOLDER)
}

type MappingKey = [u8; size_of::<KeyLayout>()];
type MappingValue = [u8; size_of::<ValueLayout>()];

/// `struct mapping_key` in connect.bpf.c.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct KeyLayout {
    address: [u8; 16],
    port: U16,
    protocol: u8,
    zero: u8,
}

/// `struct backend` in connect.bpf.c.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ValueLayout {
    v4: [u8; 16],
    v6: [u8; 16],
    port: U16,
    zero: [u8; 2],
}

impl NodePort {
    fn key(&self) -> MappingKey {
        transmute!(KeyLayout {
            address: octets(self.address),
            port: self.port.into(),
            protocol: self.protocol,
            zero: 0,
        })
    }
}

impl Backend {
    fn value(&self) -> MappingValue {
        let none = [0; 16];
        transmute!(ValueLayout {
            v4: self.v4.map_or(none, |v4| octets(v4.into())),
            v6: self.v6.map_or(none, |v6| octets(v6.into())),
            port: self.port.into(),
            zero: [0; 2],
        })
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

fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
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
    use super::*;

    #[test]
    fn entries_are_laid_out_as_in_the_program() {
        let port = NodePort {
            address: Ipv4Addr::LOCALHOST.into(),
            port: 0x1234,
            protocol: 6,
        };
        assert_eq!(
            port.key(),
            [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1, 0x12, 0x34, 6, 0
            ]
        );
        let backend = Backend {
            v4: None,
            v6: Some(Ipv6Addr::LOCALHOST),
            port: 0x5678,
        };
        let value = backend.value();
        assert_eq!(value[..16], [0; 16]);
        assert_eq!(value[31..], [1, 0x56, 0x78, 0, 0]);
    }
}
