//! Jobs that several threads work on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use faiss_ivf::{Crew, with_crew};

const WAIT: Duration = Duration::from_secs(30);

/// Hands in jobs as a build does, and takes all back.
fn drive(crew: &Crew<'_, (u64, u64)>, jobs: u64, most_pending: usize) -> Vec<(u64, u64)> {
    let mut taken = Vec::new();
    let mut take_back = |most_pending: usize| loop {
        taken.extend(std::iter::from_fn(|| crew.take()));
        if crew.pending() <= most_pending {
            return;
        }
        if !crew.help() {
            crew.wait(WAIT);
        }
    };
    for job in 0..jobs {
        crew.put((job, 0));
        take_back(most_pending);
    }
    take_back(0);
    taken
}

/// Takes longer for some jobs than for others.
fn square(job: &mut (u64, u64)) {
    if job.0.is_multiple_of(3) {
        std::thread::sleep(Duration::from_micros(200));
    }
    job.1 = job.0 * job.0;
}

#[test]
fn jobs_come_back_in_order() {
    let expected: Vec<_> = (0..500).map(|job| (job, job * job)).collect();
    for (helpers, most_pending) in [(0, 0), (1, 2), (3, 6), (3, 0)] {
        let taken = with_crew(helpers, &square, |crew| drive(crew, 500, most_pending));
        assert_eq!(taken, expected, "{helpers} helpers");
    }
}

#[test]
fn without_helpers_the_calling_thread_works() {
    let here = std::thread::current().id();
    let work = |job: &mut Option<std::thread::ThreadId>| *job = Some(std::thread::current().id());
    with_crew(0, &work, |crew| {
        assert_eq!(crew.helpers(), 0);
        crew.put(None);
        assert!(crew.take().is_none());
        assert!(crew.help());
        assert!(!crew.help());
        assert_eq!(crew.take(), Some(Some(here)));
    });
}

#[test]
fn a_helper_works_by_itself() {
    with_crew(1, &square, |crew| {
        crew.put((7, 0));
        crew.wait(WAIT);
        assert_eq!(crew.take(), Some((7, 49)));
        let start = Instant::now();
        crew.wait(Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(crew.take(), None);
    });
}

#[test]
fn a_panic_of_a_job_comes_through_and_the_others_end() {
    let work = |job: &mut (u64, u64)| {
        assert!(job.0 != 5, "the fifth");
        square(job);
    };
    for helpers in [0, 2] {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            with_crew(helpers, &work, |crew| drive(crew, 100, 4))
        }));
        let payload = caught.expect_err("it panics");
        assert_eq!(payload.downcast_ref(), Some(&"the fifth"));
    }
}

#[test]
fn jobs_that_nobody_has_begun_are_dropped_when_the_driver_panics() {
    let begun = AtomicUsize::new(0);
    let work = |_: &mut u32| {
        begun.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    };
    let caught = catch_unwind(AssertUnwindSafe(|| {
        with_crew(2, &work, |crew| {
            (0..1000).for_each(|job| crew.put(job));
            panic!("from the driver");
        })
    }));
    assert_eq!(
        caught.expect_err("it panics").downcast_ref(),
        Some(&"from the driver")
    );
    assert!(begun.load(Ordering::Relaxed) < 100);
}
