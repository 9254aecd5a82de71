//! Who is measured: relays of one kind each, on one processor, started anew for every case.

use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use super::case::Case;
use super::generator::session::Via;
use super::line::{CONNECT, Line, RELAY_CORE, SNI};
use super::options::Options;
use super::peers::{self, NGINX_STREAM_MODULE, Setup};
use super::usage::processes_in;
use crate::bench::load::until;
use crate::inside::inside;
use crate::process::{Process, Signal, finish};
use crate::skyway::{FOLDER, binary};
use crate::{seconds, wait_for};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// No relay: sensors reach the hosts through the same links.
    Direct,
    Skyway,
    Haproxy,
    HaproxySplice,
    Nginx,
    Squid,
}

/// The programs that are measured beside skyway, as far as this machine has them.
#[derive(Debug, Default)]
pub struct Programs {
    pub haproxy: Option<PathBuf>,
    pub nginx: Option<PathBuf>,
    pub squid: Option<PathBuf>,
    /// As the programs say themselves, skyway's first.
    pub versions: Vec<String>,
    /// Subjects that are left out, and why.
    pub missing: Vec<(Subject, String)>,
}

/// A relay that runs and takes connections. Dropping it kills it.
pub struct Running<'a> {
    subject: Subject,
    program: PathBuf,
    line: &'a Line,
    setup: Setup,
    open_files: usize,
    /// The newest last; older ones may still hold sessions.
    processes: Vec<Process>,
    folder: TempDir,
}

/// For a process to take connections. Squid is the slowest.
const STARTED: Duration = Duration::from_secs(20);

impl Subject {
    pub const ALL: [Self; 6] = [Self::Direct, Self::Skyway, Self::Haproxy, Self::HaproxySplice, Self::Nginx, Self::Squid];

    /// As the command line and the table have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "none",
            Self::Skyway => "skyway",
            Self::Haproxy => "haproxy",
            Self::HaproxySplice => "haproxy-splice",
            Self::Nginx => "nginx",
            Self::Squid => "squid",
        }
    }

    pub const fn about(self) -> &'static str {
        match self {
            Self::Direct => "no relay: the same links, forwarded by the kernel; what the generator itself can do",
            Self::Skyway => "skyway: `sni` and `connect` listeners, `via: direct`",
            Self::Haproxy => "HAProxy (2.6 in Debian 12), mode tcp, req.ssl_sni",
            Self::HaproxySplice => "the same with option splice-auto",
            Self::Nginx => "nginx (1.22 in Debian 12), stream with ssl_preread",
            Self::Squid => "Squid (5.7 in Debian 12), CONNECT alone",
        }
    }

    /// How sensors reach it where the case does not say so.
    pub const fn via(self) -> Via {
        match self {
            Self::Direct => Via::Direct,
            Self::Skyway | Self::Haproxy | Self::HaproxySplice | Self::Nginx => Via::Sni,
            Self::Squid => Via::Connect,
        }
    }

    const fn config_name(self) -> &'static str {
        match self {
            Self::Direct => "nothing",
            Self::Skyway => "skyway.yaml",
            Self::Haproxy | Self::HaproxySplice => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
            Self::Squid => "squid.conf",
        }
    }

    pub fn takes_part(self, case: Case) -> bool {
        match self {
            Self::Skyway => true,
            Self::Direct => !matches!(case, Case::ConnectRate | Case::Reload | Case::Drain),
            Self::Haproxy => case != Case::ConnectRate,
            // Splicing changes nothing for sessions that carry little.
            Self::HaproxySplice => matches!(case, Case::SniRate | Case::Latency | Case::BulkUp | Case::BulkDown),
            Self::Nginx => !matches!(case, Case::ConnectRate | Case::Reload | Case::Drain),
            Self::Squid => !matches!(case, Case::SniRate | Case::Reload | Case::Drain),
        }
    }
}

impl Programs {
    /// Looks for the programs of the wanted subjects.
    pub fn find(options: &Options) -> Self {
        let mut programs = Self { versions: vec![version(&binary(), "--version").unwrap_or_else(|why| why)], ..Self::default() };
        let haproxies = wanted(options, &[Subject::Haproxy, Subject::HaproxySplice]);
        programs.haproxy = programs.look(&haproxies, "haproxy", Ok(()));
        let stream = Path::new(NGINX_STREAM_MODULE).is_file().then_some(());
        let stream = stream.ok_or_else(|| format!("{NGINX_STREAM_MODULE} is not there (package libnginx-mod-stream)"));
        programs.nginx = programs.look(&wanted(options, &[Subject::Nginx]), "nginx", stream);
        programs.squid = programs.look(&wanted(options, &[Subject::Squid]), "squid", Ok(()));
        programs
    }

