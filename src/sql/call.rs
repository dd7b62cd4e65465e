//! How SQL functions are entered and read their arguments.
//!
//! They are declared by hand and not through `#[pg_extern]`, because they
//! return [`SqlError`] with SQLSTATEs of their own, see `error`.

use pgrx::{FromDatum, IntoDatum, pg_sys};

use crate::error::SqlError;

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
    /// lives as long as the prepared expression: one execution of a statement.
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
    let result =
        unsafe { pg_sys::submodules::panic::pgrx_extern_c_guard(|| body(&Call::new(fcinfo))) };
    match result {
        Ok(Some(datum)) => datum,
        // SAFETY: as above.
        Ok(None) => unsafe { pgrx::fcinfo::pg_return_null(fcinfo) },
        // SAFETY: the error is moved; this frame and its caller have nothing
        // else to drop.
        Err(error) => unsafe { crate::error::raise(error) },
    }
}

/// Converts a result value.
pub fn datum<T: IntoDatum>(value: T) -> SqlResult {
    Ok(value.into_datum())
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
