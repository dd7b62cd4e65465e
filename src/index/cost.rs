//! What the planner is told about a scan.
//!
//! A scan ranks L centroids and then reads nprobe of the L lists, all before
//! it returns its first row. With P pages and T rows in the index and
//! r = nprobe / L, the start of a scan costs
//!
//! - `cpu_operator_cost` for each centroid,
//! - one random page for the begin of each list, and the other pages of the
//!   lists, P r - nprobe of them, in sequence,
//! - `cpu_operator_cost` for the distance and `cpu_index_tuple_cost` for the
//!   queue, for each of T r rows.
//!
//! A scan that goes on to the remaining lists pays the same again for each
//! share r of the index, so the whole costs 1 / r times as much. It then returns
//! all rows, which is its selectivity; a scan that may not go on returns a
//! share of r. The planner takes from the start and the whole what a LIMIT
//! needs by linear interpolation, and adds the pages of the table itself.

use ivf_store::Meta;
use pgrx::{pg_guard, pg_sys};

use super::options;
use super::probes::Probes;
use super::report::OrRaise;
use super::storage::RelationStore;

#[expect(clippy::too_many_arguments, reason = "the signature is PostgreSQL's")]
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amcostestimate(
    _root: *mut pg_sys::PlannerInfo,
    path: *mut pg_sys::IndexPath,
    _loop_count: f64,
    startup_cost: *mut pg_sys::Cost,
    total_cost: *mut pg_sys::Cost,
    selectivity: *mut pg_sys::Selectivity,
    correlation: *mut f64,
    pages: *mut f64,
) {
    // SAFETY: PostgreSQL passes a path over one of our indexes, and places for
    // the results.
    unsafe {
        let info = &*(*path).indexinfo;
        *correlation = 0.0;
        *pages = f64::from(info.pages);
        if pg_sys::list_length((*path).indexorderbys) != 1 {
            // The scan cannot do without an order, nor order equal distances
            // by a second one. Infinity alone does not keep the planner off
            // where everything else is disabled: since PostgreSQL 18 it
            // compares the number of disabled nodes first.
            *startup_cost = f64::INFINITY;
            *total_cost = f64::INFINITY;
            *selectivity = 0.0;
            #[cfg(feature = "pg18")]
            {
                (*path).path.disabled_nodes = 2;
            }
            return;
        }
        let (lists, probes) = lists_and_probes(info.indexoid);
        let share = f64::from(probes.first) / f64::from(lists);
        let most = most_of_index(info, f64::from(probes.most) / f64::from(lists), share);

        let start = cost_of_lists(info, f64::from(probes.first), share);
        let ranking = f64::from(lists) * pg_sys::cpu_operator_cost;
        *startup_cost = ranking + start;
        *total_cost = ranking + start * most / share;
        *selectivity = most;
    }
}

/// What reading `nprobe` lists costs, which are a share of the index.
///
/// # Safety
/// `info` must be that of an index being planned.
unsafe fn cost_of_lists(info: &pg_sys::IndexOptInfo, nprobe: f64, share: f64) -> f64 {
    let (mut random_page_cost, mut seq_page_cost) = (0.0, 0.0);
    // SAFETY: two places for results; settings of the backend.
    let (operator_cost, tuple_cost) = unsafe {
        pg_sys::get_tablespace_page_costs(
            info.reltablespace,
            &mut random_page_cost,
            &mut seq_page_cost,
        );
        (pg_sys::cpu_operator_cost, pg_sys::cpu_index_tuple_cost)
    };
    let pages = f64::from(info.pages) * share;
    let random_pages = pages.min(nprobe);
    let rows = info.tuples * share;
    random_pages * random_page_cost
        + (pages - random_pages) * seq_page_cost
        + rows * (operator_cost + tuple_cost)
}

/// The share of the index that a scan reads at most, which `max_scan_tuples` bounds too.
fn most_of_index(info: &pg_sys::IndexOptInfo, most: f64, first: f64) -> f64 {
    let bound = options::max_scan_tuples().map_or(1.0, |rows| rows as f64 / info.tuples.max(1.0));
    most.min(bound).max(first)
}

/// How many lists an index has, and how many a scan reads.
///
/// # Safety
/// The planner must hold a lock on the index.
unsafe fn lists_and_probes(index: pg_sys::Oid) -> (u32, Probes) {
    // SAFETY: the planner has the index locked, so no further lock is needed.
    unsafe {
        let relation = pg_sys::index_open(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        let store = RelationStore::open(relation);
        let meta = Meta::read(&store).or_raise(relation);
        let probes = Probes::choose(relation, &store, &meta).or_raise(relation);
        pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        (meta.lists, probes)
    }
}
