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

/// The joined snapshot of all lanes. It closes when a lane ends, for whatever reason.
pub(crate) fn watch_lanes(lanes: Arc<Lanes>) -> watch::Receiver<Snapshot> {
    let each = lanes.snapshots();
    let [only] = each.as_slice() else { return join(lanes, each) };
    only.clone()
}

fn join(lanes: Arc<Lanes>, each: Vec<watch::Receiver<Snapshot>>) -> watch::Receiver<Snapshot> {
    let (publisher, joined) = watch::channel(merge(&each));
    tokio::spawn(async move {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut each = each;
        let mut told = vec![None; each.len()];
        while !publisher.is_closed() {
            look.tick().await;
            let mut news = false;
            for snapshots in &mut each {
                match snapshots.has_changed() {
                    Ok(changed) => news |= changed,
                    Err(_) => return,
                }
            }
            if news {
                for snapshots in &mut each {
                    snapshots.mark_unchanged();
                }
                attach(&lanes, &each, &mut told);
                publisher.send_replace(merge(&each));
            }
        }
    });
    joined
}

fn merge(each: &[watch::Receiver<Snapshot>]) -> Snapshot {
    Snapshot::merge(each.iter().map(|snapshots| snapshots.borrow().clone())).expect("a tunnel has one lane or more")
}

/// A lane whose peer does not answer detaches its queue, so that the kernel gives its flows to the others.
///
/// `told`: what each was last told, and when.
fn attach(lanes: &Lanes, each: &[watch::Receiver<Snapshot>], told: &mut [Option<(bool, Instant)>]) {
    let Some((first, others)) = each.split_first() else { return };
    let first = first.borrow();
    for (number, snapshots) in others.iter().enumerate().map(|(at, snapshots)| (at + 1, snapshots)) {
        let snapshot = snapshots.borrow();
        let attached = snapshot.lanes.iter().any(|lane| lane.attached);
        let wanted = carries(&first, &snapshot);
        let Some(told) = told.get_mut(number) else { continue };
        // A lane that comes and goes is held back; leaving is never delayed, only not said twice.
        let held = told.is_some_and(|(before, at)| (wanted || before == wanted) && at.elapsed() < HOLD);
        if wanted == attached || held {
            continue;
        }
        *told = Some((wanted, Instant::now()));
        if wanted {
            info!(lane = number, "the lane has its session and carries packets");
        } else {
            warn!(lane = number, "the lane has no session with a peer that the first lane has one with: its flows move to the others");
        }
        // A lane that has ended is the supervisor's to notice.
        let _told = lanes.attach(number, wanted);
    }
}
