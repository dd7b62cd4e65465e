//! How many threads FAISS and BLAS may use, and where those threads live.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::error::FaissError;
use crate::ffi;

/// A team larger than this gains nothing and could exhaust the process limit.
const MAX_THREADS: usize = 256;

/// Below this many multiplications a team costs more than it gains.
const TEAM_WORK: usize = 1 << 26;

/// BLAS kernels keep blocks on the stack.
const STACK_BYTES: usize = 8 << 20;

static THREADS: AtomicUsize = AtomicUsize::new(1);

/// Threads that compute.
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// Nothing shall be begun any more.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// How often is looked whether threads are done.
const STOP_INTERVAL: Duration = Duration::from_millis(1);

/// Waits until no other thread of this crate computes, and lets none begin again: for a
/// process that is about to exit, which frees the memory of BLAS. Calls that had threads
/// at work are of no use any more, and may not end.
pub fn stop_threads() {
    STOPPED.store(true, Ordering::SeqCst);
    while BUSY.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(STOP_INTERVAL);
    }
}

/// Whether threads shall stop.
pub(crate) fn is_stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// Says that a thread computes.
pub(crate) struct Busy;

impl Busy {
    /// `None` if nothing shall be begun any more.
    pub(crate) fn begin() -> Option<Self> {
        BUSY.fetch_add(1, Ordering::SeqCst);
        let busy = Self;
        (!is_stopped()).then_some(busy)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sets how many threads [`kmeans`](crate::kmeans), [`assign`](crate::assign), and
/// what trains, encodes or transforms many vectors may use from now on, at least 1,
/// at most 256. Distances and scans of codes always run on the calling thread alone.
///
/// With one thread everything runs on the calling thread and no other is
/// started. With more, a call starts its own team with all signals blocked, so
/// that no signal handler of the process ever runs on one of them, and ends the
/// team before it returns.
pub fn set_threads(n: usize) {
    THREADS.store(n.clamp(1, MAX_THREADS), Ordering::Relaxed);
}

/// The number that [`set_threads`] allowed.
pub(crate) fn allowed() -> usize {
    THREADS.load(Ordering::Relaxed)
}

/// Runs `work` on this thread with OpenMP limited to this thread.
pub(crate) fn alone<T>(work: impl FnOnce() -> T) -> T {
    let _team = Team::of(1);
    work()
}

/// Runs `work`, which cannot be interrupted, on a team when about `size`
/// multiplications are worth one.
pub(crate) fn for_size<T: Send>(
    size: usize,
    work: impl FnOnce() -> Result<T, FaissError> + Send,
) -> Result<T, FaissError> {
    let team = allowed();
    if team > 1 && size >= TEAM_WORK {
        in_team(team, work, |_| ())?
    } else {
        alone(work)
    }
}

/// Runs `work` on a thread of its own with an OpenMP team of `threads`, and
/// `wait` on this one, which must not return before it sees that `work` is done.
///
/// OpenMP ties its worker threads to the thread that opens the parallel region,
/// and threads inherit the signal mask of their creator: a leader with blocked
/// signals is what keeps every worker, also one started late, free of signals.
pub(crate) fn in_team<T: Send>(
    threads: usize,
    work: impl FnOnce() -> T + Send,
    wait: impl FnOnce(&dyn Fn() -> bool),
) -> Result<T, FaissError> {
    std::thread::scope(|scope| {
        let leader = spawn(scope, move || {
            let _team = Team::of(threads);
            let _busy = Busy::begin().ok_or(FaissError::Interrupted)?;
            Ok(work())
        })?;
        wait(&|| leader.is_finished());
        leader
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Starts a thread with all signals blocked.
pub(crate) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, FaissError> {
    let _blocked = BlockedSignals::all();
    std::thread::Builder::new()
        .name("faiss_ivf".to_owned())
        .stack_size(STACK_BYTES)
        .spawn_scoped(scope, work)
        .map_err(|_| FaissError::OutOfMemory)
}

/// Sets the size of OpenMP teams of this thread and restores it when dropped.
struct Team {
    before: i32,
}

impl Team {
    fn of(threads: usize) -> Self {
        let threads = i32::try_from(threads).unwrap_or(1);
        // SAFETY: reads and writes one OpenMP variable of this thread.
        let before = unsafe { ffi::faiss_ivf_set_threads(threads) };
        Team { before }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        // SAFETY: as in `of`.
        unsafe { ffi::faiss_ivf_set_threads(self.before) };
    }
}

/// Blocks every signal on this thread and restores the mask when dropped.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn all() -> Self {
        // SAFETY: both sets are local and initialised by libc before they are
        // read; the calls fail only for an invalid first argument.
        unsafe {
            let mut all = std::mem::zeroed();
            let mut before = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            BlockedSignals { before }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` came from the same call on this thread.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut());
        }
    }
}
