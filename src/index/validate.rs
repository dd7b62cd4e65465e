use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_guard, pg_sys};

use super::opclass::{DESCRIPTOR_PROC, DISTANCE_STRATEGY};

/// Checks an operator class: one operator to order by, which returns a float
/// and sorts as one, and the support function that returns the descriptor.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amvalidate(opclass: pg_sys::Oid) -> bool {
    let mut family = pg_sys::InvalidOid;
    let mut indexed = pg_sys::InvalidOid;
    // SAFETY: looks the class up by its oid; two places for results.
    let exists =
        unsafe { pg_sys::get_opclass_opfamily_and_input_type(opclass, &mut family, &mut indexed) };
    let faults = if exists {
        // SAFETY: both were found in the catalog.
        unsafe {
            [
                operator_fault(family, indexed),
                function_fault(family, indexed),
            ]
        }
    } else {
        [Some("the operator class does not exist"), None]
    };
    for fault in faults.iter().flatten() {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
            format!(
                "operator class {} of access method faiss_ivf: {fault}",
                opclass.to_u32()
            ),
            "amvalidate",
        )
        .report(PgLogLevel::INFO);
    }
    faults.iter().all(Option::is_none)
}

/// # Safety
/// Looks both up in the catalog; needs a transaction.
unsafe fn operator_fault(family: pg_sys::Oid, indexed: pg_sys::Oid) -> Option<&'static str> {
    // SAFETY: lookups by oid.
    unsafe {
        let strategy = DISTANCE_STRATEGY as i16;
        let operator = pg_sys::get_opfamily_member(family, indexed, indexed, strategy);
        if operator == pg_sys::InvalidOid {
            return Some("operator 1 is missing");
        }
        let sort_family = pg_sys::get_op_opfamily_sortfamily(operator, family);
        if sort_family == pg_sys::InvalidOid {
            return Some("operator 1 is not FOR ORDER BY");
        }
        if pg_sys::get_op_rettype(operator) != pg_sys::FLOAT8OID {
            return Some("operator 1 does not return double precision");
        }
    }
    None
}

/// # Safety
/// As for [`operator_fault`].
unsafe fn function_fault(family: pg_sys::Oid, indexed: pg_sys::Oid) -> Option<&'static str> {
    // SAFETY: lookups by oid.
    unsafe {
        let number = DESCRIPTOR_PROC as i16;
        let function = pg_sys::get_opfamily_proc(family, indexed, indexed, number);
        if function == pg_sys::InvalidOid {
            return Some("function 1 is missing");
        }
        if pg_sys::get_func_rettype(function) != pg_sys::INTERNALOID {
            return Some("function 1 does not return internal");
        }
    }
    None
}
