//! What the operations compute, written down plainly in 64-bit floats: what kernels and plain
//! forms are compared with.

use candle_core::{D, DType, Device, Tensor};

use crate::activation::Activation;
use crate::pooling::PoolingMode;

/// Rows of a matrix.
pub(super) type Rows = Vec<Vec<f64>>;

/// (.., n) on any device as rows of n.
pub(super) fn rows(x: &Tensor) -> Rows {
    let x = x.to_device(&Device::Cpu).unwrap();
    let x = x.reshape(((), x.dim(D::Minus1).unwrap())).unwrap();
    x.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

pub(super) fn add(a: &Rows, b: &Rows) -> Rows {
    assert_eq!(a.len(), b.len());
    let sums = a.iter().zip(b).map(|(a, b)| sum_of(a, b));
    sums.collect()
}

/// The only row of `row` is added to each.
pub(super) fn add_row(x: &Rows, row: &Rows) -> Rows {
    x.iter().map(|x| sum_of(x, &row[0])).collect()
}

fn sum_of(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `parameters` are bias, scale and shift.
pub(super) fn norm(x: &Rows, parameters: &Rows, epsilon: f64) -> Rows {
    let [bias, scale, shift] = parameters.as_slice() else {
        panic!("three rows of parameters")
    };
    let one = |x: &Vec<f64>| {
        let x = sum_of(x, bias);
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let places = x.iter().zip(scale).zip(shift);
        places
            .map(|((x, scale), shift)| (x - mean) / (variance + epsilon).sqrt() * scale + shift)
            .collect()
    };
    x.iter().map(one).collect()
}

/// `x W^T`.
pub(super) fn product(x: &Rows, weight: &Rows) -> Rows {
    let one = |x: &Vec<f64>| weight.iter().map(|row| dot(x, row)).collect();
    x.iter().map(one).collect()
}

pub(super) fn activate(x: &Rows, activation: Activation) -> Rows {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let one = |x: &f64| {
        let x = *x;
        match activation {
            Activation::Gelu => x * 0.5 * (1.0 + error_function(x / 2.0_f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                x * 0.5 * (1.0 + inner.tanh())
            }
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
            Activation::Identity => x,
        }
    };
    x.iter().map(|x| x.iter().map(one).collect()).collect()
}

/// The series around zero, which is exact enough up to 4, where the function is 1.
fn error_function(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut power, mut sum) = (x, x);
    for n in 1..200 {
        power *= -x * x / f64::from(n);
        sum += power / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Attention of one query in one head: `added` is what is added to the score of each key.
fn attend(query: &[f64], keys: &[&[f64]], values: &[&[f64]], added: &[f64]) -> Vec<f64> {
    let scale = 1.0 / (query.len() as f64).sqrt();
    let scores = keys.iter().zip(added);
    let scores: Vec<f64> = scores
        .map(|(key, added)| dot(query, key) * scale + added)
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut result = vec![0.0; query.len()];
    for (weight, value) in weights.iter().zip(values) {
        for (result, value) in result.iter_mut().zip(*value) {
            *result += weight / total * value;
        }
    }
    result
}

/// Attention within sequences, each row of `qkv` being query, key and value with their bias.
/// `distances` are a row for each head, and where in it distance 0 is.
pub(super) fn attention(
    qkv: &Rows,
    lengths: &[usize],
    heads: usize,
    distances: Option<(&Rows, usize)>,
) -> Rows {
    let hidden = qkv[0].len() / 3;
    let size = hidden / heads;
    let mut result = Rows::new();
    let mut start = 0;
    for length in lengths {
        let sequence = &qkv[start..start + length];
        start += length;
        for (at, token) in sequence.iter().enumerate() {
            let mut row = Vec::new();
            for head in 0..heads {
                let part = |part: usize| {
                    let first = part * hidden + head * size;
                    let of_all = sequence.iter().map(move |row| &row[first..first + size]);
                    of_all.collect::<Vec<_>>()
                };
                let added: Vec<f64> = match distances {
                    Some((table, zero)) => table[head][zero - at..][..*length].to_vec(),
                    None => vec![0.0; *length],
                };
                let query = &token[head * size..][..size];
                row.extend(attend(query, &part(1), &part(2), &added));
            }
            result.push(row);
        }
    }
    result
}

/// Attention of each query to its own rows of keys and values.
pub(super) fn single(
    queries: &Rows,
    keys: &Rows,
    values: &Rows,
    table: &[Vec<u32>],
    heads: usize,
) -> Rows {
    let size = keys[0].len() / heads;
    let one = |(query, own): (&Vec<f64>, &Vec<u32>)| {
        let head = |head: usize| {
            let range = head * size..(head + 1) * size;
            let of = |source| {
                let source: &Rows = source;
                let rows = own.iter().map(|row| &source[*row as usize][range.clone()]);
                rows.collect::<Vec<_>>()
            };
            attend(
                &query[range.clone()],
                &of(keys),
                &of(values),
                &vec![0.0; own.len()],
            )
        };
        (0..heads).flat_map(head).collect()
    };
    assert_eq!(queries.len(), table.len());
    queries.iter().zip(table).map(one).collect()
}

pub(super) fn pool(tokens: &[Vec<f64>], mode: PoolingMode) -> Vec<f64> {
    let count = tokens.len() as f64;
    let column = |at: usize| {
        let mut column = tokens.iter().map(|token| token[at]);
        match mode {
            PoolingMode::Cls => tokens[0][at],
            PoolingMode::LastToken => tokens[tokens.len() - 1][at],
            PoolingMode::Max => column.fold(f64::NEG_INFINITY, f64::max),
            PoolingMode::Mean => column.sum::<f64>() / count,
            PoolingMode::MeanSqrtLength => column.by_ref().sum::<f64>() / count.sqrt(),
        }
    };
    (0..tokens[0].len()).map(column).collect()
}
