//! k-means: quality, repeatability, interruption, awkward data.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::reference::{Random, objective};
use faiss_ivf::{FaissError, KMeans, Metric, kmeans, normalize, set_threads};

/// The number of threads is one setting of the process.
static THREADS: Mutex<()> = Mutex::new(());

/// Runs `work` with `n` threads allowed, and no other such test meanwhile.
pub fn with_threads<T>(n: usize, work: impl FnOnce() -> T) -> T {
    let _lock = THREADS.lock().unwrap_or_else(|e| e.into_inner());
    set_threads(n);
    let result = work();
    set_threads(1);
    result
}

fn options(clusters: usize, metric: Metric) -> KMeans {
    KMeans::new(clusters, metric)
}

fn run(options: &KMeans, dim: usize, points: &[f32]) -> Result<Vec<f32>, FaissError> {
    kmeans(options, dim, points, &|| false, &mut |_| ())
}

#[test]
fn centroids_are_better_than_random_points() {
    for threads in [1, 2] {
        with_threads(threads, || {
            for metric in [Metric::InnerProduct, Metric::L2] {
                let (dim, clusters) = (32, 20);
                let mut random = Random(3);
                let mut points = random.clustered(2000, dim, clusters);
                if metric == Metric::InnerProduct {
                    normalize(dim, &mut points).unwrap();
                }
                let trained = run(&options(clusters, metric), dim, &points).unwrap();
                assert_eq!(trained.len(), clusters * dim);
                let trained = objective(metric, dim, &trained, &points);
                let random = objective(metric, dim, &points[..clusters * dim], &points);
                match metric {
                    Metric::InnerProduct => assert!(trained > 1.02 * random),
                    Metric::L2 => assert!(trained < 0.8 * random),
                }
            }
        });
    }
}

#[test]
fn a_seed_repeats_and_another_differs() {
    for threads in [1, 2] {
        with_threads(threads, || {
            let points = Random(4).clustered(3000, 24, 40);
            let mut options = options(30, Metric::L2);
            let first = run(&options, 24, &points).unwrap();
            assert_eq!(first, run(&options, 24, &points).unwrap());
            for seed in [0, 1 << 31, u64::MAX] {
                options.seed = seed;
                let other = run(&options, 24, &points).unwrap();
                assert_ne!(first, other);
                assert_eq!(other, run(&options, 24, &points).unwrap());
            }
        });
    }
}

#[test]
fn threads_change_no_centroid() {
    // Several blocks of points; the latter in two levels.
    for (n, dim, clusters) in [(5000, 24, 40), (20_000, 8, 5000)] {
        let points = Random(14).clustered(n, dim, 200);
        for metric in [Metric::InnerProduct, Metric::L2] {
            let options = options(clusters, metric);
            let of_threads =
                |threads| with_threads(threads, || run(&options, dim, &points).unwrap());
            let alone = of_threads(1);
            assert_eq!(alone.len(), clusters * dim);
            assert!(alone == of_threads(2), "{clusters} {metric:?}");
            assert!(alone == of_threads(3), "{clusters} {metric:?}");
        }
    }
}

#[test]
fn two_levels_are_nearly_as_good_as_one() {
    let (n, dim, clusters) = (40_000, 16, 4096);
    let points = Random(15).clustered(n, dim, 300);
    let two = run(&options(clusters, Metric::L2), dim, &points).unwrap();
    assert_eq!(two.len(), clusters * dim);
    // One cluster less is found in one level.
    let one = run(&options(clusters - 1, Metric::L2), dim, &points).unwrap();
    let sample = &points[..2000 * dim];
    let (two, one) = (
        objective(Metric::L2, dim, &two, sample),
        objective(Metric::L2, dim, &one, sample),
    );
    assert!(two < 1.1 * one, "{two} instead of {one}");
}

