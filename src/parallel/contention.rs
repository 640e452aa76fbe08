//! Whether a team is worth its threads beside whatever else runs: notices that others take their cores.
//!
//! A thread that loses its core to somebody else's holds up its whole team, for a slice of the scheduler:
//! milliseconds, more than most calls take. Beside one busy neighbour two threads on two cores may so need
//! twice as long as one, which the scheduler would have moved to the free core.
//!
//! That cannot be foreseen, but seen: of a dispatch now and then, how long it took and how much processor time its
//! threads spent. The latter is what one thread would have needed, or more, for threads that wait for one
//! another spend some too. Where teams take longer than that over a window, twice running, calls go alone for
//! a while: four times what one thread would have needed for all that was late. Then a team tries again, and
//! where it is late again the while is at least twice as long as before.
//!
//! Linux with glibc alone is asked for the time of a thread; elsewhere nothing is noticed. Nor is a neighbour
//! outside a virtual machine, where a thread's time may contain what was stolen from it; and a caller that waits
//! for something else within a dispatch, as for Python's lock, looks like one.

use std::time::{Duration, Instant};

/// From one dispatch that is measured to the next: a thread's clock takes 0.2 us to read, on some virtual
/// machines 0.8, and is read twice.
const INTERVAL: Duration = Duration::from_micros(300);
/// What a verdict is based on: about a slice of Linux's scheduler, and of short calls many. This and what follows
/// are guesses, held by `benches/bench.py --suites neighbour` on a 2-core Zen 3.
const WINDOW: Duration = Duration::from_millis(5);
/// How much longer than alone, in percent, is late: a draw is not, and clocks are coarse.
const LATE: u32 = 110;
/// For how many times what was late calls go alone.
const WHILE: u32 = 4;
/// Beyond this no while is doubled: what short calls lose by trying is 2 percent then, and a core that became
/// free is used again soon.
const LONGEST: Duration = Duration::from_millis(320);

/// What the last dispatches say of the cores.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contention {
    /// When the next dispatch is measured.
    due: Option<Instant>,
    /// What the measured dispatches of this window took.
    took: Duration,
    /// The processor time spent on them.
    spent: Duration,
    /// The last window was late.
    late: bool,
    /// What one thread would have needed for the late windows of this try.
    wasted: Duration,
    /// For how long calls go alone after this try; zero unless teams were late.
    pause: Duration,
    /// Until when; a try begins once it is over.
    until: Option<Instant>,
}

impl Contention {
    /// Whether calls shall go alone for the time being.
    pub fn persists(&mut self, now: Instant) -> bool {
        if self.until.is_some_and(|until| until <= now) {
            (self.until, self.wasted) = (None, Duration::ZERO);
        }
        self.until.is_some()
    }

    /// Whether a dispatch that begins now shall be measured.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// A dispatch of a team ended now, took so long, and its threads spent so much processor time on it.
    pub fn record(&mut self, now: Instant, took: Duration, spent: Duration) {
        self.due = Some(now + INTERVAL);
        self.took += took;
        self.spent += spent;
        if self.took < WINDOW {
            return;
        }
        if 100 * self.took <= LATE * self.spent {
            *self = Self {
                due: self.due,
                ..Self::default()
            };
            return;
        }
        self.wasted += self.spent;
        if self.late {
            // A call is as long as it is, and asks when it begins: its other windows make the while longer, but
            // are no further tries.
            let owed = WHILE * self.wasted;
            if self.until.is_none() {
                self.pause = (2 * self.pause).min(LONGEST).max(owed);
            }
            self.until = Some(now + self.pause.max(owed));
        }
        self.late = true;
        (self.took, self.spent) = (Duration::ZERO, Duration::ZERO);
    }
}

/// The processor time that the calling thread has spent so far, if the system says.
#[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
pub fn spent() -> Option<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the system writes to `time` and nowhere else.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanoseconds = u32::try_from(time.tv_nsec).ok()?;
    (code == 0).then(|| Duration::new(seconds, nanoseconds))
}

