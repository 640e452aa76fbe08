//! The file that makes threads: a lazy pool, and the watch that lets a caller stop a long call.
//!
//! A call takes a [`Team`] once and hands it a few shares of work, one dispatch for all of time. The
//! caller works too, so a team of one is a plain loop and touches no atomic. Workers wait by spinning
//! for a moment (the next dispatch is usually near), then yield, then park. Who has parked is woken beside
//! its caller (`cores.rs`). Where others take the cores, callers go alone for a while (`contention.rs`).
//!
//! The pool belongs to the process that made it: a fork leaves the child with the memory of threads but
//! no threads, so the child makes a pool of its own. One call has the pool at a time; a call that finds
//! it taken (several Python threads) computes alone, with the same bits.

#![allow(unsafe_code)]

mod contention;
mod cores;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, Builder, JoinHandle, Thread, ThreadId};
use std::time::{Duration, Instant};

use self::contention::{Contention, spent};
use self::cores::Cores;
use crate::error::{Error, Result};

/// Pauses before a waiting thread yields: about 100 us on Zen 3 and 4. A guess: long enough to bridge
/// the gap between two layers or two training steps, short enough not to heat a neighbour's core.
const SPINS: u32 = 5_000;
/// Yields before it parks.
const YIELDS: u32 = 50;
/// Pauses before a worker that waits for its neighbours yields: about 5 us, which is much more than one
/// even half of a step is late, and little where both have landed on one core.
const MEETING_SPINS: u32 = 250;
/// Yields before it sleeps: where nobody wants its core, some 500 us.
const MEETING_YIELDS: u32 = 2_000;
/// How long a worker sleeps that waits for one whose core was taken.
const NAP: Duration = Duration::from_micros(50);
/// How often a parked caller looks whether it should stop.
const PATIENCE: Duration = Duration::from_millis(10);
/// Multiply-adds between two looks at the watch: well under a millisecond of work.
const METER: i64 = 10_000_000;

/// Tells a long call to stop: asked now and then by the calling thread, heard by all of its workers.
pub struct Watch<'a> {
    poll: Option<&'a dyn Fn() -> bool>,
    caller: ThreadId,
    stopped: AtomicBool,
    /// Multiply-adds since the calling thread asked last, by meters that have reported: neither short
    /// shares nor shares of other threads must go unwatched.
    unwatched: AtomicI64,
}

// SAFETY: `poll` is called by the thread that made the watch and by no other; the rest is Sync.
unsafe impl Sync for Watch<'_> {}

impl<'a> Watch<'a> {
    /// A call that nobody stops.
    pub fn unattended() -> Self {
        Self::build(None)
    }

    /// A call that ends with [`Error::Interrupted`] soon after `poll` says true. Only the calling
    /// thread asks, every fraction of a millisecond.
    pub fn new(poll: &'a dyn Fn() -> bool) -> Self {
        Self::build(Some(poll))
    }

    fn build(poll: Option<&'a dyn Fn() -> bool>) -> Self {
        Self {
            poll,
            caller: thread::current().id(),
            stopped: AtomicBool::new(false),
            unwatched: AtomicI64::new(0),
        }
    }

    /// An error once the call shall stop; asks first if this is the calling thread.
    pub fn check(&self) -> Result<()> {
        if let Some(poll) = self.poll
            && thread::current().id() == self.caller
        {
            self.unwatched.store(0, Ordering::Relaxed);
            if poll() {
                self.stopped.store(true, Ordering::Relaxed);
            }
        }
        self.heard()
    }

    /// An error if somebody has been told to stop.
    fn heard(&self) -> Result<()> {
        if self.stopped.load(Ordering::Relaxed) {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// [`Self::check`], but asks only if much has been done since the last look.
    fn settle(&self) -> Result<()> {
        if self.unwatched.load(Ordering::Relaxed) < METER {
            return self.heard();
        }
        self.check()
    }

    /// A meter for one worker, so that it looks at the watch by work done and not by steps.
    pub fn meter(&self) -> Meter<'_> {
        let left = METER - self.unwatched.load(Ordering::Relaxed).min(METER);
        Meter {
            watch: self,
            left: Cell::new(left),
            counted: Cell::new(left),
        }
    }
}

/// Counts a worker's multiply-adds and looks at the watch now and then.
pub struct Meter<'w> {
    watch: &'w Watch<'w>,
    left: Cell<i64>,
    /// What `left` was at the last look.
    counted: Cell<i64>,
}

