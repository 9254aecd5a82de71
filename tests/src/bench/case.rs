//! What is measured: cases as they are asked for, and the figures that they give.

use std::time::Duration;

use super::options::Options;

/// One measurement. In this order they follow each other: the quiet one first, floods last, memory after all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    Latency,
    Tcp1,
    Tcp1Reverse,
    Tcp4,
    Tcp4Reverse,
    Bidirectional,
    Forward1,
    Forward4,
    Udp1392,
    Udp64,
    Memory,
    Ipv6,
    Limited,
}

/// What must be set up anew for a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Two gateways joined by one link, IPv4 outside.
    Plain,
    /// The same, IPv6 outside.
    Ipv6,
    /// A router between them polices each outer flow.
    Limited,
}

/// One number of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    Tcp1,
    Tcp1Reverse,
    Tcp4,
    Tcp4Reverse,
    Bidirectional,
    Forward1,
    Forward4,
    Ipv6,
    Udp1392,
    Udp64,
    LatencyP50,
    LatencyP99,
    CpuPerGb,
    PeakRss,
    Limited,
}

impl Setting {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Ipv6, Self::Limited];
}

impl Case {
    pub const ALL: [Self; 13] = [
        Self::Latency,
        Self::Tcp1,
        Self::Tcp1Reverse,
        Self::Tcp4,
        Self::Tcp4Reverse,
        Self::Bidirectional,
        Self::Forward1,
        Self::Forward4,
        Self::Udp1392,
        Self::Udp64,
        Self::Memory,
        Self::Ipv6,
        Self::Limited,
    ];

    /// As the command line has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Tcp1 => "tcp1",
            Self::Tcp1Reverse => "tcp1r",
            Self::Tcp4 => "tcp4",
            Self::Tcp4Reverse => "tcp4r",
            Self::Bidirectional => "bidir",
            Self::Forward1 => "fwd1",
            Self::Forward4 => "fwd4",
            Self::Udp1392 => "udp1392",
            Self::Udp64 => "udp64",
            Self::Memory => "rss",
            Self::Ipv6 => "ipv6",
            Self::Limited => "limited",
        }
    }

    pub const fn about(self) -> &'static str {
        match self {
            Self::Latency => "echo requests every 2 ms through an idle tunnel: p50 and p99",
            Self::Tcp1 => "TCP, 1 stream between the gateways; also CPU seconds of both gateways per GB",
            Self::Tcp1Reverse => "the same, the other way",
            Self::Tcp4 => "TCP, 4 streams",
            Self::Tcp4Reverse => "the same, the other way",
            Self::Bidirectional => "TCP, 1 stream each way at once, the sum",
            Self::Forward1 => "TCP, 1 stream between two hosts behind the gateways",
            Self::Forward4 => "TCP, 4 streams between two hosts behind the gateways",
            Self::Udp1392 => "UDP flood, 1392 bytes of payload (1420 with headers): packets delivered",
            Self::Udp64 => "UDP flood, 64 bytes of payload: packets delivered",
            Self::Memory => "peak RSS of the larger gateway, after all the cases before it",
            Self::Ipv6 => "TCP, 1 stream, IPv6 inside and outside",
            Self::Limited => "TCP, 16 streams, 12 MB/s for each outer flow: what lanes bring (skyway alone)",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|case| case.name() == name)
    }

    pub const fn setting(self) -> Setting {
        match self {
            Self::Ipv6 => Setting::Ipv6,
            Self::Limited => Setting::Limited,
            Self::Latency
            | Self::Tcp1
            | Self::Tcp1Reverse
            | Self::Tcp4
            | Self::Tcp4Reverse
            | Self::Bidirectional
            | Self::Forward1
            | Self::Forward4
            | Self::Udp1392
            | Self::Udp64
            | Self::Memory => Setting::Plain,
        }
    }

    /// How long it takes, roughly.
    pub(crate) fn takes(self, options: &Options) -> Duration {
        match self {
            Self::Latency => super::load::PING_EVERY * options.pings + Duration::from_secs(1),
            Self::Memory => Duration::ZERO,
            Self::Tcp1
            | Self::Tcp1Reverse
            | Self::Tcp4
            | Self::Tcp4Reverse
            | Self::Bidirectional
            | Self::Forward1
            | Self::Forward4
            | Self::Udp1392
            | Self::Udp64
            | Self::Ipv6
            | Self::Limited => Duration::from_secs(options.seconds + 1),
        }
    }
}

