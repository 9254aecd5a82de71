//! Listening sockets that a service manager opened for us: while the gateway is replaced, connections wait in them
//! instead of being refused.
//!
//! systemd gives a socket the name of its unit's `FileDescriptorName=`; a listener takes the one that bears its own name.
//! What nobody takes is closed. Source: sd_listen_fds(3).

use std::net::TcpListener;

use listenfd::ListenFd;

/// The sockets that are left to be taken.
pub(crate) struct Inherited {
    sockets: ListenFd,
    names: Vec<String>,
}

impl Inherited {
    /// What this process was given. Asked once: the variables that say so are the first asker's.
    pub(crate) fn from_environment() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        Self { sockets: ListenFd::from_env(), names: names.split(':').map(str::to_owned).collect() }
    }

    /// None of any.
    pub(crate) fn none() -> Self {
        Self { sockets: ListenFd::empty(), names: Vec::new() }
    }

    /// Closes what no listener has taken, and says so: connections to it would wait for nobody.
    pub(crate) fn close(mut self) {
        for (at, name) in self.names.iter().enumerate().take(self.sockets.len()) {
            if let Ok(Some(socket)) = self.sockets.take_tcp_listener(at) {
                tracing::warn!(socket = name, "the service manager gave a socket that no listener of the file is named after; closed");
                drop(socket);
            }
        }
    }

    /// The socket of that name, if there is one and it listens for TCP.
    pub(crate) fn take(&mut self, name: &str) -> Option<TcpListener> {
        let at = self.names.iter().position(|own| own == name)?;
        match self.sockets.take_tcp_listener(at) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(listener = name, %error, "the socket that the service manager gave is none that accepts TCP connections");
                None
            }
        }
    }
}
