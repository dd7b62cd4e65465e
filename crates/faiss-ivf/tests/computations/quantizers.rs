//! Lossy codes: what they decode to, how they are packed, stored and scored.

use std::cell::Cell;

use crate::kmeans::with_threads;
use crate::reference::{Random, assert_invalid, distance, nearest};
use faiss_ivf::{FaissError, Metric, Quantizer, QuantizerKind, Scorer};

const SLOTS: usize = 32;

/// Encodings of vectors of `dim` dimensions.
fn kinds(dim: usize) -> Vec<QuantizerKind> {
    use QuantizerKind::{Pq, Pq4, Signs, Sq4, Sq8, SqFp16};
    let mut kinds = vec![Sq8, Sq4, SqFp16, Signs];
    // Parts of 16 dimensions and more are encoded in another way.
    for part in [1, 4, 20, 32] {
        let m = dim / part;
        if dim.is_multiple_of(part) && m <= 100 {
            kinds.extend([Pq { m }, Pq4 { m }]);
        }
    }
    kinds
}

fn train(kind: QuantizerKind, dim: usize, sample: &[f32]) -> Quantizer {
    Quantizer::train(kind, dim, sample, &|| false).unwrap()
}

fn encode(quantizer: &Quantizer, vectors: &[f32]) -> Vec<u8> {
    let n = vectors.len() / quantizer.dim();
    let mut codes = vec![0xaa; n * quantizer.code_size()];
    quantizer.encode(vectors, &mut codes).unwrap();
    codes
}

fn decode(quantizer: &Quantizer, codes: &[u8]) -> Vec<f32> {
    let mut vectors = Vec::new();
    quantizer.decode(codes, &mut vectors).unwrap();
    vectors
}

/// The codes as lists store them, `offset` bytes behind a multiple of 64.
struct Stored {
    bytes: Vec<u8>,
    begin: usize,
}

impl Stored {
    fn new(quantizer: &Quantizer, codes: &[u8], offset: usize) -> Self {
        let size = quantizer.code_size();
        let packed = if quantizer.is_packed() {
            let block_size = quantizer.block_size();
            let n_blocks = (codes.len() / size).div_ceil(SLOTS);
            let mut blocks = vec![0x5a; n_blocks * block_size];
            for (number, code) in codes.chunks_exact(size).enumerate() {
                let block = &mut blocks[number / SLOTS * block_size..][..block_size];
                ivf_store::pack(block, number % SLOTS, code);
            }
            blocks
        } else {
            codes.to_vec()
        };
        let mut bytes = vec![0xaa; packed.len() + offset + 64];
        let begin = bytes.as_ptr().align_offset(64) + offset;
        bytes[begin..begin + packed.len()].copy_from_slice(&packed);
        Stored { bytes, begin }
    }

    fn scan(&self, scorer: &mut Scorer, n: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; n];
        scorer.scan(&self.bytes[self.begin..], n, &mut out).unwrap();
        out
    }
}

/// The inner product in double precision, and the sum of the magnitudes of its terms.
fn product(a: &[f32], b: &[f32]) -> (f64, f64) {
    let terms = a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y));
    terms.fold((0.0, 0.0), |(sum, magnitude), term| {
        (sum + term, magnitude + term.abs())
    })
}

fn assert_scores(quantizer: &Quantizer, scorer: &Scorer, query: &[f32], codes: &[u8], got: &[f32]) {
    let vectors = decode(quantizer, codes);
    for (number, &got) in got.iter().enumerate() {
        let vector = &vectors[number * query.len()..][..query.len()];
        let (exact, magnitude) = product(query, vector);
        // What is below the least normal float is lost.
        let lost = query.len() as f64 * f64::from(f32::MIN_POSITIVE);
        let slack = f64::from(scorer.error()) + 2e-5 * magnitude + lost;
        assert!(
            (f64::from(got) - exact).abs() <= slack,
            "{:?} in {} dimensions, code {number}: {got} instead of {exact}, may be {slack} off",
            quantizer.kind(),
            query.len()
        );
    }
}

