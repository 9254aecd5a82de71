//! What a reload does: the difference between the running and the desired settings, as an ordered list.
//!
//! Pure: nothing here touches a tunnel, a route or a listener. Additions come before removals, so that at no moment
//! is there less than both configurations have in common. What is not named by a change is not touched.
//!
//! A running gateway takes keys, peers, MTUs, routes, the catalogue, sensors, paths, listeners and limits. What is tied to a
//! device or the process itself (a tunnel's port, addresses, lanes or mode; the admin interface) needs a restart: such a
//! difference is refused as a whole, and named.

use std::fmt;

use tunnel::{PeerSettings, PrivateKey, PublicKey, TunnelSettings};

use crate::config::{ListenerAt, RelaySettings, RouteSettings, Settings, UnderlaySettings};
use std::collections::{BTreeMap, HashMap, HashSet};

/// One step of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    SetUnderlays(BTreeMap<String, UnderlaySettings>),
    AddPeer {
        tunnel: String,
        peer: PeerSettings,
    },
    EditPeer {
        tunnel: String,
        /// The key that the peer had before; another one than now if it has become what was announced as its next.
        key: PublicKey,
        peer: PeerSettings,
    },
    /// The gateway's own key in a tunnel; sessions go on until they are replaced.
    SetPrivateKey {
        tunnel: String,
        key: PrivateKey,
    },
    /// Largest inner packet of a tunnel, in bytes.
    SetMtu {
        tunnel: String,
        mtu: u32,
    },
    SetRoutes(RouteSettings),
    /// Catalogue, sensors, paths, limits, name servers: swapped at once.
    SetPolicy(Box<RelaySettings>),
    OpenListener(ListenerAt),
    /// What a listener obeys that stays where it is.
    ChangeListener(ListenerAt),
    /// Its sessions go on.
    CloseListener(ListenerAt),
    RemovePeer {
        tunnel: String,
        name: String,
        key: PublicKey,
    },
    /// The order in which `status` shows the peers; changes nothing else.
    OrderPeers {
        tunnel: String,
        keys: Vec<PublicKey>,
    },
}

/// Changes in the order in which they are carried out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    pub changes: Vec<Change>,
}

/// A difference that a running gateway cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} changed: that takes a restart; nothing was changed")]
pub struct NeedsRestart {
    pub what: String,
}

