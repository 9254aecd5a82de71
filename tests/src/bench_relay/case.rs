//! What is measured: cases as they are asked for, and the figures that they give.

use std::time::Duration;

use super::options::Options;

/// One measurement. In this order they follow each other within a turn: memory first, while no connection of an earlier
/// case rests in TIME-WAIT; what ends the relay last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    Idle(Crowd),
    SniRate,
    ConnectRate,
    Latency,
    BulkUp,
    BulkDown,
    Reload,
    Drain,
}

/// How many sessions stand idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowd {
    Thousand,
    TenThousand,
    HundredThousand,
}

/// One number of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    SniRate,
    SniP99,
    ConnectRate,
    ConnectP99,
    LatencyP50,
    LatencyP99,
    LatencyP999,
    /// Latency less that of the same round without a relay.
    AddedP50,
    AddedP99,
    AddedP999,
    Up,
    UpPerCpu,
    UpPerCore,
    Down,
    DownPerCpu,
    DownPerCore,
    UserMemory(Crowd),
    /// Of the whole machine: also the sensors' and the hosts' sockets.
    Slabs(Crowd),
    /// Slabs less those of the same round without a relay.
    KernelMemory(Crowd),
    Reserved(Crowd),
    ReloadLost,
    ReloadP99,
    DrainTime,
    DrainBurst,
}

impl Crowd {
    pub const ALL: [Self; 3] = [Self::Thousand, Self::TenThousand, Self::HundredThousand];

    pub const fn sessions(self) -> usize {
        match self {
            Self::Thousand => 1000,
            Self::TenThousand => 10_000,
            Self::HundredThousand => 100_000,
        }
    }
}

impl Case {
    pub const ALL: [Self; 10] = [
        Self::Idle(Crowd::Thousand),
        Self::Idle(Crowd::TenThousand),
        Self::Idle(Crowd::HundredThousand),
        Self::SniRate,
        Self::ConnectRate,
        Self::Latency,
        Self::BulkUp,
        Self::BulkDown,
        Self::Reload,
        Self::Drain,
    ];

    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle(Crowd::Thousand) => "idle_1k",
            Self::Idle(Crowd::TenThousand) => "idle_10k",
            Self::Idle(Crowd::HundredThousand) => "idle_100k",
            Self::SniRate => "sni_rate",
            Self::ConnectRate => "connect_rate",
            Self::Latency => "latency",
            Self::BulkUp => "bulk_up",
            Self::BulkDown => "bulk_down",
            Self::Reload => "reload",
            Self::Drain => "drain",
        }
    }

    pub const fn about(self) -> &'static str {
        match self {
            Self::Idle(Crowd::Thousand) => "user and kernel memory of 1,000 idle sessions",
            Self::Idle(Crowd::TenThousand) => "the same, 10,000",
            Self::Idle(Crowd::HundredThousand) => "the same, 100,000; with --long, or where it is named",
            Self::SniRate => "new sessions by SNI: 64 at once, each opened, greeted, answered and closed",
            Self::ConnectRate => "the same by CONNECT",
            Self::Latency => "256 bytes there and back, 2,000 times a second over 64 standing sessions, open loop",
            Self::BulkUp => "bytes from sensors to hosts, 8 sessions; also bytes for each CPU second of the relay",
            Self::BulkDown => "the same from hosts to sensors",
            Self::Reload => "sessions lost to 5 reloads under new sessions and pings",
            Self::Drain => "an orderly stop with 1,000 idle sessions and 2 s for them",
        }
    }

    /// What runs if nothing is named.
    pub const fn by_default(self, long: bool) -> bool {
        long || !matches!(self, Self::Idle(Crowd::HundredThousand))
    }

    /// Whether a neighbour's programs spoil it.
    pub const fn wants_quiet(self) -> bool {
        match self {
            Self::SniRate | Self::ConnectRate | Self::Latency | Self::BulkUp | Self::BulkDown => true,
            Self::Idle(_) | Self::Reload | Self::Drain => false,
        }
    }

    /// How long it takes, roughly.
    pub(super) fn takes(self, options: &Options) -> Duration {
        match self {
            Self::Idle(crowd) => Duration::from_secs(3) + Duration::from_micros(150) * (crowd.sessions() as u32),
            Self::SniRate | Self::ConnectRate | Self::Latency | Self::BulkUp | Self::BulkDown => Duration::from_secs(options.seconds + 2),
            Self::Reload => Duration::from_secs(options.seconds + 8),
            Self::Drain => Duration::from_secs(5),
        }
    }
}

