//! nftables by its own program: `nft` takes the scripts of `render::nft` and tells the counters.
//!
//! A program and not netlink, because one transaction in nft's language is what an operator can read, check with
//! `nft -c -f` and find again in `nft list ruleset`.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::render::nft::table_name;

/// Runs a script, which takes effect as a whole or not at all.
pub async fn apply(script: &str) -> Result<(), NftError> {
    run("nft", &["-f", "-"], script, TIME_LIMIT).await.map(drop)
}

/// How many packets the inward filter of `gateway` has dropped since it was applied: `dropped_INTERFACE_HOOK` and its
/// count, in the table's order.
pub async fn dropped(gateway: &str) -> Result<Vec<(String, u64)>, NftError> {
    let table = table_name(gateway);
    let arguments = ["list", "counters", "table", "inet", table.as_str()];
    run("nft", &arguments, "", TIME_LIMIT).await.map(|text| counters(&text))
}

/// Whether the gateway's filter is there, down to the last rule of each of its `interfaces`.
pub async fn is_loaded(gateway: &str, interfaces: &[&str]) -> bool {
    let table = table_name(gateway);
    let listed = run("nft", &["list", "table", "inet", table.as_str()], "", TIME_LIMIT).await;
    listed.is_ok_and(|text| {
        let hooked = ["hook forward", "hook input"].iter().all(|hook| text.contains(hook));
        let drops = |interface: &&str| {
            ["forward", "input"]
                .iter()
                .all(|chain| text.contains(&format!("iifname \"{interface}\" counter name \"dropped_{interface}_{chain}\" drop")))
        };
        hooked && interfaces.iter().all(drops)
    })
}

/// Why nftables could not do as asked.
#[derive(Debug, Error)]
pub enum NftError {
    #[error("nft is not installed, and without it nothing would filter what a tunnel opens; install the package nftables")]
    NotInstalled,
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    #[error("nft did not finish within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// File capabilities of skyway do not pass on to `nft`; ambient ones do.
    #[error(
        "nft lacks CAP_NET_ADMIN; run skyway as root or give it the capability as an ambient one (systemd: \
         AmbientCapabilities=CAP_NET_ADMIN): {stderr}"
    )]
    NotPermitted { stderr: String },
    #[error("nft refused: {stderr}")]
    Refused { stderr: String },
}

/// Runs `program` with `input` on its stdin and returns its stdout. It is killed when it takes too long and when the
/// caller stops waiting.
async fn run(program: &str, arguments: &[&str], input: &str, limit: Duration) -> Result<String, NftError> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C") // `refusal` reads its words
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| if error.kind() == io::ErrorKind::NotFound { NftError::NotInstalled } else { NftError::Run(error) })?;
    let stdin = child.stdin.take();
    let write = async move {
        match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        } // and closes it, by which nft knows that the script is complete
    };
    let (written, output) = timeout(limit, future::join(write, child.wait_with_output())).await.map_err(|_| NftError::TimedOut(limit))?;
    let output = output.map_err(NftError::Run)?;
    if !output.status.success() {
        // It may have given up before it read all; what it says counts more than the broken pipe.
        return Err(refusal(&output.stderr));
    }
    written.map_err(NftError::Run)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn refusal(stderr: &[u8]) -> NftError {
    let stderr = String::from_utf8_lossy(stderr).trim().to_owned();
    if stderr.contains("Operation not permitted") { NftError::NotPermitted { stderr } } else { NftError::Refused { stderr } }
}

/// Name and packets of each counter in the output of `nft list counters`.
fn counters(text: &str) -> Vec<(String, u64)> {
    let mut counters = Vec::new();
    let mut name = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["counter", counter, "{"] = words[..] {
            name = Some(counter);
        } else if let ["packets", packets, "bytes", _] = words[..]
            && let Ok(packets) = packets.parse()
            && let Some(name) = name.take()
        {
            counters.push((name.to_owned(), packets));
        }
    }
    counters
}

/// A script of ours takes milliseconds; ten seconds mean that nft hangs (a lock, a dead disk), and a reload with it.
const TIME_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_counters_that_nft_lists() {
        let text = "\
table inet skyway_aws_use1_a {
	counter dropped_sky-0.1_forward {
		packets 12 bytes 1008
	}
	counter dropped_sky-0.1_input {
		packets 0 bytes 0
	}
}
";
        let expected: [(String, u64); 2] = [("dropped_sky-0.1_forward".to_owned(), 12), ("dropped_sky-0.1_input".to_owned(), 0)];
        assert_eq!(counters(text), expected);
        assert!(counters("").is_empty());
    }

    #[test]
    fn says_what_to_install() {
        let outcome = blocking(run("no-such-nft", &[], "", TIME_LIMIT));
        assert!(matches!(outcome, Err(NftError::NotInstalled)));
    }

    #[test]
    fn passes_the_script_on_stdin() {
        let script = "x".repeat(200_000); // more than a pipe holds
        let outcome = blocking(run("cat", &[], &script, TIME_LIMIT));
        assert_eq!(outcome.expect("cat succeeds"), script);
    }

    #[test]
    fn a_refusal_carries_what_nft_said() {
        let say = |words: &str| {
            let command = format!("echo '{words}' >&2; exit 1");
            blocking(run("sh", &["-c", &command], "", TIME_LIMIT)).expect_err("exit 1")
        };
        assert_eq!(say("syntax error").to_string(), "nft refused: syntax error");
        let error = say("Operation not permitted (you must be root)");
        assert!(matches!(error, NftError::NotPermitted { .. }));
    }

    #[test]
    fn does_not_wait_for_ever() {
        let limit = Duration::from_millis(10);
        let outcome = blocking(run("sleep", &["600"], "", limit));
        assert!(matches!(outcome, Err(NftError::TimedOut(after)) if after == limit));
    }

    fn blocking<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
    }
}
