//! Inner products of one query with stored codes.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::byte_scan::ByteScan;
use crate::coder::Coder;
use crate::error::FaissError;
use crate::fast_scan::FastScan;
use crate::ffi;
use crate::packed::SLOTS;
use crate::product::{Shape, Tables};

/// A query, prepared for the codes of one [`Quantizer`](crate::Quantizer).
#[derive(Debug)]
pub struct Scorer(Method);

#[derive(Debug)]
enum Method {
    Packed(FastScan),
    Bytes(ByteScan),
    Scalar(ScalarScorer),
    Product(ProductScorer),
}

impl Scorer {
    pub(crate) fn packed(tables: FastScan) -> Self {
        Scorer(Method::Packed(tables))
    }

    pub(crate) fn bytes(scan: ByteScan) -> Self {
        Scorer(Method::Bytes(scan))
    }

    pub(crate) fn scalar(coder: &Arc<Coder>, query: &[f32]) -> Result<Self, FaissError> {
        ScalarScorer::new(coder, query)
            .map(Method::Scalar)
            .map(Scorer)
    }

    pub(crate) fn product(shape: Shape, tables: Tables) -> Self {
        Scorer(Method::Product(ProductScorer {
            m: shape.m,
            tables: tables.entries,
            unit: tables.unit,
        }))
    }

    /// Writes the inner products of the query with the first `n` codes to `out`
    /// `(n)`. The codes lie one after the other in row form or, for packed kinds, in
    /// blocks of 32, of which the last counts whole. They may lie at any address, for
    /// example in a pinned buffer page; only blocks that do not lie at a multiple of
    /// 32 are copied.
    ///
    /// An inner product that a float cannot hold is not finite in `out`.
    ///
    /// # Errors
    /// `InvalidArgument` when `codes` is shorter than that or `out` is not `n` long.
    pub fn scan(&mut self, codes: &[u8], n: usize, out: &mut [f32]) -> Result<(), FaissError> {
        if out.len() != n {
            return Err(FaissError::invalid(format!(
                "{n} scores cannot be written into {} places",
                out.len()
            )));
        }
        let bytes = match &self.0 {
            Method::Packed(tables) => n.div_ceil(SLOTS).saturating_mul(tables.block_size()),
            Method::Bytes(scan) => n.saturating_mul(scan.code_size()),
            Method::Scalar(scorer) => n.saturating_mul(scorer.coder.code_size()),
            Method::Product(scorer) => n.saturating_mul(scorer.m),
        };
        let codes = codes.get(..bytes).ok_or_else(|| {
            FaissError::invalid(format!(
                "{n} codes of {bytes} bytes do not lie in {} bytes",
                codes.len()
            ))
        })?;
        match &mut self.0 {
            Method::Packed(tables) => tables.scan(codes, out),
            Method::Bytes(scan) => {
                scan.scan(codes, out);
                Ok(())
            }
            Method::Scalar(scorer) => scorer.scan(codes, out),
            Method::Product(scorer) => scorer.scan(codes, out),
        }
    }

    /// The inner product of the query with one code in row form.
    ///
    /// # Errors
    /// `InvalidArgument` for another number of bytes, and for packed kinds.
    pub fn score(&self, code: &[u8]) -> Result<f32, FaissError> {
        let size = match &self.0 {
            Method::Packed(_) => None,
            Method::Bytes(scan) => Some(scan.code_size()),
            Method::Scalar(scorer) => Some(scorer.coder.code_size()),
            Method::Product(scorer) => Some(scorer.m),
        };
        if size != Some(code.len()) {
            return Err(FaissError::invalid(format!(
                "{} bytes are no code in row form",
                code.len()
            )));
        }
        let mut score = [0.0];
        match &self.0 {
            Method::Packed(_) => {}
            Method::Bytes(scan) => score[0] = scan.score(code),
            Method::Scalar(scorer) => scorer.scan(code, &mut score)?,
            Method::Product(scorer) => scorer.scan(code, &mut score)?,
        }
        Ok(score[0])
    }

    /// A bound on the difference between a score and the inner product with the
    /// decoded vector: the tables of packed kinds have 8 bits, the weights of codes of a
    /// byte a component 16. It is 0 for other kinds, which only round as floats do.
    pub fn error(&self) -> f32 {
        match &self.0 {
            Method::Packed(tables) => tables.error(),
            Method::Bytes(scan) => scan.error(),
            Method::Scalar(_) | Method::Product(_) => 0.0,
        }
    }
}

/// Scores codes of FAISS's scalar quantizers that have no scan of their own.
#[derive(Debug)]
struct ScalarScorer {
    computer: NonNull<ffi::ScalarScorer>,
    /// Both are used by `computer`.
    coder: Arc<Coder>,
    _query: Box<[f32]>,
}

impl ScalarScorer {
    fn new(coder: &Arc<Coder>, query: &[f32]) -> Result<Self, FaissError> {
        let query: Box<[f32]> = query.into();
        let mut computer = std::ptr::null_mut();
        FaissError::check(|message, message_bytes| {
            // SAFETY: the coder is a scalar quantizer of as many dimensions as the
            // query has. Both stay where they are while this scorer lives.
            unsafe {
                ffi::faiss_ivf_scalar_scorer_new(
                    coder.handle(),
                    query.as_ptr(),
                    &mut computer,
                    message,
                    message_bytes,
                )
            }
        })?;
        Ok(ScalarScorer {
            computer: NonNull::new(computer).ok_or(FaissError::OutOfMemory)?,
            coder: Arc::clone(coder),
            _query: query,
        })
    }

    /// Scores as many codes as `out` has places; `codes` holds exactly these.
    fn scan(&self, codes: &[u8], out: &mut [f32]) -> Result<(), FaissError> {
        let size = self.coder.code_size();
        assert_eq!(codes.len(), out.len() * size);
        FaissError::check(|message, message_bytes| {
            // SAFETY: the lengths are those that the shim is told.
            unsafe {
                ffi::faiss_ivf_scalar_scan(
                    self.computer.as_ptr(),
                    codes.as_ptr(),
                    size,
                    out.len(),
                    out.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    }
}

impl Drop for ScalarScorer {
    fn drop(&mut self) {
        // SAFETY: the shim made it, and nobody else owns it.
        unsafe { ffi::faiss_ivf_scalar_scorer_free(self.computer.as_ptr()) };
    }
}

/// Scores codes of product quantizers of 8 bits.
#[derive(Debug)]
struct ProductScorer {
    m: usize,
    /// `(m, 256)`, divided by `unit`.
    tables: Vec<f32>,
    unit: f64,
}

impl ProductScorer {
    /// Scores as many codes as `out` has places; `codes` holds exactly these.
    fn scan(&self, codes: &[u8], out: &mut [f32]) -> Result<(), FaissError> {
        assert_eq!(codes.len(), out.len() * self.m);
        assert_eq!(self.tables.len(), self.m << 8);
        FaissError::check(|message, message_bytes| {
            // SAFETY: the lengths are those that the shim is told, and a byte of a
            // code is within its table.
            unsafe {
                ffi::faiss_ivf_product_scan(
                    self.m,
                    self.tables.as_ptr(),
                    codes.as_ptr(),
                    out.len(),
                    out.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })?;
        if self.unit != 1.0 {
            out.iter_mut()
                .for_each(|score| *score = (f64::from(*score) * self.unit) as f32);
        }
        Ok(())
    }
}
