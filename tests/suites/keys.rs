//! Keys that change while packets flow: a gateway's own key, announced to its peer, and the preshared key, by reload and by
//! their watched files. Files that cannot be used change nothing. No packet is lost by any of it.
//!
//! The steps are those of docs/operations.md, "Changing keys". Left out: a key that was not announced, and a preshared key
//! that is changed at one side alone, which cost the session in the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tests::flow::Flow;
use tests::keys::{Keys, preshared};
use tests::report::{NAMESPACES, machine_has};
use tests::skyway::Gateway;
use tests::wire::{SOON, Shape, Side, Way, Wire};
use tests::{replaced, seconds, wait_for};

const REFUSED: &str = "a secret has changed and cannot be used";
const TAKEN: &str = "a secret has changed and is in use";
/// What somebody may put into a file by mistake.
const RUBBISH: &str = "hunter2, which is no key";

fn possible() -> bool {
    machine_has(NAMESPACES)
}

/// How a gateway gets to know that a file of it has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notice {
    Reload,
    /// It looks by itself, every two seconds.
    Watch,
}

/// Numbered packets both ways, which flow when this returns.
#[track_caller]
fn flows(wire: &Wire) -> [Flow; 2] {
    let flows = [Way::HereToThere, Way::ThereToHere].map(|way| wire.flow(way, 200));
    for flow in &flows {
        flow.wait_until_it_flows(SOON);
    }
    flows
}

#[track_caller]
fn assert_nothing_was_lost(flows: [Flow; 2]) {
    for flow in flows {
        flow.wait_until_it_flows(seconds(5));
        let report = flow.finish();
        assert_eq!((report.lost, report.duplicated), (0, 0), "{report:?}");
    }
}

/// Puts a secret in the place of another, in one go.
#[track_caller]
fn replace_secret(gateway: &Gateway, file: &str, text: &str) {
    let beside = format!("{file}.next");
    gateway.write_secret(&beside, text);
    fs::rename(gateway.folder().join(beside), gateway.folder().join(file)).expect("the secret put in place");
}

/// The public key of a side's only tunnel.
#[track_caller]
fn own_key(side: &Side) -> String {
    side.gateway.status()["tunnels"][0]["public_key"].as_str().expect("status tells the key").to_owned()
}

#[track_caller]
fn handshake(side: &Side) -> u64 {
    side.peer()["last_handshake_unix"].as_u64().expect("a handshake")
}

/// What must stay as it is while a secret cannot be used.
#[track_caller]
fn standing(wire: &Wire) -> Vec<Value> {
    let names = ["state", "endpoint", "last_handshake_unix", "trouble"];
    let of_peer = |side: &Side| {
        let peer = side.peer();
        names.map(|name| peer[name].clone())
    };
    [&wire.here, &wire.there].into_iter().flat_map(of_peer).collect()
}

/// Waits until the log has `words` so often.
#[track_caller]
fn wait_for_words(side: &Side, words: &str, times: usize) {
    let what = format!("the log of {} says {words:?}, {times} times", side.name);
    wait_for(&what, SOON, || side.gateway.log().matches(words).count() >= times);
}

/// Step 2: the key that `own` will change to is announced at `peer`.
#[track_caller]
fn announce(own: &Side, peer: &Side, new: &Keys) {
    let old = format!("public_key: \"{}\"\n", own.keys.public);
    let announced = format!("{old}        next_public_key: \"{}\"\n", new.public);
    peer.gateway.write(&replaced(&peer.yaml, &old, &announced));
    peer.gateway.reload().success();
    assert_eq!(peer.peer()["uses_next_key"], false);
}

/// Steps 4 and 5, once `own` has its new key: it has arrived at `peer`, which then knows it alone.
#[track_caller]
fn conclude(own: &mut Side, peer: &mut Side, new: Keys) {
    wait_for(&format!("{} uses the next key", peer.name), SOON, || peer.peer()["uses_next_key"] == true);
    let session = handshake(peer);
    peer.yaml = replaced(&peer.yaml, &own.keys.public, &new.public);
    peer.gateway.write(&peer.yaml);
    peer.gateway.reload().success();
    wait_for(&format!("{} knows the new key alone", peer.name), seconds(5), || {
        let seen = peer.peer();
        seen["public_key"] == new.public.as_str() && seen["uses_next_key"] == false
    });
    assert_eq!(handshake(peer), session, "the session stays");
    assert_eq!(peer.peer()["state"], "up");
    own.keys = new;
}

/// All steps: `own` gets a new key, which `peer` is told of before.
#[track_caller]
fn rotate(own: &mut Side, peer: &mut Side, notice: Notice) {
    let new = Keys::generate();
    announce(own, peer, &new);
    replace_secret(&own.gateway, "key", &new.private);
    if notice == Notice::Reload {
        own.gateway.reload().success();
    }
    wait_for(&format!("the new key of {} is in use", own.name), seconds(5), || own_key(own) == new.public);
    wait_for_words(own, "private key of tunnel sky changes", 1);
    conclude(own, peer, new);
}

