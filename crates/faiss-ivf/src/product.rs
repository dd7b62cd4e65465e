//! Product quantizers: their training, and look-up tables of their codes.
//!
//! A vector is cut into `m` parts, and each becomes the number of the nearest of
//! 2^bits centroids (Jégou, Douze and Schmid, "Product quantization for nearest
//! neighbor search", TPAMI 2011).

use crate::coder::Coder;
use crate::error::FaissError;
use crate::fast_scan::{ENTRIES, FastScan, Step};
use crate::kmeans::{KMeans, kmeans};
use crate::{Metric, scale};

/// FAISS's own choice for product quantizers.
const ITERATIONS: usize = 25;

/// The shape of a product quantizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The number of dimensions, a multiple of `m`.
    pub(crate) dim: usize,
    /// The number of parts.
    pub(crate) m: usize,
    /// Bits of the code of a part, 4 or 8.
    pub(crate) bits: usize,
}

impl Shape {
    /// The number of centroids of a part.
    pub(crate) fn centroids(&self) -> usize {
        1 << self.bits
    }
}

/// Finds centroids `(m, 2^bits, dim / m)` for `sample` `(n, dim)`, in front of them
/// the [`scale::unit`] by which they are divided.
pub(crate) fn train(
    shape: Shape,
    sample: &[f32],
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<f32>, FaissError> {
    let unit = scale::unit(scale::largest(sample));
    let sample = scale::divide(sample, unit);
    let part = shape.dim / shape.m;
    let needed = shape.centroids() * part;
    let options = KMeans {
        iterations: ITERATIONS,
        ..KMeans::new(shape.centroids(), Metric::L2)
    };
    let mut trained = vec![unit as f32];
    for begin in (0..shape.dim).step_by(part) {
        let rows = sample.chunks_exact(shape.dim);
        let mut points: Vec<f32> = rows
            .flat_map(|row| &row[begin..begin + part])
            .copied()
            .collect();
        // k-means wants as many points as centroids, not different ones.
        while points.len() < needed {
            let missing = needed - points.len();
            points.extend_from_within(..missing.min(points.len()));
        }
        trained.extend(kmeans(&options, part, &points, interrupted, &mut |_| ())?);
    }
    Ok(trained)
}

/// Inner products of a query with the centroids.
pub(crate) struct Tables {
    /// `(m, 2^bits)`, divided by `unit`.
    pub(crate) entries: Vec<f32>,
    pub(crate) unit: f64,
    /// A bound on the rounding of a sum of one entry of each table.
    error: f64,
}

impl Tables {
    pub(crate) fn new(coder: &Coder, shape: Shape, query: &[f32]) -> Result<Self, FaissError> {
        let query_unit = scale::unit(scale::largest(query));
        let query = scale::divide(query, query_unit);
        let mut entries = vec![0.0; shape.m * shape.centroids()];
        coder.product_tables(&query, &mut entries)?;
        // Each product and each addition rounds a number that is no larger than the
        // sum of the magnitudes.
        let terms = (shape.dim / shape.m + 1) as f64;
        let magnitude: f64 = query.iter().map(|&x| f64::from(x).abs()).sum();
        let largest = scale::largest(coder.trained());
        Ok(Tables {
            entries,
            unit: query_unit * coder.unit(),
            error: terms * magnitude * largest * f64::from(f32::EPSILON),
        })
    }

    /// The same in 8 bits, for tables of 16 entries.
    pub(crate) fn fast_scan(&self) -> FastScan {
        let tables = self.entries.as_chunks::<ENTRIES>().0;
        let (mut least, mut total, mut widest) = (0.0, 0.0, 0.0f64);
        for table in tables {
            let (from, to) = range(table);
            least += from;
            total += to - from;
            widest = widest.max(to - from);
        }
        let step = Step::new(tables.len(), least, total, widest);
        let mut tables = tables.iter();
        FastScan::new(step.times(self.unit), self.error * self.unit, |out| {
            if let Some(table) = tables.next() {
                let (from, _) = range(table);
                for (out, &entry) in out.iter_mut().zip(table) {
                    *out = ((f64::from(entry) - from) * step.inverse() + 0.5) as u8;
                }
            }
        })
    }
}

fn range(table: &[f32; ENTRIES]) -> (f64, f64) {
    let from = table.iter().copied().fold(f32::INFINITY, f32::min);
    let to = table.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (f64::from(from), f64::from(to))
}
