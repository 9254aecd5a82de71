//! Paths: how the relay leaves, in order, and never otherwise.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use tracing::debug;

use super::address;
use super::catalogue::Entry;
use super::connect_head::Authority;
use super::dial::{DialError, Side};
use super::parent::{Parent, ParentHost};
use super::resolver::Resolver;
use super::{Dialer, Stream, Target};

/// One way out.
pub struct Path {
    pub name: Arc<str>,
    pub dialer: Arc<dyn Dialer>,
    pub resolver: Resolver,
    /// In order of preference; empty: the target itself is dialled.
    pub parents: Vec<Parent>,
}

/// A stream to the target, or to a parent that leads there.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Stream>,
    pub(super) path: Arc<str>,
    /// What a parent sent behind its answer; it goes downstream first.
    pub(super) early: Vec<u8>,
}

/// Tries `paths` in order until one brings a stream; the last error if none does.
///
/// Each gets an equal share of the time that is left, so that a dead first path leaves room for the second.
pub(super) async fn connect(
    paths: &[Arc<Path>],
    authority: &Authority,
    entry: &Entry,
    deadline: Instant,
) -> Result<Connected, (Option<Arc<str>>, DialError)> {
    let mut failure = (None, DialError::NoPath);
    for (at, path) in paths.iter().enumerate() {
        let share = share(deadline, paths.len() - at);
        match path.connect(authority, entry, share).await {
            Ok((stream, early)) => return Ok(Connected { stream, path: Arc::clone(&path.name), early }),
            Err(error) => {
                debug!(path = %path.name, host = %authority.host, %error, "path failed");
                failure = (Some(Arc::clone(&path.name)), error);
            }
        }
    }
    Err(failure)
}

impl Path {
    async fn connect(&self, authority: &Authority, entry: &Entry, deadline: Instant) -> Result<(Box<dyn Stream>, Vec<u8>), DialError> {
        if self.parents.is_empty() {
            // The last hop gives up first, so that its reason reaches the hops before it in time.
            let now = Instant::now();
            let deadline = now + deadline.saturating_duration_since(now) * 4 / 5;
            let addresses = self.resolve(authority, entry, deadline).await?;
            return Ok((self.dial(authority.host.as_str(), &addresses, authority.port, deadline).await?, Vec::new()));
        }
        let mut failure = DialError::NoPath;
        for (at, parent) in self.parents.iter().enumerate() {
            match self.connect_by(parent, authority, share(deadline, self.parents.len() - at)).await {
                Ok(connected) => return Ok(connected),
                Err(error) => failure = error,
            }
            // A parent that speaks for the target has spoken; another would say the same.
            if matches!(failure, DialError::ParentRefused { status: 403, .. }) {
                break;
            }
        }
        Err(failure)
    }

    async fn connect_by(&self, parent: &Parent, authority: &Authority, deadline: Instant) -> Result<(Box<dyn Stream>, Vec<u8>), DialError> {
        let unreachable = |cause: DialError| match cause.side() {
            // The tunnel's trouble is the tunnel's, whoever is behind it.
            Side::Path => cause,
            Side::Gateway | Side::Resolver | Side::Parent | Side::Upstream => {
                DialError::ParentUnreachable { parent: parent.url.clone(), cause: Box::new(cause) }
            }
        };
        let addresses = match &parent.host {
            ParentHost::Address(address) => vec![*address],
            ParentHost::Name(name) => self.ask(name.as_str(), deadline).await.map_err(unreachable)?,
        };
        let mut stream = self.dial(&parent.url, &addresses, parent.port, deadline).await.map_err(unreachable)?;
        let early = parent.ask(&mut *stream, authority, deadline).await?;
        Ok((stream, early))
    }

    /// The target's addresses, every one of them checked: a single bad answer condemns the name.
    async fn resolve(&self, authority: &Authority, entry: &Entry, deadline: Instant) -> Result<Vec<IpAddr>, DialError> {
        let answers = if entry.addresses.is_empty() { self.ask(authority.host.as_str(), deadline).await? } else { entry.addresses.clone() };
        let addresses: Vec<IpAddr> = answers.iter().map(IpAddr::to_canonical).collect();
        for address in &addresses {
            address::check(*address, &entry.allow).map_err(|why| DialError::Forbidden { address: *address, why })?;
        }
        Ok(addresses)
    }

    async fn ask(&self, name: &str, deadline: Instant) -> Result<Vec<IpAddr>, DialError> {
        match tokio::time::timeout_at(deadline.into(), self.resolver.resolve(name)).await {
            Ok(answer) => answer,
            Err(_) => Err(DialError::Resolve { detail: "no answer in time".into() }),
        }
    }

    /// Dials the addresses in order until one takes.
    async fn dial(&self, name: &str, addresses: &[IpAddr], port: u16, deadline: Instant) -> Result<Box<dyn Stream>, DialError> {
        let mut failure = DialError::Resolve { detail: "the answer holds no address".into() };
        for (at, address) in addresses.iter().enumerate() {
            let target = Target { name: name.to_owned(), address: SocketAddr::new(*address, port) };
            match self.dialer.dial(&target, share(deadline, addresses.len() - at)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// The moment by which the first of `attempts` must be done, so that each has an equal part of what is left.
fn share(deadline: Instant, attempts: usize) -> Instant {
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + left / u32::try_from(attempts.max(1)).unwrap_or(u32::MAX)
}
