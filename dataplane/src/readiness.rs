//! Tells who started the daemon that it serves, by the protocol of
//! sd_notify(3): systemd units with `Type=notify` wait for it.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says "ready", if anybody asked for it.
///
/// # Errors
/// Nobody listens at the address that the environment names.
pub(crate) fn announce() -> io::Result<()> {
    env::var_os("NOTIFY_SOCKET").map_or(Ok(()), |address| notify(&address))
}

fn notify(address: &OsStr) -> io::Result<()> {
    // "@" stands for the null byte of an abstract address.
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(socket: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 64];
        socket.set_nonblocking(true).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn a_path_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        notify(path.as_os_str()).unwrap();
        assert_eq!(message(&socket), b"READY=1");
    }

    #[test]
    fn an_abstract_address_is_told() {
        let name = format!("sluice-readiness-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        notify(format!("@{name}").as_ref()).unwrap();
        assert_eq!(message(&socket), b"READY=1");
    }

    #[test]
    fn nobody_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(notify(folder.path().join("notify").as_os_str()).is_err());
    }
}
