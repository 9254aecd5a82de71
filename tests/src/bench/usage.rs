//! What a measurement cost: CPU time and memory of the gateways, and what else the machine was doing meanwhile.
//!
//! All from /proc (man 5 proc). The share of others is rough: a process's time is exact and the machine's is sampled, and
//! what the kernel does on nobody's account is left out. It is there to tell a quiet run from one beside a compiler.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{self, Command};

use crate::netns::Namespace;
use crate::process::finish;
use crate::seconds;

/// CPU time in seconds, of a process with its threads, and of its children that have been waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuTime {
    pub user: f64,
    pub system: f64,
    pub children_user: f64,
}

/// The machine's CPU time in seconds, summed over its processors.
#[derive(Debug, Clone, Copy, PartialEq)]
struct MachineTime {
    user: f64,
    /// Taken by the hypervisor for others.
    steal: f64,
    all: f64,
}

/// The machine while something is measured.
#[derive(Debug)]
pub struct Watch {
    pids: Vec<u32>,
    machine: MachineTime,
    own_user: f64,
}

/// A share of others above which a measurement counts as disturbed.
pub const DISTURBED: f64 = 0.05;

/// Seconds of CPU time below which the clock's ticks of 10 ms say nothing: reading the memory takes no time at all.
const TOO_SHORT: f64 = 0.5;

/// USER_HZ: 100 on every architecture that skyway runs on. Kernel ABI, not a setting.
const TICKS_PER_SECOND: f64 = 100.0;

impl Watch {
    /// `pids`: processes that belong to the measurement. This one, and its children that have ended when asked, do too.
    pub fn start(pids: [u32; 2]) -> Self {
        let pids = pids.to_vec();
        let own_user = own_user(&pids);
        Self { pids, machine: machine_time(), own_user }
    }

    /// The share of the machine, 0 to 1, that others had since the start: their programs, and other virtual machines.
    pub fn disturbance(&self) -> f64 {
        let now = machine_time();
        let all = now.all - self.machine.all;
        if all < TOO_SHORT {
            return 0.0;
        }
        let user = (now.user - self.machine.user) - (own_user(&self.pids) - self.own_user);
        let steal = now.steal - self.machine.steal;
        ((user.max(0.0) + steal.max(0.0)) / all).clamp(0.0, 1.0)
    }
}

/// None: no such process.
pub fn cpu_time(pid: u32) -> Option<CpuTime> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The most memory that the process had resident so far, in bytes.
pub fn peak_rss_bytes(pid: u32) -> Option<u64> {
    parse_peak_rss(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// The process that runs `program` in a namespace.
#[track_caller]
pub fn process_in(namespace: &Namespace, program: &Path) -> u32 {
    let listed = finish(Command::new("ip").args(["netns", "pids", namespace.name()]), seconds(20)).success();
    let pids = listed.split_whitespace().filter_map(|word| word.parse::<u32>().ok());
    // By the file and not by its path, which looks different from other mount namespaces.
    let file = fs::metadata(program).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut runs_it =
        pids.filter(|pid| fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.dev() == file.dev() && exe.ino() == file.ino()));
    runs_it.next().unwrap_or_else(|| panic!("{} does not run in {}", program.display(), namespace.name()))
}

fn own_user(pids: &[u32]) -> f64 {
    let this = cpu_time(process::id()).map_or(0.0, |time| time.user + time.children_user);
    this + pids.iter().filter_map(|pid| cpu_time(*pid)).map(|time| time.user).sum::<f64>()
}

fn machine_time() -> MachineTime {
    let text = fs::read_to_string("/proc/stat").expect("/proc is mounted");
    parse_machine(&text).expect("the kernel's own format")
}

/// `pid (name) state …`: the name may hold anything, so what follows its last parenthesis is read.
fn parse_stat(text: &str) -> Option<CpuTime> {
    let (_, rest) = text.rsplit_once(')')?;
    // From the third field on; the manual counts from one.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let seconds = |number: usize| Some(fields.get(number - 3)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(CpuTime { user: seconds(14)?, system: seconds(15)?, children_user: seconds(16)? })
}

/// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`; both guest times are part of user and nice.
fn parse_machine(text: &str) -> Option<MachineTime> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let times: Vec<u64> = line.split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
    let &[user, nice, _, _, _, _, _, steal] = times.as_slice() else { return None };
    let seconds = |ticks: u64| ticks as f64 / TICKS_PER_SECOND;
    Some(MachineTime { user: seconds(user + nice), steal: seconds(steal), all: seconds(times.iter().sum()) })
}

fn parse_peak_rss(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cpu_time_past_a_name_with_spaces_and_parentheses() {
        let text = "77 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 150 50 25 12 20 0 1 0 99 0 0\n";
        assert_eq!(parse_stat(text), Some(CpuTime { user: 1.5, system: 0.5, children_user: 0.25 }));
        assert_eq!(parse_stat("77 (a) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
        assert!(cpu_time(process::id()).is_some());
    }

    #[test]
    fn reads_the_machines_time() {
        let text = "cpu  100 50 200 1000 10 5 15 20 7 3\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(parse_machine(text), Some(MachineTime { user: 1.5, steal: 0.2, all: 14.0 }));
        assert_eq!(parse_machine("cpu  100 50\n"), None);
    }

    #[test]
    fn reads_the_peak_of_memory() {
        assert_eq!(parse_peak_rss("VmPeak:\t  9000 kB\nVmHWM:\t    3072 kB\nVmRSS:\t 12 kB\n"), Some(3 * 1024 * 1024));
        assert_eq!(parse_peak_rss("Name:\tkthreadd\n"), None);
    }
}