#[test]
fn scores_are_inner_products_with_decoded_vectors() {
    for dim in [1, 2, 3, 4, 5, 8, 12, 30, 100, 384, 2000] {
        let mut random = Random(dim as u64);
        let (sample, vectors) = (random.clustered(300, dim, 20), random.vectors(300, dim));
        for kind in kinds(dim) {
            let quantizer = train(kind, dim, &sample);
            let codes = encode(&quantizer, &vectors);
            let query = random.vectors(1, dim);
            let mut scorer = quantizer.scorer(&query).unwrap();
            for offset in [0, 1, 8, 16, 32] {
                let stored = Stored::new(&quantizer, &codes, offset);
                for n in [0, 1, 2, 3, 4, 31, 32, 33, 256, 257, 300] {
                    let got = stored.scan(&mut scorer, n);
                    assert_scores(&quantizer, &scorer, &query, &codes, &got);
                }
            }
        }
    }
}

#[test]
fn single_codes_are_scored_as_in_a_scan() {
    for dim in [3, 64] {
        let mut random = Random(5);
        let (vectors, query) = (random.vectors(20, dim), random.vectors(1, dim));
        for kind in kinds(dim) {
            let quantizer = train(kind, dim, &vectors);
            let codes = encode(&quantizer, &vectors);
            let scorer = quantizer.scorer(&query).unwrap();
            for code in codes.chunks_exact(quantizer.code_size()) {
                if quantizer.is_packed() {
                    assert_invalid(scorer.score(code).map(|_| ()));
                    continue;
                }
                let got = [scorer.score(code).unwrap()];
                assert_scores(&quantizer, &scorer, &query, code, &got);
                assert_invalid(scorer.score(&code[1..]).map(|_| ()));
            }
        }
    }
}

#[test]
fn a_vector_alone_has_the_same_code_as_among_others() {
    let (dim, n) = (24, 50);
    let vectors = Random(11).vectors(n, dim);
    for kind in kinds(dim) {
        let quantizer = train(kind, dim, &vectors);
        let codes = encode(&quantizer, &vectors);
        let decoded = decode(&quantizer, &codes);
        let rows = vectors.chunks(dim).zip(codes.chunks(quantizer.code_size()));
        for ((vector, code), decoded) in rows.zip(decoded.chunks(dim)) {
            assert_eq!(encode(&quantizer, vector), code, "{kind:?}");
            assert_eq!(decode(&quantizer, code), decoded, "{kind:?}");
        }
    }
}

#[test]
fn the_error_of_packed_scores_is_small() {
    let mut random = Random(6);
    for dim in [64, 384, 2000] {
        let query = random.vectors(1, dim);
        for kind in kinds(dim).into_iter().filter(|kind| kind.is_packed()) {
            let sample = random.vectors(300, dim);
            let quantizer = train(kind, dim, &sample);
            let scorer = quantizer.scorer(&query).unwrap();
            let (_, magnitude) = product(&query, &vec![1.0; dim]);
            assert!(scorer.error() > 0.0);
            assert!(f64::from(scorer.error()) < 0.01 * magnitude, "{kind:?}");
        }
    }
}

/// The place of a sub-code in a block of 32 codes, as FAISS has it in
/// `get_vector_specific_address` of `pq4_fast_scan.cpp`.
fn packed_element(block: &[u8], slot: usize, sub_code: usize) -> u8 {
    let row = slot & 15;
    let address = if row < 8 {
        row << 1
    } else {
        ((row - 8) << 1) + 1
    };
    let byte = block[(sub_code >> 1) * SLOTS + address + 16 * (sub_code & 1)];
    if slot > 15 { byte >> 4 } else { byte & 15 }
}

#[test]
fn packed_codes_lie_where_faiss_expects_them() {
    for dim in [1, 4, 8, 9, 13, 384] {
        let mut random = Random(dim as u64);
        for kind in kinds(dim).into_iter().filter(|kind| kind.is_packed()) {
            let quantizer = train(kind, dim, &random.vectors(40, dim));
            let size = quantizer.code_size();
            let codes: Vec<u8> = (0..SLOTS * size).map(|_| random.next() as u8).collect();
            let mut block = vec![0; quantizer.block_size()];
            // Later slots must leave earlier ones as they are.
            for slot in (0..SLOTS).rev() {
                ivf_store::pack(&mut block, slot, &codes[slot * size..][..size]);
            }
            for slot in 0..SLOTS {
                let code = &codes[slot * size..][..size];
                for sub_code in 0..2 * size {
                    let expected = code[sub_code / 2] >> (4 * (sub_code % 2)) & 15;
                    assert_eq!(packed_element(&block, slot, sub_code), expected);
                }
            }
        }
    }
}

