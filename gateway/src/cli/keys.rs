//! `skyway genkey`, `pubkey` and `genpsk`, as `wg` has them.

use std::io::Read;
use std::process::ExitCode;

use anyhow::Context as _;
use tunnel::{PresharedKey, PrivateKey};
use zeroize::Zeroizing;

use crate::terminal::say;

pub(super) fn genkey() -> anyhow::Result<ExitCode> {
    say(&PrivateKey::generate().to_base64());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn genpsk() -> anyhow::Result<ExitCode> {
    say(&PresharedKey::generate().to_base64());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn pubkey() -> anyhow::Result<ExitCode> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().take(4096).read_to_string(&mut text).context("standard input cannot be read")?;
    let key: PrivateKey = text.parse().context("standard input holds no private key")?;
    say(&key.public_key().to_string());
    Ok(ExitCode::SUCCESS)
}
