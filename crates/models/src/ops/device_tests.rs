//! What each operation computes, with fresh numbers in the sizes of real models, against the
//! reference; on the device of `PG_SIGHT_TEST_DEVICE`, which is as `pg_sight.device` (the CPU
//! without it), with each type of numbers there is. Where that is a GPU its kernels must cover
//! what they are made for.

use std::env;

use candle_core::{DType, Device, Tensor};

use super::reference::{self, Rows, rows};
use super::testing::values;
use super::*;
use crate::activation::Activation;
use crate::device::Placement;
use crate::generation::likeliest_of;
use crate::linear::Linear;
use crate::pooling::PoolingMode;

pub(super) struct Place {
    pub(super) device: Device,
    dtype: DType,
    /// Relative to the largest value: of the binary digits of the numbers.
    pub(super) tolerance: f32,
}

fn device() -> Device {
    let name = env::var("PG_SIGHT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    Placement::open(&name, "auto").unwrap().device
}

pub(super) fn places() -> Vec<Place> {
    let device = device();
    let types = if device.is_cpu() {
        // In short numbers the CPU computes with the plain forms, which round after each step.
        vec![(DType::F32, 2e-5), (DType::F16, 1e-2)]
    } else {
        vec![(DType::F32, 2e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)]
    };
    let place = |(dtype, tolerance)| Place {
        device: device.clone(),
        dtype,
        tolerance,
    };
    types.into_iter().map(place).collect()
}

impl Place {
    pub(super) fn is_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    fn is_short(&self) -> bool {
        self.dtype != DType::F32
    }

    /// What a tensor becomes by the rounding of the type, and the same on the device.
    pub(super) fn both(&self, x: &Tensor) -> (Rows, Tensor) {
        let x = x.to_dtype(self.dtype).unwrap();
        (rows(&x), x.to_device(&self.device).unwrap())
    }

    pub(super) fn values(&self, shape: &[usize], seed: u32, scale: f32) -> (Rows, Tensor) {
        self.both(&values(shape, seed, scale))
    }

    pub(super) fn assert_near(&self, actual: &Tensor, expected: &Rows, what: &str) {
        let what = format!("{what}, {:?} on {:?}", self.dtype, self.device.location());
        let actual = rows(actual);
        assert_eq!(actual.len(), expected.len(), "{what}");
        let (mut error, mut largest) = (0.0_f64, 1e-3_f64);
        for (actual, expected) in actual.iter().zip(expected) {
            assert_eq!(actual.len(), expected.len(), "{what}");
            for (a, b) in actual.iter().zip(expected) {
                assert!(a.is_finite() && b.is_finite(), "{what}: {a} {b}");
                error = error.max((a - b).abs());
                largest = largest.max(b.abs());
            }
        }
        let (error, tolerance) = (error / largest, f64::from(self.tolerance));
        println!("{what}: {error:.1e} of {tolerance:.0e}");
        assert!(error < tolerance, "{what}: {error}");
    }
}

#[test]
fn rows_are_normed() {
    for place in places() {
        for (count, n) in [(1, 4), (3, 48), (7, 384), (129, 768), (65, 1408), (5, 4096)] {
            let (x, on_device) = place.values(&[count, n], 1, 3.0);
            let (residual, added) = place.values(&[count, n], 2, 3.0);
            let stacked = values(&[3, n], 3, 2.0).to_device(&place.device).unwrap();
            let part = |index: usize| stacked.get(index).unwrap();
            let parameters = NormParameters::new(&part(1), &part(2), Some(&part(0)), 1e-6);
            let (parameters, plain) = (parameters.unwrap(), rows(&stacked));
            let what = format!("norm of {count} x {n}");
            let covered = cuda::norm(&on_device, None, &stacked, 1e-6).unwrap();
            assert_eq!(covered.is_some(), place.is_gpu(), "{what}");
            let actual = layer_norm(&on_device, &parameters).unwrap();
            place.assert_near(&actual, &reference::norm(&x, &plain, 1e-6), &what);
            let actual = add_layer_norm(on_device.copy().unwrap(), &added, &parameters);
            let expected = reference::norm(&reference::add(&x, &residual), &plain, 1e-6);
            place.assert_near(&actual.unwrap(), &expected, &what);
            place.assert_near(&on_device, &x, "what was normed stays as it is");
        }
    }
}

#[test]
fn layers_end() {
    let activations = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Identity,
    ];
    for place in places() {
        for (count, n) in [(1, 3), (5, 12), (33, 3072), (2, 30524)] {
            let (x, on_device) = place.values(&[count, n], 1, 4.0);
            let (bias, bias_there) = place.values(&[n], 2, 1.0);
            let (residual, added) = place.values(&[count, n], 3, 2.0);
            let copy = || on_device.copy().unwrap();
            let covered = cuda::finish(&copy(), &bias_there, Activation::Relu, None);
            assert_eq!(covered.unwrap().is_some(), place.is_gpu());
            let biased = reference::add_row(&x, &bias);
            for activation in activations {
                let what = format!("{activation:?} of {count} x {n}");
                let expected = reference::activate(&biased, activation);
                let actual = end_layer(copy(), &bias_there, activation, None);
                place.assert_near(&actual.unwrap(), &expected, &what);
                let expected = reference::add(&expected, &residual);
                let actual = end_layer(copy(), &bias_there, activation, Some(&added));
                place.assert_near(&actual.unwrap(), &expected, &what);
            }
            // A bias that begins anywhere.
            let longer = Tensor::cat(&[&bias_there, &bias_there], 0).unwrap();
            for offset in [0, 1, n / 2] {
                let bias = longer.narrow(0, offset, n).unwrap();
                let expected = reference::add_row(&x, &rows(&bias));
                let actual = add_to_rows(copy(), &bias).unwrap();
                place.assert_near(&actual, &expected, &format!("bias from {offset}"));
            }
        }
    }
}

