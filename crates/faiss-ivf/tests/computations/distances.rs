//! Distances, assignment, codes and normalisation against plain Rust.

use crate::reference::{Random, assert_invalid, distance, nearest};
use faiss_ivf::{
    CoarseCentroids, Codec, Metric, assign, distances, extend_from_halves, nearest_one, normalize,
};

const METRICS: [Metric; 2] = [Metric::InnerProduct, Metric::L2];
const DIMS: [usize; 9] = [1, 2, 3, 7, 8, 100, 384, 768, 2000];

/// Within 1e-5 of the sum of the magnitudes of the terms, which is what single
/// precision can keep where terms cancel.
fn assert_close(metric: Metric, query: &[f32], vectors: &[f32], computed: &[f32]) {
    for (vector, &got) in vectors.chunks_exact(query.len()).zip(computed) {
        let expected = distance(metric, query, vector);
        let magnitude: f64 = match metric {
            Metric::L2 => expected,
            Metric::InnerProduct => query
                .iter()
                .zip(vector)
                .map(|(&x, &y)| f64::from(x * y).abs())
                .sum(),
        };
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= 1e-5 * magnitude,
            "{metric:?} in {} dimensions: {got} instead of {expected}",
            query.len()
        );
    }
}

#[test]
fn distances_equal_a_plain_loop() {
    for metric in METRICS {
        for dim in DIMS {
            let mut random = Random(dim as u64);
            let query = random.vectors(1, dim);
            for n in [0, 1, 2, 3, 4, 5, 17, 64] {
                let vectors = random.vectors(n, dim);
                let mut out = vec![f32::NAN; n];
                distances(metric, &query, &vectors, &mut out).unwrap();
                assert_close(metric, &query, &vectors, &out);
            }
        }
    }
}

#[test]
fn codes_are_scored_at_every_address() {
    for metric in METRICS {
        for dim in [1, 3, 8, 384] {
            let mut random = Random(7);
            let (query, vectors) = (random.vectors(1, dim), random.vectors(5, dim));
            let size = Codec::Flat.code_size(dim);
            let scanner = Codec::Flat.scanner(metric, &query).unwrap();
            assert_eq!(scanner.code_size(), size);
            for offset in 0..9 {
                let mut page = vec![0xaa; offset + 5 * size + 3];
                Codec::Flat
                    .encode(dim, &vectors, &mut page[offset..offset + 5 * size])
                    .unwrap();
                let mut out = [f32::NAN; 5];
                scanner.scan(&page[offset..], 5, &mut out).unwrap();
                assert_close(metric, &query, &vectors, &out);
                // Fewer codes than lie there.
                let mut out = [f32::NAN; 2];
                scanner.scan(&page[offset..], 2, &mut out).unwrap();
                assert_close(metric, &query, &vectors[..2 * dim], &out);
            }
        }
    }
}

/// Vectors whose components 16 bits hold exactly.
fn half_vectors(random: &mut Random, n: usize, dim: usize) -> Vec<f32> {
    let mut vectors = random.vectors(n, dim);
    for component in &mut vectors {
        *component = (*component * 256.0).round() / 256.0;
    }
    vectors
}

#[test]
fn halves_are_scored_exactly_at_every_address() {
    for metric in METRICS {
        for dim in [1, 3, 8, 30, 384, 4000] {
            let mut random = Random(dim as u64);
            let (query, vectors) = (random.vectors(1, dim), half_vectors(&mut random, 5, dim));
            let size = Codec::Half.code_size(dim);
            let scanner = Codec::Half.scanner(metric, &query).unwrap();
            for offset in [0, 1, 2, 4, 7] {
                let mut page = vec![0xaa; offset + 5 * size + 3];
                let codes = &mut page[offset..offset + 5 * size];
                Codec::Half.encode(dim, &vectors, codes).unwrap();
                let mut decoded = Vec::new();
                Codec::Half
                    .decode(dim, &codes[size..2 * size], &mut decoded)
                    .unwrap();
                assert_eq!(decoded, vectors[dim..2 * dim]);
                let mut out = [f32::NAN; 5];
                scanner.scan(&page[offset..], 5, &mut out).unwrap();
                assert_close(metric, &query, &vectors, &out);
            }
        }
    }
}

