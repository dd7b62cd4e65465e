//! Errors of the access method as PostgreSQL reports them. All SQLSTATEs here
//! are PostgreSQL's own, which travel through a Rust panic unharmed.

use std::fmt::Write;

use faiss_ivf::FaissError;
use ivf_store::StoreError;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, name_data_to_str, pg_sys};

/// An error or notice under construction.
pub(super) struct Report(ErrorReport);

impl Report {
    #[track_caller]
    pub fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorReport::new(code, message.into(), "faiss_ivf"))
    }

    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self(self.0.set_detail(detail))
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self(self.0.set_hint(hint))
    }

    /// Raises an ERROR: unwinds to the callback that PostgreSQL called.
    pub fn raise(self) -> ! {
        self.0.report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }

    /// Sends a NOTICE.
    pub fn notice(self) {
        self.0.report(PgLogLevel::NOTICE);
    }
}

/// The name of a relation.
///
/// # Safety
/// `relation` must be open.
pub(super) unsafe fn relation_name(relation: pg_sys::Relation) -> String {
    // SAFETY: an open relation has its row of pg_class.
    unsafe { name_data_to_str(&(*(*relation).rd_rel).relname).to_owned() }
}

/// Turns errors of the lower crates into errors of PostgreSQL.
pub(super) trait OrRaise<T> {
    /// The value, or an ERROR that names `index`.
    ///
    /// # Safety
    /// `index` must be an open relation.
    unsafe fn or_raise(self, index: pg_sys::Relation) -> T;
}

impl<T> OrRaise<T> for Result<T, StoreError> {
    unsafe fn or_raise(self, index: pg_sys::Relation) -> T {
        match self {
            Ok(value) => value,
            // SAFETY: the caller's promise.
            Err(error) => raise_store_error(&unsafe { relation_name(index) }, &error),
        }
    }
}

impl<T> OrRaise<T> for Result<T, FaissError> {
    unsafe fn or_raise(self, index: pg_sys::Relation) -> T {
        match self {
            Ok(value) => value,
            // SAFETY: the caller's promise.
            Err(error) => raise_faiss_error(&unsafe { relation_name(index) }, error),
        }
    }
}

fn raise_store_error(index: &str, error: &StoreError) -> ! {
    match error {
        StoreError::Corrupted { block, reason } => Report::new(
            PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED,
            format!("index \"{index}\" is corrupted at block {block}"),
        )
        .detail(sentence(reason))
        .hint(format!("Rebuild it with REINDEX INDEX {index}."))
        .raise(),
        StoreError::Version { block, found } => Report::new(
            PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED,
            format!("index \"{index}\" has an unknown format at block {block}"),
        )
        .detail(format!(
            "The page has format version {found}, this version of pg_sight reads {}.",
            ivf_store::VERSION
        ))
        .hint(format!("Rebuild it with REINDEX INDEX {index}."))
        .raise(),
    }
}

fn raise_faiss_error(index: &str, error: FaissError) -> ! {
    match error {
        FaissError::Interrupted => Report::new(
            PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            format!("computation in index \"{index}\" was interrupted"),
        )
        .raise(),
        FaissError::OutOfMemory => Report::new(
            PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            format!("out of memory in index \"{index}\""),
        )
        .raise(),
        FaissError::InvalidArgument(reason) => Report::new(
            PgSqlErrorCode::ERRCODE_DATA_EXCEPTION,
            format!("vectors cannot be clustered for index \"{index}\""),
        )
        .detail(sentence(&reason))
        .raise(),
        FaissError::Faiss(reason) => Report::new(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("FAISS failed in index \"{index}\""),
        )
        .detail(sentence(&reason))
        .raise(),
    }
}

/// For what is allocated by the number of rows: Rust ends the process when
/// other allocations fail, and that of a backend takes all sessions with it.
pub(super) fn raise_out_of_memory(bytes: usize) -> ! {
    Report::new(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory")
        .detail(format!(
            "A faiss_ivf index asked for {bytes} bytes and got none."
        ))
        .raise()
}

/// `reason` with a capital at its begin and a full stop at its end.
fn sentence(reason: &str) -> String {
    let mut characters = reason.chars();
    let mut text: String = characters
        .next()
        .map(|first| first.to_uppercase().to_string())
        .unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = write!(text, "{}.", characters.as_str().trim_end_matches('.'));
    text
}