#[test]
fn layers_of_few_rows_and_of_more_multiply() {
    let gelu = Activation::Gelu;
    for place in places() {
        for count in [1, 3, 8, 9, 17, 32, 40] {
            for (inputs, outputs) in [(32, 20), (768, 768), (96, 8193), (3072, 768)] {
                let (x, on_device) = place.values(&[count, inputs], 1, 2.0);
                let (weight, weight_there) = place.values(&[outputs, inputs], 2, 0.1);
                let (bias, bias_there) = place.values(&[outputs], 3, 1.0);
                let (more, more_there) = place.values(&[count, outputs], 4, 1.0);
                let what = format!("{count} x {inputs} x {outputs}");
                let layer = Linear::new(&weight_there, bias_there.clone()).unwrap();
                let product = reference::product(&x, &weight);
                place.assert_near(&layer.product(&on_device).unwrap(), &product, &what);
                let biased = reference::add_row(&product, &bias);
                let actual = layer.forward_added(&on_device, &more_there).unwrap();
                place.assert_near(&actual, &reference::add(&biased, &more), &what);
                let activated = reference::activate(&biased, gelu);
                let actual = layer.forward_activated(&on_device, gelu).unwrap();
                place.assert_near(&actual, &activated, &what);

                let few = count <= 16 || (count <= 32 && outputs <= 8192);
                let (bias, residual) = (Some(&bias_there), Some(&more_there));
                let together = cuda::narrow(&on_device, &weight_there, bias, gelu, residual);
                let together = together.unwrap();
                let covered = place.is_gpu() && place.is_short() && few;
                assert_eq!(together.is_some(), covered, "{what}");
                if let Some(together) = together {
                    place.assert_near(&together, &reference::add(&activated, &more), &what);
                }
            }
        }
    }
}

#[test]
fn sequences_attend_to_themselves() {
    let cases: [(&[usize], usize, usize); 13] = [
        (&[7, 16, 17, 1, 24], 2, 16),
        (&[7, 16, 17, 1, 24, 33], 4, 32),
        (&[15; 70], 12, 64),
        (&[20, 3], 2, 128),
        (&[1], 1, 8),
        (&[2, 1, 5, 5, 16, 17, 64, 65], 2, 16),
        (&[40, 3, 130, 9], 3, 24),
        (&[64, 64, 1, 63, 200], 12, 32),
        (&[577, 577], 2, 64),
        (&[512, 31], 3, 64),
        (&[257, 20], 2, 88),
        (&[100, 150], 2, 96),
        (&[33, 300], 2, 128),
    ];
    for mut place in places() {
        if !place.is_gpu() && place.is_short() {
            // There the weights of a long sequence are added up in short numbers.
            place.tolerance = 5e-2;
        }
        for (lengths, heads, head_size) in cases {
            let hidden = heads * head_size;
            let tokens = lengths.iter().sum();
            let positions = lengths.iter().max().unwrap() + 3;
            let (qkv, qkv_there) = place.values(&[tokens, 3 * hidden], 1, 2.0);
            let (bias, bias_there) = place.values(&[3 * hidden], 2, 1.0);
            let (table, table_there) = place.values(&[heads, 2 * positions - 1], 3, 3.0);
            let distances = DistanceBias::new(&table_there, positions).unwrap();
            let biased = reference::add_row(&qkv, &bias);
            let covered = cuda::covers_attention(&qkv_there, head_size);
            assert_eq!(covered, place.is_gpu() && place.is_short());
            for distances in [None, Some(&distances)] {
                let packing = Packing::new(lengths, heads, distances, is_fused(&qkv_there));
                let actual = packed_attention(&qkv_there, &bias_there, &packing.unwrap());
                let of = distances.map(|_| (&table, positions - 1));
                let expected = reference::attention(&biased, lengths, heads, of);
                let what = format!("{lengths:?} x {heads} x {head_size} {}", of.is_some());
                place.assert_near(&actual.unwrap(), &expected, &what);
            }
        }
    }
}

