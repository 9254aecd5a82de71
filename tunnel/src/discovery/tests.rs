use super::*;

#[test]
fn finds_a_hole_that_is_there_from_the_start() {
    for hole in [1_308, 1_236, 600, 552, 1_339] {
        let mut world = World::new(1_340, hole, 0, 1);
        let took = world.until_change(20_000).expect("a change");
        assert!(took <= 10_000, "hole at {hole}: {took} ms");
        world.assert_found(hole);
    }
}

#[test]
fn finds_a_hole_that_appears_later_whenever_it_does() {
    for delay in (0..4_200).step_by(100) {
        for hole in [1_308, 1_236] {
            let mut world = World::new(1_420, 9_999, 0, 1);
            assert_eq!(world.until_change(20_000 + delay), None);
            assert_eq!(world.discovery.path_mtu(), Some(1_420));
            world.hole = hole;
            let took = world.until_change(20_000).expect("a change");
            assert!(took <= 10_000, "hole at {hole} after {delay} ms: {took} ms");
            world.assert_found(hole);
        }
    }
}

#[test]
fn finds_a_smaller_hole_in_a_path_that_is_limited_already() {
    let mut world = World::new(1_420, 1_308, 0, 1);
    world.until_change(20_000).expect("a change");
    world.hole = 1_236;
    let took = world.until_change(20_000).expect("a change");
    assert!(took <= 10_000, "{took} ms");
    world.assert_found(1_236);
}

#[test]
fn heavy_loss_is_no_small_mtu() {
    for seed in 0..200u64 {
        let mut world = World::new(1_420, 9_999, 200, seed);
        assert_eq!(world.until_change(60_000), None, "seed {seed}");
        assert!(!world.discovery.limited());
    }
}

#[test]
fn heavy_loss_hides_no_hole() {
    for seed in 0..200u64 {
        let hole = if seed.is_multiple_of(2) { 1_308 } else { 1_236 };
        let mut world = World::new(1_420, hole, 200, seed);
        let took = world.until_change(60_000);
        assert!(took.is_some_and(|took| took <= 20_000), "seed {seed}: {took:?}");
        world.assert_found(hole);
    }
}

#[test]
fn a_hole_that_vanishes_is_noticed_within_ten_minutes() {
    let mut world = World::new(1_420, 1_308, 0, 1);
    world.until_change(20_000).expect("a change");
    let found = world.discovery.effective();
    world.hole = 9_999;
    let took = world.until_change(620_000).expect("a change");
    assert!((590_000..=601_000).contains(&took), "{took} ms");
    assert_eq!((world.change, world.discovery.path_mtu()), (Some((found, 1_420)), Some(1_420)));
    assert!(!world.discovery.limited());
}

#[test]
fn a_hole_that_stays_is_only_measured_better_by_raising() {
    let mut world = World::new(1_420, 1_308, 0, 1);
    world.until_change(20_000).expect("a change");
    world.run(1_300_000);
    world.assert_found(1_308);
}

#[test]
fn another_path_is_tried_at_once_and_the_old_size_stands_meanwhile() {
    let mut world = World::new(1_420, 1_308, 0, 1);
    world.until_change(20_000).expect("a change");
    let found = world.discovery.effective();
    world.hole = 9_999;
    world.in_flight.clear();
    world.discovery.restart(world.now());
    assert_eq!((world.discovery.path_mtu(), world.discovery.effective()), (None, found));
    let took = world.until_change(20_000).expect("a change");
    assert!(took <= 1_000, "{took} ms");
    assert_eq!(world.discovery.path_mtu(), Some(1_420));
    // And a path that takes even less.
    world.hole = 900;
    world.in_flight.clear();
    world.discovery.restart(world.now());
    let took = world.until_change(20_000).expect("a change");
    assert!(took <= 10_000, "{took} ms");
    world.assert_found(900);
}

#[test]
fn an_outage_of_any_length_changes_nothing() {
    for outage in (0..12_000).step_by(250) {
        let mut world = World::new(1_420, 9_999, 0, 1);
        world.run(10_000);
        world.outage = true;
        world.run(outage);
        world.outage = false;
        assert_eq!(world.until_change(30_000), None, "outage of {outage} ms");
        assert_eq!(world.discovery.path_mtu(), Some(1_420));
    }
}

#[test]
fn an_outage_during_a_search_only_delays_it() {
    for begin in (0..8_000).step_by(250) {
        for outage in [500, 1_000, 2_500, 5_000] {
            let mut world = World::new(1_420, 1_308, 0, 1);
            world.run(begin);
            world.outage = true;
            world.run(outage);
            world.outage = false;
            world.run(15_000);
            world.assert_found(1_308);
        }
    }
}

