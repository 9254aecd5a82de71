//! One gateway under test: its folder with YAML and secrets, its running program, and what it says of itself.

use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use serde_json::Value;
use tempfile::TempDir;
use tunnel::DropReason;

use crate::access::AccessLine;
use crate::netns::Namespace;
use crate::process::{Finished, Process, Signal, finish};
use crate::report::is_root;
use crate::{seconds, wait_for, wait_for_some};

/// A gateway, running or not. Dropping it kills the program and removes its folder.
#[derive(Debug)]
pub struct Gateway {
    name: String,
    process: Option<Process>,
    namespace: Option<String>,
    user: User,
    binary: PathBuf,
    folder: TempDir,
}

/// Whom the program runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The one who runs the tests.
    Own,
    /// Without any privilege. If the tests have none themselves, that is the same.
    Nobody,
}

/// Stands in the YAML for the gateway's folder.
pub const FOLDER: &str = "FOLDER";
/// `nobody` of Debian.
const NOBODY: u32 = 65_534;
/// To be ready after a start, to be gone after a stop: both are a matter of a second; the rest is a slow machine.
const READY: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(20);

impl Gateway {
    pub fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the gateway");
        Self { name: name.to_owned(), process: None, namespace: None, user: User::Own, binary: binary(), folder }
    }

    pub fn inside(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.name().to_owned());
        self
    }

    #[track_caller]
    pub fn run_as(mut self, user: User) -> Self {
        self.user = user;
        if self.drops_privileges() {
            self.hand_over(self.folder.path());
            self.binary = executable_by_nobody(&self.binary, self.folder.path());
        }
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The YAML file.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("skyway.yaml")
    }

    /// Writes the YAML; the word FOLDER in it becomes the gateway's folder, to which secrets are relative.
    pub fn write(&self, yaml: &str) {
        let folder = self.folder.path().to_str().expect("a plain path");
        fs::write(self.config(), yaml.replace(FOLDER, folder)).expect("the YAML written");
        self.hand_over(&self.config());
    }

    /// Writes a secret to `file` in the folder, readable by its owner alone.
    pub fn write_secret(&self, file: &str, text: &str) {
        self.write_file(file, text, 0o600);
    }

    pub fn write_file(&self, file: &str, text: &str, mode: u32) {
        let path = self.folder.path().join(file);
        fs::write(&path, text).expect("the file written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode set");
        self.hand_over(&path);
    }

    /// `skyway SUBCOMMAND -c FILE …`, wherever the gateway runs and as whom it runs.
    pub fn command(&self, words: &[&str]) -> Command {
        let (subcommand, rest) = words.split_first().expect("a subcommand");
        let mut command = self.bare_command(&[*subcommand, "-c"]);
        command.arg(self.config()).args(rest);
        command
    }

    /// As [`Self::command`], for what needs no file.
    pub fn bare_command(&self, words: &[&str]) -> Command {
        let mut line: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            line.extend(["ip", "netns", "exec", namespace.as_str()].map(OsString::from));
        }
        if self.drops_privileges() {
            line.extend(AS_NOBODY.map(OsString::from));
        }
        line.push(self.binary.clone().into());
        line.extend(words.iter().map(OsString::from));
        let (program, arguments) = line.split_first().expect("at least the binary");
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.folder.path()).env_remove("RUST_LOG");
        command
    }

    /// Runs a subcommand to its end.
    #[track_caller]
    pub fn ask(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words), ANSWER)
    }

    /// Starts it and waits until everything is applied.
    #[track_caller]
    pub fn start(&mut self) {
        // With the space, because "already" would do otherwise.
        self.launch().wait_for_line(" ready", READY);
    }

    /// Starts it and does not wait.
    #[track_caller]
    pub fn launch(&mut self) -> &mut Process {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let process = Process::start(&self.name, &mut self.command(&["run"]));
        self.process.insert(process)
    }

    /// The running program.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        let name = &self.name;
        self.process.as_mut().unwrap_or_else(|| panic!("{name} does not run"))
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// SIGTERM, and the end that follows.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.process().signal(Signal::Terminate);
        let status = self.process().wait(READY);
        self.put_away();
        status
    }

    /// SIGKILL: what a crash leaves is left.
    #[track_caller]
    pub fn kill(&mut self) {
        self.process().kill();
        self.put_away();
    }

    #[track_caller]
    fn put_away(&mut self) {
        self.assert_no_panic();
        self.process = None;
    }

    /// What the running program has logged so far; nothing if none runs.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }

    #[track_caller]
    pub fn reload(&self) -> Finished {
        self.ask(&["reload"])
    }

    /// What `status --json` says.
    #[track_caller]
    pub fn status(&self) -> Value {
        let finished = self.ask(&["status", "--json"]);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("status is no JSON: {error}\n{finished}"))
    }

    pub fn verdict(&self) -> String {
        self.status()["verdict"].as_str().unwrap_or("no verdict").to_owned()
    }

    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().expect("status tells the generation")
    }

    /// What status says of the peer `name`.
    #[track_caller]
    pub fn peer(&self, name: &str) -> Value {
        let status = self.status();
        let tunnels = status["tunnels"].as_array().into_iter().flatten();
        let mut peers = tunnels.flat_map(|tunnel| tunnel["peers"].as_array().into_iter().flatten());
        peers.find(|peer| peer["name"] == name).cloned().unwrap_or_else(|| panic!("no peer {name} in {status:#}"))
    }

    /// How many packets and datagrams its only tunnel dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        // Reasons at zero are left out.
        self.status()["tunnels"][0]["drops"][reason.label()].as_u64().unwrap_or(0)
    }

    /// All that its only tunnel dropped.
    pub fn all_drops(&self) -> u64 {
        let status = self.status();
        status["tunnels"][0]["drops"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
    }

    /// Waits until every peer has a session and answers.
    #[track_caller]
    pub fn wait_until_up(&self, within: Duration) {
        wait_for(&format!("every peer of {} is up", self.name), within, || {
            let status = self.status();
            let tunnels = status["tunnels"].as_array().into_iter().flatten();
            let peers: Vec<&Value> = tunnels.flat_map(|tunnel| tunnel["peers"].as_array().into_iter().flatten()).collect();
            !peers.is_empty() && peers.iter().all(|peer| peer["state"] == "up")
        });
    }

    /// Does `act`, during which one session ends, and returns the access line with what `act` returned.
    #[track_caller]
    pub fn session<T>(&self, act: impl FnOnce() -> T) -> (T, AccessLine) {
        let before = AccessLine::all(&self.log()).len();
        let result = act();
        let line = wait_for_some("an access line", seconds(10), || AccessLine::all(&self.log()).get(before).cloned());
        (result, line)
    }

    pub fn access_lines(&self) -> Vec<AccessLine> {
        AccessLine::all(&self.log())
    }

    #[track_caller]
    fn assert_no_panic(&self) {
        let log = self.log();
        assert!(!log.contains("panicked"), "{} panicked:\n{log}", self.name);
    }

    fn drops_privileges(&self) -> bool {
        self.user == User::Nobody && is_root()
    }

    fn hand_over(&self, path: &Path) {
        if self.drops_privileges() {
            chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.assert_no_panic();
        }
    }
}

