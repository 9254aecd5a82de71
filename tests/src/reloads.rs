//! Reloads, one after the other, under traffic: the short suite makes some of them, the long one very many.

use crate::keys::Keys;
use crate::wire::{SOON, Shape, Way, Wire};
use crate::{replaced, seconds};

/// After so many a running gateway has all the memory that it will need.
const WARM: u32 = 50;
/// What an allocator may keep in between without anything being lost to it.
const SLACK_KIB: u64 = 4096;

/// Adds and removes a peer, `count` times in all, while packets go both ways: none of them is lost, and the gateway has
/// no more memory and descriptors at the end than it had when it was warm.
#[track_caller]
pub fn assert_reloads_leave_nothing(count: u32) {
    let wire = Wire::up(Shape::PLAIN);
    let second = format!("    peers:\n      second: {{ public_key: \"{}\", allowed_ips: [10.77.0.0/16] }}\n", Keys::generate().public);
    let with_second = replaced(&wire.here.yaml, "    peers:\n", &second);
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 200));
    for flow in &flows {
        flow.wait_until_it_flows(SOON);
    }
    let generation = wire.here.gateway.generation();
    let handshake = |wire: &Wire| wire.here.peer()["last_handshake_unix"].as_u64();
    let (session, mut warm) = (handshake(&wire), None);
    for number in 0..count {
        wire.here.gateway.write(if number.is_multiple_of(2) { &with_second } else { &wire.here.yaml });
        wire.here.gateway.reload().success();
        if number == WARM {
            warm = Some(wire.here.footprint());
        }
    }
    let (warm, last) = (warm.expect("more reloads than it takes to be warm"), wire.here.footprint());
    assert_eq!(wire.here.gateway.generation(), generation + u64::from(count));
    assert_eq!(last.descriptors, warm.descriptors, "{warm:?} {last:?}");
    assert!(last.resident_kib <= warm.resident_kib + SLACK_KIB, "{warm:?} {last:?}");
    if count < 1000 {
        // In less than two minutes: the session was kept, not made anew.
        assert_eq!(handshake(&wire), session);
    }
    for flow in flows {
        flow.wait_until_it_flows(seconds(2));
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
}