#[test]
fn two_levels_can_be_interrupted_and_tell_how_far_they_are() {
    let (dim, clusters) = (8, 5000);
    let points = Random(16).clustered(20_000, dim, 200);
    let options = options(clusters, Metric::L2);
    for threads in [1, 2] {
        with_threads(threads, || {
            let mut seen = Vec::new();
            let never = || false;
            kmeans(&options, dim, &points, &never, &mut |i| seen.push(i)).unwrap();
            assert_eq!(seen.last(), Some(&options.iterations));
            assert!(seen.is_sorted() && seen.len() > 3, "{seen:?}");
            let asked = AtomicUsize::new(0);
            let later = || asked.fetch_add(1, Ordering::Relaxed) > 8;
            let result = kmeans(&options, dim, &points, &later, &mut |_| ());
            assert_eq!(result, Err(FaissError::Interrupted));
        });
    }
}

#[test]
fn two_levels_manage_points_that_are_alike() {
    // Half of them are the same, so that a group has fewer distinct points than clusters.
    let mut points = vec![0.5; 5000 * 4];
    points.extend(Random(17).vectors(5000, 4));
    let centroids = run(&options(4500, Metric::L2), 4, &points).unwrap();
    assert_eq!(centroids.len(), 4500 * 4);
    assert!(centroids.iter().all(|x| x.is_finite()));
}

#[test]
fn spherical_centroids_have_unit_length() {
    let points = Random(5).clustered(1000, 16, 10);
    let centroids = run(&options(10, Metric::InnerProduct), 16, &points).unwrap();
    for centroid in centroids.chunks_exact(16) {
        let squares: f32 = centroid.iter().map(|x| x * x).sum();
        assert!((squares - 1.0).abs() < 1e-5);
    }
}

