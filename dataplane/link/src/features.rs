//! Offloads and queues of an interface, by the ethtool ioctl.
//!
//! The only unsafe code of this crate. `SIOCETHTOOL` takes a pointer inside a
//! C union, and what the kernel reads and writes behind it depends on the
//! command; neither std, nix nor rustix wraps it. The generic-netlink family
//! of ethtool would do without, at the price of resolving the family and of
//! three more crates, for one bit.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

use crate::LinkError;

/// Offloads of the sending side that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// All transmit checksums, SCTP's too. The kernel then also gives up what
    /// depends on them, such as TSO.
    TxChecksum,
    /// The CRC of SCTP, which no AF_XDP transmit request can complete.
    TxChecksumSctp,
    /// Segmentation of all but plain TCP: datagrams and tunnels, which are told apart
    /// from what they are made of by nothing in their headers, and TCP's congestion
    /// marks, which only one segment may have.
    SegmentationButTcp,
}

impl Feature {
    /// The kernel's names (`netdev_features_strings`, net/ethtool/common.c).
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::TxChecksum => &[
                "tx-checksum-ip-generic",
                "tx-checksum-ipv4",
                "tx-checksum-ipv6",
                "tx-checksum-fcoe-crc",
                "tx-checksum-sctp",
            ],
            Self::TxChecksumSctp => &["tx-checksum-sctp"],
            Self::SegmentationButTcp => &[
                "tx-tcp-ecn-segmentation",
                "tx-tcp-accecn-segmentation",
                "tx-udp-segmentation",
                "tx-sctp-segmentation",
                "tx-gso-list",
                "tx-gso-partial",
                "tx-gre-segmentation",
                "tx-gre-csum-segmentation",
                "tx-ipxip4-segmentation",
                "tx-ipxip6-segmentation",
                "tx-udp_tnl-segmentation",
                "tx-udp_tnl-csum-segmentation",
                "tx-tunnel-remcsum-segmentation",
                "tx-esp-segmentation",
                "tx-fcoe-segmentation",
            ],
        }
    }
}

// linux/ethtool.h
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// Switches `feature` off on the interface `ifname` of the calling thread's
/// namespace. An interface that lacks the feature is as it should be.
///
/// # Errors
/// There is no such interface, no privilege, or the driver keeps it on.
pub fn disable(ifname: &str, feature: Feature) -> Result<(), LinkError> {
    let refused = |cause| {
        let object = format!("{} of {ifname}", feature.names().join(", "));
        LinkError::refused("switch off", object, cause)
    };
    let device = Device::open(ifname).map_err(refused)?;
    let words = device.feature_words().map_err(refused)?;
    let names = device.feature_names(words).map_err(refused)?;
    let wanted: Vec<usize> = (0..names.len())
        .filter(|bit| feature.names().contains(&names[*bit].as_str()))
        .collect();
    device.clear_features(words, &wanted).map_err(refused)?;
    let active = device.active_features(words).map_err(refused)?;
    match wanted.iter().find(|bit| is_set(&active, **bit)) {
        None => Ok(()),
        Some(bit) => Err(LinkError::FeatureFixed {
            feature: names[*bit].clone(),
            interface: ifname.to_owned(),
        }),
    }
}

/// How many queues the interface `ifname` of the calling thread's namespace
/// receives by. A driver that does not tell is taken to have one.
///
/// # Errors
/// There is no such interface.
pub fn rx_queues(ifname: &str) -> Result<u32, LinkError> {
    let refused = |cause| LinkError::refused("count the receive queues of", ifname, cause);
    let device = Device::open(ifname).map_err(refused)?;
    match device.rx_channels() {
        Ok(channels) => Ok(channels.max(1)),
        Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(cause) => Err(refused(cause)),
    }
}

fn is_set(words: &[u32], bit: usize) -> bool {
    words[bit / 32] >> (bit % 32) & 1 == 1
}

/// An interface by name, and a socket to ask for it.
struct Device {
    socket: UnixDatagram,
    name: [c_char; libc::IFNAMSIZ],
}