#[test]
fn an_announced_key_is_changed_by_reload_from_either_end_without_a_loss() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape::PLAIN);
    let flows = flows(&wire);
    rotate(&mut wire.here, &mut wire.there, Notice::Reload);
    rotate(&mut wire.there, &mut wire.here, Notice::Reload);
    // And again: what was the next key is a key like any other.
    rotate(&mut wire.here, &mut wire.there, Notice::Reload);
    assert_nothing_was_lost(flows);
    for side in [&wire.here, &wire.there] {
        wait_for(&format!("{} has no problem", side.name), SOON, || side.gateway.verdict() == "up");
    }
}

#[test]
fn a_side_that_has_no_endpoints_changes_its_key_without_a_loss() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape { there_knows_here: false, ..Shape::PLAIN });
    let flows = flows(&wire);
    rotate(&mut wire.there, &mut wire.here, Notice::Reload);
    rotate(&mut wire.here, &mut wire.there, Notice::Reload);
    assert_nothing_was_lost(flows);
}

#[test]
fn a_key_file_that_is_replaced_is_taken_by_itself_without_a_loss() {
    if !possible() {
        return;
    }
    for lanes in [1, 2] {
        let mut wire = Wire::up(Shape { lanes, ..Shape::PLAIN });
        for side in [&wire.here, &wire.there] {
            wait_for("every lane has its session", SOON, || side.gateway.verdict() == "up");
        }
        let flows = flows(&wire);
        rotate(&mut wire.here, &mut wire.there, Notice::Watch);
        rotate(&mut wire.there, &mut wire.here, Notice::Watch);
        assert_nothing_was_lost(flows);
    }
}

#[test]
fn preshared_key_files_replaced_one_after_the_other_lose_nothing() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    let flows = flows(&wire);
    for (round, [first, second]) in [[&wire.here, &wire.there], [&wire.there, &wire.here]].into_iter().enumerate() {
        let before = handshake(first).max(handshake(second));
        // Status tells whole seconds: the next handshake must be in another one.
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock past 1970").as_secs();
        wait_for("the second of the handshake is over", seconds(5), || now() > before);
        let key = preshared();
        for side in [first, second] {
            replace_secret(&side.gateway, "psk", &key);
            wait_for_words(side, TAKEN, round + 1);
        }
        for side in [first, second] {
            wait_for(&format!("a new session at {}", side.name), SOON, || {
                let peer = side.peer();
                peer["state"] == "up" && peer["trouble"].is_null() && peer["last_handshake_unix"].as_u64() > Some(before)
            });
        }
    }
    assert_nothing_was_lost(flows);
}

#[test]
fn a_secret_that_is_rubbish_changes_nothing_and_a_right_one_after_it_is_taken() {
    if !possible() {
        return;
    }
    let mut wire = Wire::up(Shape::PLAIN);
    let flows = flows(&wire);
    let new = Keys::generate();
    announce(&wire.here, &wire.there, &new);
    let (before, generation) = (standing(&wire), wire.here.gateway.generation());

    for (number, (file, right)) in [("psk", &wire.preshared_key), ("key", &wire.here.keys.private)].into_iter().enumerate() {
        replace_secret(&wire.here.gateway, file, RUBBISH);
        wait_for_words(&wire.here, REFUSED, number + 1);
        wire.here.gateway.reload().failure(1);
        for flow in &flows {
            flow.wait_until_it_flows(seconds(5));
        }
        assert_eq!(standing(&wire), before, "{file}");
        // What it was before is no news.
        replace_secret(&wire.here.gateway, file, right);
        wire.here.gateway.reload().success();
        assert_eq!(wire.here.gateway.generation(), generation, "{file}");
    }
    assert!(!wire.here.gateway.log().contains(RUBBISH), "the log shows a secret:\n{}", wire.here.gateway.log());
    assert_eq!(own_key(&wire.here), wire.here.keys.public);

    replace_secret(&wire.here.gateway, "key", RUBBISH);
    wait_for_words(&wire.here, REFUSED, 3);
    replace_secret(&wire.here.gateway, "key", &new.private);
    wait_for("the right key is in use", seconds(5), || own_key(&wire.here) == new.public);
    wait_for_words(&wire.here, TAKEN, 1);
    conclude(&mut wire.here, &mut wire.there, new);
    assert_nothing_was_lost(flows);
}

#[test]
fn a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it() {
    if !possible() {
        return;
    }
    let wire = Wire::up(Shape::PLAIN);
    let flows = flows(&wire);
    let (before, generation) = (standing(&wire), wire.here.gateway.generation());
    for (number, file) in ["key", "psk"].into_iter().enumerate() {
        let path = wire.here.gateway.folder().join(file);
        let chmod = |mode: u32| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the mode set");
        let command = format!("chmod 600 {}", path.display());
        chmod(0o644);
        wait_for_words(&wire.here, REFUSED, number + 1);
        wait_for_words(&wire.here, &command, 1);
        let refused = wire.here.gateway.reload().failure(1);
        assert!(refused.contains(&command), "{refused}");
        for flow in &flows {
            flow.wait_until_it_flows(seconds(5));
        }
        assert_eq!(standing(&wire), before, "{file}");
        chmod(0o600);
        wire.here.gateway.reload().success();
    }
    assert_eq!(standing(&wire), before);
    assert_eq!(wire.here.gateway.generation(), generation);
    assert_nothing_was_lost(flows);
}
