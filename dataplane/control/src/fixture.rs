//! An attachment for tests.

use crate::{Attachment, AttachmentId, PodAddress, PodName, Shaping};

/// A pod's on a node with the usual MTUs.
pub(crate) fn attachment() -> Attachment {
    Attachment {
        id: AttachmentId {
            network: "pods".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        },
        host_ifname: "slv0123456789ab".into(),
        pod_mac: [2, 0, 0, 0, 0, 1],
        addresses: vec![PodAddress {
            address: "10.77.0.11/24".parse().unwrap(),
            gateway: "10.77.0.1".parse().unwrap(),
        }],
        mtu: 65_000,
        ip_masq: true,
        pod: Some(PodName {
            namespace: "default".into(),
            name: "web".into(),
            uid: Some("0f5e".into()),
        }),
        mappings: Vec::new(),
        snat: true,
        masq_all: false,
        gro: true,
        uplink_mtu: Some(1500),
        shaping: Shaping::default(),
        reshaped: false,
    }
}