impl Device {
    fn open(ifname: &str) -> io::Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        // The last byte stays 0: the kernel reads a C string.
        if ifname.is_empty() || ifname.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(ifname.bytes()) {
            *to = from.cast_signed() as c_char;
        }
        // Any socket will do, it only carries the namespace (sock_do_ioctl in
        // net/socket.c); this one needs no address family to be configured.
        let socket = UnixDatagram::unbound()?;
        Ok(Self { socket, name })
    }

    /// How many 32-bit words the kernel's feature set has.
    fn feature_words(&self) -> io::Result<usize> {
        let mut request = [ETHTOOL_GFEATURES, 0];
        // SAFETY: struct ethtool_gfeatures with size 0: the kernel writes its
        // two header words, and no block.
        unsafe { self.ethtool(&mut request) }?;
        Ok(request[1] as usize)
    }

    /// The features' names, in the order of their bits.
    fn feature_names(&self, words: usize) -> io::Result<Vec<String>> {
        let most = words * 32;
        let mut request = vec![0; 3 + most * ETH_GSTRING_LEN / size_of::<u32>()];
        request[..2].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES]);
        // SAFETY: struct ethtool_gstrings: the kernel writes three words and
        // one string a feature, and there are no more features than bits.
        unsafe { self.ethtool(&mut request) }?;
        let count = (request[2] as usize).min(most);
        let bytes: Vec<u8> = request[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();
        let strings = bytes.chunks_exact(ETH_GSTRING_LEN).take(count);
        let text = |string: &[u8]| {
            let end = string.iter().position(|b| *b == 0).unwrap_or(string.len());
            String::from_utf8_lossy(&string[..end]).into_owned()
        };
        Ok(strings.map(text).collect())
    }

    /// The words of the features that are on.
    fn active_features(&self, words: usize) -> io::Result<Vec<u32>> {
        const BLOCK: usize = 4; // available, requested, active, never changed
        const ACTIVE: usize = 2;
        let mut request = vec![0; 2 + words * BLOCK];
        request[..2].copy_from_slice(&[ETHTOOL_GFEATURES, size_word(words)?]);
        // SAFETY: struct ethtool_gfeatures: the kernel writes two words and
        // as many blocks as the second says, for which there is room.
        unsafe { self.ethtool(&mut request) }?;
        let blocks = request[2..].chunks_exact(BLOCK);
        Ok(blocks.map(|block| block[ACTIVE]).collect())
    }

    /// Asks for the features at `bits` to be off. The kernel passes over
    /// those that the device cannot change.
    fn clear_features(&self, words: usize, bits: &[usize]) -> io::Result<()> {
        const BLOCK: usize = 2; // valid, requested
        let mut request = vec![0; 2 + words * BLOCK];
        request[..2].copy_from_slice(&[ETHTOOL_SFEATURES, size_word(words)?]);
        for bit in bits {
            request[2 + bit / 32 * BLOCK] |= 1 << (bit % 32);
        }
        // SAFETY: struct ethtool_sfeatures: the kernel reads two words and as
        // many blocks as the second says, all there, and writes nothing.
        unsafe { self.ethtool(&mut request) }
    }

    /// Queues that only receive, and those that do both.
    fn rx_channels(&self) -> io::Result<u32> {
        // Command, four limits, then what there is: RX, TX, other, combined.
        let mut request = [0; 9];
        request[0] = ETHTOOL_GCHANNELS;
        // SAFETY: struct ethtool_channels, nine words.
        unsafe { self.ethtool(&mut request) }?;
        let [.., rx, _tx, _other, combined] = request;
        Ok(rx + combined)
    }

    /// # Safety
    /// `request` must start with a command and have room for all that the
    /// kernel reads and writes for it.
    unsafe fn ethtool(&self, request: &mut [u32]) -> io::Result<()> {
        let mut ifreq = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: request.as_mut_ptr().cast(),
            },
        };
        // SAFETY: SIOCETHTOOL reads a struct ifreq whose name is a C string
        // and whose data pointer is, as the caller promises, good for the
        // command. Both outlive the call, and the kernel keeps neither.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn size_word(words: usize) -> io::Result<u32> {
    u32::try_from(words).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_the_names() {
        let device = Device::open("lo").unwrap();
        let words = device.feature_words().unwrap();
        let names = device.feature_names(words).unwrap();
        for feature in [Feature::TxChecksum, Feature::TxChecksumSctp] {
            for name in feature.names() {
                assert!(names.iter().any(|n| n == name), "{name} not in {names:?}");
            }
        }
        assert_eq!(device.active_features(words).unwrap().len(), words);
        // One of the others is younger than the oldest kernel that will do.
        let udp = "tx-udp-segmentation";
        assert!(Feature::SegmentationButTcp.names().contains(&udp));
        assert!(names.iter().any(|name| name == udp));
    }

    #[test]
    fn an_interface_receives_by_a_queue_at_least() {
        assert_eq!(rx_queues("lo").unwrap(), 1);
        assert!(rx_queues("nosuchif0").is_err());
    }

    #[test]
    fn bad_and_missing_interfaces_are_errors() {
        for name in ["", "sixteen-letters-", "nosuchif0"] {
            let error = disable(name, Feature::TxChecksumSctp).unwrap_err();
            assert!(error.to_string().contains("tx-checksum-sctp"), "{error}");
        }
    }
}
