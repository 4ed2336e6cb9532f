//! Every case there is.

use std::collections::BTreeSet;

use super::cases::{Case, Path, Placement, Work};
use crate::topology::{Design, Feature};

/// Every case, in the order of the report.
pub(crate) fn all() -> Vec<Case> {
    use Design::{Bridge, BridgeWithoutNetfilter, Floor, JumboBridge, Ovs, Ptp, Sluice};
    use Feature::{Crowd, Ethernet, HostPort, HostPorts, Plain, Service, Shaped, Whole, Workers};
    use Path::{
        HostToPod, OutsideToHostPort, OutsideToPod, PodToHostPort, PodToOutside, PodToPod,
        PodToService,
    };
    use Placement::{OneCpu, Together};
    vec![
        Case::new("udp", "64-byte UDP, pod to pod", Work::Flood(PodToPod))
            .beside(Plain, &[Bridge, Ovs, BridgeWithoutNetfilter, Ptp])
            .also(Together, &[Bridge, Ovs])
            .quick(),
        Case::new(
            "udp-hostport",
            "64-byte UDP, pod to another's hostPort",
            Work::Flood(PodToHostPort),
        )
        .beside(HostPort, &[Bridge])
        .also(Together, &[Bridge])
        .quick(),
        Case::new(
            "udp-hostport-outside",
            "64-byte UDP, outside to a hostPort",
            Work::Flood(OutsideToHostPort),
        )
        .beside(HostPort, &[Bridge])
        .also(Together, &[Bridge]),
        Case::new(
            "udp-shaped",
            "64-byte UDP, pod to pod, limits above the load",
            Work::Flood(PodToPod),
        )
        .beside(Shaped, &[Bridge])
        .also(Together, &[Bridge])
        .quick(),
        Case::new(
            "udp-sink",
            "64-byte UDP, pod to an XDP sink in a pod",
            Work::Sink,
        )
        .beside(Plain, &[Floor]),
        Case::new(
            "udp-service",
            "64-byte UDP, pod to a Service to a pod",
            Work::Flood(PodToService),
        )
        .beside(Service, &[Bridge]),
        Case::new(
            "udp-out",
            "64-byte UDP, pod to outside, masqueraded",
            Work::Flood(PodToOutside),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "udp-host",
            "64-byte UDP, host to pod",
            Work::Flood(HostToPod),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "udp-idle-pods",
            "64-byte UDP, pod to pod, beside idle pods",
            Work::Flood(PodToPod),
        )
        .scaling(Sluice, &[Crowd(0), Crowd(1), Crowd(100), Crowd(250)])
        .scaling(Bridge, &[Crowd(0), Crowd(250)]),
        Case::new("rest", "the daemon at rest", Work::Rest).scaling(Sluice, &[Crowd(250)]),
        Case::new(
            "tcp",
            "TCP, one stream, pod to pod, local MTU",
            Work::Streams(PodToPod, 1),
        )
        .beside(Plain, &[Bridge, Ovs, JumboBridge, Ptp])
        .also(Together, &[Bridge, Ovs])
        .quick(),
        Case::new(
            "tcp-shaped",
            "TCP, one stream, pod to pod, limits above the load",
            Work::Streams(PodToPod, 1),
        )
        .beside(Shaped, &[Bridge])
        .also(Together, &[Bridge]),
        Case::new(
            "tcp-8",
            "TCP, eight streams, pod to pod, local MTU",
            Work::Streams(PodToPod, 8),
        )
        .beside(Plain, &[Bridge, Ovs, JumboBridge]),
        Case::new(
            "tcp-1500",
            "TCP, one stream, pod to pod, MTU 1500",
            Work::Streams(PodToPod, 1),
        )
        .beside(Ethernet, &[Bridge]),
        Case::new(
            "tcp-8-1500",
            "TCP, eight streams, pod to pod, MTU 1500",
            Work::Streams(PodToPod, 8),
        )
        .beside(Ethernet, &[Bridge]),
        Case::new(
            "tcp-in",
            "TCP, one stream, outside to pod, MTU 1500",
            Work::Streams(OutsideToPod, 1),
        )
        .beside(Plain, &[Bridge])
        .quick(),
        Case::new(
            "tcp-out",
            "TCP, one stream, pod to outside, MTU 1500",
            Work::Streams(PodToOutside, 1),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "tcp-host",
            "TCP, one stream, host to pod",
            Work::Streams(HostToPod, 1),
        )
        .beside(Plain, &[Bridge]),
        Case::new(
            "udp-rr",
            "UDP request and response, pod to pod",
            Work::UdpEcho(PodToPod),
        )
        .beside(Plain, &[Bridge, Ovs, BridgeWithoutNetfilter, Ptp])
        .also(Together, &[Sluice, Bridge, Ovs])
        .also(OneCpu, &[Sluice, Ovs])
        .quick(),
        Case::new(
            "tcp-rr",
            "TCP request and response, pod to pod",
            Work::TcpEcho(PodToPod),
        )
        .beside(Plain, &[Bridge, Ovs])
        .also(Together, &[Sluice, Bridge])
        .also(OneCpu, &[Sluice]),
        Case::new(
            "udp-rr-service",
            "UDP request and response, pod to a Service to a pod",
            Work::UdpEcho(PodToService),
        )
        .beside(Service, &[Bridge]),
        Case::new(
            "udp-workers",
            "64-byte UDP, pod to pod, by several workers",
            Work::Flood(PodToPod),
        )
        .scaling(Sluice, &[Workers(1), Workers(2)]),
        Case::new(
            "tcp-workers",
            "TCP, one stream, pod to pod, by several workers",
            Work::Streams(PodToPod, 1),
        )
        .scaling(Sluice, &[Workers(1), Workers(2)]),
        Case::new(
            "udp-rr-workers",
            "UDP request and response, pod to pod, by several workers",
            Work::UdpEcho(PodToPod),
        )
        .scaling(Sluice, &[Workers(1), Workers(2)])
        .last_beside(Bridge),
        Case::new(
            "first-packet",
            "first packet of a connection, outside to a hostPort",
            Work::FirstPacket,
        )
        .scaling(Sluice, &[HostPorts(1), HostPorts(100), HostPorts(10_000)])
        .scaling(Bridge, &[HostPorts(1), HostPorts(100)]),
        Case::new(
            "add",
            "ADD and DEL with hostPort and limits, one at a time",
            Work::AddDel(1),
        )
        .beside(Whole, &[Bridge])
        .quick(),
        Case::new(
            "add-50",
            "ADD and DEL with hostPort and limits, 50 at once",
            Work::AddDel(50),
        )
        .beside(Whole, &[Bridge]),
    ]
}