#[test]
fn a_stored_quantizer_is_the_same() {
    for dim in [1, 3, 8, 60] {
        let mut random = Random(7);
        let vectors = random.vectors(50, dim);
        for kind in kinds(dim) {
            let quantizer = train(kind, dim, &vectors);
            assert_eq!(quantizer.state(), train(kind, dim, &vectors).state());
            let state = quantizer.state();
            assert_eq!(state.len(), Quantizer::state_size(kind, dim));
            let again = Quantizer::from_state(kind, dim, &state).unwrap();
            assert_eq!(again.state(), state);
            let codes = encode(&quantizer, &vectors);
            assert_eq!(encode(&again, &vectors), codes);
            assert_eq!(decode(&again, &codes), decode(&quantizer, &codes));
        }
    }
}

#[test]
fn a_damaged_state_is_refused() {
    let dim = 4;
    for kind in kinds(dim) {
        let from = |state: &[u8]| Quantizer::from_state(kind, dim, state).map(|_| ());
        let state = train(kind, dim, &Random(8).vectors(9, dim)).state();
        from(&state).unwrap();
        assert_invalid(from(&[&state[..], &[0]].concat()));
        if state.is_empty() {
            continue;
        }
        assert_invalid(from(&state[1..]));
        assert_invalid(from(&[]));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut state = state.clone();
            state[4..8].copy_from_slice(&value.to_ne_bytes());
            assert_invalid(from(&state));
        }
        if matches!(kind, QuantizerKind::Pq { .. } | QuantizerKind::Pq4 { .. }) {
            for (unit, centroid) in [(0.0, 1.0), (-1.0, 1.0), (1e-40, 1.0), (1.0, 1e30)] {
                let mut state = state.clone();
                state[..4].copy_from_slice(&f32::to_ne_bytes(unit));
                state[4..8].copy_from_slice(&f32::to_ne_bytes(centroid));
                assert_invalid(from(&state));
            }
        }
        if matches!(kind, QuantizerKind::Sq8 | QuantizerKind::Sq4) {
            for width in [-1.0, f32::MAX] {
                let mut state = state.clone();
                let end = state.len() - 4;
                state[..4].copy_from_slice(&f32::MAX.to_ne_bytes());
                state[end..].copy_from_slice(&width.to_ne_bytes());
                state[4 * dim..4 * dim + 4].copy_from_slice(&f32::MAX.to_ne_bytes());
                assert_invalid(from(&state));
            }
        }
    }
}

/// The mean square of the difference between vectors and their codes.
fn error(kind: QuantizerKind, dim: usize, sample: &[f32], vectors: &[f32]) -> f64 {
    let quantizer = train(kind, dim, sample);
    let decoded = decode(&quantizer, &encode(&quantizer, vectors));
    let squares = decoded
        .iter()
        .zip(vectors)
        .map(|(&a, &b)| f64::from(a - b).powi(2));
    squares.sum::<f64>() / vectors.len() as f64
}

#[test]
fn more_bits_lose_less() {
    let dim = 32;
    let mut random = Random(9);
    let data = random.clustered(3000, dim, 30);
    let (sample, vectors) = data.split_at(2000 * dim);
    let error = |kind| error(kind, dim, sample, vectors);
    let (half, eight, four) = (
        error(QuantizerKind::SqFp16),
        error(QuantizerKind::Sq8),
        error(QuantizerKind::Sq4),
    );
    assert!(half < 1e-6, "{half}");
    assert!(half < eight && eight < 1e-4, "{eight}");
    assert!(10.0 * eight < four && four < 1e-2, "{four}");
    let (eight, four) = (
        error(QuantizerKind::Pq { m: 8 }),
        error(QuantizerKind::Pq4 { m: 8 }),
    );
    assert!(eight < four && four < 0.1, "{eight} and {four}");
}

