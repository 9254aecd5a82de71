//! What a load cost: the two processors, the relay's processes, and memory on both sides of the system call.
//!
//! All from /proc (man 5 proc). Time of processes holds what the kernel did on their account, softirqs that interrupted them
//! included, as far as the kernel does not account these apart (CONFIG_IRQ_TIME_ACCOUNTING); the processor's busy time
//! holds everything.

use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result};

use super::line::{LOAD_CORE, RELAY_CORE};
use crate::bench::usage::cpu_time;
use crate::netns::Namespace;
use crate::process::finish;
use crate::seconds;

/// A measured time, from when it is opened.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    cores: [CoreTime; 2],
    cpu_seconds: f64,
    watched: Vec<u32>,
}

/// What a window's time cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    pub seconds: f64,
    /// How busy the load's processor was and how busy the relay's, 0 to 1.
    pub busy: [f64; 2],
    /// Of the watched processes, user and system.
    pub cpu_seconds: f64,
}

/// A processor's time since it was started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CoreTime {
    busy: u64,
    all: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Anonymous memory of processes: what they have for themselves alone and did not read from files.
    pub user: u64,
    /// The kernel's slabs, of the whole machine: sockets, descriptors, what epoll keeps of them.
    pub slabs: u64,
    /// What TCP has set aside for buffers on the whole machine. A reservation, and mostly not in use.
    pub reserved: u64,
}

const PAGE_BYTES: u64 = 4096;
/// Slabs that changed less than this in [`STILL`] are at rest.
const AT_REST: u64 = 128 * 1024;
const STILL: Duration = Duration::from_millis(250);
/// The kernel frees much of what it frees a little later.
const SETTLED_WITHIN: Duration = Duration::from_secs(8);

impl Window {
    /// `watched`: processes.
    pub fn open(watched: &[u32]) -> Result<Self> {
        Ok(Self { start: Instant::now(), cores: cores()?, cpu_seconds: cpu_seconds(watched), watched: watched.to_vec() })
    }

    pub fn close(&self) -> Result<Spent> {
        let now = cores()?;
        let share = |before: CoreTime, after: CoreTime| {
            let all = after.all.saturating_sub(before.all).max(1);
            after.busy.saturating_sub(before.busy) as f64 / all as f64
        };
        let ([load_before, relay_before], [load_after, relay_after]) = (self.cores, now);
        Ok(Spent {
            seconds: self.start.elapsed().as_secs_f64(),
            busy: [share(load_before, load_after), share(relay_before, relay_after)],
            cpu_seconds: cpu_seconds(&self.watched) - self.cpu_seconds,
        })
    }
}

impl Memory {
    /// `processes`: whose user memory.
    pub fn read(processes: &[u32]) -> Result<Self> {
        let mut user = 0;
        for process in processes {
            let path = format!("/proc/{process}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            user += kib_after(&text, "Pss_Anon:").or_else(|| kib_after(&text, "Anonymous:")).with_context(|| path.clone())? * 1024;
        }
        let sockets = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
        Ok(Self { user, slabs: slabs()?, reserved: tcp_pages(&sockets).context("/proc/net/sockstat")? * PAGE_BYTES })
    }

    /// Waits until the kernel has freed what it is going to free, then reads.
    pub fn settled(processes: &[u32]) -> Result<Self> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        let mut before = slabs()?;
        while Instant::now() < deadline {
            thread::sleep(STILL);
            let now = slabs()?;
            if now.abs_diff(before) < AT_REST {
                break;
            }
            before = now;
        }
        Self::read(processes)
    }
}

/// All processes in a namespace.
#[track_caller]
pub fn processes_in(namespace: &Namespace) -> Vec<u32> {
    let listed = finish(Command::new("ip").args(["netns", "pids", namespace.name()]), seconds(20)).success();
    listed.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// How many files a process may open that we start.
pub fn open_files() -> Result<usize> {
    let limits = fs::read_to_string("/proc/self/limits").context("/proc/self/limits")?;
    soft_limit(&limits).context("/proc/self/limits names no limit on open files")
}

/// Of processes that run, user and system.
fn cpu_seconds(processes: &[u32]) -> f64 {
    processes.iter().filter_map(|process| cpu_time(*process)).map(|time| time.user + time.system).sum()
}

fn cores() -> Result<[CoreTime; 2]> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let core = |number: usize| core_time(&text, number).with_context(|| format!("/proc/stat names no processor {number}"));
    Ok([core(LOAD_CORE)?, core(RELAY_CORE)?])
}

fn slabs() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    Ok(kib_after(&text, "Slab:").context("/proc/meminfo")? * 1024)
}

/// `cpu1 user nice system idle iowait irq softirq steal …`
fn core_time(text: &str, number: usize) -> Option<CoreTime> {
    let name = format!("cpu{number} ");
    let line = text.lines().find_map(|line| line.strip_prefix(name.as_str()))?;
    let times: Vec<u64> = line.split_whitespace().take(8).filter_map(|word| word.parse().ok()).collect();
    let &[_, _, _, idle, iowait, _, _, _] = times.as_slice() else { return None };
    let all = times.iter().sum::<u64>();
    Some(CoreTime { busy: all - idle - iowait, all })
}

/// `Name:  12 kB`
fn kib_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// `TCP: inuse 1 orphan 0 tw 0 alloc 1 mem 15`
fn tcp_pages(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    line.split_whitespace().skip_while(|word| *word != "mem").nth(1)?.parse().ok()
}

/// `Max open files            1024                 524288               files`
fn soft_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_time_of_one_processor() {
        let text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 10 0 20 60 10 0 0 0 0 0\ncpu10 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(core_time(text, 1), Some(CoreTime { busy: 30, all: 100 }));
        assert_eq!(core_time(text, 0), Some(CoreTime { busy: 27, all: 36 }));
        assert_eq!(core_time(text, 2), None);
    }

    #[test]
    fn reads_memory_and_limits() {
        let rollup = "5500-7fff ---p 00000000 00:00 0    [rollup]\nPss:   12325 kB\nPss_Anon:            4672 kB\n";
        assert_eq!(kib_after(rollup, "Pss_Anon:"), Some(4672));
        assert_eq!(kib_after(rollup, "Anonymous:"), None);
        assert_eq!(tcp_pages("sockets: used 13\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 15\n"), Some(15));
        assert_eq!(soft_limit("Limit   Soft Limit  Hard Limit  Units\nMax open files            1024      524288     files\n"), Some(1024));
        assert!(open_files().is_ok_and(|files| files > 0));
    }
}
