//! The lanes of a tunnel seen as one: their snapshots joined, and packets given only to lanes that can carry them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};
use tunnel::io::Lanes;
use tunnel::{Snapshot, carries};

/// How often the lanes' snapshots are looked at; each publishes at least five times a second.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a lane that was detached stays so, and how soon one that did not follow is told again.
const HOLD: Duration = Duration::from_secs(5);
/// How long a lane may lack a session before its flows move.
const GRACE: Duration = Duration::from_secs(1);

/// The joined snapshot of all lanes. It closes when a lane ends, for whatever reason.
pub(crate) fn watch_lanes(lanes: &Arc<Lanes>) -> watch::Receiver<Snapshot> {
    let each = lanes.snapshots();
    let [only] = each.as_slice() else { return join(lanes, each) };
    only.clone()
}

fn join(lanes: &Arc<Lanes>, each: Vec<watch::Receiver<Snapshot>>) -> watch::Receiver<Snapshot> {
    let (publisher, joined) = watch::channel(merge(&each));
    // Whoever ends the tunnel drops the lanes; this must not keep them.
    let lanes = Arc::downgrade(lanes);
    tokio::spawn(async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut each = each;
        let mut standings = vec![Standing::default(); each.len()];
        while !publisher.is_closed() {
            look.tick().await;
            let mut news = false;
            for snapshots in &mut each {
                match snapshots.has_changed() {
                    Ok(changed) => news |= changed,
                    Err(_) => return,
                }
            }
            let Some(lanes) = lanes.upgrade() else { return };
            attach(&lanes, &each, &mut standings);
            if news {
                for snapshots in &mut each {
                    snapshots.mark_unchanged();
                }
                publisher.send_replace(merge(&each));
            }
        }
    });
    joined
}

fn merge(each: &[watch::Receiver<Snapshot>]) -> Snapshot {
    Snapshot::merge(each.iter().map(|snapshots| snapshots.borrow().clone())).expect("a tunnel has one lane or more")
}

/// What is remembered of a lane between two looks.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// What it was last told, and when.
    told: Option<(bool, Instant)>,
    /// Since when it has lacked a session.
    lacking: Option<Instant>,
}

/// A lane whose peer does not answer detaches its queue, so that the kernel gives its flows to the others.
fn attach(lanes: &Lanes, each: &[watch::Receiver<Snapshot>], standings: &mut [Standing]) {
    let Some((first, others)) = each.split_first() else { return };
    let first = first.borrow().clone();
    for ((number, snapshots), standing) in others.iter().enumerate().map(|(at, snapshots)| (at + 1, snapshots)).zip(&mut standings[1..]) {
        let snapshot = snapshots.borrow().clone();
        let attached = snapshot.lanes.iter().any(|lane| lane.attached);
        let wanted = carries(&first, &snapshot);
        let since = if wanted { standing.lacking.take() } else { Some(*standing.lacking.get_or_insert_with(Instant::now)) };
        // The lanes' handshakes do not end together; until then the lane queues what it is given. Silence is no such thing.
        let silent = snapshot.peers.iter().any(tunnel::PeerSnapshot::is_silent);
        let graced = !wanted && !silent && since.is_some_and(|since| since.elapsed() < GRACE);
        // A lane that comes and goes is held back, and one that does not follow is not told each time.
        let held = standing.told.is_some_and(|(before, at)| (wanted || before == wanted) && at.elapsed() < HOLD);
        if wanted == attached || graced || held {
            continue;
        }
        standing.told = Some((wanted, Instant::now()));
        if wanted {
            info!(lane = number, "the lane has its session and carries packets");
        } else {
            warn!(lane = number, "the lane has no session with a peer that the first lane has one with: its flows move to the others");
        }
        // A lane that has ended is the supervisor's to notice.
        let _told = lanes.attach(number, wanted);
    }
}
