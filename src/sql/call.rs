//! How SQL functions are entered and read their arguments.
//!
//! They are declared by hand and not through `#[pg_extern]`, because they
//! return [`SqlError`] with SQLSTATEs of their own, see `error`.

use pgrx::{Array, FromDatum, pg_sys};
use serde_json::Value;

use crate::error::{RaisedError, SqlError};
use crate::text;

/// Result of an SQL function; `None` is NULL.
pub type SqlResult = Result<Option<pg_sys::Datum>, SqlError>;

/// One call of an SQL function.
#[derive(Clone, Copy)]
pub struct Call {
    fcinfo: pg_sys::FunctionCallInfo,
}

impl Call {
    /// # Safety
    /// `fcinfo` must be what PostgreSQL passed to the running function.
    pub unsafe fn new(fcinfo: pg_sys::FunctionCallInfo) -> Self {
        Self { fcinfo }
    }

    /// Argument `index` (from 0), a text; `None` when it is NULL.
    ///
    /// # Errors
    /// A text that cannot be UTF-8.
    pub fn text(&self, index: usize) -> Result<Option<String>, SqlError> {
        // What a text holds is read like the bytes of a bytea.
        self.argument::<&[u8]>(index)
            .map(text::from_server)
            .transpose()
    }

    /// Argument `index` (from 0), an array of texts, flat; `None` when it is NULL.
    ///
    /// # Errors
    /// A text that cannot be UTF-8.
    pub fn texts(&self, index: usize) -> Result<Option<Vec<Option<String>>>, SqlError> {
        let Some(array) = self.argument::<Array<&[u8]>>(index) else {
            return Ok(None);
        };
        let texts = array
            .iter()
            .map(|text| text.map(text::from_server).transpose());
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// Argument `index` (from 0), a jsonb; `None` when it is NULL.
    ///
    /// # Errors
    /// A number that Rust cannot hold.
    pub fn json(&self, index: usize) -> Result<Option<Value>, SqlError> {
        self.argument::<pg_sys::Datum>(index)
            .map(text::json_from)
            .transpose()
    }

    /// Argument `index` (from 0), `None` when it is NULL. `T` must fit the
    /// argument's declared type.
    pub fn argument<T: FromDatum>(&self, index: usize) -> Option<T> {
        // SAFETY: fcinfo is valid by construction; T fits the declaration.
        unsafe { pgrx::fcinfo::pg_getarg(self.fcinfo, index) }
    }

    /// The function's own identity.
    pub fn function(&self) -> pg_sys::Oid {
        // SAFETY: PostgreSQL always passes the function's lookup information.
        unsafe { (*(*self.fcinfo).flinfo).fn_oid }
    }

    /// What this place of the query kept from its last call, or a new `T`. It
    /// lives as long as the prepared expression: one execution of a statement, or
    /// in an expression of PL/pgSQL a transaction.
    pub fn site<T: Default>(&self) -> &T {
        // SAFETY: fn_extra belongs to this function alone and holds null or the
        // T that was stored here; fn_mcxt lives exactly as long as flinfo and
        // drops the T with itself.
        unsafe {
            let flinfo = (*self.fcinfo).flinfo;
            if (*flinfo).fn_extra.is_null() {
                let mut context = pgrx::PgMemoryContexts::For((*flinfo).fn_mcxt);
                (*flinfo).fn_extra = context.leak_and_drop_on_delete(T::default()).cast();
            }
            &*(*flinfo).fn_extra.cast::<T>()
        }
    }

    /// The trigger that calls, if one does.
    pub fn trigger(&self) -> Option<*mut pg_sys::TriggerData> {
        // SAFETY: context is null or a node; trigger data says so in its tag.
        unsafe {
            let context = (*self.fcinfo).context;
            let is_trigger =
                !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData;
            is_trigger.then(|| context.cast())
        }
    }
}

/// Runs the body of an SQL function and hands its result to PostgreSQL.
///
/// # Safety
/// To be called by an SQL function with its own `fcinfo` and nothing to drop.
pub unsafe fn enter(
    fcinfo: pg_sys::FunctionCallInfo,
    body: fn(&Call) -> SqlResult,
) -> pg_sys::Datum {
    // SAFETY: the caller passes its own fcinfo. The guard turns panics and
    // PostgreSQL's errors inside the body into errors of this function.
    let result = unsafe {
        pg_sys::submodules::panic::pgrx_extern_c_guard(|| {
            body(&Call::new(fcinfo)).map_err(RaisedError::new)
        })
    };
    match result {
        Ok(Some(datum)) => datum,
        // SAFETY: as above.
        Ok(None) => unsafe { pgrx::fcinfo::pg_return_null(fcinfo) },
        // SAFETY: this frame and its caller have nothing to drop.
        Err(error) => unsafe { error.raise() },
    }
}

/// An array of values in the current memory context; `None` becomes NULL.
///
/// # Safety
/// The values must be of type `element`, and that of variable length and aligned
/// as int, like text.
pub unsafe fn varlena_array(
    values: &[Option<pg_sys::Datum>],
    element: pg_sys::Oid,
) -> pg_sys::Datum {
    let mut datums: Vec<_> = values
        .iter()
        .map(|value| value.unwrap_or(pg_sys::Datum::from(0)))
        .collect();
    let mut nulls: Vec<_> = values.iter().map(Option::is_none).collect();
    let mut dimensions = [datums.len() as i32];
    let mut lower_bounds = [1];
    // SAFETY: datums and nulls have the given length; the rest is the caller's
    // promise.
    unsafe {
        if datums.is_empty() {
            return pg_sys::Datum::from(pg_sys::construct_empty_array(element));
        }
        let array = pg_sys::construct_md_array(
            datums.as_mut_ptr(),
            nulls.as_mut_ptr(),
            1,
            dimensions.as_mut_ptr(),
            lower_bounds.as_mut_ptr(),
            element,
            -1,
            false,
            pg_sys::TYPALIGN_INT as std::ffi::c_char,
        );
        pg_sys::Datum::from(array)
    }
}

/// Defines the C symbol of an SQL function and the record that tells
/// PostgreSQL its calling convention.
macro_rules! sql_function {
    ($name:ident, $info:ident, $body:path) => {
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub extern "C-unwind" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            static RECORD: pgrx::pg_sys::Pg_finfo_record =
                pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &RECORD
        }

        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $name(
            fcinfo: pgrx::pg_sys::FunctionCallInfo,
        ) -> pgrx::pg_sys::Datum {
            // SAFETY: PostgreSQL calls this with the function's own fcinfo.
            unsafe { crate::sql::call::enter(fcinfo, $body) }
        }
    };
}
pub(crate) use sql_function;
