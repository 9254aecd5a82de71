//! `skyway demo`: the main job on one machine, with no root and nothing installed.
//!
//! ```text
//!  sensors ──CONNECT──►┐                                                    ┌─► TLS server 127.0.0.1
//!  (this process) ─SNI─►  skyway run (site) ══ WireGuard, loopback ══ skyway run (vnet) ─┘   sees 127.0.0.2 alone
//! ```
//! Both gateways are real processes with real YAML in userspace mode. The server counts connections that come from
//! anywhere but the VNET relay's own address: they would be traffic outside the tunnel.

mod gateways;
mod sensor;
mod server;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::terminal::{complain, say};
use gateways::Gateways;
use sensor::{Entrance, Sensor};
use server::Server;

/// Names that look like a customer's; the server's certificate is for them.
const HOSTS: [&str; 2] = ["contoso-hub.azure-devices.net", "contososa.blob.core.windows.net"];
/// What each sensor sends and gets back.
const BYTES_PER_SENSOR: usize = 256 * 1024;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Run, verify, print the result and exit
    #[arg(long)]
    once: bool,
    /// How many sensors hold a session
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=200))]
    sensors: u16,
}

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = demo(args) => result,
            _ = terminate.recv() => Ok(ExitCode::SUCCESS),
            _ = tokio::signal::ctrl_c() => {
                say("\nstopped");
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

async fn demo(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    let folder = Folder::new()?;
    say("A TLS server that stands for Defender, on 127.0.0.1 …");
    let server = Server::start(&HOSTS).await.context("the TLS server cannot be started")?;
    std::fs::write(folder.0.join("ca.pem"), server.ca_pem())?;
    say("Two gateways, site and vnet, as two processes …");
    let gateways = Gateways::start(&folder.0, &HOSTS, server.port()).await?;
    say("The tunnel between them is up.");
    let sensors: Vec<Arc<Sensor>> = (0..usize::from(args.sensors))
        .map(|number| {
            let entrance = if number % 2 == 0 { Entrance::Connect(gateways.proxy()) } else { Entrance::Sni(gateways.tls()) };
            Arc::new(Sensor::new(number, entrance, HOSTS[number % HOSTS.len()], server.port(), server.client()))
        })
        .collect();
    let mut sessions = JoinSet::new();
    for sensor in &sensors {
        let sensor = Arc::clone(sensor);
        sessions.spawn(async move { (sensor.number(), sensor.exchange(BYTES_PER_SENSOR).await) });
    }
    let (mut good, mut bytes, mut held) = (0, 0, Vec::new());
    while let Some(joined) = sessions.join_next().await {
        match joined? {
            (_, Ok((exchanged, session))) => {
                good += 1;
                bytes += exchanged;
                held.push(session);
            }
            (number, Err(error)) => complain(&format!("sensor {number}: {error:#}")),
        }
    }
    let outside = server.outside();
    let verdict = format!("{good} of {} sensor sessions relayed, {bytes} bytes, {outside} outside the tunnel", sensors.len());
    if args.once {
        drop(held);
        gateways.stop().await;
        say(&verdict);
        let all = good == sensors.len() && outside == 0;
        if !all {
            complain(&format!("the gateways' logs:\n{}", gateways.logs()));
        }
        return Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    say(&verdict);
    say(&format!(
        "\nSend your own curl through it:\n\n  curl --proxy http://{} --cacert {} https://{}:{}/\n\nAsk the gateways:\n\n  {program} status --socket {}\n  {program} status --socket {}\n\nCtrl-C ends the demo. Its files are in {}.\n",
        gateways.proxy(),
        folder.0.join("ca.pem").display(),
        HOSTS[0],
        server.port(),
        gateways.site_socket().display(),
        gateways.vnet_socket().display(),
        folder.0.display(),
        program = std::env::current_exe().map_or_else(|_| "skyway".into(), |path| path.display().to_string()),
    ));
    live(&gateways, &server, held).await
}

/// Keeps the sessions busy and says how things are, until Ctrl-C.
async fn live(gateways: &Gateways, server: &Server, mut held: Vec<sensor::Session>) -> anyhow::Result<ExitCode> {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut alive = 0;
        for session in &mut held {
            alive += usize::from(session.beat().await.is_ok());
        }
        let tunnel = gateways.tunnel_line().await;
        say(&format!(
            "{alive} of {} sensors alive | {tunnel} | server: {} connections, {} outside the tunnel",
            held.len(),
            server.connections(),
            server.outside()
        ));
    }
}

/// A folder of our own that goes when the demo ends.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("skyway-demo-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}
