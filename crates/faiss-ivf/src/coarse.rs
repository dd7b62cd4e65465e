//! The nearest centroids of one vector, found by reading a quarter of the centroids' bytes.
//!
//! What ranking centroids for a single vector costs is reading them. So each centroid c is
//! kept a second time as ĉ = s C with integers C of 8 bits, and the vector z becomes
//! ẑ = t Z with integers Z of 12 bits. Their inner product is known within
//!
//!   |⟨z, c⟩ - s t ⟨Z, C⟩| ≤ ‖z‖ ‖c - ĉ‖ + ‖z - ẑ‖ ‖ĉ‖,
//!
//! by Cauchy and Schwarz. Only centroids that may be the nearest by these bounds are looked
//! at in full, which are few, and the one that is found is the nearest. Bounds that hold in
//! all likelihood are much closer: rounding errors point in random directions, so that their
//! products with a vector have a standard deviation of the product of the lengths / √d.

use crate::coding::squared;
use crate::error::FaissError;
use crate::{Metric, distances, ffi, nearest_one};

/// Largest 8-bit number of a centroid and largest number of a vector: the sum of the
/// products of as many dimensions as there may be is below 2³¹.
const CODE_LIMIT: f32 = 127.0;
const VECTOR_LIMIT: f32 = 2047.0;
const MOST_DIMENSIONS: usize = 8192;
const _: () = assert!(127 * 2047 * MOST_DIMENSIONS < 1 << 31);

/// Components that are added up side by side.
const LANES: usize = 8;

/// Distances of vectors that are shorter do not overflow.
const LONGEST: f64 = 1e18;

/// An estimate is off by more than so many standard deviations in one of 30,000 cases.
const DEVIATIONS: f64 = 4.0;

/// What sums of 32-bit floats may be wrong by, relative to the lengths of the vectors.
const ROUNDING: f64 = 1e-5;

/// Centroids in 8 bits, and how exact they are.
pub struct CoarseCentroids {
    metric: Metric,
    dim: usize,
    /// `(n, dim)`
    codes: Vec<i8>,
    centroids: Vec<Bounds>,
    /// No centroid is so long that its distances may overflow.
    fits: bool,
}

/// Of one centroid.
struct Bounds {
    /// s
    scale: f64,
    /// ‖c‖²
    square: f64,
    /// ‖c - ĉ‖
    error: f64,
    /// ‖ĉ‖, and ‖c‖ if that is longer.
    length: f64,
}

/// A vector, and its products with all centroids.
struct CoarseQuery {
    /// ‖z‖
    length: f64,
    /// t
    scale: f64,
    /// ‖z - ẑ‖
    error: f64,
    /// ⟨Z, C⟩
    products: Vec<i32>,
}

impl CoarseQuery {
    /// The key of a centroid, but for ‖z‖² under L2.
    fn key(&self, metric: Metric, product: i32, bounds: &Bounds) -> f64 {
        let product = bounds.scale * self.scale * f64::from(product);
        match metric {
            Metric::InnerProduct => -product,
            Metric::L2 => bounds.square - 2.0 * product,
        }
    }

    /// What the key of a centroid may be wrong by where the product is by `slack`.
    fn key_slack(&self, metric: Metric, slack: f64, bounds: &Bounds) -> f64 {
        let slack = slack + ROUNDING * self.length * bounds.length;
        match metric {
            Metric::InnerProduct => slack,
            Metric::L2 => 2.0 * slack + ROUNDING * (bounds.square + self.length * self.length),
        }
    }
}

impl CoarseCentroids {
    /// Of centroids `(n, dim)`.
    ///
    /// # Panics
    /// If it is not a whole number of vectors, or these have more dimensions than any may.
    #[must_use]
    pub fn new(metric: Metric, dim: usize, centroids: &[f32]) -> Self {
        assert!((1..=MOST_DIMENSIONS).contains(&dim) && centroids.len().is_multiple_of(dim));
        let mut codes = Vec::with_capacity(centroids.len());
        let bounds = |centroid: &[f32]| {
            let (scale, numbers) = quantize(centroid, CODE_LIMIT);
            let (error, coarse) = compare(centroid, scale, &numbers);
            codes.extend(numbers.iter().map(|&number| number as i8));
            let square = squared(centroid);
            Bounds {
                scale,
                square,
                error,
                length: coarse.max(square.sqrt()),
            }
        };
        let centroids: Vec<Bounds> = centroids.chunks_exact(dim).map(bounds).collect();
        let fits = centroids.iter().all(|bounds| bounds.length < LONGEST);
        Self {
            metric,
            dim,
            codes,
            centroids,
            fits,
        }
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len() + self.centroids.len() * size_of::<Bounds>()
    }