#[test]
fn cosines_of_halves_are_exact() {
    for dim in [2, 8, 384] {
        let mut random = Random(3);
        let (query, vectors) = (random.vectors(1, dim), half_vectors(&mut random, 6, dim));
        let size = Codec::NormedHalf.code_size(dim);
        let mut codes = vec![0; 6 * size];
        Codec::NormedHalf.encode(dim, &vectors, &mut codes).unwrap();
        let mut out = [f32::NAN; 6];
        let scanner = Codec::NormedHalf
            .scanner(Metric::InnerProduct, &query)
            .unwrap();
        scanner.scan(&codes, 6, &mut out).unwrap();
        let mut directions = vectors.clone();
        normalize(dim, &mut directions).unwrap();
        assert_close(Metric::InnerProduct, &query, &directions, &out);
        let mut decoded = Vec::new();
        Codec::NormedHalf
            .decode(dim, &codes[..size], &mut decoded)
            .unwrap();
        let differences = decoded.iter().zip(&directions).map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f32::max) < 1e-6);
    }
    let mut code = [0xff; 8];
    Codec::NormedHalf.encode(2, &[0.0, 0.0], &mut code).unwrap();
    assert_eq!(code, [0; 8], "a zero vector has no direction");
}

#[test]
fn halves_become_floats() {
    let mut out = vec![7.0];
    extend_from_halves(&[0x3c00, 0xc000, 0x0001, 0x7bff], &mut out);
    assert_eq!(out, [7.0, 1.0, -2.0, 2.0f32.powi(-24), 65504.0]);
}

#[test]
fn all_distances_are_those_of_each_pair() {
    for metric in METRICS {
        for (dim, queries, n) in [(3, 1, 5), (8, 30, 300), (384, 40, 7), (384, 256, 1)] {
            let mut random = Random(n as u64);
            let (queries, vectors) = (random.vectors(queries, dim), random.vectors(n, dim));
            let mut found = vec![7.0; 3];
            faiss_ivf::all_distances(metric, dim, &queries, &vectors, &mut found).unwrap();
            let mut found = found.iter();
            for query in queries.chunks_exact(dim) {
                for vector in vectors.chunks_exact(dim) {
                    let expected = distance(metric, query, vector);
                    let found = f64::from(*found.next().unwrap());
                    assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()));
                }
            }
            assert_eq!(found.next(), None);
        }
    }
    let mut found = Vec::new();
    let same = [0.1, 0.7, 0.3];
    faiss_ivf::all_distances(Metric::L2, 3, &same, &same, &mut found).unwrap();
    assert!(found[0] >= 0.0);
    faiss_ivf::all_distances(Metric::L2, 2, &[1.0, 2.0], &[], &mut found).unwrap();
    assert!(found.is_empty());
    faiss_ivf::all_distances(Metric::L2, 1, &[f32::NAN], &[1.0], &mut found).unwrap();
    assert!(found[0].is_nan());
    let wrong = faiss_ivf::all_distances(Metric::L2, 2, &[1.0], &[], &mut found);
    assert_invalid(wrong);
}

#[test]
fn codes_that_do_not_fit_are_refused() {
    let scanner = Codec::Flat.scanner(Metric::L2, &[1.0, 2.0]).unwrap();
    let mut out = [0.0; 2];
    assert_invalid(scanner.scan(&[0; 15], 2, &mut out));
    assert_invalid(scanner.scan(&[0; 16], 1, &mut out));
    assert_invalid(scanner.scan(&[0; 16], usize::MAX, &mut out));
    scanner.scan(&[0; 16], 2, &mut out).unwrap();
    assert_eq!(out, [5.0, 5.0]);
    assert_invalid(Codec::Flat.scanner(Metric::L2, &[]).map(|_| ()));
    assert_invalid(Codec::Flat.encode(2, &[0.0; 4], &mut [0; 15]));
    assert_invalid(Codec::Flat.encode(3, &[0.0; 4], &mut [0; 16]));
}