#[test]
fn signs_are_plus_and_minus_one() {
    let quantizer = train(QuantizerKind::Signs, 5, &[0.0; 5]);
    let codes = encode(
        &quantizer,
        &[0.0, -0.5, 3.0, -1e30, 1e-30, -1.0, -1.0, -1.0, -1.0, 2.0],
    );
    assert_eq!(codes, [0b10101, 0b10000]);
    let signs = [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0];
    assert_eq!(decode(&quantizer, &codes), signs);
}

#[test]
fn large_and_constant_vectors_stay_in_range() {
    let dim = 24;
    let mut random = Random(10);
    for scale in [0.0, 1e-30, 1.0, 1e30, 1e36] {
        let sample: Vec<f32> = random
            .clustered(100, dim, 5)
            .iter()
            .map(|x| x * scale)
            .collect();
        // Also far outside what training saw.
        let mut vectors: Vec<f32> = sample[..10 * dim].to_vec();
        vectors.extend([1e30, -1e30, 0.0, 1e-30].repeat(dim / 4));
        for kind in kinds(dim) {
            let quantizer = train(kind, dim, &sample);
            let codes = encode(&quantizer, &vectors);
            let decoded = decode(&quantizer, &codes);
            assert!(decoded.iter().all(|x| x.is_finite()), "{kind:?} {scale}");
            let query = random.vectors(1, dim);
            for query in [query.clone(), vec![0.0; dim], vec![1e-40; dim]] {
                let mut scorer = quantizer.scorer(&query).unwrap();
                let got = Stored::new(&quantizer, &codes, 0).scan(&mut scorer, 11);
                assert!(got.iter().all(|x| x.is_finite()), "{kind:?} {scale}");
                if scale <= 1e30 {
                    assert_scores(&quantizer, &scorer, &query, &codes, &got);
                }
            }
        }
    }
    for kind in kinds(3) {
        if matches!(kind, QuantizerKind::SqFp16 | QuantizerKind::Signs) {
            continue;
        }
        let constant = [0.25, -7.0, 1e30];
        let quantizer = train(kind, 3, &constant.repeat(5));
        let codes = encode(&quantizer, &[1.0, 2.0, 3.0]);
        assert_eq!(decode(&quantizer, &codes), constant);
    }
}

#[test]
fn huge_queries_give_no_nan_in_packed_scores() {
    let dim = 40;
    let mut random = Random(11);
    let vectors = random.vectors(40, dim);
    for kind in kinds(dim).into_iter().filter(|kind| kind.is_packed()) {
        let quantizer = train(kind, dim, &vectors);
        let codes = encode(&quantizer, &vectors);
        let query = vec![f32::MAX; dim];
        let mut scorer = quantizer.scorer(&query).unwrap();
        let got = Stored::new(&quantizer, &codes, 0).scan(&mut scorer, 40);
        assert!(got.iter().all(|x| !x.is_nan()));
    }
}

