//! Data and reference computations for the tests, in plain Rust.

use faiss_ivf::{FaissError, Metric};

/// A small generator (splitmix64), so that the tests depend on nothing else.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in -1..1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn vectors(&mut self, n: usize, dim: usize) -> Vec<f32> {
        (0..n * dim).map(|_| self.value()).collect()
    }

    /// `n` points `(n, dim)` spread around `blobs` random centres.
    pub fn clustered(&mut self, n: usize, dim: usize, blobs: usize) -> Vec<f32> {
        let centres = self.vectors(blobs, dim);
        let mut points = Vec::with_capacity(n * dim);
        for _ in 0..n {
            let blob = self.next() as usize % blobs;
            for centre in &centres[blob * dim..(blob + 1) * dim] {
                points.push(centre + 0.2 * self.value());
            }
        }
        points
    }
}

/// The distance in double precision.
pub fn distance(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
    match metric {
        Metric::InnerProduct => pairs.map(|(x, y)| x * y).sum(),
        Metric::L2 => pairs.map(|(x, y)| (x - y) * (x - y)).sum(),
    }
}

/// The number and the distance of the nearest centroid.
pub fn nearest(metric: Metric, dim: usize, centroids: &[f32], point: &[f32]) -> (usize, f64) {
    let mut best = None;
    for (number, centroid) in centroids.chunks_exact(dim).enumerate() {
        let this = distance(metric, point, centroid);
        let nearer = match (metric, best) {
            (_, None) => true,
            (Metric::InnerProduct, Some((_, best))) => this > best,
            (Metric::L2, Some((_, best))) => this < best,
        };
        if nearer {
            best = Some((number, this));
        }
    }
    best.expect("there is a centroid")
}

/// The sum over all points of the distance to the nearest centroid.
pub fn objective(metric: Metric, dim: usize, centroids: &[f32], points: &[f32]) -> f64 {
    points
        .chunks_exact(dim)
        .map(|point| nearest(metric, dim, centroids, point).1)
        .sum()
}

pub fn assert_invalid(result: Result<(), FaissError>) {
    assert!(
        matches!(result, Err(FaissError::InvalidArgument(_))),
        "{result:?}"
    );
}
