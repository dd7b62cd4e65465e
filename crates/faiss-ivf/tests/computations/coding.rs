//! What codes say of distances: bounds that hold, and that are near.

use faiss_ivf::{CodeFactors, Codec, CodedQuery, Coding, EntrySizes, Factory, Metric, squared};

use crate::reference::{Random, distance};

const DIM: usize = 64;
const LISTS: usize = 5;
const ROWS: usize = 320;
const FACTORIES: [&str; 15] = [
    "IVF,SQ8",
    "IVF,SQ4",
    "IVF,SQfp16",
    "IVF,RaBitQ",
    "RR,IVF,RaBitQ",
    "RR,IVF,RaBitQ,Refine(SQ8)",
    "RR,IVF,RaBitQ,Refine(SQfp16)",
    "IVF,SQ4,RFlat",
    "IVF,SQ8,RFlat",
    "IVF,PQ16",
    "IVF,PQ16x4fs,Refine(SQ8)",
    "OPQ16_64,IVF,PQ16",
    "PCA48,IVF,SQ8",
    "PCA48,IVF,RaBitQ",
    "OPQ8_32,IVF,PQ8x4fs",
];

/// A coding with the rows of one list.
struct List {
    coding: Coding,
    sizes: EntrySizes,
    metric: Metric,
    centroid: Vec<f32>,
    /// `(n, DIM)`
    rows: Vec<f32>,
    records: Vec<u8>,
}

fn key(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    match metric {
        Metric::L2 => distance(metric, a, b),
        Metric::InnerProduct => -distance(metric, a, b),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|number| f32::from_ne_bytes(number.try_into().unwrap()))
        .collect()
}

impl List {
    /// Trains on clustered data; codes `rows`.
    fn new(factory: &str, metric: Metric, sample: &[f32], rows: Vec<f32>) -> Self {
        let factory: Factory = factory.parse().unwrap();
        let never = || false;
        let mut mapped = sample.to_vec();
        let mut coding =
            Coding::train(&factory, metric, DIM, Codec::Flat, &mut mapped, &never).unwrap();
        let dim = coding.code_dim();
        let centroids = mapped[..LISTS * dim].to_vec();
        coding.train_codes(&mut mapped, &centroids, &never).unwrap();
        let centroid = centroids[..dim].to_vec();
        let mut records = Vec::new();
        let mapped = coding.map(&rows).unwrap();
        coding
            .encode(&rows, &rows, &mapped, |_| &centroid, &mut records)
            .unwrap();
        Self {
            sizes: Coding::sizes(&factory, DIM, Codec::Flat),
            coding,
            metric,
            centroid,
            rows,
            records,
        }
    }

    fn len(&self) -> usize {
        self.rows.len() / DIM
    }

    fn record(&self, row: usize) -> &[u8] {
        let size = self.records.len() / self.len();
        &self.records[row * size..][..size]
    }

    /// The codes as a page has them, 32-byte aligned or not, and the three factors.
    fn page(&self) -> (Vec<u8>, [Vec<u8>; 3]) {
        let size = self.sizes.code;
        let mut codes = vec![0; self.len().next_multiple_of(32) * size];
        let mut factors = [Vec::new(), Vec::new(), Vec::new()];
        for row in 0..self.len() {
            let (code, rest) = self.record(row).split_at(size);
            if self.sizes.is_packed {
                let block = &mut codes[row / 32 * 32 * size..][..32 * size];
                ivf_store::pack(block, row % 32, code);
            } else {
                codes[row * size..][..size].copy_from_slice(code);
            }
            for (factor, number) in factors.iter_mut().zip(rest.chunks_exact(4)) {
                factor.extend_from_slice(number);
            }
        }
        (codes, factors)
    }

