//! What the gateway puts into this host's kernel for its TUN tunnels: kill switch, inward filter, addresses, routes.
//!
//! Opened in an order in which nothing can leak: first the kill switch and the filter, then what lets traffic pass. It is
//! all idempotent, and held against the kernel again and again, because others write there too.

use std::collections::HashSet;
use std::error::Error as _;
use std::net::IpAddr;

use ipnet::IpNet;
use routing::io::{Kernel, KernelError, nft};
use routing::{Fib, InvalidInterface, Route, render};
use tracing::{error, info, warn};
use tunnel::TunnelSettings;
use tunnel::io::{Tun, TunError};

use crate::config::Settings;
use crate::forwarding;

pub(crate) struct Host {
    kernel: Kernel,
    _claim: Claim,
    /// What was last brought into the kernel, and what maintenance holds it against. Made at the start and by a reload
    /// alone: of a hundred thousand prefixes it takes longer than what maintenance does otherwise.
    fib: Fib,
    waiting: Vec<Route>,
    /// The last maintenance failed; said once.
    failing: bool,
    /// Maintenances so far.
    turns: u64,
}

/// Every so many maintenances the filter is looked at: that takes a process of its own.
const FILTER_TURNS: u64 = 5;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("routes: {}", with_cause(.0))]
    Kernel(#[from] KernelError),
    #[error("inward filter: {0}")]
    Nft(#[from] nft::NftError),
    #[error("inward filter: {0}")]
    Filter(#[from] InvalidInterface),
    #[error(
        "another skyway with TUN tunnels runs in this network namespace: the two would remove each other's routes; \
         give all tunnels to one gateway, or run the other in a namespace of its own or in userspace mode"
    )]
    Taken,
    #[error("{0}")]
    Claim(TunError),
}

