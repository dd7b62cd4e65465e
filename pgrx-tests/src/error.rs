//! Errors of SQL statements, in full.

use postgres::error::DbError;

/// What a failed statement said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlFailure {
    /// SQLSTATE.
    pub state: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl From<&DbError> for SqlFailure {
    fn from(error: &DbError) -> Self {
        Self {
            state: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }
}

/// The error of a statement that must have failed.
///
/// # Panics
/// When it succeeded, or the connection broke.
pub fn sql_failure<T: std::fmt::Debug>(result: Result<T, postgres::Error>) -> SqlFailure {
    let error = result.expect_err("the statement should have failed");
    error
        .as_db_error()
        .map(SqlFailure::from)
        .unwrap_or_else(|| panic!("connection broke: {error}"))
}
