//! What a run was: on what machine, with what versions and options. Without that no figure says anything.

use std::fmt;

use serde_json::{Value, json};

use super::options::Options;
use super::subject::{Programs, Subject};
use crate::bench::machine::Machine;
use crate::bench::subject::Tools;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    pub processor: String,
    pub kernel: String,
    /// Of skyway's sources; `-dirty` if they have been changed since.
    pub commit: String,
    /// As the programs say themselves.
    pub versions: Vec<String>,
    /// Subjects that are left out, and why.
    pub missing: Vec<(Subject, String)>,
    pub rounds: usize,
    pub seconds: u64,
    pub logs: bool,
    pub steered: bool,
    /// How many a process could open.
    pub open_files: usize,
}

impl About {
    pub fn look(programs: &Programs, options: &Options, open_files: usize) -> Self {
        // Of the tunnel bench's programs none is looked for.
        let Machine { processor, kernel, commit, .. } = Machine::look(&Tools::default());
        Self {
            processor,
            kernel,
            commit,
            versions: programs.versions.clone(),
            missing: programs.missing.clone(),
            rounds: options.rounds,
            seconds: options.seconds,
            logs: options.logs,
            steered: options.steered,
            open_files,
        }
    }

    pub fn to_json(&self) -> Value {
        let missing = self.missing.iter().map(|(subject, why)| json!({ "subject": subject.name(), "why": why }));
        json!({
            "processor": self.processor,
            "kernel": self.kernel,
            "commit": self.commit,
            "versions": self.versions,
            "left_out": missing.collect::<Vec<Value>>(),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "access_logs": self.logs,
            "steered": self.steered,
            "open_files": self.open_files,
        })
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, kernel, commit, versions, logs, steered, .. } = self;
        let logs = if *logs { "access logs on" } else { "access logs off" };
        let steered = if *steered { "packets steered to each side's processor" } else { "packets left to the sender's processor" };
        write!(f, "{processor}, 2 cores used, Linux {kernel}; {}; commit {commit}; {logs}, {steered}", versions.join("; "))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench_relay) fn about() -> About {
        About {
            processor: "Processor <A> & B".to_owned(),
            kernel: "6.1".to_owned(),
            commit: "abc".to_owned(),
            versions: vec!["skyway 0.1.0".to_owned()],
            missing: vec![(Subject::Squid, "not installed".to_owned())],
            rounds: 3,
            seconds: 4,
            logs: false,
            steered: true,
            open_files: 20_000,
        }
    }

    #[test]
    fn a_run_says_under_what_conditions() {
        assert_eq!(
            about().to_string(),
            "Processor <A> & B, 2 cores used, Linux 6.1; skyway 0.1.0; commit abc; access logs off, packets steered to each side's processor"
        );
    }
}
