//! The kernels against the plain forms in 32-bit floats on the CPU, with fresh numbers in the
//! sizes of real models. They need a GPU: run them with `--ignored`.

use candle_core::{DType, Device, Tensor};

use super::super::testing::{difference, values};
use super::super::{DistanceBias, Packing, packed_attention};
use super::*;
use crate::device::Placement;

const TYPES: [(DType, f32); 3] = [(DType::F32, 2e-5), (DType::F16, 4e-3), (DType::BF16, 3e-2)];

fn gpu() -> Device {
    Placement::open("cuda", "float32").unwrap().device
}

/// What a tensor becomes by the rounding of a type, and the same on the device.
fn both(x: &Tensor, dtype: DType, gpu: &Device) -> (Tensor, Tensor) {
    let short = x.to_dtype(dtype).unwrap();
    let rounded = short.to_dtype(DType::F32).unwrap();
    (rounded, short.to_device(gpu).unwrap())
}

fn back(x: &Tensor) -> Tensor {
    let x = x.to_dtype(DType::F32).unwrap();
    x.to_device(&Device::Cpu).unwrap()
}

/// Compares relative to the largest value.
fn assert_near(actual: &Tensor, expected: &Tensor, tolerance: f32, what: &str) {
    let zero = expected.zeros_like().unwrap();
    let largest = difference(expected, &zero).max(1e-3);
    let error = difference(&back(actual), expected) / largest;
    println!("{what}: {error:.1e} of {tolerance:.0e}");
    let finite = back(actual)
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    assert!(finite.iter().all(|x| x.is_finite()), "{what}");
    assert!(error < tolerance, "{what}: {error}");
}

