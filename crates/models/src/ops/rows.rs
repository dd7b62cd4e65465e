//! Rows that are written into a larger table, and what is added to each row.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, InplaceOp2, Layout, Result, Tensor};

use super::cuda;
use crate::activation::Activation;

/// `x + row` for each row of (rows, n). `x` may be overwritten, so it must be a result that
/// nothing else uses.
pub(crate) fn add_to_rows(x: Tensor, row: &Tensor) -> Result<Tensor> {
    end_layer(x, row, Activation::Identity, None)
}

/// `activation(x + bias) + residual`, what follows the product in a linear layer; `x` and the
/// residual are (rows, n), `bias` is (n). `x` may be overwritten, so it must be a result that
/// nothing else uses.
pub(crate) fn end_layer(
    x: Tensor,
    bias: &Tensor,
    activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Tensor> {
    if let Some(ended) = cuda::finish(&x, bias, activation, residual)? {
        return Ok(ended);
    }
    let ended = activation.apply(&x.broadcast_add(bias)?)?;
    match residual {
        Some(residual) => residual + ended,
        None => Ok(ended),
    }
}

/// Writes `rows`, (count, n), over those of `table`, (more, n), from row `first` on. They may
/// be a part of longer rows.
pub(crate) fn put_rows(rows: &Tensor, table: &Tensor, first: usize) -> Result<()> {
    table.inplace_op2(rows, &PutRows { first })
}

struct PutRows {
    first: usize,
}

impl PutRows {
    fn put<S: BackendStorage>(
        &self,
        table: &mut S,
        table_layout: &Layout,
        rows: &S,
        rows_layout: &Layout,
    ) -> Result<()> {
        let (count, n) = rows_layout.shape().dims2()?;
        let (all, width) = table_layout.shape().dims2()?;
        let &[stride, 1] = rows_layout.stride() else {
            candle_core::bail!("the components of a row must lie beside each other")
        };
        if !table_layout.is_contiguous() || width != n || self.first + count > all {
            candle_core::bail!(
                "{count} rows of {n} do not fit from row {} of {all}",
                self.first
            )
        }
        let to = table_layout.start_offset() + self.first * n;
        rows.copy2d(table, count, n, stride, n, rows_layout.start_offset(), to)
    }
}

impl InplaceOp2 for PutRows {
    fn name(&self) -> &'static str {
        "put-rows"
    }

    fn cpu_fwd(
        &self,
        table: &mut CpuStorage,
        table_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        self.put(table, table_layout, rows, rows_layout)
    }

    fn cuda_fwd(
        &self,
        table: &mut CudaStorage,
        table_layout: &Layout,
        rows: &CudaStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        self.put(table, table_layout, rows, rows_layout)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::values;
    use super::*;

    #[test]
    fn a_row_is_added_to_each() {
        let (x, row) = (values(&[2, 3], 1, 1.0), values(&[1, 3], 2, 1.0));
        let expected = x.broadcast_add(&row).unwrap();
        let actual = add_to_rows(x, &row).unwrap();
        assert_eq!(
            actual.to_vec2::<f32>().unwrap(),
            expected.to_vec2::<f32>().unwrap()
        );
    }

    #[test]
    fn a_part_of_longer_rows_is_written_in_its_place() {
        let table = values(&[5, 3], 1, 1.0);
        let before = table.to_vec2::<f32>().unwrap();
        let rows = values(&[2, 7], 2, 1.0);
        put_rows(&rows.narrow(1, 4, 3).unwrap(), &table, 2).unwrap();
        let after = table.to_vec2::<f32>().unwrap();
        let rows = rows.to_vec2::<f32>().unwrap();
        assert_eq!(after[..2], before[..2]);
        assert_eq!(after[2..4], [&rows[0][4..], &rows[1][4..]]);
        assert_eq!(after[4..], before[4..]);
    }

    #[test]
    fn rows_that_do_not_fit_are_an_error() {
        let table = values(&[5, 3], 1, 1.0);
        let rows = values(&[2, 3], 2, 1.0);
        assert!(put_rows(&rows, &table, 3).is_ok());
        assert!(put_rows(&rows, &table, 4).is_err());
        assert!(put_rows(&values(&[2, 4], 2, 1.0), &table, 0).is_err());
        assert!(put_rows(&rows.t().unwrap(), &table, 0).is_err());
    }
}
