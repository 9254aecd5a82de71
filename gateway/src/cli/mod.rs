//! The command line: what can be asked, and which exit code answers.
//!
//! 0 is good; 1 is degraded, down or invalid; 2 is wrong usage, or that the question could not be answered.

mod ask;
mod check;
mod doctor;
mod import;
mod keys;
mod release;
mod render;
mod run;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::demo::DemoArgs;
use crate::telemetry::LogFormat;
use crate::terminal::complain;

const AFTER_HELP: &str = "\
A first look, without root and without configuration:   skyway demo
Two gateways by hand:                                   see README.md, \"First deployment\"

Exit codes: 0 good; 1 degraded, down or invalid; 2 wrong usage, or it cannot be told.";

/// Joins OT sites with an Azure VNET by a WireGuard tunnel, and relays Defender sensors' TLS sessions through it.
#[derive(Debug, Parser)]
#[command(name = "skyway", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway in the foreground until SIGTERM or Ctrl-C
    ///
    /// Checks the file, prepares everything that can fail, then brings tunnels, routes and relay up and logs "ready".
    /// SIGHUP reloads the file. SIGTERM stops taking sessions, lets those that stand run on for relay.limits.drain, and
    /// ends. Routes into tunnels stay closed afterwards (the kill switch) until `skyway release`.
    Run(RunArgs),
    /// Check a configuration file and report every mistake at once
    ///
    /// Reads the secrets that it refers to, but changes nothing and opens no port. Exit code 1 if there is an error.
    Check(CheckArgs),
    /// Make the running gateway read its file again
    ///
    /// Peers, MTUs, routes, catalogue, sensors, paths, listeners and limits change in place; what did not change is not touched. A bad
    /// file, or a change that takes a restart, changes nothing.
    Reload(AskArgs),
    /// Drain the running gateway and end it, as SIGTERM does
    ///
    /// It is not ready any more at once (/readyz), takes connections for relay.limits.drain_notice longer, then lets sessions run
    /// on for relay.limits.drain, the ends of the last ones spread over relay.limits.drain_spread. Returns when it is gone.
    Drain(AskArgs),
    /// Look at everything that this gateway depends on, and say what is wrong and what to do
    ///
    /// Takes less than 15 seconds, changes nothing and needs no root; knows most while the gateway runs. Exit code 0 if
    /// nothing is wrong, 1 if something is, 2 if the file cannot be read.
    Doctor(doctor::DoctorArgs),
    /// Have the running gateway go the way of a sensor to a host, and say by which rules and how far
    ///
    /// Exit code 0 if it is allowed and reached, 1 if not, 2 if no gateway answers.
    Trace(doctor::TraceArgs),
    /// Turn the portal's endpoint list, or a squid.conf, into skyway's YAML
    #[command(subcommand)]
    Import(import::ImportCommand),
    /// Print configuration for what stands beside the gateway
    #[command(subcommand)]
    Render(render::RenderCommand),
    /// Remove what the kill switch left in the kernel: routes, rules and the inward filter
    ///
    /// For a gateway that will not come back. Until this is run, prefixes meant for its tunnels stay unreachable on this
    /// host rather than leave in clear.
    Release(ConfigArgs),
    /// Say how the gateway is: first what is wrong and why
    ///
    /// Exit code 0 if everything is up, 1 if not, 2 if no gateway answers.
    Status(StatusArgs),
    /// Print what `wg show` prints, for these tunnels
    Show(AskArgs),
    /// Print a new WireGuard private key
    ///
    /// Keep it where nobody else reads it:   (umask 077 && skyway genkey > azure.key)
    Genkey,
    /// Read a private key from standard input and print its public key
    ///
    /// skyway pubkey < azure.key
    Pubkey,
    /// Print a new preshared key, for both sides of one peering
    ///
    /// Keep it where nobody else reads it:   (umask 077 && skyway genpsk > vnet-a.psk)
    Genpsk,
    /// Show the whole thing on this machine, with no root and no configuration
    ///
    /// Two gateways as two processes, joined by a real tunnel over loopback; a TLS server that stands for Defender; and
    /// sensors that reach it by CONNECT and by SNI. Prints a line that sends your own curl through it.
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/skyway/skyway.yaml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Log filter, for example debug or info,tunnel=trace
    #[arg(long, value_name = "FILTER", env = "SKYWAY_LOG")]
    log: Option<String>,
    /// Log for people or for machines
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = "SKYWAY_LOG_FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print diagnostics as JSON on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct AskArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The admin socket, if not the one that the file names
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Reload(args) => ask::reload(&args),
        Command::Drain(args) => ask::drain(&args),
        Command::Doctor(args) => doctor::examine(&args),
        Command::Trace(args) => doctor::trace(&args),
        Command::Import(command) => import::run(&command),
        Command::Render(command) => render::run(&command),
        Command::Release(args) => release::run(&args),
        Command::Status(args) => ask::status(&args),
        Command::Show(args) => ask::show(&args),
        Command::Genkey => keys::genkey(),
        Command::Pubkey => keys::pubkey(),
        Command::Genpsk => keys::genpsk(),
        Command::Demo(args) => crate::demo::run(&args),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("error: {}", chain(&error)));
        ExitCode::from(CANNOT_TELL)
    })
}

/// The error with its causes, but for those that it quotes already.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text {
        text if text.is_empty() => cause,
        text if text.contains(&cause) => text,
        text => format!("{text}: {cause}"),
    })
}

const INVALID: u8 = 1;
const CANNOT_TELL: u8 = 2;

/// A runtime with one thread, for commands that ask something once.
fn small_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