#[test]
fn nothing_is_sent_while_nothing_is_answered() {
    let start = Instant::now();
    let mut discovery = Discovery::new(1_420, 552);
    assert_eq!((discovery.poll(start), discovery.poll_timeout()), (None, None));
    discovery.small_answered(start);
    assert_eq!(discovery.poll(start), Some(1_420));
    for ms in (0..100_000).step_by(100) {
        let sent = discovery.poll(start + Duration::from_millis(ms));
        assert!(sent.is_none() || ms <= 3_000, "{sent:?} after {ms} ms");
    }
    assert_eq!((discovery.path_mtu(), discovery.effective(), discovery.take_change()), (None, 1_420, None));
}

#[test]
fn a_far_end_that_answers_small_echoes_only_is_left_alone() {
    let mut world = World::new(1_420, 100, 0, 1);
    assert_eq!(world.until_change(300_000), None);
    assert_eq!(world.discovery.path_mtu(), None);
    // Five searches of some 50 probes at the most, not a search without end.
    assert!(world.probes < 300, "{} probes", world.probes);
}

#[test]
fn a_quiet_path_costs_one_probe_in_four_seconds() {
    let mut world = World::new(1_420, 9_999, 0, 1);
    world.run(400_000);
    assert!((95..=101).contains(&world.probes), "{} probes", world.probes);
}

#[test]
fn another_tunnel_mtu_keeps_a_limit_below_it() {
    let mut world = World::new(1_420, 1_308, 0, 1);
    world.until_change(20_000).expect("a change");
    let found = world.discovery.effective();
    world.discovery.set_ceiling(1_400, 552, world.now());
    assert_eq!((world.discovery.effective(), world.discovery.limited()), (found, true));
    world.discovery.set_ceiling(1_200, 552, world.now());
    assert_eq!((world.discovery.effective(), world.discovery.limited()), (1_200, false));
    assert_eq!(world.until_change(20_000), None);
    assert_eq!(world.discovery.path_mtu(), Some(1_200));
}

const FLOOR: u32 = 552;
const SMALL: u32 = 56;
const RTT_MS: u64 = 40;

/// A path with a hole and with loss, in virtual time; the driver looks every 100 ms, a small probe goes every 300.
struct World {
    discovery: Discovery,
    start: Instant,
    now_ms: u64,
    /// The largest packet that gets through.
    hole: u32,
    outage: bool,
    /// Lost each way, of a thousand.
    loss: u64,
    random: u64,
    in_flight: Vec<(u64, u32)>,
    probes: usize,
    change: Option<(u32, u32)>,
}

impl World {
    fn new(ceiling: u32, hole: u32, loss: u64, seed: u64) -> Self {
        Self {
            discovery: Discovery::new(ceiling, FLOOR),
            start: Instant::now(),
            now_ms: 0,
            hole,
            outage: false,
            loss,
            random: seed,
            in_flight: Vec::new(),
            probes: 0,
            change: None,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.step();
        }
    }

    /// How many ms pass before the effective size changes, if it does within `ms`.
    fn until_change(&mut self, ms: u64) -> Option<u64> {
        let begin = self.now_ms;
        self.change = None;
        while self.now_ms < begin + ms && self.change.is_none() {
            self.step();
        }
        self.change.map(|_| self.now_ms - begin)
    }

    /// Ten ms: answers come at any of them, the driver looks at every tenth.
    fn step(&mut self) {
        let now = self.now();
        let due: Vec<u32> = self.in_flight.iter().filter(|(at, _)| *at <= self.now_ms).map(|(_, size)| *size).collect();
        self.in_flight.retain(|(at, _)| *at > self.now_ms);
        for size in due {
            if size == SMALL {
                self.discovery.small_answered(now);
            } else {
                self.discovery.handle_answer(size, now);
            }
        }
        if self.now_ms.is_multiple_of(300) {
            self.send(SMALL);
        }
        if self.now_ms.is_multiple_of(100) {
            let announced = self.discovery.poll_timeout().is_some_and(|at| at <= now);
            let before = self.probes;
            while let Some(size) = self.discovery.poll(now) {
                self.probes += 1;
                self.send(size);
            }
            assert!(announced || self.probes == before, "poll_timeout had not said so");
        }
        self.change = self.discovery.take_change().or(self.change);
        self.now_ms += 10;
    }

    fn send(&mut self, size: u32) {
        let lost = self.lost() | self.lost();
        if !lost && !self.outage && size <= self.hole {
            self.in_flight.push((self.now_ms + RTT_MS, size));
        }
    }

    /// SplitMix64.
    fn lost(&mut self) -> bool {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % 1_000 < self.loss
    }

    fn assert_found(&self, hole: u32) {
        let found = self.discovery.effective();
        assert!((hole.saturating_sub(8)..=hole).contains(&found), "hole at {hole}, found {found}");
        assert_eq!(self.discovery.path_mtu(), Some(found));
    }
}
