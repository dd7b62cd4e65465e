//! What the planner is told about a scan.
//!
//! A scan ranks L centroids and then reads nprobe of the L lists before it returns its
//! first row. Reading n lists of an index of P pages and T rows costs
//!
//! - one random page for the begin of each list, and the other list pages of the lists
//!   in sequence; row pages, where there are any, are not among them,
//! - `cpu_operator_cost` for the distance and `cpu_index_tuple_cost` for the queue, for
//!   each of T n / L rows.
//!
//! Where there are row pages, some of the entries are looked up in them: a few for the
//! start, and a few more for each row that is returned, each in a page of its own. The
//! row pages of a list lie together, so that they cost what pages in sequence cost.
//!
//! To these come `cpu_operator_cost` for each centroid, and whatever the planner adds
//! for the rows of the table. The more rows are returned, the more lists are read
//! ([`Probes::before_row`]), up to all of them.
//!
//! Where P is greater than the number of pages of the table, because vectors lie out of
//! line, the latter counts: nor is a sequential scan charged for the pages of vectors
//! that it reads, and what is compared must be alike.
//!
//! The planner knows two costs of a scan, that before the first row and that of all
//! rows, and takes what lies between to rise evenly. But the first rows, which come from
//! all over the table, cost a page each, and all rows together no more than the pages of
//! the table. So, where the query has a LIMIT, the cost of all rows is such that the line
//! to it meets the cost of as many rows as the LIMIT takes by the planner's estimate of
//! how many satisfy the other conditions.

use ivf_store::{Meta, RecallCurve};
use pgrx::{pg_guard, pg_sys};

use super::options;
use super::probes::Probes;
use super::report::OrRaise;
use super::storage::RelationStore;

/// So many entries have their refine codes read for the first rows, and so many more for
/// each row, in searches of embeddings of texts.
const FIRST_REFINED: f64 = 40.0;
const REFINED_PER_ROW: f64 = 4.0;

#[expect(clippy::too_many_arguments, reason = "the signature is PostgreSQL's")]
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn amcostestimate(
    root: *mut pg_sys::PlannerInfo,
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
        let scan = PlannedScan::of(root, info);
        let ranking = scan.lists * pg_sys::cpu_operator_cost;
        *selectivity = scan.most_rows / scan.rows;
        *startup_cost = ranking + scan.cost_of_lists(scan.probes.mean) + scan.cost_of_rows(0.0);
        *total_cost = ranking + scan.cost_of_all();
    }
}

/// A scan that is being planned.
struct PlannedScan<'a> {
    root: *mut pg_sys::PlannerInfo,
    info: &'a pg_sys::IndexOptInfo,
    table: &'a pg_sys::RelOptInfo,
    lists: f64,
    /// Pages of the index that a scan is charged for: those of lists, and those of rows.
    list_pages: f64,
    row_pages: f64,
    probes: Probes,
    /// Rows of the index, at least one.
    rows: f64,
    /// Rows that a scan returns at most.
    most_rows: f64,
}

impl<'a> PlannedScan<'a> {
    /// # Safety
    /// The planner must hold a lock on the index, and its table be planned.
    unsafe fn of(root: *mut pg_sys::PlannerInfo, info: &'a pg_sys::IndexOptInfo) -> Self {
        // SAFETY: the planner has the index locked, so no further lock is needed.
        unsafe {
            let relation = pg_sys::index_open(info.indexoid, pg_sys::NoLock as pg_sys::LOCKMODE);
            let store = RelationStore::open(relation);
            let meta = Meta::read(&store).or_raise(relation);
            let curve = RecallCurve::read(&store, &meta).or_raise(relation);
            let probes = Probes::choose(relation, &curve, &meta);
            pg_sys::index_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            let (lists, rows) = (f64::from(meta.lists), info.tuples.max(1.0));
            // No list is read when so many rows were, but a list is read whole.
            let bound = options::max_scan_tuples().map_or(rows, |bound| bound as f64);
            let first_rows = rows * probes.mean / lists;
            let table = &*info.rel;
            let pages = f64::from(info.pages.min(table.pages.max(1)));
            let list_pages = pages / (1.0 + meta.layout.row_pages() as f64);
            Self {
                root,
                info,
                table,
                lists,
                list_pages,
                row_pages: pages - list_pages,
                probes,
                rows,
                most_rows: (rows * f64::from(probes.most) / lists)
                    .min(bound)
                    .max(first_rows),
            }
        }
    }