/// The cases with these IDs, in the order of the report.
///
/// # Errors
/// The first ID that is none.
pub(crate) fn named(ids: &[String]) -> Result<Vec<Case>, String> {
    let all = all();
    let known: BTreeSet<_> = all.iter().map(|case| case.id).collect();
    if let Some(unknown) = ids.iter().find(|id| !known.contains(id.as_str())) {
        return Err(unknown.clone());
    }
    let is_named = |case: &Case| ids.iter().any(|id| id == case.id);
    Ok(all.into_iter().filter(is_named).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_comparisons_lead_to_arms() {
        let all = all();
        let ids: BTreeSet<_> = all.iter().map(|case| case.id).collect();
        assert_eq!(ids.len(), all.len());
        for case in &all {
            let labels: BTreeSet<_> = case
                .arms
                .iter()
                .map(|arm| (arm.label(), arm.placement))
                .collect();
            assert_eq!(labels.len(), case.arms.len(), "{case:?}");
            for [ours, theirs] in &case.comparisons {
                assert!(ours != theirs && *ours.max(theirs) < case.arms.len());
            }
        }
    }

    #[test]
    fn an_unknown_case_is_named() {
        let ids = ["udp", "upd"].map(str::to_owned);
        assert_eq!(named(&ids).unwrap_err(), "upd");
        assert_eq!(named(&ids[..1]).unwrap().len(), 1);
    }

    #[test]
    fn a_design_is_scaled_against_its_own_first_size() {
        let case = named(&["first-packet".to_owned()]).unwrap().remove(0);
        assert_eq!(case.comparisons, [[1, 0], [2, 0], [4, 3]]);
        assert_eq!(case.arms[2].label(), "sluice, 10000 hostPorts");
        assert_eq!(case.arms[4].label(), "bridge + portmap, 100 hostPorts");
    }
}
