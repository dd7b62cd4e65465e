//! A weight matrix in the order in which products read it.
//!
//! The rows of the matrix (outputs of a layer) are cut into panels of [`WIDTH`],
//! the columns (inputs) into blocks; a panel of a block is (block, WIDTH) and
//! fits the cache of a processor core. Packed once when a model is loaded, it
//! serves every product without further copies, also those of few rows, for
//! which packing would cost as much as multiplying.

use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use super::kernel::{Target, WIDTH, multiply, pack_tiles, tile_rows, tile_rows_on};
use super::{PARALLEL_ELEMENTS, math};

/// Inputs of a block: a panel of it takes 96 KiB.
const DEPTH_BLOCK: usize = 768;
/// Rows of the other matrix that are packed at a time.
const ROW_BLOCK: usize = 96;
/// Rows for each thread from which on rows are shared out instead of panels.
const ROWS_PER_THREAD: usize = 48;
/// Multiplications below which one thread is enough.
const PARALLEL_PRODUCTS: usize = 1 << 18;
/// Of floats: a cache line, and the widest vector.
const ALIGNMENT_BYTES: usize = 64;

/// What becomes of the products of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish<'a> {
    Nothing,
    /// Adds a bias, (outputs).
    Bias(&'a [f32]),
    /// Adds a bias, (outputs), and applies the exact GELU.
    BiasGelu(&'a [f32]),
}

impl Finish<'_> {
    /// Finishes the columns from `first` on of one row.
    #[inline(always)]
    fn apply(self, first: usize, values: &mut [f32]) {
        match self {
            Self::Nothing => {}
            Self::Bias(bias) => {
                for (value, bias) in values.iter_mut().zip(&bias[first..]) {
                    *value += bias;
                }
            }
            Self::BiasGelu(bias) => {
                for (value, bias) in values.iter_mut().zip(&bias[first..]) {
                    *value = math::gelu(*value + bias);
                }
            }
        }
    }
}

/// A matrix (outputs, inputs), packed; the last panel is filled up with zeros.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    outputs: usize,
    inputs: usize,
    storage: Vec<f32>,
    /// Where the first aligned element is.
    start: usize,
}

