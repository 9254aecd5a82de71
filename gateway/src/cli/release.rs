//! `skyway release`: takes the kill switch away.

use std::process::ExitCode;

use routing::io::{Kernel, nft};
use routing::render;

use super::{CANNOT_TELL, ConfigArgs, INVALID, small_runtime};
use crate::admin::client::{self, ClientError};
use crate::config::{self, Identity};
use crate::host::{Claim, HostError};
use crate::terminal::{complain, say};

pub(super) fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let Identity { name, socket } = config::identity(&args.config)?;
    small_runtime()?.block_on(async {
        match client::ask(&socket, hyper::Method::GET, "/v1/status").await {
            // Its owner may be another user with another socket.
            Err(ClientError::NotRunning { .. }) => {}
            Ok(_) => {
                complain(&format!("error: the gateway {name} is running; stop it first, or its traffic would leak\nnothing was changed"));
                return Ok(ExitCode::from(INVALID));
            }
            // Whoever does not answer may still be there.
            Err(error) => {
                complain(&format!("error: whether {name} is running cannot be told: {error}\nnothing was changed"));
                return Ok(ExitCode::from(CANNOT_TELL));
            }
        }
        let _claim = match Claim::take() {
            Ok(claim) => claim,
            Err(HostError::Taken) => {
                complain("error: a skyway with TUN tunnels is running in this network namespace; stop it first\nnothing was changed");
                return Ok(ExitCode::from(INVALID));
            }
            Err(error) => return Err(error.into()),
        };
        let report = Kernel::open()?.release().await?;
        nft::apply(&render::nft::release_script(&name)).await?;
        say(&format!("released: {} routes, the rules and the inward filter of {name} are gone", report.removed.len()));
        Ok(ExitCode::SUCCESS)
    })
}