    /// `also`: what else it takes. None: nobody wants it, or something is not here, which is put down.
    fn look(&mut self, subjects: &[Subject], name: &str, also: Result<(), String>) -> Option<PathBuf> {
        if subjects.is_empty() {
            return None;
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
        let found = found.ok_or_else(|| format!("{name} is not installed"));
        let checked = also.and(found).and_then(|program| Ok((version(&program, "-v")?, program)));
        match checked {
            Ok((version, program)) => {
                self.versions.push(version);
                Some(program)
            }
            Err(why) => {
                self.missing.extend(subjects.iter().map(|subject| (*subject, why.clone())));
                None
            }
        }
    }

    pub const fn has(&self, subject: Subject) -> bool {
        match subject {
            Subject::Direct | Subject::Skyway => true,
            Subject::Haproxy | Subject::HaproxySplice => self.haproxy.is_some(),
            Subject::Nginx => self.nginx.is_some(),
            Subject::Squid => self.squid.is_some(),
        }
    }

    fn program(&self, subject: Subject) -> Result<PathBuf> {
        let found = match subject {
            Subject::Direct | Subject::Skyway => Some(binary()),
            Subject::Haproxy | Subject::HaproxySplice => self.haproxy.clone(),
            Subject::Nginx => self.nginx.clone(),
            Subject::Squid => self.squid.clone(),
        };
        found.with_context(|| format!("{} is not installed", subject.name()))
    }
}

impl<'a> Running<'a> {
    /// Starts it and waits until it takes connections. `open_files`: how many it may open.
    #[track_caller]
    pub fn start(subject: Subject, programs: &Programs, line: &'a Line, setup: Setup, open_files: usize) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the relay")?;
        if subject == Subject::Squid {
            // It gives up root's privileges and writes there nevertheless.
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).context("its mode")?;
        }
        let program = programs.program(subject)?;
        let mut running = Self { subject, program, line, setup, open_files, processes: Vec::new(), folder };
        running.write()?;
        if subject != Subject::Direct {
            running.launch(&[])?;
        }
        Ok(running)
    }

    /// All its processes.
    #[track_caller]
    pub fn processes(&self) -> Vec<u32> {
        processes_in(&self.line.relay)
    }

    /// Gives it a file with a difference, and waits until it has been taken.
    #[track_caller]
    pub fn reload(&mut self) -> Result<()> {
        self.setup.changed = !self.setup.changed;
        self.write()?;
        match self.subject {
            Subject::Skyway => {
                finish(Command::new(&self.program).args(["reload", "-c"]).arg(self.config()), seconds(20)).success();
            }
            Subject::Haproxy | Subject::HaproxySplice => {
                let socket = self.folder.path().join("haproxy.sock");
                let old: Vec<String> = self.processes().iter().map(u32::to_string).collect();
                let inode = || fs::metadata(&socket).map(|metadata| metadata.ino()).ok();
                let before = inode();
                let mut words = vec!["-x", text(&socket)?, "-sf"];
                words.extend(old.iter().map(String::as_str));
                self.launch(&words)?;
                // Its own socket stands in the old one's place once it has taken over the listeners.
                ensure!(until(STARTED, || inode() != before), "the new haproxy does not take over");
            }
            Subject::Direct | Subject::Nginx | Subject::Squid => bail!("{} is not reloaded here", self.subject.name()),
        }
        Ok(())
    }

    /// Asks for an orderly end: no new sessions, and some time for those that stand.
    #[track_caller]
    pub fn stop(&mut self) -> Result<()> {
        match self.subject {
            Subject::Haproxy | Subject::HaproxySplice => {
                for process in self.processes() {
                    finish(Command::new("kill").args(["-USR1", &process.to_string()]), seconds(10)).success();
                }
            }
            Subject::Skyway => self.processes.iter_mut().for_each(|process| process.signal(Signal::Terminate)),
            Subject::Direct | Subject::Nginx | Subject::Squid => bail!("{} is not drained here", self.subject.name()),
        }
        Ok(())
    }