/// Nothing: this system is not asked.
#[cfg(not(all(target_os = "linux", target_env = "gnu", not(miri))))]
pub fn spent() -> Option<Duration> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Dispatches one after the other, each with what it took and what was spent on it, as far as teams may
    /// be had; gives for each whether it was one.
    fn teams(contention: &mut Contention, now: &mut Instant, each: &[(u64, u64)]) -> Vec<bool> {
        let dispatch = |&(took, spent): &(u64, u64)| {
            let team = !contention.persists(*now);
            *now += ms(if team { took } else { spent });
            if team {
                contention.record(*now, ms(took), ms(spent));
            }
            team
        };
        each.iter().map(dispatch).collect()
    }

    #[test]
    fn teams_that_gain_or_draw_or_are_late_once_go_on() {
        let (mut contention, mut now) = (Contention::default(), Instant::now());
        for each in [[(10, 19); 5], [(10, 10); 5], [(11, 10); 5]] {
            assert_eq!(teams(&mut contention, &mut now, &each), [true; 5]);
        }
        let now_and_then = [(20, 10), (10, 20), (20, 10), (10, 20)];
        assert_eq!(teams(&mut contention, &mut now, &now_and_then), [true; 4]);
    }

    #[test]
    fn short_dispatches_are_judged_together() {
        let (mut contention, mut now) = (Contention::default(), Instant::now());
        // A window is five of them: one that lost its core for 3 ms among four that did not.
        let window = [(1, 2), (1, 2), (4, 2)];
        for _ in 0..4 {
            assert_eq!(teams(&mut contention, &mut now, &window), [true; 3]);
        }
        let window = [(1, 1), (4, 2)];
        assert_eq!(teams(&mut contention, &mut now, &window), [true; 2]);
        assert_eq!(teams(&mut contention, &mut now, &window), [true; 2]);
        assert_eq!(teams(&mut contention, &mut now, &window), [false; 2]);
    }

    #[test]
    fn late_teams_make_way_for_longer_and_longer_and_come_back() {
        let (mut contention, mut now) = (Contention::default(), Instant::now());
        let late = (10, 5);
        assert_eq!(teams(&mut contention, &mut now, &[late; 2]), [true; 2]);
        for expected in [40, 80, 160, 320, 320] {
            let begin = now;
            while teams(&mut contention, &mut now, &[late]) == [false] {}
            // The last one was a team again, and late.
            assert_eq!(now - begin, ms(expected + 10));
        }
        while teams(&mut contention, &mut now, &[(5, 9)]) == [false] {}
        assert_eq!(
            teams(&mut contention, &mut now, &[late; 3]),
            [true, true, false]
        );
        // The while is as short as at first.
        let begin = now;
        while contention.persists(now) {
            now += ms(1);
        }
        assert!(now - begin <= ms(40));
    }

    #[test]
    fn a_dispatch_now_and_then_is_measured() {
        let (mut contention, now) = (Contention::default(), Instant::now());
        assert!(contention.is_due(now));
        contention.record(now, ms(1), ms(2));
        assert!(!contention.is_due(now));
        assert!(!contention.is_due(now + INTERVAL / 2) && contention.is_due(now + INTERVAL));
    }

    #[test]
    fn long_dispatches_make_way_for_as_many_of_their_kind() {
        let (mut contention, mut now) = (Contention::default(), Instant::now());
        let found = teams(&mut contention, &mut now, &[(2000, 1000); 13]);
        // Two late ones for eight alone, then one for four.
        let expected: Vec<bool> = (0..13).map(|k| [0, 1, 10].contains(&k)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_call_of_many_late_dispatches_makes_way_for_four_of_its_kind() {
        let (mut contention, mut now) = (Contention::default(), Instant::now());
        let mut call = |contention: &mut Contention| {
            let team = !contention.persists(now);
            for _ in 0..100 {
                now += ms(if team { 10 } else { 5 });
                if team {
                    contention.record(now, ms(10), ms(5));
                }
            }
            team
        };
        let found: Vec<bool> = (0..11).map(|_| call(&mut contention)).collect();
        let expected: Vec<bool> = (0..11).map(|k| k % 5 == 0).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_window_that_is_not_late_ends_a_while_that_its_call_earned() {
        let (mut contention, now) = (Contention::default(), Instant::now());
        for _ in 0..2 {
            contention.record(now, ms(10), ms(5));
        }
        assert!(contention.persists(now));
        contention.record(now, ms(10), ms(15));
        assert!(!contention.persists(now));
    }

    #[test]
    fn a_stopped_process_does_not_count_as_work() {
        let (mut contention, now) = (Contention::default(), Instant::now());
        for _ in 0..2 {
            contention.record(now, ms(3_600_000), ms(5));
        }
        assert!(contention.persists(now) && !contention.persists(now + ms(40)));
    }

    #[test]
    fn the_time_of_a_thread_is_known_where_it_is_said_to_be() {
        let known = cfg!(all(target_os = "linux", target_env = "gnu", not(miri)));
        assert_eq!(spent().is_some(), known);
    }

    #[test]
    fn a_thread_that_works_spends_and_one_that_sleeps_does_not() {
        let Some(begin) = spent() else { return };
        let wall = Instant::now();
        while wall.elapsed() < ms(20) && spent().expect("a time") - begin < ms(2) {}
        let worked = spent().expect("a time");
        assert!(worked > begin);
        std::thread::sleep(ms(50));
        assert!(spent().expect("a time") - worked < ms(40));
    }
}
