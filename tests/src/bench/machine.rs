//! On what machine, and with what versions: without that no figure says anything.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::{fs, thread};

use serde_json::{Value, json};

use super::subject::{Subject, Tool, Tools, first_line};
use crate::skyway::binary;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    /// Of skyway's sources; `-dirty` if they have been changed since.
    pub commit: String,
    /// As the programs say themselves.
    pub versions: Vec<String>,
    /// Subjects that are left out, and why.
    pub missing: Vec<(Subject, String)>,
}

impl Machine {
    pub fn look(tools: &Tools) -> Self {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let others = [&tools.wireguard_go, &tools.boringtun, &tools.gotatun];
        let mut versions = vec![or_unknown(first_line(&binary(), "--version"))];
        versions.extend(others.into_iter().flatten().map(|Tool { version, .. }| version.clone()));
        versions.push(or_unknown(first_line(Path::new("iperf3"), "--version")));
        Self {
            processor: model.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            versions,
            missing: tools.missing.clone(),
        }
    }

    pub fn to_json(&self) -> Value {
        let missing = self.missing.iter().map(|(subject, why)| json!({ "subject": subject.name(), "why": why }));
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "kernel": self.kernel,
            "commit": self.commit,
            "versions": self.versions,
            "left_out": missing.collect::<Vec<Value>>(),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, kernel, commit, versions, missing: _ } = self;
        write!(f, "{processor}, {cores} cores, Linux {kernel}; {}; commit {commit}", versions.join("; "))
    }
}

fn or_unknown(version: Result<String, String>) -> String {
    version.unwrap_or_else(|why| format!("unknown version ({why})"))
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let commit = text.trim();
    (!commit.is_empty()).then(|| commit.to_owned())
}
