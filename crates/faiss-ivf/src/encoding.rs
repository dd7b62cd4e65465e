//! From vectors to the records of entries: codes with the numbers that belong to them.

use crate::Metric;
use crate::coding::{Coding, is_cut_off, subtract};
use crate::error::FaissError;
use crate::factory::Code;
use crate::quantizer::Quantizer;

/// Vectors that are encoded in one call of FAISS: what is computed for them on the way
/// stays in the cache.
const ROWS: usize = 64;
/// Sums that are added up side by side.
const LANES: usize = 8;
/// Bytes of the factors of a code.
const FACTORS_SIZE: usize = 3 * size_of::<f32>();

/// The numbers that belong to a lossy code.
#[derive(Clone, Copy)]
struct Factors {
    scale: f32,
    offset: f32,
    error: f32,
}

/// Of a code that says nothing.
const NOTHING_KNOWN: Factors = Factors {
    scale: 0.0,
    offset: 0.0,
    error: f32::INFINITY,
};

impl Coding {
    /// Appends the records of vectors: code, factors, refine code, refine factors.
    ///
    /// `raw` `(n, dim)` are the vectors as they were read, `vectors` `(n, dim)` as they are
    /// compared, `mapped` `(n, code_dim)` what [`Self::map`] made of those, and `centroid`
    /// gives the centroid of each, `(code_dim)`, or nothing without centroids.
    ///
    /// # Errors
    /// `InvalidArgument` when lengths do not fit or a component is not finite.
    pub fn encode<'c>(
        &self,
        raw: &[f32],
        vectors: &[f32],
        mapped: &[f32],
        centroid: impl Fn(usize) -> &'c [f32],
        records: &mut Vec<u8>,
    ) -> Result<(), FaissError> {
        let Some(codes) = &self.codes else {
            return self.encode_flat(raw, records);
        };
        let (dim, code_dim) = (self.dim, self.code_dim());
        let zero = vec![0.0; code_dim];
        let mut coder = Coder::new(self.metric, codes);
        let mut refine_coder = (self.refine.as_ref())
            .map(|refine| (Coder::new(self.metric, &refine.quantizer), &refine.mean));
        let is_refine_flat = self.factory().refine == Some(Code::Flat);
        let flat_size = self.flat.code_size(dim);
        let mut flat = Vec::new();
        let chunks = mapped.chunks(ROWS * code_dim);
        let parts = raw.chunks(ROWS * dim).zip(vectors.chunks(ROWS * dim));
        for (number, (mapped, (raw, vectors))) in chunks.zip(parts).enumerate() {
            let center = |row: usize| match centroid(number * ROWS + row) {
                [] => &zero[..],
                center => center,
            };
            let lost =
                |row: usize| self.lost(&vectors[row * dim..][..dim], at(mapped, row, code_dim));
            coder.encode(mapped, center, lost)?;
            if let Some((coder, mean)) = &mut refine_coder {
                coder.encode(vectors, |_| &mean[..], |_| 0.0)?;
            }
            flat.clear();
            if is_refine_flat {
                self.encode_flat(raw, &mut flat)?;
            }
            for row in 0..mapped.len() / code_dim {
                coder.put(row, records);
                match &refine_coder {
                    Some((coder, _)) => coder.put(row, records),
                    None if is_refine_flat => {
                        records.extend_from_slice(&flat[row * flat_size..][..flat_size]);
                    }
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Appends vectors `(n, dim)` as they are.
    fn encode_flat(&self, raw: &[f32], out: &mut Vec<u8>) -> Result<(), FaissError> {
        let begin = out.len();
        let n = raw.len() / self.dim;
        out.resize(begin + n * self.flat.code_size(self.dim), 0);
        self.flat.encode(self.dim, raw, &mut out[begin..])
    }
}

fn at(vectors: &[f32], row: usize, dim: usize) -> &[f32] {
    &vectors[row * dim..][..dim]
}

/// The codes of some vectors, with their factors.
struct Coder<'q> {
    metric: Metric,
    quantizer: &'q Quantizer,
    /// `(n, dim)`
    residuals: Vec<f32>,
    /// What their codes stand for, `(n, dim)`.
    stands_for: Vec<f32>,
    codes: Vec<u8>,
    factors: Vec<Factors>,
}

impl<'q> Coder<'q> {
    fn new(metric: Metric, quantizer: &'q Quantizer) -> Self {
        Self {
            metric,
            quantizer,
            residuals: Vec::new(),
            stands_for: Vec::new(),
            codes: Vec::new(),
            factors: Vec::new(),
        }
    }

    /// Codes what lies between the centers of `vectors` `(n, dim)` and themselves. A vector
    /// that is too far away for a float has a code that says nothing, and an infinite error.
    fn encode<'c>(
        &mut self,
        vectors: &[f32],
        center: impl Fn(usize) -> &'c [f32],
        lost: impl Fn(usize) -> f64,
    ) -> Result<(), FaissError> {
        let (dim, size) = (self.quantizer.dim(), self.quantizer.code_size());
        let n = vectors.len() / dim;
        self.residuals.clear();
        self.residuals.extend_from_slice(vectors);
        let mut is_out = [false; ROWS];
        let rows = self.residuals.chunks_exact_mut(dim).zip(&mut is_out);
        for (row, (residual, is_out)) in rows.enumerate() {
            let was_cut_off = is_cut_off(residual);
            subtract(residual, center(row));
            *is_out = was_cut_off || is_cut_off(residual);
            if *is_out {
                residual.fill(0.0);
            }
        }
        self.codes.clear();
        self.codes.resize(n * size, 0);
        self.quantizer.encode(&self.residuals, &mut self.codes)?;
        self.stands_for.clear();
        self.quantizer.decode(&self.codes, &mut self.stands_for)?;
        self.factors.clear();
        for (row, &is_out) in is_out.iter().enumerate().take(n) {
            if is_out {
                self.codes[row * size..][..size].fill(0);
                self.factors.push(NOTHING_KNOWN);
                continue;
            }
            let sums = Sums::of(
                at(&self.residuals, row, dim),
                at(&self.stands_for, row, dim),
                center(row),
            );
            self.factors
                .push(factors(self.metric, dim, &sums, lost(row)));
        }
        Ok(())
    }

    /// Appends the code of a vector and its factors.
    fn put(&self, row: usize, records: &mut Vec<u8>) {
        let size = self.quantizer.code_size();
        records.extend_from_slice(&self.codes[row * size..][..size]);
        let Factors {
            scale,
            offset,
            error,
        } = self.factors[row];
        let mut bytes = [0; FACTORS_SIZE];
        for (to, number) in bytes
            .as_chunks_mut()
            .0
            .iter_mut()
            .zip([scale, offset, error])
        {
            *to = number.to_ne_bytes();
        }
        records.extend_from_slice(&bytes);
    }
}

/// Inner products of a residual r, what its code stands for s, and its center c.
struct Sums {
    rr: f64,
    rs: f64,
    ss: f64,
    rc: f64,
    sc: f64,
}

impl Sums {
    fn of(r: &[f32], s: &[f32], c: &[f32]) -> Self {
        let mut sums = [[0.0; LANES]; 5];
        let (r, r_rest) = r.as_chunks::<LANES>();
        let (s, s_rest) = s.as_chunks::<LANES>();
        let (c, c_rest) = c.as_chunks::<LANES>();
        for ((r, s), c) in r.iter().zip(s).zip(c) {
            add(&mut sums, r, s, c);
        }
        let padded = |rest: &[f32]| {
            let mut lanes = [0.0; LANES];
            lanes[..rest.len()].copy_from_slice(rest);
            lanes
        };
        add(&mut sums, &padded(r_rest), &padded(s_rest), &padded(c_rest));
        let [rr, rs, ss, rc, sc] = sums.map(|lanes| lanes.iter().sum());
        Self { rr, rs, ss, rc, sc }
    }
}

#[inline(always)]
fn add(sums: &mut [[f64; LANES]; 5], r: &[f32; LANES], s: &[f32; LANES], c: &[f32; LANES]) {
    for lane in 0..LANES {
        let [r, s, c] = [r[lane], s[lane], c[lane]].map(f64::from);
        sums[0][lane] += r * r;
        sums[1][lane] += r * s;
        sums[2][lane] += s * s;
        sums[3][lane] += r * c;
        sums[4][lane] += s * c;
    }
}

/// The factors of a code of `dim` dimensions: see the notation of `coding`.
fn factors(metric: Metric, dim: usize, sums: &Sums, lost: f64) -> Factors {
    let Sums { rr, rs, ss, rc, sc } = *sums;
    let scale = if rs > 0.0 { rr / rs } else { 0.0 };
    // ‖δ‖² of δ = r - f s.
    let missing = (rr - 2.0 * scale * rs + scale * scale * ss).max(0.0);
    let mut error = (missing / (dim as f64 - 1.0).max(1.0)).sqrt();
    let (factor, offset) = match metric {
        Metric::InnerProduct => (1.0, scale * sc - rc),
        Metric::L2 => (2.0, rr + 2.0 * scale * sc),
    };
    if metric == Metric::InnerProduct {
        error += lost.sqrt();
    }
    Factors {
        scale: (-factor * scale) as f32,
        offset: offset as f32,
        error: (factor * error) as f32,
    }
}