#[test]
fn progress_counts_every_iteration() {
    let points = Random(6).clustered(2000, 8, 10);
    let mut options = options(10, Metric::L2);
    options.iterations = 7;
    let mut seen = Vec::new();
    with_threads(1, || {
        kmeans(&options, 8, &points, &|| false, &mut |i| seen.push(i)).unwrap();
    });
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn an_interrupt_ends_it_at_once() {
    // Uninterrupted, this is some minutes of work.
    let (dim, clusters, n) = (256, 1000, 100_000);
    let points = Random(8).vectors(n, dim);
    let mut options = options(clusters, Metric::L2);
    options.iterations = 1000;
    for threads in [1, 2] {
        with_threads(threads, || {
            let asked = Mutex::new(None);
            let start = Instant::now();
            let interrupted = || {
                let yes = start.elapsed() > Duration::from_millis(1500);
                if yes {
                    asked.lock().unwrap().get_or_insert_with(Instant::now);
                }
                yes
            };
            let result = kmeans(&options, dim, &points, &interrupted, &mut |_| ());
            assert_eq!(result, Err(FaissError::Interrupted));
            assert!(start.elapsed() < Duration::from_secs(5));
            let asked = asked.lock().unwrap().expect("it asked");
            assert!(asked.elapsed() < Duration::from_secs(1));
        });
    }
}

#[test]
fn it_asks_often() {
    let (dim, clusters, n) = (256, 1000, 50_000);
    let points = Random(8).vectors(n, dim);
    let mut options = options(clusters, Metric::L2);
    options.iterations = 2;
    with_threads(1, || {
        let last = Mutex::new((Instant::now(), Duration::ZERO));
        let count = AtomicUsize::new(0);
        let interrupted = || {
            let mut last = last.lock().unwrap();
            last.1 = last.1.max(last.0.elapsed());
            last.0 = Instant::now();
            count.fetch_add(1, Ordering::Relaxed);
            false
        };
        kmeans(&options, dim, &points, &interrupted, &mut |_| ()).unwrap();
        let longest = last.lock().unwrap().1;
        assert!(
            longest < Duration::from_secs(1),
            "{longest:?} without a question"
        );
        assert!(count.load(Ordering::Relaxed) >= 10);
    });
}

#[test]
fn a_panic_of_a_closure_comes_through() {
    let points = Random(9).clustered(2000, 8, 10);
    for threads in [1, 2] {
        with_threads(threads, || {
            let caught = std::panic::catch_unwind(|| {
                let never = || panic!("from the closure");
                kmeans(&options(10, Metric::L2), 8, &points, &never, &mut |_| ())
            });
            let payload = caught.expect_err("it panics");
            assert_eq!(payload.downcast_ref(), Some(&"from the closure"));
        });
    }
}

#[test]
fn no_more_distinct_points_than_clusters_are_the_centroids() {
    let distinct = [1.0, 0.0, 0.0, 2.0, 3.0, 3.0];
    let points: Vec<f32> = distinct.iter().cycle().take(300).copied().collect();
    let centroids = run(&options(3, Metric::L2), 2, &points).unwrap();
    assert_eq!(centroids, distinct);
    let centroids = run(&options(4, Metric::L2), 2, &points).unwrap();
    assert_eq!(centroids[..6], distinct);
    assert_eq!(centroids[6..], distinct[..2]);
    let centroids = run(&options(2, Metric::InnerProduct), 2, &[5.0, 0.0, 0.0, 0.5]).unwrap();
    assert_eq!(centroids, [1.0, 0.0, 0.0, 1.0]);
}

#[test]
fn constant_points_give_that_centroid() {
    let points = [0.25; 4000];
    let centroids = run(&options(10, Metric::L2), 4, &points).unwrap();
    assert_eq!(centroids, [0.25; 40]);
    let centroids = run(&options(10, Metric::InnerProduct), 4, &[0.0; 4000]).unwrap();
    assert_eq!(centroids, [0.0; 40]);
}

#[test]
fn many_duplicates_leave_no_bad_centroid() {
    // Nine of ten points are the same, so that most first centroids are too.
    let mut points = vec![0.5; 2000 * 6];
    points.extend(Random(10).vectors(200, 6));
    for metric in [Metric::InnerProduct, Metric::L2] {
        let centroids = run(&options(50, metric), 6, &points).unwrap();
        assert_eq!(centroids.len(), 300);
        assert!(centroids.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn values_whose_squares_overflow_are_refused_in_time() {
    for dim in [4, 40] {
        let mut points = Random(11).vectors(500, dim);
        points.iter_mut().for_each(|x| *x *= f32::MAX);
        for metric in [Metric::InnerProduct, Metric::L2] {
            let result = run(&options(10, metric), dim, &points);
            assert!(
                matches!(result, Err(FaissError::InvalidArgument(_))),
                "{result:?}"
            );
        }
    }
}

#[test]
fn bad_arguments_are_refused() {
    let points = Random(12).vectors(10, 4);
    let good = options(2, Metric::L2);
    let refused = |options: &KMeans, dim: usize, points: &[f32]| {
        let result = run(options, dim, points);
        assert!(
            matches!(result, Err(FaissError::InvalidArgument(_))),
            "{result:?}"
        );
    };
    refused(&good, 0, &points);
    refused(&good, 3, &points);
    refused(&good, 4, &[]);
    refused(&options(0, Metric::L2), 4, &points);
    refused(&options(11, Metric::L2), 4, &points);
    refused(&options(usize::MAX, Metric::L2), 4, &points);
    refused(
        &KMeans {
            iterations: 0,
            ..good.clone()
        },
        4,
        &points,
    );
    refused(
        &KMeans {
            max_points_per_cluster: 0,
            ..good.clone()
        },
        4,
        &points,
    );
    for bad in [f32::NAN, f32::INFINITY] {
        let mut points = points.clone();
        points[39] = bad;
        refused(&good, 4, &points);
    }
    run(&good, 4, &points).unwrap();
    let sampled = KMeans {
        max_points_per_cluster: 2,
        ..good
    };
    run(&sampled, 4, &points).unwrap();
}