impl Meter<'_> {
    /// An error once the call shall stop.
    #[inline(always)]
    pub fn spend(&self, multiply_adds: usize) -> Result<()> {
        self.left.set(self.left.get() - multiply_adds as i64);
        if self.left.get() > 0 {
            return Ok(());
        }
        self.report();
        self.left.set(METER);
        self.counted.set(METER);
        self.watch.check()
    }

    fn report(&self) {
        if self.watch.poll.is_some() {
            let spent = self.counted.get() - self.left.get();
            self.watch.unwatched.fetch_add(spent, Ordering::Relaxed);
        }
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.report();
    }
}

/// The threads of one call: the calling one, and workers of the pool if it could be had.
pub struct Team<'w> {
    watch: &'w Watch<'w>,
    pool: Option<&'static Pool>,
    size: usize,
    /// It tells the pool how it fares.
    reports: bool,
}

impl<'w> Team<'w> {
    /// A team of at most `threads`; smaller when the pool is taken or threads cannot be had.
    pub fn assemble(threads: usize, watch: &'w Watch<'w>) -> Self {
        let mut team = Self {
            watch,
            pool: None,
            size: 1,
            reports: false,
        };
        if threads > 1
            && let Some(pool) = Pool::take()
        {
            team.pool = Some(pool);
            team.size = 1 + pool.seat(threads - 1);
        }
        team
    }

    /// The same, but of the caller alone for as long as others are seen to take the cores of teams.
    pub fn where_free(threads: usize, watch: &'w Watch<'w>) -> Self {
        let mut team = Self::assemble(threads, watch);
        // More threads than cores are the caller's wish.
        if let Some(pool) = team.pool.filter(|pool| team.size <= pool.cores) {
            if lock(&pool.contention).persists(Instant::now()) {
                drop(team);
                return Self::assemble(1, watch);
            }
            team.reports = true;
        }
        team
    }

    /// How many threads work together.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many cores they can run on side by side.
    pub fn cores(&self) -> usize {
        self.pool.map_or(1, |pool| pool.cores)
    }

    /// What tells this call to stop.
    pub fn watch(&self) -> &'w Watch<'w> {
        self.watch
    }

    /// Runs `work` on every share, each on one thread, and returns when all are done.
    ///
    /// # Errors
    /// The first error of a share; the watch is then stopped, so that the others end early.
    ///
    /// # Panics
    /// When a share panics.
    pub fn run<T: Send>(
        &self,
        shares: Vec<T>,
        work: impl Fn(T) -> Result<()> + Sync,
    ) -> Result<()> {
        let Some(pool) = self.pool.filter(|_| shares.len() > 1) else {
            return shares.into_iter().try_for_each(work);
        };
        let count = shares.len();
        let shares: Vec<Mutex<Option<T>>> = shares
            .into_iter()
            .map(|share| Mutex::new(Some(share)))
            .collect();
        let failure = Mutex::new(None);
        // Only where this dispatch is measured.
        let begin = self.reports.then(Instant::now);
        let begin = begin.filter(|&begin| lock(&pool.contention).is_due(begin));
        let all_spent = AtomicU64::new(0);
        // Thread i begins with share i, so that a thread meets the same rows in every phase of a call,
        // and then helps with what nobody has begun.
        let turn = |thread: usize| {
            let before = begin.and_then(|_| spent());
            for k in 0..count {
                let share = lock(&shares[(thread + k) % count]).take();
                if let Some(share) = share
                    && let Err(error) = work(share)
                {
                    self.watch.stopped.store(true, Ordering::Relaxed);
                    lock(&failure).get_or_insert(error);
                }
            }
            if let (Some(before), Some(after)) = (before, spent()) {
                let own = after.saturating_sub(before).as_nanos() as u64;
                all_spent.fetch_add(own, Ordering::Relaxed);
            }
        };
        pool.run(self.size.min(count), self.watch, &turn);
        let all_spent = Duration::from_nanos(all_spent.into_inner());
        if let Some(begin) = begin.filter(|_| !all_spent.is_zero()) {
            let now = Instant::now();
            lock(&pool.contention).record(now, now - begin, all_spent);
        }
        if let Some(error) = lock(&failure).take() {
            return Err(error);
        }
        // Workers may have taken every share before this thread got its core back; and nobody may have
        // heard a stop: the caller asks also while it waits, and shares may be short.
        self.watch.settle()
    }
}

impl Drop for Team<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            pool.taken.store(false, Ordering::Release);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A task for several workers, alive on the caller's stack until `pending` is 0.
struct Task<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    pending: AtomicUsize,
    panicked: AtomicBool,
    caller: Thread,
}