    /// Bounds of the keys of all rows, by their codes.
    fn bounds(&self, query: &mut CodedQuery) -> Vec<f32> {
        let (codes, [scale, offset, error]) = self.page();
        let factors = CodeFactors {
            scale: &scale,
            offset: &offset,
            error: &error,
        };
        let centroid_key = query.rank(&self.centroid).unwrap()[0];
        let list = query.list(centroid_key, squared(&self.centroid) as f32);
        let mut bounds = Vec::new();
        query
            .bounds(list, &codes, factors, self.len(), &mut bounds)
            .unwrap();
        bounds
    }

    /// Bounds by refine codes.
    fn refined(&self, query: &CodedQuery) -> Vec<f32> {
        let (size, _) = self.sizes.refine.unwrap();
        let bound = |row: usize| {
            let (code, factors) = self.record(row)[self.sizes.code + 12..].split_at(size);
            let factors = floats(factors).try_into().unwrap();
            query.refine(code, factors).unwrap()
        };
        (0..self.len()).map(bound).collect()
    }

    fn keys(&self, query: &[f32]) -> Vec<f64> {
        let rows = self.rows.chunks_exact(DIM);
        rows.map(|row| key(self.metric, row, query)).collect()
    }
}

/// Queries near rows, where bounds matter.
fn queries(random: &mut Random, rows: &[f32]) -> Vec<Vec<f32>> {
    let near = rows.chunks_exact(DIM).step_by(16);
    near.map(|row| row.iter().map(|x| x + 0.1 * random.value()).collect())
        .collect()
}

/// The share of the rows whose bound does not hold; of the ten nearest when `nearest`.
fn broken(bounds: &[f32], keys: &[f64], nearest: bool) -> f64 {
    let mut pairs: Vec<(f64, f32)> = keys.iter().copied().zip(bounds.iter().copied()).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count = if nearest { 10 } else { pairs.len() };
    let broken = |pair: &&(f64, f32)| f64::from(pair.1) > pair.0 + 1e-4 * (1.0 + pair.0.abs());
    pairs[..count].iter().filter(broken).count() as f64 / count as f64
}

/// How far bounds are from keys, in the spread of the keys: the mean over all rows.
fn looseness(bounds: &[f32], keys: &[f64]) -> f64 {
    let (least, most) = keys
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), &key| {
            (least.min(key), most.max(key))
        });
    let away: f64 = keys
        .iter()
        .zip(bounds)
        .map(|(key, &bound)| key - f64::from(bound))
        .sum();
    away / keys.len() as f64 / (most - least)
}

fn check_bounds(factory: &str, metric: Metric, list: &List, queries: &[Vec<f32>]) {
    let (mut all, mut nearest, mut loose, mut refined_nearest) = (0.0, 0.0, 0.0, 0.0);
    for query in queries {
        let keys = list.keys(query);
        let mut coded = list.coding.query(query, 3.0).unwrap();
        let bounds = list.bounds(&mut coded);
        all += broken(&bounds, &keys, false);
        nearest += broken(&bounds, &keys, true);
        loose += looseness(&bounds, &keys);
        if list.sizes.refine.is_some_and(|(_, is_lossy)| is_lossy) {
            refined_nearest += broken(&list.refined(&coded), &keys, true);
        }
    }
    let count = queries.len() as f64;
    let found = (all / count, nearest / count, refined_nearest / count);
    assert!(found.0 < 0.01, "{factory} {metric:?}: {found:?}");
    assert!(found.1 < 0.02, "{factory} {metric:?}: {found:?}");
    assert!(found.2 < 0.005, "{factory} {metric:?}: {found:?}");
    // Of what a transform loses only the length is known.
    let most = if list.coding.code_dim() < DIM {
        2.0
    } else {
        0.6
    };
    let loose = loose / count;
    assert!(loose < most, "{factory} {metric:?}: {loose}");
}

#[test]
fn bounds_hold_and_are_near() {
    for factory in FACTORIES {
        for metric in [Metric::L2, Metric::InnerProduct] {
            let mut random = Random(1);
            let data = random.clustered(2000 + ROWS, DIM, 20);
            let (sample, rows) = data.split_at(2000 * DIM);
            let list = List::new(factory, metric, sample, rows.to_vec());
            let queries = queries(&mut random, rows);
            check_bounds(factory, metric, &list, &queries);
        }
    }
}