    /// What reading so many lists costs.
    fn cost_of_lists(&self, count: f64) -> f64 {
        let (random_page_cost, seq_page_cost) = page_costs(self.info.reltablespace);
        // SAFETY: settings of the backend.
        let row_cost = unsafe { pg_sys::cpu_operator_cost + pg_sys::cpu_index_tuple_cost };
        let share = count / self.lists;
        let pages = self.list_pages * share;
        let random_pages = pages.min(count);
        random_pages * random_page_cost
            + (pages - random_pages) * seq_page_cost
            + self.rows * share * row_cost
    }

    /// What looking entries up in row pages costs when so many rows were returned.
    fn cost_of_rows(&self, rows: f64) -> f64 {
        if self.row_pages < 1.0 {
            return 0.0;
        }
        let (_, seq_page_cost) = page_costs(self.info.reltablespace);
        let entries = (FIRST_REFINED + REFINED_PER_ROW * rows).min(self.rows);
        // SAFETY: arithmetic over what the planner knows.
        let pages = unsafe {
            let pages = self.row_pages as pg_sys::BlockNumber;
            pg_sys::index_pages_fetched(entries, pages, 0.0, self.root)
        };
        pages * seq_page_cost
    }

    /// How many lists are read when so many rows were returned.
    fn lists_of_rows(&self, rows: f64) -> f64 {
        let most = self.most_rows * self.lists / self.rows;
        let before = self.probes.before_row(rows, self.rows / self.lists);
        before.min(most.max(self.probes.mean))
    }

    /// What the pages of the table cost in which so many rows lie, as the planner
    /// charges them.
    fn cost_of_table_pages(&self, rows: f64) -> f64 {
        let (random_page_cost, _) = page_costs(self.table.reltablespace);
        // SAFETY: arithmetic over what the planner knows.
        let pages = unsafe {
            let index_pages = f64::from(self.info.pages);
            pg_sys::index_pages_fetched(rows, self.table.pages, index_pages, self.root)
        };
        pages * random_page_cost
    }

    /// The share of the rows that satisfies the LIMIT of the query, 1 if there is none.
    ///
    /// # Safety
    /// As for [`Self::of`].
    unsafe fn wanted_share(&self) -> f64 {
        // SAFETY: the caller's promise.
        let limit = unsafe { (*self.root).limit_tuples };
        if limit <= 0.0 {
            return 1.0;
        }
        (limit / self.table.rows.max(1.0)).min(1.0)
    }

    /// What the index's part of a scan costs that returns all rows, without the ranking.
    ///
    /// # Safety
    /// As for [`Self::of`].
    unsafe fn cost_of_all(&self) -> f64 {
        let start = self.cost_of_lists(self.probes.mean) + self.cost_of_rows(0.0);
        // SAFETY: the caller's promise.
        let share = unsafe { self.wanted_share() };
        let rows = (self.rows * share).min(self.most_rows);
        let reading =
            |rows: f64| self.cost_of_lists(self.lists_of_rows(rows)) + self.cost_of_rows(rows);
        let rise = reading(rows) - start + self.cost_of_table_pages(rows);
        let even = start + rise / share - self.cost_of_table_pages(self.most_rows);
        reading(self.most_rows).max(even)
    }
}

/// What a random and a sequential page of a tablespace cost.
fn page_costs(tablespace: pg_sys::Oid) -> (f64, f64) {
    let (mut random_page_cost, mut seq_page_cost) = (0.0, 0.0);
    // SAFETY: two places for results.
    unsafe {
        pg_sys::get_tablespace_page_costs(tablespace, &mut random_page_cost, &mut seq_page_cost);
    }
    (random_page_cost, seq_page_cost)
}