/// Where a worker waits for its task.
struct Seat {
    task: AtomicPtr<Task<'static>>,
    eager: AtomicBool,
    /// The worker sleeps, or has not begun to live.
    asleep: AtomicBool,
    /// Where the worker may run, while it is kept off a core to be woken.
    home: Mutex<Option<Cores>>,
}

struct Pool {
    process: u32,
    taken: AtomicBool,
    cores: usize,
    contention: Mutex<Contention>,
    workers: Mutex<Vec<(&'static Seat, JoinHandle<()>)>>,
}

static POOL: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());

impl Pool {
    /// The pool of this process, unless another call has it. The caller gives it back.
    fn take() -> Option<&'static Self> {
        let process = std::process::id();
        let mut current = POOL.load(Ordering::Acquire);
        // SAFETY: a pool that was published is never freed.
        while unsafe { current.as_ref() }.is_none_or(|pool| pool.process != process) {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let fresh = Box::into_raw(Box::new(Self {
                process,
                taken: AtomicBool::new(false),
                cores,
                contention: Mutex::default(),
                workers: Mutex::new(Vec::new()),
            }));
            match POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => current = fresh,
                Err(other) => {
                    // SAFETY: `fresh` was not published: nobody else knows it.
                    drop(unsafe { Box::from_raw(fresh) });
                    current = other;
                }
            }
        }
        // SAFETY: not null (the loop ended), and never freed.
        let pool = unsafe { &*current };
        let free = pool
            .taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.is_ok().then_some(pool)
    }

    /// Sees to it that `wanted` workers exist; returns how many there are, at most `wanted`.
    fn seat(&self, wanted: usize) -> usize {
        let mut workers = lock(&self.workers);
        while workers.len() < wanted {
            let index = workers.len() + 1;
            // A seat is as long-lived as its thread, that is: as the process.
            let seat: &'static Seat = Box::leak(Box::new(Seat {
                task: AtomicPtr::new(std::ptr::null_mut()),
                eager: AtomicBool::new(true),
                asleep: AtomicBool::new(true),
                home: Mutex::new(None),
            }));
            let spawned = Builder::new()
                .name(format!("rnncore-{index}"))
                .spawn(move || attend(seat, index));
            match spawned {
                Ok(worker) => workers.push((seat, worker)),
                Err(_) => break,
            }
        }
        workers.len().min(wanted)
    }

    /// Runs `work(0)` here and `work(1..size)` on workers; returns when all have ended.
    fn run(&self, size: usize, watch: &Watch<'_>, work: &(dyn Fn(usize) + Sync)) {
        // More threads than cores: a spinning thread would keep a working one from its core.
        let eager = size <= self.cores;
        let task = Task {
            work,
            pending: AtomicUsize::new(size - 1),
            panicked: AtomicBool::new(false),
            caller: thread::current(),
        };
        for (seat, worker) in lock(&self.workers).iter().take(size - 1) {
            if eager && seat.asleep.load(Ordering::Relaxed) {
                *lock(&seat.home) = cores::keep_off_this(worker);
            }
            seat.eager.store(eager, Ordering::Relaxed);
            seat.task
                .store((&raw const task).cast_mut().cast(), Ordering::Release);
            worker.thread().unpark();
        }
        let mine = catch_unwind(AssertUnwindSafe(|| work(0)));
        let mut wait = Wait::new(eager);
        while task.pending.load(Ordering::Acquire) > 0 {
            if !wait.pause() {
                thread::park_timeout(PATIENCE);
            }
            // The answer is heard by the workers; this thread must stay until they have ended.
            let _ = watch.check();
        }
        match mine {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) if task.panicked.load(Ordering::Relaxed) => panic!("a worker thread panicked"),
            Ok(()) => {}
        }
    }
}

/// Where workers that share every step of a recursion meet after each.
///
/// Steps are short, so they wait by spinning; a worker whose neighbour has lost its core yields its own,
/// then sleeps in turns.
pub struct Barrier {
    parties: usize,
    arrived: AtomicUsize,
    /// How often all have met.
    meetings: AtomicUsize,
    /// Somebody will not come any more.
    left: AtomicBool,
}

impl Barrier {
    /// For so many workers, each of which must be on a thread of its own.
    pub const fn new(parties: usize) -> Self {
        Self {
            parties,
            arrived: AtomicUsize::new(0),
            meetings: AtomicUsize::new(0),
            left: AtomicBool::new(false),
        }
    }

    /// How many workers meet.
    pub fn parties(&self) -> usize {
        self.parties
    }