#[test]
fn assign_equals_brute_force() {
    for metric in METRICS {
        // Both sides of the border between the direct and the BLAS path, one
        // block and several, dimensions with kernels of their own.
        for (dim, clusters, n) in [
            (1, 5, 50),
            (3, 1, 40),
            (8, 33, 500),
            (100, 50, 3),
            (384, 343, 19),
            (384, 343, 700),
            (768, 10, 100),
        ] {
            let mut random = Random(dim as u64);
            let centroids = random.vectors(clusters, dim);
            let points = random.vectors(n, dim);
            let coarse = CoarseCentroids::new(metric, dim, &centroids);
            let mut lists = vec![u32::MAX; n];
            assign(metric, dim, &centroids, &points, &mut lists).unwrap();
            for (point, &list) in points.chunks_exact(dim).zip(&lists) {
                let (_, best) = nearest(metric, dim, &centroids, point);
                for list in [
                    list as usize,
                    nearest_one(metric, point, &centroids).unwrap(),
                    coarse.nearest(point, &centroids).unwrap(),
                ] {
                    let chosen = distance(metric, point, &centroids[list * dim..][..dim]);
                    // Centroids nearer to each other than rounding may swap.
                    let slack = 1e-5 * (dim as f64);
                    assert!(
                        (chosen - best).abs() <= slack,
                        "{metric:?} {dim}: list {list} at {chosen} instead of {best}"
                    );
                }
            }
        }
    }
}

#[test]
fn separated_points_go_to_their_own_centroid() {
    let (dim, clusters) = (16, 16);
    let mut centroids = vec![0.0; clusters * dim];
    for cluster in 0..clusters {
        centroids[cluster * dim + cluster] = 1.0;
    }
    let points: Vec<f32> = centroids.chunks(dim).rev().flatten().copied().collect();
    let expected: Vec<u32> = (0..16).rev().collect();
    for metric in METRICS {
        let mut lists = vec![u32::MAX; clusters];
        assign(metric, dim, &centroids, &points, &mut lists).unwrap();
        assert_eq!(lists, expected, "{metric:?}");
        for (point, list) in points.chunks(dim).zip(&expected) {
            let found = nearest_one(metric, point, &centroids);
            assert_eq!(found, Ok(*list as usize), "{metric:?}");
            let coarse = CoarseCentroids::new(metric, dim, &centroids);
            assert_eq!(coarse.nearest(point, &centroids), found, "{metric:?}");
        }
    }
}

#[test]
fn points_whose_distances_overflow_get_a_list() {
    for metric in METRICS {
        for dim in [4, 40] {
            for n in [1, 100] {
                let mut random = Random(1);
                let mut points = random.vectors(n * 2, dim);
                // Infinite distances, and differences of infinities.
                points.iter_mut().for_each(|x| *x *= f32::MAX);
                points[..n * dim].fill(f32::MAX);
                let mut lists = vec![u32::MAX; n * 2];
                let centroids = random.vectors(30, dim);
                let centroids: Vec<f32> = centroids.iter().map(|x| x * f32::MAX).collect();
                assign(metric, dim, &centroids, &points, &mut lists).unwrap();
                assert!(lists.iter().all(|&list| list < 30), "{metric:?}");
                let coarse = CoarseCentroids::new(metric, dim, &centroids);
                for point in points.chunks(dim) {
                    let one = nearest_one(metric, point, &centroids).unwrap();
                    assert!(one < 30);
                    assert_eq!(coarse.nearest(point, &centroids), Ok(one));
                }
            }
        }
    }
}

#[test]
fn bad_arguments_of_assign_are_refused() {
    let mut lists = [7; 2];
    let metric = Metric::L2;
    assert_invalid(assign(metric, 0, &[0.0; 4], &[0.0; 4], &mut lists));
    assert_invalid(assign(metric, 3, &[0.0; 4], &[0.0; 6], &mut lists));
    assert_invalid(assign(metric, 2, &[0.0; 4], &[0.0; 3], &mut lists));
    assert_invalid(assign(metric, 2, &[], &[0.0; 4], &mut lists));
    assert_invalid(assign(metric, 2, &[0.0; 4], &[0.0; 6], &mut lists));
    assert_invalid(assign(metric, 2, &[f32::NAN; 2], &[0.0; 4], &mut lists));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_invalid(assign(
            metric,
            2,
            &[0.0; 2],
            &[0.0, 0.0, 0.0, bad],
            &mut lists,
        ));
    }
    assert_eq!(lists, [7; 2], "nothing is written after an error");
    assign(metric, 2, &[0.0; 2], &[], &mut []).unwrap();
    assert_invalid(nearest_one(metric, &[], &[0.0; 4]).map(drop));
    assert_invalid(nearest_one(metric, &[0.0; 3], &[0.0; 4]).map(drop));
    assert_eq!(nearest_one(metric, &[0.0; 2], &[]), Ok(0));
    let coarse = CoarseCentroids::new(metric, 2, &[0.0; 4]);
    assert_invalid(coarse.nearest(&[0.0; 3], &[0.0; 4]).map(drop));
    assert_invalid(coarse.nearest(&[0.0; 2], &[0.0; 6]).map(drop));
    assert_eq!(coarse.nearest(&[1.0; 2], &[0.0; 4]), Ok(0));
}

