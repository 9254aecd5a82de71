//! A child process: its output in files, its end within a deadline. It does not outlive the test that started it.
//!
//! Output goes to files and not through pipes, so that nothing needs to be read for the child to go on, and all of it
//! is there to be shown when a test fails.

use std::fs::{self, File};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::{wait_for, wait_for_some};

/// A child that runs, or has run.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: TempDir,
}

/// What a child that has ended left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    pub name: String,
    /// None: a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Terminate,
    Interrupt,
    Kill,
    HangUp,
}

/// Runs `command` to its end, which must come within `within`.
#[track_caller]
pub fn finish(command: &mut Command, within: Duration) -> Finished {
    Process::start(&format!("{command:?}"), command).finish(within)
}

/// As [`finish`], with `input` on stdin.
#[track_caller]
pub fn finish_with_input(command: &mut Command, input: &[u8], within: Duration) -> Finished {
    let folder = tempfile::tempdir().expect("a folder for the input");
    let path = folder.path().join("stdin");
    fs::write(&path, input).expect("the input written");
    let stdin = File::open(path).expect("the input opened");
    Process::spawn(&format!("{command:?}"), command, stdin.into()).finish(within)
}

impl Process {
    /// Starts `command`, with nothing on stdin. `name` is what it is called when something goes wrong.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command) -> Self {
        Self::spawn(name, command, Stdio::null())
    }

    #[track_caller]
    fn spawn(name: &str, command: &mut Command, stdin: Stdio) -> Self {
        let output = tempfile::tempdir().expect("a folder for the output");
        let stdout = File::create(output.path().join(STDOUT)).expect("a file for the output");
        let stderr = File::create(output.path().join(STDERR)).expect("a file for the output");
        match command.stdin(stdin).stdout(stdout).stderr(stderr).spawn() {
            Ok(child) => Self { name: name.to_owned(), child, output },
            Err(error) => panic!("{name} does not start: {error}"),
        }
    }

    /// All that it has written so far.
    pub fn stdout(&self) -> String {
        self.read(STDOUT)
    }

    pub fn stderr(&self) -> String {
        self.read(STDERR)
    }

    fn read(&self, stream: &str) -> String {
        let bytes = fs::read(self.output.path().join(stream)).expect("the output of a child");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a line of its stderr holds `pattern`, and returns the line. Panics if it ends before that.
    #[track_caller]
    pub fn wait_for_line(&mut self, pattern: &str, within: Duration) -> String {
        let what = format!("{} says {pattern:?}", self.name);
        wait_for_some(&what, within, || {
            // Asked before the log is read, so that its last words count.
            let running = self.is_running();
            let found = self.stderr().lines().find(|line| line.contains(pattern)).map(str::to_owned);
            assert!(running || found.is_some(), "{} ended and never said {pattern:?}", self.name);
            found
        })
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Sends `signal`. It must still run.
    #[track_caller]
    #[expect(unsafe_code, reason = "kill(2) has no safe wrapper in the standard library")]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.is_running(), "{} has ended already", self.name);
        let pid = libc::pid_t::try_from(self.child.id()).expect("the kernel's pids fit");
        // SAFETY: kill takes no pointer. The child is not waited for yet (checked above, and only `self` can), so the
        // pid is still its own.
        let result = unsafe { libc::kill(pid, signal.number()) };
        assert_eq!(result, 0, "{} could not be signalled", self.name);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        wait_for(&format!("{} ends", self.name), within, || !self.is_running());
        self.child.wait().expect("a child can be waited for")
    }

    #[track_caller]
    pub fn finish(mut self, within: Duration) -> Finished {
        let status = self.wait(within);
        Finished { name: self.name.clone(), code: status.code(), stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Ends it at once, as a crash would.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::Kill);
        self.wait(Duration::from_secs(10));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ended_meanwhile = self.child.kill();
            let _status = self.child.wait();
        }
        if thread::panicking() {
            tell(&self.name, &self.stdout(), &self.stderr());
        }
    }
}

/// Goes to where the test harness shows the output of tests that fail.
#[expect(clippy::print_stderr, reason = "only what a macro prints is shown together with the failure")]
fn tell(name: &str, stdout: &str, stderr: &str) {
    eprintln!("---- {name}: stdout\n{stdout}---- {name}: stderr\n{stderr}----");
}

impl Finished {
    /// Its stdout; it must have succeeded.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }

    /// Its stderr; it must have ended with `code`, without a panic.
    #[track_caller]
    pub fn failure(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self}");
        assert!(!self.stderr.contains("panicked"), "{self}");
        self.stderr
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ended with {:?}\n-- stdout\n{}-- stderr\n{}", self.name, self.code, self.stdout, self.stderr)
    }
}

impl Signal {
    const fn number(self) -> libc::c_int {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Interrupt => libc::SIGINT,
            Self::Kill => libc::SIGKILL,
            Self::HangUp => libc::SIGHUP,
        }
    }
}

const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
