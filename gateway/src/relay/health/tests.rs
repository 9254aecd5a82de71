//! What happens to a path, as tables with the time of each step; and what holds whatever happens.

use proptest::prelude::*;

use super::*;

const SEED: u64 = 7;
const GOOD: Step = Step::Good;
const BAD: Step = Step::Bad;

#[derive(Debug, Clone, Copy)]
enum Step {
    Good,
    Bad,
    Intercepted,
    SessionOk,
    SessionFailed,
}

/// A path and the clock that it is told.
struct Bench {
    health: PathHealth,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new(settings: HealthSettings) -> Self {
        let start = Instant::now();
        Self { health: PathHealth::new(settings, SEED, start), start, now: start }
    }

    /// Moves to the second `at` since the start, unless it is past, and does `step`.
    fn step(&mut self, at: u64, step: Step) {
        self.now = self.now.max(self.start + seconds(at));
        match step {
            Step::Good => self.health.handle_result(ProbeResult::Good { took: Duration::from_millis(40) }, self.now),
            Step::Bad => self.health.handle_result(ProbeResult::Failed("no answer".to_owned(), "tls_timeout"), self.now),
            Step::Intercepted => self.health.handle_result(ProbeResult::Intercepted { issuer: "Plant CA".to_owned() }, self.now),
            Step::SessionOk => self.health.handle_session(true, self.now),
            Step::SessionFailed => self.health.handle_session(false, self.now),
        }
    }

    /// Takes the path down and back, `at` being the second of the first failure. Returns the second of the return.
    fn fall_and_return(&mut self, at: u64) -> u64 {
        for second in 0..3 {
            self.step(at + second, BAD);
        }
        let back = at + 2 + self.health.snapshot().hold_down.as_secs();
        self.step(back, GOOD);
        self.step(back, GOOD);
        assert_eq!(self.state(), "up", "after the hold-down");
        back
    }

    fn state(&self) -> &'static str {
        self.health.snapshot().state
    }

    fn events(&mut self) -> Vec<HealthEvent> {
        std::iter::from_fn(|| self.health.poll_event()).collect()
    }
}

