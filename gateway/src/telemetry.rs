//! Logs: for people on a terminal, or JSON for machines. Access lines have the target `skyway::access`.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// boringtun logs its timers as errors; what matters of them arrives as our own events.
const DEFAULT: &str = "info,boringtun=off,hickory_resolver=off,hickory_net=off,hickory_proto=off,netlink_proto=warn";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event.
    #[default]
    Human,
    /// One JSON object an event.
    Json,
}

/// Sends logs to standard error. `level` is a filter such as `info` or `debug,tunnel=trace`.
pub fn start(level: Option<&str>, format: LogFormat) -> Result<(), String> {
    let filter = match level {
        None => EnvFilter::new(DEFAULT),
        Some(level) => EnvFilter::try_new(format!("{DEFAULT},{level}")).map_err(|error| format!("not a log filter: {error}"))?,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Human => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_ansi(false).try_init(),
    };
    started.map_err(|error| error.to_string())
}
