//! The way of a sensor to a host, gone once: by the policy that holds now and by the gateway's own paths.

use std::time::{Duration, Instant};

use crate::doctor::{TraceAnswer, TraceStep};
use crate::relay::connect_head::Authority;
use crate::relay::tls::{ChainCheck, Roots};
use crate::relay::{DialError, HostName, Policy};

/// For one path, from the first look-up to the end of the handshake.
const PATH: Duration = Duration::from_secs(8);

/// Goes the way, all paths in turn until one reaches the host.
pub(super) async fn trace(policy: &Policy, sensor: &str, host: &HostName, port: u16) -> TraceAnswer {
    let mut steps = Vec::new();
    let answer = |allowed: bool, steps: Vec<TraceStep>, verdict: String| TraceAnswer {
        allowed,
        sensor: sensor.to_owned(),
        host: host.to_string(),
        port,
        steps,
        verdict,
    };
    let Some(known) = policy.sensors.get(sensor) else {
        let names: Vec<&str> = policy.sensors.iter().map(|sensor| &*sensor.name).collect();
        let detail = format!("no sensor has that name; there are: {}", names.join(", "));
        steps.push(step("sensor", false, "unknown_sensor", detail, Instant::now()));
        return answer(false, steps, format!("not allowed: there is no sensor {sensor}"));
    };
    steps.push(step("sensor", true, "relay.sensors", recognised_by(known), Instant::now()));
    let Some(entry) = policy.catalogue.get(host) else {
        let detail = "the catalogue does not list it".to_owned();
        steps.push(step("catalogue", false, "host_not_listed", detail, Instant::now()));
        return answer(false, steps, format!("not allowed: {host} is not in the catalogue"));
    };
    steps.push(step("catalogue", true, "relay.catalogue", format!("listed as {}", entry.role.label()), Instant::now()));
    let ports: Vec<String> = entry.ports.iter().map(u16::to_string).collect();
    let port_is_good = entry.ports.contains(&port);
    steps.push(step("port", port_is_good, if port_is_good { "ports" } else { "port_not_listed" }, ports.join(", "), Instant::now()));
    if !port_is_good {
        return answer(false, steps, format!("not allowed: of {host} the ports {} may be reached", ports.join(", ")));
    }
    let authority = Authority { host: host.clone(), port };
    let builtin = Roots::load(None).ok();
    for path in &policy.paths {
        let begun = Instant::now();
        let name = format!("path:{}", path.name());
        let Some(roots) = path.roots().or(builtin.as_ref()) else { continue };
        match path.examine(&authority, &policy.catalogue, roots, begun + PATH).await {
            Err(error) => {
                steps.push(step(&name, false, error.reason(), error.to_string(), begun));
                steps.push(step(stage(&error), false, error.reason(), error.to_string(), begun));
            }
            Ok(check) => {
                steps.push(step(&name, true, "relay.paths", "a connection stands".to_owned(), begun));
                let (ok, rule, detail) = match check {
                    ChainCheck::Good { issuer, version, .. } => (true, "certificate", format!("{version}, certificate issued by {issuer}")),
                    ChainCheck::Intercepted { issuer, why } => (false, "intercepted", format!("issued by {issuer}: {why}")),
                    ChainCheck::Failed(error) => (false, error.reason(), error.to_string()),
                };
                steps.push(step("tls", ok, rule, detail, begun));
                if ok {
                    return answer(true, steps, format!("allowed, and reached by the path {}", path.name()));
                }
            }
        }
    }
    let why = steps.last().map_or_else(|| "there is no path".to_owned(), |step| step.detail.clone());
    answer(true, steps, format!("allowed, but not reached: {why}"))
}

fn recognised_by(sensor: &crate::relay::Sensor) -> String {
    let mut ways: Vec<String> = sensor.from.iter().map(ToString::to_string).collect();
    ways.extend(sensor.proxy_user.as_ref().map(|user| format!("proxy user {}", user.name)));
    ways.extend(sensor.client_certificates.iter().map(|name| format!("certificate {name}")));
    ways.extend(sensor.private_link.is_some().then(|| "its private link".to_owned()));
    format!("recognised by {}", ways.join(", "))
}

/// The part of the way at which it failed.
const fn stage(error: &DialError) -> &'static str {
    match error {
        DialError::Resolve { .. } => "resolve",
        DialError::Forbidden { .. } | DialError::OutsideServiceTag { .. } | DialError::NotCovered { .. } => "address",
        DialError::ParentRefused { .. }
        | DialError::ParentUnreachable { .. }
        | DialError::ParentSilent { .. }
        | DialError::ParentBroken { .. }
        | DialError::ParentTls { .. } => "parent",
        DialError::Refused { .. }
        | DialError::TimedOut { .. }
        | DialError::Unreachable { .. }
        | DialError::TunnelDown { .. }
        | DialError::NoPath
        | DialError::Socket { .. } => "dial",
    }
}

fn step(step: &str, ok: bool, rule: &str, detail: String, begun: Instant) -> TraceStep {
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    TraceStep { step: step.to_owned(), ok, rule: rule.to_owned(), detail, took_ms }
}
