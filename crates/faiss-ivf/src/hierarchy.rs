//! k-means in two levels, where there are so many clusters that to compare each point
//! with each centroid in each iteration would take too long.
//!
//! Points are clustered into about √k groups, and each group into as many clusters as its
//! share of the points says: √k times less work in each level.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::crew::with_crew;
use crate::error::FaissError;
use crate::kmeans::{KMeans, kmeans, kmeans_alone};
use crate::threads;

/// With so many clusters there are two levels.
pub(crate) const LEAST_CLUSTERS: usize = 4096;
/// Points that are assigned to groups between two questions whether to stop.
const ROWS_PER_POLL: usize = 4096;
/// How often the calling thread looks for an interrupt while others work.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Groups that wait or are finished, for each thread.
const GROUPS_PER_THREAD: usize = 2;

/// Points that are clustered by themselves.
#[derive(Default)]
struct Group {
    clusters: usize,
    /// `(n, dim)`
    points: Vec<f32>,
    centroids: Option<Result<Vec<f32>, FaissError>>,
}

/// As [`kmeans()`], for points that were validated.
pub(crate) fn kmeans_of_groups(
    options: &KMeans,
    dim: usize,
    points: &[f32],
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f32>, FaissError> {
    let groups = options.clusters.isqrt();
    let lists = group(options, groups, dim, points, interrupted)?;
    let mut members = vec![Vec::new(); groups];
    for (row, &list) in (0u32..).zip(&lists) {
        members[list as usize].push(row);
    }
    drop(lists);
    members.retain(|rows| !rows.is_empty());
    let sizes: Vec<usize> = members.iter().map(Vec::len).collect();
    let shares = shares(options.clusters, &sizes);
    let jobs = members.iter().zip(&shares).map(|(rows, &clusters)| {
        let mut points_of_group = Vec::with_capacity(rows.len() * dim);
        for &row in rows {
            points_of_group.extend_from_slice(&points[row as usize * dim..][..dim]);
        }
        Group {
            clusters,
            points: points_of_group,
            centroids: None,
        }
    });
    let mut centroids = Vec::new();
    centroids
        .try_reserve_exact(options.clusters * dim)
        .map_err(|_| FaissError::OutOfMemory)?;
    // The groups were the first of the iterations.
    let mut done = 0;
    let mut told = 1;
    progress(told);
    let collect = |found: Vec<f32>| {
        centroids.extend(found);
        done += 1;
        let finished = 1 + done * (options.iterations - 1) / members.len();
        if finished > told {
            told = finished;
            progress(told);
        }
    };
    cluster_all(options, dim, jobs, interrupted, collect)?;
    Ok(centroids)
}

/// The group of each point.
fn group(
    options: &KMeans,
    groups: usize,
    dim: usize,
    points: &[f32],
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<u32>, FaissError> {
    let coarse = KMeans {
        clusters: groups,
        max_points_per_cluster: options.max_points_per_cluster.max(256),
        ..options.clone()
    };
    let centroids = kmeans(&coarse, dim, points, interrupted, &mut |_| ())?;
    let mut lists = vec![0; points.len() / dim];
    let blocks = points.chunks(ROWS_PER_POLL * dim);
    for (points, lists) in blocks.zip(lists.chunks_mut(ROWS_PER_POLL)) {
        if interrupted() {
            return Err(FaissError::Interrupted);
        }
        crate::assign(options.metric(), dim, &centroids, points, lists)?;
    }
    Ok(lists)
}

/// How many of `clusters` each group has, in proportion to its points, of which there are
/// at least as many as clusters: at least one, and not more than it has points.
fn shares(clusters: usize, sizes: &[usize]) -> Vec<usize> {
    let total: usize = sizes.iter().sum();
    let share = |size: usize| clusters as f64 * size as f64 / total as f64;
    let mut shares: Vec<usize> = (sizes.iter())
        .map(|&size| (share(size) as usize).clamp(1, size))
        .collect();
    let mut given: usize = shares.iter().sum();
    // Those that are farthest from their share come first.
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    let missing = |group: usize, given: usize| share(sizes[group]) - given as f64;
    while given != clusters {
        order.sort_by(|&a, &b| {
            let (a, b) = (missing(a, shares[a]), missing(b, shares[b]));
            b.total_cmp(&a)
        });
        if given < clusters {
            for &group in &order {
                if given < clusters && shares[group] < sizes[group] {
                    shares[group] += 1;
                    given += 1;
                }
            }
        } else {
            for &group in order.iter().rev() {
                if given > clusters && shares[group] > 1 {
                    shares[group] -= 1;
                    given -= 1;
                }
            }
        }
    }
    shares
}

/// Clusters each group on one thread, and hands their centroids to `collect` in order.
fn cluster_all(
    options: &KMeans,
    dim: usize,
    groups: impl Iterator<Item = Group>,
    interrupted: &dyn Fn() -> bool,
    mut collect: impl FnMut(Vec<f32>),
) -> Result<(), FaissError> {
    let cluster = |group: &Group, interrupted: &dyn Fn() -> bool| {
        let options = KMeans {
            clusters: group.clusters,
            ..options.clone()
        };
        kmeans_alone(&options, dim, &group.points, interrupted)
    };
    let helpers = threads::allowed();
    if helpers == 1 {
        for group in groups {
            collect(cluster(&group, interrupted)?);
        }
        return Ok(());
    }
    let stop = AtomicBool::new(false);
    let is_stopped = || stop.load(Ordering::Relaxed) || threads::is_stopped();
    let work = |group: &mut Group| group.centroids = Some(cluster(group, &is_stopped));
    with_crew(helpers, &work, |crew| {
        // Also when a closure panics.
        let _stop = StopWhenDropped(&stop);
        let mut take_back = |most_pending: usize| {
            loop {
                if interrupted() {
                    return Err(FaissError::Interrupted);
                }
                while let Some(group) = crew.take() {
                    collect(group.centroids.unwrap_or(Err(FaissError::Interrupted))?);
                }
                if crew.pending() <= most_pending {
                    return Ok(());
                }
                // Where there is no thread but this one.
                if crew.helpers() > 0 || !crew.help() {
                    crew.wait(POLL_INTERVAL);
                }
            }
        };
        for group in groups {
            crew.put(group);
            take_back(helpers * GROUPS_PER_THREAD)?;
        }
        take_back(0)
    })
}

struct StopWhenDropped<'a>(&'a AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn groups_have_their_share_of_the_clusters() {
        assert_eq!(shares(10, &[50, 30, 20]), [5, 3, 2]);
        assert_eq!(shares(10, &[1000, 1, 1]), [8, 1, 1]);
        assert_eq!(shares(6, &[3, 2, 1]), [3, 2, 1]);
        assert_eq!(shares(7, &[10, 10, 10]).iter().sum::<usize>(), 7);
        let uneven: Vec<usize> = (1..200).collect();
        let shares = shares(5000, &uneven);
        assert_eq!(shares.iter().sum::<usize>(), 5000);
        let fits = |(&share, &size): (&usize, &usize)| (1..=size).contains(&share);
        assert!(shares.iter().zip(&uneven).all(fits));
    }
}
