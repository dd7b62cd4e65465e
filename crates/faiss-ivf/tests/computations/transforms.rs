//! Linear maps: what they keep, and that they equal a plain product.

use std::cell::Cell;

use crate::kmeans::with_threads;
use crate::reference::{Random, assert_invalid, distance};
use faiss_ivf::{FaissError, Metric, Quantizer, QuantizerKind, Transform, TransformKind};

fn train(kind: TransformKind, dim: usize, sample: &[f32]) -> Transform {
    Transform::train(kind, dim, sample, &|| false).unwrap()
}

fn apply(transform: &Transform, vectors: &[f32]) -> Vec<f32> {
    let mut out = vec![7.0];
    transform.apply(vectors, &mut out).unwrap();
    assert_eq!(out.remove(0), 7.0, "it appends");
    out
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum()
}

/// Kinds of transforms of `dim` dimensions.
fn kinds(dim: usize) -> Vec<TransformKind> {
    use TransformKind::{Opq, Pca, RandomRotation};
    let out = dim.div_ceil(2);
    vec![
        RandomRotation,
        Pca { out },
        Opq {
            m: 1,
            out: Some(out),
        },
        Opq { m: dim, out: None },
    ]
}

/// Vectors whose dimensions depend on each other, around a mean that is not 0.
fn correlated(random: &mut Random, n: usize, dim: usize) -> Vec<f32> {
    let mut vectors = Vec::new();
    for _ in 0..n {
        let mut walk = 0.0;
        for _ in 0..dim {
            walk += random.value();
            vectors.push(5.0 + walk);
        }
    }
    vectors
}

#[test]
fn a_rotation_keeps_inner_products() {
    for dim in [1, 2, 7, 64, 384] {
        let mut random = Random(1);
        let vectors = random.vectors(5, dim);
        let rotated = apply(
            &train(TransformKind::RandomRotation, dim, &vectors),
            &vectors,
        );
        let rows =
            |all: &[f32]| -> Vec<Vec<f32>> { all.chunks_exact(dim).map(<[f32]>::to_vec).collect() };
        let (before, after) = (rows(&vectors), rows(&rotated));
        for i in 0..5 {
            for j in 0..5 {
                let (expected, got) = (
                    product(&before[i], &before[j]),
                    product(&after[i], &after[j]),
                );
                let lengths = product(&before[i], &before[i]).max(product(&before[j], &before[j]));
                assert!(
                    (expected - got).abs() < 1e-4 * lengths,
                    "{got} instead of {expected}"
                );
            }
        }
        if dim > 2 {
            assert!(product(&before[0], &after[0]) < 0.9 * product(&before[0], &before[0]));
        }
    }
}

#[test]
fn it_is_a_product() {
    for dim in [1, 3, 16, 100] {
        let mut random = Random(dim as u64);
        let (sample, vectors) = (random.clustered(300, dim, 9), random.vectors(7, dim));
        for kind in kinds(dim) {
            let transform = train(kind, dim, &sample);
            let out = transform.out_dim();
            let mapped = apply(&transform, &vectors);
            assert_eq!(mapped.len(), 7 * out);
            let matrix = matrix_of(&transform);
            for (vector, mapped) in vectors.chunks_exact(dim).zip(mapped.chunks_exact(out)) {
                for (i, &got) in mapped.iter().enumerate() {
                    let expected = product(&matrix[i * dim..][..dim], vector);
                    assert!((f64::from(got) - expected).abs() < 1e-4, "{kind:?}");
                }
            }
        }
    }
}

#[test]
fn a_stored_transform_is_the_same() {
    let dim = 12;
    let mut random = Random(3);
    let (sample, vectors) = (random.vectors(50, dim), random.vectors(4, dim));
    for kind in kinds(dim) {
        let transform = train(kind, dim, &sample);
        let state = transform.state();
        assert_eq!(state, train(kind, dim, &sample).state());
        assert_eq!(state.len(), Transform::state_size(kind, dim));
        let again = Transform::from_state(kind, dim, &state).unwrap();
        assert_eq!(again.state(), state);
        assert_eq!(apply(&again, &vectors), apply(&transform, &vectors));

        let from = |state: &[u8]| Transform::from_state(kind, dim, state).map(|_| ());
        assert_invalid(from(&state[1..]));
        assert_invalid(from(&[]));
        let mut damaged = state.clone();
        damaged[4..8].copy_from_slice(&f32::NAN.to_ne_bytes());
        assert_invalid(from(&damaged));
    }
}

#[test]
fn bad_arguments_are_refused() {
    let dim = 8;
    for kind in kinds(dim) {
        let untrained =
            |dim, sample: &[f32]| Transform::train(kind, dim, sample, &|| false).map(|_| ());
        assert_invalid(untrained(dim, &[]));
        assert_invalid(untrained(dim, &[0.0; 9]));
        assert_invalid(untrained(dim, &[f32::NAN; 8]));
        assert_invalid(Transform::check(kind, 0));
        assert_invalid(Transform::check(kind, 1 << 20));
        assert_invalid(Transform::check(kind, usize::MAX));
        let stopped = Transform::train(kind, dim, &[0.0; 8], &|| true);
        assert_eq!(stopped.map(|_| ()), Err(FaissError::Interrupted));
        let transform = train(kind, dim, &[1.0; 8]);
        assert_invalid(transform.apply(&[0.0; 9], &mut Vec::new()));
        assert_invalid(transform.apply(&[f32::INFINITY; 8], &mut Vec::new()));
        assert_eq!(apply(&transform, &[]), [0.0; 0]);
    }
}

