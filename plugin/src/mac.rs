//! MAC addresses as text.

use sluice_control::check_pod_mac;

/// Reads the MAC address of a pod's interface, with `:` or `-` between bytes.
///
/// # Errors
/// The rule in words.
pub(crate) fn parse(text: &str) -> Result<[u8; 6], &'static str> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let bytes: Option<Vec<u8>> = text.split(separator).map(byte).collect();
    let mac = bytes.and_then(|bytes| bytes.try_into().ok());
    let mac = mac.ok_or("must be a MAC address, such as 02:00:5e:00:53:01")?;
    check_pod_mac(mac)?;
    Ok(mac)
}

fn byte(text: &str) -> Option<u8> {
    let is_plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    u8::from_str_radix(text, 16).ok().filter(|_| is_plain)
}

/// A MAC address as results write it.
pub(crate) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_read() {
        for good in ["02:00:5e:00:53:AB", "02-00-5E-00-53-ab"] {
            assert_eq!(text(parse(good).unwrap()), "02:00:5e:00:53:ab");
        }
    }

    #[test]
    fn what_is_no_pods_address_is_refused_by_its_rule() {
        for (bad, rule) in [
            ("", "such as"),
            ("02:00:5e:00:53", "such as"),
            ("02:00:5e:00:53:01:02", "such as"),
            ("02:00:5e:00:53-01", "such as"),
            ("2:0:5e:0:53:1", "such as"),
            ("02:00:5e:00:53:+1", "such as"),
            ("02005e005301", "such as"),
            ("ff:ff:ff:ff:ff:ff", "unicast"),
            ("00:00:00:00:00:00", "unicast"),
            ("02:53:4c:55:49:43", "the node's own"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(rule), "{bad}: {error}");
        }
    }
}
