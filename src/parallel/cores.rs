//! Which cores a thread may run on: wakes a worker beside its caller, never underneath.
//!
//! A kernel may wake a thread on the core of the one that wakes it. Where that one goes on computing, as
//! the caller of a team of workers does, the two then share a core until the kernel balances its load: for a
//! call of a few milliseconds, to its end. So a sleeping worker is kept off its caller's core while it is
//! woken, and may run anywhere again as soon as it is awake.
//!
//! Linux alone lets one thread say where another may run; elsewhere nothing is done, nor with another C
//! library than glibc, whose handles of threads are those of the standard library. What a worker takes back
//! is what it had: a core that is switched on later is not among it.

pub use inner::{Cores, keep_off_this};

#[cfg(all(target_os = "linux", target_env = "gnu", not(miri)))]
mod inner {
    #![allow(unsafe_code)]

    use std::os::unix::thread::{JoinHandleExt, RawPthread};
    use std::thread::JoinHandle;

    const SIZE: usize = size_of::<libc::cpu_set_t>();

    /// The cores that a thread may run on.
    pub struct Cores(libc::cpu_set_t);

    /// Keeps `worker` off the core of the calling thread. Returns where it may run otherwise, for it to
    /// [take back](Cores::take_back); `None` if it stays as it is: it may run nowhere else, or this
    /// system does not say.
    pub fn keep_off_this(worker: &JoinHandle<()>) -> Option<Cores> {
        // SAFETY: a plain question.
        let here = usize::try_from(unsafe { libc::sched_getcpu() }).ok()?;
        let cores = Cores::of(worker.as_pthread_t())?;
        let others = cores.without(here)?;
        others.bind(worker.as_pthread_t()).then_some(cores)
    }

    impl Cores {
        fn of(thread: RawPthread) -> Option<Self> {
            // SAFETY: a set of cores is an array of integers: all zero is the empty set.
            let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
            // SAFETY: the thread has not been joined, and the set has the size that is said.
            let code = unsafe { libc::pthread_getaffinity_np(thread, SIZE, &raw mut set) };
            (code == 0).then_some(Self(set))
        }

        /// All but one; `None` if there is no other, or if `core` is none of these anyhow.
        fn without(&self, core: usize) -> Option<Self> {
            let mut set = self.0;
            // SAFETY: `libc` looks up the core's bit in an array and panics beyond its end.
            let others = unsafe {
                if core >= 8 * SIZE || !libc::CPU_ISSET(core, &set) {
                    return None;
                }
                libc::CPU_CLR(core, &mut set);
                libc::CPU_COUNT(&set)
            };
            (others > 0).then_some(Self(set))
        }

        /// Lets a thread run on these and no others; false if the system refuses.
        fn bind(&self, thread: RawPthread) -> bool {
            // SAFETY: the thread has not been joined, and the set has the size that is said.
            unsafe { libc::pthread_setaffinity_np(thread, SIZE, &raw const self.0) == 0 }
        }

        /// Lets the calling thread run on all of these again. Should the system refuse, it computes all the
        /// same.
        pub fn take_back(&self) {
            // SAFETY: a thread may always name itself.
            self.bind(unsafe { libc::pthread_self() });
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::sync::mpsc::channel;
        use std::thread::Builder;

        fn own() -> Cores {
            // SAFETY: a thread may always name itself.
            Cores::of(unsafe { libc::pthread_self() }).expect("a thread's cores")
        }

        fn list(cores: &Cores) -> Vec<usize> {
            // SAFETY: no core is beyond the end of the set.
            (0..8 * SIZE)
                .filter(|&core| unsafe { libc::CPU_ISSET(core, &cores.0) })
                .collect()
        }

        fn only(core: usize) -> Cores {
            // SAFETY: all zero is the empty set, and the core lies within it.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(core, &mut set);
                Cores(set)
            }
        }

        /// Calls [`keep_off_this`] on the first core that this thread may use; returns what the worker
        /// could use before, while and after.
        fn keep_off_first(worker_has_no_other: bool) -> [Vec<usize>; 3] {
            let all = own();
            let first = only(list(&all)[0]);
            if worker_has_no_other {
                first.take_back();
            }
            let (send, received) = channel::<Option<Cores>>();
            let (answer, heard) = channel();
            let worker = Builder::new().spawn(move || {
                if let Some(home) = received.recv().expect("a message") {
                    home.take_back();
                }
                answer.send(list(&own())).expect("a listener");
            });
            let worker = worker.expect("a thread");
            let worker_may_use = || list(&Cores::of(worker.as_pthread_t()).expect("cores"));
            first.take_back();
            let had = worker_may_use();
            let home = keep_off_this(&worker);
            let kept = worker_may_use();
            all.take_back();
            send.send(home).expect("a worker");
            let after = heard.recv().expect("an answer");
            worker.join().expect("a worker that does not panic");
            [had, kept, after]
        }

        #[test]
        fn a_worker_is_kept_off_and_takes_back_what_it_had() {
            let all = list(&own());
            let [had, kept, after] = keep_off_first(false);
            assert_eq!(had, all);
            assert_eq!(after, all);
            if all.len() > 1 {
                assert_eq!(kept, all[1..]);
            }
        }

        #[test]
        fn a_worker_with_one_core_stays_there() {
            let all = list(&own());
            let [had, kept, after] = keep_off_first(true);
            assert_eq!(had, all[..1]);
            assert_eq!(kept, had);
            assert_eq!(after, had);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu", not(miri))))]
mod inner {
    use std::thread::JoinHandle;

    /// Nothing: no thread is kept off a core here.
    pub enum Cores {}

    /// Leaves `worker` as it is.
    pub fn keep_off_this(_worker: &JoinHandle<()>) -> Option<Cores> {
        None
    }

    impl Cores {
        /// Never called.
        pub fn take_back(&self) {
            match *self {}
        }
    }
}
