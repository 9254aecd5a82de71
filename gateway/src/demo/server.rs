//! A TLS server that stands for Defender: it echoes what sensors send, answers a browser's GET, and counts who came.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Where the VNET relay dials from; the server takes any other source for traffic outside the tunnel.
pub(super) const RELAY_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

pub(super) struct Server {
    port: u16,
    ca_pem: String,
    client: Arc<ClientConfig>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    outside: AtomicU64,
}

impl Server {
    pub(super) async fn start(hosts: &[&str]) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "skyway demo CA");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let certificate = CertificateParams::new(names)?.signed_by(&key, &ca)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port on 127.0.0.1")?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Counts::default());
        tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(server)), Arc::clone(&counts)));
        Ok(Self { port, ca_pem: ca.pem(), client: Arc::new(client), counts })
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// What a sensor trusts: this server's authority and no other.
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    pub(super) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Connections that did not come from the VNET relay.
    pub(super) fn outside(&self) -> u64 {
        self.counts.outside.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, counts: Arc<Counts>) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        counts.connections.fetch_add(1, Ordering::Relaxed);
        if from.ip() != RELAY_SOURCE {
            counts.outside.fetch_add(1, Ordering::Relaxed);
        }
        let acceptor = acceptor.clone();
        // A session that breaks is the sensor's to notice.
        tokio::spawn(async move { echo(stream, &acceptor).await });
    }
}

async fn echo(stream: TcpStream, acceptor: &TlsAcceptor) -> std::io::Result<()> {
    let mut tls = acceptor.accept(stream).await?;
    let name = tls.get_ref().1.server_name().unwrap_or("nobody").to_owned();
    let mut buffer = vec![0u8; 16 * 1024];
    let mut first = true;
    loop {
        let length = tls.read(&mut buffer).await?;
        if length == 0 {
            return tls.shutdown().await;
        }
        let received = buffer.get(..length).unwrap_or_default();
        if std::mem::take(&mut first) && received.starts_with(b"GET ") {
            let body = format!("Hello from {name}. This came through a WireGuard tunnel, and nobody on the way could read it.\n");
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            tls.write_all(answer.as_bytes()).await?;
            return tls.shutdown().await;
        }
        tls.write_all(received).await?;
        tls.flush().await?;
    }
}