fn table_of(queries: &[Vec<u32>]) -> HistoryTable {
    let mut table = HistoryTable::default();
    for rows in queries {
        table.push(rows.iter().copied());
    }
    table
}

/// A layer that gives what it gets, with the bias.
fn identity(place: &Place, bias: Tensor) -> Linear {
    let n = bias.elem_count();
    let one = |at: usize| if at.is_multiple_of(n + 1) { 1.0 } else { 0.0 };
    let ones: Vec<f32> = (0..n * n).map(one).collect();
    let ones = Tensor::from_vec(ones, (n, n), &Device::Cpu).unwrap();
    Linear::new(&place.both(&ones).1, bias).unwrap()
}

#[test]
fn queries_attend_to_their_own_rows() {
    let own = [
        vec![7],
        vec![39, 0, 7],
        (0..600).rev().collect(),
        (0..577).collect(),
        (0..17).map(|at| at * 3).collect(),
    ];
    for place in places() {
        for (heads, head_size) in [(1, 4), (4, 12), (12, 64), (3, 88), (2, 128), (1, 256)] {
            let hidden = heads * head_size;
            let (_, q) = place.values(&[5, 3 * hidden], 1, 2.0);
            let (keys, k) = place.values(&[600, hidden], 2, 2.0);
            let (rows_of_values, v) = place.values(&[600, hidden], 3, 2.0);
            let table = table_of(&own);
            let what = format!("single queries of {heads} x {head_size}");
            let covered = cuda::covers_single(&q, &k, &v, &table, heads);
            assert_eq!(covered, place.is_gpu(), "{what}");
            // A part of longer rows.
            let part = q.narrow(1, hidden, hidden).unwrap();
            let actual = cached_attention(&part, &k, &v, &table, heads).unwrap();
            let expect = |q: &Rows| reference::single(q, &keys, &rows_of_values, &own, heads);
            place.assert_near(&actual, &expect(&rows(&part)), &what);
            let (bias, bias_there) = place.values(&[hidden], 4, 1.0);
            let layer = identity(&place, bias_there);
            let actual = projected_attention(&part, &layer, &k, &v, &table, heads).unwrap();
            let biased = reference::add_row(&rows(&part), &bias);
            place.assert_near(&actual, &expect(&biased), &what);
        }
    }
}

#[test]
fn new_rows_are_appended_before_they_are_attended_to() {
    let own = [vec![0, 3, 6], vec![7], vec![5, 4, 3, 8]];
    for place in places() {
        for (heads, head_size) in [(4, 12), (12, 64), (3, 88), (1, 256)] {
            let hidden = heads * head_size;
            let (qkv, x) = place.values(&[3, 3 * hidden], 1, 2.0);
            let (bias, bias_there) = place.values(&[3 * hidden], 2, 1.0);
            let (mut keys, k) = place.values(&[9, hidden], 3, 2.0);
            let (mut later, v) = place.values(&[9, hidden], 4, 2.0);
            let biased = reference::add_row(&qkv, &bias);
            for (token, row) in biased.iter().enumerate() {
                keys[6 + token] = row[hidden..2 * hidden].to_vec();
                later[6 + token] = row[2 * hidden..].to_vec();
            }
            let queries = biased.iter().map(|row| row[..hidden].to_vec()).collect();
            let expected = reference::single(&queries, &keys, &later, &own, heads);
            let (table, layer) = (table_of(&own), identity(&place, bias_there));
            let what = format!("appended rows of {heads} x {head_size}");
            assert_eq!(
                cuda::covers_single(&x, &k, &v, &table, heads),
                place.is_gpu()
            );
            let actual = appending_attention(&x, &layer, &k, &v, (6, &table), heads);
            place.assert_near(&actual.unwrap(), &expected, &what);
            place.assert_near(&k, &keys, &what);
            place.assert_near(&v, &later, &what);
        }
    }
}

