//! The inner loop of all matrix products on the CPU: a few rows of one matrix
//! times a panel of another, with the sums in registers.
//!
//! Both operands are packed, so that the loop reads memory in order. The
//! instruction set (AVX-512, AVX2, NEON) is chosen when the program runs.

use std::mem::take;

use pulp::{Arch, Simd, WithSimd};

/// Columns of a panel. A panel is (depth, WIDTH).
pub(super) const WIDTH: usize = 32;
/// Vectors of a panel's row that are computed at a time.
const VECTORS: usize = 2;

/// Most rows of a tile: as many as leave registers for two vectors of the panel
/// and one factor.
#[inline(always)]
pub(super) fn tile_rows<S: Simd>(_: S) -> usize {
    if S::REGISTER_COUNT >= 32 { 12 } else { 6 }
}

/// Most rows of a tile on this instruction set.
pub(super) fn tile_rows_on(arch: Arch) -> usize {
    struct TileRows;

    impl WithSimd for TileRows {
        type Output = usize;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> usize {
            tile_rows(simd)
        }
    }

    arch.dispatch(TileRows)
}

/// Cuts `rows` into as few tiles as possible, of about the same height: what is
/// yielded is the height of each.
pub(super) fn tiles(rows: usize, max: usize) -> impl Iterator<Item = usize> {
    let count = rows.div_ceil(max);
    (0..count).map(move |tile| (tile + 1) * rows / count - tile * rows / count)
}

/// Packs rows into tiles of (depth, rows of the tile) with at most `max` rows,
/// behind each other.
///
/// Row r begins at `r * stride` of `source` and has `depth` elements.
pub(super) fn pack_tiles(
    source: &[f32],
    stride: usize,
    rows: usize,
    depth: usize,
    max: usize,
    target: &mut Vec<f32>,
) {
    target.clear();
    target.reserve(rows * depth);
    let mut first = 0;
    for height in tiles(rows, max) {
        let start = target.len();
        target.resize(start + height * depth, 0.0);
        let tile = &mut target[start..];
        for row in 0..height {
            let source = &source[(first + row) * stride..][..depth];
            for (target, value) in tile[row..].iter_mut().step_by(height).zip(source) {
                *target = *value;
            }
        }
        first += height;
    }
}

/// Where the products of one panel go.
pub(super) struct Target<'a> {
    /// Row r is at `r * stride`; [`WIDTH`] elements of it are written.
    pub(super) values: &'a mut [f32],
    pub(super) stride: usize,
    /// Whether to add to what is there.
    pub(super) add: bool,
}

/// Multiplies `rows` rows, packed by [`pack_tiles`] in tiles of [`tile_rows`], by
/// a panel of (depth, [`WIDTH`]).
#[inline(always)]
pub(super) fn multiply<S: Simd>(
    simd: S,
    packed: &[f32],
    rows: usize,
    panel: &[f32],
    target: Target<'_>,
) {
    let depth = panel.len() / WIDTH;
    let Target {
        mut values,
        stride,
        add,
    } = target;
    let mut rest = packed;
    for height in tiles(rows, tile_rows(simd)) {
        let (tile, after) = rest.split_at(height * depth);
        rest = after;
        multiply_tile(simd, tile, height, panel, values, stride, add);
        values = take(&mut values)
            .get_mut(height * stride..)
            .unwrap_or_default();
    }
}

/// One tile, by its height.
#[inline(always)]
fn multiply_tile<S: Simd>(
    simd: S,
    tile: &[f32],
    height: usize,
    panel: &[f32],
    values: &mut [f32],
    stride: usize,
    add: bool,
) {
    match height {
        1 => one_tile::<S, 1>(simd, tile, panel, values, stride, add),
        2 => one_tile::<S, 2>(simd, tile, panel, values, stride, add),
        3 => one_tile::<S, 3>(simd, tile, panel, values, stride, add),
        4 => one_tile::<S, 4>(simd, tile, panel, values, stride, add),
        5 => one_tile::<S, 5>(simd, tile, panel, values, stride, add),
        6 => one_tile::<S, 6>(simd, tile, panel, values, stride, add),
        7 => one_tile::<S, 7>(simd, tile, panel, values, stride, add),
        8 => one_tile::<S, 8>(simd, tile, panel, values, stride, add),
        9 => one_tile::<S, 9>(simd, tile, panel, values, stride, add),
        10 => one_tile::<S, 10>(simd, tile, panel, values, stride, add),
        11 => one_tile::<S, 11>(simd, tile, panel, values, stride, add),
        _ => one_tile::<S, 12>(simd, tile, panel, values, stride, add),
    }
}