/// The matrix `(out, dim)`: what is stored, or, of a rotation, what becomes of unit vectors.
fn matrix_of(transform: &Transform) -> Vec<f32> {
    if transform.kind() == TransformKind::RandomRotation {
        let dim = transform.dim();
        let mut matrix = vec![0.0; dim * dim];
        for column in 0..dim {
            let mut unit = vec![0.0; dim];
            unit[column] = 1.0;
            for (row, value) in apply(transform, &unit).into_iter().enumerate() {
                matrix[row * dim + column] = value;
            }
        }
        return matrix;
    }
    let state = transform.state();
    state
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(f32::from_ne_bytes)
        .collect()
}

/// The largest difference between the products of the rows of a matrix and those of
/// directions of length 1 at right angles.
fn skew(dim: usize, matrix: &[f32]) -> f64 {
    let rows: Vec<&[f32]> = matrix.chunks_exact(dim).collect();
    let mut largest = 0.0f64;
    for (i, a) in rows.iter().enumerate() {
        for (j, b) in rows.iter().enumerate() {
            let expected = if i == j { 1.0 } else { 0.0 };
            largest = largest.max((product(a, b) - expected).abs());
        }
    }
    largest
}

#[test]
fn directions_are_at_right_angles() {
    for dim in [2, 5, 24] {
        let mut random = Random(5);
        for n in [1, 2, 10, 300] {
            for scale in [0.0, 1e-30, 1.0, 1e30] {
                let sample = correlated(&mut random, n, dim);
                let sample: Vec<f32> = sample.iter().map(|x| x * scale).collect();
                for kind in kinds(dim) {
                    let matrix = matrix_of(&train(kind, dim, &sample));
                    assert!(
                        skew(dim, &matrix) < 1e-4,
                        "{kind:?} of {n} vectors, {scale}"
                    );
                }
            }
        }
    }
}

#[test]
fn principal_components_keep_what_varies() {
    let (dim, out) = (32, 4);
    let mut random = Random(6);
    let sample = correlated(&mut random, 1000, dim);
    let transform = train(TransformKind::Pca { out }, dim, &sample);
    let mut mean = vec![0.0; dim];
    for (i, x) in sample.iter().enumerate() {
        mean[i % dim] += x / 1000.0;
    }
    let centred: Vec<f32> = sample
        .iter()
        .enumerate()
        .map(|(i, x)| x - mean[i % dim])
        .collect();
    let mapped = apply(&transform, &centred);
    let (all, kept) = (product(&centred, &centred), product(&mapped, &mapped));
    assert!(kept > 0.9 * all && kept < 1.001 * all, "{kept} of {all}");
    let squares = |i: usize| -> f32 { mapped.chunks(out).map(|row| row[i] * row[i]).sum() };
    assert!(
        (1..out).all(|i| squares(i) <= squares(i - 1)),
        "the largest comes first"
    );
}

#[test]
fn an_optimized_rotation_makes_a_product_quantizer_lose_less() {
    let (dim, m) = (16, 4);
    let mut random = Random(7);
    // Most of the variance lies in few directions, which one part holds.
    let mut sample = random.vectors(3000, dim);
    for row in sample.chunks_exact_mut(dim) {
        let shared = row[0] * 8.0;
        row[..4].iter_mut().for_each(|x| *x = *x * 4.0 + shared);
    }
    let lost = |vectors: &[f32]| {
        let kind = QuantizerKind::Pq { m };
        let quantizer = Quantizer::train(kind, dim, vectors, &|| false).unwrap();
        let mut codes = vec![0; 3000 * m];
        quantizer.encode(vectors, &mut codes).unwrap();
        let mut decoded = Vec::new();
        quantizer.decode(&codes, &mut decoded).unwrap();
        distance(Metric::L2, vectors, &decoded)
    };
    for threads in [1, 2] {
        with_threads(threads, || {
            let rotation = train(TransformKind::Opq { m, out: None }, dim, &sample);
            let (plain, rotated) = (lost(&sample), lost(&apply(&rotation, &sample)));
            assert!(rotated < 0.9 * plain, "{rotated} instead of {plain}");
        });
    }
}

#[test]
fn an_interrupt_ends_training() {
    let dim = 32;
    let sample = Random(8).vectors(5000, dim);
    for threads in [1, 2] {
        with_threads(threads, || {
            let asked = Cell::new(0);
            let interrupted = || {
                asked.set(asked.get() + 1);
                asked.get() > 3
            };
            let kind = TransformKind::Opq {
                m: 8,
                out: Some(dim),
            };
            let stopped = Transform::train(kind, dim, &sample, &interrupted);
            assert_eq!(stopped.map(|_| ()), Err(FaissError::Interrupted));
        });
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    use TransformKind::{Opq, Pca};
    for kind in [
        Pca { out: 0 },
        Pca { out: 9 },
        Opq { m: 1, out: Some(9) },
        Opq { m: 0, out: Some(8) },
        Opq { m: 3, out: Some(8) },
    ] {
        assert_invalid(Transform::check(kind, 8));
    }
}