    /// Returns once all workers are here. What each did before, all see after.
    ///
    /// # Errors
    /// When a worker has left and so will not come.
    #[inline(always)]
    pub fn meet(&self) -> Result<()> {
        if self.parties == 1 {
            return Ok(());
        }
        self.meet_others()
    }

    fn meet_others(&self) -> Result<()> {
        // Who left will not come to this meeting: they came to all that have ended.
        if self.left.load(Ordering::Acquire) {
            return Err(Error::Interrupted);
        }
        let before = self.meetings.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.parties {
            self.arrived.store(0, Ordering::Relaxed);
            self.meetings
                .store(before.wrapping_add(1), Ordering::Release);
            return Ok(());
        }
        let mut wait = Wait {
            turns: 0,
            spins: MEETING_SPINS,
            yields: MEETING_YIELDS,
        };
        loop {
            if self.meetings.load(Ordering::Acquire) != before {
                return Ok(());
            }
            // Who comes last may leave at once: look again whether all have met.
            if self.left.load(Ordering::Acquire) && self.meetings.load(Ordering::Acquire) == before
            {
                return Err(Error::Interrupted);
            }
            if !wait.pause() {
                thread::park_timeout(NAP);
            }
        }
    }

    /// Says that the caller will not come again.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }
}

/// Spins, then yields; then it is time to park.
struct Wait {
    turns: u32,
    spins: u32,
    yields: u32,
}

impl Wait {
    fn new(eager: bool) -> Self {
        Self {
            turns: 0,
            spins: if eager { SPINS } else { 0 },
            yields: YIELDS,
        }
    }

    /// False once waiting actively has lasted long enough.
    fn pause(&mut self) -> bool {
        self.turns = self.turns.saturating_add(1);
        if self.turns <= self.spins {
            std::hint::spin_loop();
        } else if self.turns <= self.spins + self.yields {
            thread::yield_now();
        } else {
            return false;
        }
        true
    }
}

