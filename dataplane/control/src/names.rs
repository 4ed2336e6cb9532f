//! Which names are safe in paths, as interface names and before operators'
//! eyes, and which MAC addresses a pod may have.

/// The specification's rule for network names and container IDs, with a bound
/// that keeps file names within NAME_MAX. It leaves no room for a path.
///
/// # Errors
/// The rule in words.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if starts_well && name.len() <= 128 && name.chars().all(allowed) {
        return Ok(());
    }
    Err(
        "must start with a letter or digit, hold only letters, digits, '_', '.' and '-', \
         and be at most 128 long",
    )
}

/// The kernel's rule for interface names (dev_valid_name in net/core/dev.c).
///
/// # Errors
/// The rule in words.
pub fn check_ifname(name: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if (1..=15).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(allowed) {
        return Ok(());
    }
    Err("must be an interface name: 1 to 15 characters, no '/', ':' or white space")
}

/// What Kubernetes and others call a pod: shown to operators and written to
/// logs, so nothing that moves a cursor or begins a line. Kubernetes itself is
/// stricter, but podman sends names of its own. The bound is Kubernetes's.
///
/// # Errors
/// The rule in words.
pub fn check_label(label: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_graphic() && b != b'/';
    if (1..=253).contains(&label.len()) && label.bytes().all(allowed) {
        return Ok(());
    }
    Err("must be 1 to 253 printable ASCII characters without '/' or white space")
}

/// What the node's own interfaces begin with: the gateway, the host port.
const OWN_MACS: [u8; 5] = *b"\x02SLUI";

/// Which MAC addresses an interface of a pod may have. Two pods may have the
/// same: each is alone on its link.
///
/// # Errors
/// The rule in words.
pub fn check_pod_mac(mac: [u8; 6]) -> Result<(), &'static str> {
    let is_unicast = mac[0] & 1 == 0 && mac != [0; 6];
    if is_unicast && !mac.starts_with(&OWN_MACS) {
        return Ok(());
    }
    Err("must be a unicast MAC address, and not begin with 02:53:4c:55:49, as the node's own do")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_forge_a_line() {
        for good in [
            "kube-system",
            "web-5f7c_1",
            "a",
            "0f5e-11",
            &"a".repeat(253),
        ] {
            assert_eq!(check_label(good), Ok(()), "{good:?}");
        }
        let long = "a".repeat(254);
        for bad in ["", "a b", "a\nb", "\x1b[2J", "a/b", "ä", "\u{202e}", &long] {
            assert!(check_label(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pods_mac_address_is_unicast_and_not_the_nodes() {
        assert_eq!(check_pod_mac([2, 0, 0, 0, 0, 1]), Ok(()));
        assert_eq!(check_pod_mac([0, 0, 0, 0, 0, 1]), Ok(()));
        for bad in [
            [0; 6],
            [0xff; 6],
            [1, 0, 0, 0, 0, 1],
            *b"\x02SLUIC",
            *b"\x02SLUI0",
        ] {
            assert!(check_pod_mac(bad).is_err(), "{bad:x?}");
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        assert_eq!(check_name("k8s-pod_network.1"), Ok(()));
        for bad in [
            "",
            "..",
            ".a",
            "a/b",
            "../x",
            "a b",
            "a\0b",
            "ä",
            &"a".repeat(129),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        assert_eq!(check_ifname("fifteen-letters"), Ok(()));
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
            assert!(check_ifname(bad).is_err(), "{bad:?}");
        }
    }
}
