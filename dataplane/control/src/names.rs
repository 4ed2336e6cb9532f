//! Which names are safe in paths and as interface names.

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

#[cfg(test)]
mod tests {
    use super::*;

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
