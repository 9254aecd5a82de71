//! The next proxy of a chain, asked by HTTP CONNECT. The name goes on unresolved: the last hop resolves and checks.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Stream;
use super::connect_head::Authority;
use super::dial::DialError;
use super::head_lines::HeadProgress;
use super::host::HostName;
use super::response_head::{ResponseHead, ResponseHeadReader, connect_request};
use std::net::SocketAddr;

/// A parent proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// As written, for the log.
    pub url: String,
    pub host: ParentHost,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentHost {
    Address(std::net::IpAddr),
    Name(HostName),
}

impl Parent {
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.host {
            ParentHost::Address(address) => Some(SocketAddr::new(*address, self.port)),
            ParentHost::Name(_) => None,
        }
    }

    /// Asks for a tunnel to `authority` on a stream that leads to this parent. Returns what the parent sent behind
    /// its head: it belongs to the downstream.
    ///
    /// Nothing is sent before the 2xx (RFC 9931): a parent that refuses would take it for another request.
    pub(super) async fn ask(&self, stream: &mut dyn Stream, authority: &Authority, deadline: Instant) -> Result<Vec<u8>, DialError> {
        let exchange = async {
            let broken = |detail: &str| DialError::ParentBroken { parent: self.url.clone(), detail: detail.to_owned() };
            stream.write_all(connect_request(authority, &[]).as_bytes()).await.map_err(|error| broken(&error.to_string()))?;
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
            Ok(result) => result,
            Err(_) => Err(DialError::ParentSilent { parent: self.url.clone() }),
        }
    }

    fn judge(&self, head: ResponseHead, mut received: Vec<u8>) -> Result<Vec<u8>, DialError> {
        if (200..300).contains(&head.status) {
            received.drain(..head.length.min(received.len()));
            Ok(received)
        } else {
            Err(DialError::ParentRefused { parent: self.url.clone(), status: head.status, reason: head.reason_header })
        }
    }
}