/// What it is about, and at which second comes what and leaves which state.
type Case = (&'static str, &'static [(u64, Step, &'static str)]);

#[test]
fn goes_through_its_states() {
    let cases: &[Case] = &[
        ("one good probe is enough at first", &[(0, GOOD, "up")]),
        ("two failures are not enough", &[(0, BAD, "unknown"), (5, BAD, "unknown"), (10, GOOD, "up")]),
        ("three are, also at first", &[(0, BAD, "unknown"), (5, BAD, "unknown"), (10, BAD, "down")]),
        ("only three in a row", &[(0, GOOD, "up"), (1, BAD, "up"), (2, BAD, "up"), (3, GOOD, "up"), (4, BAD, "up"), (5, BAD, "up")]),
        (
            "nothing brings it back before the hold-down is over",
            &[(0, BAD, "unknown"), (1, BAD, "unknown"), (2, BAD, "down"), (10, GOOD, "down"), (20, GOOD, "down"), (31, GOOD, "down")],
        ),
        (
            "then two good probes do",
            &[(0, BAD, "unknown"), (1, BAD, "unknown"), (2, BAD, "down"), (32, GOOD, "returning"), (37, GOOD, "up")],
        ),
        (
            "a failure on trial begins the hold-down again",
            &[
                (0, BAD, "unknown"),
                (1, BAD, "unknown"),
                (2, BAD, "down"),
                (32, GOOD, "returning"),
                (37, BAD, "down"),
                (66, GOOD, "down"),
                (67, GOOD, "returning"),
                (68, GOOD, "up"),
            ],
        ),
        (
            "interception counts as a failure, and no session outweighs it",
            &[
                (0, GOOD, "up"),
                (1, Step::Intercepted, "up"),
                (2, Step::Intercepted, "up"),
                (3, Step::SessionOk, "up"),
                (4, Step::Intercepted, "down"),
            ],
        ),
        (
            "a session that was opened outweighs failed probes",
            &[
                (0, GOOD, "up"),
                (1, BAD, "up"),
                (2, BAD, "up"),
                (3, Step::SessionOk, "up"),
                (4, BAD, "up"),
                (5, BAD, "up"),
                (6, BAD, "down"),
            ],
        ),
        (
            "sessions that fail count once a second, and the last strike is a probe's",
            &[
                (0, GOOD, "up"),
                (1, Step::SessionFailed, "up"),
                (1, Step::SessionFailed, "up"),
                (1, Step::SessionFailed, "up"),
                (2, Step::SessionFailed, "up"),
                (3, Step::SessionFailed, "up"),
                (4, Step::SessionFailed, "up"),
                (4, BAD, "down"),
            ],
        ),
        (
            "no session brings it back",
            &[
                (0, BAD, "unknown"),
                (1, BAD, "unknown"),
                (2, BAD, "down"),
                (40, Step::SessionOk, "down"),
                (41, Step::SessionOk, "down"),
                (42, Step::SessionOk, "down"),
            ],
        ),
    ];
    for (name, steps) in cases {
        let mut bench = Bench::new(HealthSettings::default());
        for (at, step, state) in *steps {
            bench.step(*at, *step);
            assert_eq!(bench.state(), *state, "{name}: at {at} s, {step:?}");
            assert_eq!(bench.health.is_usable(), ["unknown", "up"].contains(state), "{name}");
        }
    }
}

#[test]
fn tells_each_change_once() {
    let mut bench = Bench::new(HealthSettings::default());
    bench.step(0, GOOD);
    assert!(bench.events().is_empty(), "nobody asks how it was at first");
    for second in 1..6 {
        bench.step(second, BAD);
    }
    assert_eq!(bench.events(), [HealthEvent::WentDown { why: "no answer".to_owned(), reason: "tls_timeout" }]);
    bench.step(40, GOOD);
    bench.step(45, GOOD);
    bench.step(50, GOOD);
    assert_eq!(bench.events(), [HealthEvent::CameBack]);
    bench.step(60, Step::Intercepted);
    bench.step(61, Step::Intercepted);
    assert_eq!(bench.events(), [HealthEvent::Intercepted { issuer: "Plant CA".to_owned() }]);
    assert_eq!(bench.health.snapshot().intercepted_by.as_deref(), Some("Plant CA"));
    bench.step(62, GOOD);
    assert_eq!(bench.events(), [HealthEvent::NoLongerIntercepted]);
    assert_eq!(bench.health.snapshot().intercepted_by, None);
}

#[test]
fn interception_that_is_trusted_is_told_and_does_no_harm() {
    let mut bench = Bench::new(HealthSettings { trust_interception: true, ..HealthSettings::default() });
    for second in 0..5 {
        bench.step(second, Step::Intercepted);
    }
    assert_eq!(bench.state(), "up");
    assert_eq!(bench.events(), [HealthEvent::Intercepted { issuer: "Plant CA".to_owned() }]);
}

#[test]
fn a_snapshot_says_why_and_since_when() {
    let mut bench = Bench::new(HealthSettings::default());
    bench.step(3, GOOD);
    for second in 10..13 {
        bench.step(second, BAD);
    }
    let snapshot = bench.health.snapshot();
    assert_eq!(snapshot.since, bench.start + seconds(12));
    assert_eq!(snapshot.last_success, Some(bench.start + seconds(3)));
    assert_eq!(snapshot.took, Some(Duration::from_millis(40)));
    assert_eq!(snapshot.last_failure.as_deref(), Some("no answer"));
    bench.step(42, GOOD);
    assert_eq!(bench.health.snapshot().since, bench.start + seconds(12), "on trial it is still down since then");
}

#[test]
fn flaps_double_the_hold_down_up_to_a_limit_and_quiet_restores_it() {
    let mut bench = Bench::new(HealthSettings::default());
    bench.step(0, GOOD);
    let mut back = bench.fall_and_return(1);
    assert_eq!(bench.health.snapshot().hold_down, seconds(30), "the first fall is no flap");
    for hold_down in [60, 120, 240, 480, 600, 600] {
        back = bench.fall_and_return(back + 10);
        assert_eq!(bench.health.snapshot().hold_down, seconds(hold_down));
    }
    assert_eq!(bench.health.snapshot().flaps, 6);
    back = bench.fall_and_return(back + 400);
    assert_eq!(bench.health.snapshot().hold_down, seconds(600), "neither a flap nor quiet");
    bench.fall_and_return(back + 700);
    assert_eq!((bench.health.snapshot().hold_down, bench.health.snapshot().flaps), (seconds(30), 6));
}

#[test]
fn a_longer_hold_down_than_the_limit_stays_as_it_was_configured() {
    let mut bench = Bench::new(HealthSettings { hold_down: seconds(900), ..HealthSettings::default() });
    let back = bench.fall_and_return(0);
    bench.fall_and_return(back + 1);
    assert_eq!(bench.health.snapshot().hold_down, seconds(900));
}

#[test]
fn probes_come_at_once_at_first_and_quicker_in_doubt() {
    let mut bench = Bench::new(HealthSettings::default());
    assert_eq!(bench.health.poll_timeout(), bench.start);
    for (at, step, every) in [
        (0, BAD, 5_000),
        (5, GOOD, 30_000),
        (40, BAD, 5_000),
        (45, GOOD, 30_000),
        (80, BAD, 5_000),
        (85, BAD, 5_000),
        (90, BAD, 5_000),
        (95, GOOD, 5_000),
        (125, GOOD, 5_000),
        (130, GOOD, 30_000),
    ] {
        bench.step(at, step);
        let wait = bench.health.poll_timeout().duration_since(bench.now).as_millis();
        assert!((every * 9 / 10..=every * 11 / 10).contains(&wait), "at {at} s: {wait} ms, about {every} ms expected");
    }
}

#[test]
fn a_failed_session_brings_the_next_probe_forward() {
    let mut bench = Bench::new(HealthSettings::default());
    bench.step(0, GOOD);
    bench.step(2, Step::SessionFailed);
    let wait = bench.health.poll_timeout().duration_since(bench.now);
    assert!(wait <= Duration::from_millis(5_500), "{wait:?}");
}

#[test]
fn an_interval_of_nothing_is_none() {
    let mut bench = Bench::new(HealthSettings { every: Duration::ZERO, ..HealthSettings::default() });
    bench.step(0, GOOD);
    assert!(bench.health.poll_timeout() > bench.now);
}

#[test]
fn gateways_do_not_probe_together() {
    let now = Instant::now();
    let mut due: Vec<Instant> = (0..20)
        .map(|seed| {
            let mut health = PathHealth::new(HealthSettings::default(), seed, now);
            health.handle_result(ProbeResult::Good { took: Duration::ZERO }, now);
            health.poll_timeout()
        })
        .collect();
    due.sort_unstable();
    due.dedup();
    assert!(due.len() > 10, "{} different times of 20", due.len());
}

#[test]
fn readmits_by_a_ramp() {
    let mut bench = Bench::new(HealthSettings::default());
    let back = bench.fall_and_return(0);
    for (after_ms, share) in [(0u64, 100), (900, 100), (2_500, 250), (5_000, 500), (9_000, 900), (10_000, 1_000), (60_000, 1_000)] {
        let now = bench.start + seconds(back) + Duration::from_millis(after_ms);
        let admitted = (0..1_000).filter(|_| bench.health.admits(now)).count();
        assert!(admitted.abs_diff(share) <= 1, "{after_ms} ms after: {admitted} of 1000, {share} expected");
    }
}

#[test]
fn admits_all_without_a_fall_and_none_while_down() {
    let mut bench = Bench::new(HealthSettings::default());
    assert!((0..10).all(|_| bench.health.admits(bench.now)));
    for second in 0..3 {
        bench.step(second, BAD);
    }
    assert!((0..1_000).all(|_| !bench.health.admits(bench.now)));
    let mut at_once = Bench::new(HealthSettings { ramp: Duration::ZERO, ..HealthSettings::default() });
    at_once.fall_and_return(0);
    assert!((0..10).all(|_| at_once.health.admits(at_once.now)));
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Good),
        Just(Step::Bad),
        Just(Step::Bad),
        Just(Step::Intercepted),
        Just(Step::SessionOk),
        Just(Step::SessionFailed)
    ]
}

proptest! {
    #[test]
    fn is_not_usable_after_that_many_failures_in_a_row(
        failures in 1u32..5,
        steps in prop::collection::vec((0u64..400, any_step()), 1..80),
    ) {
        let mut bench = Bench::new(HealthSettings { failures, ..HealthSettings::default() });
        let (mut at, mut row) = (0, 0);
        for (pause, step) in steps {
            at += pause;
            bench.step(at, step);
            match step {
                Step::Good | Step::SessionOk => row = 0,
                Step::Bad | Step::Intercepted => row += 1,
                Step::SessionFailed => {}
            }
            prop_assert!(row < failures || !bench.health.is_usable(), "{} failures in a row", row);
            prop_assert!(bench.health.is_usable() || !bench.health.admits(bench.now));
        }
    }

    #[test]
    fn always_comes_back(
        successes in 1u32..5,
        steps in prop::collection::vec((0u64..400, any_step()), 0..80),
    ) {
        let mut bench = Bench::new(HealthSettings { successes, ..HealthSettings::default() });
        let mut at = 0;
        for (pause, step) in steps {
            at += pause;
            bench.step(at, step);
        }
        // No hold-down is longer.
        at += LONGEST_HOLD_DOWN.as_secs();
        for _ in 0..successes {
            bench.step(at, GOOD);
        }
        prop_assert!(bench.health.is_usable());
        at += 10;
        bench.now = bench.start + seconds(at);
        prop_assert!(bench.health.admits(bench.now), "and after its ramp it takes every session");
    }

    #[test]
    fn the_next_probe_is_never_far(steps in prop::collection::vec((0u64..400, any_step()), 1..80)) {
        let mut bench = Bench::new(HealthSettings::default());
        let mut at = 0;
        for (pause, step) in steps {
            at += pause;
            bench.step(at, step);
            if !matches!(step, Step::SessionOk | Step::SessionFailed) {
                let wait = bench.health.poll_timeout().duration_since(bench.now);
                prop_assert!(wait > Duration::ZERO && wait <= seconds(33), "{:?}", wait);
            }
        }
    }
}