/// Rows that are nothing like the sample: codes cut off what lies out of its ranges.
#[test]
fn bounds_hold_for_rows_that_training_did_not_see() {
    for factory in FACTORIES {
        for metric in [Metric::L2, Metric::InnerProduct] {
            let mut random = Random(2);
            let sample = random.clustered(2000, DIM, 20);
            let rows = random.clustered(ROWS, DIM, 10);
            let rows: Vec<f32> = rows.iter().map(|x| 2.0 * x + 0.5).collect();
            let queries = queries(&mut random, &rows);
            let list = List::new(factory, metric, &sample, rows);
            check_bounds(factory, metric, &list, &queries);
        }
    }
}

/// Before vectors as they are, bounds by copies in 8 bits leave nothing to chance: neither
/// for rows that are cut off nor far away from the origin, nor however few deviations are
/// asked for.
#[test]
fn bounds_of_copies_are_certain() {
    let copies = Factory::FLAT.with_copies().to_string();
    for metric in [Metric::L2, Metric::InnerProduct] {
        for (scale, shift) in [(1.0, 0.0), (3.0, 0.0), (1e-3, 0.0), (0.01, 100.0)] {
            let mut random = Random(6);
            let mut data = random.clustered(2000 + ROWS, DIM, 20);
            data.iter_mut().for_each(|x| *x += shift);
            let (sample, rows) = data.split_at(2000 * DIM);
            let moved = |x: &f32| shift + scale * (x - shift);
            let list = List::new(&copies, metric, sample, rows.iter().map(moved).collect());
            let mut queries = queries(&mut random, &list.rows);
            queries.extend(list.rows.chunks_exact(DIM).take(20).map(<[f32]>::to_vec));
            for query in queries {
                let bounds = list.bounds(&mut list.coding.query(&query, 0.0).unwrap());
                for (row, (bound, key)) in bounds.iter().zip(list.keys(&query)).enumerate() {
                    // A key is a sum of floats itself.
                    let slack = 1e-6 * (squared(&query) + squared(&list.rows[row * DIM..][..DIM]));
                    assert!(
                        f64::from(*bound) <= key + slack,
                        "{metric:?}, {scale} {shift}, row {row}: {bound} {key}"
                    );
                }
            }
        }
    }
}

/// A query in the very direction of what the code of a row loses: the worst there is.
#[test]
fn bounds_of_copies_are_certain_for_the_worst_query() {
    let copies = Factory::FLAT.with_copies().to_string();
    for metric in [Metric::L2, Metric::InnerProduct] {
        let mut random = Random(7);
        let data = random.clustered(2000 + ROWS, DIM, 20);
        let (sample, rows) = data.split_at(2000 * DIM);
        let list = List::new(&copies, metric, sample, rows.to_vec());
        let learned = floats(&list.coding.state());
        let (least, width) = learned.split_at(DIM);
        for row in (0..ROWS).step_by(10) {
            let code = &list.record(row)[..DIM];
            let decoded: Vec<f32> = (0..DIM)
                .map(|i| least[i] + width[i] * (f32::from(code[i]) + 0.5) / 255.0)
                .collect();
            let residual: Vec<f32> = (0..DIM)
                .map(|i| list.rows[row * DIM + i] - list.centroid[i])
                .collect();
            // The inner product is what `distance` calls the distance.
            let product = |a: &[f32], b: &[f32]| distance(Metric::InnerProduct, a, b);
            let scale = (squared(&residual) / product(&residual, &decoded)) as f32;
            let lost: Vec<f32> = (residual.iter().zip(&decoded))
                .map(|(residual, decoded)| residual - scale * decoded)
                .collect();
            let away = 100.0 / squared(&lost).sqrt() as f32;
            let query: Vec<f32> = (list.centroid.iter().zip(&lost))
                .map(|(center, lost)| center + away * lost)
                .collect();
            let key = list.keys(&query)[row];
            let bound = list.bounds(&mut list.coding.query(&query, 0.0).unwrap())[row];
            // ‖δ‖‖y‖, in squared distances twice: fewer deviations would be less.
            let factor = if metric == Metric::L2 { 2.0 } else { 1.0 };
            let margin = factor * 100.0 * squared(&lost).sqrt();
            let left = key - f64::from(bound);
            assert!(
                left > -0.01 * margin,
                "{metric:?}, row {row}: {left} of {margin}"
            );
            assert!(
                left < 0.1 * margin,
                "{metric:?}, row {row}: {left} of {margin}"
            );
        }
    }
}