    /// As [`nearest_one`] of the `centroids` that this was made of.
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit.
    pub fn nearest(&self, query: &[f32], centroids: &[f32]) -> Result<usize, FaissError> {
        if query.len() != self.dim || centroids.len() != self.codes.len() {
            return Err(FaissError::invalid(format!(
                "{} values are no vector of {} dimensions, or {} no centroids of it",
                query.len(),
                self.dim,
                centroids.len()
            )));
        }
        let Some(candidates) = self.candidates(query) else {
            return nearest_one(self.metric, query, centroids);
        };
        let mut nearest = None;
        for row in candidates {
            let mut distance = [0.0];
            let centroid = &centroids[row * self.dim..][..self.dim];
            distances(self.metric, query, centroid, &mut distance)?;
            if nearest.is_none_or(|(_, least)| self.metric.is_nearer(distance[0], least)) {
                nearest = Some((row, distance[0]));
            }
        }
        Ok(nearest.map_or(0, |(row, _)| row))
    }

    /// The centroids that may be the nearest; `None` if numbers are too great to tell.
    fn candidates(&self, query: &[f32]) -> Option<Vec<usize>> {
        let coarse = self.query(query)?;
        // Least and greatest key of each: smaller is nearer.
        let keys: Vec<(f64, f64)> = coarse
            .products
            .iter()
            .zip(&self.centroids)
            .map(|(&product, bounds)| {
                let slack = coarse.length * bounds.error + coarse.error * bounds.length;
                let key = coarse.key(self.metric, product, bounds);
                let slack = coarse.key_slack(self.metric, slack, bounds);
                (key - slack, key + slack)
            })
            .collect();
        let bound = (keys.iter()).fold(f64::INFINITY, |least, key| least.min(key.1));
        let rows = keys.iter().enumerate();
        Some(
            rows.filter(|(_, key)| key.0 <= bound)
                .map(|(row, _)| row)
                .collect(),
        )
    }

    /// Estimates of the keys of all centroids, without what is the same for all of them:
    /// smaller is nearer. And by how much each is off at most in all likelihood. `None` if
    /// numbers are too great to tell, or for a query of another length.
    #[must_use]
    pub fn estimates(&self, query: &[f32]) -> Option<(Vec<f32>, f32)> {
        let coarse = self.query(query)?;
        let deviations = DEVIATIONS / (self.dim as f64).sqrt();
        let mut most = 0.0f64;
        let keys = (coarse.products.iter())
            .zip(&self.centroids)
            .map(|(&product, bounds)| {
                let error = coarse.length * bounds.error + coarse.error * bounds.length;
                most = most.max(coarse.key_slack(self.metric, error * deviations, bounds));
                coarse.key(self.metric, product, bounds) as f32
            })
            .collect();
        Some((keys, most as f32))
    }

    /// `None` if numbers are too great, or for a query of another length.
    fn query(&self, query: &[f32]) -> Option<CoarseQuery> {
        let length = squared(query).sqrt();
        if !self.fits || length >= LONGEST || query.len() != self.dim {
            return None;
        }
        let (scale, numbers) = quantize(query, VECTOR_LIMIT);
        let (error, _) = compare(query, scale, &numbers);
        let products = self.products(&numbers);
        Some(CoarseQuery {
            length,
            scale,
            error,
            products,
        })
    }

    /// ⟨Z, C⟩ with all centroids.
    fn products(&self, numbers: &[i16]) -> Vec<i32> {
        assert_eq!(numbers.len(), self.dim);
        let mut products = vec![0; self.centroids.len()];
        // SAFETY: the slices hold dim, n * dim and n numbers, as the shim is told.
        unsafe {
            ffi::faiss_ivf_byte_products(
                self.dim,
                numbers.as_ptr(),
                self.codes.as_ptr(),
                products.len(),
                products.as_mut_ptr(),
            );
        }
        products
    }
}

/// What one is, and the components in it, as integers between -limit and limit.
fn quantize(vector: &[f32], limit: f32) -> (f64, Vec<i16>) {
    let largest = vector
        .iter()
        .fold(0.0f32, |largest, x| largest.max(x.abs()));
    // Neither 0 nor so small that its reciprocal is infinite.
    let scale = (largest / limit).max(f32::MIN_POSITIVE);
    let number = |x: &f32| (x / scale).round_ties_even().clamp(-limit, limit) as i16;
    (f64::from(scale), vector.iter().map(number).collect())
}

/// The distance of a vector from its integers, and their length.
fn compare(vector: &[f32], scale: f64, numbers: &[i16]) -> (f64, f64) {
    // Side by side, so that the compiler can vectorise.
    let (mut error, mut length) = ([0.0; LANES], [0.0; LANES]);
    let mut add = |vector: &[f32; LANES], numbers: &[i16; LANES]| {
        for lane in 0..LANES {
            let coarse = scale * f64::from(numbers[lane]);
            let missing = f64::from(vector[lane]) - coarse;
            error[lane] += missing * missing;
            length[lane] += coarse * coarse;
        }
    };
    let (vector, vector_rest) = vector.as_chunks();
    let (numbers, numbers_rest) = numbers.as_chunks();
    for (vector, numbers) in vector.iter().zip(numbers) {
        add(vector, numbers);
    }
    let (mut last_vector, mut last_numbers) = ([0.0; LANES], [0; LANES]);
    last_vector[..vector_rest.len()].copy_from_slice(vector_rest);
    last_numbers[..numbers_rest.len()].copy_from_slice(numbers_rest);
    add(&last_vector, &last_numbers);
    let root = |sums: [f64; LANES]| sums.iter().sum::<f64>().sqrt();
    (root(error), root(length))
}
