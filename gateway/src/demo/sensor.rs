//! A sensor as Defender's behave: it opens a TLS session by its proxy, sends, checks what comes back, and keeps it open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(20);
const CHUNK_BYTES: usize = 8 * 1024;

/// How a sensor gets to the site's gateway.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entrance {
    /// By HTTP CONNECT, as sensors are configured with a proxy.
    Connect(SocketAddr),
    /// By TLS at once, as when their DNS points at the gateway.
    Sni(SocketAddr),
}

pub(super) struct Sensor {
    number: usize,
    entrance: Entrance,
    host: &'static str,
    port: u16,
    tls: Arc<ClientConfig>,
}

/// A session that stands.
pub(super) struct Session(TlsStream<TcpStream>);

impl Sensor {
    pub(super) const fn new(number: usize, entrance: Entrance, host: &'static str, port: u16, tls: Arc<ClientConfig>) -> Self {
        Self { number, entrance, host, port, tls }
    }

    pub(super) const fn number(&self) -> usize {
        self.number
    }

    /// Sends `bytes` bytes and checks that the same come back. Returns how many moved, both ways together.
    pub(super) async fn exchange(&self, bytes: usize) -> anyhow::Result<(u64, Session)> {
        let work = async {
            let mut session = self.open().await?;
            let mut moved = 0;
            for start in (0..bytes).step_by(CHUNK_BYTES) {
                let chunk: Vec<u8> = (start..start + CHUNK_BYTES).map(|at| (at * 31 + self.number * 7 + at / 251) as u8).collect();
                session.echo(&chunk).await?;
                moved += 2 * chunk.len() as u64;
            }
            Ok((moved, session))
        };
        tokio::time::timeout(PATIENCE, work).await.context("took too long")?
    }

    async fn open(&self) -> anyhow::Result<Session> {
        let stream = match self.entrance {
            Entrance::Connect(proxy) => self.connect(proxy).await?,
            Entrance::Sni(gateway) => TcpStream::connect(gateway).await.context("the site's gateway does not answer")?,
        };
        let name = ServerName::try_from(self.host)?;
        let tls = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.context("no TLS session")?;
        Ok(Session(tls))
    }

    async fn connect(&self, proxy: SocketAddr) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(proxy).await.context("the proxy does not answer")?;
        let authority = format!("{}:{}", self.host, self.port);
        stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < 4096, "the proxy's answer never ends");
            head.push(stream.read_u8().await.context("the proxy closed")?);
        }
        let head = String::from_utf8_lossy(&head);
        if !head.starts_with("HTTP/1.1 200") {
            bail!("the proxy answered: {}", head.lines().next().unwrap_or_default());
        }
        Ok(stream)
    }
}

impl Session {
    /// A sign of life: a few bytes there and back.
    pub(super) async fn beat(&mut self) -> anyhow::Result<()> {
        tokio::time::timeout(PATIENCE, self.echo(b"beat")).await.context("took too long")?
    }

    async fn echo(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.0.write_all(bytes).await.context("the session broke")?;
        self.0.flush().await?;
        let mut back = vec![0u8; bytes.len()];
        self.0.read_exact(&mut back).await.context("the session broke")?;
        ensure!(back == bytes, "other bytes came back than were sent");
        Ok(())
    }
}