/// A worker's life: wait for a task, run it, say so.
fn attend(seat: &Seat, index: usize) {
    seat.asleep.store(false, Ordering::Relaxed);
    loop {
        let mut wait = Wait::new(seat.eager.load(Ordering::Relaxed));
        let task = loop {
            let task = seat.task.swap(std::ptr::null_mut(), Ordering::Acquire);
            if !task.is_null() {
                break task;
            }
            if !wait.pause() {
                seat.asleep.store(true, Ordering::Relaxed);
                thread::park();
                seat.asleep.store(false, Ordering::Relaxed);
            }
        };
        if let Some(home) = lock(&seat.home).take() {
            home.take_back();
        }
        // SAFETY: the caller keeps the task alive until `pending` is 0, which the last line here makes
        // it; nothing of the task is touched after that.
        let caller = unsafe {
            let task = &*task;
            if catch_unwind(AssertUnwindSafe(|| (task.work)(index))).is_err() {
                task.panicked.store(true, Ordering::Relaxed);
            }
            let caller = task.caller.clone();
            task.pending.fetch_sub(1, Ordering::Release);
            caller
        };
        caller.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_runs_once_for_any_team() {
        let watch = Watch::unattended();
        for threads in [1, 2, 3, 8] {
            let team = Team::assemble(threads, &watch);
            for count in [0usize, 1, 2, 7, 20] {
                let ran: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                let result = team.run((0..count).collect(), |share| {
                    ran[share].fetch_add(1, Ordering::Relaxed);
                    Ok(())
                });
                assert_eq!(result, Ok(()));
                assert!(ran.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_taken_pool_leaves_the_caller_alone() {
        let watch = Watch::unattended();
        let first = Team::assemble(2, &watch);
        if first.size() == 2 {
            assert_eq!(Team::assemble(2, &watch).size(), 1);
        }
        drop(first);
    }

    /// A team of so many, as soon as the other tests of this process let it be had.
    fn whole<'w>(
        assemble: fn(usize, &'w Watch<'w>) -> Team<'w>,
        size: usize,
        watch: &'w Watch<'w>,
    ) -> Team<'w> {
        let begin = Instant::now();
        loop {
            let team = assemble(size, watch);
            if team.size() == size {
                return team;
            }
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "no team of {size}"
            );
            thread::yield_now();
        }
    }

    #[test]
    fn a_team_that_makes_way_is_alone_while_others_have_the_cores() {
        let watch = Watch::unattended();
        let team = whole(Team::assemble, 2, &watch);
        let pool = team.pool.expect("a pool");
        if pool.cores == 1 {
            return;
        }
        for _ in 0..2 {
            let took = Duration::from_secs(20);
            lock(&pool.contention).record(Instant::now(), took, took / 2);
        }
        assert!(lock(&pool.contention).persists(Instant::now()));
        drop(team);
        assert_eq!(Team::where_free(2, &watch).size(), 1);
        // Who insists gets it, and so does who wants more threads than cores.
        drop(whole(Team::assemble, 2, &watch));
        drop(whole(Team::where_free, pool.cores + 1, &watch));
        let team = whole(Team::assemble, 2, &watch);
        *lock(&pool.contention) = Contention::default();
        drop(team);
        assert!(whole(Team::where_free, 2, &watch).reports);
    }

    #[test]
    fn a_team_that_makes_way_tells_what_its_threads_spent() {
        let watch = Watch::unattended();
        if spent().is_none() || thread::available_parallelism().is_ok_and(|cores| cores.get() == 1)
        {
            return;
        }
        let mut team = whole(Team::where_free, 2, &watch);
        let pool = team.pool.expect("a pool");
        let work = |_| {
            let before = spent().expect("a time");
            while spent().expect("a time") - before < Duration::from_micros(100) {
                std::hint::spin_loop();
            }
            Ok(())
        };
        let told = |team: &Team<'_>| {
            *lock(&pool.contention) = Contention::default();
            assert_eq!(team.run(vec![0, 1, 2], work), Ok(()));
            !lock(&pool.contention).is_due(Instant::now() - Duration::from_secs(1))
        };
        assert!(told(&team));
        team.reports = false;
        assert!(!told(&team));
    }

    #[test]
    fn a_woken_worker_may_run_wherever_its_caller_may() {
        let cores = || thread::available_parallelism().unwrap().get();
        let patience = || thread::sleep(Duration::from_millis(5));
        let watch = Watch::unattended();
        let mut team = Team::assemble(2, &watch);
        // Another test may have the pool.
        while team.size() < 2 {
            patience();
            team = Team::assemble(2, &watch);
        }
        let pool = team.pool.unwrap();
        for _ in 0..3 {
            let (seat, _) = lock(&pool.workers)[0];
            while !seat.asleep.load(Ordering::Relaxed) {
                patience();
            }
            let seen = Mutex::new(Vec::new());
            let result = team.run(vec![0, 1], |_| {
                lock(&seen).push((thread::current().id(), cores()));
                // So that the other share is for the other thread.
                while lock(&seen).len() < 2 {
                    patience();
                }
                Ok(())
            });
            assert_eq!(result, Ok(()));
            let seen = lock(&seen);
            assert_ne!(seen[0].0, seen[1].0);
            assert_eq!([seen[0].1, seen[1].1], [cores(); 2]);
            assert!(lock(&seat.home).is_none());
        }
    }

    #[test]
    fn an_error_of_a_share_reaches_the_caller() {
        let watch = Watch::unattended();
        let team = Team::assemble(3, &watch);
        let result = team.run(vec![0, 1, 2], |share| {
            if share == 1 {
                Err(Error::overflow("share"))
            } else {
                Ok(())
            }
        });
        assert_eq!(result, Err(Error::overflow("share")));
    }

    #[test]
    fn a_panic_of_a_worker_reaches_the_caller_and_spares_the_pool() {
        let watch = Watch::unattended();
        let team = Team::assemble(2, &watch);
        for bad in [0, 1] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(vec![0, 1], |share| {
                    assert_ne!(share, bad, "on purpose");
                    Ok(())
                })
            }));
            assert!(outcome.is_err());
        }
        assert_eq!(team.run(vec![0, 1], |_| Ok(())), Ok(()));
    }

    #[test]
    fn a_poll_stops_every_worker() {
        let stop = || true;
        let watch = Watch::new(&stop);
        let team = Team::assemble(2, &watch);
        let result = team.run(vec![0, 1], |_| {
            let meter = watch.meter();
            loop {
                meter.spend(METER as usize)?;
            }
        });
        assert_eq!(result, Err(Error::Interrupted));
    }

    #[test]
    fn the_caller_asks_after_much_work_of_others() {
        let asked = Cell::new(0);
        let poll = || {
            asked.set(asked.get() + 1);
            false
        };
        let watch = Watch::new(&poll);
        let work = |amount: i64| {
            thread::scope(|scope| {
                scope.spawn(|| watch.meter().spend(amount as usize));
            });
            watch.settle()
        };
        assert_eq!(work(METER - 1), Ok(()));
        assert_eq!(asked.get(), 0);
        assert_eq!(work(2 * METER), Ok(()));
        assert_eq!(asked.get(), 1);
        assert_eq!(work(METER - 1), Ok(()));
        assert_eq!(asked.get(), 1);
    }
}