impl Figure {
    pub const ALL: [Self; 32] = [
        Self::SniRate,
        Self::SniP99,
        Self::ConnectRate,
        Self::ConnectP99,
        Self::LatencyP50,
        Self::LatencyP99,
        Self::LatencyP999,
        Self::AddedP50,
        Self::AddedP99,
        Self::AddedP999,
        Self::Up,
        Self::UpPerCpu,
        Self::UpPerCore,
        Self::Down,
        Self::DownPerCpu,
        Self::DownPerCore,
        Self::UserMemory(Crowd::Thousand),
        Self::UserMemory(Crowd::TenThousand),
        Self::UserMemory(Crowd::HundredThousand),
        Self::KernelMemory(Crowd::Thousand),
        Self::KernelMemory(Crowd::TenThousand),
        Self::KernelMemory(Crowd::HundredThousand),
        Self::Slabs(Crowd::Thousand),
        Self::Slabs(Crowd::TenThousand),
        Self::Slabs(Crowd::HundredThousand),
        Self::Reserved(Crowd::Thousand),
        Self::Reserved(Crowd::TenThousand),
        Self::Reserved(Crowd::HundredThousand),
        Self::ReloadLost,
        Self::ReloadP99,
        Self::DrainTime,
        Self::DrainBurst,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::SniRate => "new sessions, SNI",
            Self::SniP99 => "until answered, SNI storm, p99",
            Self::ConnectRate => "new sessions, CONNECT",
            Self::ConnectP99 => "until answered, CONNECT storm, p99",
            Self::LatencyP50 => "round trip p50",
            Self::LatencyP99 => "round trip p99",
            Self::LatencyP999 => "round trip p99.9",
            Self::AddedP50 => "added by the relay, p50",
            Self::AddedP99 => "added by the relay, p99",
            Self::AddedP999 => "added by the relay, p99.9",
            Self::Up => "bulk up",
            Self::UpPerCpu => "bulk up, for each CPU second of the relay",
            Self::UpPerCore => "bulk up, for each busy second of its processor",
            Self::Down => "bulk down",
            Self::DownPerCpu => "bulk down, for each CPU second of the relay",
            Self::DownPerCore => "bulk down, for each busy second of its processor",
            Self::UserMemory(Crowd::Thousand) => "user memory a session, 1k idle",
            Self::UserMemory(Crowd::TenThousand) => "user memory a session, 10k idle",
            Self::UserMemory(Crowd::HundredThousand) => "user memory a session, 100k idle",
            Self::KernelMemory(Crowd::Thousand) => "the relay's kernel memory a session, 1k idle",
            Self::KernelMemory(Crowd::TenThousand) => "the relay's kernel memory a session, 10k idle",
            Self::KernelMemory(Crowd::HundredThousand) => "the relay's kernel memory a session, 100k idle",
            Self::Slabs(Crowd::Thousand) => "slabs of the machine a session, 1k idle",
            Self::Slabs(Crowd::TenThousand) => "slabs of the machine a session, 10k idle",
            Self::Slabs(Crowd::HundredThousand) => "slabs of the machine a session, 100k idle",
            Self::Reserved(Crowd::Thousand) => "set aside for TCP buffers a session, 1k idle",
            Self::Reserved(Crowd::TenThousand) => "set aside for TCP buffers a session, 10k idle",
            Self::Reserved(Crowd::HundredThousand) => "set aside for TCP buffers a session, 100k idle",
            Self::ReloadLost => "lost to 5 reloads under load",
            Self::ReloadP99 => "round trip p99 meanwhile",
            Self::DrainTime => "drain of 1,000 sessions (2 s allowed), to the last one's end",
            Self::DrainBurst => "most that ended within 100 ms of it",
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::SniRate | Self::ConnectRate => "/s",
            Self::SniP99 | Self::ConnectP99 => "ms",
            Self::LatencyP50
            | Self::LatencyP99
            | Self::LatencyP999
            | Self::AddedP50
            | Self::AddedP99
            | Self::AddedP999
            | Self::ReloadP99 => "µs",
            Self::Up | Self::Down => "Gbit/s",
            Self::UpPerCpu | Self::UpPerCore | Self::DownPerCpu | Self::DownPerCore => "GB/s",
            Self::UserMemory(_) | Self::Slabs(_) | Self::KernelMemory(_) | Self::Reserved(_) => "KiB",
            Self::ReloadLost | Self::DrainBurst => "sessions",
            Self::DrainTime => "s",
        }
    }

    /// In `results.json`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::SniRate => "sni_sessions_s",
            Self::SniP99 => "sni_p99_ms",
            Self::ConnectRate => "connect_sessions_s",
            Self::ConnectP99 => "connect_p99_ms",
            Self::LatencyP50 => "latency_p50_us",
            Self::LatencyP99 => "latency_p99_us",
            Self::LatencyP999 => "latency_p999_us",
            Self::AddedP50 => "added_p50_us",
            Self::AddedP99 => "added_p99_us",
            Self::AddedP999 => "added_p999_us",
            Self::Up => "up_gbit_s",
            Self::UpPerCpu => "up_gb_per_cpu_s",
            Self::UpPerCore => "up_gb_per_core_s",
            Self::Down => "down_gbit_s",
            Self::DownPerCpu => "down_gb_per_cpu_s",
            Self::DownPerCore => "down_gb_per_core_s",
            Self::UserMemory(Crowd::Thousand) => "user_kib_1k",
            Self::UserMemory(Crowd::TenThousand) => "user_kib_10k",
            Self::UserMemory(Crowd::HundredThousand) => "user_kib_100k",
            Self::KernelMemory(Crowd::Thousand) => "kernel_kib_1k",
            Self::KernelMemory(Crowd::TenThousand) => "kernel_kib_10k",
            Self::KernelMemory(Crowd::HundredThousand) => "kernel_kib_100k",
            Self::Slabs(Crowd::Thousand) => "slabs_kib_1k",
            Self::Slabs(Crowd::TenThousand) => "slabs_kib_10k",
            Self::Slabs(Crowd::HundredThousand) => "slabs_kib_100k",
            Self::Reserved(Crowd::Thousand) => "reserved_kib_1k",
            Self::Reserved(Crowd::TenThousand) => "reserved_kib_10k",
            Self::Reserved(Crowd::HundredThousand) => "reserved_kib_100k",
            Self::ReloadLost => "reload_lost",
            Self::ReloadP99 => "reload_p99_us",
            Self::DrainTime => "drain_s",
            Self::DrainBurst => "drain_burst",
        }
    }

    pub const fn more_is_better(self) -> bool {
        self.wants_busy_relay() || matches!(self, Self::UpPerCpu | Self::UpPerCore | Self::DownPerCpu | Self::DownPerCore)
    }

    /// Whether it says nothing of the relay unless the relay was what could do no more.
    pub const fn wants_busy_relay(self) -> bool {
        matches!(self, Self::SniRate | Self::ConnectRate | Self::Up | Self::Down)
    }

    /// Of which figure it is what a relay adds to a path without one.
    pub const fn added_to(self) -> Option<Self> {
        match self {
            Self::AddedP50 => Some(Self::LatencyP50),
            Self::AddedP99 => Some(Self::LatencyP99),
            Self::AddedP999 => Some(Self::LatencyP999),
            Self::KernelMemory(crowd) => Some(Self::Slabs(crowd)),
            Self::SniRate
            | Self::SniP99
            | Self::ConnectRate
            | Self::ConnectP99
            | Self::LatencyP50
            | Self::LatencyP99
            | Self::LatencyP999
            | Self::Up
            | Self::UpPerCpu
            | Self::UpPerCore
            | Self::Down
            | Self::DownPerCpu
            | Self::DownPerCore
            | Self::UserMemory(_)
            | Self::Slabs(_)
            | Self::Reserved(_)
            | Self::ReloadLost
            | Self::ReloadP99
            | Self::DrainTime
            | Self::DrainBurst => None,
        }
    }

    /// `value` with as many decimals as mean something.
    pub fn number(self, value: f64) -> String {
        match self.unit() {
            "Gbit/s" | "GB/s" | "KiB" | "ms" | "s" => format!("{value:.2}"),
            _ => format!("{value:.0}"),
        }
    }

    pub fn with_unit(self, value: f64) -> String {
        format!("{} {}", self.number(value), self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_and_figure_has_a_name_of_its_own() {
        for (index, case) in Case::ALL.into_iter().enumerate() {
            assert_eq!(Case::ALL.iter().position(|other| other.name() == case.name()), Some(index), "{case:?}");
        }
        for (index, figure) in Figure::ALL.into_iter().enumerate() {
            assert_eq!(Figure::ALL.iter().position(|other| other.key() == figure.key()), Some(index), "{figure:?}");
            assert_eq!(Figure::ALL.iter().position(|other| other.label() == figure.label()), Some(index), "{figure:?}");
        }
    }

    #[test]
    fn less_is_better_for_times_memory_and_losses() {
        let more: Vec<&str> = Figure::ALL.into_iter().filter(|figure| figure.more_is_better()).map(Figure::unit).collect();
        assert_eq!(more, ["/s", "/s", "Gbit/s", "GB/s", "GB/s", "Gbit/s", "GB/s", "GB/s"]);
    }
}
