//! Whether: sensor × catalogue × port, and the limits that every session obeys.

use std::sync::Arc;
use std::time::Duration;

use super::catalogue::{Catalogue, Entry};
use super::chain::Level;
use super::host::HostName;
use super::path::Path;
use super::sensor::Sensors;

/// Everything that decides about a session. Swapped whole on reload; a session keeps what it started with.
pub struct Policy {
    pub sensors: Sensors,
    pub catalogue: Catalogue,
    /// In order of preference; none: nothing leaves.
    pub paths: Vec<Arc<Path>>,
    pub limits: Limits,
    /// Who this relay is in a chain.
    pub gateway: Arc<str>,
    pub level: Option<Level>,
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
    /// From its accept on, however busy; none: as long as it likes.
    pub lifetime: Option<Duration>,
    /// Sessions at once.
    pub sessions: usize,
    /// Sessions at once of one sensor that has no limit of its own. A gateway among the sensors has none.
    pub sessions_per_sensor: usize,
    /// Connections at once from one address, before it is known whose they are. Load balancers and gateways are not counted.
    pub connections_per_source: usize,
    pub tuning: Tuning,
    pub drain: Drain,
}

/// What the kernel sockets of a session are set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Silence until the first keepalive.
    pub keepalive: Duration,
    /// Unacknowledged data this old ends a connection.
    pub user_timeout: Duration,
}

/// How a relay stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// `/readyz` fails this long before connections are refused: a load balancer's interval times its threshold.
    pub notice: Duration,
    /// How long sessions may run on after that.
    pub limit: Duration,
    /// The last part of that, over which the ends of those that remain are spread: they come back elsewhere, not all at once.
    pub spread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello: Duration::from_secs(10),
            connect: Duration::from_secs(10),
            // Defender's connection is always on and its keepalives are minutes apart.
            idle: Duration::from_secs(3600),
            half_close: Duration::from_secs(60),
            lifetime: None,
            sessions: 10_000,
            sessions_per_sensor: 1000,
            connections_per_source: 1000,
            tuning: Tuning::default(),
            drain: Drain { notice: Duration::ZERO, limit: Duration::from_secs(30), spread: Duration::from_secs(10) },
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        // Keepalives below every cloud's idle limit (Azure's default is 4 minutes); a timeout longer than a failover takes.
        Self { keepalive: Duration::from_secs(60), user_timeout: Duration::from_secs(120) }
    }
}

/// Why a session was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    UnknownSensor,
    /// A client certificate that is no sensor's.
    UnknownCertificate,
    /// A private link that is no sensor's.
    UnknownPrivateLink,
    WrongCredentials,
    /// Nothing known about the source, and some sensors are known by their proxy user.
    CredentialsWanted,
    /// Source address and proxy user name different sensors.
    IdentityMismatch,
    HostNotListed,
    PortNotListed,
    TooManySessions,
    TooManyOfSensor,
    TooManyOfSource,
    /// The session has been here before.
    Loop,
    /// The gateway before this one stands on no level that leads to this one's.
    WrongLevel,
}

impl Refusal {
    pub const fn reason(self) -> &'static str {
        match self {
            Self::UnknownSensor => "unknown_sensor",
            Self::UnknownCertificate => "unknown_certificate",
            Self::UnknownPrivateLink => "unknown_private_link",
            Self::WrongCredentials => "wrong_credentials",
            Self::CredentialsWanted => "credentials_wanted",
            Self::IdentityMismatch => "identity_mismatch",
            Self::HostNotListed => "host_not_listed",
            Self::PortNotListed => "port_not_listed",
            Self::TooManySessions => "limit_sessions",
            Self::TooManyOfSensor => "limit_sensor",
            Self::TooManyOfSource => "limit_source",
            Self::Loop => "loop",
            Self::WrongLevel => "wrong_level",
        }
    }

    pub const fn status(self) -> u16 {
        match self {
            Self::WrongCredentials | Self::CredentialsWanted => 407,
            Self::UnknownSensor
            | Self::UnknownCertificate
            | Self::UnknownPrivateLink
            | Self::IdentityMismatch
            | Self::HostNotListed
            | Self::PortNotListed
            | Self::WrongLevel => 403,
            Self::TooManyOfSensor | Self::TooManyOfSource => 429,
            Self::TooManySessions => 503,
            Self::Loop => 508,
        }
    }
}

impl Policy {
    pub fn entry(&self, host: &HostName, port: u16) -> Result<&Entry, Refusal> {
        let entry = self.catalogue.get(host).ok_or(Refusal::HostNotListed)?;
        if entry.ports.contains(&port) { Ok(entry) } else { Err(Refusal::PortNotListed) }
    }
}
