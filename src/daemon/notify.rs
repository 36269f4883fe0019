//! Telling systemd how we are (sd_notify(3)): a datagram to the socket that it names.
//!
//! A health signal that comes from a timer proves nothing: whoever calls [`Notifier::alive`] must
//! have looked whether the loops make progress.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// How long a message may wait for systemd to read those before it: the thread that tells is the one
/// that obeys signals.
const PATIENCE: Duration = Duration::from_millis(100);

/// The way to systemd; leads nowhere if systemd did not start us.
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says: `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    pub fn from_env() -> Self {
        let socket =
            std::env::var_os("NOTIFY_SOCKET").and_then(|path| Some((socket()?, address(&path)?)));
        let usec = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        Self { socket, watchdog: usec.map(Duration::from_micros) }
    }

    /// How often systemd wants to hear that we are alive: half of what it waits.
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Both services read.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Every loop makes progress.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// We begin to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=finishing what is in work");
    }

    /// A line for `systemctl status`.
    pub fn status(&self, text: &'static str) {
        self.send(&format!("STATUS={text}"));
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // systemd that does not listen is not our trouble.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

/// A socket on which nothing waits for long.
fn socket() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(socket)
}

/// A path, or with `@` in front a name in the abstract namespace.
fn address(path: &OsStr) -> Option<SocketAddr> {
    match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
        _ => SocketAddr::from_pathname(path).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// systemd names such a socket in containers.
    #[test]
    fn a_name_with_an_at_sign_in_front_is_in_no_directory() {
        let name = format!("library-lending-{}", std::process::id());
        let there = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&there).unwrap();
        systemd.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let named = address(OsStr::new(&format!("@{name}"))).unwrap();
        let notifier = Notifier { socket: Some((socket().unwrap(), named)), watchdog: None };
        notifier.alive();
        notifier.status("one line");
        let mut message = [0; 64];
        let length = systemd.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"STATUS=one line", "nobody waits for signs of life");
    }

    #[test]
    fn systemd_hears_of_us_twice_as_often_as_it_has_to() {
        let notifier = Notifier { socket: None, watchdog: Some(Duration::from_secs(30)) };
        assert_eq!(notifier.interval(), Some(Duration::from_secs(15)));
    }
}