/// Holds table and rule of this network namespace for one gateway, as long as it lives.
pub(crate) struct Claim(#[expect(dead_code, reason = "held for its lifetime alone")] Vec<Tun>);

/// A device that is never set up. Only who may change routes can make it, it is the namespace's own, and it goes with its
/// process whatever ends that.
const CLAIM: &str = "skyway-lock";

impl Claim {
    pub(crate) fn take() -> Result<Self, HostError> {
        match Tun::create(CLAIM, 1) {
            Ok(device) => Ok(Self(device)),
            Err(TunError::Busy { .. }) => Err(HostError::Taken),
            // Where no device can be made, nobody has one.
            Err(TunError::Open { .. }) => Ok(Self(Vec::new())),
            Err(error) => Err(HostError::Claim(error)),
        }
    }
}

impl Host {
    /// Finds out whether the kernel can be asked at all. Changes nothing.
    pub(crate) async fn prepare() -> Result<Self, HostError> {
        let claim = Claim::take()?;
        nft::apply("").await?;
        Ok(Self { kernel: Kernel::open()?, _claim: claim, fib: Fib::default(), waiting: Vec::new(), failing: false, turns: 0 })
    }

    /// Routes that wait for their tunnel's device.
    pub(crate) fn waiting(&self) -> &[Route] {
        &self.waiting
    }

    /// Kill switch, filter, addresses, routes. If a later one fails, the kill switch stands.
    pub(crate) async fn open(&mut self, settings: &Settings, tun: &[&TunnelSettings]) -> Result<(), HostError> {
        self.kernel.ensure_rules().await?;
        self.kernel.reconcile(&forwarding::kill_switch(settings, tun)).await?;
        self.filter(settings, tun).await?;
        for tunnel in tun {
            self.kernel.set_addresses(&tunnel.name, &tunnel.addresses).await?;
            self.kernel.set_up(&tunnel.name, tunnel.mtu).await?;
        }
        self.fib = forwarding::fib(settings, tun);
        self.reconcile().await?;
        warn_if_not_forwarding(settings);
        warn_if_strict(tun);
        self.warn_if_cut_off(tun).await;
        Ok(())
    }

    /// The filter and the routes of `desired`. On failure what was `running` is put back.
    pub(crate) async fn change(
        &mut self,
        running: &Settings,
        desired: &Settings,
        tun: (&[&TunnelSettings], &[&TunnelSettings]),
    ) -> Result<(), HostError> {
        let (before, after) = tun;
        if forwarding::inward_filter(running, before)? != forwarding::inward_filter(desired, after)? {
            self.filter(desired, after).await?;
        }
        let fib = forwarding::fib(desired, after);
        match self.kernel.reconcile(&fib).await {
            Ok(report) => {
                self.fib = fib;
                self.waiting = report.waiting;
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.reconcile().await {
                    error!(%error, "the routes from before the reload cannot be restored");
                }
                if let Err(error) = self.filter(running, before).await {
                    error!(%error, "the inward filter from before the reload cannot be restored");
                }
                Err(error.into())
            }
        }
    }

    /// A new MTU. Too small a one was refused long before, so that failing here is worth no more than a line;
    /// maintenance tries again.
    pub(crate) async fn set_mtu(&self, tunnel: &str, mtu: u32) {
        if let Err(error) = self.kernel.set_up(tunnel, mtu).await {
            error!(error = with_cause(&error), "MTU not set");
        }
    }

    /// Whether the filter is to be looked at before the [`Self::maintain`] that comes next: to be called once for each.
    ///
    /// Looking (`nft::is_loaded`) takes a process of its own, and ten seconds if it hangs. So it is the caller's, who can
    /// do it without holding what others wait for.
    pub(crate) fn filter_to_look_at(&mut self) -> bool {
        self.turns += 1;
        self.turns.is_multiple_of(FILTER_TURNS)
    }

    /// Puts back what somebody else changed. `filter_gone`: the filter was looked at, and it is not as it should be.
    pub(crate) async fn maintain(&mut self, settings: &Settings, tun: &[&TunnelSettings], filter_gone: bool) {
        let before = self.waiting.clone();
        let result = self.put_back(settings, tun, filter_gone).await;
        match result {
            Err(error) if !std::mem::replace(&mut self.failing, true) => error!(%error, "the kernel is not as it should be; trying again"),
            Err(_) => {}
            Ok(()) => self.failing = false,
        }
        say_what_waits(&missing(&self.waiting, &before), &missing(&before, &self.waiting));
    }

    /// Each part on its own: one that cannot be put back must not keep the kill switch from it.
    async fn put_back(&mut self, settings: &Settings, tun: &[&TunnelSettings], filter_gone: bool) -> Result<(), HostError> {
        let rules = self.kernel.ensure_rules().await.map_err(HostError::from);
        let routes = self.reconcile().await;
        let devices = self.put_back_addresses(tun).await;
        let filter = if filter_gone { self.put_back_filter(settings, tun).await } else { Ok(()) };
        rules.and(routes).and(devices).and(filter)
    }

    /// Addresses and MTU of each device that is up. One that is down is somebody's wish, and stays so.
    async fn put_back_addresses(&self, tun: &[&TunnelSettings]) -> Result<(), HostError> {
        let mtus = self.kernel.mtus().await?;
        let mut outcome = Ok(());
        for tunnel in tun {
            let Some(&present) = mtus.get(&tunnel.name) else { continue };
            let addresses = self.kernel.set_addresses(&tunnel.name, &tunnel.addresses).await;
            let mtu = if present == tunnel.mtu { Ok(()) } else { self.put_back_mtu(tunnel, present).await };
            outcome = outcome.and(addresses).and(mtu);
        }
        outcome.map_err(HostError::from)
    }

    async fn put_back_mtu(&self, tunnel: &TunnelSettings, present: u32) -> Result<(), KernelError> {
        self.kernel.set_up(&tunnel.name, tunnel.mtu).await?;
        info!(interface = tunnel.name, old = present, new = tunnel.mtu, "MTU put back");
        Ok(())
    }

    async fn put_back_filter(&self, settings: &Settings, tun: &[&TunnelSettings]) -> Result<(), HostError> {
        warn!("somebody removed the inward filter; it is put back");
        self.filter(settings, tun).await
    }

    async fn reconcile(&mut self) -> Result<(), HostError> {
        self.waiting = self.kernel.reconcile(&self.fib).await?.waiting;
        Ok(())
    }

    async fn filter(&self, settings: &Settings, tun: &[&TunnelSettings]) -> Result<(), HostError> {
        let filter = forwarding::inward_filter(settings, tun)?;
        Ok(nft::apply(&render::nft::inward_filter_script(&settings.gateway.name, &filter)).await?)
    }

    /// A prefix of a tunnel that holds a network of this host takes that network away from it.
    async fn warn_if_cut_off(&self, tun: &[&TunnelSettings]) {
        let Ok(interfaces) = self.kernel.interfaces_up().await else { return };
        let own = |name: &String| name == "lo" || tun.iter().any(|tunnel| tunnel.name == *name);
        for name in interfaces.keys().filter(|name| !own(name)) {
            for address in self.kernel.addresses(name).await.unwrap_or_default() {
                let swallows = |prefix: &IpNet| prefix.contains(&address.network());
                if let Some(prefix) = self.fib.unreachable().find(swallows) {
                    warn!(%prefix, interface = name, %address, "a prefix of the tunnel holds a network of this host, which is cut off by it: list what is behind the tunnel more exactly");
                }
            }
        }
    }
}

/// Those of `routes` that are not among `others`. In linear time: all routes of a tunnel begin to wait at once.
fn missing<'a>(routes: &'a [Route], others: &[Route]) -> Vec<&'a Route> {
    let others: HashSet<&Route> = others.iter().collect();
    routes.iter().filter(|route| !others.contains(route)).collect()
}