#[test]
fn coarse_centroids_tell_close_ones_apart() {
    let (dim, clusters) = (100, 200);
    for (metric, unit) in [
        (Metric::L2, 1.0),
        (Metric::InnerProduct, 1.0),
        (Metric::L2, 1e-15),
        (Metric::InnerProduct, 1e15),
    ] {
        let mut random = Random(7);
        // All centroids differ from one vector by less than 8 bits can tell.
        let center = random.vectors(1, dim);
        let mut centroids = random.vectors(clusters, dim);
        for centroid in centroids.chunks_exact_mut(dim) {
            for (x, c) in centroid.iter_mut().zip(&center) {
                *x = unit * (c + 0.003 * *x);
            }
        }
        let coarse = CoarseCentroids::new(metric, dim, &centroids);
        for point in random.vectors(100, dim).chunks_exact(dim) {
            let point: Vec<f32> = point.iter().map(|x| unit * x).collect();
            let found = coarse.nearest(&point, &centroids).unwrap();
            let (_, best) = nearest(metric, dim, &centroids, &point);
            let chosen = distance(metric, &point, &centroids[found * dim..][..dim]);
            let slack = 1e-5 * f64::from(unit).powi(2) * dim as f64;
            assert!(
                (chosen - best).abs() <= slack,
                "{metric:?} {unit}: {chosen} instead of {best}"
            );
        }
    }
}

#[test]
fn bad_arguments_of_distances_are_refused() {
    assert_invalid(distances(Metric::L2, &[], &[], &mut []));
    assert_invalid(distances(Metric::L2, &[0.0; 2], &[0.0; 3], &mut [0.0]));
    assert_invalid(distances(Metric::L2, &[0.0; 2], &[0.0; 4], &mut [0.0]));
    let mut out = [0.0];
    distances(Metric::L2, &[0.0], &[f32::NAN], &mut out).unwrap();
    assert!(out[0].is_nan());
}

#[test]
fn normalize_gives_unit_vectors_and_keeps_zero() {
    let mut vectors = vec![3.0, 4.0, 0.0, 0.0, 1e30, 1e30, 1e-30, 0.0];
    normalize(2, &mut vectors).unwrap();
    let root = 0.5f32.sqrt();
    assert_eq!(vectors, [0.6, 0.8, 0.0, 0.0, root, root, 1.0, 0.0]);
    assert_invalid(normalize(3, &mut vectors));
    assert_invalid(normalize(0, &mut vectors));
}

#[test]
fn estimates_of_coarse_centroids_are_close() {
    let (dim, clusters, queries) = (384, 500, 40);
    for metric in METRICS {
        let mut random = Random(9);
        let centroids = random.vectors(clusters, dim);
        let points = random.vectors(queries, dim);
        let coarse = CoarseCentroids::new(metric, dim, &centroids);
        let mut beyond = 0;
        for point in points.chunks_exact(dim) {
            let (keys, slack) = coarse.estimates(point).unwrap();
            assert_eq!(keys.len(), clusters);
            let square: f64 = point.iter().map(|x| f64::from(*x).powi(2)).sum();
            // A hundredth of what keys differ by, about.
            assert!(
                f64::from(slack) < 0.02 * square,
                "{metric:?}: {slack} of {square}"
            );
            for (key, centroid) in keys.iter().zip(centroids.chunks_exact(dim)) {
                let exact = match metric {
                    Metric::L2 => distance(metric, point, centroid) - square,
                    Metric::InnerProduct => -distance(metric, point, centroid),
                };
                beyond += usize::from((f64::from(*key) - exact).abs() > f64::from(slack));
            }
        }
        assert!(beyond <= clusters * queries / 1000, "{metric:?}: {beyond}");
        assert!(coarse.estimates(&[0.0; 3]).is_none());
        assert!(coarse.estimates(&[f32::MAX; 384]).is_none());
    }
}
