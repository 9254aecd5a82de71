//! `skyway demo`: the whole thing on one machine, by a user who may do nothing.

use std::fs;
use std::path::Path;

use tests::process::{Process, Signal, finish};
use tests::report::{Need, machine_has};
use tests::skyway::{binary, executable_by_nobody, give_to_nobody, unprivileged};
use tests::{seconds, wait_for};

/// In the environment of the demo and so of all its children, by which they are found again.
const MARK: &str = "SKYWAY_TEST_DEMO";

/// How many processes have `MARK=value` in their environment.
fn running(value: &str) -> usize {
    let wanted = format!("{MARK}={value}");
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    // A process may end while it is looked at, and those of others may not be.
    let environments = processes.filter_map(|entry| fs::read(entry.path().join("environ")).ok());
    environments.filter(|environment| environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())).count()
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

#[test]
fn once_relays_every_session_and_leaves_nothing() {
    let (tools, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for folder in [tools.path(), folder.path()] {
        give_to_nobody(folder);
    }
    let binary = executable_by_nobody(&binary(), tools.path());
    let value = folder.path().display().to_string();
    let mut demo = unprivileged(&binary, &["demo", "--once"]);
    let demo = demo.current_dir(tools.path()).env("TMPDIR", folder.path()).env(MARK, &value).env_remove("XDG_RUNTIME_DIR");
    let said = finish(demo, seconds(60)).success();

    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let (sessions, rest) = last.split_once(" sensor sessions relayed, ").unwrap_or_else(|| panic!("the last line is {last:?}"));
    let (bytes, outside) = rest.split_once(" bytes, ").unwrap_or_else(|| panic!("the last line is {last:?}"));
    let (relayed, of) = sessions.split_once(" of ").unwrap_or_else(|| panic!("the last line is {last:?}"));
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{text:?} is no number in {last:?}"));
    assert!(number(relayed) >= 2 && relayed == of, "{last:?}");
    assert!(number(bytes) > 100_000, "{last:?}");
    assert_eq!(outside, "0 outside the tunnel");

    wait_for("the gateways of the demo are gone", seconds(5), || running(&value) == 0);
    assert!(is_empty(folder.path()), "it leaves no file");
}

#[test]
fn the_line_to_paste_sends_a_curl_through_it() {
    if !machine_has(&[Need::Tool("curl")]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // Not as another user: the pasted line reads the demo's own certificate.
    let mut demo = std::process::Command::new(binary());
    let value = folder.path().display().to_string();
    let mut demo = Process::start("demo", demo.arg("demo").env("TMPDIR", folder.path()).env(MARK, &value));
    wait_for("the line to paste", seconds(30), || {
        assert!(demo.is_running(), "the demo ended by itself");
        demo.stdout().lines().any(|line| line.trim_start().starts_with("curl "))
    });
    let said = demo.stdout();
    let line = said.lines().map(str::trim).find(|line| line.starts_with("curl ")).expect("found above");
    let body = finish(std::process::Command::new("sh").args(["-c", &format!("{line} --max-time 20 -sS")]), seconds(30)).success();
    assert!(!body.is_empty(), "the server answered");

    // Ctrl-C.
    demo.signal(Signal::Interrupt);
    assert_eq!(demo.wait(seconds(15)).code(), Some(0));
    wait_for("the gateways of the demo are gone", seconds(10), || running(&value) == 0);
    assert!(is_empty(folder.path()), "it leaves no file");
}
