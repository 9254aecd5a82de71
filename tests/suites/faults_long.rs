//! Faults that take minutes; faults.rs has the short ones. Run by `tests/run --long`.

use std::time::Duration;

use tests::impairment::Settings;
use tests::report::{NAMESPACES, machine_has};
use tests::seconds;
use tests::wire::{Shape, Way, Wire};

const MB: u64 = 1_000_000;
/// After an outage: at most one retry of a handshake, which comes every five seconds, and what it then takes.
const BACK: Duration = seconds(7);

fn possible() -> bool {
    machine_has(NAMESPACES)
}

/// Cuts the wire for `outage` while packets go both ways and a transfer is under way.
#[track_caller]
fn assert_outage_is_survived(outage: Duration, back: Duration) {
    let wire = Wire::up(Shape::PLAIN);
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 100));
    for flow in &flows {
        flow.wait_until_it_flows(seconds(10));
    }
    let transfer = wire.paced_transfer(Way::HereToThere, 40 * MB, Some(10 * MB));
    transfer.wait_until_received(2 * MB, seconds(30));
    wire.impairment().flap(1, outage, Duration::ZERO);
    wire.impairment().wait_until_flaps_are_over(outage + seconds(10));
    for flow in &flows {
        flow.wait_until_it_flows(back);
    }
    assert!(transfer.is_under_way(), "the outage fell into it");
    // TCP itself tries again after two minutes at most.
    transfer.finish(seconds(300));
    for flow in flows {
        let report = flow.finish();
        assert!(report.longest_gap < outage + back, "{report:?}");
        assert_eq!(report.duplicated, 0, "{report:?}");
    }
}

#[test]
#[ignore = "takes minutes: tests/run --long"]
fn an_outage_of_thirty_seconds_is_over_when_the_wire_is_back() {
    if !possible() {
        return;
    }
    // The session still stands, so nothing has to be agreed.
    assert_outage_is_survived(seconds(30), seconds(3));
}

/// Longer than a session lives (180 s) and than a handshake is tried (90 s).
#[test]
#[ignore = "takes minutes: tests/run --long"]
fn an_outage_longer_than_a_session_is_over_within_seconds_of_the_wires_return() {
    if !possible() {
        return;
    }
    assert_outage_is_survived(seconds(200), BACK);
}

/// As when the machine was suspended.
#[test]
#[ignore = "takes minutes: tests/run --long"]
fn a_gateway_that_stood_still_for_minutes_carries_again_within_seconds() {
    if !possible() {
        return;
    }
    const PACKETS_PER_SECOND: u32 = 50;
    let mut wire = Wire::up(Shape::PLAIN);
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, PACKETS_PER_SECOND));
    for flow in &flows {
        flow.wait_until_it_flows(seconds(10));
    }
    wire.there.signal("STOP");
    // The flow is the clock.
    flows[0].wait_until_sent(200 * u64::from(PACKETS_PER_SECOND), seconds(300));
    wire.there.signal("CONT");
    for flow in &flows {
        flow.wait_until_it_flows(BACK);
    }
    assert!(wire.there.gateway.is_running());
    wire.transfer(Way::HereToThere, 5 * MB).finish(seconds(60));
}

#[test]
#[ignore = "takes minutes: tests/run --long"]
fn a_hundred_megabytes_over_a_wire_that_loses_one_in_twenty_arrive_whole() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    wire.impairment().both(Settings { loss: 0.05, ..Settings::CLEAN });
    wire.transfer(Way::HereToThere, 100 * MB).finish(seconds(900));
    wire.assert_wires_are_sound();
}

#[test]
#[ignore = "takes minutes: tests/run --long"]
fn twenty_megabytes_over_a_wire_that_loses_one_in_five_arrive_whole() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    wire.impairment().both(Settings { loss: 0.2, ..Settings::CLEAN });
    wire.transfer(Way::HereToThere, 20 * MB).finish(seconds(900));
    wire.assert_wires_are_sound();
}

/// Everything at once, as bad as a path can be and still be one.
#[test]
#[ignore = "takes minutes: tests/run --long"]
fn a_wire_with_every_fault_at_once_still_carries_a_transfer_whole() {
    if !possible() {
        return;
    }
    let every = Settings {
        loss: 0.02,
        duplicate: 0.05,
        reorder: 0.05,
        depth: 16,
        corrupt: 0.01,
        delay: Duration::from_millis(10),
        jitter: Duration::from_millis(5),
        drop_larger: Some(1368),
        ..Settings::CLEAN
    };
    for seed in 1..=3 {
        let wire = Wire::up(Shape { seed, ..Shape::PLAIN });
        wire.impairment().both(every);
        let transfers = [Way::HereToThere, Way::ThereToHere].map(|way| wire.transfer(way, 20 * MB));
        for transfer in transfers {
            transfer.finish(seconds(600));
        }
        wire.assert_wires_are_sound();
    }
}

#[test]
#[ignore = "takes minutes: tests/run --long"]
fn ten_thousand_reloads_under_traffic_lose_nothing_and_leave_nothing() {
    if !possible() {
        return;
    }
    tests::reloads::assert_reloads_leave_nothing(10_000);
}
