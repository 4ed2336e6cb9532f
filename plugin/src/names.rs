//! Names that this plugin makes up.

use sluice_control::AttachmentId;

/// The name of the host's end of an attachment's veth: a function of the
/// attachment alone, so that DEL finds it without any record.
pub(crate) fn host_ifname(id: &AttachmentId) -> String {
    format!("slv{:012x}", hash("name", id))
}

/// The MAC address of the pod's end: locally administered, unicast
/// (IEEE 802, section 8.4), and the same if the same attachment is made anew.
pub(crate) fn pod_mac(id: &AttachmentId) -> [u8; 6] {
    let [_, _, _, a, b, c, d, e] = hash("mac", id).to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// 48 bits: FNV-1a of 64 bits, folded as its authors advise
/// (<http://www.isthe.com/chongo/tech/comp/fnv/#xor-fold>). It must give the
/// same value in every version of this plugin, which std's hasher does not
/// promise. The parts are apart: no name holds a NUL.
fn hash(purpose: &str, id: &AttachmentId) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let text = [purpose, &id.network, &id.container_id, &id.ifname].join("\0");
    let hash = text.bytes().fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    });
    (hash >> 48) ^ (hash & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(network: &str, container_id: &str, ifname: &str) -> AttachmentId {
        AttachmentId {
            network: network.into(),
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    /// A changed name would orphan the interfaces of running pods.
    #[test]
    fn the_host_name_never_changes() {
        let name = host_ifname(&id("pods", "c1", "eth0"));
        assert_eq!(name, "slv159e6483e4d9");
        assert_eq!(sluice_control::check_ifname(&name), Ok(()));
    }

    #[test]
    fn each_part_counts() {
        let names = [
            id("pods", "c1", "eth0"),
            id("pods", "c1", "eth1"),
            id("pods", "c2", "eth0"),
            id("pod", "sc1", "eth0"),
            id("pod", "c1", "eth0"),
        ]
        .map(|id| (host_ifname(&id), pod_mac(&id)));
        for (i, (name, mac)) in names.iter().enumerate() {
            for (other, other_mac) in &names[..i] {
                assert_ne!(name, other);
                assert_ne!(mac, other_mac);
            }
            assert_eq!(mac[0], 2);
        }
    }
}
