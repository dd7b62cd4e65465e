//! Distances, assignment to centroids, normalisation.

use std::ffi::c_int;

use crate::error::FaissError;
use crate::{Metric, ffi, threads};

impl Metric {
    pub(crate) fn code(self) -> c_int {
        match self {
            Metric::InnerProduct => ffi::METRIC_INNER_PRODUCT,
            Metric::L2 => ffi::METRIC_L2,
        }
    }
}

/// Finds the nearest centroid of every point.
///
/// `centroids` is `(clusters, dim)` and `points` is `(n, dim)`, both row-major;
/// `lists` receives `n` rows of `centroids`, each below `clusters`. Between equally
/// near centroids any may win. A point so long that all its distances overflow
/// goes to list 0.
///
/// It cannot be interrupted: give it points in batches (some thousands keep the
/// matrix product efficient). It uses the threads of [`set_threads`](crate::set_threads).
///
/// # Errors
/// `InvalidArgument` when the lengths do not fit, when there is no centroid, or
/// when a point or a centroid is not finite; no point at all is no error.
pub fn assign(
    metric: Metric,
    dim: usize,
    centroids: &[f32],
    points: &[f32],
    lists: &mut [u32],
) -> Result<(), FaissError> {
    let clusters = rows(dim, centroids, "centroids")?;
    let n = rows(dim, points, "points")?;
    if clusters == 0 {
        return Err(FaissError::invalid("there are no centroids to assign to"));
    }
    if u32::try_from(clusters).is_err() {
        return Err(FaissError::invalid(format!(
            "{clusters} centroids are too many"
        )));
    }
    if lists.len() != n {
        return Err(FaissError::invalid(format!(
            "{n} points cannot be assigned into {} places",
            lists.len()
        )));
    }
    check_finite(centroids, "centroids")?;
    check_finite(points, "points")?;
    if n == 0 {
        return Ok(());
    }

    let run = |lists: &mut [u32]| {
        FaissError::check(|message, message_bytes| {
            // SAFETY: `rows` and the test above give the lengths that the shim
            // is told; it reads the first two slices and writes the third.
            unsafe {
                ffi::faiss_ivf_assign(
                    metric.code(),
                    dim,
                    centroids.as_ptr(),
                    clusters,
                    points.as_ptr(),
                    n,
                    lists.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    };
    threads::for_size(points.len().saturating_mul(clusters), || run(lists))
}

/// Computes the distances of one query `(dim)` to `n` contiguous vectors
/// `(n, dim)` into `out` `(n)`, on the calling thread.
///
/// Values are not checked: a NaN or an overflow in the input shows in `out`.
///
/// # Errors
/// `InvalidArgument` when the query is empty or the lengths do not fit.
pub fn distances(
    metric: Metric,
    query: &[f32],
    vectors: &[f32],
    out: &mut [f32],
) -> Result<(), FaissError> {
    let n = rows(query.len(), vectors, "vectors")?;
    if out.len() != n {
        return Err(FaissError::invalid(format!(
            "{n} distances cannot be written into {} places",
            out.len()
        )));
    }
    // SAFETY: the slices hold dim, n * dim and n floats, as the shim is told.
    unsafe {
        ffi::faiss_ivf_distances(
            metric.code(),
            query.len(),
            query.as_ptr(),
            vectors.as_ptr(),
            n,
            out.as_mut_ptr(),
        );
    }
    Ok(())
}

/// Finds the nearest of `vectors` `(n, dim)` to one query `(dim)`, on the calling thread:
/// its row, and 0 if there is none. Between equally near ones any may win; a distance that
/// is no number is that of the farthest.
///
/// It is what [`assign`] is for many points, without its checks of all values.
///
/// # Errors
/// `InvalidArgument` when the query is empty or the lengths do not fit.
pub fn nearest_one(metric: Metric, query: &[f32], vectors: &[f32]) -> Result<usize, FaissError> {
    let n = rows(query.len(), vectors, "vectors")?;
    let mut all = vec![0.0; n];
    distances(metric, query, vectors, &mut all)?;
    let farthest = match metric {
        Metric::InnerProduct => f32::NEG_INFINITY,
        Metric::L2 => f32::INFINITY,
    };
    let mut nearest = (farthest, 0);
    for (row, &distance) in all.iter().enumerate() {
        if metric.is_nearer(distance, nearest.0) {
            nearest = (distance, row);
        }
    }
    Ok(nearest.1)
}

/// Computes the distances of all queries `(q, dim)` to all of `vectors` `(n, dim)`, as a
/// matrix product: `out` becomes `(q, n)`.
///
/// It cannot be interrupted, as [`assign`] cannot. Values are not checked: a NaN or an
/// overflow in the input shows in `out`.
///
/// # Errors
/// `InvalidArgument` when the lengths do not fit; `OutOfMemory`.
pub fn all_distances(
    metric: Metric,
    dim: usize,
    queries: &[f32],
    vectors: &[f32],
    out: &mut Vec<f32>,
) -> Result<(), FaissError> {
    let n_queries = rows(dim, queries, "queries")?;
    let n = rows(dim, vectors, "vectors")?;
    // BLAS counts rows with 32 bits.
    if i32::try_from(n.max(n_queries)).is_err() {
        return Err(FaissError::invalid(format!(
            "{n_queries} queries and {n} vectors are too many"
        )));
    }
    out.clear();
    let len = n.saturating_mul(n_queries);
    out.try_reserve(len).map_err(|_| FaissError::OutOfMemory)?;
    out.resize(len, 0.0);
    if out.is_empty() {
        return Ok(());
    }
    threads::alone(|| {
        FaissError::check(|message, message_bytes| {
            // SAFETY: the slices have the lengths that the shim is told.
            unsafe {
                ffi::faiss_ivf_all_distances(
                    metric.code(),
                    dim,
                    queries.as_ptr(),
                    n_queries,
                    vectors.as_ptr(),
                    n,
                    out.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    })
}

/// Divides each vector of `vectors` `(n, dim)` by its L2 norm, in place; a zero
/// vector stays as it is.
///
/// # Errors
/// `InvalidArgument` when `vectors` is not a whole number of vectors.
pub fn normalize(dim: usize, vectors: &mut [f32]) -> Result<(), FaissError> {
    rows(dim, vectors, "vectors")?;
    for vector in vectors.chunks_exact_mut(dim) {
        // In double precision the sum of squares neither overflows nor vanishes
        // for any finite vector.
        let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        if squares > 0.0 {
            let scale = 1.0 / squares.sqrt();
            for x in vector {
                *x = (f64::from(*x) * scale) as f32;
            }
        }
    }
    Ok(())
}

/// The number of rows of a row-major matrix with `dim` columns.
pub(crate) fn rows(dim: usize, matrix: &[f32], what: &str) -> Result<usize, FaissError> {
    if dim == 0 || i32::try_from(dim).is_err() {
        return Err(FaissError::invalid(format!(
            "{dim} is not a valid number of dimensions"
        )));
    }
    if !matrix.len().is_multiple_of(dim) {
        return Err(FaissError::invalid(format!(
            "{} values are not a whole number of {what} of {dim} dimensions",
            matrix.len()
        )));
    }
    Ok(matrix.len() / dim)
}

/// Refuses NaN and infinities, which FAISS would carry into every centroid.
pub(crate) fn check_finite(values: &[f32], what: &str) -> Result<(), FaissError> {
    // Whole blocks without an early exit, so that the compiler can vectorise.
    let finite = values
        .chunks(1024)
        .all(|block| block.iter().fold(true, |all, x| all & x.is_finite()));
    if finite {
        Ok(())
    } else {
        Err(FaissError::invalid(format!(
            "{what} contain a NaN or an infinity"
        )))
    }
}
