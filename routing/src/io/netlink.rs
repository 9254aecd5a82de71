//! The kernel by rtnetlink: interfaces, addresses, routes and rules.
//!
//! Every method first asks what is there and then changes what differs, so calling it twice sends nothing the second
//! time. That is not only thrift: `replace` duplicates a rule, and adds a second route if the metric differs.

use std::collections::{BTreeSet, HashMap};
use std::io;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::RouteMessage;
use netlink_packet_route::rule::RuleMessage;
use rtnetlink::{Handle, LinkUnspec};
use tokio::task::JoinHandle;
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
    /// Outside a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Open)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The index of each interface that is up. A route through one that is down cannot be installed: it waits.
    pub async fn interfaces_up(&self) -> Result<HashMap<String, u32>, KernelError> {
        let links = self.handle.link().get().execute();
        let links: Vec<LinkMessage> = self.answer(Operation::ListInterfaces, links.try_collect()).await?;
        let up = links.into_iter().filter(|link| link.header.flags.contains(LinkFlags::Up));
        Ok(up.filter_map(name_and_index).collect())
    }

    /// The index of one interface, or none if there is no such interface.
    pub async fn interface_index(&self, interface: &str) -> Result<Option<u32>, KernelError> {
        let operation = Operation::FindInterface { interface: interface.to_owned() };
        let links = self.handle.link().get().match_name(interface).execute();
        let found = self.answer(operation, links.try_collect::<Vec<LinkMessage>>());
        match found.await {
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
            let dump = dump.try_collect::<Vec<RouteMessage>>();
            match self.answer(Operation::ListRoutes { family }, dump).await {
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
    /// A change that fails does not keep the others from being made; all failures are in the error.
    pub async fn reconcile(&self, desired: &Fib) -> Result<Report, KernelError> {
        let interfaces = self.interfaces_up().await?;
        let (kernel, messages): (Vec<_>, Vec<_>) = self.routes().await?.into_iter().unzip();
        let Reconciliation { changes, waiting } = reconcile(&kernel, desired, &interfaces);
        let mut report = Report { waiting, ..Report::default() };
        let mut failures = Vec::new();
        for change in changes {
            let outcome = match change {
                Change::Install { route, interface, replaces } => {
                    self.install(&route, interface, replaces.is_some()).await.map(|()| report.added.push(route))
                }
                Change::Remove { index } => {
                    self.remove(&kernel[index], messages[index].clone()).await.map(|()| report.removed.push(kernel[index]))
                }
            };
            match outcome {
                Ok(()) => {}
                // No other change can fare better.
                Err(error @ KernelError::NotPermitted { .. }) => return Err(error),
                Err(error) => failures.push(error),
            }
        }
        KernelError::gather(failures)?;
        Ok(report)
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

impl Kernel {
    async fn install(&self, route: &Route, interface: Option<u32>, replace: bool) -> Result<(), KernelError> {
        let operation = Operation::AddRoute { prefix: route.prefix(), metric: route.metric() };
        let mut request = self.handle.route().add(message::route_message(route, interface));
        if replace {
            request = request.replace();
        }
        self.answer(operation, request.execute()).await?;
        info!(prefix = %route.prefix(), next_hop = %route.next_hop(), metric = route.metric(), "route installed");
        Ok(())
    }

    /// Removes a route by the very message that the kernel gave: one that we build anew would have to get scope, type
    /// and protocol right to match.
    async fn remove(&self, route: &KernelRoute, dumped: RouteMessage) -> Result<(), KernelError> {
        let KernelRoute { prefix, metric, .. } = *route;
        let removal = self.handle.route().del(dumped).execute();
        let operation = Operation::RemoveRoute { prefix, metric };
        match self.answer(operation, removal).await {
            // Gone already: with its interface, usually.
            Err(error) if error.errno() == Some(ESRCH) => {}
            outcome => outcome?,
        }
        info!(%prefix, next_hop = ?route.next_hop, metric, "route removed");
        Ok(())
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
        let dump = request.execute().try_collect();
        self.answer(operation, dump).await
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
        let dump = dump.try_collect::<Vec<RuleMessage>>();
        match self.answer(Operation::ListRules { family }, dump).await {
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
    ///
    /// When the connection's task dies, rtnetlink ends the answer as if the kernel had agreed, so an answer counts only
    /// while the task lives.
    async fn answer<T>(&self, operation: Operation, answer: impl Future<Output = Result<T, rtnetlink::Error>>) -> Result<T, KernelError> {
        match answer.await {
            Ok(_) if self.connection.is_finished() => Err(KernelError::Closed { operation }),
            Ok(answer) => Ok(answer),
            Err(error) => Err(KernelError::refused(operation, error)),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn name_and_index(link: LinkMessage) -> Option<(String, u32)> {
    let index = link.header.index;
    for attribute in link.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            return Some((name, index));
        }
    }
    None
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
