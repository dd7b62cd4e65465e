//! pgvector's `vector` as bytes: a varlena header, `int16` dimensions, an
//! unused `int16`, and the `float4` components.

use pgrx::pg_sys;

use super::call::varlena_array;
use crate::error::{SqlError, SqlState};

/// pgvector's own limit for a stored vector.
const MAX_DIMENSIONS: usize = 16_000;
const HEADER_BYTES: usize = 8;

/// A vector in the current memory context.
///
/// # Errors
/// More than 16,000 or no dimensions, or a component that is not finite.
pub fn to_datum(vector: &[f32]) -> Result<pg_sys::Datum, SqlError> {
    if vector.is_empty() || vector.len() > MAX_DIMENSIONS {
        return Err(SqlError::new(
            SqlState(b"54000"),
            format!("model gives vectors of {} dimensions", vector.len()),
        )
        .detail(format!("A vector has 1 to {MAX_DIMENSIONS} dimensions.")));
    }
    if vector.iter().any(|component| !component.is_finite()) {
        return Err(SqlError::new(
            SqlState::INTERNAL_ERROR,
            "model gave a vector with a component that is not finite",
        ));
    }
    let bytes = HEADER_BYTES + size_of_val(vector);
    // SAFETY: palloc0 gives `bytes` bytes aligned for float4; the header and
    // the components fill exactly these.
    unsafe {
        let pointer = pg_sys::palloc0(bytes);
        pgrx::set_varsize_4b(pointer.cast(), bytes as i32);
        pointer.cast::<i16>().add(2).write(vector.len() as i16);
        let components = pointer.cast::<u8>().add(HEADER_BYTES).cast::<f32>();
        std::ptr::copy_nonoverlapping(vector.as_ptr(), components, vector.len());
        Ok(pg_sys::Datum::from(pointer))
    }
}

/// An array of vectors of type `element`; `None` becomes NULL.
pub fn to_array_datum(
    vectors: &[Option<&[f32]>],
    element: pg_sys::Oid,
) -> Result<pg_sys::Datum, SqlError> {
    let vectors = vectors
        .iter()
        .map(|vector| vector.map(to_datum).transpose());
    let vectors = vectors.collect::<Result<Vec<_>, _>>()?;
    // SAFETY: pgvector's type has variable length and the alignment of int.
    Ok(unsafe { varlena_array(&vectors, element) })
}

/// Whether a type is pgvector's `vector`, in whatever schema that is.
pub fn is_vector_type(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: catalogue look-ups by identity on the main thread; format_type_be
    // returns a NUL-terminated string.
    unsafe {
        let extension = pg_sys::get_extension_oid(c"vector".as_ptr(), true);
        if extension == pg_sys::InvalidOid
            || pg_sys::getExtensionOfObject(pg_sys::TypeRelationId, type_oid) != extension
        {
            return false;
        }
        let name = std::ffi::CStr::from_ptr(pg_sys::format_type_be(type_oid)).to_bytes();
        name == b"vector" || name.ends_with(b".vector")
    }
}
