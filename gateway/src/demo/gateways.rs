//! The demo's two gateways: their YAML, their processes, their end.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper::Method;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tunnel::{PrivateKey, PublicKey};

use crate::admin::{Status, Verdict, client};

const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Gateways {
    folder: PathBuf,
    proxy: SocketAddr,
    tls: SocketAddr,
    /// Killed when dropped, should the demo end without `stop`.
    children: Mutex<Vec<Child>>,
}

impl Gateways {
    pub(super) async fn start(folder: &Path, hosts: &[&str], server: u16) -> anyhow::Result<Self> {
        let (site, vnet) = (PrivateKey::generate(), PrivateKey::generate());
        write_secret(&folder.join("site.key"), &site)?;
        write_secret(&folder.join("vnet.key"), &vnet)?;
        let (site_udp, vnet_udp) = (free_udp()?, free_udp()?);
        let (proxy, tls) = (free_tcp()?, free_tcp()?);
        std::fs::write(folder.join("vnet.yaml"), vnet_yaml(folder, hosts, server, vnet_udp, &site.public_key()))?;
        std::fs::write(folder.join("site.yaml"), site_yaml(folder, hosts, server, site_udp, vnet_udp, &vnet.public_key(), proxy, tls))?;
        let children = vec![spawn(folder, "vnet")?, spawn(folder, "site")?];
        let gateways = Self { folder: folder.to_owned(), proxy, tls, children: Mutex::new(children) };
        for name in ["vnet", "site"] {
            gateways.until_up(name).await?;
        }
        Ok(gateways)
    }

    pub(super) const fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    pub(super) const fn tls(&self) -> SocketAddr {
        self.tls
    }

    pub(super) fn site_socket(&self) -> PathBuf {
        self.folder.join("site.sock")
    }

    pub(super) fn vnet_socket(&self) -> PathBuf {
        self.folder.join("vnet.sock")
    }

    /// How the tunnel is, in one line.
    pub(super) async fn tunnel_line(&self) -> String {
        match self.status("site").await {
            Ok(status) => {
                let peer = status.tunnels.first().and_then(|tunnel| tunnel.peers.first());
                let relay = status.relay.as_ref().map_or(0, |relay| relay.open);
                peer.map_or_else(String::new, |peer| {
                    format!("tunnel {}: {} bytes sent, {} received; {relay} sessions", peer.state, peer.sent_bytes, peer.received_bytes)
                })
            }
            Err(error) => format!("the site's gateway does not answer: {error}"),
        }
    }

    /// Asks both to stop and waits for their end.
    pub(super) async fn stop(&self) {
        for child in self.children.lock().await.iter_mut() {
            if let Some(pid) = child.id() {
                let _gone = std::process::Command::new("kill").arg(pid.to_string()).status();
            }
            if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
                let _gone = child.kill().await;
            }
        }
    }

    pub(super) fn logs(&self) -> String {
        ["site", "vnet"].iter().map(|name| format!("── {name}\n{}", std::fs::read_to_string(self.log(name)).unwrap_or_default())).collect()
    }

    async fn until_up(&self, name: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.status(name).await.is_ok_and(|status| status.verdict == Verdict::Up) {
                return Ok(());
            }
            let exited = self.children.lock().await.iter_mut().any(|child| matches!(child.try_wait(), Ok(Some(_))));
            if exited || Instant::now() >= deadline {
                bail!("the gateway {name} did not come up; the logs:\n{}", self.logs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn status(&self, name: &str) -> anyhow::Result<Status> {
        let (_, body) = client::ask(&self.folder.join(format!("{name}.sock")), Method::GET, "/v1/status").await?;
        Ok(serde_json::from_slice(&body)?)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }
}

fn spawn(folder: &Path, name: &str) -> anyhow::Result<Child> {
    let log = std::fs::File::create(folder.join(format!("{name}.log")))?;
    Command::new(std::env::current_exe().context("this program's own path is unknown")?)
        .args(["run", "-c"])
        .arg(folder.join(format!("{name}.yaml")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("the gateway {name} cannot be started"))
}

fn vnet_yaml(folder: &Path, hosts: &[&str], server: u16, udp: SocketAddr, site: &PublicKey) -> String {
    let source = super::server::RELAY_SOURCE;
    let hosts: String = hosts
        .iter()
        .map(|host| format!("      - {{ host: {host}, ports: [{server}], addresses: [127.0.0.1], allow: [127.0.0.1/32] }}\n"))
        .collect();
    format!(
        "version: 1
gateway: {{ name: demo-vnet, site: vnet, cloud: azure, admin: {folder}/vnet.sock, metrics: off }}
underlays:
  defender: {{ source: {source} }}
tunnels:
  site:
    mode: userspace
    private_key: {{ file: vnet.key }}
    listen: \"{udp}\"
    addresses: [10.99.0.2/30]
    peers:
      site: {{ public_key: \"{site}\", allowed_ips: [10.99.0.1/32] }}
relay:
  catalogue:
    hosts:
{hosts}  sensors:
    site: {{ from: [10.99.0.1/32] }}
  paths:
    - {{ name: defender, via: {{ underlay: defender }}, probe: off }}
  listeners:
    - {{ name: inside, kind: connect, listen: {{ tunnel: site, port: 3128 }} }}
",
        folder = folder.display()
    )
}

#[expect(clippy::too_many_arguments, reason = "each is one blank of one form")]
fn site_yaml(
    folder: &Path,
    hosts: &[&str],
    server: u16,
    udp: SocketAddr,
    peer: SocketAddr,
    vnet: &PublicKey,
    proxy: SocketAddr,
    tls: SocketAddr,
) -> String {
    let hosts: String = hosts.iter().map(|host| format!("      - {{ host: {host}, ports: [{server}] }}\n")).collect();
    format!(
        "version: 1
gateway: {{ name: demo-site, site: plant, cloud: aws, admin: {folder}/site.sock, metrics: off }}
tunnels:
  azure:
    mode: userspace
    private_key: {{ file: site.key }}
    listen: \"{udp}\"
    addresses: [10.99.0.1/30]
    peers:
      vnet:
        public_key: \"{vnet}\"
        endpoints: [\"{peer}\"]
        allowed_ips: [10.99.0.2/32]
relay:
  catalogue:
    hosts:
{hosts}  sensors:
    line-1: {{ from: [127.0.0.1/32] }}
  paths:
    - {{ name: vnet, via: {{ tunnel: azure }}, parents: [\"http://10.99.0.2:3128\"], probe: off }}
  listeners:
    - {{ name: proxy, kind: connect, listen: \"{proxy}\" }}
    - {{ name: tls, kind: sni, listen: \"{tls}\" }}
",
        folder = folder.display()
    )
}

fn write_secret(path: &Path, key: &PrivateKey) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.to_base64().as_bytes())?;
    Ok(())
}

fn free_udp() -> anyhow::Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn free_tcp() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
