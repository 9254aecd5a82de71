use super::*;

#[test]
fn a_far_end_that_never_answers_moves_nothing() {
    let mut world = World::new(2);
    world.works = [false; 3];
    world.run(60_000);
    assert!(world.log.is_empty(), "{:?}", world.log);
    assert_eq!((world.failover.snapshot().sent, world.failover.snapshot().misses), (201, 0));
}

#[test]
fn a_dead_endpoint_is_left_after_its_misses_and_a_handshake_asked_for() {
    let mut world = World::new(2);
    world.run(3_050);
    world.works[0] = false;
    world.run(1_100);
    // The probe at 3300 is the first that is lost. Two are missed at 3900: perhaps the far side has restarted.
    assert_eq!(world.log, [(3_900, Action::Ask)]);
    world.run(100);
    // The one due at 4200 is sent elsewhere.
    assert_eq!(world.log[1..], [(4_200, Action::Move { to: 1 }), (4_200, Action::Ask)]);
}

#[test]
fn an_answered_handshake_keeps_a_path_whose_target_is_down() {
    let mut world = World::new(2);
    world.run(3_050);
    world.works = [false; 3];
    for _ in 0..20 {
        world.run(900);
        if world.log.pop().is_some_and(|(_, action)| action == Action::Ask) {
            world.failover.proven();
        }
    }
    assert_eq!((world.failover.active, world.failover.snapshot().switches), (0, 0), "{:?}", world.log);
}

#[test]
fn answers_slower_than_the_interval_are_no_misses() {
    let mut world = World::new(2);
    world.rtt_ms = 800;
    world.run(30_000);
    assert!(world.log.is_empty(), "{:?}", world.log);
    assert_eq!(world.failover.snapshot().rtt, Some(Duration::from_millis(800)));
}

#[test]
fn answers_on_the_new_path_keep_it_and_late_ones_from_the_old_do_not() {
    let start = Instant::now();
    let mut failover = new(2, start);
    let first = probes(&mut failover, start);
    assert_eq!(failover.handle_answer(first[0], start), Some(Duration::ZERO));
    let mut old = Vec::new();
    for step in 1..=4 {
        old = [old, probes(&mut failover, start + MS * 300 * step)].concat();
    }
    assert_eq!((failover.active, failover.path_answers()), (1, false), "moved");
    let (late, now) = (old[1], start + MS * 1_250);
    assert!(failover.handle_answer(late, now).is_some(), "known");
    assert!(!failover.path_answers(), "but it says nothing about the new path");
    assert_eq!(failover.handle_answer(late, now), None, "once only");
    assert!(failover.handle_answer(*old.last().expect("sent"), now).is_some());
    assert!(failover.path_answers());
}

#[test]
fn a_single_endpoint_is_never_left_and_handshakes_are_asked_for_ever_more_slowly() {
    let mut world = World::new(1);
    world.run(3_050);
    world.works = [false; 3];
    world.run(60_000);
    let at: Vec<u64> = world.log.iter().map(|(at, _)| *at).collect();
    assert!(world.log.iter().all(|(_, action)| *action == Action::Ask));
    // Windows of 3, 6, 12, 24 and then 33 probes: 9.9 s, as 10 s would be a third of a probe more.
    assert_eq!(at, [3_900, 4_200, 6_000, 9_600, 16_800, 26_700, 36_600, 46_500, 56_400]);
    world.works = [true; 3];
    world.run(3_000);
    assert_eq!(world.failover.snapshot().misses, 0);
    world.works = [false; 3];
    let before = world.log.len();
    world.run(1_500);
    assert_eq!(world.log.len(), before + 2, "an answer makes the window short again");
}

#[test]
fn the_window_doubles_after_each_full_cycle() {
    let mut world = World::new(3);
    world.run(3_050);
    world.works = [false; 3];
    world.run(12_000);
    let moves: Vec<(u64, usize)> = world.moves();
    assert_eq!(moves, [(4_200, 1), (5_100, 2), (6_000, 0), (7_800, 1), (9_600, 2), (11_400, 0), (15_000, 1)]);
}

#[test]
fn goes_back_after_the_hold_down_when_three_trial_probes_are_answered() {
    let mut world = World::new(2);
    world.run(3_050);
    world.works[0] = false;
    world.run(5_000);
    world.works[0] = true;
    world.run(40_000);
    // Moved at 4200, held down for 30 s, then three probes 300 ms apart and the last one's answer.
    let back = world.log.last().copied().expect("an action");
    assert!(matches!(back, (34_840..=34_860, Action::Back { to: 0 })), "{back:?}");
    assert_eq!(world.trials, [34_200, 34_500, 34_800].map(|at| (at, 0)));
    assert_eq!(world.failover.snapshot().switches, 2);
    assert_eq!(world.failover.snapshot().hold_down_until, None);
}

