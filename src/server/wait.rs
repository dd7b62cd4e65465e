//! Waiting that a cancel, a timeout or a termination ends at once.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

/// What the caller waits for.
#[derive(Clone, Copy)]
pub enum Until {
    Readable(RawFd),
    Writable(RawFd),
    /// Time only.
    Elapsed,
}

/// Why a wait ended.
#[derive(PartialEq, Eq)]
pub enum Woken {
    /// The socket is ready, the latch was set or the pause is over: look again.
    Look,
    /// The deadline has passed.
    TimedOut,
}

/// Waits until the socket is ready or the deadline has passed, at most for
/// `pause`. Processes interrupts: a cancel unwinds from here as PostgreSQL's
/// error.
pub fn wait(until: Until, deadline: Option<Instant>, pause: Duration) -> Woken {
    let now = Instant::now();
    if deadline.is_some_and(|deadline| now >= deadline) {
        return Woken::TimedOut;
    }
    let pause = deadline.map_or(pause, |deadline| pause.min(deadline - now));
    let (socket, event) = match until {
        Until::Readable(socket) => (socket, pg_sys::WL_SOCKET_READABLE),
        Until::Writable(socket) => (socket, pg_sys::WL_SOCKET_WRITEABLE),
        Until::Elapsed => (-1, 0),
    };
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH | event;
    // SAFETY: MyLatch is this process's own latch, the socket is open (or
    // absent), and this is the main thread: pgrx checks that.
    unsafe {
        let woken = pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            socket,
            pause.as_millis().clamp(1, 3_600_000) as i64,
            pg_sys::PG_WAIT_EXTENSION,
        );
        if woken & pg_sys::WL_LATCH_SET as i32 != 0 {
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
    }
    pgrx::check_for_interrupts!();
    Woken::Look
}
