//! Elementary functions without branches, which the compiler turns into vector
//! instructions, and reductions with a fixed number of lanes (the compiler may
//! not reorder a sum of floats by itself).

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

const LANES: usize = 8;

/// e to the power of `x`, within 2 units in the last place for -87 < x < 88;
/// 1.2e-38 below that.
///
/// 2^n times a polynomial of the remainder, as in Cephes' `expf`
/// (its coefficients, for |r| < ln 2 / 2).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_HIGH, x);
    let r = n.mul_add(-LN_2_LOW, r);
    let p = 1.987_569_1e-4_f32
        .mul_add(r, 1.398_2e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let p = (r * r).mul_add(p, r) + 1.0;
    let power = rounded.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    f32::from_bits(p.to_bits().wrapping_add(power))
}

/// The Gaussian error linear unit x * Phi(x), with the error function of
/// Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    let z = (x * FRAC_1_SQRT_2).abs();
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let p = 1.061_405_4_f32
        .mul_add(t, -1.453_152_1)
        .mul_add(t, 1.421_413_8)
        .mul_add(t, -0.284_496_72)
        .mul_add(t, 0.254_829_6);
    // The complement of erf(z), so that negative x keep their relative accuracy.
    let complement = p * t * exp(-z * z);
    let tail = 0.5 * complement;
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    x * phi
}

/// The sum of the values.
#[inline(always)]
pub(super) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The sum of the squared distances of the values from `mean`.
#[inline(always)]
pub(super) fn squared_deviation(values: &[f32], mean: f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|v| (v - mean).powi(2)).sum();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let deviation = value - mean;
            *lane = deviation.mul_add(deviation, *lane);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The inner product of two slices of one length.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(*b, *lane);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// Adds `factor` times `source` to `target`.
#[inline(always)]
pub(super) fn add_scaled(target: &mut [f32], factor: f32, source: &[f32]) {
    for (target, source) in target.iter_mut().zip(source) {
        *target = factor.mul_add(*source, *target);
    }
}

/// Turns scores into exponentials relative to the largest and returns the
/// reciprocal of their sum: softmax without the last multiplication.
#[inline(always)]
pub(super) fn exponentials(scores: &mut [f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = scores.chunks_exact(LANES);
    let rest = chunks
        .remainder()
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    let largest = lanes.iter().copied().fold(rest, f32::max);
    for score in scores.iter_mut() {
        *score = exp(*score - largest);
    }
    1.0 / sum(scores)
}

/// [`exponentials`] of each column of a panel of (rows, `WIDTH`).
#[inline(always)]
pub(super) fn exponential_columns<const WIDTH: usize>(scores: &mut [f32]) -> [f32; WIDTH] {
    let (rows, _) = scores.as_chunks_mut::<WIDTH>();
    let mut largest = [f32::NEG_INFINITY; WIDTH];
    for row in rows.iter() {
        for (largest, score) in largest.iter_mut().zip(row) {
            *largest = if *score > *largest { *score } else { *largest };
        }
    }
    let mut sums = [0.0; WIDTH];
    for row in rows {
        for ((score, largest), sum) in row.iter_mut().zip(&largest).zip(&mut sums) {
            *score = exp(*score - largest);
            *sum += *score;
        }
    }
    sums.map(|sum| 1.0 / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for i in -870..=880 {
            for j in 0..10 {
                let x = i as f32 / 10.0 + j as f32 / 101.0;
                let x = x.min(88.2);
                let expected = f64::from(x).exp();
                let error = (f64::from(exp(x)) - expected).abs() / expected;
                assert!(error < 2.5e-7, "exp({x}): relative error {error:e}");
            }
        }
        assert!(exp(-1e30) < 1.3e-38 && exp(f32::NEG_INFINITY) < 1.3e-38);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn gelu_agrees_with_known_values() {
        // x * (1 + erf(x / sqrt(2))) / 2, in 64 bits.
        let known = [
            (-6.0, -5.919_526e-9),
            (-3.0, -4.049_694e-3),
            (-1.0, -1.586_552_5e-1),
            (-0.1, -4.601_721_6e-2),
            (0.0, 0.0),
            (0.5, 3.457_312_3e-1),
            (1.0, 0.841_344_7),
            (3.0, 2.995_950_3),
            (10.0, 10.0),
        ];
        for (x, expected) in known {
            assert!((gelu(x) - expected).abs() < 5e-7, "gelu({x}) = {}", gelu(x));
        }
    }

    #[test]
    fn reductions_cover_every_length() {
        for length in 0..40_usize {
            let values: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let expected = (length * length.saturating_sub(1) / 2) as f32;
            assert_eq!(sum(&values), expected);
            let squares: f32 = values.iter().map(|v| v * v).sum();
            assert_eq!(dot(&values, &values), squares);
            assert_eq!(squared_deviation(&values, 0.0), squares);
        }
    }

    #[test]
    fn softmax_of_large_scores_does_not_overflow() {
        let mut scores = [1e4, 1e4, -1e4];
        let scale = exponentials(&mut scores);
        assert_eq!(scores[0] * scale, 0.5);
        assert!(scores[2] * scale < 1e-37);
    }

    #[test]
    fn columns_are_computed_as_rows_are() {
        let mut panel: Vec<f32> = (0..7 * 4).map(|i| ((i * 5) % 9) as f32 - 300.0).collect();
        let columns: Vec<Vec<f32>> = (0..4)
            .map(|column| panel[column..].iter().step_by(4).copied().collect())
            .collect();
        let scales = exponential_columns::<4>(&mut panel);
        for (column, mut scores) in columns.into_iter().enumerate() {
            let scale = exponentials(&mut scores);
            assert!((scale - scales[column]).abs() < 1e-7);
            let of_panel: Vec<f32> = panel[column..].iter().step_by(4).copied().collect();
            assert_eq!(scores, of_panel);
        }
    }
}
