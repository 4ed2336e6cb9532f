//! Kernel settings under `/proc/sys`, in the calling thread's namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::LinkError;

/// Reads a key such as `net/ipv4/ip_forward`. Parts are separated by slashes,
/// since an interface's name may hold dots.
///
/// # Errors
/// The key does not exist or cannot be read.
pub fn read(key: &str) -> Result<String, LinkError> {
    let refused = |cause| LinkError::refused("read the sysctl", key, cause);
    let value = fs::read_to_string(path(key).map_err(refused)?).map_err(refused)?;
    Ok(value.trim_end().to_owned())
}

/// Sets a key. One that holds the value already is not written: `/proc/sys`
/// may be read-only where everything is already as it should be.
///
/// # Errors
/// The key does not exist, cannot be written, or refuses the value.
pub fn write(key: &str, value: &str) -> Result<(), LinkError> {
    if read(key)? == value {
        return Ok(());
    }
    let refused = |cause| LinkError::refused("set the sysctl", format!("{key}={value}"), cause);
    fs::write(path(key).map_err(refused)?, value).map_err(refused)
}

/// A key never leads out of `/proc/sys`, whatever names it is made of.
fn path(key: &str) -> io::Result<PathBuf> {
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a key: parts must not be empty, '.' or '..'",
        ));
    }
    Ok(PathBuf::from("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_no_line_end() {
        assert_eq!(read("kernel/ostype").unwrap(), "Linux");
    }

    #[test]
    fn a_value_already_there_is_not_written() {
        // The key is read-only: a write would fail.
        write("kernel/ostype", "Linux").unwrap();
        let error = write("kernel/ostype", "Minix").unwrap_err();
        assert!(error.to_string().contains("kernel/ostype=Minix"), "{error}");
    }

    #[test]
    fn keys_stay_below_proc_sys() {
        for key in [
            "",
            "/etc/passwd",
            "../version",
            "net/../kernel/ostype",
            "net//ipv4",
        ] {
            assert!(read(key).is_err(), "{key:?}");
        }
    }
}
