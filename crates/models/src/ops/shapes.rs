//! Which tensors fit each other. Kernels of devices would read or write beside those that do
//! not: before each is launched it is checked here, and on the CPU likewise, so that both refuse
//! the same. No check looks at the numbers of a tensor.

use candle_core::{D, DType, Result, Tensor};

/// `x` is (.., n), `parameters` are (3, n) in 32-bit floats, a residual is like `x`.
pub(super) fn norm(x: &Tensor, residual: Option<&Tensor>, parameters: &Tensor) -> Result<()> {
    let n = x.dim(D::Minus1)?;
    let fits = parameters.dims() == [3, n] && parameters.dtype() == DType::F32;
    expect(fits, "parameters", parameters, x)?;
    like(residual, x)
}

/// `x` is (.., n), `bias` has n numbers, a residual is like `x`.
pub(super) fn finish(x: &Tensor, bias: &Tensor, residual: Option<&Tensor>) -> Result<()> {
    biased(x, x.dim(D::Minus1)?, Some(bias))?;
    like(residual, x)
}

/// `x` is (rows, inputs), `weight` (outputs, inputs), a bias has as many numbers as there are
/// outputs, a residual is (rows, outputs).
pub(super) fn layer(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<()> {
    let ((rows, inputs), (outputs, columns)) = (x.dims2()?, weight.dims2()?);
    let fits = columns == inputs && weight.dtype() == x.dtype();
    expect(fits, "a weight", weight, x)?;
    biased(x, outputs, bias)?;
    residual.map_or(Ok(()), |residual| {
        let fits = residual.dims() == [rows, outputs] && residual.dtype() == x.dtype();
        expect(fits, "a residual", residual, x)
    })
}

/// `qkv` is (tokens, 3 * hidden), `bias` has as many numbers as a row of it, hidden is made of
/// heads; `distances` are (heads, 2 * positions - 1), and the positions.
pub(super) fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    distances: Option<(&Tensor, usize)>,
    tokens: usize,
    heads: usize,
) -> Result<()> {
    let (rows, width) = qkv.dims2()?;
    if rows != tokens || heads == 0 || !width.is_multiple_of(3 * heads) {
        candle_core::bail!("{tokens} tokens of {heads} heads are not {:?}", qkv.shape())
    }
    biased(qkv, width, Some(bias))?;
    distances.map_or(Ok(()), |(table, positions)| {
        let fits = table.dims() == [heads, 2 * positions - 1] && table.dtype() == qkv.dtype();
        expect(fits, "a table of distances", table, qkv)
    })
}

/// `keys` and `values` are (rows, hidden), hidden is made of heads; `queries` are (queries,
/// hidden), or (queries, 3 * hidden) where keys and values are behind them; a bias has as many
/// numbers as a row of them.
pub(super) fn single(
    queries: &Tensor,
    bias: Option<&Tensor>,
    keys: &Tensor,
    values: &Tensor,
    heads: usize,
    append: bool,
) -> Result<()> {
    let ((_, width), (_, hidden)) = (queries.dims2()?, keys.dims2()?);
    let wanted = if append { 3 * hidden } else { hidden };
    if width != wanted || heads == 0 || !hidden.is_multiple_of(heads) {
        candle_core::bail!(
            "queries of {width} numbers do not fit keys of {hidden} in {heads} heads"
        )
    }
    expect(keys.dtype() == queries.dtype(), "keys", keys, queries)?;
    biased(queries, width, bias)?;
    like(Some(values), keys)
}

/// `hidden` is (tokens, width); each range is of one token at least, and of no others.
pub(super) fn pool(hidden: &Tensor, ranges: &[(usize, usize)]) -> Result<()> {
    let (tokens, _) = hidden.dims2()?;
    let within = |(first, end): &(usize, usize)| first < end && *end <= tokens;
    if ranges.is_empty() || !ranges.iter().all(within) {
        candle_core::bail!("texts without tokens, or with others than {tokens}")
    }
    Ok(())
}

/// A bias has so many numbers, of the type of `x`.
fn biased(x: &Tensor, count: usize, bias: Option<&Tensor>) -> Result<()> {
    bias.map_or(Ok(()), |bias| {
        let fits = bias.elem_count() == count && bias.dtype() == x.dtype();
        expect(fits, "a bias", bias, x)
    })
}

fn like(other: Option<&Tensor>, x: &Tensor) -> Result<()> {
    other.map_or(Ok(()), |other| {
        let fits = other.dims() == x.dims() && other.dtype() == x.dtype();
        expect(fits, "a tensor", other, x)
    })
}

