//! A trace: whether a sensor may reach a host, by which rules, and how far one gets on its way.
//!
//! The running gateway goes the way itself, with the policy that it has and by its own paths; this is what it answers, and how
//! that is told.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::print::{Marks, plain};
use crate::admin::client::{self, ClientError};
use crate::relay::HostName;

/// What the gateway found. Fields are added, never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceAnswer {
    /// Whether the policy lets the sensor go there.
    pub allowed: bool,
    pub sensor: String,
    pub host: String,
    pub port: u16,
    /// In the order in which they were taken; the last one says whether the host was reached.
    pub steps: Vec<TraceStep>,
    /// In words.
    pub verdict: String,
}

/// One step of the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceStep {
    /// `sensor`, `catalogue`, `port`, `path:NAME`, `resolve`, `address`, `dial`, `parent`, `tls`.
    pub step: String,
    pub ok: bool,
    /// Which rule decided, or the stable word for what went wrong: `intercepted`.
    pub rule: String,
    pub detail: String,
    pub took_ms: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error(transparent)]
    Gateway(#[from] ClientError),
    #[error("the gateway behind {} knows no traces: it is older than this skyway", path.display())]
    Older { path: PathBuf },
    #[error("the gateway does not trace: {text}")]
    Refused { text: String },
    #[error("the gateway's answer is broken: {0}")]
    Broken(#[from] serde_json::Error),
}

/// Has the gateway behind `socket` go the way.
pub async fn ask(socket: &Path, sensor: &str, host: &HostName, port: u16) -> Result<TraceAnswer, TraceError> {
    let resource = format!("/v1/trace?sensor={}&host={host}&port={port}", encoded(sensor));
    let (status, body) = client::ask(socket, Method::GET, &resource).await?;
    if status == StatusCode::OK {
        return Ok(serde_json::from_slice(&body)?);
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    if status == StatusCode::NOT_FOUND && text.is_empty() {
        return Err(TraceError::Older { path: socket.to_owned() });
    }
    Err(TraceError::Refused { text: if text.is_empty() { status.to_string() } else { text } })
}

impl TraceAnswer {
    /// Whether the sensor may, and can.
    pub fn is_reached(&self) -> bool {
        self.allowed && self.steps.last().is_some_and(|step| step.ok)
    }

    /// The step that decided against it.
    pub(super) fn failure(&self) -> Option<&TraceStep> {
        if self.is_reached() { None } else { self.steps.iter().rev().find(|step| !step.ok) }
    }

    /// For people: a line for each step, the verdict last.
    pub fn text(&self, marks: Marks) -> String {
        let mut text = format!("sensor {} to {}:{}\n", plain(&self.sensor), plain(&self.host), self.port);
        let widest = self.steps.iter().map(|step| step.step.chars().count()).max().unwrap_or_default();
        for step in &self.steps {
            let parts = [&step.rule, &step.detail].map(|part| plain(part));
            let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
            let took = if step.took_ms > 0 { format!("  {} ms", step.took_ms) } else { String::new() };
            // Writing to a string cannot fail.
            let _written = writeln!(text, "  {} {:widest$}  {}{took}", marks.step(step.ok), plain(&step.step), parts.join(": "));
        }
        let _written = writeln!(text, "{}", plain(&self.verdict));
        text
    }
}

/// For a query string: what is not unreserved becomes %XX (RFC 3986 §2.3).
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _written = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::doctor) fn step(step: &str, ok: bool, rule: &str, detail: &str) -> TraceStep {
        TraceStep { step: step.into(), ok, rule: rule.into(), detail: detail.into(), took_ms: 0 }
    }

    pub(in crate::doctor) fn answer(allowed: bool, steps: Vec<TraceStep>) -> TraceAnswer {
        TraceAnswer { allowed, sensor: "line-3".into(), host: "hub.example".into(), port: 443, steps, verdict: "in words".into() }
    }

    #[test]
    fn reached_is_what_is_allowed_and_gets_to_the_end() {
        let good = || step("sensor", true, "", "");
        assert!(answer(true, vec![good(), step("dial", false, "", ""), step("tls", true, "", "")]).is_reached(), "by the second path");
        assert!(!answer(true, vec![good(), step("tls", false, "", "")]).is_reached());
        assert!(!answer(false, vec![good()]).is_reached());
        assert!(!answer(true, Vec::new()).is_reached());
        let failed = answer(true, vec![good(), step("path:a", false, "", ""), step("dial", false, "", "")]);
        assert_eq!(failed.failure().map(|step| step.step.as_str()), Some("dial"));
    }

    #[test]
    fn is_told_step_by_step() {
        let mut tls = step("tls", true, "", "TLS 1.3, by DigiCert");
        tls.took_ms = 84;
        let answer = answer(
            true,
            vec![step("catalogue", true, "hub.example", "iot-hub"), step("path:vnet", false, "tunnel_down", "no session\x1b[2J"), tls],
        );
        assert_eq!(
            answer.text(Marks::Words),
            "sensor line-3 to hub.example:443\n\
             \x20 ok catalogue  hub.example: iot-hub\n\
             \x20 no path:vnet  tunnel_down: no session?[2J\n\
             \x20 ok tls        TLS 1.3, by DigiCert  84 ms\n\
             in words\n"
        );
        assert!(answer.text(Marks::Symbols).contains("  ✗ path:vnet"));
    }

    #[test]
    fn its_json_has_the_fields_that_the_gateway_sends() {
        let text = r#"{"allowed":true,"sensor":"line-3","host":"hub.example","port":443,"verdict":"in words","later":1,
            "steps":[{"step":"tls","ok":true,"rule":"","detail":"","took_ms":3}]}"#;
        let answer: TraceAnswer = serde_json::from_str(text).expect("JSON");
        assert!(answer.is_reached());
        let again: TraceAnswer = serde_json::from_value(serde_json::to_value(&answer).expect("JSON")).expect("JSON");
        assert_eq!(again, answer);
    }

    #[test]
    fn what_a_query_cannot_hold_is_encoded() {
        assert_eq!(encoded("line-3_a.b~"), "line-3_a.b~");
        assert_eq!(encoded("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