/// A line for each route, or one with their number.
fn say_what_waits(waiting: &[&Route], back: &[&Route]) {
    if waiting.len() > MANY_ROUTES {
        warn!(routes = waiting.len(), "the tunnel's device is down: its routes wait, the kill switch stands");
    } else {
        for route in waiting {
            warn!(prefix = %route.prefix(), next_hop = %route.next_hop(), "the tunnel's device is down: its routes wait, the kill switch stands");
        }
    }
    if back.len() > MANY_ROUTES {
        info!(routes = back.len(), "the tunnel's device is up again");
    } else {
        for route in back {
            info!(prefix = %route.prefix(), next_hop = %route.next_hop(), "the tunnel's device is up again");
        }
    }
}

/// From more routes than these on, a line for each would hide all else in the log.
const MANY_ROUTES: usize = 16;

/// A refusal and why, in one line: that a route could not be added says little without it.
fn with_cause(error: &KernelError) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Routes that lead through this host need it to forward; it is the operator's switch, so it is only said.
fn warn_if_not_forwarding(settings: &Settings) {
    let uses = |ipv4: bool| settings.routes.fixed.iter().any(|route| matches!(route.prefix, IpNet::V4(_)) == ipv4);
    for (used, name) in [(uses(true), "net.ipv4.ip_forward"), (uses(false), "net.ipv6.conf.all.forwarding")] {
        if used && sysctl(name) == Some(0) {
            warn!(setting = name, "this host does not forward packets: other hosts of the site cannot use the routes (sysctl -w {name}=1)");
        }
    }
}

/// Strict reverse-path filtering drops what an endpoint inside a routed prefix sends: its way back is the tunnel.
fn warn_if_strict(tun: &[&TunnelSettings]) {
    let inside = |tunnel: &&TunnelSettings| {
        let allowed: Vec<&IpNet> = tunnel.peers.iter().flat_map(|peer| peer.allowed_ips.iter()).collect();
        let endpoints = tunnel.peers.iter().flat_map(|peer| &peer.endpoints);
        endpoints
            .filter_map(|endpoint| endpoint.host.parse::<IpAddr>().ok())
            .any(|address| allowed.iter().any(|prefix| prefix.contains(&address)))
    };
    if tun.iter().any(inside) && sysctl("net.ipv4.conf.all.rp_filter") == Some(1) {
        warn!(
            setting = "net.ipv4.conf.all.rp_filter",
            "an endpoint lies inside the prefixes of its tunnel, and strict reverse-path filtering drops its answers (sysctl -w net.ipv4.conf.all.rp_filter=2)"
        );
    }
}

fn sysctl(name: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use routing::NextHop;
    use routing::io::Operation;

    use super::*;

    #[test]
    fn tells_which_routes_began_to_wait() {
        let route = |prefix: &str| Route::new(prefix.parse().expect("well formed"), NextHop::Interface("sky0".to_owned()), 100);
        let (before, now) = ([route("10.20.0.0/16"), route("10.30.0.0/16")], [route("10.30.0.0/16"), route("10.40.0.0/16")]);
        assert_eq!(missing(&now, &before), [&now[1]]);
        assert_eq!(missing(&before, &now), [&before[0]]);
    }

    #[test]
    fn an_error_of_the_kernel_says_why() {
        let source = std::io::Error::new(std::io::ErrorKind::TimedOut, "the kernel has not answered within 5 s");
        let refused = HostError::from(KernelError::Refused { operation: Operation::ListInterfaces, source });
        assert_eq!(refused.to_string(), "routes: cannot list the interfaces: the kernel has not answered within 5 s");
        let closed = HostError::from(KernelError::Closed { operation: Operation::ListInterfaces });
        assert_eq!(closed.to_string(), "routes: cannot list the interfaces: the netlink connection has ended");
    }
}
