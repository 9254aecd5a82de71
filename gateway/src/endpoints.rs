//! Where peers are: names become addresses, underlays become interfaces, and both again while a peer does not answer.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, warn};
use tunnel::io::Lane;
use tunnel::{Endpoint, EndpointSettings, PeerChange, PeerSettings, PeerState, Snapshot};

use crate::config::UnderlaySettings;
use crate::relay::Resolver;

/// How often an endpoint that did not resolve is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How often the names of a peer that is not up are asked for anew.
const REFRESH: Duration = Duration::from_secs(30);

/// What the watcher of one tunnel looks after. Sent anew on every reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub peers: Vec<PeerSettings>,
    pub underlays: BTreeMap<String, UnderlaySettings>,
}

/// Keeps the endpoints of one tunnel's peers resolved until `wanted` closes.
pub(crate) async fn watch_endpoints(
    lane: Arc<Lane>,
    resolver: Resolver,
    mut wanted: watch::Receiver<Wanted>,
    snapshots: watch::Receiver<Snapshot>,
) {
    // A complaint is made once, not every five seconds.
    let mut complained: Vec<String> = Vec::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let mut complete = true;
        for peer in &now.peers {
            if peer.endpoints.is_empty() {
                continue;
            }
            let (endpoints, problems) = resolve(&peer.endpoints, &now.underlays, &resolver).await;
            complete &= problems.is_empty();
            for problem in problems {
                if !complained.contains(&problem) {
                    warn!(peer = peer.public_key.short(), reason = %problem, "endpoint not usable; trying again");
                    complained.push(problem);
                }
            }
            debug!(peer = peer.public_key.short(), ?endpoints, "endpoints resolved");
            if !endpoints.is_empty() && !lane.change(PeerChange::Endpoints(peer.public_key, endpoints)) {
                return;
            }
        }
        let again = if complete { REFRESH } else { RETRY };
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => complained.clear(),
                Err(_) => return,
            },
            () = needed(&snapshots, again, complete) => {}
        }
    }
}

/// Waits for `again`, and on while every peer is up.
async fn needed(snapshots: &watch::Receiver<Snapshot>, again: Duration, complete: bool) {
    loop {
        tokio::time::sleep(again).await;
        if !complete || snapshots.borrow().peers.iter().any(|peer| peer.state != PeerState::Up) {
            return;
        }
    }
}

/// All addresses in the order of preference, and what is wrong with those that are missing.
async fn resolve(
    endpoints: &[EndpointSettings],
    underlays: &BTreeMap<String, UnderlaySettings>,
    resolver: &Resolver,
) -> (Vec<Endpoint>, Vec<String>) {
    let (mut resolved, mut problems) = (Vec::new(), Vec::new());
    for endpoint in endpoints {
        let underlay = endpoint.underlay.as_ref().and_then(|name| underlays.get(name));
        let interface = match underlay.and_then(|underlay| underlay.interface.as_deref()).map(interface_index) {
            None => None,
            Some(Ok(index)) => Some(index),
            Some(Err(problem)) => {
                problems.push(problem);
                continue;
            }
        };
        let addresses = match endpoint.host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => match resolver.resolve(&endpoint.host).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    problems.push(format!("{}: {error}", endpoint.host));
                    continue;
                }
            },
        };
        resolved.extend(addresses.into_iter().map(|address| Endpoint { address: SocketAddr::new(address, endpoint.port), interface }));
    }
    (resolved, problems)
}

fn interface_index(name: &str) -> Result<u32, String> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).map_err(|_| format!("there is no interface {name}"))?;
    text.trim().parse().map_err(|_| format!("the interface {name} has no index"))
}