fn expect(fits: bool, name: &str, tensor: &Tensor, x: &Tensor) -> Result<()> {
    if fits {
        return Ok(());
    }
    let says = |tensor: &Tensor| format!("{:?} in {}", tensor.dims(), tensor.dtype().as_str());
    candle_core::bail!("{name} of {} does not fit {}", says(tensor), says(x))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(shape: &[usize], dtype: DType) -> Tensor {
        Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()
    }

    fn of(shape: &[usize]) -> Tensor {
        tensor(shape, DType::F16)
    }

    #[test]
    fn parameters_and_residuals_of_norms_fit() {
        let (x, parameters) = (of(&[4, 64]), tensor(&[3, 64], DType::F32));
        assert!(norm(&x, None, &parameters).is_ok());
        assert!(norm(&x, Some(&x), &parameters).is_ok());
        assert!(norm(&of(&[2, 4, 64]), None, &parameters).is_ok());
        assert!(norm(&x, None, &of(&[3, 64])).is_err());
        assert!(norm(&x, None, &tensor(&[3, 32], DType::F32)).is_err());
        assert!(norm(&x, Some(&of(&[3, 64])), &parameters).is_err());
        let other = tensor(&[4, 64], DType::F32);
        assert!(norm(&x, Some(&other), &parameters).is_err());
    }

    #[test]
    fn weights_biases_and_residuals_of_layers_fit() {
        let (x, other) = (of(&[4, 64]), tensor(&[4, 64], DType::BF16));
        assert!(finish(&x, &of(&[64]), None).is_ok());
        assert!(finish(&x, &of(&[1, 64]), Some(&x)).is_ok());
        for bias in [of(&[48]), of(&[32]), tensor(&[64], DType::F32)] {
            assert!(finish(&x, &bias, None).is_err());
        }
        assert!(finish(&x, &of(&[64]), Some(&of(&[2, 64]))).is_err());
        assert!(finish(&x, &of(&[64]), Some(&other)).is_err());

        let weight = of(&[20, 64]);
        assert!(layer(&x, &weight, None, None).is_ok());
        assert!(layer(&x, &weight, Some(&of(&[20])), Some(&of(&[4, 20]))).is_ok());
        assert!(layer(&x, &of(&[20, 32]), None, None).is_err());
        assert!(layer(&x, &tensor(&[20, 64], DType::F32), None, None).is_err());
        assert!(layer(&x, &weight, Some(&of(&[19])), None).is_err());
        assert!(layer(&x, &weight, Some(&tensor(&[20], DType::F32)), None).is_err());
        assert!(layer(&x, &weight, None, Some(&of(&[4, 19]))).is_err());
        let residual = tensor(&[4, 20], DType::F32);
        assert!(layer(&x, &weight, None, Some(&residual)).is_err());
    }

    #[test]
    fn sequences_heads_and_distances_fit() {
        let (qkv, bias, distances) = (of(&[4, 96]), of(&[96]), of(&[2, 7]));
        assert!(attention(&qkv, &bias, None, 4, 2).is_ok());
        assert!(attention(&qkv, &bias, Some((&distances, 4)), 4, 2).is_ok());
        assert!(attention(&qkv, &bias, None, 5, 2).is_err());
        assert!(attention(&qkv, &bias, None, 3, 2).is_err());
        assert!(attention(&qkv, &bias, None, 4, 3).is_err());
        assert!(attention(&qkv, &bias, None, 4, 0).is_err());
        assert!(attention(&qkv, &of(&[48]), None, 4, 2).is_err());
        assert!(attention(&qkv, &tensor(&[96], DType::F32), None, 4, 2).is_err());
        assert!(attention(&qkv, &bias, Some((&distances, 3)), 4, 2).is_err());
        assert!(attention(&qkv, &bias, Some((&of(&[1, 7]), 4)), 4, 2).is_err());
        let other = tensor(&[2, 7], DType::F32);
        assert!(attention(&qkv, &bias, Some((&other, 4)), 4, 2).is_err());
    }

    #[test]
    fn queries_keys_and_values_fit() {
        let (queries, longer, keys) = (of(&[4, 64]), of(&[4, 192]), of(&[9, 64]));
        assert!(single(&queries, None, &keys, &keys, 4, false).is_ok());
        assert!(single(&queries, Some(&of(&[64])), &keys, &keys, 4, false).is_ok());
        assert!(single(&longer, Some(&of(&[192])), &keys, &keys, 4, true).is_ok());
        assert!(single(&queries, None, &keys, &keys, 4, true).is_err());
        assert!(single(&longer, None, &keys, &keys, 4, false).is_err());
        assert!(single(&queries, None, &keys, &keys, 5, false).is_err());
        assert!(single(&queries, None, &keys, &keys, 0, false).is_err());
        assert!(single(&queries, Some(&of(&[32])), &keys, &keys, 4, false).is_err());
        assert!(single(&queries, None, &keys, &of(&[8, 64]), 4, false).is_err());
        let other = tensor(&[9, 64], DType::F32);
        assert!(single(&queries, None, &other, &other, 4, false).is_err());
        assert!(single(&queries, None, &keys, &other, 4, false).is_err());
    }

    #[test]
    fn texts_have_tokens() {
        let hidden = of(&[4, 64]);
        assert!(pool(&hidden, &[(0, 2), (2, 4)]).is_ok());
        for ranges in [&[(0, 2), (2, 5)][..], &[(2, 2)], &[(3, 2)], &[]] {
            assert!(pool(&hidden, ranges).is_err(), "{ranges:?}");
        }
    }
}