/// The binary under test: SKYWAY_BIN, else the one that cargo built beside these tests.
#[track_caller]
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("SKYWAY_BIN") {
        return fs::canonicalize(&path).unwrap_or_else(|error| panic!("SKYWAY_BIN={}: {error}", path.display()));
    }
    let tests = env::current_exe().expect("the path of these tests");
    let beside = tests.parent().and_then(Path::parent).map(|folder| folder.join("skyway"));
    let beside = beside.expect("cargo puts tests into target/PROFILE/deps");
    assert!(beside.is_file(), "{} is not there: run `cargo build -p gateway` first, or set SKYWAY_BIN", beside.display());
    beside
}

/// `words` as a user without privileges; as oneself if the tests are not root's.
pub fn unprivileged(binary: &Path, words: &[&str]) -> Command {
    let mut line: Vec<OsString> = Vec::new();
    if is_root() {
        line.extend(AS_NOBODY.map(OsString::from));
    }
    line.push(binary.into());
    line.extend(words.iter().map(OsString::from));
    let (program, arguments) = line.split_first().expect("at least the binary");
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// `binary` if nobody may execute it where it is (not below /root, say), else a copy in `folder`.
#[track_caller]
pub fn executable_by_nobody(binary: &Path, folder: &Path) -> PathBuf {
    let mut may = unprivileged(Path::new("test"), &["-x"]);
    let may = may.arg(binary).stdin(Stdio::null()).status().is_ok_and(|status| status.success());
    if may {
        return binary.to_owned();
    }
    let copy = folder.join("skyway");
    fs::copy(binary, &copy).expect("a copy of the binary");
    copy
}

/// Gives `folder` to the user that [`unprivileged`] runs as.
pub fn give_to_nobody(folder: &Path) {
    if is_root() {
        chown(folder, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
    }
}

const AS_NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