/// As `TextEncoder` does it.
fn pooled(hidden: &Tensor, ranges: &[(usize, usize)], modes: &[PoolingMode]) -> Tensor {
    let pooled = cuda::pool(hidden, ranges, modes).unwrap();
    assert_eq!(pooled.is_some(), hidden.device().is_cuda());
    pooled.unwrap_or_else(|| {
        let width = hidden.dim(1).unwrap();
        let hidden = hidden.flatten_all().unwrap().to_dtype(DType::F32).unwrap();
        let hidden: Vec<f32> = hidden.to_vec1().unwrap();
        let of = |(first, end): &(usize, usize)| {
            let tokens = &hidden[first * width..end * width];
            let each = modes.iter().map(|mode| mode.pool(tokens, width));
            each.collect::<Vec<_>>().concat()
        };
        let vectors: Vec<Vec<f32>> = ranges.iter().map(of).collect();
        Tensor::new(vectors, &Device::Cpu).unwrap()
    })
}

#[test]
fn texts_are_pooled_in_every_mode() {
    let modes = [
        PoolingMode::Cls,
        PoolingMode::Max,
        PoolingMode::Mean,
        PoolingMode::MeanSqrtLength,
        PoolingMode::LastToken,
    ];
    for place in places() {
        let (hidden, on_device) = place.values(&[300, 77], 1, 2.0);
        let ranges = [(0, 1), (3, 9), (9, 299), (299, 300)];
        let expected = ranges.map(|(first, end)| {
            let pooled = modes.map(|mode| reference::pool(&hidden[first..end], mode));
            pooled.concat()
        });
        let actual = pooled(&on_device, &ranges, &modes);
        place.assert_near(&actual, &expected.to_vec(), "pooling");
    }
}

#[test]
fn the_largest_of_no_numbers_is_none() {
    let nan = f32::NAN;
    let hidden = Tensor::new(&[[1.0, nan, 2.0], [3.0, nan, nan]], &Device::Cpu).unwrap();
    for place in places() {
        let (_, on_device) = place.both(&hidden);
        let pooled = rows(&pooled(&on_device, &[(0, 2)], &[PoolingMode::Max]));
        assert_eq!(
            (pooled[0][0], pooled[0][2]),
            (3.0, 2.0),
            "{:?}",
            place.dtype
        );
        assert!(pooled[0][1].is_nan(), "{:?}", place.dtype);
    }
}

/// `None` where a score is not a number.
fn likeliest(scores: &Tensor, forbidden: Option<u32>) -> Option<Vec<u32>> {
    let covered = cuda::likeliest(scores, forbidden).unwrap();
    assert_eq!(covered.is_some(), scores.device().is_cuda());
    likeliest_of(scores, forbidden).ok()
}

#[test]
fn the_first_of_the_largest_scores_is_found() {
    let n = 30_524;
    let mut scores = vec![vec![-1.0_f32; n]; 4];
    scores[0][30_523] = 2.0;
    scores[1][4_000] = 2.0;
    scores[1][77] = 2.0;
    scores[1][76] = 3.0;
    scores[2] = vec![f32::NEG_INFINITY; n];
    let mut wrong = vec![vec![-1.0_f32; n]; 2];
    wrong[1][5] = f32::NAN;
    for place in places() {
        let there = |scores: &Vec<Vec<f32>>| {
            let scores = Tensor::new(scores.clone(), &Device::Cpu).unwrap();
            place.both(&scores).1
        };
        let scores = there(&scores);
        assert_eq!(likeliest(&scores, Some(76)).unwrap(), [30_523, 77, 0, 0]);
        assert_eq!(likeliest(&scores, None).unwrap(), [30_523, 76, 0, 0]);
        assert!(likeliest(&there(&wrong), None).is_none());
    }
}

