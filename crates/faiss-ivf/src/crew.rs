//! Threads that help the calling one with a stream of jobs, and live as long as the
//! stream: a thread that is new for each job would fault its memory in anew each time.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::threads::{self, Busy};

/// What a job has become: itself, or the panic that it ended with.
type Finished<J> = Result<J, Box<dyn Any + Send>>;

/// Jobs on their way through the threads of [`with_crew`].
pub struct Crew<'w, J> {
    work: &'w (dyn Fn(&mut J) + Sync),
    helpers: AtomicUsize,
    queue: Mutex<Queue<J>>,
    /// There is a job to take, or no more will come.
    is_work: Condvar,
    /// A job is finished.
    is_done: Condvar,
}

struct Queue<J> {
    /// Jobs with their numbers that nobody works at.
    waiting: VecDeque<(u64, J)>,
    /// Results by number, from `first` on; `None` where it is not there yet.
    done: VecDeque<Option<Finished<J>>>,
    first: u64,
    is_closed: bool,
}

/// Runs `drive` on this thread, with `helpers` threads beside it that do `work` on the
/// jobs that `drive` hands in. Where the system gives fewer threads, there are fewer.
///
/// Helpers have all signals blocked, and compute on one thread each, so that a job has the
/// same result wherever it runs. A panic in `work` comes through where the job is taken
/// back. When `drive` returns or panics, jobs that nobody has begun are dropped, and
/// helpers end as soon as they are done with what they have in hand.
pub fn with_crew<J: Send, T>(
    helpers: usize,
    work: &(dyn Fn(&mut J) + Sync),
    drive: impl FnOnce(&Crew<'_, J>) -> T,
) -> T {
    let crew = Crew {
        work,
        helpers: AtomicUsize::new(0),
        queue: Mutex::new(Queue {
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            first: 0,
            is_closed: false,
        }),
        is_work: Condvar::new(),
        is_done: Condvar::new(),
    };
    std::thread::scope(|scope| {
        let _close = CloseWhenDropped(&crew);
        for _ in 0..helpers {
            if threads::spawn(scope, || crew.serve()).is_err() {
                break;
            }
            crew.helpers.fetch_add(1, Ordering::Relaxed);
        }
        drive(&crew)
    })
}

struct CloseWhenDropped<'c, 'w, J>(&'c Crew<'w, J>);

impl<J> Drop for CloseWhenDropped<'_, '_, J> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.is_closed = true;
        queue.waiting.clear();
        self.0.is_work.notify_all();
    }
}

impl<J: Send> Crew<'_, J> {
    /// Hands a job in.
    pub fn put(&self, job: J) {
        let mut queue = self.lock();
        let number = queue.first + queue.done.len() as u64;
        queue.done.push_back(None);
        queue.waiting.push_back((number, job));
        drop(queue);
        self.is_work.notify_one();
    }

    /// Takes the next job back, in the order in which they were handed in, if it is
    /// finished.
    ///
    /// # Panics
    /// With the panic of the job.
    pub fn take(&self) -> Option<J> {
        let finished = self.lock().pop()?;
        Some(finished.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// How many helpers there are.
    pub fn helpers(&self) -> usize {
        self.helpers.load(Ordering::Relaxed)
    }

    /// How many jobs were handed in and not taken back.
    pub fn pending(&self) -> usize {
        self.lock().done.len()
    }

    /// Works on a job that waits, on this thread. Returns false if there is none.
    pub fn help(&self) -> bool {
        let Some((number, job)) = self.lock().waiting.pop_front() else {
            return false;
        };
        self.run(number, job);
        true
    }

    /// Waits until [`Self::take`] has something to give, at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let is_empty = |queue: &mut Queue<J>| !matches!(queue.done.front(), Some(Some(_)));
        let waited = self
            .is_done
            .wait_timeout_while(self.lock(), timeout, is_empty);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// What a helper does.
    fn serve(&self) {
        threads::alone(|| {
            while let Some((number, job)) = self.next() {
                let Some(_busy) = Busy::begin() else { return };
                self.run(number, job);
            }
        });
    }

    /// Waits for a job; `None` when there will be no more.
    fn next(&self) -> Option<(u64, J)> {
        let is_idle = |queue: &mut Queue<J>| queue.waiting.is_empty() && !queue.is_closed;
        let queue = self.is_work.wait_while(self.lock(), is_idle);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.waiting.pop_front()
    }

    fn run(&self, number: u64, mut job: J) {
        // What a job was in the middle of is not looked at after a panic.
        let result = catch_unwind(AssertUnwindSafe(|| (self.work)(&mut job)));
        let mut queue = self.lock();
        let place = (number - queue.first) as usize;
        queue.done[place] = Some(result.map(|()| job));
        drop(queue);
        self.is_done.notify_one();
    }
}

impl<J> Crew<'_, J> {
    /// No code of a job runs under the lock, so that what it guards is whole even after
    /// a panic.
    fn lock(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> Queue<J> {
    fn pop(&mut self) -> Option<Finished<J>> {
        self.done.front().is_some_and(Option::is_some).then(|| {
            self.first += 1;
            self.done.pop_front().flatten()
        })?
    }
}
