//! `relay.limits`: how long and how many, and how the relay stops.

use std::time::Duration;

use tunnel::Cloud;

use super::super::super::diagnostic::Diagnostic;
use super::super::super::field::Field;
use super::super::super::raw::{RawLimits, RawRelay};
use super::super::super::settings::{PathSettings, Via};
use super::super::{Context, words};
use super::Around;
use crate::relay::{Drain, Limits, Tuning};

impl Context<'_> {
    pub(super) fn limits(&mut self, relay: &RawRelay, around: Around<'_>, paths: &[PathSettings]) -> Limits {
        let Some(raw) = relay.limits.get() else { return Limits::default() };
        let default = Limits::default();
        let mut time = |field: &Field<String>, default: Duration| self.read(field, words::duration).unwrap_or(default);
        let drain = time(&raw.drain, default.drain.limit);
        let limits = Limits {
            hello: time(&raw.hello, default.hello),
            connect: time(&raw.connect, default.connect),
            idle: time(&raw.idle, default.idle),
            half_close: time(&raw.half_close, default.half_close),
            lifetime: raw.lifetime.is_present().then(|| time(&raw.lifetime, Duration::MAX)),
            sessions: number(&raw.sessions, default.sessions),
            sessions_per_sensor: number(&raw.sessions_per_sensor, default.sessions_per_sensor),
            connections_per_source: number(&raw.connections_per_source, default.connections_per_source),
            tuning: Tuning {
                keepalive: time(&raw.keepalive, default.tuning.keepalive),
                user_timeout: time(&raw.user_timeout, default.tuning.user_timeout),
            },
            drain: Drain {
                notice: time(&raw.drain_notice, default.drain.notice),
                limit: drain,
                // A short drain is spread over the whole of it.
                spread: time(&raw.drain_spread, default.drain.spread.min(drain)),
            },
        };
        self.is_at_least_one(&raw.sessions, "no session could ever begin");
        self.is_at_least_one(&raw.sessions_per_sensor, "no session of a sensor could ever begin");
        self.is_at_least_one(&raw.connections_per_source, "nobody could ever connect");
        self.limits_fit(raw, &limits);
        self.keepalive_is_soon_enough(raw, &limits, around, paths);
        limits
    }

    /// Only what is written is complained about: a default need not be known.
    fn limits_fit(&mut self, raw: &RawLimits, limits: &Limits) {
        let mut is_never_reached = |field: &Field<String>, time: Duration, other: Duration, what: &str| {
            if field.get().is_some() && time > other {
                self.report(Diagnostic::warning(field, format!("longer than {what}, which ends a session first")));
            }
        };
        if let Some(lifetime) = limits.lifetime {
            is_never_reached(&raw.idle, limits.idle, lifetime, "lifetime");
            is_never_reached(&raw.half_close, limits.half_close, lifetime, "lifetime");
        }
        for (field, number) in
            [(&raw.sessions_per_sensor, limits.sessions_per_sensor), (&raw.connections_per_source, limits.connections_per_source)]
        {
            if field.get().is_some() && number > limits.sessions {
                self.report(Diagnostic::warning(field, format!("more than sessions, {}, which is reached first", limits.sessions)));
            }
        }
        if raw.drain_spread.get().is_some() && limits.drain.spread > limits.drain.limit {
            self.report(
                Diagnostic::error(&raw.drain_spread, "longer than drain, whose last part it is")
                    .help("make drain longer, or drain_spread shorter"),
            );
        }
    }

    /// A load balancer forgets a connection that is silent for long, and tells nobody.
    fn keepalive_is_soon_enough(&mut self, raw: &RawLimits, limits: &Limits, around: Around<'_>, paths: &[PathSettings]) {
        let used = |name: &str| paths.iter().any(|path| matches!(&path.via, Via::Tunnel(tunnel) if tunnel == name));
        let peers = around.tunnels.iter().filter(|tunnel| used(&tunnel.name)).flat_map(|tunnel| &tunnel.peers);
        let clouds = std::iter::once(around.cloud).chain(peers.map(|peer| peer.cloud));
        let shortest = clouds.filter_map(idle_limit).min();
        if let Some((limit, whose)) = shortest
            && raw.keepalive.get().is_some()
            && limits.tuning.keepalive >= limit
        {
            self.report(
                Diagnostic::warning(&raw.keepalive, format!("{whose} forgets a connection after {} s of silence", limit.as_secs()))
                    .help("make it shorter, unless you have raised that limit"),
            );
        }
    }
}

fn number(field: &Field<u32>, default: usize) -> usize {
    field.get().map_or(default, |number| *number as usize)
}

/// After how long a cloud's load balancer forgets a silent connection, by default; none: not known.
///
/// Source: Azure Load Balancer, "TCP reset and idle timeout": 4 minutes; AWS Network Load Balancer, "Update the TCP idle
/// timeout": 350 seconds.
const fn idle_limit(cloud: Cloud) -> Option<(Duration, &'static str)> {
    match cloud {
        Cloud::Azure => Some((Duration::from_secs(240), "an Azure load balancer")),
        Cloud::Aws => Some((Duration::from_secs(350), "an AWS network load balancer")),
        Cloud::Gcp | Cloud::Other => None,
    }
}
