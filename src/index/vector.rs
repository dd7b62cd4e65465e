//! pgvector's types as they lie in a datum.

use pgrx::pg_sys;

/// The head of pgvector's `vector` and `halfvec`; `dim` floats follow, of 32 bits or
/// of 16.
#[repr(C)]
struct VectorHeader {
    varlena_header: i32,
    dim: i16,
    unused: i16,
}

const _: () = assert!(size_of::<VectorHeader>() == 8);

/// A detoasted datum, freed if detoasting made a copy.
struct Detoasted {
    original: *mut pg_sys::varlena,
    value: *mut pg_sys::varlena,
}

impl Detoasted {
    /// # Safety
    /// `datum` must point to a varlena.
    unsafe fn new(datum: pg_sys::Datum) -> Self {
        let original = datum.cast_mut_ptr::<pg_sys::varlena>();
        // SAFETY: the caller's promise.
        let value = unsafe { pg_sys::pg_detoast_datum(original) };
        Self { original, value }
    }
}

impl Drop for Detoasted {
    fn drop(&mut self) {
        if self.value != self.original && !std::thread::panicking() {
            // SAFETY: the copy is ours; the abort of a transaction frees it otherwise.
            unsafe { pg_sys::pfree(self.value.cast()) };
        }
    }
}

/// Appends the components of a `vector` to `out`.
///
/// # Safety
/// `datum` must be a `vector` that is not NULL.
pub(super) unsafe fn read_vector(datum: pg_sys::Datum, out: &mut Vec<f32>) {
    // SAFETY: a vector is a varlena; once detoasted it has a header of four
    // bytes, is aligned, and has `dim` floats behind its head, as pgvector
    // checked when it was made.
    unsafe {
        let detoasted = Detoasted::new(datum);
        let head = detoasted.value.cast::<VectorHeader>();
        let components = head.add(1).cast::<f32>();
        out.extend_from_slice(std::slice::from_raw_parts(components, (*head).dim as usize));
    }
}

/// Appends the components of a `halfvec` to `out`.
///
/// # Safety
/// `datum` must be a `halfvec` that is not NULL.
pub(super) unsafe fn read_halfvec(datum: pg_sys::Datum, out: &mut Vec<f32>) {
    // SAFETY: as for a vector, with the bits of 16-bit floats.
    unsafe {
        let detoasted = Detoasted::new(datum);
        let head = detoasted.value.cast::<VectorHeader>();
        let components = head.add(1).cast::<u16>();
        let halves = std::slice::from_raw_parts(components, (*head).dim as usize);
        faiss_ivf::extend_from_halves(halves, out);
    }
}
