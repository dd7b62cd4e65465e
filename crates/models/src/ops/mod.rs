//! Fused operations that candle lacks or computes slowly on the CPU.
//!
//! Each has a CPU kernel, written for the vectoriser of the compiler, and a
//! plain form out of candle's own operations: that one runs with shorter floats
//! there, and the tests hold the two against each other. Devices have kernels for
//! most shapes (module `cuda`), and take the plain form for others.

mod attention;
mod cached_attention;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
pub(crate) mod cuda;
mod distance_bias;
mod kernel;
mod layer_norm;
mod math;
mod matrix;
mod rows;
mod shapes;

#[cfg(test)]
mod block_tests;
#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod reference;

pub(crate) use attention::{Packing, packed_attention};
pub(crate) use cached_attention::{
    HistoryTable, appending_attention, cached_attention, projected_attention,
};
pub(crate) use distance_bias::DistanceBias;
pub(crate) use layer_norm::{NormParameters, add_layer_norm, layer_norm};
pub(crate) use matrix::{Finish, PackedMatrix};
pub(crate) use rows::{add_to_rows, end_layer, put_rows};

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};

/// Elements below which starting threads costs more than it saves.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// Whether kernels of this module compute with a tensor: with 32-bit floats on
/// the CPU. Everything else takes the plain forms.
pub(crate) fn is_fused(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}

/// The values of a contiguous 32-bit float tensor on the CPU.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation needs contiguous tensors, not {layout:?}")
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The values of a contiguous 32-bit float tensor on the CPU, to be changed.
fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a fused operation needs contiguous tensors, not {layout:?}")
    };
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("a fused operation needs 32-bit floats"),
    }
}

/// Rows of `row_elements` each to give to one thread at a time: all of them when
/// there is too little to share.
fn rows_per_task(rows: usize, row_elements: usize) -> usize {
    if rows * row_elements < PARALLEL_ELEMENTS {
        return rows.max(1);
    }
    rows.div_ceil(rayon::current_num_threads() * 2).max(1)
}

#[cfg(test)]
mod testing {
    use candle_core::{Device, Tensor};
    use pulp::Arch;

    /// The instruction sets that this processor has, the portable one included.
    pub(super) fn all_archs() -> Vec<Arch> {
        let mut archs = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
        archs
    }

    /// Reproducible values between -1 and 1, times `scale`.
    pub(super) fn values(shape: &[usize], seed: u32, scale: f32) -> Tensor {
        let count = shape.iter().product();
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
        let data: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
            })
            .collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    /// The largest absolute difference of two tensors of one shape; NaN is one.
    pub(super) fn difference(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let a = a.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let b = b.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        a.iter()
            .zip(&b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, |a, b| if b > a || b.is_nan() { b } else { a })
    }
}
