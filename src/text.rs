//! Texts between the encoding of the database and UTF-8, in which Rust, the
//! models and the wire have them.

use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::{IntoDatum, PgTryBuilder, pg_sys};
use serde_json::Value;

use crate::error::{SqlError, SqlState};

const UTF8: c_int = pg_sys::pg_enc::PG_UTF8 as c_int;

/// A text of the database as UTF-8.
///
/// # Errors
/// Bytes that are no text, in a database of encoding SQL_ASCII. PostgreSQL
/// itself raises an error for a character that UTF-8 does not have.
pub fn from_server(text: &[u8]) -> Result<String, SqlError> {
    // SAFETY: the function reads so many bytes, which a datum or a string of
    // PostgreSQL has: fewer than 2^30.
    let utf8 = convert(text, |bytes, length| unsafe {
        pg_sys::pg_server_to_any(bytes, length, UTF8)
    });
    String::from_utf8(utf8)
        .map_err(|_| SqlError::new(SqlState(b"22021"), "text is not valid in encoding \"UTF8\""))
}

/// UTF-8 in the encoding of the database. PostgreSQL raises an error for a
/// character which that does not have.
pub fn to_server(text: &str) -> Vec<u8> {
    // SAFETY: as above; a text of ours came out of a frame of at most 2^30 bytes.
    convert(text.as_bytes(), |bytes, length| unsafe {
        pg_sys::pg_any_to_server(bytes, length, UTF8)
    })
}

/// The same for what has to be shown in any case: when the database cannot
/// have a character, only ASCII is left of the text.
pub fn to_server_lossy(text: &str) -> Vec<u8> {
    let ascii_only = || text.replace(|c: char| !c.is_ascii(), "?").into_bytes();
    PgTryBuilder::new(|| to_server(text))
        .catch_others(|_| ascii_only())
        .execute()
}

/// PostgreSQL's conversions return their input where nothing is to be done.
fn convert(text: &[u8], by: impl Fn(*const c_char, c_int) -> *mut c_char) -> Vec<u8> {
    let bytes = text.as_ptr().cast::<c_char>();
    let converted = by(bytes, text.len() as c_int);
    if converted.cast_const() == bytes {
        return text.to_vec();
    }
    // SAFETY: a result of its own is a NUL-terminated palloc'd string.
    unsafe {
        let copy = CStr::from_ptr(converted).to_bytes().to_vec();
        pg_sys::pfree(converted.cast());
        copy
    }
}

/// A `text` in the current memory context.
pub fn to_datum(text: &str) -> pg_sys::Datum {
    // bytea and text are made alike.
    to_server(text).into_datum().expect("bytes are never NULL")
}

/// A `jsonb` in the current memory context.
pub fn json_datum(value: &Value) -> pg_sys::Datum {
    // JSON writes a NUL as an escape, so that nothing is cut.
    let text = CString::new(to_server_lossy(&value.to_string())).unwrap_or_default();
    // SAFETY: jsonb_in takes one NUL-terminated string, which it copies.
    unsafe {
        pgrx::direct_function_call_as_datum(
            pg_sys::jsonb_in,
            &[Some(pg_sys::Datum::from(text.as_ptr()))],
        )
        .expect("jsonb_in never returns NULL")
    }
}

/// What a `jsonb` holds.
///
/// # Errors
/// A number that is none in IEEE 754.
pub fn json_from(datum: pg_sys::Datum) -> Result<Value, SqlError> {
    // SAFETY: the caller's datum is a jsonb; jsonb_out returns a palloc'd
    // NUL-terminated string, which is copied.
    let text = unsafe {
        let detoasted = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
        let text = pgrx::direct_function_call::<&CStr>(
            pg_sys::jsonb_out,
            &[Some(pg_sys::Datum::from(detoasted))],
        );
        from_server(text.unwrap_or_default().to_bytes())?
    };
    serde_json::from_str(&text).map_err(|error| {
        SqlError::new(SqlState::INVALID_PARAMETER_VALUE, "options are not usable")
            .detail(format!("They cannot be read: {error}."))
            .hint("Numbers are those of 64-bit floating point.")
    })
}