#[test]
fn a_missed_trial_tries_the_next_better_endpoint_then_waits_for_the_hold_down() {
    let mut world = World::new(3);
    world.failover.set_endpoints(3, 2, world.start);
    world.works = [false, false, true];
    world.run(70_000);
    assert!(world.log.is_empty(), "{:?}", world.log);
    let starts: Vec<(u64, usize)> = world.trials.iter().copied().filter(|(at, _)| world.is_first_of_trial(*at)).collect();
    // Each fails a second after its first probe, after which the hold-down runs anew.
    assert_eq!(starts, [(30_000, 0), (31_000, 1), (62_000, 0), (63_000, 1)]);
    world.works[1] = true;
    world.run(40_000);
    assert_eq!(world.log.last().map(|(_, action)| *action), Some(Action::Back { to: 1 }));
    assert!(world.failover.snapshot().hold_down_until.is_some(), "0 is still better");
}

#[test]
fn nobody_tries_a_better_endpoint_while_the_active_one_is_silent() {
    let mut world = World::new(2);
    world.failover.set_endpoints(2, 1, world.start);
    world.works = [true, false, false];
    world.run(40_000);
    assert_eq!((world.trials.len(), world.log.len()), (0, 0));
}

#[test]
fn a_flap_doubles_the_hold_down_once_and_a_calm_hour_restores_it() {
    let mut world = World::new(2);
    world.run(1_000);
    world.flap();
    assert_eq!(world.failover.hold_down, HOLD_DOWN, "the first failover follows no fail-back");
    world.flap();
    assert_eq!(world.failover.hold_down, HOLD_DOWN * 2);
    world.works = [false; 3];
    world.run(20_000);
    assert_eq!(world.failover.hold_down, HOLD_DOWN * 4, "one outage is one flap, however many moves");
    world.works = [true; 3];
    for _ in 0..6 {
        world.run(1_300_000);
        world.flap();
    }
    assert_eq!(world.failover.hold_down, LONGEST_HOLD_DOWN);
    world.run(3_700_000);
    assert_eq!(world.failover.hold_down, HOLD_DOWN);
}

#[test]
fn a_roamed_peer_is_probed_and_goes_back_to_the_first_endpoint_when_it_is_lost() {
    let mut world = World::new(2);
    world.run(1_000);
    world.failover.followed(1, world.now());
    world.failover.roamed();
    world.run(40_000);
    assert_eq!((world.log.len(), world.trials.len()), (0, 0), "the roamed address stands");
    world.works = [true, false, false];
    world.run(2_000);
    assert_eq!(world.moves().iter().map(|(_, to)| *to).collect::<Vec<_>>(), [0]);
}

#[test]
fn neither_the_endpoint_on_trial_nor_the_one_just_left_is_followed() {
    let mut world = World::new(2);
    world.run(3_050);
    world.works[0] = false;
    world.run(1_200);
    assert_eq!(world.moves().len(), 1);
    assert!(!world.failover.may_follow(0, world.now()), "just left");
    assert!(world.failover.may_follow(1, world.now()));
    world.run(1_000);
    assert!(world.failover.may_follow(0, world.now()), "the far side insists");
    world.run(29_500);
    assert_eq!(world.failover.snapshot().on_trial, Some(0));
    assert!(!world.failover.may_follow(0, world.now()), "on trial");
}

#[test]
fn following_the_far_side_is_no_switch_and_holds_down() {
    let mut world = World::new(2);
    world.run(1_000);
    world.failover.followed(1, world.now());
    world.failover.followed(7, world.now());
    world.run(20_000);
    let stats = world.failover.snapshot();
    assert_eq!((stats.switches, stats.hold_down_until), (0, Some(world.start + MS * 1_000 + HOLD_DOWN)));
    assert_eq!(world.failover.active, 1);
}

#[test]
fn without_a_session_nothing_is_sent_and_a_new_one_begins_afresh() {
    let mut world = World::new(2);
    world.run(3_000);
    world.failover.session_ended();
    assert_eq!((world.failover.poll_timeout(), world.failover.handle_timeout(world.now() + HOLD_DOWN)), (None, None));
    world.works = [false; 3];
    world.failover.session_started(world.now());
    world.run(20_000);
    assert!(world.log.is_empty(), "nothing was answered since the session began");
}