impl PackedMatrix {
    /// `weights` is (outputs, inputs), rows behind each other.
    pub(crate) fn new(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        let panels = outputs.div_ceil(WIDTH);
        let mut storage =
            vec![0.0_f32; panels * WIDTH * inputs + ALIGNMENT_BYTES / size_of::<f32>()];
        // At most 15; an address that cannot be aligned would still be correct.
        let start = storage
            .as_ptr()
            .align_offset(ALIGNMENT_BYTES)
            .min(ALIGNMENT_BYTES / size_of::<f32>());
        let mut matrix = Self {
            outputs,
            inputs,
            storage: Vec::new(),
            start,
        };
        for (output, weights) in weights.chunks_exact(inputs.max(1)).enumerate() {
            for (block, depth) in blocks(inputs) {
                let place = start + matrix.offset(block, depth, output / WIDTH) + output % WIDTH;
                let column = storage[place..].iter_mut().step_by(WIDTH);
                for (target, weight) in column.zip(&weights[block..block + depth]) {
                    *target = *weight;
                }
            }
        }
        matrix.storage = storage;
        matrix
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    fn panels(&self) -> usize {
        self.outputs.div_ceil(WIDTH)
    }

    /// Where a panel of the block that begins at input `block` is.
    fn offset(&self, block: usize, depth: usize, panel: usize) -> usize {
        (block * self.panels() + panel * depth) * WIDTH
    }

    fn panel(&self, block: usize, depth: usize, panel: usize) -> &[f32] {
        let start = self.start + self.offset(block, depth, panel);
        &self.storage[start..start + depth * WIDTH]
    }

    /// One row of the matrix, (inputs).
    pub(crate) fn row(&self, output: usize) -> Vec<f32> {
        let mut row = Vec::with_capacity(self.inputs);
        for (block, depth) in blocks(self.inputs) {
            let panel = self.panel(block, depth, output / WIDTH);
            row.extend(panel[output % WIDTH..].iter().step_by(WIDTH));
        }
        row
    }

    /// `finish(x W^T)`: (rows, inputs) to (rows, outputs).
    pub(crate) fn multiply(&self, x: &[f32], finish: Finish<'_>) -> Vec<f32> {
        self.multiply_on(Arch::new(), x, finish)
    }

    fn multiply_on(&self, arch: Arch, x: &[f32], finish: Finish<'_>) -> Vec<f32> {
        let rows = x.len() / self.inputs.max(1);
        let threads = rayon::current_num_threads();
        let parallel = threads > 1 && rows * self.inputs * self.outputs >= PARALLEL_PRODUCTS;
        let mut values = vec![0.0; rows * self.outputs];
        if parallel && rows < ROWS_PER_THREAD * threads {
            self.share_panels(arch, x, finish, &mut values);
        } else if parallel {
            self.share_rows(arch, x, finish, &mut values);
        } else {
            self.multiply_rows(arch, x, finish, &mut values, &mut Vec::new());
        }
        values
    }

    /// Each thread computes some rows.
    fn share_rows(&self, arch: Arch, x: &[f32], finish: Finish<'_>, values: &mut [f32]) {
        let rows = x.len() / self.inputs;
        let tasks = rows
            .div_ceil(ROW_BLOCK)
            .next_multiple_of(rayon::current_num_threads());
        let task = rows.div_ceil(tasks).next_multiple_of(tile_rows_on(arch));
        values
            .par_chunks_mut(task * self.outputs)
            .zip(x.par_chunks(task * self.inputs))
            .with_max_len(1)
            .for_each_init(Vec::new, |packed, (values, x)| {
                self.multiply_rows(arch, x, finish, values, packed);
            });
    }

    /// Computes rows on one thread; `packed` is its working memory.
    fn multiply_rows(
        &self,
        arch: Arch,
        x: &[f32],
        finish: Finish<'_>,
        values: &mut [f32],
        packed: &mut Vec<f32>,
    ) {
        let parts = x
            .chunks(ROW_BLOCK * self.inputs.max(1))
            .zip(values.chunks_mut((ROW_BLOCK * self.outputs).max(1)));
        for (x, values) in parts {
            let rows = x.len() / self.inputs;
            for (block, depth) in blocks(self.inputs) {
                arch.dispatch(BlockProduct {
                    matrix: self,
                    block,
                    depth,
                    x,
                    rows,
                    packed,
                    values,
                    finish,
                });
            }
        }
    }

    /// Each thread computes some columns of all rows.
    fn share_panels(&self, arch: Arch, x: &[f32], finish: Finish<'_>, values: &mut [f32]) {
        let rows = x.len() / self.inputs;
        let threads = rayon::current_num_threads();
        let packed: Vec<(usize, usize, Vec<f32>)> = blocks(self.inputs)
            .map(|(block, depth)| {
                let mut packed = Vec::new();
                let max = tile_rows_on(arch);
                pack_tiles(&x[block..], self.inputs, rows, depth, max, &mut packed);
                (block, depth, packed)
            })
            .collect();
        // Two each, so that one that is held up can be helped.
        let task = self.panels().div_ceil(2 * threads);
        // (panels, rows, WIDTH): so the threads write to places apart.
        let mut columns = vec![0.0; self.panels() * rows * WIDTH];
        columns
            .par_chunks_mut(task * rows * WIDTH)
            .with_max_len(1)
            .enumerate()
            .for_each(|(index, columns)| {
                arch.dispatch(PanelProducts {
                    matrix: self,
                    first: index * task,
                    packed: &packed,
                    rows,
                    columns,
                });
            });
        let rows_of_values = |first: usize, values: &mut [f32]| {
            for (row, values) in values.chunks_exact_mut(self.outputs).enumerate() {
                for (panel, values) in values.chunks_mut(WIDTH).enumerate() {
                    let start = (panel * rows + first + row) * WIDTH;
                    values.copy_from_slice(&columns[start..start + values.len()]);
                }
                finish.apply(0, values);
            }
        };
        if values.len() < PARALLEL_ELEMENTS {
            rows_of_values(0, values);
        } else {
            let task = rows.div_ceil(threads);
            values
                .par_chunks_mut(task * self.outputs)
                .with_max_len(1)
                .enumerate()
                .for_each(|(index, values)| rows_of_values(index * task, values));
        }
    }
}

/// The blocks of the inputs: where each begins, and its depth.
fn blocks(inputs: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..inputs)
        .step_by(DEPTH_BLOCK)
        .map(move |start| (start, DEPTH_BLOCK.min(inputs - start)))
}

/// Some rows times all panels of one block.
struct BlockProduct<'a> {
    matrix: &'a PackedMatrix,
    block: usize,
    depth: usize,
    /// (rows, inputs).
    x: &'a [f32],
    rows: usize,
    /// Working memory.
    packed: &'a mut Vec<f32>,
    /// (rows, outputs).
    values: &'a mut [f32],
    /// Applied with the last block.
    finish: Finish<'a>,
}

