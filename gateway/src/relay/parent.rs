//! The next proxies of a chain, asked by HTTP CONNECT. The name goes on unresolved: the last hop resolves and checks.
//!
//! A chain of several is walked from here: the first is asked for a tunnel to the second, the second, through that tunnel,
//! for one to the third, and the last for the target. Each may be reached by TLS, inside the tunnel of the one before.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

use super::Stream;
use super::chain::{Level, Passage, SESSION_FIELD};
use super::connect_head::{Authority, Credentials};
use super::dial::DialError;
use super::head_lines::HeadProgress;
use super::host::HostName;
use super::response_head::{ResponseHead, ResponseHeadReader, connect_request};
use super::sensor::ProxyUser;
use super::tls::ClientTls;

/// A parent proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// As written, for the log.
    pub url: String,
    pub host: ParentHost,
    pub port: u16,
    /// For `https://`.
    pub tls: Option<ClientTls>,
    pub auth: Option<ProxyUser>,
    /// Another skyway: it is told the sensor's name and the session's id.
    pub is_gateway: bool,
    pub level: Option<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentHost {
    Address(std::net::IpAddr),
    Name(HostName),
}

/// A tunnel that a chain has opened.
pub(super) struct Opened {
    pub(super) stream: Box<dyn Stream>,
    /// What the last parent sent behind its head: it belongs to the downstream.
    pub(super) early: Vec<u8>,
    /// The gateways that say they carry it.
    pub(super) via: Vec<String>,
}

impl Parent {
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.host {
            ParentHost::Address(address) => Some(SocketAddr::new(*address, self.port)),
            ParentHost::Name(_) => None,
        }
    }

    /// Asks for a tunnel to `target` on a stream that leads to this parent, in TLS if it is reached so.
    ///
    /// Nothing is sent before the 2xx (RFC 9931): a parent that refuses would take it for another request.
    async fn ask(
        &self,
        mut stream: Box<dyn Stream>,
        target: &str,
        passage: &Passage,
        deadline: Instant,
    ) -> Result<(Box<dyn Stream>, Vec<u8>, ResponseHead), DialError> {
        if let Some(tls) = &self.tls {
            let secured = tls.connect(stream, &self.host.to_string(), deadline).await;
            stream = secured.map_err(|cause| DialError::ParentTls { parent: self.url.clone(), cause })?;
        }
        let exchange = async {
            let broken = |detail: &str| DialError::ParentBroken { parent: self.url.clone(), detail: detail.to_owned() };
            stream.write_all(self.request(target, passage).as_bytes()).await.map_err(|error| broken(&error.to_string()))?;
            stream.flush().await.map_err(|error| broken(&error.to_string()))?;
            let mut received = Vec::with_capacity(512);
            let mut reader = ResponseHeadReader::new();
            loop {
                if stream.read_buf(&mut received).await.map_err(|error| broken(&error.to_string()))? == 0 {
                    return Err(broken("closed before it answered"));
                }
                match reader.handle_bytes(&received) {
                    HeadProgress::NeedMore => {}
                    HeadProgress::Complete(head) => return self.judge(head, received),
                    HeadProgress::Rejected(error) => return Err(broken(&error.to_string())),
                }
            }
        };
        match tokio::time::timeout_at(deadline.into(), exchange).await {
            Ok(result) => result.map(|(received, head)| (stream, received, head)),
            Err(_) => Err(DialError::ParentSilent { parent: self.url.clone() }),
        }
    }

    fn request(&self, target: &str, passage: &Passage) -> Zeroizing<String> {
        let auth = self.auth.as_ref().map(|user| {
            let password = Zeroizing::new(user.password.expose().to_owned());
            Credentials::new(user.name.clone(), password).to_basic()
        });
        let passage = self.is_gateway.then(|| passage.to_string());
        let mut fields: Vec<(&'static str, &str)> = Vec::new();
        if let Some(auth) = &auth {
            fields.push(("Proxy-Authorization", auth));
        }
        if let Some(passage) = &passage {
            fields.push((SESSION_FIELD, passage));
        }
        connect_request(target, &fields)
    }

    fn judge(&self, head: ResponseHead, mut received: Vec<u8>) -> Result<(Vec<u8>, ResponseHead), DialError> {
        if (200..300).contains(&head.status) {
            received.drain(..head.length.min(received.len()));
            Ok((received, head))
        } else {
            Err(DialError::ParentRefused { parent: self.url.clone(), status: head.status, reason: head.reason_header })
        }
    }

    fn authority(&self) -> String {
        match &self.host {
            ParentHost::Address(address) => SocketAddr::new(*address, self.port).to_string(),
            ParentHost::Name(name) => format!("{name}:{}", self.port),
        }
    }
}

impl fmt::Display for ParentHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// Walks `chain` on a stream that leads to its first parent, to a tunnel to `authority`.
pub(super) async fn walk(
    chain: &[Parent],
    mut stream: Box<dyn Stream>,
    authority: &Authority,
    passage: &Passage,
    deadline: Instant,
) -> Result<Opened, DialError> {
    let mut via = Vec::new();
    let mut early = Vec::new();
    let mut passage = passage.clone();
    for (at, parent) in chain.iter().enumerate() {
        if !early.is_empty() {
            // Whoever speaks before it is asked is no proxy, and what it said would be taken for an answer.
            let detail = "it spoke before it was asked".to_owned();
            return Err(DialError::ParentBroken { parent: parent.url.clone(), detail });
        }
        let target = chain.get(at + 1).map_or_else(|| authority.to_string(), Parent::authority);
        let (opened, received, head) = parent.ask(stream, &target, &passage, deadline).await?;
        // What follows it sees the level that it stands on, whether it says so itself or not.
        passage.level = parent.level.or(passage.level);
        via.extend(head.via);
        (stream, early) = (opened, received);
    }
    Ok(Opened { stream, early, via })
}
