//! What the kernel refused, in words for the operator: the operation, its object, and what to do where we know it.

use std::error::Error as _;
use std::{fmt, io};

use ipnet::IpNet;
use thiserror::Error;

use super::message::Family;

/// Why something could not be asked of the kernel or was refused by it.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    #[error(
        "cannot {operation}: this process lacks CAP_NET_ADMIN; run it as root or grant the capability (systemd: \
         AmbientCapabilities=CAP_NET_ADMIN; docker: --cap-add NET_ADMIN; Kubernetes: capabilities.add: [NET_ADMIN])"
    )]
    NotPermitted {
        operation: Operation,
        #[source]
        source: io::Error,
    },
    #[error(
        "cannot {operation}: IPv6 is switched off for the interface; set net.ipv6.conf.INTERFACE.disable_ipv6=0 or take \
         the IPv6 prefixes out of the configuration"
    )]
    Ipv6Disabled {
        operation: Operation,
        #[source]
        source: io::Error,
    },
    #[error("cannot {operation}: there is no such interface")]
    NoInterface { operation: Operation },
    #[error("cannot {operation}")]
    Refused {
        operation: Operation,
        #[source]
        source: io::Error,
    },
    #[error("cannot {operation}: the netlink connection has ended")]
    Closed { operation: Operation },
    /// Several of many changes failed; the others were made.
    #[error("{} changes failed: {}", .0.len(), listed(.0))]
    Several(Vec<Self>),
}

/// What was asked of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    ListInterfaces,
    FindInterface {
        interface: String,
    },
    SetUp {
        interface: String,
        /// In bytes, of the inner IP packet.
        mtu: u32,
    },
    ListAddresses {
        interface: String,
    },
    AddAddress {
        interface: String,
        address: IpNet,
    },
    RemoveAddress {
        interface: String,
        address: IpNet,
    },
    ListRoutes {
        family: Family,
    },
    AddRoute {
        prefix: IpNet,
        metric: u32,
    },
    RemoveRoute {
        prefix: IpNet,
        metric: u32,
    },
    ListRules {
        family: Family,
    },
    AddRule {
        family: Family,
    },
    RemoveRule {
        family: Family,
    },
}

impl KernelError {
    /// Names the cause of a refusal where its number has one meaning only.
    pub(super) fn refused(operation: Operation, error: rtnetlink::Error) -> Self {
        let source = if let rtnetlink::Error::NetlinkError(message) = &error { message.to_io() } else { io::Error::other(error) };
        match source.raw_os_error() {
            Some(EPERM) => Self::NotPermitted { operation, source },
            Some(EACCES) if operation.is_about_ipv6() => Self::Ipv6Disabled { operation, source },
            Some(_) | None => Self::Refused { operation, source },
        }
    }

    /// No failure, the only one, or all of them.
    pub(super) fn gather(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.pop() {
            None => Ok(()),
            Some(only) if failures.is_empty() => Err(only),
            Some(last) => {
                failures.push(last);
                Err(Self::Several(failures))
            }
        }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Open(_)
            | Self::NotPermitted { .. }
            | Self::Ipv6Disabled { .. }
            | Self::NoInterface { .. }
            | Self::Closed { .. }
            | Self::Several(_) => None,
        }
    }

    /// Whether the kernel refused with this kind of error.
    pub(super) fn is(&self, kind: io::ErrorKind) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == kind)
    }

    /// Whether the kernel does not know the address family: it was built or booted without IPv6.
    pub(super) fn is_unknown_family(&self) -> bool {
        matches!(self.errno(), Some(EAFNOSUPPORT | EOPNOTSUPP))
    }
}