#[test]
fn a_pause_of_the_whole_process_is_one_miss_at_most() {
    let start = Instant::now();
    let mut failover = new(2, start);
    let first = probes(&mut failover, start);
    failover.handle_answer(first[0], start);
    probes(&mut failover, start + MS * 300);
    assert_eq!(probes(&mut failover, start + MS * 200_000).len(), 1);
    assert_eq!((failover.snapshot().misses, failover.active), (1, 0));
}

const MS: Duration = Duration::from_millis(1);
const HOLD_DOWN: Duration = Duration::from_secs(30);

impl Failover {
    const fn path_answers(&self) -> bool {
        self.answers
    }
}

/// A peer with a session, 300 ms, 3 misses, and 30 s of hold-down.
fn new(endpoints: usize, now: Instant) -> Failover {
    let mut failover = Failover::new(FailoverSettings { every: MS * 300, misses: 3, hold_down: HOLD_DOWN }, now);
    failover.set_endpoints(endpoints, 0, now);
    failover.session_started(now);
    failover
}

/// The sequence numbers of the probes that are due.
fn probes(failover: &mut Failover, now: Instant) -> Vec<u16> {
    let mut sequences = Vec::new();
    while let Some(action) = failover.handle_timeout(now) {
        if let Action::Probe { sequence, .. } = action {
            sequences.push(sequence);
        }
    }
    sequences
}

/// A far end that answers what comes by the endpoints that work, in virtual time of 10 ms steps.
struct World {
    failover: Failover,
    start: Instant,
    now_ms: u64,
    works: [bool; 3],
    rtt_ms: u64,
    answers: Vec<(u64, u16)>,
    /// Everything but probes, with the time in ms.
    log: Vec<(u64, Action)>,
    /// Trial probes: time in ms and endpoint.
    trials: Vec<(u64, usize)>,
}

impl World {
    fn new(endpoints: usize) -> Self {
        let start = Instant::now();
        let failover = new(endpoints, start);
        Self { failover, start, now_ms: 0, works: [true; 3], rtt_ms: 50, answers: Vec::new(), log: Vec::new(), trials: Vec::new() }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    /// Lets `ms` pass, the present moment and the last one included.
    fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        loop {
            self.step();
            if self.now_ms >= end {
                return;
            }
            self.now_ms += 10;
        }
    }

    fn step(&mut self) {
        let now = self.now();
        let due: Vec<u16> = self.answers.iter().filter(|(at, _)| *at <= self.now_ms).map(|(_, sequence)| *sequence).collect();
        self.answers.retain(|(at, _)| *at > self.now_ms);
        for sequence in due {
            self.failover.handle_answer(sequence, now);
        }
        let announced = self.failover.poll_timeout().is_some_and(|at| at <= now);
        let mut acted = false;
        while let Some(action) = self.failover.handle_timeout(now) {
            acted = true;
            match action {
                Action::Probe { endpoint, sequence } => self.send(endpoint, sequence),
                Action::TrialProbe { endpoint, sequence } => {
                    self.trials.push((self.now_ms, endpoint));
                    self.send(endpoint, sequence);
                }
                Action::Move { .. } | Action::Back { .. } | Action::Ask => self.log.push((self.now_ms, action)),
            }
        }
        assert!(announced || !acted, "poll_timeout had not said so");
        assert!(self.failover.poll_timeout().is_none_or(|at| at > now), "poll_timeout wants what handle_timeout does not do");
    }

    fn send(&mut self, endpoint: usize, sequence: u16) {
        if self.works[endpoint] {
            self.answers.push((self.now_ms + self.rtt_ms, sequence));
        }
    }

    /// Endpoint 0 goes, and comes back: one failover and one fail-back.
    fn flap(&mut self) {
        self.works[0] = false;
        self.run(3_000);
        assert_eq!(self.failover.active, 1, "failed over");
        self.works[0] = true;
        while self.failover.active != 0 {
            self.run(1_000);
        }
        self.run(1_000);
    }

    fn moves(&self) -> Vec<(u64, usize)> {
        let moved = |(at, action): &(u64, Action)| match action {
            Action::Move { to } => Some((*at, *to)),
            Action::Probe { .. } | Action::TrialProbe { .. } | Action::Back { .. } | Action::Ask => None,
        };
        self.log.iter().filter_map(moved).collect()
    }

    /// The trial probe sent at `at` is the first by its endpoint.
    fn is_first_of_trial(&self, at: u64) -> bool {
        let place = self.trials.iter().position(|(sent, _)| *sent == at);
        place.is_some_and(|place| {
            let before = place.checked_sub(1).and_then(|before| self.trials.get(before));
            before.is_none_or(|(_, endpoint)| *endpoint != self.trials[place].1)
        })
    }
}
