//! The host's netfilter in a real namespace: the nftables table, and tracked
//! connections. Needs root.

mod common;

use common::pods::{mapping, pod_with};
use common::{TestNetns, run};
use sluice_control::Attachment;
use sluice_dataplane::netfilter::{Netfilter, Nft, PodRules};

/// What a pod with this address needs, masqueraded.
fn masqueraded(address: &str) -> PodRules {
    PodRules::of(&pod_with(11, &[address]))
}

#[test]
fn masquerading_follows_the_pods() {
    let netns = TestNetns::new("node");
    let rules = || netns.command("nft", &["list", "ruleset"]);
    netns.run(|| {
        run("nft", &["add", "table", "inet", "foreign"]);
        let before = rules();
        let mut netfilter = Netfilter::new().unwrap();
        netfilter.apply().unwrap();
        assert_eq!(rules(), before);
        drop(Nft::start().unwrap());
        assert_eq!(rules(), before, "it was given nothing to do");
        let [a, b, c] = ["10.77.0.11/24", "10.77.0.12/24", "fd00:77::11/64"].map(masqueraded);
        for pod in [&a, &b, &c] {
            netfilter.add(pod, Some(Nft::start().unwrap())).unwrap();
        }
        let both = rules();
        assert!(
            both.contains("ip saddr @masq4 ip daddr != @masq4 masquerade"),
            "{both}"
        );
        assert!(both.contains("elements = { 10.77.0.0/24 }"), "{both}");
        assert!(both.contains("elements = { fd00:77::/64 }"), "{both}");
        assert!(
            both.contains("ip6 saddr @masq6 ip6 daddr != @masq6 masquerade"),
            "{both}"
        );
        netfilter.remove(&a).unwrap();
        assert_eq!(rules(), both, "another pod is still in that subnet");
        netfilter.remove(&b).unwrap();
        assert!(!rules().contains("10.77.0.0/24"), "{}", rules());
        netfilter.remove(&c).unwrap();
        assert_eq!(rules(), before);
    });
}

#[test]
fn an_earlier_daemons_masquerading_stays_until_it_is_replaced() {
    let netns = TestNetns::new("node");
    let rules = || run("nft", &["list", "ruleset"]);
    netns.run(|| {
        let [a, b] = ["10.77.0.11/24", "10.79.0.11/24"].map(masqueraded);
        let mut earlier = Netfilter::new().unwrap();
        for pod in [&a, &b] {
            earlier.add(pod, None).unwrap();
        }
        let both = rules();
        drop(earlier);
        let mut netfilter = Netfilter::new().unwrap();
        netfilter.expect(&a);
        assert_eq!(rules(), both);
        netfilter.apply().unwrap();
        let one = rules();
        assert!(one.contains("elements = { 10.77.0.0/24 }"), "{one}");
        netfilter.remove(&a).unwrap();
        assert_eq!(rules(), "");
    });
}

/// A pod with nothing but a mapping of this port of the node.
fn mapped(number: u8, host_port: u16) -> Attachment {
    let mut pod = pod_with(number, &[&format!("10.77.0.{number}/24")]);
    pod.ip_masq = false;
    pod.mappings.push(mapping(host_port, None));
    pod
}

#[test]
fn only_what_others_did_to_the_table_is_undone() {
    let netns = TestNetns::new("node");
    let rules = || run("nft", &["list", "ruleset"]);
    netns.run(|| {
        let [a, b] = [mapped(11, 8011), mapped(12, 8012)].map(|pod| PodRules::of(&pod));
        let mut netfilter = Netfilter::new().unwrap();
        netfilter.add(&a, None).unwrap();
        netfilter.add(&b, None).unwrap();
        netfilter.remove(&b).unwrap();
        run("nft", &["add", "table", "inet", "foreign"]);
        run("nft", &["add", "table", "ip", "sluice"]);
        assert!(!netfilter.mend().unwrap(), "nothing of ours was touched");
        run("nft", &["delete", "table", "ip", "sluice"]);
        run("nft", &["delete", "table", "inet", "foreign"]);
        let before = rules();
        for damage in [
            "flush ruleset",
            "delete table inet sluice",
            "flush chain inet sluice prerouting",
            "flush map inet sluice hostports4",
            "delete element inet sluice hostports4 { 6 . 8011 }",
            "add element inet sluice hostports4 { 6 . 9999 : 10.0.0.1 . 80 }",
        ] {
            run("nft", &damage.split(' ').collect::<Vec<_>>());
            assert_ne!(rules(), before, "{damage}");
            assert!(netfilter.mend().unwrap(), "{damage}");
            assert_eq!(rules(), before, "{damage}");
            assert!(!netfilter.mend().unwrap(), "{damage}");
            netfilter.check(&a).unwrap();
        }
        // A change of ours finds the table gone.
        run("nft", &["flush", "ruleset"]);
        assert!(netfilter.check(&a).is_err());
        netfilter.add(&b, None).unwrap();
        netfilter.check(&a).unwrap();
        netfilter.remove(&b).unwrap();
        assert_eq!(rules(), before);
        netfilter.remove(&a).unwrap();
        assert_eq!(rules(), "");
    });
}

#[test]
fn a_mapping_that_leads_elsewhere_is_noticed() {
    let netns = TestNetns::new("node");
    netns.run(|| {
        let pod = PodRules::of(&mapped(11, 8011));
        let mut netfilter = Netfilter::new().unwrap();
        netfilter.add(&pod, None).unwrap();
        for change in [
            "delete element inet sluice hostports4 { 6 . 8011 }",
            "add element inet sluice hostports4 { 6 . 8011 : 10.77.0.99 . 80 }",
        ] {
            run("nft", &change.split(' ').collect::<Vec<_>>());
            assert!(netfilter.check(&pod).is_err(), "{change}");
        }
    });
}

/// Each of ten thousand mappings is a transaction of its own size.
#[test]
fn ten_thousand_mappings_come_and_go() {
    let netns = TestNetns::new("node");
    netns.run(|| {
        let mut many = mapped(11, 1);
        many.mappings = (1..=10_000).map(|port| mapping(port, None)).collect();
        let many = PodRules::of(&many);
        let one = PodRules::of(&mapped(12, 20_000));
        let mut netfilter = Netfilter::new().unwrap();
        netfilter.add(&many, None).unwrap();
        netfilter.add(&one, None).unwrap();
        assert!(one.addition().len() < 200);
        netfilter.check(&many).unwrap();
        netfilter.remove(&one).unwrap();
        assert!(!netfilter.mend().unwrap(), "all of it was ours");
        run("nft", &["flush", "ruleset"]);
        assert!(netfilter.mend().unwrap());
        netfilter.check(&many).unwrap();
        netfilter.remove(&many).unwrap();
    });
}
