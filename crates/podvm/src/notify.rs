//! Tells systemd how far the program is, when systemd asked for it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Sends state lines to the socket that the variable `NOTIFY_SOCKET` names.
#[derive(Debug, Default)]
pub struct Notifier {
    address: Option<SocketAddr>,
}

impl Notifier {
    /// Takes the value of `NOTIFY_SOCKET`: a path, or a name after `@` in the abstract name space.
    ///
    /// # Errors
    ///
    /// When the value is no address.
    pub fn new(value: Option<&OsStr>) -> io::Result<Self> {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Ok(Self::default());
        };
        let address = match value.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(value)?,
        };
        Ok(Self { address: Some(address) })
    }

    /// Sends a state such as `READY=1`. Without systemd this does nothing, and a systemd that is gone is no trouble
    /// of the program's.
    pub fn send(&self, state: &str) {
        let Some(address) = &self.address else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), address));
        if let Err(error) = sent {
            tracing::warn!(%error, state, "systemd could not be told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_arrive_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let abstract_name = test_support::unique("podvm-notify");
        let by_name = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (socket, value) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), format!("@{abstract_name}").into()),
        ] {
            Notifier::new(Some(&value)).unwrap().send("READY=1");
            let mut buffer = [0; 64];
            let size = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..size], b"READY=1");
        }
    }

    #[test]
    fn without_systemd_nothing_happens() {
        Notifier::new(None).unwrap().send("READY=1");
        Notifier::new(Some(OsStr::new("/nonexistent/notify"))).unwrap().send("READY=1");
    }
}