impl Operation {
    fn is_about_ipv6(&self) -> bool {
        match self {
            Self::AddAddress { address: net, .. }
            | Self::RemoveAddress { address: net, .. }
            | Self::AddRoute { prefix: net, .. }
            | Self::RemoveRoute { prefix: net, .. } => Family::of(net) == Family::V6,
            Self::ListRoutes { family } | Self::ListRules { family } | Self::AddRule { family } | Self::RemoveRule { family } => {
                *family == Family::V6
            }
            Self::ListInterfaces | Self::FindInterface { .. } | Self::SetUp { .. } | Self::ListAddresses { .. } => false,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ListInterfaces => write!(f, "list the interfaces"),
            Self::FindInterface { interface } => write!(f, "look up interface {interface}"),
            Self::SetUp { interface, mtu } => {
                write!(f, "set interface {interface} up with an MTU of {mtu} bytes")
            }
            Self::ListAddresses { interface } => write!(f, "list the addresses of {interface}"),
            Self::AddAddress { interface, address } => {
                write!(f, "add address {address} to {interface}")
            }
            Self::RemoveAddress { interface, address } => {
                write!(f, "remove address {address} from {interface}")
            }
            Self::ListRoutes { family } => write!(f, "list the {family} routes"),
            Self::AddRoute { prefix, metric } => write!(f, "add route {prefix} metric {metric}"),
            Self::RemoveRoute { prefix, metric } => {
                write!(f, "remove route {prefix} metric {metric}")
            }
            Self::ListRules { family } => write!(f, "list the {family} rules"),
            Self::AddRule { family } => write!(f, "add the {family} rule"),
            Self::RemoveRule { family } => write!(f, "remove the {family} rule"),
        }
    }
}

fn listed(failures: &[KernelError]) -> String {
    let with_source = |failure: &KernelError| match failure.source() {
        Some(source) => format!("{failure}: {source}"),
        None => failure.to_string(),
    };
    failures.iter().map(with_source).collect::<Vec<_>>().join("; ")
}

// Error numbers of Linux (asm-generic/errno-base.h, asm-generic/errno.h), the same on x86-64 and aarch64.
const EPERM: i32 = 1;
/// A route to be removed is not there.
pub(super) const ESRCH: i32 = 3;
const EACCES: i32 = 13;
/// An interface is not there.
pub(super) const ENODEV: i32 = 19;
const EOPNOTSUPP: i32 = 95;
const EAFNOSUPPORT: i32 = 97;

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use netlink_packet_core::ErrorMessage;

    use super::*;

    #[test]
    fn a_missing_capability_is_named_with_its_remedy() {
        let error = KernelError::refused(add_route("10.20.0.0/16"), netlink_error(EPERM));
        let text = error.to_string();
        assert!(text.starts_with("cannot add route 10.20.0.0/16 metric 100: this process lacks CAP_NET_ADMIN;"));
        assert!(text.contains("AmbientCapabilities=CAP_NET_ADMIN"));
    }

    #[test]
    fn access_denied_means_ipv6_only_for_ipv6() {
        let v6 = KernelError::refused(add_route("2001:db8::/32"), netlink_error(EACCES));
        assert!(matches!(v6, KernelError::Ipv6Disabled { .. }));
        let v4 = KernelError::refused(add_route("10.20.0.0/16"), netlink_error(EACCES));
        assert_eq!(v4.errno(), Some(EACCES));
    }

    #[test]
    fn all_failures_are_listed_with_their_cause() {
        let failures = ["10.20.0.0/16", "10.30.0.0/16"].map(|prefix| KernelError::refused(add_route(prefix), netlink_error(ENODEV)));
        let error = KernelError::gather(failures.into()).expect_err("two failures");
        assert_eq!(
            error.to_string(),
            "2 changes failed: cannot add route 10.20.0.0/16 metric 100: No such device (os error 19); \
             cannot add route 10.30.0.0/16 metric 100: No such device (os error 19)"
        );
    }

    #[test]
    fn one_failure_stays_itself() {
        assert!(KernelError::gather(Vec::new()).is_ok());
        let only = KernelError::refused(add_route("10.20.0.0/16"), netlink_error(ENODEV));
        let error = KernelError::gather(vec![only]).expect_err("one failure");
        assert_eq!(error.errno(), Some(ENODEV));
    }

    fn add_route(prefix: &str) -> Operation {
        Operation::AddRoute { prefix: prefix.parse().expect("well formed"), metric: 100 }
    }

    fn netlink_error(errno: i32) -> rtnetlink::Error {
        let mut message = ErrorMessage::default();
        message.code = NonZeroI32::new(-errno);
        rtnetlink::Error::NetlinkError(message)
    }
}