#[inline(always)]
fn one_tile<S: Simd, const ROWS: usize>(
    simd: S,
    tile: &[f32],
    panel: &[f32],
    values: &mut [f32],
    stride: usize,
    add: bool,
) {
    let (panel, _) = S::as_simd_f32s(panel);
    let group_columns = VECTORS * S::F32_LANES;
    for group in 0..WIDTH / group_columns {
        let sums = sums::<S, ROWS>(simd, tile, panel, group);
        for (row, sums) in sums.iter().enumerate() {
            let target = &mut values[row * stride + group * group_columns..][..group_columns];
            let (target, _) = S::as_mut_simd_f32s(target);
            for (target, sum) in target.iter_mut().zip(sums) {
                *target = if add {
                    simd.add_f32s(*target, *sum)
                } else {
                    *sum
                };
            }
        }
    }
}

/// The products of a tile and one group of the panel's columns.
#[inline(always)]
fn sums<S: Simd, const ROWS: usize>(
    simd: S,
    tile: &[f32],
    panel: &[S::f32s],
    group: usize,
) -> [[S::f32s; VECTORS]; ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let row_vectors = WIDTH / S::F32_LANES;
    let (factors, _) = tile.as_chunks::<ROWS>();
    for (factors, row) in factors.iter().zip(panel.chunks_exact(row_vectors)) {
        let row: &[S::f32s; VECTORS] = row[VECTORS * group..]
            .first_chunk()
            .expect("a row of a panel has whole groups");
        for (sums, factor) in sums.iter_mut().zip(factors) {
            let factor = simd.splat_f32s(*factor);
            for (sum, column) in sums.iter_mut().zip(row) {
                *sum = simd.mul_add_f32s(factor, *column, *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::testing::all_archs;
    use super::*;

    #[test]
    fn tiles_cover_all_rows_evenly() {
        let cut = |rows, max| tiles(rows, max).collect::<Vec<_>>();
        assert_eq!(cut(0, 6), [0; 0]);
        assert_eq!(cut(5, 6), [5]);
        assert_eq!(cut(13, 12), [6, 7]);
        for rows in 1..200 {
            let heights = cut(rows, 12);
            assert_eq!(heights.iter().sum::<usize>(), rows);
            assert_eq!(heights.len(), rows.div_ceil(12));
            let (least, most) = (heights.iter().min(), heights.iter().max());
            assert!(most.unwrap() - least.unwrap() <= 1 && *most.unwrap() <= 12);
        }
    }

    struct Product<'a> {
        packed: &'a [f32],
        rows: usize,
        panel: &'a [f32],
        target: Target<'a>,
    }

    impl WithSimd for Product<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            multiply(simd, self.packed, self.rows, self.panel, self.target);
        }
    }

    #[test]
    fn products_are_exact_on_small_integers_for_every_height() {
        let (depth, stride) = (5, 41);
        for (arch, rows) in all_archs()
            .into_iter()
            .flat_map(|arch| (1..=30).map(move |rows| (arch, rows)))
        {
            // Rows lie apart from each other.
            let source: Vec<f32> = (0..rows * 7).map(|i| (i % 11) as f32 - 5.0).collect();
            let panel: Vec<f32> = (0..depth * WIDTH).map(|i| (i % 13) as f32 - 6.0).collect();
            let mut packed = Vec::new();
            pack_tiles(&source, 7, rows, depth, tile_rows_on(arch), &mut packed);
            for add in [false, true] {
                let mut values = vec![100.0; rows * stride];
                arch.dispatch(Product {
                    packed: &packed,
                    rows,
                    panel: &panel,
                    target: Target {
                        values: &mut values,
                        stride,
                        add,
                    },
                });
                for row in 0..rows {
                    for column in 0..stride {
                        let product: f32 = (0..depth)
                            .map(|k| {
                                source[row * 7 + k] * panel.get(k * WIDTH + column).unwrap_or(&0.0)
                            })
                            .sum();
                        let expected = match (column < WIDTH, add) {
                            (true, false) => product,
                            (true, true) => 100.0 + product,
                            (false, _) => 100.0,
                        };
                        assert_eq!(values[row * stride + column], expected, "{rows} rows");
                    }
                }
            }
        }
    }
}
