//! The skyway program as a library: configuration, relay, plan, supervision, admin interface, command line.

pub mod admin;
pub mod config;
mod demo;
mod endpoints;
mod forwarding;
mod host;
mod inside;
mod lanes;
pub mod plan;
mod privilege;
pub mod relay;
pub mod secret;
mod socket;
pub mod supervisor;
pub mod telemetry;
mod terminal;
pub mod uapi;

pub mod cli;