impl WithSimd for BlockProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { matrix, rows, .. } = self;
        let outputs = matrix.outputs;
        let last = self.block + self.depth == matrix.inputs;
        let x = &self.x[self.block..];
        pack_tiles(
            x,
            matrix.inputs,
            rows,
            self.depth,
            tile_rows(simd),
            self.packed,
        );
        let mut narrow = [0.0; WIDTH * ROW_BLOCK];
        for panel in 0..matrix.panels() {
            let weights = matrix.panel(self.block, self.depth, panel);
            let first = panel * WIDTH;
            let width = WIDTH.min(outputs - first);
            if width == WIDTH {
                let target = Target {
                    values: &mut self.values[first..],
                    stride: outputs,
                    add: self.block > 0,
                };
                multiply(simd, self.packed, rows, weights, target);
            } else {
                let target = Target {
                    values: &mut narrow,
                    stride: WIDTH,
                    add: false,
                };
                multiply(simd, self.packed, rows, weights, target);
                for (row, sums) in narrow.chunks_exact(WIDTH).take(rows).enumerate() {
                    let values = &mut self.values[row * outputs + first..][..width];
                    for (value, sum) in values.iter_mut().zip(sums) {
                        *value = if self.block > 0 { *value + sum } else { *sum };
                    }
                }
            }
            if last {
                for row in 0..rows {
                    let values = &mut self.values[row * outputs + first..][..width];
                    self.finish.apply(first, values);
                }
            }
        }
    }
}

/// Packed rows times some panels, over all blocks.
struct PanelProducts<'a> {
    matrix: &'a PackedMatrix,
    /// The first of the panels.
    first: usize,
    /// Beginning, depth and packed rows of each block.
    packed: &'a [(usize, usize, Vec<f32>)],
    rows: usize,
    /// (panels, rows, [`WIDTH`]).
    columns: &'a mut [f32],
}

impl WithSimd for PanelProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let panels = self.columns.chunks_exact_mut(self.rows * WIDTH);
        for (panel, values) in (self.first..).zip(panels) {
            for (block, depth, packed) in self.packed {
                let weights = self.matrix.panel(*block, *depth, panel);
                let target = Target {
                    values,
                    stride: WIDTH,
                    add: *block > 0,
                };
                multiply(simd, packed, self.rows, weights, target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{all_archs, difference, values};
    use super::*;
    use candle_core::{Device, Tensor};

    fn host(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn products_are_those_of_candle() {
        let shapes = [
            (1, 1, 1),
            (1, 768, 3072),
            (2, 40, 33),
            (13, 384, 1152),
            (20, 1536, 384),
            (97, 800, 70),
            (250, 1700, 96),
            (300, 64, 100),
        ];
        for (rows, inputs, outputs) in shapes {
            let x = values(&[rows, inputs], 1, 2.0);
            let weight = values(&[outputs, inputs], 2, 1.0 / (inputs as f32).sqrt());
            let bias = values(&[outputs], 3, 1.0);
            let matrix = PackedMatrix::new(&host(&weight), outputs, inputs);
            let product = x.matmul(&weight.t().unwrap()).unwrap();
            let biased = product.broadcast_add(&bias).unwrap();
            let bias = host(&bias);
            for (finish, expected) in [
                (Finish::Nothing, &product),
                (Finish::Bias(&bias), &biased),
                (Finish::BiasGelu(&bias), &biased.gelu_erf().unwrap()),
            ] {
                for arch in all_archs() {
                    let result = matrix.multiply_on(arch, &host(&x), finish);
                    let result = Tensor::from_vec(result, (rows, outputs), &Device::Cpu).unwrap();
                    let error = difference(&result, expected);
                    let shape = (rows, inputs, outputs);
                    assert!(error < 5e-6, "{shape:?}, {finish:?}, {arch:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn rows_come_back_as_they_were() {
        let (outputs, inputs) = (70, 800);
        let weight = host(&values(&[outputs, inputs], 1, 1.0));
        let matrix = PackedMatrix::new(&weight, outputs, inputs);
        for output in [0, 31, 32, 69] {
            assert_eq!(matrix.row(output), weight[output * inputs..][..inputs]);
        }
    }

    #[test]
    fn a_row_has_the_same_product_whatever_is_beside_it() {
        let (outputs, inputs) = (200, 1000);
        let weight = host(&values(&[outputs, inputs], 1, 1.0));
        let matrix = PackedMatrix::new(&weight, outputs, inputs);
        let x = host(&values(&[400, inputs], 2, 1.0));
        let all = matrix.multiply(&x, Finish::Nothing);
        for row in [0, 5, 399] {
            let alone = matrix.multiply(&x[row * inputs..][..inputs], Finish::Nothing);
            assert_eq!(alone, all[row * outputs..][..outputs]);
        }
    }
}
