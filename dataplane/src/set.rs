//! `sluiced set`: changes pods that run.

use std::error::Error;

use sluice_control::{AskedLimit, Attachment, Client, LimitChange, RATES, parse_quantity};

use crate::cli::BandwidthArgs;
use crate::conflist;

/// A rate as an operator writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rate {
    Unlimited,
    /// Bits a second.
    Limited(u64),
}

/// Reads a rate: `20M`, `unlimited`.
pub(crate) fn rate(text: &str) -> Result<Rate, &'static str> {
    if text == "unlimited" {
        return Ok(Rate::Unlimited);
    }
    match parse_quantity(text)? {
        rate if RATES.contains(&rate) => Ok(Rate::Limited(rate)),
        _ => Err("must be from 1k to 1P bits a second, or \"unlimited\""),
    }
}

/// Changes the limits of one pod, and says what they are then.
pub(crate) fn bandwidth(arguments: &BandwidthArgs) -> Result<(), Box<dyn Error>> {
    let [ingress, egress] = [
        ("ingress", arguments.ingress, arguments.ingress_burst),
        ("egress", arguments.egress, arguments.egress_burst),
    ]
    .map(|(direction, rate, burst)| change(direction, rate, burst));
    let (ingress, egress) = (ingress?, egress?);
    let settings = conflist::read(&arguments.settings)?.settings;
    let client = Client::new(&settings.socket());
    let attachments = client.attachments(None)?;
    let target = find(
        &attachments,
        &arguments.container,
        arguments.interface.as_deref(),
    )?;
    let shaping = client.set_shaping(target.id.clone(), ingress, egress)?;
    let changed = Attachment {
        shaping,
        ..target.clone()
    };
    println!("{changed}: {}", changed.limits_in_words());
    Ok(())
}

fn change(
    direction: &str,
    rate: Option<Rate>,
    burst: Option<u64>,
) -> Result<Option<LimitChange>, String> {
    match (rate, burst) {
        (None, _) => Ok(None),
        (Some(Rate::Unlimited), None) => Ok(Some(LimitChange::Unlimited)),
        (Some(Rate::Unlimited), Some(_)) => Err(format!(
            "--{direction}-burst: what is unlimited has no burst; leave it out"
        )),
        (Some(Rate::Limited(rate)), burst) => {
            Ok(Some(LimitChange::Limit(AskedLimit { rate, burst })))
        }
    }
}

/// The one interface that is meant: of a container by its ID, or the beginning
/// of it, or of a pod by `namespace/name`.
fn find<'a>(
    attachments: &'a [Attachment],
    container: &str,
    interface: Option<&str>,
) -> Result<&'a Attachment, String> {
    let is_whole = |attachment: &&Attachment| {
        let pod = attachment.pod.as_ref().map(ToString::to_string);
        attachment.id.container_id == container || pod.is_some_and(|pod| pod == container)
    };
    let is_begun = |attachment: &&Attachment| attachment.id.container_id.starts_with(container);
    let has_interface =
        |attachment: &&Attachment| interface.is_none_or(|name| attachment.id.ifname == name);
    let mut found: Vec<&Attachment> = attachments.iter().filter(is_whole).collect();
    if found.is_empty() && !container.is_empty() {
        found = attachments.iter().filter(is_begun).collect();
    }
    found.retain(has_interface);
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let interface = interface.map(|name| format!(" and interface {name:?}"));
            Err(format!(
                "no pod has the container ID or name {container:?}{}; `sluiced show ports --json` \
                 has all of them",
                interface.unwrap_or_default()
            ))
        }
        several => {
            let mut names: Vec<String> = several.iter().map(ToString::to_string).collect();
            names.sort_unstable();
            Err(format!(
                "{container:?} means more than one; say more of the container ID, or the \
                 interface by --interface:\n  {}",
                names.join("\n  ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn attachment(container: &str, ifname: &str, pod: Option<&str>) -> Attachment {
        let pod = pod.map(|name| json!({"namespace": "default", "name": name}));
        serde_json::from_value(json!({
            "id": {"network": "pods", "container_id": container, "ifname": ifname},
            "host_ifname": "slv1", "pod_mac": [2, 0, 0, 0, 0, 1], "mtu": 1500, "pod": pod,
            "addresses": [{"address": "10.77.0.2/24", "gateway": "10.77.0.1"}],
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_found_by_what_tells_it_from_others() {
        let all = [
            attachment("abc1", "eth0", Some("web")),
            attachment("abc1", "net1", Some("web")),
            attachment("abc12", "eth0", Some("db")),
            attachment("def", "eth0", None),
        ];
        for (container, interface, expected) in [
            ("d", None, Some(3)),
            ("def", Some("eth0"), Some(3)),
            ("abc12", None, Some(2)),
            ("default/db", None, Some(2)),
            // A whole ID is not the beginning of another.
            ("abc1", Some("eth0"), Some(0)),
            ("default/web", Some("net1"), Some(1)),
            ("abc", Some("net1"), Some(1)),
            ("default/w", None, None),
            ("web", None, None),
            ("abc12", Some("net1"), None),
            ("", None, None),
        ] {
            let found = find(&all, container, interface);
            match expected {
                Some(index) => assert_eq!(found, Ok(&all[index]), "{container}"),
                None => assert!(found.unwrap_err().contains("show ports"), "{container}"),
            }
        }
        for (container, interface, candidates) in [
            (
                "abc",
                None,
                vec!["eth0 of container abc1 ", "net1", "abc12"],
            ),
            ("abc1", None, vec!["eth0", "net1"]),
            (
                "abc",
                Some("eth0"),
                vec!["abc1 ", "abc12 in network pods (pod default/db)"],
            ),
        ] {
            let error = find(&all, container, interface).unwrap_err();
            assert_eq!(error.lines().count(), 1 + candidates.len(), "{error}");
            for candidate in candidates {
                assert!(error.contains(candidate), "{error}");
            }
        }
    }

    #[test]
    fn rates_are_bounded() {
        assert_eq!(rate("unlimited"), Ok(Rate::Unlimited));
        assert_eq!(rate("1.5M"), Ok(Rate::Limited(1_500_000)));
        assert_eq!(rate("1P"), Ok(Rate::Limited(1_000_000_000_000_000)));
        for bad in ["0", "999", "1.1P", "none", "10Mbit"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_burst_needs_a_limit() {
        let limited = Some(Rate::Limited(1000));
        let limit = |burst| Ok(Some(LimitChange::Limit(AskedLimit { rate: 1000, burst })));
        assert_eq!(change("ingress", limited, None), limit(None));
        assert_eq!(change("ingress", limited, Some(8)), limit(Some(8)));
        let unlimited = Some(Rate::Unlimited);
        assert_eq!(
            change("egress", unlimited, None),
            Ok(Some(LimitChange::Unlimited))
        );
        let error = change("egress", unlimited, Some(8)).unwrap_err();
        assert!(error.starts_with("--egress-burst"), "{error}");
        assert_eq!(change("egress", None, None), Ok(None));
    }
}
