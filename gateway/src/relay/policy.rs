//! Whether: sensor × catalogue × port, and the limits that every session obeys.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::catalogue::{Catalogue, Entry};
use super::host::HostName;
use super::path::Path;
use super::sensor::Sensors;

/// Everything that decides about a session. Swapped whole on reload; a session keeps what it started with.
#[derive(Default)]
pub struct Policy {
    pub sensors: Sensors,
    pub catalogue: Catalogue,
    /// In order of preference; none: nothing leaves.
    pub paths: Vec<Arc<Path>>,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// To have sent the whole CONNECT head or ClientHello.
    pub hello: Duration,
    /// For all paths together to bring an upstream stream.
    pub connect: Duration,
    /// Without a byte either way.
    pub idle: Duration,
    /// Without a byte, once one side has ended its direction.
    pub half_close: Duration,
    /// Sessions at once.
    pub sessions: usize,
    /// How long sessions may run on after a stop was asked for.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            // Defender's connection is always on and its keepalives are minutes apart.
            idle: Duration::from_secs(3600),
            half_close: Duration::from_secs(60),
            sessions: 10_000,
            drain: Duration::from_secs(30),
        }
    }
}

/// Why a session was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    UnknownSensor,
    WrongCredentials,
    /// Nothing known about the source, and some sensors are known by their proxy user.
    CredentialsWanted,
    /// Source address and proxy user name different sensors.
    IdentityMismatch,
    HostNotListed,
    PortNotListed,
    TooManySessions,
}

impl Refusal {
    pub const fn reason(self) -> &'static str {
        match self {
            Self::UnknownSensor => "unknown_sensor",
            Self::WrongCredentials => "wrong_credentials",
            Self::CredentialsWanted => "credentials_wanted",
            Self::IdentityMismatch => "identity_mismatch",
            Self::HostNotListed => "host_not_listed",
            Self::PortNotListed => "port_not_listed",
            Self::TooManySessions => "limit_sessions",
        }
    }

    pub const fn status(self) -> u16 {
        match self {
            Self::WrongCredentials | Self::CredentialsWanted => 407,
            Self::UnknownSensor | Self::IdentityMismatch | Self::HostNotListed | Self::PortNotListed => 403,
            Self::TooManySessions => 503,
        }
    }
}

impl Policy {
    pub fn sensor(&self, source: IpAddr) -> Result<Arc<str>, Refusal> {
        self.sensors.identify(source).ok_or(Refusal::UnknownSensor)
    }

    pub fn entry(&self, host: &HostName, port: u16) -> Result<&Entry, Refusal> {
        let entry = self.catalogue.get(host).ok_or(Refusal::HostNotListed)?;
        if entry.ports.contains(&port) { Ok(entry) } else { Err(Refusal::PortNotListed) }
    }
}
