//! The kernel by rtnetlink: interfaces, addresses, routes and rules.
//!
//! Every method first asks what is there and then changes what differs, so calling it twice sends nothing the second
//! time. That is not only thrift: `replace` duplicates a rule, and adds a second route if the metric differs.
//!
//! Each request has a time limit of its own, and a method that sends many has none: a hundred thousand routes take the
//! time that they take.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, LinkUnspec};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tracing::{debug, info};

use super::error::{ENODEV, ESRCH, KernelError, Operation};
use super::message::{self, Family};
use crate::fib::Fib;
use crate::reconcile::{Change, KernelRoute, Reconciliation, reconcile};
use crate::route::Route;

/// A netlink socket and the task that serves it.
#[derive(Debug)]
pub struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
}

/// What [`Kernel::reconcile`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Installed, or put in the place of another with the same prefix and metric.
    pub added: Vec<Route>,
    pub removed: Vec<KernelRoute>,
    /// Not installed because their interface does not exist; the kill switch of their prefix stands.
    pub waiting: Vec<Route>,
}

impl Kernel {
    /// Opens the socket, in the network namespace of the calling thread.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime with I/O enabled. The methods panic if its time is not enabled.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The index of each interface that is up. A route through one that is down cannot be installed: it waits.
    pub async fn interfaces_up(&self) -> Result<HashMap<String, u32>, KernelError> {
        let up = self.links_up().await?;
        Ok(up.iter().filter_map(|link| Some((name(link)?, link.header.index))).collect())
    }

    /// The MTU of each interface that is up: in bytes, of what it carries.
    pub async fn mtus(&self) -> Result<HashMap<String, u32>, KernelError> {
        let up = self.links_up().await?;
        Ok(up.iter().filter_map(|link| Some((name(link)?, mtu(link)?))).collect())
    }