#[test]
fn bad_arguments_are_refused() {
    let dim = 8;
    for kind in kinds(dim) {
        let untrained =
            |dim, sample: &[f32]| Quantizer::train(kind, dim, sample, &|| false).map(|_| ());
        assert_invalid(Quantizer::check(kind, 0));
        assert_invalid(Quantizer::check(kind, usize::MAX));
        assert_invalid(untrained(dim, &[]));
        assert_invalid(untrained(dim, &[0.0; 7]));
        assert_invalid(untrained(0, &[0.0; 8]));
        assert_invalid(untrained(dim, &[f32::NAN; 8]));
        let stopped = Quantizer::train(kind, dim, &[0.0; 8], &|| true);
        assert_eq!(stopped.map(|_| ()), Err(FaissError::Interrupted));

        let quantizer = train(kind, dim, &[1.0; 8]);
        let size = quantizer.code_size();
        assert_invalid(quantizer.encode(&[0.0; 8], &mut vec![0; size + 1]));
        assert_invalid(quantizer.encode(&[0.0; 9], &mut vec![0; size]));
        assert_invalid(quantizer.encode(&[f32::INFINITY; 8], &mut vec![0; size]));
        quantizer.encode(&[], &mut []).unwrap();
        if size > 1 {
            assert_invalid(quantizer.decode(&vec![0; size + 1], &mut Vec::new()));
        }
        assert_invalid(quantizer.scorer(&[0.0; 7]).map(|_| ()));
        assert_invalid(quantizer.scorer(&[f32::NAN; 8]).map(|_| ()));
        let mut scorer = quantizer.scorer(&[0.0; 8]).unwrap();
        let enough = if quantizer.is_packed() {
            quantizer.block_size()
        } else {
            size
        };
        assert_invalid(scorer.scan(&vec![0; enough - 1], 1, &mut [0.0]));
        assert_invalid(scorer.scan(&vec![0; enough], 1, &mut [0.0; 2]));
        assert_invalid(scorer.scan(&vec![0; enough], usize::MAX, &mut [0.0; 2]));
        scorer.scan(&vec![0; enough], 1, &mut [0.0]).unwrap();
    }
    assert_invalid(Quantizer::check(QuantizerKind::Signs, 1 << 20));
    for m in [0, 3, 16] {
        assert_invalid(Quantizer::check(QuantizerKind::Pq { m }, dim));
        assert_invalid(Quantizer::check(QuantizerKind::Pq4 { m }, dim));
    }
}

#[test]
fn few_points_are_their_own_centroids() {
    let dim = 8;
    let mut random = Random(12);
    for n in [1, 2, 15, 16] {
        let points = random.vectors(n, dim);
        for kind in [QuantizerKind::Pq { m: 4 }, QuantizerKind::Pq4 { m: 2 }] {
            let quantizer = train(kind, dim, &points);
            assert_eq!(decode(&quantizer, &encode(&quantizer, &points)), points);
        }
    }
}

#[test]
fn codes_are_those_of_the_nearest_centroids() {
    for (dim, m) in [(12, 3), (64, 2)] {
        let part = dim / m;
        let mut random = Random(13);
        let (sample, vectors) = (random.vectors(400, dim), random.vectors(50, dim));
        for kind in [QuantizerKind::Pq { m }, QuantizerKind::Pq4 { m }] {
            let quantizer = train(kind, dim, &sample);
            let centroids = &quantizer.state()[4..];
            let centroids = centroids
                .as_chunks()
                .0
                .iter()
                .copied()
                .map(f32::from_ne_bytes);
            let centroids: Vec<f32> = centroids.collect();
            let of_part = centroids.len() / m;
            let decoded = decode(&quantizer, &encode(&quantizer, &vectors));
            for (number, (vector, decoded)) in
                vectors.chunks(part).zip(decoded.chunks(part)).enumerate()
            {
                let centroids = &centroids[number % m * of_part..][..of_part];
                let (_, best) = nearest(Metric::L2, part, centroids, vector);
                assert!(distance(Metric::L2, vector, decoded) <= best * 1.0001);
            }
        }
    }
}

#[test]
fn an_interrupt_ends_training() {
    let dim = 64;
    let sample = Random(14).vectors(3000, dim);
    for threads in [1, 2] {
        with_threads(threads, || {
            let asked = Cell::new(0);
            let interrupted = || {
                asked.set(asked.get() + 1);
                asked.get() > 3
            };
            let stopped = Quantizer::train(QuantizerKind::Pq { m: 32 }, dim, &sample, &interrupted);
            assert_eq!(stopped.map(|_| ()), Err(FaissError::Interrupted));
        });
    }
}

#[test]
fn a_team_gives_the_same_codes() {
    let dim = 64;
    let vectors = Random(15).clustered(6000, dim, 50);
    for kind in [QuantizerKind::Pq { m: 16 }, QuantizerKind::Sq8] {
        let quantizer = train(kind, dim, &vectors[..1000 * dim]);
        let alone = with_threads(1, || encode(&quantizer, &vectors));
        with_threads(2, || {
            assert_eq!(encode(&quantizer, &vectors), alone);
            let sample = &vectors[..1000 * dim];
            let again = train(kind, dim, sample).state();
            assert_eq!(again, train(kind, dim, sample).state());
        });
    }
}