impl Plan {
    pub fn between(running: &Settings, desired: &Settings) -> Result<Self, NeedsRestart> {
        needs_restart(running, desired)?;
        let (mut additions, mut removals, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        if running.underlays != desired.underlays {
            additions.push(Change::SetUnderlays(desired.underlays.clone()));
        }
        for wanted in &desired.tunnels {
            let Some(present) = running.tunnel(&wanted.name) else { continue };
            if present.private_key != wanted.private_key {
                additions.push(Change::SetPrivateKey { tunnel: wanted.name.clone(), key: wanted.private_key.clone() });
            }
            if present.mtu != wanted.mtu {
                additions.push(Change::SetMtu { tunnel: wanted.name.clone(), mtu: wanted.mtu });
            }
            peers(present, wanted, &mut additions, &mut removals, &mut orders);
        }
        if running.routes != desired.routes {
            additions.push(Change::SetRoutes(desired.routes.clone()));
        }
        if running.relay != desired.relay
            && let Some(relay) = &desired.relay
        {
            additions.push(Change::SetPolicy(Box::new(relay.clone())));
            listeners(running.relay.as_ref(), relay, &mut additions, &mut removals);
        }
        additions.append(&mut removals);
        additions.append(&mut orders);
        Ok(Self { changes: additions })
    }

    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The settings after the changes.
    pub fn apply_to(&self, settings: &mut Settings) {
        for change in &self.changes {
            change.apply_to(settings);
        }
    }
}

impl Change {
    fn apply_to(&self, settings: &mut Settings) {
        match self {
            Self::SetUnderlays(underlays) => settings.underlays.clone_from(underlays),
            Self::AddPeer { tunnel, peer } => on_tunnel(settings, tunnel, |tunnel| tunnel.peers.push(peer.clone())),
            Self::SetPrivateKey { tunnel, key } => on_tunnel(settings, tunnel, |tunnel| tunnel.private_key.clone_from(key)),
            Self::EditPeer { tunnel, key, peer } => on_tunnel(settings, tunnel, |tunnel| {
                if let Some(present) = tunnel.peers.iter_mut().find(|present| present.public_key == *key) {
                    present.clone_from(peer);
                }
            }),
            Self::RemovePeer { tunnel, key, .. } => {
                on_tunnel(settings, tunnel, |tunnel| tunnel.peers.retain(|peer| peer.public_key != *key))
            }
            Self::OrderPeers { tunnel, keys } => on_tunnel(settings, tunnel, |tunnel| {
                tunnel.peers.sort_by_key(|peer| keys.iter().position(|key| *key == peer.public_key));
            }),
            Self::SetMtu { tunnel, mtu } => on_tunnel(settings, tunnel, |tunnel| tunnel.mtu = *mtu),
            Self::SetRoutes(routes) => settings.routes.clone_from(routes),
            // The listeners are part of it.
            Self::SetPolicy(relay) => settings.relay = Some((**relay).clone()),
            Self::OpenListener(_) | Self::ChangeListener(_) | Self::CloseListener(_) => {}
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetUnderlays(_) => write!(f, "underlays change"),
            Self::AddPeer { tunnel, peer } => write!(f, "add peer {} to tunnel {tunnel}", peer.name),
            Self::SetPrivateKey { tunnel, .. } => write!(f, "private key of tunnel {tunnel} changes"),
            Self::EditPeer { tunnel, peer, .. } => write!(f, "edit peer {} of tunnel {tunnel}", peer.name),
            Self::SetMtu { tunnel, mtu } => write!(f, "MTU of tunnel {tunnel} becomes {mtu}"),
            Self::SetRoutes(_) => write!(f, "routes change"),
            Self::SetPolicy(_) => write!(f, "relay policy changes"),
            Self::OpenListener(at) => write!(f, "open listener {}", at.name),
            Self::ChangeListener(at) => write!(f, "listener {} changes", at.name),
            Self::CloseListener(at) => write!(f, "close listener {}; its sessions go on", at.name),
            Self::RemovePeer { tunnel, name, .. } => write!(f, "remove peer {name} from tunnel {tunnel}"),
            Self::OrderPeers { tunnel, .. } => write!(f, "peers of tunnel {tunnel} in another order"),
        }
    }
}

fn on_tunnel(settings: &mut Settings, name: &str, act: impl FnOnce(&mut TunnelSettings)) {
    if let Some(tunnel) = settings.tunnels.iter_mut().find(|tunnel| tunnel.name == name) {
        act(tunnel);
    }
}

fn peers(
    present: &TunnelSettings,
    wanted: &TunnelSettings,
    additions: &mut Vec<Change>,
    removals: &mut Vec<Change>,
    orders: &mut Vec<Change>,
) {
    let tunnel = &wanted.name;
    // A peer whose next key has become its key is the same peer.
    let listed: HashSet<PublicKey> = wanted.peers.iter().map(|peer| peer.public_key).collect();
    let by_key: HashMap<PublicKey, &PeerSettings> = present.peers.iter().map(|peer| (peer.public_key, peer)).collect();
    let promoted = present.peers.iter().filter(|peer| !listed.contains(&peer.public_key));
    let promoted: HashMap<PublicKey, &PeerSettings> = promoted.filter_map(|peer| Some((peer.next_public_key?, peer))).collect();
    // The key that each peer had, to the one that it has.
    let mut became = HashMap::new();
    let mut added = Vec::new();
    for peer in &wanted.peers {
        match by_key.get(&peer.public_key).or_else(|| promoted.get(&peer.public_key)) {
            None => {
                added.push(peer.public_key);
                additions.push(Change::AddPeer { tunnel: tunnel.clone(), peer: peer.clone() });
            }
            Some(before) => {
                became.insert(before.public_key, peer.public_key);
                if *before != peer {
                    additions.push(Change::EditPeer { tunnel: tunnel.clone(), key: before.public_key, peer: peer.clone() });
                }
            }
        }
    }
    for peer in present.peers.iter().filter(|peer| !became.contains_key(&peer.public_key)) {
        removals.push(Change::RemovePeer { tunnel: tunnel.clone(), name: peer.name.clone(), key: peer.public_key });
    }
    let keys = |peers: &[PeerSettings]| peers.iter().map(|peer| peer.public_key).collect::<Vec<_>>();
    let stay = present.peers.iter().filter_map(|peer| became.get(&peer.public_key).copied());
    let after: Vec<PublicKey> = stay.chain(added).collect();
    if after != keys(&wanted.peers) {
        orders.push(Change::OrderPeers { tunnel: tunnel.clone(), keys: keys(&wanted.peers) });
    }
}

fn listeners(running: Option<&RelaySettings>, desired: &RelaySettings, additions: &mut Vec<Change>, removals: &mut Vec<Change>) {
    let before = running.map_or(&[][..], |relay| &relay.listeners);
    for at in &desired.listeners {
        match before.iter().find(|before| before.name == at.name) {
            None => additions.push(Change::OpenListener(at.clone())),
            Some(before) if before == at => {}
            Some(before) if before.listen == at.listen && before.kind.is_served_like(&at.kind) => {
                additions.push(Change::ChangeListener(at.clone()));
            }
            // Elsewhere, or by another kind of socket: the new one is bound before the old one goes.
            Some(before) => additions.extend([Change::CloseListener(before.clone()), Change::OpenListener(at.clone())]),
        }
    }
    let is_gone = |before: &&ListenerAt| !desired.listeners.iter().any(|at| at.name == before.name);
    removals.extend(before.iter().filter(is_gone).map(|before| Change::CloseListener(before.clone())));
}

fn needs_restart(running: &Settings, desired: &Settings) -> Result<(), NeedsRestart> {
    let refuse = |what: String| Err(NeedsRestart { what });
    if running.gateway != desired.gateway {
        return refuse("`gateway`".into());
    }
    for present in &running.tunnels {
        let Some(wanted) = desired.tunnel(&present.name) else { return refuse(format!("the tunnel {} is gone, which", present.name)) };
        // Written out, so that a new setting is thought about here.
        let TunnelSettings { name: _, mode, private_key: _, listen, addresses, mtu: _, lanes, cpus, uapi, peers: _ } = present;
        let differ = [
            ("mode", *mode != wanted.mode),
            ("listen", *listen != wanted.listen),
            ("addresses", *addresses != wanted.addresses),
            ("lanes", *lanes != wanted.lanes),
            ("cpus", *cpus != wanted.cpus),
            ("uapi", *uapi != wanted.uapi),
        ];
        let names: Vec<&str> = differ.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
        if !names.is_empty() {
            return refuse(format!("the tunnel {} itself ({})", present.name, names.join(", ")));
        }
    }
    if let Some(new) = desired.tunnels.iter().find(|tunnel| running.tunnel(&tunnel.name).is_none()) {
        return refuse(format!("the tunnel {} is new, which", new.name));
    }
    if running.tunnels.iter().map(|tunnel| &tunnel.name).ne(desired.tunnels.iter().map(|tunnel| &tunnel.name)) {
        return refuse("the order of the tunnels".into());
    }
    if running.relay.is_some() != desired.relay.is_some() {
        return refuse("whether there is a `relay`".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
