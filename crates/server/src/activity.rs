//! What the server is doing: requests in work, requests that wait for the
//! device, counters, and the call to shut down.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sight_protocol::{Counter, ErrorReply};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error;
use crate::statistics::Counters;

/// Requests in work, and since when there are so many.
#[derive(Debug, Clone, Copy)]
struct Working {
    requests: usize,
    since: Instant,
}

#[derive(Debug)]
pub struct Activity {
    started: Instant,
    max_waiting: usize,
    waiting: AtomicUsize,
    requests: AtomicU64,
    failed: AtomicU64,
    working: watch::Sender<Working>,
    shutdown: watch::Sender<bool>,
}

impl Activity {
    /// At most `max_waiting` requests may wait for the device at a time.
    pub fn new(max_waiting: usize) -> Self {
        let started = Instant::now();
        Self {
            started,
            max_waiting,
            waiting: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            working: watch::Sender::new(Working {
                requests: 0,
                since: started,
            }),
            shutdown: watch::Sender::new(false),
        }
    }

    /// Counts a request as in work until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> WorkGuard {
        self.change_working(|requests| requests + 1);
        WorkGuard(Arc::clone(self))
    }

    fn change_working(&self, change: impl FnOnce(usize) -> usize) {
        self.working.send_modify(|working| {
            *working = Working {
                requests: change(working.requests),
                since: Instant::now(),
            }
        });
    }

    /// Takes a place among the requests that wait for the device. What becomes of
    /// the request is counted by `counters`.
    ///
    /// # Errors
    /// Overloaded, when all places are taken.
    pub fn admit(self: &Arc<Self>, counters: &Arc<Counters>) -> Result<Arc<Ticket>, ErrorReply> {
        self.waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < self.max_waiting).then_some(waiting + 1)
            })
            .map_err(error::overloaded)?;
        Ok(self.ticket(true, Arc::clone(counters)))
    }

    /// A ticket for what takes no place and is not counted.
    pub fn pass(self: &Arc<Self>) -> Arc<Ticket> {
        self.ticket(false, Arc::default())
    }

    fn ticket(self: &Arc<Self>, waits: bool, counters: Arc<Counters>) -> Arc<Ticket> {
        Arc::new(Ticket {
            activity: Arc::clone(self),
            counters,
            queued: OnceLock::new(),
            waits: AtomicBool::new(waits),
            started: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
        })
    }

    pub fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count_failure(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns when no request has been in work for `timeout`.
    pub async fn idle_for(&self, timeout: Duration) {
        let mut working = self.working.subscribe();
        loop {
            let Working { requests, since } = *working.borrow_and_update();
            let quiet = async {
                if requests > 0 {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep_until(since + timeout).await;
            };
            tokio::select! {
                biased;
                // The sender lives as long as self, so a change is a change.
                _ = working.changed() => {}
                () = quiet => return,
            }
        }
    }

    /// Calls on everyone to end: from now on requests are refused.
    pub fn begin_shutdown(&self) {
        self.shutdown.send_replace(true);
    }

    /// Returns when the shutdown begins.
    pub async fn shutdown_begun(&self) {
        let mut shutdown = self.shutdown.subscribe();
        let _ = shutdown.wait_for(|begun| *begun).await;
    }
}

/// A request in work.
#[derive(Debug)]
pub struct WorkGuard(Arc<Activity>);

impl Drop for WorkGuard {
    fn drop(&mut self) {
        self.0.change_working(|requests| requests - 1);
    }
}

/// The place of one request among those that wait for the device, and its
/// client's mind: whether it still wants the answer.
#[derive(Debug)]
pub struct Ticket {
    activity: Arc<Activity>,
    counters: Arc<Counters>,
    /// When its first inputs were ready for the device.
    queued: OnceLock<Instant>,
    /// It takes one of the places for waiting requests.
    waits: AtomicBool,
    /// Some of it has been computed.
    started: AtomicBool,
    cancelled: AtomicBool,
}

impl Ticket {
    /// Where it is counted what becomes of the request.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Inputs of it are ready for the device.
    pub fn queue(&self) {
        self.queued.get_or_init(Instant::now);
    }

    /// The device begins with it: it waits no longer.
    pub fn start(&self) {
        if !self.started.swap(true, Ordering::AcqRel)
            && let Some(queued) = self.queued.get()
        {
            self.counters.add_time(Counter::QueueTime, queued.elapsed());
        }
        self.leave_queue();
    }

    pub fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Nobody wants the answer any more.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.leave_queue();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn leave_queue(&self) {
        if self.waits.swap(false, Ordering::AcqRel) {
            self.activity.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave_queue();
    }
}

/// Cancels its request when it is dropped, for whatever reason the request's
/// future ends. A request that has been answered has nothing left to cancel.
#[derive(Debug)]
pub struct CancelOnDrop(pub Arc<Ticket>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use sight_protocol::ErrorCode;
    use tokio::time::Instant;

    use super::Activity;

    #[test]
    fn only_so_many_requests_wait() {
        let activity = Arc::new(Activity::new(2));
        let admit = || activity.admit(&Arc::default());
        let first = admit().unwrap();
        let second = admit().unwrap();
        let error = admit().unwrap_err();
        assert_eq!(error.code, ErrorCode::Overloaded);
        assert_eq!(activity.waiting(), 2);

        first.start();
        first.start();
        assert_eq!(activity.waiting(), 1);
        let third = admit().unwrap();
        drop(activity.pass());
        second.cancel();
        drop(second);
        assert_eq!(activity.waiting(), 1);
        drop(third);
        drop(first);
        assert_eq!(activity.waiting(), 0);
    }

    #[tokio::test]
    async fn idle_counts_from_the_end_of_the_last_request() {
        let activity = Arc::new(Activity::new(1));
        let timeout = Duration::from_millis(60);
        let begin = Instant::now();
        let guard = activity.begin();
        let other = Arc::clone(&activity);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            drop(guard);
            drop(other.begin());
        });
        activity.idle_for(timeout).await;
        assert!(begin.elapsed() >= Duration::from_millis(210));
    }

    #[tokio::test]
    async fn shutdown_reaches_those_who_wait_and_those_who_come_late() {
        let activity = Arc::new(Activity::new(1));
        let waiter = Arc::clone(&activity);
        let waiting = tokio::spawn(async move { waiter.shutdown_begun().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        activity.begin_shutdown();
        waiting.await.unwrap();
        activity.shutdown_begun().await;
    }
}
