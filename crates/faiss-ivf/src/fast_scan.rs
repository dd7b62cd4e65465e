//! Sums of look-up tables over packed codes, by the SIMD kernels of FAISS.
//!
//! The inner product of a query with a code is a sum over its 4-bit sub-codes, and
//! each term is one of 16 numbers. The kernels look these numbers up 32 codes at a
//! time when they have 8 bits, and sum them in 16 bits (André, Kermarrec and
//! Le Scouarnec, "Cache locality is not enough: high-performance nearest neighbor
//! search with product quantization fast scan", VLDB 2015).

use crate::error::FaissError;
use crate::ffi;
use crate::packed::{LANE, SLOTS};

/// Entries of the table of one sub-code.
pub(crate) const ENTRIES: usize = 16;

/// Blocks of a call of the kernels; bounds the buffers.
const BLOCKS_PER_CALL: usize = 8;

/// A little more than the half step by which an entry of 8 bits is off: entries
/// have gone through floats of 32 bits, whose rounding is below 1e-4 of a step.
const ROUNDING: f64 = 0.501;

/// The relative error of a conversion to a float of 32 bits, and as much again.
const FLOAT_ERROR: f64 = f32::EPSILON as f64;

/// Bytes that lie at a multiple of 32, as the kernels want them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Lane([u8; LANE]);

/// Room for the sums of one call.
#[derive(Debug)]
#[repr(C, align(32))]
struct Sums([u16; BLOCKS_PER_CALL * SLOTS]);

/// How the entries of the tables of a query become 8 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    step: f64,
    inverse: f64,
    /// The least possible sum.
    least: f64,
    /// The largest possible sum.
    most: f64,
    tables: usize,
}

impl Step {
    /// The smallest step at which no entry exceeds 8 bits and no sum 16 bits.
    ///
    /// `least` is the sum of the least entries of all `tables` tables, `total` the
    /// sum of the differences between largest and least, `widest` the largest
    /// such difference.
    pub(crate) fn new(tables: usize, least: f64, total: f64, widest: f64) -> Self {
        // Rounding may add half a step to each entry.
        let room = f64::from(u16::MAX) - ROUNDING * tables as f64;
        let step = (widest / f64::from(u8::MAX)).max(total / room);
        let step = if step > 0.0 { step } else { 1.0 };
        Step {
            step,
            inverse: 1.0 / step,
            least,
            most: least + total,
            tables,
        }
    }

    /// For entries that were divided by `unit`.
    pub(crate) fn times(self, unit: f64) -> Self {
        Step {
            step: self.step * unit,
            inverse: self.inverse / unit,
            least: self.least * unit,
            most: self.most * unit,
            tables: self.tables,
        }
    }

    /// Steps in a difference of entries.
    pub(crate) fn inverse(&self) -> f64 {
        self.inverse
    }

    /// A bound on the difference between a score and the exact sum of entries.
    fn error(&self) -> f64 {
        let largest = self.least.abs().max(self.most.abs());
        self.tables as f64 * self.step * ROUNDING + largest * FLOAT_ERROR
    }
}

/// The tables of one query.
#[derive(Debug)]
pub(crate) struct FastScan {
    /// Two tables a lane.
    tables: Vec<Lane>,
    step: Step,
    error: f32,
    sums: Box<Sums>,
    /// Blocks that did not lie at a multiple of 32.
    copy: Vec<Lane>,
}

impl FastScan {
    /// `fill` is called for one table after the other, and writes in steps by how
    /// much each entry exceeds the least of its table. `extra_error` bounds what the
    /// entries were off before.
    pub(crate) fn new(
        step: Step,
        extra_error: f64,
        mut fill: impl FnMut(&mut [u8; ENTRIES]),
    ) -> Self {
        // An odd last table has a partner of zeros.
        let mut tables = vec![Lane([0; LANE]); step.tables.div_ceil(2)];
        let halves = tables.iter_mut().flat_map(|lane| lane.0.as_chunks_mut().0);
        halves.take(step.tables).for_each(&mut fill);
        FastScan {
            tables,
            step,
            error: (step.error() + extra_error) as f32,
            sums: Box::new(Sums([0; BLOCKS_PER_CALL * SLOTS])),
            copy: Vec::new(),
        }
    }

    /// Bytes of a block of codes.
    pub(crate) fn block_size(&self) -> usize {
        self.tables.len() * LANE
    }

    pub(crate) fn error(&self) -> f32 {
        self.error
    }

    /// Scores the first `out.len()` codes of `blocks`, which holds as many.
    pub(crate) fn scan(&mut self, blocks: &[u8], out: &mut [f32]) -> Result<(), FaissError> {
        let block_size = self.block_size();
        let parts = blocks.chunks(block_size * BLOCKS_PER_CALL);
        for (blocks, out) in parts.zip(out.chunks_mut(SLOTS * BLOCKS_PER_CALL)) {
            let n_blocks = out.len().div_ceil(SLOTS);
            self.sum(&blocks[..n_blocks * block_size], n_blocks)?;
            for (out, &sum) in out.iter_mut().zip(&self.sums.0) {
                *out = (self.step.least + self.step.step * f64::from(sum)) as f32;
            }
        }
        Ok(())
    }

    /// Sums the entries for the codes of some blocks.
    fn sum(&mut self, blocks: &[u8], n_blocks: usize) -> Result<(), FaissError> {
        assert!(n_blocks <= BLOCKS_PER_CALL);
        assert_eq!(blocks.len(), n_blocks * self.block_size());
        let aligned = blocks.as_ptr().cast::<Lane>().is_aligned();
        let codes = if aligned {
            blocks.as_ptr()
        } else {
            let lanes = blocks.as_chunks().0.iter().copied().map(Lane);
            self.copy.clear();
            self.copy.extend(lanes);
            self.copy.as_ptr().cast()
        };
        let tables = &self.tables;
        let sums = &mut self.sums.0;
        FaissError::check(|message, message_bytes| {
            // SAFETY: the codes, as long as the tables say, the tables and the sums,
            // of which there is room for those of BLOCKS_PER_CALL blocks, lie at
            // multiples of 32.
            unsafe {
                ffi::faiss_ivf_fast_scan(
                    tables.len() * 2,
                    tables.as_ptr().cast(),
                    codes,
                    n_blocks * SLOTS,
                    sums.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    }
}
