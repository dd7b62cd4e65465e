//! The handler: which callback is where, and what the access method can do.

use pgrx::{Internal, PgBox, pg_extern, pg_sys};

use super::opclass::DESCRIPTOR_PROC;
use super::{build, cost, insert, options, scan, vacuum, validate};

// The argument that SQL requires is never passed.
#[pg_extern(sql = "
CREATE FUNCTION faiss_ivf_handler(internal) RETURNS index_am_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn faiss_ivf_handler() -> Internal {
    // SAFETY: the node is zeroed memory of the right size with its tag; zero is
    // a valid value of every field.
    let mut routine =
        unsafe { PgBox::<pg_sys::IndexAmRoutine>::alloc_node(pg_sys::NodeTag::T_IndexAmRoutine) };

    // Operators of any number may be order-by operators.
    routine.amstrategies = 0;
    routine.amsupport = DESCRIPTOR_PROC;
    routine.amcanorderbyop = true;
    // A scan needs no condition on the column.
    routine.amoptionalkey = true;
    routine.amparallelvacuumoptions = pg_sys::VACUUM_OPTION_PARALLEL_BULKDEL as u8;
    routine.amkeytype = pg_sys::InvalidOid;

    routine.ambuild = Some(build::ambuild);
    routine.ambuildempty = Some(build::ambuildempty);
    routine.ambuildphasename = Some(build::progress::ambuildphasename);
    routine.aminsert = Some(insert::aminsert);
    routine.ambulkdelete = Some(vacuum::ambulkdelete);
    routine.amvacuumcleanup = Some(vacuum::amvacuumcleanup);
    routine.amcostestimate = Some(cost::amcostestimate);
    routine.amoptions = Some(options::amoptions);
    routine.amvalidate = Some(validate::amvalidate);
    routine.ambeginscan = Some(scan::ambeginscan);
    routine.amrescan = Some(scan::amrescan);
    routine.amgettuple = Some(scan::amgettuple);
    routine.amendscan = Some(scan::amendscan);

    Internal::from(Some(pg_sys::Datum::from(routine.into_pg())))
}
