//! k-means by FAISS's `Clustering`, with interruption and progress.

use faiss::FlatIndex;
use faiss::cluster::{Clustering, ClusteringParameters};

use crate::Metric;
use crate::distance::{check_finite, normalize, rows};
use crate::distinct::distinct_rows;
use crate::error::FaissError;
use crate::hierarchy;
use crate::poll::{Poll, alone, polled};

/// What k-means shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KMeans {
    /// The number of centroids.
    pub clusters: usize,
    /// The number of Lloyd iterations; 10 to 25 is usual.
    pub iterations: usize,
    /// Chooses the first centroids and, where there are too many points, the
    /// sample. The same seed and points give the same centroids.
    pub seed: u64,
    /// Keep centroids on the unit sphere and assign by inner product: for inner
    /// product and cosine distance. Otherwise assign by L2 distance.
    pub spherical: bool,
    /// Points beyond `clusters * max_points_per_cluster` are left out at random;
    /// the sample is a copy, so a caller short of memory samples itself.
    pub max_points_per_cluster: usize,
}

impl KMeans {
    /// FAISS's own choices for the coarse centroids of an inverted file: 10
    /// iterations, at most 256 points a cluster.
    pub fn new(clusters: usize, metric: Metric) -> Self {
        KMeans {
            clusters,
            iterations: 10,
            seed: 1234,
            spherical: metric == Metric::InnerProduct,
            max_points_per_cluster: 256,
        }
    }

    /// By what points are assigned.
    pub(crate) fn metric(&self) -> Metric {
        if self.spherical {
            Metric::InnerProduct
        } else {
            Metric::L2
        }
    }

    /// The seed as FAISS takes it: 31 bits, as it reads a negative number as
    /// "the current time".
    fn faiss_seed(&self) -> u32 {
        let folded = self.seed ^ self.seed >> 31 ^ self.seed >> 62;
        (folded & 0x7fff_ffff) as u32
    }

    fn parameters(&self) -> ClusteringParameters {
        let count = |value: usize| u32::try_from(value.min(i32::MAX as usize)).unwrap_or(u32::MAX);
        let mut parameters = ClusteringParameters::new();
        parameters.set_niter(count(self.iterations));
        parameters.set_seed(self.faiss_seed());
        parameters.set_spherical(self.spherical);
        parameters.set_max_points_per_centroid(count(self.max_points_per_cluster));
        // FAISS would warn on the standard error output.
        parameters.set_min_points_per_centroid(1);
        parameters
    }

    fn validate(&self, dim: usize, points: &[f32]) -> Result<(), FaissError> {
        let n = rows(dim, points, "points")?;
        let small = |value: usize| value >= 1 && i32::try_from(value).is_ok();
        let wrong = |what: &str, value: usize| {
            Err(FaissError::invalid(format!(
                "{value} is not a valid number of {what}"
            )))
        };
        if !small(self.clusters) {
            return wrong("clusters", self.clusters);
        }
        if !small(self.iterations) {
            return wrong("iterations", self.iterations);
        }
        if !small(self.max_points_per_cluster) {
            return wrong("points per cluster", self.max_points_per_cluster);
        }
        if i32::try_from(n).is_err() {
            return wrong("points", n);
        }
        if n < self.clusters {
            return Err(FaissError::invalid(format!(
                "{n} points cannot form {} clusters",
                self.clusters
            )));
        }
        check_finite(points, "points")
    }
}

/// Finds `options.clusters` centroids of `points` `(n, dim)`, row-major, and
/// returns them as `(clusters, dim)`. [`set_threads`](crate::set_threads) does not change
/// them.
///
/// When there are no more distinct points than clusters, the centroids are those
/// points, repeated to make up the number. Where there are many clusters, points are
/// clustered in two levels: see `hierarchy`.
///
/// `interrupted` is asked several times a second, `progress` is told the number
/// of finished iterations. Both run on the calling thread; with one thread they
/// run under frames of FAISS, so they must not leave by `longjmp` (an unwinding
/// panic is carried over). It uses the threads of [`set_threads`](crate::set_threads).
///
/// # Errors
/// `InvalidArgument` when the lengths do not fit, a number in `options` is 0,
/// there are fewer points than clusters, or a value is not finite or too large
/// to be squared; `Interrupted`; `OutOfMemory`.
pub fn kmeans(
    options: &KMeans,
    dim: usize,
    points: &[f32],
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<f32>, FaissError> {
    options.validate(dim, points)?;
    // FAISS fills empty clusters by splitting others, in quadratic time where
    // most are empty; when all centroids can be points, that is the answer.
    if let Some(found) = distinct_rows(dim, points, options.clusters, interrupted)? {
        return repeat_points(options, dim, &found);
    }
    let centroids = if options.clusters < hierarchy::LEAST_CLUSTERS {
        polled(interrupted, progress, |poll| {
            train(options, dim, points, poll)
        })?
    } else {
        hierarchy::kmeans_of_groups(options, dim, points, interrupted, progress)?
    };
    check_finite(&centroids, "centroids of these points")?;
    Ok(centroids)
}

/// The same in one level on this thread alone, for points that were validated.
pub(crate) fn kmeans_alone(
    options: &KMeans,
    dim: usize,
    points: &[f32],
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<f32>, FaissError> {
    if let Some(found) = distinct_rows(dim, points, options.clusters, interrupted)? {
        return repeat_points(options, dim, &found);
    }
    alone(interrupted, &mut |_| (), |poll| {
        train(options, dim, points, poll)
    })
}

fn repeat_points(options: &KMeans, dim: usize, found: &[&[f32]]) -> Result<Vec<f32>, FaissError> {
    let chosen = found.iter().cycle().take(options.clusters);
    let mut centroids: Vec<f32> = chosen.flat_map(|row| row.iter().copied()).collect();
    if options.spherical {
        normalize(dim, &mut centroids)?;
    }
    Ok(centroids)
}

/// Trains on this thread and the OpenMP team that it leads.
fn train(
    options: &KMeans,
    dim: usize,
    points: &[f32],
    poll: &mut Poll,
) -> Result<Vec<f32>, FaissError> {
    poll.with_index(options.metric(), dim, |index| {
        cluster(options, dim, points, index)
    })
}

fn cluster(
    options: &KMeans,
    dim: usize,
    points: &[f32],
    index: &mut FlatIndex,
) -> Result<Vec<f32>, FaissError> {
    let narrow = |value: usize| {
        u32::try_from(value).map_err(|_| FaissError::invalid(format!("{value} is too large")))
    };
    let mut clustering = Clustering::new_with_params(
        narrow(dim)?,
        narrow(options.clusters)?,
        &options.parameters(),
    )?;
    clustering.train(points, index)?;
    let mut centroids = Vec::new();
    centroids
        .try_reserve_exact(options.clusters * dim)
        .map_err(|_| FaissError::OutOfMemory)?;
    for centroid in clustering.centroids()? {
        centroids.extend_from_slice(centroid);
    }
    Ok(centroids)
}