    /// The index of one interface, or none if there is no such interface.
    pub async fn interface_index(&self, interface: &str) -> Result<Option<u32>, KernelError> {
        let operation = Operation::FindInterface { interface: interface.to_owned() };
        let links = self.handle.link().get().match_name(interface).execute();
        match self.list(operation, links).await {
            Ok(links) => Ok(links.first().map(|link| link.header.index)),
            Err(error) if error.errno() == Some(ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets an interface up. `mtu`: in bytes, of an inner IP packet.
    pub async fn set_up(&self, interface: &str, mtu: u32) -> Result<(), KernelError> {
        let operation = Operation::SetUp { interface: interface.to_owned(), mtu };
        let index = self.index_for(interface, &operation).await?;
        let link = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.answer(operation, self.handle.link().change(link).execute()).await
    }

    /// The addresses of an interface, link-local ones too, each with its prefix length and its host bits.
    pub async fn addresses(&self, interface: &str) -> Result<Vec<IpNet>, KernelError> {
        let dumped = self.address_messages(interface).await?;
        Ok(dumped.iter().filter_map(message::address).collect())
    }

    /// Gives an interface these addresses and no others; IPv6 link-local ones are left as they are.
    ///
    /// They bring no on-link route with them: whoever wants one puts it into the FIB.
    pub async fn set_addresses(&self, interface: &str, addresses: &[IpNet]) -> Result<(), KernelError> {
        let wanted: BTreeSet<IpNet> = addresses.iter().copied().collect();
        let mut present = self.address_messages(interface).await?;
        let mut removed = false;
        for dumped in &present {
            let Some(address) = message::address(dumped) else {
                continue;
            };
            let kept = wanted.contains(&address) && message::has_our_flags(dumped);
            if !kept && !message::is_link_local(&address) {
                self.remove_address(interface, address, dumped).await?;
                removed = true;
            }
        }
        if removed {
            // With an IPv4 address go the secondary ones of its subnet, unless promote_secondaries is set.
            present = self.address_messages(interface).await?;
        }
        let present: BTreeSet<IpNet> = present.iter().filter_map(message::address).collect();
        for address in wanted.difference(&present) {
            self.add_address(interface, *address).await?;
        }
        Ok(())
    }

    /// Our table of both families, whoever owns the routes, with the messages by which they can be removed.
    pub async fn routes(&self) -> Result<Vec<(KernelRoute, RouteMessage)>, KernelError> {
        let mut routes = Vec::new();
        for family in Family::BOTH {
            let mut request = RouteMessage::default();
            request.header.address_family = family.address_family();
            let dump = self.handle.route().get(request).execute();
            match self.list(Operation::ListRoutes { family }, dump).await {
                Ok(dump) => {
                    let with_message = |dumped: RouteMessage| Some((message::kernel_route(family, &dumped)?, dumped));
                    routes.extend(dump.into_iter().filter_map(with_message));
                }
                Err(error) => without_ipv6(family, error)?,
            }
        }
        Ok(routes)
    }

    /// Makes our routes in the kernel those of `desired`, unreachable ones first in and last out.
    ///
    /// A change that fails does not keep the others from being made; all failures are in the error. Where no other can
    /// fare better either (no permission, no answer), that one error ends it.
    pub async fn reconcile(&self, desired: &Fib) -> Result<Report, KernelError> {
        let interfaces = self.interfaces_up().await?;
        let (kernel, messages): (Vec<_>, Vec<_>) = self.routes().await?.into_iter().unzip();
        let Reconciliation { changes, waiting } = reconcile(&kernel, desired, &interfaces);
        let mut report = Report { waiting, ..Report::default() };
        let lines = if changes.len() > MANY_CHANGES { Lines::Sum } else { Lines::Each };
        let outcome = self.make(changes, (&kernel, &messages), lines, &mut report).await;
        let (added, removed) = (report.added.len(), report.removed.len());
        if lines == Lines::Sum && added + removed > 0 {
            info!(added, removed, "routes changed");
        }
        outcome.map(|()| report)
    }

    /// Adds our rule for each family that lacks it.
    pub async fn ensure_rules(&self) -> Result<(), KernelError> {
        for family in Family::BOTH {
            match self.ensure_rule(family).await {
                Ok(()) => {}
                Err(error) => without_ipv6(family, error)?,
            }
        }
        Ok(())
    }

    /// Removes our rules. From then on table main decides for every prefix.
    pub async fn remove_rules(&self) -> Result<(), KernelError> {
        for family in Family::BOTH {
            for rule in self.rules(family).await? {
                let removal = self.handle.rule().del(rule).execute();
                match self.answer(Operation::RemoveRule { family }, removal).await {
                    Err(error) if error.is(io::ErrorKind::NotFound) => {}
                    outcome => outcome?,
                }
                info!(%family, "rule removed");
            }
        }
        Ok(())
    }

    /// Takes back all that outlives an exit: our routes, the kill switch with them, and our rules.
    pub async fn release(&self) -> Result<Report, KernelError> {
        let routes = self.reconcile(&Fib::default()).await;
        let rules = self.remove_rules().await;
        match (routes, rules) {
            (Ok(report), Ok(())) => Ok(report),
            (Ok(_), Err(error)) | (Err(error), Ok(())) => Err(error),
            (Err(routes), Err(rules)) => Err(KernelError::Several(vec![routes, rules])),
        }
    }
}

/// How the log tells of routes that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lines {
    Each,
    /// One for all; those of single routes are for DEBUG.
    Sum,
}

/// From more changes than these on, a line for each would hide all else in the log.
const MANY_CHANGES: usize = 16;

/// How long the kernel may be silent while an answer is awaited. It answers in microseconds, or in milliseconds where it
/// lists; a second is somebody who holds its lock on routes, and five mean that nothing will come.
const TIME_LIMIT: Duration = Duration::from_secs(5);

impl Kernel {
    /// Makes `changes` in their order. Their positions are those in the two halves of `dump`.
    async fn make(
        &self,
        changes: Vec<Change>,
        dump: (&[KernelRoute], &[RouteMessage]),
        lines: Lines,
        report: &mut Report,
    ) -> Result<(), KernelError> {
        let (kernel, messages) = dump;
        let mut failures = Vec::new();
        for change in changes {
            let outcome = match change {
                Change::Install { route, interface, replaces } => self.install(&route, interface, replaces.is_some()).await.map(|()| {
                    say_installed(&route, lines);
                    report.added.push(route);
                }),
                Change::Remove { index } => self.remove(&kernel[index], messages[index].clone()).await.map(|()| {
                    say_removed(&kernel[index], lines);
                    report.removed.push(kernel[index]);
                }),
            };
            match outcome {
                Ok(()) => {}
                Err(error) if concerns_all(&error) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        KernelError::gather(failures)
    }

    async fn links_up(&self) -> Result<Vec<LinkMessage>, KernelError> {
        let mut links = self.list(Operation::ListInterfaces, self.handle.link().get().execute()).await?;
        links.retain(|link| link.header.flags.contains(LinkFlags::Up));
        Ok(links)
    }

    async fn install(&self, route: &Route, interface: Option<u32>, replace: bool) -> Result<(), KernelError> {
        let operation = Operation::AddRoute { prefix: route.prefix(), metric: route.metric() };
        let mut request = self.handle.route().add(message::route_message(route, interface));
        if replace {
            request = request.replace();
        }
        self.answer(operation, request.execute()).await
    }

    /// Removes a route by the very message that the kernel gave: one that we build anew would have to get scope, type
    /// and protocol right to match.
    async fn remove(&self, route: &KernelRoute, dumped: RouteMessage) -> Result<(), KernelError> {
        let KernelRoute { prefix, metric, .. } = *route;
        let removal = self.handle.route().del(dumped).execute();
        let operation = Operation::RemoveRoute { prefix, metric };
        match self.answer(operation, removal).await {
            // Gone already: with its interface, usually.
            Err(error) if error.errno() == Some(ESRCH) => Ok(()),
            outcome => outcome,
        }
    }

    async fn add_address(&self, interface: &str, address: IpNet) -> Result<(), KernelError> {
        let operation = Operation::AddAddress { interface: interface.to_owned(), address };
        let index = self.index_for(interface, &operation).await?;
        let mut request = self.handle.address().add(index, address.addr(), address.prefix_len());
        // IFA_FLAGS: the flag does not fit into the eight bits of the header.
        let flags = AddressAttribute::Flags(message::ADDRESS_FLAGS);
        request.message_mut().attributes.push(flags);
        self.answer(operation, request.execute()).await?;
        info!(interface, %address, "address added");
        Ok(())
    }

    async fn remove_address(&self, interface: &str, address: IpNet, dumped: &AddressMessage) -> Result<(), KernelError> {
        let operation = Operation::RemoveAddress { interface: interface.to_owned(), address };
        let removal = self.handle.address().del(dumped.clone()).execute();
        match self.answer(operation, removal).await {
            // Gone already, with the primary address of its subnet.
            Err(error) if error.is(io::ErrorKind::AddrNotAvailable) => {}
            outcome => outcome?,
        }
        info!(interface, %address, "address removed");
        Ok(())
    }

    async fn address_messages(&self, interface: &str) -> Result<Vec<AddressMessage>, KernelError> {
        let operation = Operation::ListAddresses { interface: interface.to_owned() };
        let index = self.index_for(interface, &operation).await?;
        let request = self.handle.address().get().set_link_index_filter(index);
        self.list(operation, request.execute()).await
    }

    async fn ensure_rule(&self, family: Family) -> Result<(), KernelError> {
        if !self.rules(family).await?.is_empty() {
            return Ok(());
        }
        let mut request = self.handle.rule().add();
        *request.message_mut() = message::rule_message(family);
        let addition = self.answer(Operation::AddRule { family }, request.execute());
        match addition.await {
            Ok(()) => info!(%family, "rule added"),
            // Another skyway was faster.
            Err(error) if error.is(io::ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Our rules of one family: none, or one.
    async fn rules(&self, family: Family) -> Result<Vec<RuleMessage>, KernelError> {
        let dump = self.handle.rule().get(family.ip_version()).execute();
        match self.list(Operation::ListRules { family }, dump).await {
            Ok(mut rules) => {
                rules.retain(|rule| message::is_our_rule(family, rule));
                Ok(rules)
            }
            Err(error) => without_ipv6(family, error).map(|()| Vec::new()),
        }
    }

    async fn index_for(&self, interface: &str, operation: &Operation) -> Result<u32, KernelError> {
        self.interface_index(interface).await?.ok_or_else(|| KernelError::NoInterface { operation: operation.clone() })
    }

    /// Waits for the kernel's answer to `operation`.
    async fn answer<T>(&self, operation: Operation, answer: impl Future<Output = Result<T, rtnetlink::Error>>) -> Result<T, KernelError> {
        self.judge(operation, timeout(TIME_LIMIT, answer).await)
    }

    /// Waits for all that the kernel lists in answer to `operation`.
    async fn list<T>(&self, operation: Operation, dump: impl Stream<Item = Result<T, rtnetlink::Error>>) -> Result<Vec<T>, KernelError> {
        self.judge(operation, listed(dump, TIME_LIMIT).await)
    }

    /// When the connection's task dies, rtnetlink ends the answer as if the kernel had agreed, so an answer counts only
    /// while the task lives.
    fn judge<T>(&self, operation: Operation, answer: Result<Result<T, rtnetlink::Error>, Elapsed>) -> Result<T, KernelError> {
        match answer {
            Ok(Ok(_)) if self.connection.is_finished() => Err(KernelError::Closed { operation }),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(KernelError::refused(operation, error)),
            Err(_) => Err(silent(operation)),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Collects a dump. `limit` is for each of its messages: how long a whole one takes depends on what others have in the
/// kernel, a full table of the Internet for one.
async fn listed<T>(
    dump: impl Stream<Item = Result<T, rtnetlink::Error>>,
    limit: Duration,
) -> Result<Result<Vec<T>, rtnetlink::Error>, Elapsed> {
    let mut dump = pin!(dump);
    let mut listed = Vec::new();
    loop {
        match timeout(limit, dump.try_next()).await? {
            Ok(Some(message)) => listed.push(message),
            Ok(None) => return Ok(Ok(listed)),
            Err(error) => return Ok(Err(error)),
        }
    }
}

fn silent(operation: Operation) -> KernelError {
    let text = format!("the kernel has not answered within {} s", TIME_LIMIT.as_secs());
    KernelError::Refused { operation, source: io::Error::new(io::ErrorKind::TimedOut, text) }
}

/// Whether the cause of a failure lets nothing else succeed, or makes each of many wait for its time limit.
fn concerns_all(error: &KernelError) -> bool {
    matches!(error, KernelError::NotPermitted { .. } | KernelError::Closed { .. }) || error.is(io::ErrorKind::TimedOut)
}

fn say_installed(route: &Route, lines: Lines) {
    let (prefix, next_hop, metric) = (route.prefix(), route.next_hop(), route.metric());
    match lines {
        Lines::Each => info!(%prefix, %next_hop, metric, "route installed"),
        Lines::Sum => debug!(%prefix, %next_hop, metric, "route installed"),
    }
}

fn say_removed(route: &KernelRoute, lines: Lines) {
    let KernelRoute { prefix, metric, next_hop, .. } = *route;
    match lines {
        Lines::Each => info!(%prefix, ?next_hop, metric, "route removed"),
        Lines::Sum => debug!(%prefix, ?next_hop, metric, "route removed"),
    }
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| if let LinkAttribute::IfName(name) = attribute { Some(name.clone()) } else { None })
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| if let LinkAttribute::Mtu(mtu) = attribute { Some(*mtu) } else { None })
}

/// Passes over the refusal of IPv6 by a kernel that has none: there is nothing to route and nothing to leak.
fn without_ipv6(family: Family, error: KernelError) -> Result<(), KernelError> {
    if family == Family::V6 && error.is_unknown_family() {
        debug!("this kernel has no IPv6");
        Ok(())
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use futures_util::stream;

    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_dump_is_collected_to_its_end() {
        let dump = stream::iter([Ok(1), Ok(2)]);
        assert!(matches!(listed(dump, SHORT).await, Ok(Ok(numbers)) if numbers == [1, 2]));
    }

    #[tokio::test]
    async fn a_dump_that_the_kernel_breaks_off_is_not_taken_for_whole() {
        let dump = stream::iter([Ok(1), Err(rtnetlink::Error::RequestFailed), Ok(2)]);
        assert!(matches!(listed(dump, SHORT).await, Ok(Err(rtnetlink::Error::RequestFailed))));
    }

    #[tokio::test]
    async fn a_kernel_that_falls_silent_is_not_waited_for_for_ever() {
        let dump = stream::iter([Ok(1)]).chain(stream::pending());
        assert!(listed(dump, SHORT).await.is_err());
    }

    #[test]
    fn silence_is_named_and_ends_the_changes() {
        let error = silent(Operation::ListInterfaces);
        assert!(concerns_all(&error));
        let KernelError::Refused { operation, source } = error else { panic!("another error") };
        assert_eq!(format!("cannot {operation}: {source}"), "cannot list the interfaces: the kernel has not answered within 5 s");
    }

    #[test]
    fn one_refused_route_does_not_keep_the_others_out() {
        let taken = io::Error::from(io::ErrorKind::AlreadyExists);
        assert!(!concerns_all(&KernelError::Refused { operation: Operation::ListInterfaces, source: taken }));
        assert!(concerns_all(&KernelError::Closed { operation: Operation::ListInterfaces }));
    }

    #[test]
    fn reads_name_and_mtu_of_a_link() {
        let mut link = LinkMessage::default();
        assert_eq!((name(&link), mtu(&link)), (None, None));
        link.attributes = vec![LinkAttribute::Mtu(1420), LinkAttribute::IfName("sky0".to_owned())];
        assert_eq!((name(&link), mtu(&link)), (Some("sky0".to_owned()), Some(1420)));
    }
}
