//! What a session takes of the limits: one of all sessions, one of those of its address, one of those of its sensor.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::policy::{Policy, Refusal};
use super::super::sensor::Sensor;
use super::Shared;

/// What a session takes of the limits. Given back when dropped, also by a panic.
#[derive(Default)]
pub(super) struct Place {
    shared: Option<Arc<Shared>>,
    source: Option<IpAddr>,
    sensor: Option<Arc<str>>,
}

impl Place {
    pub(super) fn take(&mut self, shared: &Arc<Shared>, limit: usize) -> Result<(), Refusal> {
        let taken = shared.stats.with(|stats| {
            let room = usize::try_from(stats.told.open).is_ok_and(|open| open < limit);
            stats.told.open += u64::from(room);
            room
        });
        if !taken {
            return Err(Refusal::TooManySessions);
        }
        self.shared = Some(Arc::clone(shared));
        Ok(())
    }

    /// One of those that one address may have.
    pub(super) fn take_of_source(&mut self, source: IpAddr, limit: usize) -> Result<(), Refusal> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let taken = shared.stats.with(|stats| {
            let room = stats.sources.get(&source).is_none_or(|open| *open < limit);
            if room {
                *stats.sources.entry(source).or_default() += 1;
            }
            room
        });
        if !taken {
            return Err(Refusal::TooManyOfSource);
        }
        self.source = Some(source);
        Ok(())
    }

    /// One of those that one sensor may have.
    pub(super) fn take_of_sensor(&mut self, sensor: &Sensor, policy: &Policy) -> Result<(), Refusal> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let usual = if sensor.is_gateway { usize::MAX } else { policy.limits.sessions_per_sensor };
        let limit = sensor.sessions.unwrap_or(usual);
        let taken = shared.stats.with(|stats| {
            let open = &mut stats.told.sensors.entry(Arc::clone(&sensor.name)).or_default().open;
            let room = usize::try_from(*open).is_ok_and(|open| open < limit);
            *open += u64::from(room);
            room
        });
        if !taken {
            return Err(Refusal::TooManyOfSensor);
        }
        self.sensor = Some(Arc::clone(&sensor.name));
        if sensor.is_gateway
            && let Some(source) = self.source.take()
        {
            // It carries many sensors from one address.
            shared.stats.with(|stats| stats.release(source));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        shared.stats.with(|stats| {
            stats.told.open = stats.told.open.saturating_sub(1);
            if let Some(source) = self.source {
                stats.release(source);
            }
            if let Some(sensor) = self.sensor.as_ref().and_then(|sensor| stats.told.sensors.get_mut(sensor)) {
                sensor.open = sensor.open.saturating_sub(1);
            }
        });
    }
}