#[test]
fn refine_codes_say_nearly_everything() {
    for factory in ["RR,IVF,RaBitQ,Refine(SQ8)", "RR,IVF,RaBitQ,Refine(SQfp16)"] {
        let mut random = Random(3);
        let data = random.clustered(2000 + ROWS, DIM, 20);
        let (sample, rows) = data.split_at(2000 * DIM);
        let list = List::new(factory, Metric::L2, sample, rows.to_vec());
        for query in queries(&mut random, rows) {
            let refined = list.refined(&list.coding.query(&query, 3.0).unwrap());
            let away = looseness(&refined, &list.keys(&query));
            assert!((0.0..0.01).contains(&away), "{factory}: {away}");
        }
    }
}

/// Whatever overflows, a row is not lost: its bound says that it must be looked at.
#[test]
fn vectors_at_the_end_of_what_floats_hold_are_coded_and_found() {
    for factory in FACTORIES {
        for metric in [Metric::L2, Metric::InnerProduct] {
            let mut random = Random(4);
            let sample = random.clustered(2000, DIM, 20);
            let mut rows = random.vectors(6, DIM);
            rows[..DIM].fill(3e38);
            rows[DIM..2 * DIM].fill(-3e38);
            rows[2 * DIM..3 * DIM].fill(1e20);
            rows[3 * DIM] = 3e38;
            rows[4 * DIM..5 * DIM].fill(0.0);
            let list = List::new(factory, metric, &sample, rows.clone());
            for query in rows.chunks_exact(DIM) {
                let keys = list.keys(query);
                let mut coded = list.coding.query(query, 3.0).unwrap();
                let bounds = list.bounds(&mut coded);
                for (bound, key) in bounds.iter().zip(&keys) {
                    assert!(!bound.is_nan());
                    let most = key + 1e-3 * (1.0 + key.abs());
                    assert!(
                        f64::from(*bound) <= most,
                        "{factory} {metric:?}: {bound} {key}"
                    );
                }
                if list.sizes.refine.is_some_and(|(_, is_lossy)| is_lossy) {
                    assert!(list.refined(&coded).iter().all(|bound| !bound.is_nan()));
                }
            }
        }
    }
}

#[test]
fn what_was_learned_is_the_same_after_it_was_stored() {
    for factory in FACTORIES {
        let mut random = Random(5);
        let sample = random.clustered(500, DIM, 10);
        let list = List::new(factory, Metric::L2, &sample, sample[..DIM * 8].to_vec());
        let state = list.coding.state();
        assert_eq!(state.len(), list.coding.state_len(), "{factory}");
        let restore = |state: &[u8]| {
            Coding::from_state(list.coding.factory(), Metric::L2, DIM, Codec::Flat, state)
        };
        let again = restore(&state).unwrap();
        assert_eq!(again.state(), state, "{factory}");
        let mapped = again.map(&list.rows).unwrap();
        let mut records = Vec::new();
        again
            .encode(
                &list.rows,
                &list.rows,
                &mapped,
                |_| &list.centroid,
                &mut records,
            )
            .unwrap();
        assert_eq!(records, list.records, "{factory}");
        assert!(
            restore(&[&state[..], &[0; 4]].concat()).is_err(),
            "{factory}"
        );
        if !state.is_empty() {
            assert!(restore(&state[..state.len() - 4]).is_err(), "{factory}");
        }
    }
}
