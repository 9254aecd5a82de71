//! `skyway release`: takes the kill switch away.

use std::process::ExitCode;

use routing::io::{Kernel, nft};
use routing::render;

use super::{ConfigArgs, INVALID, small_runtime};
use crate::admin::client;
use crate::terminal::{complain, say};

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let (name, socket) = crate::config::identity(&args.config)?;
    small_runtime()?.block_on(async {
        if client::ask(&socket, hyper::Method::GET, "/v1/status").await.is_ok() {
            complain(&format!("error: the gateway {name} is running; stop it first, or its routes would leak\nnothing was changed"));
            return Ok(ExitCode::from(INVALID));
        }
        let report = Kernel::open()?.release().await?;
        nft::apply(&render::nft::release_script(&name)).await?;
        say(&format!("released: {} routes, the rules and the inward filter of {name} are gone", report.removed.len()));
        Ok(ExitCode::SUCCESS)
    })
}
