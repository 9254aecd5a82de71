//! What `wg show` would print of these tunnels, word for word, so that eyes and scripts that know it need not learn.

use std::fmt::Write;
use std::time::SystemTime;

use tunnel::PeerSnapshot;

use super::status::bytes;
use crate::supervisor::RunningTunnel;

pub(super) fn text(tunnels: &[RunningTunnel]) -> String {
    let blocks: Vec<String> = tunnels
        .iter()
        .map(|tunnel| {
            let snapshot = tunnel.snapshots.borrow().clone();
            let mut text = format!(
                "interface: {}\n  public key: {}\n  private key: (hidden)\n  listening port: {}\n",
                tunnel.name, snapshot.public_key, snapshot.listen_port
            );
            for peer in &snapshot.peers {
                text.push('\n');
                write_peer(&mut text, peer);
            }
            text
        })
        .collect();
    blocks.join("\n")
}

fn write_peer(text: &mut String, peer: &PeerSnapshot) {
    let mut line = |label: &str, value: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{label}: {value}");
    };
    line("peer", &peer.public_key.to_string());
    if peer.has_preshared_key {
        line("  preshared key", "(hidden)");
    }
    if let Some(endpoint) = peer.endpoint {
        line("  endpoint", &endpoint.to_string());
    }
    let allowed: Vec<String> = peer.allowed_ips.iter().map(ToString::to_string).collect();
    line("  allowed ips", if allowed.is_empty() { "(none)".into() } else { allowed.join(", ") }.as_str());
    if let Some(at) = peer.last_handshake {
        line("  latest handshake", &ago(SystemTime::now().duration_since(at).map_or(0, |since| since.as_secs())));
    }
    if peer.received_bytes > 0 || peer.sent_bytes > 0 {
        line("  transfer", &format!("{} received, {} sent", bytes(peer.received_bytes), bytes(peer.sent_bytes)));
    }
    if let Some(keepalive) = peer.keepalive_secs {
        line("  persistent keepalive", &format!("every {}", units(keepalive)));
    }
}

fn ago(seconds: u64) -> String {
    if seconds == 0 { "Now".into() } else { format!("{} ago", units(seconds)) }
}

/// `1 hour, 2 minutes, 3 seconds`.
fn units(mut seconds: u64) -> String {
    let mut parts = Vec::new();
    for (length, name) in [(365 * 86_400, "year"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")] {
        let count = seconds / length;
        seconds %= length;
        if count > 0 {
            parts.push(format!("{count} {name}{}", if count == 1 { "" } else { "s" }));
        }
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spelled_as_wg_spells_them() {
        assert_eq!(ago(0), "Now");
        assert_eq!(ago(1), "1 second ago");
        assert_eq!(ago(3725), "1 hour, 2 minutes, 5 seconds ago");
        assert_eq!(units(25), "25 seconds");
    }
}
