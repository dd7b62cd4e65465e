//! What `EXPLAIN (ANALYZE)` says of a scan, where the server asks: since PostgreSQL 18.

use std::cell::Cell;
use std::ffi::{CStr, c_char};

use pgrx::{pg_guard, pg_sys};

use super::scan::{self, ScanState};

thread_local! {
    /// The hook that was there before ours.
    static NEXT: Cell<pg_sys::explain_per_node_hook_type> = const { Cell::new(None) };
}

/// Puts our hook before the one that is there.
pub(super) fn init() {
    // SAFETY: a variable of the backend; called once, when the library is loaded.
    unsafe {
        NEXT.set(pg_sys::explain_per_node_hook);
        pg_sys::explain_per_node_hook = Some(explain_node);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn explain_node(
    node: *mut pg_sys::PlanState,
    ancestors: *mut pg_sys::List,
    relationship: *const c_char,
    plan_name: *const c_char,
    state: *mut pg_sys::ExplainState,
) {
    // SAFETY: PostgreSQL passes a node of a plan and the state of EXPLAIN; the hook
    // before ours gets what we got.
    unsafe {
        if let Some(next) = NEXT.get() {
            next(node, ancestors, relationship, plan_name, state);
        }
        if !(*state).analyze || (*node).type_ != pg_sys::NodeTag::T_IndexScanState {
            return;
        }
        let Some(scan) = (*node.cast::<pg_sys::IndexScanState>())
            .iss_ScanDesc
            .as_ref()
        else {
            return;
        };
        let begin = (*(*scan.indexRelation).rd_indam).ambeginscan;
        let is_ours =
            begin.is_some_and(|begin| std::ptr::fn_addr_eq(begin, scan::ambeginscan as BeginScan));
        if !is_ours || scan.opaque.is_null() {
            return;
        }
        let work = (*scan.opaque.cast::<ScanState>()).work();
        show(c"Lists Probed", work.lists, state);
        show(c"Entries Scanned", work.entries, state);
        show(c"Entries Refined", work.refined, state);
        show(c"Rows Reranked", work.reranked, state);
        if work.left_out > 0 {
            show(c"Rows Left Out", work.left_out, state);
        }
    }
}

type BeginScan = unsafe extern "C-unwind" fn(
    pg_sys::Relation,
    std::ffi::c_int,
    std::ffi::c_int,
) -> pg_sys::IndexScanDesc;

/// # Safety
/// `state` must be that of an EXPLAIN under way.
unsafe fn show(label: &CStr, count: u64, state: *mut pg_sys::ExplainState) {
    // SAFETY: the caller's promise; a label that ends in NUL, and no unit.
    unsafe {
        pg_sys::ExplainPropertyInteger(label.as_ptr(), std::ptr::null(), count as i64, state);
    }
}