    /// Whether all its processes have ended.
    pub fn has_ended(&mut self) -> bool {
        self.processes.iter_mut().all(|process| !process.is_running())
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join(self.subject.config_name())
    }

    /// Writes what it reads at its start and at a reload.
    fn write(&self) -> Result<()> {
        let folder = text(self.folder.path())?;
        for (file, content) in files(self.subject, self.setup, self.open_files) {
            let path = self.folder.path().join(file);
            fs::write(&path, content.replace(FOLDER, folder)).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Starts one more process of it, on the relay's processor. `more`: words for it.
    #[track_caller]
    fn launch(&mut self, more: &[&str]) -> Result<()> {
        let (core, config, folder) = (RELAY_CORE.to_string(), self.config(), self.folder.path());
        let (program, config, folder) = (text(&self.program)?, text(&config)?, text(folder)?);
        // Without access lines skyway says that it runs, and the others say nothing.
        let filter = if self.setup.logs { "info" } else { "skyway::access=off" };
        let words = match self.subject {
            Subject::Direct => return Ok(()),
            Subject::Skyway => vec!["run", "-c", config, "--log", filter],
            Subject::Haproxy | Subject::HaproxySplice => vec!["-db", "-f", config],
            Subject::Nginx => vec!["-p", folder, "-c", config],
            Subject::Squid => vec!["-N", "-f", config],
        };
        let words = [&["taskset", "-c", core.as_str(), program][..], &words[..], more].concat();
        let mut command = self.line.relay.command(&words);
        // skyway's filter is the one above.
        command.current_dir(folder).env_remove("SKYWAY_LOG").env_remove("SKYWAY_LOG_FORMAT").env_remove("RUST_LOG");
        let mut process = Process::start(self.subject.name(), &mut command);
        let place = if self.subject.via() == Via::Connect { CONNECT } else { SNI };
        wait_for(&format!("{} takes connections", self.subject.name()), STARTED, || {
            assert!(process.is_running(), "{} ended at its start: {}", self.subject.name(), process.stderr().trim());
            inside(&self.line.load, || TcpStream::connect_timeout(&place.into(), seconds(1)).is_ok())
        });
        self.processes.push(process);
        Ok(())
    }
}

/// What a subject reads: names and contents.
pub fn files(subject: Subject, setup: Setup, open_files: usize) -> Vec<(&'static str, String)> {
    let config = match subject {
        Subject::Direct => return vec![],
        Subject::Skyway => peers::skyway(setup),
        Subject::Haproxy => peers::haproxy(setup, false),
        Subject::HaproxySplice => peers::haproxy(setup, true),
        Subject::Nginx => peers::nginx(setup),
        Subject::Squid => peers::squid(setup, open_files),
    };
    let mut files = vec![(subject.config_name(), config)];
    if matches!(subject, Subject::Haproxy | Subject::HaproxySplice) {
        files.extend([("names", peers::names()), ("hosts.map", peers::haproxy_map())]);
    }
    files
}

fn wanted(options: &Options, subjects: &[Subject]) -> Vec<Subject> {
    subjects.iter().copied().filter(|subject| options.subjects.contains(subject)).collect()
}

/// The first line that a program answers `word` with, on whichever stream.
fn version(program: &Path, word: &str) -> Result<String, String> {
    let output = Command::new(program).arg(word).output().map_err(|error| format!("{}: {error}", program.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let line = String::from_utf8_lossy(&said).lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    line.ok_or_else(|| format!("{} {word} says nothing", program.display()))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a plain path")
}

#[cfg(test)]
mod tests {
    use super::super::case::Crowd;
    use super::*;

    #[test]
    fn every_subject_has_a_name_of_its_own() {
        for (index, subject) in Subject::ALL.into_iter().enumerate() {
            assert_eq!(Subject::ALL.iter().position(|other| other.name() == subject.name()), Some(index), "{subject:?}");
        }
    }

    #[test]
    fn every_case_but_those_of_one_kind_has_somebody_to_be_held_against() {
        for case in Case::ALL {
            let others = Subject::ALL.into_iter().filter(|subject| *subject != Subject::Skyway && subject.takes_part(case)).count();
            assert!(others > 0 && Subject::Skyway.takes_part(case), "{case:?}");
        }
        assert!(!Subject::Squid.takes_part(Case::SniRate) && !Subject::HaproxySplice.takes_part(Case::Idle(Crowd::Thousand)));
    }
}
