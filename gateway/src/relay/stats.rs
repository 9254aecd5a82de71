//! What the relay can tell about itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counters since the start. Locked once when a session begins and once when it ends, never while it moves bytes.
#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<RelaySnapshot>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelaySnapshot {
    /// Sessions that stand.
    pub open: u64,
    /// Sessions that reached their upstream, ended ones included.
    pub relayed: u64,
    /// Sessions that did not, ended ones of every kind by reason.
    pub ended: BTreeMap<&'static str, u64>,
    pub refused: u64,
    pub sensors: BTreeMap<Arc<str>, SensorSnapshot>,
    pub draining: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SensorSnapshot {
    pub open: u64,
    pub relayed: u64,
    pub refused: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Why the last session that failed did, if none has been relayed since.
    pub last_failure: Option<String>,
}

impl Stats {
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut RelaySnapshot) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn snapshot(&self) -> RelaySnapshot {
        self.with(|stats| stats.clone())
    }
}
