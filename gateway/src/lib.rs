//! The skyway program as a library: configuration, relay, plan, supervision, admin interface, command line.

pub mod admin;
pub mod config;
mod demo;
pub mod doctor;
mod endpoints;
mod forwarding;
mod host;
pub mod import;
mod inherit;
mod inside;
mod lanes;
pub mod plan;
mod privilege;
pub mod relay;
mod relaying;
pub mod secret;
mod socket;
pub mod supervisor;
pub mod telemetry;
mod terminal;
pub mod uapi;

pub mod cli;