/// Tensors that no kernel takes as they are.
#[test]
fn tensors_may_lie_anywhere() {
    // The same numbers from the second of a longer memory on.
    let shifted = |x: &Tensor| {
        let one = Tensor::zeros(1, x.dtype(), x.device()).unwrap();
        let longer = Tensor::cat(&[&one, &x.flatten_all().unwrap()], 0).unwrap();
        let shifted = longer.narrow(0, 1, x.elem_count()).unwrap();
        let shifted = shifted.reshape(x.dims()).unwrap();
        assert_eq!(shifted.layout().start_offset(), 1);
        shifted
    };
    for place in places() {
        let (x, near) = place.values(&[6, 96], 1, 2.0);
        let (bias, bias_there) = place.values(&[96], 2, 1.0);
        let far = shifted(&near);

        let part = |seed: u32| shifted(&values(&[96], seed, 1.0).to_device(&place.device).unwrap());
        let parameters = NormParameters::new(&part(3), &part(4), Some(&part(5)), 1e-6).unwrap();
        let stacked = [part(5), part(3), part(4)].map(|part| rows(&part).remove(0));
        let actual = layer_norm(&far, &parameters).unwrap();
        place.assert_near(
            &actual,
            &reference::norm(&x, &stacked.to_vec(), 1e-6),
            "norm",
        );

        let (weight, weight_there) = place.values(&[20, 96], 6, 0.1);
        let (ends, ends_there) = place.values(&[20], 7, 0.1);
        let layer = Linear::new(&weight_there, shifted(&ends_there)).unwrap();
        let expected = reference::add_row(&reference::product(&x, &weight), &ends);
        place.assert_near(&layer.forward(&far).unwrap(), &expected, "layer");

        let packing = Packing::new(&[2, 4], 2, None, is_fused(&far)).unwrap();
        let actual = packed_attention(&far, &shifted(&bias_there), &packing).unwrap();
        let biased = reference::add_row(&x, &bias);
        let expected = reference::attention(&biased, &[2, 4], 2, None);
        place.assert_near(&actual, &expected, "attention");

        let own: Vec<Vec<u32>> = (0..6).map(|query| (0..=query).collect()).collect();
        let table = table_of(&own);
        let expected = reference::single(&x, &x, &x, &own, 4);
        let transposed = near.t().unwrap().contiguous().unwrap().t().unwrap();
        for queries in [&far, &transposed] {
            let actual = cached_attention(queries, &near, &near, &table, 4).unwrap();
            place.assert_near(&actual, &expected, "queries");
        }
        // Keys that lie so are computed with in the plain form.
        assert!(!cuda::covers_single(&near, &far, &near, &table, 4));
        let actual = cached_attention(&near, &far, &near, &table, 4).unwrap();
        place.assert_near(&actual, &expected, "keys");
    }
}

/// Each would have a kernel read or write beside its tensors; see `shapes` for all of them.
#[test]
fn what_does_not_fit_is_refused() {
    for place in places() {
        let of = |shape: &[usize]| place.values(shape, 1, 1.0).1;
        let (x, relu) = (of(&[4, 96]), Activation::Relu);
        let parameters = Tensor::zeros((3, 48), DType::F32, &place.device).unwrap();
        assert!(cuda::norm(&x, None, &parameters, 1e-6).is_err());
        assert!(cuda::finish(&x, &of(&[48]), relu, None).is_err());
        assert!(cuda::narrow(&x, &of(&[20, 64]), None, relu, None).is_err());
        assert!(cuda::pool(&x, &[(0, 5)], &[PoolingMode::Mean]).is_err());
        for lengths in [[1, 2], [1, 4]] {
            let packing = Packing::new(&lengths, 2, None, is_fused(&x)).unwrap();
            assert!(packed_attention(&x, &of(&[96]), &packing).is_err());
        }
        let attend = |queries: &Tensor, keys: &Tensor, last: u32| {
            let table = table_of(&[vec![0], vec![1], vec![2], vec![last]]);
            cached_attention(queries, keys, keys, &table, 4)
        };
        assert!(attend(&x, &of(&[9, 96]), 8).is_ok());
        assert!(attend(&x, &of(&[9, 96]), 9).is_err());
        assert!(attend(&x, &of(&[9, 48]), 8).is_err());
        assert!(attend(&of(&[3, 96]), &of(&[9, 96]), 8).is_err());
    }
}

/// In what this process has of a GPU's memory, since others may use it too; so large that what
/// other tests use makes no difference. The CPU has no such memory.
#[test]
fn memory_is_given_back() {
    const BYTES: u64 = 1 << 30;
    let device = device();
    if device.is_cpu() {
        assert!(cuda::memory(&device).is_err() && cuda::trim(&device).is_err());
        assert!(cuda::reserved(&device).is_err());
        return;
    }
    cuda::trim(&device).unwrap();
    let before = cuda::reserved(&device).unwrap();
    let zeros = Tensor::zeros(BYTES as usize / 4, DType::F32, &device).unwrap();
    let during = cuda::reserved(&device).unwrap();
    assert!(during >= before + BYTES / 2, "{before} {during}");
    let (used, total) = cuda::memory(&device).unwrap();
    assert!(during <= used && used <= total, "{during} {used} {total}");
    drop(zeros);
    cuda::trim(&device).unwrap();
    let after = cuda::reserved(&device).unwrap();
    assert!(after < before + BYTES / 2, "{before} {after}");
}
