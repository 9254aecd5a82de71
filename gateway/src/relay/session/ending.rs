//! When and why a session ends though neither side wants it to: a drain, or its path that goes down.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::super::path::{OnPathDown, Path};

/// When sessions are to end: one after the other, over `spread`.
#[derive(Debug, Clone, Copy)]
pub(in crate::relay) struct Ending {
    pub(in crate::relay) from: Instant,
    pub(in crate::relay) spread: Duration,
}

impl Ending {
    /// A session's own moment; sessions begun one after the other lie far apart.
    fn of(self, session: u64) -> Instant {
        self.from + self.spread.mul_f64(fraction(session))
    }
}

/// A number from 0 to 1 that is any session's own: multiples of the golden ratio fill an interval evenly.
fn fraction(session: u64) -> f64 {
    f64::from((session.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32) / f64::from(u32::MAX)
}

/// Ready a moment after the session was told to end: a pump sees it first and leaves its counts; what has not got that far
/// is ended here.
pub(super) async fn stop_and_grace(stop: watch::Receiver<Option<Ending>>, session: u64) {
    told_to_end(stop, session).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// Ready at the session's own moment of an ending.
async fn told_to_end(mut stop: watch::Receiver<Option<Ending>>, session: u64) {
    match stop.wait_for(Option::is_some).await.map(|ending| *ending) {
        Ok(Some(ending)) => Box::pin(tokio::time::sleep_until(ending.of(session).into())).await,
        // A closed channel means that nobody is left to ask for a stop.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// Why a session that moves bytes is to end though neither side wants it to.
pub(super) async fn end_of(stop: watch::Receiver<Option<Ending>>, path: &Path, session: u64, spread: Duration) -> &'static str {
    // Most paths keep their sessions, and most sessions should not pay for those that do not.
    if path.on_down() == OnPathDown::Keep {
        told_to_end(stop, session).await;
        return "drained";
    }
    tokio::select! {
        biased;
        () = told_to_end(stop, session) => "drained",
        () = Box::pin(path_goes_down(path, session, spread)) => "path_down",
    }
}

/// Ready when the path goes down and its sessions are to end. One that was down already, when no other was left, does not
/// go down.
async fn path_goes_down(path: &Path, session: u64, spread: Duration) {
    let mut down = path.watch();
    loop {
        if down.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        if !*down.borrow_and_update() {
            continue;
        }
        if path.on_down() == OnPathDown::Reset {
            return;
        }
        tokio::time::sleep(spread.mul_f64(fraction(session))).await;
        // It may be back by now.
        if *down.borrow() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_drain_are_spread_over_its_whole_length() {
        let ending = Ending { from: Instant::now(), spread: Duration::from_secs(10) };
        let mut ends: Vec<f64> = (1..=100).map(|session| (ending.of(session) - ending.from).as_secs_f64()).collect();
        ends.sort_by(f64::total_cmp);
        for (at, pair) in ends.windows(2).enumerate() {
            assert!(pair[1] - pair[0] < 0.3, "a gap behind session {at}: {pair:?}");
        }
        assert!(ends[0] < 0.3 && ends[99] > 9.7 && ends[99] <= 10.0);
    }
}