#[test]
#[ignore = "needs a GPU"]
fn norms_are_those_of_the_plain_form() {
    let gpu = gpu();
    for (dtype, tolerance) in TYPES {
        for (rows, n) in [(1, 4), (3, 48), (7, 384), (129, 768), (65, 1408), (5, 4096)] {
            let (x, on_gpu) = both(&values(&[rows, n], 1, 3.0), dtype, &gpu);
            let (residual, residual_gpu) = both(&values(&[rows, n], 2, 3.0), dtype, &gpu);
            let parameters = values(&[3, n], 3, 2.0);
            let plain = |x: &Tensor| {
                let x = x.broadcast_add(&parameters.get(0).unwrap()).unwrap();
                let mean = x.mean_keepdim(1).unwrap();
                let x = x.broadcast_sub(&mean).unwrap();
                let variance = x.sqr().unwrap().mean_keepdim(1).unwrap();
                let x = x.broadcast_div(&(variance + 1e-6).unwrap().sqrt().unwrap());
                let x = x.unwrap().broadcast_mul(&parameters.get(1).unwrap());
                x.unwrap()
                    .broadcast_add(&parameters.get(2).unwrap())
                    .unwrap()
            };
            let stacked = parameters.to_device(&gpu).unwrap();
            let what = format!("norm of {rows} x {n}, {dtype:?}");
            let alone = norm(&on_gpu, None, &stacked, 1e-6).unwrap().unwrap();
            assert_near(&alone, &plain(&x), tolerance, &what);
            let copy = on_gpu.copy().unwrap();
            let added = norm(&copy, Some(&residual_gpu), &stacked, 1e-6);
            let expected = plain(&(&x + &residual).unwrap());
            assert_near(&added.unwrap().unwrap(), &expected, tolerance, &what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn layers_end_as_in_the_plain_form() {
    let gpu = gpu();
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
    for (dtype, tolerance) in TYPES {
        for (rows, n) in [(1, 3), (5, 12), (33, 3072), (2, 30524)] {
            let (x, on_gpu) = both(&values(&[rows, n], 1, 4.0), dtype, &gpu);
            let (bias, bias_gpu) = both(&values(&[n], 2, 1.0), dtype, &gpu);
            let (residual, residual_gpu) = both(&values(&[rows, n], 3, 2.0), dtype, &gpu);
            let biased = x.broadcast_add(&bias).unwrap();
            for activation in activations {
                let what = format!("{activation:?} of {rows} x {n}, {dtype:?}");
                let expected = activation.apply(&biased).unwrap();
                let actual = finish(&on_gpu.copy().unwrap(), &bias_gpu, activation, None);
                assert_near(&actual.unwrap().unwrap(), &expected, tolerance, &what);
                let expected = (expected + &residual).unwrap();
                let copy = on_gpu.copy().unwrap();
                let actual = finish(&copy, &bias_gpu, activation, Some(&residual_gpu));
                assert_near(&actual.unwrap().unwrap(), &expected, tolerance, &what);
            }
            // A bias that begins anywhere.
            let longer = Tensor::cat(&[&bias, &bias], 0).unwrap();
            for offset in [0, 1, n / 2] {
                let bias = longer.narrow(0, offset, n).unwrap();
                let bias_gpu = longer.to_dtype(dtype).unwrap().to_device(&gpu).unwrap();
                let bias_gpu = bias_gpu.narrow(0, offset, n).unwrap();
                let expected = x.broadcast_add(&bias).unwrap();
                let copy = on_gpu.copy().unwrap();
                let actual = finish(&copy, &bias_gpu, Activation::Identity, None);
                let what = format!("bias from {offset}, {dtype:?}");
                assert_near(&actual.unwrap().unwrap(), &expected, tolerance, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn narrow_layers_are_those_of_the_plain_form() {
    let gpu = gpu();
    for (dtype, tolerance) in &TYPES[1..] {
        for rows in [1, 3, 8, 9, 17, 32] {
            for (inputs, outputs) in [(32, 20), (768, 768), (96, 8193), (3072, 768)] {
                let (x, x_gpu) = both(&values(&[rows, inputs], 1, 2.0), *dtype, &gpu);
                let weight = values(&[outputs, inputs], 2, 0.1);
                let (weight, weight_gpu) = both(&weight, *dtype, &gpu);
                let (bias, bias_gpu) = both(&values(&[outputs], 3, 1.0), *dtype, &gpu);
                let (more, more_gpu) = both(&values(&[rows, outputs], 4, 1.0), *dtype, &gpu);
                let what = format!("{rows} x {inputs} x {outputs}, {dtype:?}");
                let product = x.matmul(&weight.t().unwrap()).unwrap();
                let actual = narrow(&x_gpu, &weight_gpu, None, Activation::Identity, None);
                let Some(actual) = actual.unwrap() else {
                    assert!(rows > 16 && outputs > 8192, "{what}");
                    continue;
                };
                assert_near(&actual, &product, *tolerance, &what);
                let biased = product.broadcast_add(&bias).unwrap();
                let expected = (Activation::Gelu.apply(&biased).unwrap() + &more).unwrap();
                let (bias, more) = (Some(&bias_gpu), Some(&more_gpu));
                let actual = narrow(&x_gpu, &weight_gpu, bias, Activation::Gelu, more);
                assert_near(&actual.unwrap().unwrap(), &expected, *tolerance, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention_within_sequences_is_that_of_the_plain_form() {
    let gpu = gpu();
    let cases: [(&[usize], usize, usize); 13] = [
        (&[7, 16, 17, 1, 24], 2, 16),
        (&[7, 16, 17, 1, 24, 33], 4, 32),
        (&[15; 70], 12, 64),
        (&[20, 3], 2, 128),
        (&[1], 1, 8),
        (&[2, 1, 5, 5, 16, 17, 64, 65], 2, 16),
        (&[40, 3, 130, 9], 3, 24),
        (&[64, 64, 1, 63, 200], 12, 32),
        (&[577, 577], 4, 64),
        (&[512, 31], 12, 64),
        (&[257, 20], 2, 88),
        (&[100, 150], 2, 96),
        (&[33, 300], 2, 128),
    ];
    for (dtype, tolerance) in TYPES {
        for (lengths, heads, head_size) in cases {
            let hidden = heads * head_size;
            let tokens = lengths.iter().sum();
            let longest = *lengths.iter().max().unwrap();
            let (qkv, qkv_gpu) = both(&values(&[tokens, 3 * hidden], 1, 2.0), dtype, &gpu);
            let (bias, bias_gpu) = both(&values(&[3 * hidden], 2, 1.0), dtype, &gpu);
            let positions = longest + 3;
            let table = values(&[heads, 2 * positions - 1], 3, 3.0);
            let (table, table_gpu) = both(&table, dtype, &gpu);
            let distances = DistanceBias::new(&table, positions).unwrap();
            let distances_gpu = DistanceBias::new(&table_gpu, positions).unwrap();
            for pair in [None, Some((&distances, &distances_gpu))] {
                let near = Packing::new(lengths, heads, pair.map(|pair| pair.0), true).unwrap();
                let far = Packing::new(lengths, heads, pair.map(|pair| pair.1), false).unwrap();
                let expected = packed_attention(&qkv, &bias, &near).unwrap();
                let actual = packed_attention(&qkv_gpu, &bias_gpu, &far).unwrap();
                let short = dtype != DType::F32;
                assert_eq!(covers_attention(&qkv_gpu, head_size), short);
                let distances = pair.is_some();
                let what = format!("{lengths:?} x {heads} x {head_size} {distances}, {dtype:?}");
                assert_near(&actual, &expected, tolerance, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention_of_single_queries_is_that_of_the_plain_form() {
    let gpu = gpu();
    for (dtype, tolerance) in TYPES {
        for (heads, head_size) in [(1, 4), (4, 12), (12, 64), (3, 88), (2, 128), (1, 256)] {
            let hidden = heads * head_size;
            let (q, q_gpu) = both(&values(&[5, 3 * hidden], 1, 2.0), dtype, &gpu);
            let (k, k_gpu) = both(&values(&[600, hidden], 2, 2.0), dtype, &gpu);
            let (v, v_gpu) = both(&values(&[600, hidden], 3, 2.0), dtype, &gpu);
            let mut table = HistoryTable::default();
            table.push([7]);
            table.push([39, 0, 7]);
            table.push((0..600).rev());
            table.push(0..577);
            table.push((0..17).map(|at| at * 3));
            let part = |q: &Tensor| q.narrow(1, hidden, hidden).unwrap();
            let plain = super::super::cached_attention;
            let what = format!("single queries of {heads} x {head_size}, {dtype:?}");
            assert!(covers_single(&q_gpu, head_size, table.longest()));
            let expected = plain(&part(&q), &k, &v, &table, heads).unwrap();
            let queries = part(&q_gpu);
            let actual = attend(&queries, None, &k_gpu, &v_gpu, &table, heads, false);
            assert_near(&actual.unwrap(), &expected, tolerance, &what);
            let (bias, bias_gpu) = both(&values(&[3 * hidden], 4, 1.0), dtype, &gpu);
            let biased = q.broadcast_add(&bias).unwrap();
            let own = biased.narrow(1, 0, hidden).unwrap();
            let expected = plain(&own, &k, &v, &table, heads).unwrap();
            let queries = q_gpu.narrow(1, 0, hidden).unwrap();
            let bias = bias_gpu.narrow(0, 0, hidden).unwrap();
            let actual = attend(&queries, Some(&bias), &k_gpu, &v_gpu, &table, heads, false);
            assert_near(&actual.unwrap(), &expected, tolerance, &what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn new_rows_are_appended_before_they_are_attended_to() {
    let gpu = gpu();
    for (dtype, tolerance) in TYPES {
        for (heads, head_size) in [(4, 12), (12, 64), (3, 88), (1, 256)] {
            let hidden = heads * head_size;
            let (qkv, qkv_gpu) = both(&values(&[3, 3 * hidden], 1, 2.0), dtype, &gpu);
            let (bias, bias_gpu) = both(&values(&[3 * hidden], 2, 1.0), dtype, &gpu);
            let (k, k_gpu) = both(&values(&[9, hidden], 3, 2.0), dtype, &gpu);
            let (v, v_gpu) = both(&values(&[9, hidden], 4, 2.0), dtype, &gpu);
            let mut table = HistoryTable::default();
            table.push([0, 3, 6]);
            table.push([7]);
            table.push([5, 4, 3, 8]);
            let qkv = qkv.broadcast_add(&bias).unwrap();
            let part = |index: usize| qkv.narrow(1, index * hidden, hidden).unwrap();
            super::super::put_rows(&part(1), &k, 6).unwrap();
            super::super::put_rows(&part(2), &v, 6).unwrap();
            let expected = super::super::cached_attention(&part(0), &k, &v, &table, heads);
            let what = format!("appended rows of {heads} x {head_size}, {dtype:?}");
            let actual = attend(
                &qkv_gpu,
                Some(&bias_gpu),
                &k_gpu,
                &v_gpu,
                &table,
                heads,
                true,
            );
            assert_near(&actual.unwrap(), &expected.unwrap(), tolerance, &what);
            assert_near(&k_gpu, &k, tolerance, &what);
            assert_near(&v_gpu, &v, tolerance, &what);
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn texts_are_pooled_in_every_mode() {
    let gpu = gpu();
    let modes = [
        PoolingMode::Cls,
        PoolingMode::Max,
        PoolingMode::Mean,
        PoolingMode::MeanSqrtLength,
        PoolingMode::LastToken,
    ];
    for (dtype, tolerance) in TYPES {
        let (hidden, on_gpu) = both(&values(&[300, 77], 1, 2.0), dtype, &gpu);
        let rows = hidden.to_vec2::<f32>().unwrap();
        let ranges = [(0, 1), (3, 9), (9, 299), (299, 300)];
        let expected = ranges.map(|(first, end)| {
            let tokens = rows[first..end].concat();
            let pooled = modes.iter().map(|mode| mode.pool(&tokens, 77));
            pooled.collect::<Vec<_>>().concat()
        });
        let expected = Tensor::new(expected.to_vec(), &Device::Cpu).unwrap();
        let actual = pool(&on_gpu, &ranges, &modes).unwrap().unwrap();
        assert_near(
            &actual,
            &expected,
            tolerance,
            &format!("pooling, {dtype:?}"),
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn the_first_of_the_largest_scores_is_found() {
    let gpu = gpu();
    for (dtype, _) in TYPES {
        let n = 30_524;
        let mut scores = vec![vec![-1.0_f32; n]; 5];
        scores[0][30_523] = 2.0;
        scores[1][4_000] = 2.0;
        scores[1][77] = 2.0;
        scores[1][76] = 3.0;
        scores[2][5] = f32::NAN;
        scores[3] = vec![f32::NEG_INFINITY; n];
        let scores = Tensor::new(scores, &gpu).unwrap().to_dtype(dtype).unwrap();
        let found = likeliest(&scores, Some(76)).unwrap().unwrap();
        assert_eq!(found, [30_523, 77, u32::MAX, 0, 0], "{dtype:?}");
        assert_eq!(likeliest(&scores, None).unwrap().unwrap()[1], 76);
    }
}

#[test]
#[ignore = "needs a GPU"]
fn memory_is_given_back() {
    let place = Placement::open("cuda", "bfloat16").unwrap();
    trim(&place.device).unwrap();
    let before = place.memory().unwrap();
    let zeros = Tensor::zeros((1 << 29,), DType::F32, &place.device).unwrap();
    let during = place.memory().unwrap();
    assert!(
        during.used_bytes >= before.used_bytes + (1 << 31),
        "{before:?} {during:?}"
    );
    assert_eq!(during.total_bytes, before.total_bytes);
    drop(zeros);
    trim(&place.device).unwrap();
    assert!(place.memory().unwrap().used_bytes < before.used_bytes + (1 << 30));
}