impl Figure {
    pub const ALL: [Self; 15] = [
        Self::Tcp1,
        Self::Tcp1Reverse,
        Self::Tcp4,
        Self::Tcp4Reverse,
        Self::Bidirectional,
        Self::Forward1,
        Self::Forward4,
        Self::Ipv6,
        Self::Udp1392,
        Self::Udp64,
        Self::LatencyP50,
        Self::LatencyP99,
        Self::CpuPerGb,
        Self::PeakRss,
        Self::Limited,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP ×1",
            Self::Tcp1Reverse => "TCP ×1, reverse",
            Self::Tcp4 => "TCP ×4",
            Self::Tcp4Reverse => "TCP ×4, reverse",
            Self::Bidirectional => "TCP both ways, sum",
            Self::Forward1 => "forwarded TCP ×1",
            Self::Forward4 => "forwarded TCP ×4",
            Self::Ipv6 => "IPv6, TCP ×1",
            Self::Udp1392 => "UDP 1392 B delivered",
            Self::Udp64 => "UDP 64 B delivered",
            Self::LatencyP50 => "latency p50",
            Self::LatencyP99 => "latency p99",
            Self::CpuPerGb => "CPU of both gateways",
            Self::PeakRss => "peak RSS",
            Self::Limited => "TCP ×16, each outer flow limited",
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::Tcp1
            | Self::Tcp1Reverse
            | Self::Tcp4
            | Self::Tcp4Reverse
            | Self::Bidirectional
            | Self::Forward1
            | Self::Forward4
            | Self::Ipv6 => "Gbit/s",
            Self::Udp1392 | Self::Udp64 => "kpps",
            Self::LatencyP50 | Self::LatencyP99 => "µs",
            Self::CpuPerGb => "s/GB",
            Self::PeakRss => "MiB",
            Self::Limited => "Mbit/s",
        }
    }

    /// In `results.json`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1_gbit_s",
            Self::Tcp1Reverse => "tcp1_reverse_gbit_s",
            Self::Tcp4 => "tcp4_gbit_s",
            Self::Tcp4Reverse => "tcp4_reverse_gbit_s",
            Self::Bidirectional => "tcp_both_ways_gbit_s",
            Self::Forward1 => "forwarded_tcp1_gbit_s",
            Self::Forward4 => "forwarded_tcp4_gbit_s",
            Self::Ipv6 => "ipv6_tcp1_gbit_s",
            Self::Udp1392 => "udp_1392_delivered_kpps",
            Self::Udp64 => "udp_64_delivered_kpps",
            Self::LatencyP50 => "latency_p50_us",
            Self::LatencyP99 => "latency_p99_us",
            Self::CpuPerGb => "cpu_s_per_gb",
            Self::PeakRss => "peak_rss_mib",
            Self::Limited => "limited_tcp16_mbit_s",
        }
    }

    pub const fn more_is_better(self) -> bool {
        !matches!(self, Self::LatencyP50 | Self::LatencyP99 | Self::CpuPerGb | Self::PeakRss)
    }

    /// `value` with as many decimals as mean something.
    pub fn number(self, value: f64) -> String {
        match self {
            Self::Tcp1
            | Self::Tcp1Reverse
            | Self::Tcp4
            | Self::Tcp4Reverse
            | Self::Bidirectional
            | Self::Forward1
            | Self::Forward4
            | Self::Ipv6
            | Self::CpuPerGb => format!("{value:.2}"),
            Self::Udp1392 | Self::Udp64 | Self::PeakRss => format!("{value:.1}"),
            Self::LatencyP50 | Self::LatencyP99 | Self::Limited => format!("{value:.0}"),
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
            assert_eq!(Case::from_name(case.name()), Some(case));
        }
        for (index, figure) in Figure::ALL.into_iter().enumerate() {
            assert_eq!(Figure::ALL.iter().position(|other| other.key() == figure.key()), Some(index), "{figure:?}");
        }
        assert_eq!(Case::from_name("tcp2"), None);
    }
}
