//! Where the computation runs: no thread by default, no signal handler on a team.
//! Linux shows the threads of a process with their names and signal masks.

use std::fs;
use std::time::{Duration, Instant};

use crate::kmeans::with_threads;
use crate::reference::Random;
use faiss_ivf::{KMeans, Metric, kmeans, set_threads, with_crew};

/// The blocked signals of each thread of a team: the leader is named after this
/// crate, and its workers inherit the name.
fn team() -> Vec<u64> {
    let mut masks = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        // A thread may end while its folder is read.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
        };
        if field("Name:") == Some("faiss_ivf") {
            let mask = field("SigBlk:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
            masks.push(mask.expect("a thread has a signal mask"));
        }
    }
    masks
}

/// Trains and returns the largest team that was seen meanwhile.
fn largest_team() -> Vec<u64> {
    let points = Random(13).vectors(20_000, 64);
    let seen = std::sync::Mutex::new(Vec::new());
    let look = || {
        let now = team();
        let mut seen = seen.lock().unwrap();
        if now.len() > seen.len() {
            *seen = now;
        }
        false
    };
    let options = KMeans::new(200, Metric::L2);
    kmeans(&options, 64, &points, &look, &mut |_| ()).unwrap();
    seen.into_inner().unwrap()
}

/// Waits until no team is left. Tests beside this one may have begun with more
/// threads; with one thread allowed they start no further team.
fn wait_for_teams() {
    set_threads(1);
    let start = Instant::now();
    while !team().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(30), "a team lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_thread_starts_no_other() {
    with_threads(1, || {
        wait_for_teams();
        assert_eq!(largest_team(), [0; 0]);
    });
}

#[test]
fn a_team_blocks_signals_and_ends() {
    with_threads(3, || {
        let masks = largest_team();
        assert!(masks.len() >= 3, "{} threads", masks.len());
        for mask in masks {
            // Hangup, interrupt, quit, user 1 and 2, alarm, terminate, child.
            for signal in [1, 2, 3, 10, 12, 14, 15, 17] {
                assert!(mask >> (signal - 1) & 1 == 1, "signal {signal}: {mask:x}");
            }
        }
        // Workers end just after their leader.
        wait_for_teams();
    });
}

#[test]
fn helpers_block_signals_and_end() {
    with_threads(1, || {
        wait_for_teams();
        let masks = with_crew(2, &|_: &mut ()| (), |crew| {
            crew.put(());
            crew.wait(Duration::from_secs(30));
            // A thread gets its name when it begins.
            let start = Instant::now();
            while team().len() < 2 && start.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(1));
            }
            team()
        });
        assert!(masks.len() >= 2, "{} threads", masks.len());
        assert!(masks.iter().all(|mask| mask >> 14 & 1 == 1), "{masks:x?}");
        wait_for_teams();
    });
}
