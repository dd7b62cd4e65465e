//! In place of the kernels for NVIDIA devices where those were not built: there is no such
//! device, so everything takes the other forms. What does not fit is refused as there.

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Result, Tensor};

use super::cached_attention::HistoryTable;
use super::shapes;
use crate::activation::Activation;
use crate::pooling::PoolingMode;

#[derive(Debug)]
pub(super) struct Tiles;

impl Tiles {
    pub(super) fn new(_lengths: &[usize], _device: &Device) -> Result<Self> {
        absent()
    }
}

#[derive(Debug)]
pub(crate) enum Blocks {}

impl Blocks {
    pub(crate) fn new(
        _bytes: &[u8],
        _format: GgmlDType,
        _size: (usize, usize),
        _device: &Device,
    ) -> Result<Self> {
        absent()
    }

    pub(crate) fn product(&self, _x: &Tensor) -> Result<Tensor> {
        match *self {}
    }
}

pub(crate) fn narrow(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    _activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    shapes::layer(x, weight, bias, residual)?;
    Ok(None)
}

pub(crate) fn load() -> Result<()> {
    absent()
}

pub(crate) fn prepare(_device: &Device) -> Result<()> {
    absent()
}

pub(crate) fn trim(_device: &Device) -> Result<()> {
    absent()
}

pub(crate) fn memory(_device: &Device) -> Result<(u64, u64)> {
    absent()
}

#[cfg(test)]
pub(crate) fn reserved(_device: &Device) -> Result<u64> {
    absent()
}

fn absent<T>() -> Result<T> {
    candle_core::bail!("built without kernels for NVIDIA devices")
}

pub(super) fn norm(
    x: &Tensor,
    residual: Option<&Tensor>,
    parameters: &Tensor,
    _epsilon: f64,
) -> Result<Option<Tensor>> {
    shapes::norm(x, residual, parameters)?;
    Ok(None)
}

pub(crate) fn finish(
    x: &Tensor,
    bias: &Tensor,
    _activation: Activation,
    residual: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    shapes::finish(x, bias, residual)?;
    Ok(None)
}

pub(super) fn covers_attention(_qkv: &Tensor, _head_size: usize) -> bool {
    false
}

pub(super) fn attention(
    _qkv: &Tensor,
    _bias: &Tensor,
    _distances: Option<(&Tensor, usize)>,
    _tiles: &Tiles,
    _heads: usize,
) -> Result<Tensor> {
    absent()
}

pub(super) fn covers_single(
    _x: &Tensor,
    _keys: &Tensor,
    _values: &Tensor,
    _table: &HistoryTable,
    _heads: usize,
) -> bool {
    false
}

pub(super) fn attend(
    _queries: &Tensor,
    _bias: Option<&Tensor>,
    _keys: &Tensor,
    _values: &Tensor,
    _table: &HistoryTable,
    _heads: usize,
    _append: bool,
) -> Result<Tensor> {
    absent()
}

pub(crate) fn pool(
    hidden: &Tensor,
    ranges: &[(usize, usize)],
    _modes: &[PoolingMode],
) -> Result<Option<Tensor>> {
    shapes::pool(hidden, ranges)?;
    Ok(None)
}

pub(crate) fn likeliest(_scores: &Tensor, _forbidden: Option<u32>) -> Result<Option<Vec<u32>>> {
    Ok(None)
}
