//! What the relay can tell about itself.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::histogram::Histogram;
use super::host::HostName;

/// Sources whose wrong passwords are remembered.
const MOST_OFFENDERS: usize = 1024;

/// Counters since the start. Locked a few times while a session is set up and once when it ends, never while it moves bytes.
#[derive(Debug, Default)]
pub(super) struct Stats(Mutex<Counters>);

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) told: RelaySnapshot,
    /// Connections that stand, by who opened them.
    pub(super) sources: HashMap<IpAddr, usize>,
    /// Wrong passwords in a row, by who sent them.
    pub(super) offenders: HashMap<IpAddr, u32>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct RelaySnapshot {
    /// Sessions that stand.
    pub open: u64,
    /// Sessions that reached their upstream, ended ones included.
    pub relayed: u64,
    /// Sessions that did not, ended ones of every kind by reason.
    pub ended: BTreeMap<&'static str, u64>,
    pub refused: u64,
    pub sensors: BTreeMap<Arc<str>, SensorSnapshot>,
    /// Sessions by the path that they took.
    pub paths: BTreeMap<Arc<str>, u64>,
    /// Who still uses the customer's own hubs.
    pub legacy: BTreeMap<(HostName, Arc<str>), LegacyUse>,
    /// Questions to dns and ntp listeners, by listener and what became of them.
    pub questions: BTreeMap<(Arc<str>, &'static str), u64>,
    /// From accept to a whole CONNECT head or ClientHello.
    pub hello: Histogram,
    /// From that to an upstream stream.
    pub connect: Histogram,
    /// From that to its first byte.
    pub first_byte: Histogram,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyUse {
    pub sessions: u64,
    pub last: SystemTime,
}

impl Stats {
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Counters) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn snapshot(&self) -> RelaySnapshot {
        self.with(|counters| counters.told.clone())
    }
}

impl Counters {
    /// A connection of that source is gone, or is counted no more.
    pub(super) fn release(&mut self, source: IpAddr) {
        if let Some(open) = self.sources.get_mut(&source) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.sources.remove(&source);
            }
        }
    }

    /// Takes note of a wrong password; how many in a row it is.
    pub(super) fn offend(&mut self, source: IpAddr) -> u32 {
        if self.offenders.len() >= MOST_OFFENDERS && !self.offenders.contains_key(&source) {
            self.offenders.clear();
        }
        let row = self.offenders.entry(source).or_default();
        *row = row.saturating_add(1);
        *row
    }
}
