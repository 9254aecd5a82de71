//! Who may ask for a handshake, and how often, before any of it costs an elliptic curve.
//!
//! ```text
//!  initiation ─► mac1 right? ─► from an endpoint that is configured, and its bucket is not empty ──► answered, whatever the load
//!                          └──► from elsewhere: the sender's bucket ─► not empty: answered unless under load; then as below
//!                                                                  └─► empty: a cookie goes back. Who asks again with it is
//!                                                                      where he says, and has a bucket that nobody else empties
//! ```
//! The buckets stop one sender that asks too often; the cookie (whitepaper §5.3) tells him from senders that are not where they
//! say, and costs a tenth of an answer.
//!
//! The table has a fixed size and is written over: under a flood of invented addresses a sender may find its bucket taken
//! by another and full again. That costs no more than the cookie behind it.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Senders that are remembered; 16 bytes and an instant each.
const SLOTS: usize = 4096;
/// Handshakes of one stranger at once, and each second: as Linux's WireGuard allows (ratelimiter.c: 20 a second, 5 at once), with
/// a quarter of its rate, because a gateway's peers are few.
const STRANGER: Rate = Rate { burst: 5, each: Duration::from_millis(200) };
/// Of a configured endpoint. Several lanes and peers may share an address behind one NAT.
const CONFIGURED: Rate = Rate { burst: 20, each: Duration::from_millis(50) };

/// What becomes of an initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Answered even under load.
    Trusted,
    /// Answered unless under load.
    Stranger,
    /// Has to show that it is where it says.
    TooMany,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    /// A token comes back so often.
    each: Duration,
}

#[derive(Debug)]
pub(crate) struct Gate {
    buckets: Box<[Option<Bucket>]>,
    hasher: RandomState,
    /// Addresses of configured endpoints, sorted.
    configured: Vec<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Class {
    Configured,
    Stranger,
    /// Showed a cookie.
    Proven,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    sender: IpAddr,
    class: Class,
    tokens: u32,
    filled: Instant,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![None; SLOTS].into_boxed_slice(), hasher: RandomState::new(), configured: Vec::new() }
    }

    /// The addresses at which peers are configured to be.
    pub(crate) fn set_configured(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        self.configured.clear();
        self.configured.extend(addresses);
        self.configured.sort_unstable();
        self.configured.dedup();
    }

    /// Takes a token of the sender of an initiation.
    pub(crate) fn admit(&mut self, from: IpAddr, now: Instant) -> Admission {
        if self.configured.binary_search(&from).is_ok() && self.take(from, Class::Configured, CONFIGURED, now) {
            return Admission::Trusted;
        }
        // Whoever empties the bucket of a configured address by pretending to be there leaves the peer a stranger's way.
        if self.take(site(from), Class::Stranger, STRANGER, now) { Admission::Stranger } else { Admission::TooMany }
    }

    /// The same for one that showed a cookie; false: too many even so.
    pub(crate) fn admit_proven(&mut self, from: IpAddr, now: Instant) -> bool {
        self.take(site(from), Class::Proven, CONFIGURED, now)
    }

    fn take(&mut self, sender: IpAddr, class: Class, rate: Rate, now: Instant) -> bool {
        let at = self.hasher.hash_one((sender, class)) as usize % SLOTS;
        let Some(slot) = self.buckets.get_mut(at) else { return true };
        let fresh = Bucket { sender, class, tokens: rate.burst, filled: now };
        let bucket = match slot {
            Some(bucket) if bucket.sender == sender && bucket.class == class => bucket,
            _ => slot.insert(fresh),
        };
        let back = now.saturating_duration_since(bucket.filled).as_nanos() / rate.each.as_nanos();
        if back > 0 {
            bucket.tokens = bucket.tokens.saturating_add(u32::try_from(back).unwrap_or(u32::MAX)).min(rate.burst);
            bucket.filled = now;
        }
        if bucket.tokens == 0 {
            return false;
        }
        bucket.tokens -= 1;
        true
    }
}

/// What one sender can be taken for: an IPv4 address, or the /64 that an IPv6 host chooses its own addresses in.
fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_stranger_that_asks_too_often_waits_for_its_tokens() {
        let (mut gate, now) = (Gate::new(), Instant::now());
        let from = ip("192.0.2.1");
        for _ in 0..5 {
            assert_eq!(gate.admit(from, now), Admission::Stranger);
        }
        assert_eq!(gate.admit(from, now), Admission::TooMany);
        assert_eq!(gate.admit(from, now + Duration::from_millis(200)), Admission::Stranger);
        assert_eq!(gate.admit(from, now + Duration::from_millis(210)), Admission::TooMany);
        assert_eq!(gate.admit(ip("192.0.2.2"), now), Admission::Stranger, "another's bucket is its own");
    }

    #[test]
    fn one_ipv6_site_has_one_bucket() {
        let (mut gate, now) = (Gate::new(), Instant::now());
        for host in 0..5u128 {
            let from = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | host));
            assert_eq!(gate.admit(from, now), Admission::Stranger);
        }
        assert_eq!(gate.admit(ip("2001:db8::99"), now), Admission::TooMany);
        assert_eq!(gate.admit(ip("2001:db8:0:1::99"), now), Admission::Stranger);
    }

    #[test]
    fn a_configured_endpoint_is_trusted_until_its_bucket_is_empty() {
        let (mut gate, now) = (Gate::new(), Instant::now());
        let from = ip("192.0.2.1");
        gate.set_configured([from, from].into_iter());
        for _ in 0..20 {
            assert_eq!(gate.admit(from, now), Admission::Trusted);
        }
        assert_eq!(gate.admit(from, now), Admission::Stranger);
    }

    #[test]
    fn a_sender_that_showed_a_cookie_has_a_bucket_that_invented_ones_do_not_empty() {
        let (mut gate, now) = (Gate::new(), Instant::now());
        let from = ip("192.0.2.1");
        while gate.admit(from, now) != Admission::TooMany {}
        for _ in 0..20 {
            assert!(gate.admit_proven(from, now));
        }
        assert!(!gate.admit_proven(from, now));
    }

    #[test]
    fn invented_senders_cannot_make_it_grow() {
        let (mut gate, now) = (Gate::new(), Instant::now());
        for number in 0..100_000u32 {
            assert_ne!(gate.admit(IpAddr::V4(number.into()), now), Admission::Trusted);
        }
        assert_eq!(gate.buckets.len(), SLOTS);
    }
}
