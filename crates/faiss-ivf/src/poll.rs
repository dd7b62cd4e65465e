//! Training that can be interrupted: who is asked, and on which thread.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use faiss::FlatIndex;
use faiss::index::FromInnerPtr;

use crate::error::FaissError;
use crate::{Metric, ffi, threads};

/// How often the calling thread looks for an interrupt while a team works.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A question for the caller of FAISS: true stops the training.
pub(crate) struct Poll<'a> {
    ask: &'a mut dyn FnMut(usize) -> bool,
    stopped: bool,
}

/// Runs `work` with the threads of [`set_threads`](crate::set_threads); with one
/// thread on the calling one. `interrupted` and `progress`, which is told the number
/// of finished searches of a training index, run on the calling thread.
pub(crate) fn polled<T: Send>(
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize),
    work: impl FnOnce(&mut Poll) -> Result<T, FaissError> + Send,
) -> Result<T, FaissError> {
    let team = threads::allowed();
    if team == 1 {
        alone(interrupted, progress, work)
    } else {
        in_team(team, interrupted, progress, work)
    }
}

/// Works on the calling thread. A panic of a closure is stopped at the border
/// to C++, ends the training as an interrupt does, and goes on from here.
pub(crate) fn alone<T>(
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize),
    work: impl FnOnce(&mut Poll) -> Result<T, FaissError>,
) -> Result<T, FaissError> {
    let mut told = 0;
    let mut panic = None;
    let mut ask = |finished: usize| {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            if finished > told {
                told = finished;
                progress(finished);
            }
            interrupted()
        }));
        asked.unwrap_or_else(|payload| {
            panic = Some(payload);
            true
        })
    };
    let result = threads::alone(|| Poll::run(&mut ask, work));
    match panic {
        Some(payload) => resume_unwind(payload),
        None => result,
    }
}

/// Works on a team while the calling thread serves the closures.
fn in_team<T: Send>(
    team: usize,
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize),
    work: impl FnOnce(&mut Poll) -> Result<T, FaissError> + Send,
) -> Result<T, FaissError> {
    let stop = AtomicBool::new(false);
    let finished = AtomicUsize::new(0);
    let work = || {
        let mut ask = |iterations: usize| {
            finished.store(iterations, Ordering::Relaxed);
            stop.load(Ordering::Relaxed) || threads::is_stopped()
        };
        Poll::run(&mut ask, work)
    };
    let wait = |is_done: &dyn Fn() -> bool| {
        // Also when a closure panics, the team shall not go on to the end.
        let _stop = StopWhenDropped(&stop);
        let mut told = 0;
        while !is_done() && !interrupted() {
            std::thread::sleep(POLL_INTERVAL);
            let now = finished.load(Ordering::Relaxed);
            if now > told {
                told = now;
                progress(now);
            }
        }
    };
    threads::in_team(team, work, wait)?
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Poll<'_> {
    fn run<T>(
        ask: &mut dyn FnMut(usize) -> bool,
        work: impl FnOnce(&mut Poll) -> Result<T, FaissError>,
    ) -> Result<T, FaissError> {
        let mut poll = Poll {
            ask,
            stopped: false,
        };
        let result = work(&mut poll);
        // What FAISS reports after a stop is only how it left its loops.
        if poll.stopped {
            return Err(FaissError::Interrupted);
        }
        result
    }

    /// Gives `work` an index for centroids of `dim` dimensions that searches in
    /// blocks and polls between them.
    pub(crate) fn with_index<T>(
        &mut self,
        metric: Metric,
        dim: usize,
        work: impl FnOnce(&mut FlatIndex) -> Result<T, FaissError>,
    ) -> Result<T, FaissError> {
        let context: *mut c_void = std::ptr::from_mut(self).cast();
        let mut index = std::ptr::null_mut();
        FaissError::check(|message, message_bytes| {
            // SAFETY: `index` is a local that receives the pointer, the message
            // buffer is as long as told.
            unsafe {
                ffi::faiss_ivf_training_index_new(
                    metric.code(),
                    dim,
                    poll_trampoline,
                    context,
                    &mut index,
                    message,
                    message_bytes,
                )
            }
        })?;
        // SAFETY: the shim has made a new object of a subclass of IndexFlat, which
        // nobody else owns.
        let mut index = unsafe { FlatIndex::from_inner_ptr(index) };
        work(&mut index)
    }
}

/// Called by the shim on the thread that trains.
unsafe extern "C" fn poll_trampoline(context: *mut c_void, iterations: usize) -> c_int {
    // SAFETY: `with_index` passes a pointer to its poll, which it borrows for as long
    // as the index that holds the pointer lives, and does not use meanwhile.
    let poll = unsafe { &mut *context.cast::<Poll>() };
    // `ask` does not unwind: see `alone`; that of a team only uses atomics.
    poll.stopped = poll.stopped || (poll.ask)(iterations);
    c_int::from(poll.stopped)
}
